"""Times for the benchmarks: of kernels by the profiler on a GPU, of calls by the clock.

What is compared takes turns in every round, so that a drift of the machine meets all alike.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


Call = Callable[[], Any]
# Name, start and duration of one activity of the device, in microseconds.
Activity = tuple[str, float, float]

_numbers = itertools.count()


@dataclass(frozen=True)
class Time:
    """Microseconds of a call.

    Attributes:
        microseconds: The least of the rounds' medians, or of kernels the ``middle`` of all calls.
        spread: How far the median round lies above it, relative to it.
        kernels: Kernels, copies and fills that a call starts on the device; None if not counted.
        parts: The name of each of these with its own microseconds, in the order of the call.
    """

    microseconds: float
    spread: float
    kernels: int | None = None
    parts: Sequence[tuple[str, float]] = ()


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``torch.compile`` of a copy of ``function``, which shares no compiled code with others."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    copy = types.FunctionType(
        code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return torch.compile(copy, **options)


def call_times(
    functions: Mapping[str, Call], calls: int, rounds: int, batches: int = 1
) -> dict[str, Time]:
    """Wall time of a call: the least of its ``call_rounds``."""
    found = call_rounds(functions, calls, rounds, batches)
    return {name: least(times) for name, times in found.items()}


def call_rounds(
    functions: Mapping[str, Call], calls: int, rounds: int, batches: int = 1
) -> dict[str, list[float]]:
    """Wall times of a call in microseconds, which on a GPU are the host's: nothing waits for the
    device in between. One for each round, in which all functions take turns.

    Args:
        functions: What is compared. Each has been called before.
        calls: Calls timed together; their mean is one time.
        rounds: How many there are.
        batches: Times taken of a function in a round, of which the median counts.
    """
    medians: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds):
        for name in _in_turn(list(functions), turn):
            function, times = functions[name], []
            for _ in range(batches):
                started = time.perf_counter()
                for _ in range(calls):
                    function()
                times.append((time.perf_counter() - started) / calls * 1e6)
            medians[name].append(statistics.median(times))
            synchronize()
    return medians


def budgeted_call_times(functions: Mapping[str, Call], seconds: float) -> dict[str, Time]:
    """``call_times`` with as many calls as fit into about ``seconds`` a function."""
    once = statistics.mean(_once(function) for function in functions.values())
    rounds = max(3, min(30, int(seconds / once)))
    batches = 3 if seconds > 3 * rounds * once else 1
    calls = max(1, min(200, int(seconds / once / rounds / batches)))
    return call_times(functions, calls, rounds, batches)


def kernel_times(
    functions: Mapping[str, Call], seconds: float = 0.1, most: int = 30
) -> dict[str, Time]:
    """Time that the device spends on a call: the sum of the durations of its kernels.

    Between two calls stands a marker, a kernel that does nothing else, so that one profiler
    session covers all functions.

    Args:
        functions: What is compared. Each has been called before. They run on the current stream.
        seconds: About what the calls of a function may take together, in the mean.
        most: Calls of each function at most.

    Raises:
        RuntimeError: The profiler lost activities, twice.
    """
    once = statistics.mean(_once(function) for function in functions.values())
    rounds = max(5, min(most, int(seconds / once)))
    marker = marker_name()
    order = [name for turn in range(rounds) for name in _in_turn(list(functions), turn)]
    for _ in range(2):
        for function in functions.values():  # the clock of an idle device is lower
            function()
        activities = _profiled(lambda: _with_markers([functions[name] for name in order]))
        parts = split_at(marker, activities)
        if len(parts) == len(order):
            return _by_name(order, parts)
    raise RuntimeError(f"the profiler saw {len(parts)} calls of {len(order)}")


@cache
def marker_name() -> str:
    """What the profiler calls the marker's kernel. The first call starts the profiler up."""
    for _ in range(3):  # the first session may come too early to see anything
        names = {name for name, _, _ in _profiled(lambda: torch.cuda._sleep(1))}
        if len(names) == 1:
            return names.pop()
    raise RuntimeError(f"the profiler saw {sorted(names)} in place of one marker")


def split_at(marker: str, activities: Iterable[Activity]) -> list[list[Activity]]:
    """The activities of each call; every call has a marker before it, and the last one after.

    >>> split_at("m", [("m", 0, 1), ("a", 2, 5), ("m", 8, 1), ("m", 9, 1)])
    [[('a', 2, 5)], []]
    """
    parts: list[list[Activity]] = []
    for activity in sorted(activities, key=lambda a: a[1]):
        if activity[0] == marker:
            parts.append([])
        elif parts:
            parts[-1].append(activity)
    return parts[:-1]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def relative_error(actual: Any, expected: Any) -> float:
    """Root mean square of the difference over that of what is expected, the worst of the outputs.

    Infinite where the results cannot be compared.
    """
    ours, theirs = _tensors(actual), _tensors(expected)
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    return max(_error(a, b) for a, b in zip(ours, theirs, strict=True))


def _error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    difference = torch.linalg.vector_norm((actual - expected).float()).item()
    error = difference / max(torch.linalg.vector_norm(expected.float()).item(), 1e-30)
    return error if error == error else float("inf")


def _tensors(value: Any) -> list[torch.Tensor]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _in_turn(names: Sequence[str], turn: int) -> list[str]:
    """In an order of its own: what ran before decides on the cache and on the clock."""
    order = list(names)
    random.Random(turn).shuffle(order)
    return order


def middle(times: Sequence[float]) -> float:
    """The mean of the middle half: as little moved by what is far off as a median, and finer than
    the profiler's clock, whose step of 32 ns is 1% of a kernel of 3 us.

    >>> middle([1, 1, 1, 2, 2, 90])
    1.5
    """
    cut = len(times) // 4
    return statistics.fmean(sorted(times)[cut : len(times) - cut])


def least(times: Sequence[float]) -> Time:
    least = min(times)
    return Time(least, statistics.median(times) / least - 1)


def _once(function: Call) -> float:
    """Seconds of one call, the device's work included."""
    synchronize()
    started = time.perf_counter()
    function()
    synchronize()
    return max(time.perf_counter() - started, 1e-6)


def _with_markers(functions: Iterable[Call]) -> None:
    for function in functions:
        torch.cuda._sleep(1)
        function()
    torch.cuda._sleep(1)


def _profiled(function: Call) -> list[Activity]:
    """What the device did in a call."""
    cuda = torch.profiler.ProfilerActivity.CUDA
    synchronize()
    with torch.profiler.profile(activities=[cuda]) as profile:
        function()
        synchronize()
    # Not profile.events(), which takes many times as long to describe them.
    return [
        (event.name(), event.start_ns() / 1e3, event.duration_ns() / 1e3)
        for event in profile.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA
    ]


def _by_name(order: Sequence[str], calls: Sequence[Sequence[Activity]]) -> dict[str, Time]:
    by_name: dict[str, list[Sequence[Activity]]] = {}
    for name, call in zip(order, calls, strict=True):
        by_name.setdefault(name, []).append(call)
    return {name: _of_calls(calls) for name, calls in by_name.items()}


def _of_calls(calls: Sequence[Sequence[Activity]]) -> Time:
    """The time of a call, given the activities of several."""
    times = [sum(duration for _, _, duration in call) for call in calls]
    count = statistics.mode(map(len, calls))
    places = zip(*(call for call in calls if len(call) == count), strict=True)
    return Time(
        middle(times),
        statistics.median(times) / max(min(times), 1e-9) - 1,
        count,
        [(place[0][0], middle([duration for _, _, duration in place])) for place in places],
    )
