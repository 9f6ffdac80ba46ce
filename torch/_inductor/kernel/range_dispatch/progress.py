"""How far a tuning has come: a line on a terminal, and what the work cost for the plan.

``start`` says what there is to do, ``phase`` and ``row`` what is being done and was done, and
``finish`` ends it. They cost next to nothing, and show nothing unless the standard error is a
terminal.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch._inductor.kernel.range_dispatch import config, logs
from torch._inductor.kernel.range_dispatch.choosing import Measurement, RangeResult
from torch._inductor.kernel.range_dispatch.plan import MEASURED, Plan, RECORDED, times_of
from torch._inductor.kernel.range_dispatch.ranges import Range


log = logging.getLogger(__name__)

_local = threading.local()


@dataclass
class Tuning:
    """A tuning that is under way.

    Attributes:
        op: The op.
        total: How many times there are to find: candidates times probes.
        bench: What it is measured with; None where that is gone, and the tuning with it.
        done: How many of them are known.
        measured: How many of them were measured now, and did not come from records.
        seconds: By phase.
        line: The line on the terminal, once something is measured.
    """

    op: str
    total: int
    bench: Callable[[], Any]
    done: int = 0
    measured: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    line: Any = None
    best: str = ""
    started: float = field(default_factory=time.perf_counter)
    _phase: str = ""
    _since: float = 0.0

    def enter(self, phase: str) -> None:
        now = time.perf_counter()
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def close(self) -> None:
        self.enter("")
        if self.line is not None:
            self.line.close()


def start(bench: Any, op: str, candidates: int, probes: int) -> None:
    """``candidates`` times ``probes`` times of ``op`` are to be found, in records or by measuring.

    ``bench`` tells one tuning from another. Called again for the same one, after a candidate
    turned out not to be usable, the count starts anew and the rest is kept.
    """
    running = _running()
    while running and running[-1].bench() is None:  # one that ended in an error
        running.pop().close()
    tuning = running[-1] if running else None
    if tuning is None or tuning.bench() is not bench:
        running.append(Tuning(op, candidates * probes, weakref.ref(bench)))
    else:
        tuning.total, tuning.done = candidates * probes, 0
        if tuning.line is not None:
            tuning.line.restart(tuning)


def phase(name: str, detail: str = "") -> None:
    """What follows is of this kind, such as ``compile``, until the next phase."""
    tuning = _current()
    if tuning is None:
        return
    tuning.enter(name)
    if tuning.line is None and visible():
        tuning.line = _line(tuning)
    if tuning.line is not None:
        tuning.line.show(tuning, f"{name} {detail}".strip())


def more(count: int) -> None:
    """There are ``count`` more times to find than ``start`` said."""
    tuning = _current()
    if tuning is not None:
        tuning.total += count


def row(size: int, measurements: Sequence[Measurement], measured: int) -> None:
    """All candidates' times at ``size`` are known; ``measured`` of them are new."""
    tuning = _current()
    if tuning is None:
        return
    tuning.enter("")
    tuning.done += len(measurements)
    tuning.measured += measured
    times = times_of(RangeResult(Range(0, 0), size, tuple(measurements), ""))
    if times:
        best = min(times, key=times.__getitem__)
        tuning.best = f"best at {size}: {best} {times[best] * 1e3:.1f} us"
    if tuning.line is not None:
        tuning.line.advance(tuning)


def finish(plan: Plan) -> Plan:
    """The tuning has come to ``plan``: that, with its costs and where its times come from."""
    running = _running()
    # Of the calls that are dispatched together, all are tuned before any comes to its plan.
    found = [t for t in running if t.op == plan.op and t.bench() is not None]
    if not found:
        return replace(plan, origin=None)
    tuning = found[0]
    running.remove(tuning)
    tuning.close()
    _hint_at_slow_inputs(tuning)
    return replace(
        plan,
        origin=MEASURED if tuning.measured else RECORDED if tuning.done else None,
        costs=(*((name, s) for name, s in tuning.seconds.items() if name), *plan.costs),
    )


# Seconds that making benchmark inputs may take without a word.
_INPUT_SECONDS = 1.0


def _hint_at_slow_inputs(tuning: Tuning) -> None:
    seconds = tuning.seconds.get("inputs", 0.0)
    measuring = tuning.seconds.get("measure", 0.0)
    if seconds > max(_INPUT_SECONDS, measuring):
        log.warning(
            "%s: making benchmark inputs took %.1f s, and measuring on them %.1f s; input_gen_fns "
            "are called once for each probe, and should be quick",
            tuning.op,
            seconds,
            measuring,
        )


def say(text: str) -> None:
    """A line that stays, where progress is visible."""
    if visible():
        print(text, file=sys.stderr, flush=True)


def visible() -> bool:
    """Whether there is somebody to show progress to: on a terminal, of the first process."""
    if config.progress is not None:
        return bool(config.progress)
    if os.environ.get("LOCAL_RANK", "0") != "0" or logs.silenced():
        return False
    return sys.stderr is not None and sys.stderr.isatty()


def _running() -> list[Tuning]:
    """The tunings of this thread: an implementation may call another op that is tuned."""
    running: list[Tuning] = _local.__dict__.setdefault("running", [])
    return running


def _current() -> Tuning | None:
    running = _running()
    return running[-1] if running else None


def _line(tuning: Tuning) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return _PlainLine()
    return _Bar(tqdm, tuning)


class _PlainLine:
    """A line each time a probe is done."""

    def restart(self, tuning: Tuning) -> None:
        pass

    def show(self, tuning: Tuning, doing: str) -> None:
        pass

    def advance(self, tuning: Tuning) -> None:
        elapsed = time.perf_counter() - tuning.started
        count = f"{tuning.done} of {tuning.total} times"
        print(f"{tuning.op}: {count}, {elapsed:.1f} s, {tuning.best}", file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class _Bar:
    """One line that is drawn over and over."""

    def __init__(self, tqdm: Any, tuning: Tuning) -> None:
        self._bar = tqdm(
            total=tuning.total,
            initial=tuning.done,
            desc=tuning.op,
            leave=False,
            file=sys.stderr,
            bar_format="{desc}: {n_fmt}/{total_fmt} times [{elapsed}]{postfix}",
        )

    def restart(self, tuning: Tuning) -> None:
        self._bar.reset(total=tuning.total)

    def show(self, tuning: Tuning, doing: str) -> None:
        self._bar.set_postfix_str("; ".join(filter(None, [doing, tuning.best])))

    def advance(self, tuning: Tuning) -> None:
        self._bar.n, self._bar.total = tuning.done, tuning.total
        self._bar.set_postfix_str(tuning.best)

    def close(self) -> None:
        self._bar.close()
