#!/usr/bin/env python3
"""How good the choices are at sizes that were not measured when choosing.

A sweep of sizes inside the ranges gives every candidate's time at each. Against it stand the
plans of several tunings that measured at the ranges' probes alone:

    regret             time of what the plan runs at a size over that of the best candidate there
                       (goal on an H100: at most 1.01 in the geometric mean)
    top-1 agreement    sizes at which the plan runs the best candidate, and those at which it runs
                       one that the noise does not tell from the best
    flips              sizes at which not all tunings run the same candidate, and what that costs:
                       the slowest of theirs over the fastest (goal: none over 2%)
    bucket transfer    regret of running a range's best at its end everywhere in the range
    best single        regret of the one candidate that is best throughout

    python3 tools/dev.py python tools/benchmarks/selection.py --quick
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

# The sweep is what all is compared with: it is measured for longer than a tuning is.
SWEEP_ROUNDS = 15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=workload.default_device())
    parser.add_argument("--op", choices=[*workload.OPS, "all"], default="all")
    parser.add_argument("--ranges", type=int, default=8)
    parser.add_argument("--implementations", type=int, default=6)
    parser.add_argument("--sizes", type=int, default=4, help="sizes of the sweep in a range")
    parser.add_argument("--tunings", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="4 ranges, 4 implementations, 2 sizes; small on a CPU"
    )
    parser.add_argument("--json", type=Path, help="a file for the figures and all timings")
    given = parser.parse_args()
    if given.quick:
        given.ranges, given.implementations, given.sizes = 4, 4, 2
    config.use_records = False
    inductor_config.fx_graph_cache = False
    name = torch.cuda.get_device_name() if given.device == "cuda" else given.device
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "ops": {}}
    print(f"{name}, torch {torch.__version__}")
    for op in workload.OPS if given.op == "all" else [given.op]:
        small = given.device == "cpu"
        figures = Selection(given, workload.OPS[op], small).run()
        found["ops"][op] = figures
        show(op, figures)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


@dataclass
class Selection:
    """The tunings of one op, and the sweep that they are compared with."""

    given: argparse.Namespace
    op: workload.Op
    small: bool

    def run(self) -> dict[str, Any]:
        top = self.op.top_on_cpu if self.small else self.op.top
        points = workload.split_points(self.given.ranges, top)
        sweep = sweep_sizes(points, top, self.given.sizes)
        ends = sorted({*points, top})
        times = self._times(points, top, sorted({*sweep, *ends}))
        plans = [self._plan(points, top, sweep) for _ in range(self.given.tunings)]
        return figures(plans, times, points, ends)

    def _tune(self, points: list[int], top: int, **options: Any) -> report.Plan:
        self.op.register(self.given.implementations, points, top, **options)
        operands = self.op.inputs(top // 2, self.given.device, self.small)
        torch._dynamo.reset()
        torch.compile(self.op.call, dynamic=True)(*operands)
        return report.plans()[-1]

    def _times(self, points: list[int], top: int, sizes: list[int]) -> dict[int, Times]:
        """Every candidate's time at every size, as the tuner measures it."""
        thorough = {"early_stop": math.inf, "tuning_rounds": SWEEP_ROUNDS}
        with config.patch(**thorough):  # type: ignore[attr-defined]
            plan = self._tune(points, top, probe_sizes=sizes)
        return {
            size: {m.label: m.milliseconds for m in row}
            for result in plan.results
            for size, row in result.probes
        }

    def _plan(self, points: list[int], top: int, sweep: list[int]) -> Plan:
        plan = self._tune(points, top)
        return {size: next(w for r, w in plan.chosen if r.contains(size)) for size in sweep}


def sweep_sizes(points: list[int], top: int, count: int) -> list[int]:
    """Up to ``count`` sizes inside each range, evenly apart, without the range's end."""
    sizes: set[int] = set()
    for start, end in zip([1, *(p + 1 for p in points)], [*points, top], strict=True):
        step = (end - start) / (count + 1)
        inside = {start + round(step * i) for i in range(1, count + 1)}
        sizes |= inside - {end}
    return sorted(sizes)


def figures(
    plans: Sequence[Plan], times: Mapping[int, Times], points: list[int], ends: Sequence[int]
) -> dict[str, Any]:
    """The figures, by their names in the module's docstring."""
    sweep = list(plans[0])
    best = {size: min(row.values()) for size, row in times.items()}
    regrets = [times[n][label] / best[n] for plan in plans for n, label in plan.items()]
    agreeing = [_fastest(times[n]) == label for plan in plans for n, label in plan.items()]
    tied = [regret <= 1 + config.noise for regret in regrets]
    flipped = {n: sorted({plan[n] for plan in plans}) for n in sweep}
    costs = {
        n: max(times[n][a] for a in labels) / min(times[n][a] for a in labels)
        for n, labels in flipped.items()
        if len(labels) > 1
    }
    moved = []
    for range in ranges_from_split_points(points):
        winner = _fastest(times[next(end for end in ends if range.contains(end))])
        moved += [times[n][winner] / best[n] for n in sweep if range.contains(n)]
    singles = {a: geomean([times[n][a] / best[n] for n in sweep]) for a in times[sweep[0]]}
    single = min(singles, key=singles.__getitem__)
    return {
        "ranges": len(points) + 1,
        "sizes": len(sweep),
        "tunings": len(plans),
        "regret_geomean": geomean(regrets),
        "regret_worst": max(regrets),
        "top1_agreement": statistics.mean(agreeing),
        "top1_agreement_within_noise": statistics.mean(tied),
        "flips": len(costs),
        "flips_over_2_percent": sum(cost > 1.02 for cost in costs.values()),
        "flip_worst": max(costs.values(), default=1.0),
        "bucket_transfer_geomean": geomean(moved),
        "bucket_transfer_worst": max(moved),
        "best_single": single,
        "best_single_geomean": singles[single],
        "milliseconds": {str(size): row for size, row in sorted(times.items())},
        "plans": [{str(size): label for size, label in plan.items()} for plan in plans],
    }


def _fastest(row: Times) -> str:
    return min(row, key=row.__getitem__)


def show(op: str, found: Mapping[str, Any]) -> None:
    def line(what: str, text: str) -> None:
        print(f"  {what:16} {text}")

    print(f"{op}: {found['sizes']} sizes in {found['ranges']} ranges, {found['tunings']} tunings")
    line("regret", f"geomean {found['regret_geomean']:.3f}, worst {found['regret_worst']:.3f}")
    line(
        "top-1 agreement",
        f"{100 * found['top1_agreement']:.0f}%, up to the noise "
        f"{100 * found['top1_agreement_within_noise']:.0f}%",
    )
    line(
        "flips",
        f"{found['flips']} of {found['sizes']} sizes, {found['flips_over_2_percent']} cost more "
        f"than 2%, worst {found['flip_worst']:.3f}",
    )
    line(
        "bucket transfer",
        f"geomean {found['bucket_transfer_geomean']:.3f}, "
        f"worst {found['bucket_transfer_worst']:.3f}",
    )
    line("best single", f"geomean {found['best_single_geomean']:.3f} ({found['best_single']})")


def geomean(values: Sequence[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


if __name__ == "__main__":
    sys.exit(main())
