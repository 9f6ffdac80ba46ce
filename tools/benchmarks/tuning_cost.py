#!/usr/bin/env python3
"""What tuning costs, as ratios within one run; each figure comes from a process of its own.

    first compile / plain     a cold tuned compile against a plain compile of each implementation
                              once (goal: at most 1.5)
    stock / plain             the same registration under stock PyTorch
    warm / plain of one       a second process, records and kernels there, against a second process
                              that compiles one implementation (goal: at most 1.1, no benchmark)

and how the first compile grows with ranges and implementations. A process first compiles a
function that has nothing to do with it, so that starting Inductor does not count.

    python3 tools/dev.py python tools/benchmarks/tuning_cost.py --quick
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


HERE = Path(__file__).resolve().parent
HIDDEN = 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="cpu or cuda; a GPU by default if there is one")
    parser.add_argument("--ranges", type=int, default=8)
    parser.add_argument("--implementations", type=int, default=6)
    parser.add_argument("--top", type=int, default=4096, help="size of the last range's probe")
    parser.add_argument(
        "--repeat", type=int, default=3, help="processes a figure; the median counts"
    )
    parser.add_argument("--quick", action="store_true", help="one process a figure, no growth")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(child(**json.loads(arguments.child))))
        return 0
    run = Run(arguments.device, arguments.top, 1 if arguments.quick else arguments.repeat)
    ratios(run, arguments.ranges, arguments.implementations)
    if not arguments.quick:
        growth(run)
    return 0


class Run:
    """Starts the processes; a figure is the median over several."""

    def __init__(self, device: str | None, top: int, repeat: int) -> None:
        self.device, self.top, self.repeat = device, top, repeat

    def seconds(self, what: str, ranges: int, count: int, warm: bool = False) -> tuple[float, Any]:
        """Seconds of a compile, and what else the last process said."""
        taken, said = [], {}
        for _ in range(self.repeat):
            with tempfile.TemporaryDirectory() as folder:
                for _ in range(2 if warm else 1):
                    said = self._process(folder, what, ranges, count)
                taken.append(said["seconds"])
        return statistics.median(taken), said

    def _process(self, folder: str, what: str, ranges: int, count: int) -> Any:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
        environment.pop("TORCH_RANGE_DISPATCH_RECORDS", None)
        if what == "stock":
            environment["TORCH_RANGE_DISPATCH"] = "0"
            environment.pop("PYTHONPATH", None)
        given = {"what": what, "ranges": ranges, "count": count, "top": self.top}
        done = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps({**given, "device": self.device})],
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{what}, {ranges} ranges, {count} implementations:\n{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])


def ratios(run: Run, ranges: int, count: int) -> None:
    plain, said = run.seconds("plain", ranges, count)
    print(f"{said['device']}, torch {said['torch']}: {ranges} ranges, {count} implementations")
    print(f"  plain compile of each implementation once      {plain:7.2f} s   1.00")
    cold, _ = run.seconds("tuned", ranges, count)
    print(f"  first compile, tuned                           {cold:7.2f} s   {cold / plain:.2f}")
    try:
        stock, _ = run.seconds("stock", ranges, count)
        print(
            f"  first compile, stock                           {stock:7.2f} s   {stock / plain:.2f}"
        )
    except SystemExit as failed:
        print(f"  first compile, stock                           fails: {_reason(str(failed))}")
    one, _ = run.seconds("plain", ranges, 1, warm=True)
    print(f"  plain compile of one, kernels cached           {one:7.2f} s   1.00")
    warm, said = run.seconds("tuned", ranges, count, warm=True)
    benchmarks = said["benchmarks"]
    print(
        f"  tuned, kernels and records cached              {warm:7.2f} s   {warm / one:.2f}, "
        f"{benchmarks} benchmarks"
    )


def _reason(message: str) -> str:
    """The line of a traceback that says what happened."""
    said = [line for line in message.splitlines() if "Error" in line and not line.startswith(" ")]
    return said[-1][:200] if said else message[-200:]


def growth(run: Run) -> None:
    base = run.seconds("tuned", 1, 4)[0]
    print("  first compile by ranges, 4 implementations, against 1 range")
    for ranges in (1, 2, 4, 8, 16):
        taken = base if ranges == 1 else run.seconds("tuned", ranges, 4)[0]
        print(f"    {ranges:3d}  {taken:7.2f} s   {taken / base:.2f}")
    base = run.seconds("tuned", 8, 1)[0]
    print("  first compile by implementations, 8 ranges, against 1 implementation")
    for count in range(1, 9):
        taken = base if count == 1 else run.seconds("tuned", 8, count)[0]
        print(f"    {count:3d}  {taken:7.2f} s   {taken / base:.2f}")


# ---------------------------------------------------------------------------------------------
# One process.


def child(what: str, ranges: int, count: int, top: int, device: str | None) -> dict[str, Any]:
    import torch
    from torch._inductor import config as inductor_config

    sys.path.insert(0, str(HERE))
    import workload

    place = device or workload.default_device()
    stock = not hasattr(torch._inductor.kernel.custom_op, "unregister_custom_op_autotuning")
    if stock != (what == "stock"):
        where = torch._inductor.kernel.custom_op.__file__
        raise SystemExit(f"the patch is {'not ' if stock else ''}in effect: {where}")
    inductor_config.fx_graph_cache = False
    torch.compile(lambda x: x.cos().sum(), dynamic=True)(torch.randn(16, 3, device=place))
    operands = workload.inputs(top // 2, HIDDEN, place)
    benchmarks = [0]
    if what == "plain":
        seconds = sum(_timed(_plain(config), operands) for config in workload.variants(count))
    else:
        if not stock:
            benchmarks = _counted()
        workload.register(count, workload.split_points(ranges, top), top)
        seconds = _timed(lambda x, w: workload.rms_norm(x, w), operands)
    name = torch.cuda.get_device_name() if place == "cuda" else place
    return {
        "seconds": seconds,
        "benchmarks": benchmarks[0],
        "device": name,
        "torch": torch.__version__,
    }


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
