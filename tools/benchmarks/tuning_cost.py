#!/usr/bin/env python3
"""What tuning costs, as ratios within one run; each figure comes from a process of its own.

    first compile / plain     a cold tuned compile against a plain compile of each implementation
                              once, with nothing cached (goal: at most 1.5)
    stock / plain             the same registration under stock PyTorch
    warm / plain of one       a second process with the first one's caches, against a second process
                              that compiles one implementation (goal: at most 1.1, no benchmark):
                              of the same graph, which both find in FxGraphCache; and of another
                              graph, for which there are records and compiled kernels: the median
                              of 5 compiles, each of which reads the records anew. There, a
                              dispatch compiles as many kernels as it has branches, so that is also
                              compared with a plain compile of each winner.

and how the first compile grows with ranges and implementations. A process first compiles a
function that has nothing to do with it, without caches, so that starting Inductor does not count.

    python3 tools/dev.py python tools/benchmarks/tuning_cost.py --only ratios
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


HERE = Path(__file__).resolve().parent
OP = "rms_norm"
RANGES = (1, 2, 4, 8, 16)
IMPLEMENTATIONS = tuple(range(1, 9))
# Of another graph, in one process: a single one takes up to 1.5 times as long as the next.
COMPILES = 5

# What a process says.
Said = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="cpu or cuda; a GPU by default if there is one")
    parser.add_argument("--ranges", type=int, default=8)
    parser.add_argument("--implementations", type=int, default=6)
    parser.add_argument("--top", type=int, default=4096, help="size of the last range's probe")
    parser.add_argument("--repeat", type=int, default=1, help="runs; the median counts")
    parser.add_argument("--only", choices=("ratios", "growth"), help="one of the two parts")
    parser.add_argument("--stock-limit", type=float, default=120, help="seconds that stock gets")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(child(**json.loads(given.child))))
        return 0
    figures: dict[str, Any] = {}
    if given.only != "growth":
        runs = [ratios(given) for _ in range(given.repeat)]
        figures |= {key: _median([run[key] for run in runs]) for key in runs[0]}
        show_ratios(figures, given)
    if given.only != "ratios":
        figures["growth"] = growth(given)
        show_growth(figures["growth"])
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _median(values: Sequence[Any]) -> Any:
    numbers = all(isinstance(value, float) for value in values)
    return statistics.median(values) if numbers else values[-1]


def process(
    given: argparse.Namespace,
    folder: str,
    what: str,
    ranges: int = 0,
    count: int = 0,
    limit: float | None = None,
    **more: Any,
) -> Said:
    """Run ``child`` in a new process whose caches are in ``folder``."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
    environment.pop("TORCH_RANGE_DISPATCH_RECORDS", None)
    if what == "stock":
        environment["TORCH_RANGE_DISPATCH"] = "0"
        environment.pop("PYTHONPATH", None)
    options = {"what": what, "ranges": ranges, "count": count, "top": given.top, **more}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps({**options, "device": given.device})],
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit,
    )
    if done.returncode:
        raise SystemExit(f"{options}:\n{done.stderr}")
    said: Said = json.loads(done.stdout.splitlines()[-1])
    return said


def ratios(given: argparse.Namespace) -> dict[str, Any]:
    ranges, count = given.ranges, given.implementations
    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as tuned:
        each = process(given, plain, "plain", count=count)
        cold = process(given, tuned, "tuned", ranges, count)
        warm = process(given, tuned, "tuned", ranges, count, warm=True)
        winners = warm["winners"]
        one = process(given, plain, "plain", count=1, warm=True)
        like = process(given, plain, "plain", count=count, warm=True, only=winners)
    with tempfile.TemporaryDirectory() as folder:
        try:
            stock = process(given, folder, "stock", ranges, count, given.stock_limit)
        except subprocess.TimeoutExpired:
            stock = {"seconds": given.stock_limit, "error": "ended, it took longer"}
    return {
        "device": each["device"],
        "torch": each["torch"],
        "ranges": ranges,
        "implementations": count,
        "branches": warm["branches"],
        "winners": winners,
        "plain_s": each["seconds"],
        "tuned_s": cold["seconds"],
        "tuned_ratio": cold["seconds"] / each["seconds"],
        "probes_measured": cold["benchmarks"],
        "stock_s": stock["seconds"],
        "stock_ratio": stock["seconds"] / each["seconds"],
        "stock_error": stock.get("error"),
        "warm_same_graph_s": warm["hit_seconds"],
        "plain_one_same_graph_s": one["hit_seconds"],
        "warm_same_graph_ratio": warm["hit_seconds"] / one["hit_seconds"],
        "warm_other_graph_s": warm["seconds"],
        "plain_one_other_graph_s": one["seconds"],
        "warm_other_graph_ratio": warm["seconds"] / one["seconds"],
        "plain_winners_other_graph_s": like["seconds"],
        "warm_other_graph_ratio_to_winners": warm["seconds"] / like["seconds"],
        "warm_benchmarks": warm["benchmarks"],
    }


