"""The grid probe x candidate: every candidate is compiled once and timed at every probe.

A candidate is timed as Inductor would generate it, in a module of its own (see
``benchmark_module``). On a GPU the time is the device's, on a CPU the caller's.
"""

from __future__ import annotations

import functools
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._inductor.kernel.range_dispatch import config
from torch._inductor.kernel.range_dispatch.benchmark_module import (
    BenchmarkModule,
    compile_for_benchmark,
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
from torch._inductor.kernel.range_dispatch.trace import first_line
from torch._inductor.runtime.benchmarking import benchmarker
from torch.fx import GraphModule


log = logging.getLogger(__name__)

Runner = Callable[[], Any]


@dataclass
class Contender:
    """A candidate that was traced, with its benchmark modules once there are any.

    Attributes:
        candidate: The candidate.
        graph: Its trace over the operands of the call.
        modules: The compiled benchmark modules. The first one nearly always serves all probes.
        broken: Why it cannot be compiled; it is out everywhere then.
    """

    candidate: Candidate
    graph: GraphModule
    modules: list[BenchmarkModule] = field(default_factory=list)
    broken: str | None = None

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
        cudagraphs: Whether the user asked for CUDA-graph replay of the op itself.
    """

    call: BoundCall
    fakes: Sequence[Any]
    generators: Mapping[str, InputGenerator]
    cudagraphs: bool = False

    @property
    def device(self) -> torch.device:
        """Where the work is done: the first device of an operand that is not the CPU."""
        devices = [f.device for f in self.fakes if isinstance(f, torch.Tensor)]
        return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))


def measure(bench: Bench, contenders: Sequence[Contender], point: Point) -> list[Measurement]:
    """Time every contender at ``point``, on the same inputs, in turn.

    Returns nothing where the inputs do not fit into memory: no candidate is to blame then.
    """
    for contender in contenders:
        _ensure_compiled(bench, contender, point)
    log.info("%s: measuring %d candidates at size %d", bench.call.op, len(contenders), point.size)
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
            return []
        return _interleaved(bench, contenders, point, inputs)


def _ensure_compiled(bench: Bench, contender: Contender, point: Point) -> None:
    if contender.module_at(point) is not None or contender.broken is not None:
        return
    log.info("%s: compiling %s", bench.call.op, contender.candidate.label)
    try:
        contender.modules.append(_compile(bench, contender, point))
    except Exception as error:
        contender.broken = f"it does not compile: {_first_line(error)}"
        log.info("%s: %s: %s", bench.call.op, contender.candidate.label, contender.broken)
        log.debug("benchmark module of %s", contender.candidate.label, exc_info=True)


def _compile(bench: Bench, contender: Contender, point: Point) -> BenchmarkModule:
    candidate = contender.candidate
    name = _identifier(candidate.label)
    return compile_for_benchmark(
        contender.graph, bench.call, point, candidate.config_patches, name
    )


def _identifier(label: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in label)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}".rstrip(": ")


def _interleaved(
    bench: Bench, contenders: Sequence[Contender], point: Point, inputs: Sequence[Any]
) -> list[Measurement]:
    """Rounds in which each contender is timed once, so that a drifting machine is fair to all."""
    timers: dict[int, Callable[[], float]] = {}
    errors: dict[int, str] = {}
    for i, contender in enumerate(contenders):
        module = contender.module_at(point)
        if module is None:
            errors[i] = contender.broken or "it has no benchmark module"
            continue
        try:
            timers[i] = _timer(functools.partial(module, point, inputs), bench)
        except Exception as error:
            errors[i] = f"it fails at size {point.size}: {_first_line(error)}"
    samples: dict[int, list[float]] = {i: [] for i in timers}
    for _ in range(max(1, config.tuning_rounds)):
        for i, timer in timers.items():
            samples[i].append(timer())
    summary = _gpu_summary if bench.device.type != "cpu" else _cpu_summary
    return [
        summary(contender.candidate.label, samples[i])
        if i in samples
        else Measurement(contender.candidate.label, math.inf, error=errors[i])
        for i, contender in enumerate(contenders)
    ]


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


def _timer(run: Runner, bench: Bench) -> Callable[[], float]:
    """A function that returns the milliseconds of one call of ``run``; it warms up here."""
    run()
    if bench.device.type == "cuda":
        return _cuda_timer(run, bench)
    if bench.device.type != "cpu":
        return lambda: benchmarker.benchmark(run, device=bench.device)
    started = time.perf_counter()
    run()
    once = max(time.perf_counter() - started, 1e-7)
    calls = max(1, min(1000, int(config.tuning_budget_ms / 1e3 / once)))

    def timer() -> float:
        times = []
        for _ in range(calls):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return statistics.median(times) * 1e3

    return timer


def _cuda_timer(run: Runner, bench: Bench) -> Callable[[], float]:
    """Device time by replaying a CUDA graph, by Inductor's benchmarker if it can't be captured."""
    with torch.cuda.device(bench.device):
        try:
            graph, calls = _capture(run)
        except Exception as error:
            log.debug("not captured, timed by events: %s", _first_line(error))
            torch.cuda.synchronize()
            return lambda: benchmarker.benchmark_gpu(run)

    def timer() -> float:
        with torch.cuda.device(bench.device):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            return start.elapsed_time(stop) / calls

    timer()
    return timer


def _capture(run: Runner) -> tuple[torch.cuda.CUDAGraph, int]:
    """A CUDA graph of enough calls that the launch of the graph itself does not count."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
    torch.cuda.current_stream().wait_stream(side)
    once = max(start.elapsed_time(stop), 1e-3)
    calls = max(1, min(100, int(config.tuning_budget_ms / once)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph, calls
