"""The time of one call, in milliseconds: the device's on a GPU, the caller's on a CPU.

On a GPU every candidate runs again and again on the same inputs, so that what fits into the L2
cache is there for all of them alike; it is not flushed between calls. By events a kernel takes
about a microsecond longer than in a CUDA graph, so a row is timed by one of the two.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._inductor import config as inductor_config
from torch._inductor.kernel.range_dispatch import compat, config
from torch._inductor.kernel.range_dispatch.trace import first_line
from torch._inductor.runtime.benchmarking import benchmarker
from torch.utils import _pytree as pytree


log = logging.getLogger(__name__)

Runner = Callable[[], Any]

# What is timed by the CPU's clock is called this often at least, whatever the budget.
_FEWEST_CALLS = 3
# With fewer calls in a CUDA graph, where it begins and ends counts.
_FEW_CALLS = 20
# No call is launched for longer than that.
_LONGEST_LAUNCH_MS = 2.0
# Cycles of the GPU in which a CUDA graph is launched: about 100 us.
_LAUNCH_CYCLES = 200_000
# Of one kernel with one configuration: milliseconds that a replay may take, and how often it is
# replayed.
_KERNEL_BUDGET_MS = 0.5
_KERNEL_REPLAYS = 5
# Cycles of the GPU in a second, to keep it busy while launches are queued; more is harmless.
_CYCLES_PER_SECOND = 2e9


class OverTimeLimit(RuntimeError):
    """One call took longer than ``config.time_limit_s``."""


class NotCaptured(RuntimeError):
    """The calls can't be captured in a CUDA graph; events can time them."""


@dataclass(frozen=True)
class Timer:
    """Returns the milliseconds of one call.

    Attributes:
        method: How; times by different methods are some microseconds apart for the same kernel.
        time: Takes one timing.
    """

    method: str
    time: Callable[[], float]

    def __call__(self) -> float:
        return self.time()


def make_timer(
    run: Runner, device: torch.device, cudagraphs: bool = False, captured: bool = True
) -> Timer:
    """A timer of one call of ``run``.

    Args:
        run: What is timed. It has been called before: what is compiled at the first call is there.
        device: Where ``run`` does its work.
        cudagraphs: Time by Inductor's own CUDA-graph benchmarking, where the release has it.
        captured: On a CUDA device, by replaying a CUDA graph; otherwise by events.

    Raises:
        OverTimeLimit: One call takes too long.
        NotCaptured: ``captured`` is asked for and can't be.
        Exception: Whatever ``run`` raises.
    """
    with same_thread_count():
        once = _one_call(run, device)
    if once > config.time_limit_s:
        limit = f"{config.time_limit_s:g} s (config.time_limit_s)"
        raise OverTimeLimit(f"one call takes {once:.3g} s, the limit is {limit}")
    if device.type == "cuda":
        return (_graph_timer if captured else _event_timer)(run, device, cudagraphs)
    if device.type != "cpu":
        return Timer("inductor", lambda: benchmarker.benchmark(run, device=device))
    return _cpu_timer(run, once)


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done what it was given, and raise what went wrong there."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def free_memory(device: torch.device) -> None:
    """Give back what a failed candidate left in the allocator's cache."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def _one_call(run: Runner, device: torch.device) -> float:
    """Seconds of one call by the clock, the device's work included."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return max(time.perf_counter() - started, 1e-7)


