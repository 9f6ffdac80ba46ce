"""The grid probe x candidate: every candidate is compiled once, checked and timed at every probe.

A candidate is timed as Inductor would generate it, in a module of its own (see
``benchmark_module``). One that fails at a probe is out there, and one that does not compile or
gives another answer than the op is out everywhere.
"""

from __future__ import annotations

import functools
import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._inductor.kernel.range_dispatch import config, progress
from torch._inductor.kernel.range_dispatch.benchmark_module import (
    BenchmarkModule,
    compile_for_benchmark,
    compiled_together,
)
from torch._inductor.kernel.range_dispatch.call import BoundCall
from torch._inductor.kernel.range_dispatch.candidates import Candidate
from torch._inductor.kernel.range_dispatch.choosing import Measurement
from torch._inductor.kernel.range_dispatch.inputs import (
    InputGenerator,
    make_inputs,
    Point,
    real_tensors,
)
from torch._inductor.kernel.range_dispatch.timing import (
    free_memory,
    make_timer,
    synchronize,
    Timer,
)
from torch._inductor.kernel.range_dispatch.trace import first_line
from torch._inductor.kernel.range_dispatch.verify import Check, poisoned_allocations
from torch.fx import GraphModule


log = logging.getLogger(__name__)


@dataclass
class Contender:
    """A candidate, with its trace and its benchmark modules once there are any.

    Attributes:
        candidate: The candidate.
        trace: Traces it; see ``graph``.
        modules: The compiled benchmark modules. The first one nearly always serves all probes.
        broken: Why it is out everywhere: it does not compile, or gives another answer.
    """

    candidate: Candidate
    trace: Callable[[], GraphModule]
    modules: list[BenchmarkModule] = field(default_factory=list)
    broken: str | None = None

    @functools.cached_property
    def graph(self) -> GraphModule:
        """Its trace over the operands of the call, made when it is first asked for.

        Raises:
            Rejected: It cannot be traced.
        """
        return self.trace()

    def module_at(self, point: Point) -> BenchmarkModule | None:
        """A compiled module that may run at ``point``."""
        return next((module for module in self.modules if module.serves(point)), None)


