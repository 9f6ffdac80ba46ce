#!/usr/bin/env python3
"""Is each branch as fast as code that is compiled for its sizes alone?

    python3 tools/dev.py python tools/benchmarks/range_codegen.py [--cases softmax attention]

One implementation is dispatched, whatever is faster, with a branch for each range. At sizes across
every range stand against a static compile of that implementation at the size

    ours      its branch
    dynamic   the implementation compiled once for all sizes

Times are those of the kernels on a GPU, and of calls on a CPU. Goals on an H100: a geometric mean
of at most 1.02 over the sizes, and 1.05 at worst. On a GPU the matmul is compiled with
max-autotune.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reporting import geomean, markdown, Records, say
from workers import at_the_same_time, Lost, Reply, serve, Worker


CASES = ("softmax", "softmax_columns", "rms_norm", "attention", "matmul")
# This one tunes on the GPU for longer than it compiles: it comes last, with all cores.
TUNES = "matmul"
RIVALS = ("ours", "dynamic", "static")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sizes", type=int, nargs="+", help="instead of three in every range")
    device = "cuda" if shutil.which("nvidia-smi") else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=device)
    parser.add_argument("--tiny", action="store_true", help="the smallest form, to see it work")
    parser.add_argument("--json", type=Path, help="a file for the figures, a line each")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="seconds")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(Session().handle)
        return 0
    started, records = time.monotonic(), Records(args.json)
    with tempfile.TemporaryDirectory(prefix="range-dispatch-", ignore_cleanup_errors=True) as name:
        run(args, Path(name), started + args.time_limit, records)
    show(args.cases, records, time.monotonic() - started)
    return 0


def run(args: argparse.Namespace, folder: Path, end: float, records: Records) -> None:
    many = (os.cpu_count() or 1) >= 8
    workers = {case: start_worker(folder, case, many) for case in args.cases}
    form = "tiny" if args.tiny else args.device

    def prepare(case: str) -> Reply:
        request = {"do": "prepare", "case": case, "device": args.device, "form": form}
        # A fifth of the time is kept for measuring.
        left = 0.8 * (end - time.monotonic()) if end < math.inf else 1e9
        return ask(workers[case], {**request, "sizes": args.sizes, "seconds": left}, end)

    try:
        first = [case for case in args.cases if case != TUNES]
        ready: dict[str, Reply] = {}
        with at_the_same_time(len(CASES) if many else 1) as pool:
            ready |= zip(first, pool.map(prepare, first), strict=True)
        if TUNES in args.cases:
            ready[TUNES] = prepare(TUNES)
        for case, reply in ready.items():
            for why in [reply["error"]] if "error" in reply else reply["skipped"]:
                records.add("skipped", case=case, why=why)
            if "error" in reply:
                say(f"{case}: {reply['error']}")
                continue
            say(f"{case}: compiled in {reply['seconds']:.1f} s")
            records.add("case", case=case, **{k: reply[k] for k in ("device", "torch", "branches")})
            for size in reply["sizes"]:
                measured = ask(workers[case], {"do": "measure", "size": size}, end)
                if "error" in measured:
                    records.add("skipped", case=case, why=f"{size}: {measured['error']}")
                else:
                    records.add("figure", case=case, size=size, **measured)
    finally:
        for worker in workers.values():
            worker.end()


def start_worker(folder: Path, case: str, many: bool) -> Worker:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    environment.pop("TORCH_RANGE_DISPATCH_RECORDS", None)
    if many and case != TUNES:
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return Worker([sys.executable, __file__, "--worker"], environment, folder / f"{case}.log")


def ask(worker: Worker, request: Reply, end: float) -> Reply:
    try:
        return worker.ask(request, end)
    except Lost as lost:
        return {"error": str(lost)}


def show(cases: Sequence[str], records: Records, seconds: float) -> None:
    described = {r["case"]: r for r in records.all if r["kind"] == "case"}
    for case in cases:
        rows = [["size", *(f"{rival}, us" for rival in RIVALS), "ours", "dynamic"]]
        ratios: dict[str, list[float]] = {"ours": [], "dynamic": []}
        for r in records.all:
            if r["kind"] == "figure" and r["case"] == case:
                static = r["static"]["us"]
                for rival, found in ratios.items():
                    found.append(r[rival]["us"] / static)
                times = [_time(r[rival]) for rival in RIVALS]
                rows.append([str(r["size"]), *times, *(f"{f[-1]:.3f}" for f in ratios.values())])
        if len(rows) == 1:
            continue
        about = described[case]
        print(f"{case}, {about['branches']} branches; {about['device']}, torch {about['torch']}")
        print(markdown(rows))
        for rival, found in ratios.items():
            print(f"{rival}: geometric mean {geomean(found):.3f}, worst {max(found):.3f}")
        print()
    for r in records.all:
        if r["kind"] == "skipped":
            print(f"{r['case']} skipped: {r['why']}")
    print(f"{seconds:.0f} s")


def _time(found: dict[str, Any]) -> str:
    kernels = f" ({found['kernels']})" if found["kernels"] is not None else ""
    return f"{found['us']:.1f}{kernels}"


class Session:
    """A worker: one case, compiled for all sizes."""

    def handle(self, request: Reply) -> Reply:
        import in_turn
        import range_codegen_cases

        import torch

        with torch.no_grad():
            if request.pop("do") == "prepare":
                in_turn.tune_in_turn(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "tuning.lock")
                self.case = range_codegen_cases.Prepared(request["device"], request["form"])
                return self.case.prepare(request["case"], request["sizes"], request["seconds"])
            return self.case.measure(request["size"])


if __name__ == "__main__":
    sys.exit(main())
