"""Measuring in another process, so that what goes wrong there ends that process alone.

A candidate that aborts, reads memory that is not its own, or hangs takes its process along. With
``config.measure_in_subprocess`` that process is a worker: it says which candidate it is about to
run, so that the parent knows which one it was, leaves that one out and measures the others again.

On a CPU the worker is a fork of this process: it has everything, and costs milliseconds a row. A
GPU can't be used in a fork. There the worker is a new interpreter that imports the user's main
module the way ``multiprocessing`` does, and serves until a candidate ends it. A row goes there as a
file: what is written astray in memory that both share would be written in this process as well.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config as inductor_config
from torch._inductor.kernel.range_dispatch import config
from torch._inductor.kernel.range_dispatch.benchmark_module import BenchmarkModule, ModuleFile
from torch._inductor.kernel.range_dispatch.choosing import Measurement
from torch._inductor.kernel.range_dispatch.row import described, DeviceLost, Entrant, failure, Row
from torch._inductor.kernel.range_dispatch.timing import free_memory
from torch._inductor.runtime.cache_dir_utils import cache_dir


log = logging.getLogger(__name__)

# How many calls a worker may be silent for: those of one timing that is as short as it gets, and
# those around it.
_SILENT_CALLS = 5
# The process's name, by which it knows itself while it imports the user's main module.
_NAME = "range_dispatch_worker"
# Seconds for a worker to start, the user's main module included, and to load what it measures.
_START_S = 300.0


class NotMeasured(Exception):
    """The worker can't measure the row, and no candidate is to blame; the message says why."""


class _NeverStarted(NotMeasured):
    """The worker ended before it did anything, and another one would."""


@dataclass(frozen=True)
class _Ended:
    """The worker ended, or had to be ended, while it ran the entrant at ``place``."""

    place: int
    why: str
    everywhere: bool = True


Outcome = dict[int, Measurement] | _Ended
Attempt = Callable[[Sequence[int]], Outcome]


def measure(make_row: Callable[[], Row]) -> dict[int, Measurement]:
    """What ``make_row().measure()`` would return, measured in a worker.

    Raises:
        NotMeasured: There is no worker, or it lacks something that a candidate needs.
        SystemExit: This is the worker, which is importing a main module that compiles.
    """
    if multiprocessing.current_process().name == _NAME:
        raise SystemExit("compiling must be inside of `if __name__ == '__main__'`")
    row = make_row()
    point, labels = row.point, [entrant.label for entrant in row.entrants]
    if _method(row.device) == "fork":
        found = _attempts(functools.partial(_forked, row), len(labels))
    else:
        with tempfile.TemporaryDirectory(prefix="range_dispatch_") as folder:
            path = Path(folder, "row.pt")
            _store(row, path)
            del row  # the worker needs the memory now
            found = _attempts(functools.partial(_spawned, path), len(labels))
    return {
        i: outcome
        if isinstance(outcome, Measurement)
        else replace(failure(labels[i], point, outcome.why), everywhere=outcome.everywhere)
        for i, outcome in found.items()
    }


def _attempts(attempt: Attempt, count: int) -> dict[int, Measurement | _Ended]:
    """Measure all, leaving out one after the other that ends the worker."""
    out: dict[int, Measurement | _Ended] = {}
    while left := [i for i in range(count) if i not in out]:
        outcome = attempt(left)
        if isinstance(outcome, dict):
            return {**out, **outcome}
        out[outcome.place] = outcome
    return out


def _method(device: torch.device) -> str:
    """How a worker is started."""
    return "fork" if device.type == "cpu" and hasattr(os, "fork") else "spawn"