@dataclass(frozen=True)
class Bench:
    """What the contenders of one call are measured with.

    Attributes:
        call: The call.
        fakes: Its operands as fake tensors.
        generators: The user's input generators by argument name.
        cudagraphs: Whether the user asked for Inductor's timing by CUDA-graph replay.
        tolerances: The user's tolerances by dtype; None where answers are not to be compared.
    """

    call: BoundCall
    fakes: Sequence[Any]
    generators: Mapping[str, InputGenerator]
    cudagraphs: bool = False
    tolerances: Mapping[torch.dtype, float] | None = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the work is done: the first device of an operand that is not the CPU."""
        devices = [f.device for f in self.fakes if isinstance(f, torch.Tensor)]
        return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))


def measure(bench: Bench, contenders: Sequence[Contender], point: Point) -> list[Measurement]:
    """Check and time every contender at ``point``, on the same inputs, in turn.

    Returns nothing where the inputs do not fit into memory: no candidate is to blame then.
    """
    _ensure_compiled(bench, contenders, point)
    log.info("%s: measuring %d candidates at size %d", bench.call.op, len(contenders), point.size)
    progress.phase("measure", f"at {point.size}")
    with real_tensors([bench.device]):
        try:
            inputs = make_inputs(bench.call, point, bench.generators)
        except (RuntimeError, MemoryError) as error:
            log.warning(
                "%s: not measured at size %d, since its inputs could not be made: %s",
                bench.call.op,
                point.size,
                _first_line(error),
            )
            free_memory(bench.device)
            return []
        return _Probe(bench, contenders, point, inputs).measure()


def _ensure_compiled(bench: Bench, contenders: Sequence[Contender], point: Point) -> None:
    """Compile what has no module for ``point`` yet: all kernels at once, then wait for them."""

    def give_up(contender: Contender, error: Exception) -> None:
        contender.broken = f"it does not compile: {_first_line(error)}"
        log.info("%s: %s: %s", bench.call.op, contender.candidate.label, contender.broken)
        log.debug("benchmark module of %s", contender.candidate.label, exc_info=error)

    missing = [c for c in contenders if c.broken is None and c.module_at(point) is None]
    with compiled_together() as finish:
        for contender in missing:
            log.info("%s: compiling %s", bench.call.op, contender.candidate.label)
            progress.phase("compile", contender.candidate.label)
            try:
                contender.modules.append(_compile(bench, contender, point))
            except Exception as error:
                give_up(contender, error)
        for contender in missing:
            try:
                if contender.broken is None:
                    finish(contender.modules[-1].function)
            except Exception as error:
                give_up(contender, error)


def _compile(bench: Bench, contender: Contender, point: Point) -> BenchmarkModule:
    candidate = contender.candidate
    name = _identifier(candidate.label)
    return compile_for_benchmark(contender.graph, bench.call, point, candidate.config_patches, name)


def _identifier(label: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in label)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}".rstrip(": ")


@dataclass
class _Probe:
    """One row of the grid: contenders on the same inputs.

    Attributes:
        errors: Why a contender is out here, by its index.
    """

    bench: Bench
    contenders: Sequence[Contender]
    point: Point
    inputs: Sequence[Any]
    errors: dict[int, str] = field(default_factory=dict)

    def measure(self) -> list[Measurement]:
        check = Check(self.bench.call, self.inputs, self.bench.tolerances)
        timers: dict[int, Timer] = {}
        for i, contender in enumerate(self.contenders):
            try:
                timer = self._prepare(contender, check)
            except Exception as error:
                self._fails(i, error)
                continue
            if timer is None:
                self.errors[i] = contender.broken or "it has no benchmark module"
            else:
                timers[i] = timer
        samples = self._rounds(timers)
        summary = _gpu_summary if self.bench.device.type != "cpu" else _cpu_summary
        row = []
        for i, contender in enumerate(self.contenders):
            label = contender.candidate.label
            if i in self.errors:
                everywhere = contender.broken is not None
                row.append(Measurement(label, math.inf, 0.0, self.errors[i], everywhere))
            else:
                row.append(summary(label, samples[i]))
        return row

    def _prepare(self, contender: Contender, check: Check) -> Timer | None:
        """Run the contender once and check its answer; a timer for it unless it is out."""
        module = contender.module_at(self.point)
        if contender.broken is not None or module is None:
            return None
        run = functools.partial(module, self.point, self.inputs)
        check.poison_free_memory()
        with poisoned_allocations(module.function):
            outputs = run()
        synchronize(self.bench.device)
        fault = None if contender.candidate.is_op else check.fault(outputs)
        if fault is not None:
            contender.broken = (
                f"it gives another answer than the op at size {self.point.size}: {fault}"
            )
            return None
        del outputs
        return make_timer(run, self.bench.device, self.bench.cudagraphs)

    def _fails(self, i: int, error: Exception) -> None:
        self.errors[i] = f"it fails at size {self.point.size}: {_first_line(error)}"
        label = self.contenders[i].candidate.label
        log.info("%s: %s: %s", self.bench.call.op, label, self.errors[i])
        log.debug("%s at size %d", label, self.point.size, exc_info=error)
        del error
        free_memory(self.bench.device)

    def _rounds(self, timers: Mapping[int, Timer]) -> dict[int, list[float]]:
        """Rounds in which each contender is timed once: a drifting machine is fair to all.

        After two rounds a contender that was clearly slower in both is not timed any more.
        """
        samples: dict[int, list[float]] = {i: [] for i in timers}
        running = dict(timers)
        for number in range(max(1, config.tuning_rounds)):
            for i, timer in list(running.items()):
                try:
                    samples[i].append(timer())
                except Exception as error:
                    self._fails(i, error)
                    del running[i]
            if number >= 1 and running:
                best = min(min(samples[i]) for i in running)
                slow = [i for i in running if min(samples[i]) > config.early_stop * best]
                for i in slow:
                    del running[i]
        return samples


def _gpu_summary(label: str, samples: Sequence[float]) -> Measurement:
    """The median, and half the distance between the quartiles."""
    if len(samples) < 2:
        return Measurement(label, samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Measurement(label, median, spread=(high - low) / 2)


def _cpu_summary(label: str, samples: Sequence[float]) -> Measurement:
    """The smallest of the rounds' medians: what else runs on the cores only ever adds time."""
    first, *others = sorted(samples)
    return Measurement(label, first, spread=others[0] - first if others else 0.0)
