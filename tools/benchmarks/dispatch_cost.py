#!/usr/bin/env python3
"""What a dispatch costs at run time: host time a call, for 1 to 16 branches on a tiny op.

    python3 tools/dev.py python tools/benchmarks/dispatch_cost.py [--branches 3 8]

Compared are, on the same tiny op in the same process:

    ours     the flat dispatch node
    alone    the same implementation compiled alone with dynamic shapes
    stock    the nested conditional of stock's, with the same branches
    python   a Python if over a separately compiled function for each range
    static   a compile for that size alone

Host time is the wall time of many calls, the best of several rounds that take turns. The ratios are
to ``alone``. Goals: 1.02 at 3 branches, 1.05 at 16, and at most half of stock's extra cost.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import statistics
import time
import types
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch._inductor import config as inductor_config
from torch._inductor.kernel.custom_op import custom_op_autotuning, CustomOpConfig
from torch._inductor.kernel.range_dispatch import config, ir, tuner
from torch._inductor.kernel.range_dispatch.choosing import Measurement


WIDTH = 8


@torch.library.custom_op("range_dispatch_benchmark::tiny", mutates_args=())
def tiny(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1


@tiny.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def implementation(x: torch.Tensor, step: int = 0) -> torch.Tensor:
    return x * 2 + 1


def rows(count: int, device: str) -> torch.Tensor:
    x = torch.randn(count, WIDTH, device=device)
    torch._dynamo.mark_static(x, 1)
    return x


def compiled(function: Callable[..., Any], dynamic: bool) -> Callable[[torch.Tensor], Any]:
    """``function`` compiled by itself: the compiler's cache is kept by code object."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    copy = types.FunctionType(
        code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
    )
    return torch.compile(copy, dynamic=dynamic)


_numbers = itertools.count()


def call_op(x: torch.Tensor) -> torch.Tensor:
    return tiny(x)


def dispatched(ends: Sequence[int], device: str, flat: bool) -> Callable[[torch.Tensor], Any]:
    """A compiled function with a branch for each end and one more, whatever is faster."""
    configs = [CustomOpConfig(implementation, step=s) for s in range(len(ends) + 1)]

    def faked(bench: Any, contenders: Any, point: Any) -> list[Measurement]:
        winner = min(bisect.bisect_left(ends, point.size), len(ends))
        return [
            Measurement(c.candidate.label, float(i != winner)) for i, c in enumerate(contenders)
        ]

    function = compiled(call_op, dynamic=True)
    supported = ir.supported if flat else lambda: False
    with (
        custom_op_autotuning(
            tiny,
            configs=configs,
            dispatch_on={"tensor_name": "x", "dim": 0},
            split_points=list(ends),
            include_fallback=False,
        ),
        mock.patch.object(tuner, "measure", faked),
        mock.patch.object(ir, "supported", supported),
        mock.patch.object(config, "force_no_merge", True),
    ):
        function(rows(3, device))
    return function


def contestants(branches: int, size: int, device: str) -> dict[str, Callable[[torch.Tensor], Any]]:
    ends = [size + 2 + 2 * i for i in range(branches - 1)]
    made: dict[str, Callable[[torch.Tensor], Any]] = {}
    made["alone"] = compiled(implementation, dynamic=True)
    made["static"] = compiled(implementation, dynamic=False)
    if branches > 1:
        made["ours"] = dispatched(ends, device, flat=True)
        made["stock"] = dispatched(ends, device, flat=False)
        separate = [compiled(implementation, dynamic=True) for _ in range(branches)]
        made["python"] = lambda x: separate[bisect.bisect_left(ends, x.shape[0])](x)
    return made


def microseconds(
    functions: dict[str, Callable[[torch.Tensor], Any]], x: torch.Tensor, rounds: int, calls: int
) -> dict[str, float]:
    """The best round of each function; the rounds take turns, so that a drift meets all."""
    best = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        for _ in range(50):
            function(x)
    for _ in range(rounds):
        for name, function in functions.items():
            times = []
            for _ in range(5):
                started = time.perf_counter()
                for _ in range(calls):
                    function(x)
                times.append((time.perf_counter() - started) / calls)
            best[name] = min(best[name], statistics.median(times) * 1e6)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--branches", type=int, nargs="+", default=[2, 3, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=400)
    args = parser.parse_args()
    size = 4
    names = ["alone", "static", "ours", "stock", "python"]
    print(f"torch {torch.__version__}, {args.device}, host time a call in us (ratio to alone)")
    print("branches  where  " + "  ".join(f"{name:>14}" for name in names))
    with inductor_config.patch(fx_graph_cache=False), torch.no_grad():
        for branches in args.branches:
            torch._dynamo.reset()
            functions = contestants(branches, size, args.device)
            for where, count in (("first", size), ("last", size + 2 * branches + 6)):
                x = rows(count, args.device)
                times = microseconds(functions, x, args.rounds, args.calls)
                shown = [
                    f"{times[n]:6.2f} ({times[n] / times['alone']:5.3f})" if n in times else "-"
                    for n in names
                ]
                print(
                    f"{branches:8}  {where:5}  " + "  ".join(f"{s:>14}" for s in shown), flush=True
                )


if __name__ == "__main__":
    main()