class _Worker:
    """A process that measures; ``connection`` goes to it, and speaks of what it does."""

    def __init__(self, method: str, target: Callable[..., None], *args: Any) -> None:
        context: Any = multiprocessing.get_context(method)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(name=_NAME, target=target, args=(theirs, *args), daemon=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of forking where there are threads
                self.process.start()
        except Exception as error:
            raise NotMeasured(f"no process could be started: {described(error)}") from error
        theirs.close()

    def outcome(self) -> Outcome:
        """Follow the worker to the end of its row."""
        at: int | None = None
        while True:
            patience = _START_S if at is None else _SILENT_CALLS * config.time_limit_s
            ready = wait([self.connection, self.process.sentinel], patience)
            if not ready:
                self.end()
                return self._ended(at, f"it gave no sign of life for {patience:g} s", False)
            try:
                # What was said before the process ended is there still.
                kind, *said = self.connection.recv() if self.connection.poll() else ("ended",)
            except (EOFError, OSError):
                kind = "ended"
            if kind == "at":
                (at,) = said
            elif kind == "measured":
                (found,) = said
                return found
            elif kind == "lost":
                self.end()
                return _Ended(*said)
            elif kind == "cannot":
                raise NotMeasured(*said)
            else:
                self.process.join(10)
                return self._ended(at, f"it ended the process{_how(self.process.exitcode)}", True)

    def _ended(self, at: int | None, why: str, everywhere: bool) -> _Ended:
        self.end()
        if at is None:
            raise _NeverStarted(
                f"before a candidate ran, {why}. On a GPU the main module is imported there; "
                "compiling must be inside of `if __name__ == '__main__'`"
            )
        if not everywhere:
            why += f", and was ended (config.time_limit_s is {config.time_limit_s:g} s)"
        return _Ended(at, why, everywhere)

    def end(self) -> None:
        self.process.kill()
        self.process.join(10)
        self.connection.close()


def _how(exitcode: int | None) -> str:
    if exitcode is None or exitcode >= 0:
        return f", exit code {exitcode}"
    with contextlib.suppress(ValueError):
        return f", {signal.Signals(-exitcode).name}"
    return f", signal {-exitcode}"


# ---------------------------------------------------------------------------------------------
# A fork.


def _forked(row: Row, places: Sequence[int]) -> Outcome:
    worker = _Worker("fork", _in_fork, row, places, torch.get_num_threads())
    try:
        return worker.outcome()
    finally:
        worker.end()


def _in_fork(connection: Connection, row: Row, places: Sequence[int], threads: int) -> None:
    def work() -> None:
        torch.set_num_threads(threads)
        _answer(connection, row, places)

    _no_core_dump()
    # GNU's OpenMP keeps its threads by the thread that started them. The one that was forked would
    # wait for threads that are not here; a new one starts its own.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def _answer(connection: Connection, row: Row, places: Sequence[int]) -> None:
    try:
        with torch.no_grad():
            found = row.measure(places, lambda i: connection.send(("at", i)))
    except DeviceLost as lost:
        connection.send(("lost", lost.entrant, f"it left the device unusable: {lost}"))
    except Exception as error:
        connection.send(("cannot", described(error)))
    else:
        connection.send(("measured", found))


def _no_core_dump() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


# ---------------------------------------------------------------------------------------------
# A new interpreter.

_serving: list[_Worker] = []
_never_started: list[_NeverStarted] = []
_lock = threading.Lock()


def _store(row: Row, path: Path) -> None:
    """Write ``row`` for a worker, with what else decides how its candidates run."""
    sent = [_to_send(entrant) for entrant in row.entrants]
    surroundings = {
        "knobs": config.save_config(),  # type: ignore[attr-defined]
        "cache_dir": cache_dir(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
    }
    try:
        torch.save((replace(row, entrants=sent), surroundings), path)
    except Exception as error:
        raise NotMeasured(f"it can't be sent there: {described(error)}") from error


def _to_send(entrant: Entrant) -> Entrant:
    module = entrant.module
    file = module.file if isinstance(module, BenchmarkModule) else module
    return replace(entrant, module=file, alone=None)


def _spawned(path: Path, places: Sequence[int]) -> Outcome:
    with _lock:
        if _never_started:
            raise _never_started[0]
        if not _serving or not _serving[0].process.is_alive():
            _serving[:] = [_Worker("spawn", _serve)]
        worker = _serving[0]
        keeps = False
        try:
            worker.connection.send((str(path), list(places)))
            outcome = worker.outcome()
            keeps = isinstance(outcome, dict)
            return outcome
        except _NeverStarted as error:
            _never_started.append(error)
            raise
        except OSError as error:
            raise NotMeasured(f"it has ended: {described(error)}") from error
        finally:
            if not keeps:
                _serving.clear()
                worker.end()


def _serve(connection: Connection) -> None:
    """What the worker runs: rows, until the parent ends."""
    _no_core_dump()
    inductor_config.compile_threads = 1  # the kernels are in the caches already
    while True:
        try:
            path, places = connection.recv()
        except EOFError:
            return
        try:
            row = _load(path)
        except Exception as error:
            connection.send(("cannot", described(error)))
            continue
        _answer(connection, row, places)
        # Until there is another row, which may be never, this process keeps nothing of it.
        device = row.device
        del row
        gc.collect()
        with contextlib.suppress(Exception):  # of a device that is lost
            free_memory(device)


def _load(path: str) -> Row:
    row, surroundings = torch.load(path, weights_only=False)
    config.load_config(surroundings["knobs"])  # type: ignore[attr-defined]
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = surroundings["cache_dir"]
    torch.set_num_threads(surroundings["threads"])
    torch.set_float32_matmul_precision(surroundings["precision"])
    return replace(row, entrants=[_loaded(entrant) for entrant in row.entrants])


def _loaded(entrant: Entrant) -> Entrant:
    for name in entrant.custom_ops:
        try:
            functools.reduce(getattr, name.split("."), torch.ops)
        except AttributeError:
            raise RuntimeError(
                f"{entrant.label} needs the operator {name}, which importing the main module there "
                "does not define; define it, or import what does, outside of "
                "`if __name__ == '__main__'`"
            ) from None
    module = entrant.module
    return replace(entrant, module=module.load() if isinstance(module, ModuleFile) else module)
