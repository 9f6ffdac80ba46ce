#!/usr/bin/env python3
"""What a dispatch costs at run time: host time and kernels of a call, for 1 to 16 branches.

    python3 tools/dev.py python tools/benchmarks/dispatch_cost.py [--branches 3 8] [--json F]

Compared are, on the same tiny op in the same process:

    alone    the same implementation compiled alone with dynamic shapes
    static   a compile for that size alone
    ours     the flat dispatch node
    stock    the nested conditional of stock's, with the same branches
    python   a Python if over a separately compiled function for each range

Host time is the wall time of many calls: the least of the medians of many rounds, in which all take
turns. The ratios are to ``alone`` in the same round, of which the median counts; in brackets how
far the median round lies above the least. On the host of a GPU that is half as long again, by what
else runs there. Goals: 1.02 at 3 branches, 1.05 at 16, and at most half of stock's extra cost.

On a GPU ``static``, ``alone`` and ``ours`` are also compared inside of CUDA graphs
(mode="reduce-overhead"): the time from call to call with the replay, and the time of the replayed
kernels. The goal is 1.00 of ``static`` for the kernels; what a call takes more than that one's is
what PyTorch does to find the recording of a size, as ``alone`` shows.
"""

from __future__ import annotations

import argparse
import bisect
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from measuring import (
    budgeted_call_times,
    call_rounds,
    compiled,
    device_name,
    kernel_times,
    least,
    Time,
)
from reporting import markdown, Records

import torch
from torch import Tensor
from torch._inductor import config as inductor_config
from torch._inductor.kernel.custom_op import custom_op_autotuning, CustomOpConfig
from torch._inductor.kernel.range_dispatch import config, ir, tuner
from torch._inductor.kernel.range_dispatch.choosing import Measurement


WIDTH = 8
SIZE = 4
NAMES = ("alone", "static", "ours", "stock", "python")
CUDA_GRAPHS = {"mode": "reduce-overhead"}

Function = Callable[[Tensor], Any]


@torch.library.custom_op("range_dispatch_benchmark::tiny", mutates_args=())
def tiny(x: Tensor) -> Tensor:
    return x * 2 + 1


@tiny.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def implementation(x: Tensor, step: int = 0) -> Tensor:
    return x * 2 + 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--branches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rivals", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--calls", type=int, default=10, help="timed together, 5 times a round")
    parser.add_argument("--json", type=Path, help="a file for the figures, a line each")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds")
    args = parser.parse_args()
    end = time.monotonic() + args.time_limit
    records = Records(args.json)
    rows, graph_rows = [host_header(args.rivals)], [graph_header()]
    skipped = []
    print(f"{device_name(args.device)}, torch {torch.__version__}")
    with inductor_config.patch(fx_graph_cache=False), torch.no_grad():
        for branches in args.branches:
            if time.monotonic() > end:
                skipped.append(branches)
                continue
            torch._dynamo.reset()
            functions = contestants(branches, args.device, args.rivals)
            for where, size in places(branches):
                x = rows_of(size, args.device)
                if "static" in functions:
                    functions["static"] = compiled(implementation, dynamic=False)
                calls = {name: partial(function, x) for name, function in functions.items()}
                found = host_times(calls, args)
                shown = [found.get(name) for name in NAMES if name in args.rivals]
                rows.append([str(branches), where, *map(host_cell, shown)])
                ratios = {name: time.ratio for name, time in found.items()}
                figures = {**as_json(found), "ratio": ratios}
                records.add("host", branches=branches, where=where, **figures)
            if args.device == "cuda":
                torch._dynamo.reset()
                for row in under_cuda_graphs(branches, records):
                    graph_rows.append(row)
    print(f"\nHost time of a call in us, and its ratio to alone\n\n{markdown(rows)}")
    if len(graph_rows) > 1:
        print(f"\nUnder CUDA graphs: us, and the ratio to static\n\n{markdown(graph_rows)}")
    if skipped:
        print(f"\nskipped, out of time: {', '.join(map(str, skipped))} branches")
    return 0


def places(branches: int) -> list[tuple[str, int]]:
    """A size of the first branch, and one of the last."""
    return [("first", SIZE), ("last", SIZE + 2 * branches + 6)][: min(branches, 2)]


def rows_of(count: int, device: str) -> Tensor:
    x = torch.randn(count, WIDTH, device=device)
    torch._dynamo.mark_static(x, 1)
    return x


# Of what torch.library.custom_op returns, Dynamo guards the class as well, dispatched or not.
OVERLOAD = torch.ops.range_dispatch_benchmark.tiny.default


def call_op(x: Tensor) -> Tensor:
    return OVERLOAD(x)