def show_ratios(found: dict[str, Any], given: argparse.Namespace) -> None:
    def line(what: str, seconds: float, ratio: float, more: str = "", least: str = "") -> None:
        print(f"  {what:52}{least:>2}{seconds:7.2f} s {least:>2}{ratio:5.2f}{more}")

    error = found["stock_error"]
    branches = f"{found['branches']} branches, {len(found['winners'])} of the implementations"
    print(
        f"{found['device']}, torch {found['torch']}: {found['ranges']} ranges, "
        f"{found['implementations']} implementations; {branches} won"
    )
    print(" first compile, nothing cached")
    line("plain, each implementation once", found["plain_s"], 1.0)
    line("tuned", found["tuned_s"], found["tuned_ratio"], f"  {found['probes_measured']} probes")
    why = f"  until: {error}" if error else ""
    line("stock", found["stock_s"], found["stock_ratio"], why, ">=" if error else "")
    print(" new process, the same graph is cached")
    line("plain, one implementation", found["plain_one_same_graph_s"], 1.0)
    line("tuned", found["warm_same_graph_s"], found["warm_same_graph_ratio"])
    print(f" new process, another graph: {found['warm_benchmarks']} benchmarks, kernels cached")
    line("plain, one implementation", found["plain_one_other_graph_s"], 1.0)
    line("tuned", found["warm_other_graph_s"], found["warm_other_graph_ratio"])
    line("plain, each winner", found["plain_winners_other_graph_s"], 1.0)
    line("tuned", found["warm_other_graph_s"], found["warm_other_graph_ratio_to_winners"])