@contextlib.contextmanager
def same_thread_count() -> Iterator[None]:
    """After it, PyTorch has as many threads as before, whatever a candidate has set."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _cpu_timer(run: Runner, once: float) -> Timer:
    """By the clock; with ``once`` seconds a call, as often as the budget allows."""
    calls = max(_FEWEST_CALLS, min(1000, int(config.tuning_budget_ms / 1e3 / once)))

    def timer() -> float:
        times = []
        with same_thread_count():
            for _ in range(calls):
                started = time.perf_counter()
                run()
                times.append(time.perf_counter() - started)
        return statistics.median(times) * 1e3

    return Timer("clock", timer)


def _graph_timer(run: Runner, device: torch.device, cudagraphs: bool) -> Timer:
    """By replaying a CUDA graph of several calls."""
    inductors = compat.graph_benchmark(benchmarker)
    with torch.cuda.device(device):
        try:
            if cudagraphs and inductors is not None:
                with _waiting_is_an_error():
                    run()
                inductors(run)
                return Timer("inductor's CUDA graph", lambda: inductors(run))
            graph, calls = _capture(run, torch.cuda.Stream(), config.tuning_budget_ms)
        except Exception as error:
            torch.cuda.synchronize()
            raise NotCaptured(first_line(error)) from error

    def timer() -> float:
        with torch.cuda.device(device):
            return _replayed(graph) / calls

    timer()
    return Timer("CUDA graph", timer)


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds that ``graph`` takes; the device waits until it has been launched."""
    torch.cuda._sleep(_LAUNCH_CYCLES)
    return _between_events(graph.replay)


def _between_events(run: Runner) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def replayed_milliseconds(run: Runner) -> float:
    """The least time of one call of ``run`` when a CUDA graph of several is replayed.

    The current stream is the one that is captured, so it is not the default one.

    Raises:
        Exception: ``run`` can't be captured, or whatever it raises.
    """
    graph, calls = _capture(run, torch.cuda.current_stream(), _KERNEL_BUDGET_MS)
    graph.replay()
    return min(_replayed(graph) for _ in range(_KERNEL_REPLAYS)) / calls


def call_milliseconds(run: Runner, device: torch.device) -> float:
    """The least time of one call of ``run`` by replay, or by events where it can't be captured.

    Raises:
        Exception: Whatever ``run`` raises.
    """
    try:
        with aside(device):
            return replayed_milliseconds(run)
    except Exception as reason:
        log.debug("not timed by replay: %s", first_line(reason))
    return make_timer(run, device, captured=False).time()


@contextlib.contextmanager
def benchmarks_replayed() -> Iterator[None]:
    """Inside, Inductor's benchmarker times what it can by replay, on a stream that can be captured.

    By events around a launch, what takes less time than its launch shows the time of that: on an
    H100 a matmul of 23 rows got a template with ReLU in it that takes 22 us, where cuBLAS and a
    kernel for ReLU take 9.
    """
    stock, own = benchmarker.benchmark, vars(benchmarker).get("benchmark")

    def benchmark(
        fn: Callable[..., Any],
        fn_args: tuple[Any, ...] | None = None,
        fn_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> float:
        args, kwargs = fn_args or (), fn_kwargs or {}
        if _is_cuda(device, (args, kwargs)) and _can_be_captured_here():
            try:
                return replayed_milliseconds(functools.partial(fn, *args, **kwargs))
            except Exception as reason:
                log.debug("not timed by replay: %s", first_line(reason))
        found: float = stock(fn, fn_args, fn_kwargs, device=device, **options)
        return found

    setattr(benchmarker, "benchmark", benchmark)  # noqa: B010  the type has a method there
    try:
        yield
    finally:
        if own is None:
            delattr(benchmarker, "benchmark")
        else:
            setattr(benchmarker, "benchmark", own)  # noqa: B010


def _is_cuda(device: torch.device | str | None, given: Any) -> bool:
    """Whether what is called works on ``device`` or, where that is not said, on what is given."""
    if device is not None:
        return torch.device(device).type == "cuda"
    tensors = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor)]
    return any(tensor.is_cuda for tensor in tensors)


def _can_be_captured_here() -> bool:
    """The default stream can't be; with several devices, that of another one may be current."""
    return bool(torch.cuda.current_stream() != torch.cuda.default_stream())