def dispatched(branches: int, device: str, flat: bool, **options: Any) -> Function:
    """The op compiled with so many branches, whatever is faster; one branch is inlined."""
    ends = range_ends(branches)
    dispatch: dict[str, Any] = {}
    if ends:
        # The last branch is generated for the size that is measured, not for many rows in parallel.
        where = {"tensor_name": "x", "dim": 0, "range_upper_bound": places(branches)[-1][1]}
        dispatch = {"dispatch_on": where, "split_points": ends}
    configs = [CustomOpConfig(implementation, step=step) for step in range(branches)]

    def faked(bench: Any, contenders: Any, point: Any) -> list[Measurement]:
        winner = min(bisect.bisect_left(ends, point.size), len(ends))
        return [
            Measurement(c.candidate.label, float(i != winner)) for i, c in enumerate(contenders)
        ]

    function = compiled(call_op, dynamic=True, **options)
    supported = ir.supported if flat else lambda: False
    with (
        custom_op_autotuning(
            tiny,
            configs=configs,
            include_fallback=False,
            **dispatch,
        ),
        mock.patch.object(tuner, "measure", faked),
        mock.patch.object(ir, "supported", supported),
        mock.patch.object(config, "force_no_merge", True),
    ):
        function(rows_of(SIZE, device))
    return function


def range_ends(branches: int) -> list[int]:
    return [SIZE + 2 + 2 * i for i in range(branches - 1)]


def contestants(branches: int, device: str, wanted: Sequence[str]) -> dict[str, Function]:
    def python() -> Function:
        ends = range_ends(branches)
        separate = [compiled(implementation, dynamic=True) for _ in range(branches)]
        return lambda x: separate[bisect.bisect_left(ends, x.shape[0])](x)

    makers: dict[str, Callable[[], Function]] = {
        "alone": lambda: compiled(implementation, dynamic=True),
        "static": lambda: compiled(implementation, dynamic=False),
        "ours": lambda: dispatched(branches, device, flat=True),
        "stock": lambda: dispatched(branches, device, flat=False),
        "python": python,
    }
    same = {"stock", "python"} if branches == 1 else set()
    return {name: makers[name]() for name in NAMES if name in wanted and name not in same}


@dataclass(frozen=True)
class HostTime(Time):
    """``ratio``: to ``alone``, the median of those in each round; None without it."""

    ratio: float | None = None


def host_times(
    calls: Mapping[str, Callable[[], Any]], args: argparse.Namespace
) -> dict[str, HostTime]:
    for call in calls.values():
        for _ in range(50):
            call()
    rounds = call_rounds(calls, args.calls, args.rounds, batches=5)
    kernels = kernel_times(calls) if args.device == "cuda" else {}
    found = {}
    for name, times in rounds.items():
        pairs = zip(times, rounds.get("alone", ()), strict=False)
        ratios = [time / alone for time, alone in pairs]
        time, counted = least(times), kernels.get(name)
        found[name] = HostTime(
            time.microseconds,
            time.spread,
            counted.kernels if counted is not None else None,
            ratio=statistics.median(ratios) if ratios else None,
        )
    return found


def under_cuda_graphs(branches: int, records: Records) -> list[list[str]]:
    """Each size is recorded once, and replays its own branch."""
    ours = dispatched(branches, "cuda", flat=True, **CUDA_GRAPHS)
    alone = compiled(implementation, dynamic=True, **CUDA_GRAPHS)
    rows = []
    for where, size in places(branches):
        x = rows_of(size, "cuda")
        static = compiled(implementation, dynamic=False, **CUDA_GRAPHS)
        calls = {"static": partial(static, x), "alone": partial(alone, x), "ours": partial(ours, x)}
        for _ in range(10):  # warm up, record, replay
            for call in calls.values():
                call()
        whole, kernels = budgeted_call_times(calls, 0.3), kernel_times(calls)
        cells = []
        for found in (whole, kernels):
            static_us = found["static"].microseconds
            cells.append(f"{static_us:.2f}")
            for name in ("alone", "ours"):
                time = found[name]
                ratio = time.microseconds / static_us
                cells.append(f"{time.microseconds:.2f}, {ratio:.3f} ({time.spread:.3f})")
        counts = f"{kernels['static'].kernels}, {kernels['ours'].kernels}"
        rows.append([str(branches), where, *cells, counts])
        records.add("graphs", branches=branches, where=where, **as_json(whole))
        records.add("graph kernels", branches=branches, where=where, **as_json(kernels))
    return rows


def as_json(found: Mapping[str, Time]) -> dict[str, Any]:
    return {
        "us": {name: round(time.microseconds, 3) for name, time in found.items()},
        "spread": {name: round(time.spread, 4) for name, time in found.items()},
        "kernels": {name: time.kernels for name, time in found.items()},
    }


def host_header(names: Sequence[str]) -> list[str]:
    return ["branches", "branch taken", *(name for name in NAMES if name in names)]


def host_cell(time: HostTime | None) -> str:
    if time is None:
        return "-"
    kernels = f", {time.kernels} kernels" if time.kernels is not None else ""
    if time.ratio is None:
        return f"{time.microseconds:.2f}{kernels}"
    return f"{time.microseconds:.2f}, {time.ratio:.3f} ({time.spread:.3f}){kernels}"


def graph_header() -> list[str]:
    names = ("static", "alone", "ours")
    whole, kernels = [f"call, {name}" for name in names], [f"kernels, {name}" for name in names]
    return ["branches", "branch taken", *whole, *kernels, "number"]


if __name__ == "__main__":
    sys.exit(main())