def growth(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a first compile by ranges and by implementations, one process for each of the two.

    Every compile there has a cache folder of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        by_ranges = [[ranges, 4] for ranges in RANGES]
        by_count = [[8, count] for count in IMPLEMENTATIONS]
        return {
            "by_ranges_4_implementations_s": dict(
                zip(RANGES, process(given, folder, "growth", sizes=by_ranges)["all"], strict=True)
            ),
            "by_implementations_8_ranges_s": dict(
                zip(
                    IMPLEMENTATIONS,
                    process(given, folder, "growth", sizes=by_count)["all"],
                    strict=True,
                )
            ),
        }


def show_growth(found: dict[str, dict[int, float]]) -> None:
    for what, figures in found.items():
        print(f" first compile, {what.removesuffix('_s').replace('_', ' ')}")
        base = next(iter(figures.values()))
        for number, seconds in figures.items():
            print(f"  {number:3d}  {seconds:7.2f} s   {seconds / base:.2f}")


# ---------------------------------------------------------------------------------------------
# One process.


def child(
    what: str,
    ranges: int,
    count: int,
    top: int,
    device: str | None,
    warm: bool = False,
    only: Sequence[int] | None = None,
    sizes: Sequence[tuple[int, int]] = (),
) -> Said:
    """One figure.

    Args:
        what: "plain", "tuned", "stock", or "growth" for a list of tuned compiles.
        ranges: Ranges of the registration.
        count: Its implementations.
        top: Size of the last range's probe.
        device: Where.
        warm: The caches have been filled by a cold run: also time the compile that finds all.
        only: Of the plain ones, those with these numbers.
        sizes: For "growth", ranges and implementations of each compile.
    """
    import torch
    from torch._inductor.utils import fresh_cache

    sys.path.insert(0, str(HERE))
    import workload

    place = device or workload.default_device()
    _check_in_effect(stock=what == "stock")
    # The number of blocks is a constant of an implementation, as where it is tuned. As a symbol,
    # all of them but the first would have the same kernels.
    torch._dynamo.config.specialize_int = True
    with _uncached():
        torch.compile(lambda x: x.cos().sum(), dynamic=True)(torch.randn(16, 3, device=place))
    said: Said = {
        "device": torch.cuda.get_device_name() if place == "cuda" else place,
        "torch": torch.__version__,
    }
    if what == "growth":
        said["all"] = []
        for of_ranges, of_count in sizes:
            with fresh_cache():
                timed = _Tuned(of_ranges, of_count, top, place)
                said["all"].append(timed.seconds())
        return said
    if what == "plain":
        chosen = [c for i, c in enumerate(workload.variants(count)) if only is None or i in only]
        functions = [_plain(config) for config in chosen]
        operands = workload.OPS[OP].inputs(top // 2, place, small=True)

        def seconds() -> float:
            return sum(_timed(function, operands) for function in functions)

        said |= _figures(seconds, warm, len(functions))
    elif what == "tuned":
        tuned = _Tuned(ranges, count, top, place)
        said |= _figures(tuned.seconds, warm, 1)
        said |= tuned.outcome()
    else:
        workload.OPS[OP].register(count, workload.split_points(ranges, top), top)
        operands = workload.OPS[OP].inputs(top // 2, place, small=True)
        started = time.perf_counter()
        try:
            said["seconds"] = _timed(lambda x, w: workload.rms_norm(x, w), operands)
        except Exception as error:  # what it took until then is a lower bound
            said["seconds"] = time.perf_counter() - started
            said["error"] = f"{type(error).__name__}: {_first_reason(str(error))}"
    return said


def _first_reason(message: str) -> str:
    return next((line for line in message.splitlines() if "Error" in line), message)[:120]


def _figures(seconds: Callable[[], float], warm: bool, graphs: int) -> Said:
    """The seconds of a compile; in a warm process first of one that the caches have all of."""
    from torch._dynamo.utils import counters

    if not warm:
        return {"seconds": seconds()}
    counters.clear()
    hit = seconds()
    hits = counters["inductor"]["fxgraph_cache_hit"]
    if hits != graphs:
        raise SystemExit(f"FxGraphCache found {hits} of {graphs} graphs")
    with _uncached():
        return {
            "hit_seconds": hit,
            "seconds": statistics.median(seconds() for _ in range(COMPILES)),
        }


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """No graph is found in a cache, as if each were another one."""
    import torch._functorch.config as functorch_config
    from torch._inductor import config as inductor_config

    with (
        inductor_config.patch(fx_graph_cache=False),
        functorch_config.patch(enable_autograd_cache=False),
    ):
        yield


class _Tuned:
    """A tuned compile, and the probes that it measured."""

    def __init__(self, ranges: int, count: int, top: int, place: str) -> None:
        import workload

        from torch._inductor.kernel.range_dispatch.candidates import candidates_from_configs

        workload.OPS[OP].register(count, workload.split_points(ranges, top), top)
        named = candidates_from_configs(workload.variants(count), include_op=False)
        self._labels = [candidate.label for candidate in named]
        self._operands = workload.OPS[OP].inputs(top // 2, place, small=True)
        self._benchmarks = _counted()

    def seconds(self) -> float:
        import workload

        from torch._inductor.kernel.range_dispatch import records

        records.forget()
        return _timed(lambda x, w: workload.rms_norm(x, w), self._operands)

    def outcome(self) -> Said:
        from torch._inductor.kernel.range_dispatch import report

        plan = report.plans()[-1]
        winners = {label for _, label in plan.chosen}
        return {
            "benchmarks": self._benchmarks[0],
            "branches": len(plan.chosen),
            "winners": [i for i, label in enumerate(self._labels) if label in winners],
        }


def _check_in_effect(stock: bool) -> None:
    import torch

    module = torch._inductor.kernel.custom_op
    found = not hasattr(module, "unregister_custom_op_autotuning")
    if found != stock:
        where = module.__file__
        raise SystemExit(f"the patch is {'not ' if found else ''}in effect: {where}")


def _plain(config: Any) -> Callable[..., Any]:
    return lambda x, weight: config.decomposition(x, weight, **config.params)


def _timed(function: Callable[..., Any], operands: Any) -> float:
    import torch

    torch._dynamo.reset()
    started = time.perf_counter()
    torch.compile(function, dynamic=True)(*operands)
    if operands[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _counted() -> list[int]:
    """Counts the probes that are measured."""
    from torch._inductor.kernel.range_dispatch import tuner

    calls, real = [0], tuner.measure

    def measure(*args: Any) -> Any:
        calls[0] += 1
        return real(*args)

    tuner.measure = measure  # type: ignore[assignment]
    return calls


if __name__ == "__main__":
    sys.exit(main())