@contextlib.contextmanager
def aside(device: torch.device | None = None) -> Iterator[None]:
    """Inside, another stream is the current one; it and this one follow on each other.

    What is captured must be launched on the stream that it is captured from, and releases before
    2.15 look for the stream before they are asked for a time.
    """
    before = torch.cuda.current_stream(device)
    side = torch.cuda.Stream(device)
    side.wait_stream(before)
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        before.wait_stream(side)


@contextlib.contextmanager
def templates_replayed() -> Iterator[None]:
    """``benchmarks_replayed`` for what is lowered and generated inside, if Inductor chooses there.

    As it does among templates of matmuls, and whether to fuse with one, under max-autotune.
    """
    settings = ("max_autotune", "max_autotune_gemm", "benchmark_fusion")
    chooses = any(getattr(inductor_config, name) for name in settings)
    if not chooses or not torch.cuda.is_initialized() or torch.cuda.is_current_stream_capturing():
        yield
        return
    with benchmarks_replayed(), aside():
        yield


def _capture(
    run: Runner, side: torch.cuda.Stream, budget_ms: float
) -> tuple[torch.cuda.CUDAGraph, int]:
    """A CUDA graph of enough calls that the launch of the graph itself does not count.

    A call that waits for the device can't be captured. Most such calls are found before a capture
    is begun: one that fails leaves PyTorch in a state that has to be mended.

    Args:
        run: What is captured.
        side: The stream that it is captured from.
        budget_ms: About what a replay may take; a single call may take longer.
    """
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        with _waiting_is_an_error():
            run()
        once = _between_events(run)
    torch.cuda.current_stream().wait_stream(side)
    calls = _calls_within(budget_ms, once)
    graph = _captured(run, side, calls)
    # What takes less time than its launch has shown the time of that.
    if calls < _FEW_CALLS and once < _LONGEST_LAUNCH_MS:
        enough = _calls_within(budget_ms, _replayed(graph) / calls)
        if enough > calls:
            graph, calls = _captured(run, side, enough), enough
    return graph, calls


def _calls_within(budget_ms: float, once: float) -> int:
    return max(1, min(100, int(budget_ms / max(once, 1e-3))))


def _captured(run: Runner, side: torch.cuda.Stream, calls: int) -> torch.cuda.CUDAGraph:
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    # Before 2.15 a capture that fails to end leaves its stream current: this one ends it.
    with torch.cuda.stream(side):
        try:
            with torch.cuda.graph(graph, pool=pool, stream=side):
                for _ in range(calls):
                    run()
        except Exception:
            _mend_after_capture(side, pool)
            raise
    return graph


@contextlib.contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Raise where an operator of PyTorch's waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode says that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _mend_after_capture(stream: torch.cuda.Stream, pool: Any) -> None:
    """What a capture does at its end, where it failed to end.

    Otherwise the allocator asks the dead graph at every allocation whether it is for its pool, and
    the random generator takes itself for one that is being captured and refuses to draw.
    """
    device = stream.device.index
    with contextlib.suppress(Exception):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    empty = torch.cuda.CUDAGraph()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the graph is empty
        with torch.cuda.graph(empty, stream=stream):
            pass


def _event_timer(run: Runner, device: torch.device, cudagraphs: bool) -> Timer:
    """By events around several calls that are queued while the device is kept waiting.

    Without the wait a call that is shorter than its launches would show the launches' time.
    """
    with torch.cuda.device(device):
        started = time.perf_counter()
        for _ in range(_FEWEST_CALLS):
            run()
        host = (time.perf_counter() - started) / _FEWEST_CALLS
        torch.cuda.synchronize()
        once = max(_between_events(run), 1e-3)
    # The launch queue holds about a thousand entries, and a call may be many.
    calls = max(_FEWEST_CALLS, min(20, int(config.tuning_budget_ms / once)))
    cycles = int(1.5 * host * calls * _CYCLES_PER_SECOND)

    def timer() -> float:
        def queued() -> None:
            for _ in range(calls):
                run()

        with torch.cuda.device(device):
            torch.cuda._sleep(cycles)
            return _between_events(queued) / calls

    return Timer("events", timer)
