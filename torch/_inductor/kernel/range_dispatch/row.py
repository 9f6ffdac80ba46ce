"""One row of the grid: candidates checked and timed at one probe, on the same inputs, in turn.

A row knows nothing of the graph being lowered: it holds real tensors and compiled modules, so
that another process can measure it as well (see ``worker``).
"""

from __future__ import annotations

import functools
import logging
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._inductor.kernel.range_dispatch import config
from torch._inductor.kernel.range_dispatch.benchmark_module import BenchmarkModule, ModuleFile
from torch._inductor.kernel.range_dispatch.choosing import Measurement
from torch._inductor.kernel.range_dispatch.inputs import Point
from torch._inductor.kernel.range_dispatch.timing import (
    free_memory,
    make_timer,
    NotCaptured,
    Runner,
    same_thread_count,
    synchronize,
    Timer,
)
from torch._inductor.kernel.range_dispatch.trace import first_line
from torch._inductor.kernel.range_dispatch.triton_configs import timed_by_replay
from torch._inductor.kernel.range_dispatch.verify import (
    Check,
    filled_allocations,
    poisoned_allocations,
)


log = logging.getLogger(__name__)

# Called with the place of an entrant before it runs.
Announce = Callable[[int], None]


class DeviceLost(RuntimeError):
    """The device can't be used any more in this process, after an illegal access, say."""

    def __init__(self, entrant: int, why: str) -> None:
        super().__init__(why)
        self.entrant = entrant


@dataclass(frozen=True)
class Entrant:
    """A candidate that can run at the probe.

    Attributes:
        label: What it is called.
        module: It, compiled; in a row that is sent to another process, the file to load.
        is_op: Whether it is the op itself, whose answer is right.
        custom_ops: Names of the operators in it that are not PyTorch's own.
        alone: Runs the candidate without its consumers, where it has any, and uncompiled.
    """

    label: str
    module: BenchmarkModule | ModuleFile
    is_op: bool = False
    custom_ops: tuple[str, ...] = ()
    alone: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Row:
    """What one row is measured with.

    Attributes:
        device: Where the work is done.
        cudagraphs: Whether the user asked for Inductor's timing by CUDA-graph replay.
        point: The probe.
        entrants: The candidates.
        inputs: Real operands.
        check: Compares answers with the op's own.
    """

    device: torch.device
    cudagraphs: bool
    point: Point
    entrants: Sequence[Entrant]
    inputs: Sequence[Any]
    check: Check

    def measure(
        self, only: Sequence[int] | None = None, announce: Announce = lambda i: None
    ) -> dict[int, Measurement]:
        """Measure the entrants at the places ``only``, or all.

        Raises:
            DeviceLost: One of them left the device unusable for this process.
        """
        places = range(len(self.entrants)) if only is None else only
        with timed_by_replay(self.device):
            return _Measuring(self, announce).measure(places)


def failure(label: str, point: Point, reason: str) -> Measurement:
    """Of a candidate that is out at ``point``."""
    return Measurement(label, math.inf, 0.0, f"it fails at size {point.size}: {reason}")


# What a compiler says is wrong, behind the place in the file: gcc, clang, nvcc, MSVC.
_COMPILER = re.compile(r"[:)] *(?:fatal )?error(?: \w+)?: *(.+)")
# Longer messages are cut off: a line of C++ may name types at length.
_LONGEST = 240


def described(error: BaseException) -> str:
    """The kind of ``error`` and what is wrong, in one line."""
    said = first_line(error).rstrip(": ")
    if more := _behind_first_line(error):
        said = f"{said}: {more}"
    if len(said) > _LONGEST:
        said = f"{said[:_LONGEST]}..."
    return f"{type(error).__name__}: {said}".rstrip(": ")


def _behind_first_line(error: BaseException) -> str | None:
    """Where the first line only names the stage: what the compiler or the worker process said."""
    lines = [line for line in str(error).splitlines()[1:] if line.strip()]
    if found := next(filter(None, map(_COMPILER.search, lines)), None):
        return found.group(1)
    output = getattr(error, "output", None)  # of a compiler or a linker that failed otherwise
    if isinstance(output, str) and output.strip():
        return output.strip().splitlines()[0]
    stacks = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call")]
    if not stacks:
        return None
    # After the indented frames comes the worker's own exception; its last line may say most.
    raised = [line for line in lines[stacks[-1] + 1 :] if not line[0].isspace()]
    if not raised:
        return None
    return f"{raised[0]} {raised[-1]}" if raised[0].endswith(":") else raised[0]


