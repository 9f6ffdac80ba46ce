#!/usr/bin/env python3
"""How good the choices are at sizes that were not measured when choosing.

A sweep of sizes inside the ranges gives every candidate's time at each. Against it stand the
plans of several tunings that measured at the ranges' probes alone:

    regret             time of what the plan runs at a size over that of the best candidate there
    top-1 agreement    sizes at which the plan runs the best candidate
    flips              ranges whose winner is not the same in all tunings, and what that costs
    bucket transfer    regret of running a range's best at its end everywhere in the range

    python3 tools/dev.py python tools/benchmarks/selection.py --quick
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config as inductor_config
from torch._inductor.kernel.range_dispatch import config, report
from torch._inductor.kernel.range_dispatch.ranges import ranges_from_split_points


sys.path.insert(0, str(Path(__file__).resolve().parent))
import workload


# Milliseconds of every candidate at a size.
Times = dict[str, float]
# What runs at each size of the sweep.
Plan = dict[int, str]
Operands = tuple[torch.Tensor, torch.Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=workload.default_device())
    parser.add_argument("--ranges", type=int, default=8)
    parser.add_argument("--implementations", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--top", type=int, default=16384, help="size of the last range's probe")
    parser.add_argument("--sizes", type=int, default=4, help="sizes of the sweep in a range")
    parser.add_argument("--tunings", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few and small")
    given = parser.parse_args()
    if given.quick:
        given.ranges, given.implementations, given.hidden, given.top = 3, 2, 256, 256
        given.sizes, given.tunings = 2, 2
    points = workload.split_points(given.ranges, given.top)
    sweep = sweep_sizes(points, given.top, given.sizes)
    config.use_records = False
    inductor_config.fx_graph_cache = False
    operands = workload.inputs(given.top // 2, given.hidden, given.device)

    ends = sorted({*points, given.top})
    times = measured(given, points, operands, sorted({*sweep, *ends}))
    plans = [chosen(given, points, operands, sweep) for _ in range(given.tunings)]
    name = torch.cuda.get_device_name() if given.device == "cuda" else given.device
    print(f"{name}, torch {torch.__version__}: {len(sweep)} sizes in {len(points) + 1} ranges")
    show(plans, times, points, ends)
    return 0


def sweep_sizes(points: list[int], top: int, count: int) -> list[int]:
    """Up to ``count`` sizes inside each range, evenly apart, without the range's end."""
    sizes: set[int] = set()
    for start, end in zip([1, *(p + 1 for p in points)], [*points, top], strict=True):
        step = (end - start) / (count + 1)
        inside = {start + round(step * i) for i in range(1, count + 1)}
        sizes |= inside - {end}
    return sorted(sizes)


def tune(
    given: argparse.Namespace, points: list[int], operands: Operands, **options: Any
) -> report.Plan:
    workload.register(given.implementations, points, given.top, **options)
    torch._dynamo.reset()
    torch.compile(lambda x, w: workload.rms_norm(x, w), dynamic=True)(*operands)
    return report.plans()[-1]


def measured(
    given: argparse.Namespace, points: list[int], operands: Operands, sizes: list[int]
) -> dict[int, Times]:
    """Every candidate's time at every size, as the tuner measures it."""
    with config.patch(early_stop=math.inf):  # type: ignore[attr-defined]
        plan = tune(given, points, operands, probe_sizes=sizes)
    return {
        size: {m.label: m.milliseconds for m in row}
        for result in plan.results
        for size, row in result.probes
    }


def chosen(
    given: argparse.Namespace, points: list[int], operands: Operands, sweep: list[int]
) -> Plan:
    plan = tune(given, points, operands)
    return {size: next(w for r, w in plan.chosen if r.contains(size)) for size in sweep}


def show(plans: list[Plan], times: dict[int, Times], points: list[int], ends: list[int]) -> None:
    best = {size: min(row.values()) for size, row in times.items()}
    regrets = [times[n][label] / best[n] for plan in plans for n, label in plan.items()]
    agreeing = [
        label == min(times[n], key=times[n].__getitem__) for p in plans for n, label in p.items()
    ]
    print(f"  regret           geomean {geomean(regrets):.3f}, worst {max(regrets):.3f}")
    print(f"  top-1 agreement  {100 * statistics.mean(agreeing):.0f}%")
    flips = {n: {plan[n] for plan in plans} for n in plans[0]}
    costs = [
        max(times[n][a] for a in labels) / min(times[n][a] for a in labels)
        for n, labels in flips.items()
        if len(labels) > 1
    ]
    dear = sum(cost > 1.02 for cost in costs)
    print(
        f"  flips            {len(costs)} of {len(flips)} sizes over {len(plans)} tunings, "
        f"{dear} cost more than 2%, worst {max(costs, default=1.0):.3f}"
    )
    moved = []
    for range in ranges_from_split_points(points):
        end = next(end for end in ends if range.contains(end))
        winner = min(times[end], key=times[end].__getitem__)
        moved += [times[n][winner] / best[n] for n in plans[0] if range.contains(n)]
    print(f"  bucket transfer  geomean {geomean(moved):.3f}, worst {max(moved):.3f}")
    singles = {a: geomean([times[n][a] / best[n] for n in plans[0]]) for a in times[ends[0]]}
    single = min(singles, key=singles.__getitem__)
    print(f"  best single      geomean {singles[single]:.3f} ({single})")


def geomean(values: list[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


if __name__ == "__main__":
    sys.exit(main())