@dataclass
class _Measuring:
    row: Row
    announce: Announce
    out: dict[int, Measurement] = field(default_factory=dict)

    def measure(self, places: Sequence[int]) -> dict[int, Measurement]:
        ready: dict[int, Runner] = {}
        for i in places:
            self.announce(i)
            try:
                run = functools.partial(self._module(i), self.row.point, self.row.inputs)
                with same_thread_count():  # it is timed with as many as the others
                    if not self._gives_another_answer(i, run):
                        ready[i] = run
            except Exception as error:
                self._fails(i, error)
        timers = self._timers(ready)
        samples = self._rounds(timers)
        summary = _gpu_summary if self.row.device.type != "cpu" else _cpu_summary
        for i, timer in timers.items():
            if i not in self.out:
                self.out[i] = summary(self._label(i), samples[i], timer.method)
        return self.out

    def _label(self, i: int) -> str:
        return self.row.entrants[i].label

    def _module(self, i: int) -> BenchmarkModule:
        module = self.row.entrants[i].module
        assert isinstance(module, BenchmarkModule)
        return module

    def _gives_another_answer(self, i: int, run: Runner) -> bool:
        """Run an entrant for the first time; where its answer is wrong it is out everywhere."""
        entrant, device = self.row.entrants[i], self.row.device
        with poisoned_allocations(self._module(i).function):
            outputs = run()
            synchronize(device)
        if entrant.is_op:
            return False
        fault = self.row.check.fault(outputs, entrant.alone)
        if fault is None and entrant.custom_ops:  # they allocate for themselves
            with poisoned_allocations(self._module(i).function), filled_allocations():
                outputs = run()
                synchronize(device)
            fault = self.row.check.fault(outputs, entrant.alone)
        if fault is not None:
            size = self.row.point.size
            reason = f"it gives another answer than the op at size {size}: {fault}"
            self.out[i] = Measurement(entrant.label, math.inf, 0.0, reason, everywhere=True)
        return fault is not None

    def _timers(self, runs: Mapping[int, Runner]) -> dict[int, Timer]:
        """By one method for all, or their times could not be compared.

        Where one of them can't be captured in a CUDA graph, all are timed by events.
        """
        for captured in (True, False):
            timers: dict[int, Timer] = {}
            try:
                for i in [i for i in runs if i not in self.out]:
                    self.announce(i)
                    try:
                        timers[i] = make_timer(
                            runs[i], self.row.device, self.row.cudagraphs, captured
                        )
                    except NotCaptured as reason:
                        log.debug("%s is not captured: %s", self._label(i), reason)
                        raise
                    except Exception as error:
                        self._fails(i, error)
            except NotCaptured:
                continue
            return timers
        raise AssertionError("timing by events captures nothing")

    def _fails(self, i: int, error: Exception) -> None:
        device = self.row.device
        log.debug("%s at size %d", self._label(i), self.row.point.size, exc_info=error)
        self.out[i] = failure(self._label(i), self.row.point, described(error))
        try:
            synchronize(device)
        except Exception as lost:
            raise DeviceLost(i, described(lost)) from None
        del error
        free_memory(device)

    def _rounds(self, timers: Mapping[int, Timer]) -> dict[int, list[float]]:
        """Rounds in which each entrant is timed once: a drifting machine is fair to all."""
        samples: dict[int, list[float]] = {i: [] for i in timers}
        running = dict(timers)
        for number in range(1, max(1, config.tuning_rounds) + 1):
            for i, timer in list(running.items()):
                self.announce(i)
                try:
                    samples[i].append(timer())
                except Exception as error:
                    self._fails(i, error)
                    del running[i]
            if number >= 2 and running:
                best = min(min(samples[i]) for i in running)
                slow = [i for i in running if min(samples[i]) > _out_from(number) * best]
                for i in slow:
                    del running[i]
        return samples


def _out_from(rounds: int) -> float:
    """How many times the fastest one's time is clearly out, after so many rounds.

    The distance to 1 halves with every round after the second: 2, 1.5, 1.25.
    """
    return 1 + (config.early_stop - 1) / 2 ** (rounds - 2)


def _gpu_summary(label: str, samples: Sequence[float], method: str) -> Measurement:
    """The median, and half the distance between the quartiles."""
    if len(samples) < 2:
        return Measurement(label, samples[0], method=method)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Measurement(label, median, spread=(high - low) / 2, method=method)


def _cpu_summary(label: str, samples: Sequence[float], method: str) -> Measurement:
    """The smallest of the rounds' medians: what else runs on the cores only ever adds time."""
    first, *others = sorted(samples)
    spread = others[0] - first if others else 0.0
    return Measurement(label, first, spread=spread, method=method)
