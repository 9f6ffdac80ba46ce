#!/usr/bin/env python3
"""Real workloads from one token to many: how far is each way to run them from the optimum?

    python3 tools/dev.py python tools/benchmarks/end_to_end.py [--json F] [--chart F.svg]

Workloads: RMSNorm with residual and scale; a skinny matmul with bias and SiLU; a SwiGLU MLP;
attention to a cache of keys and values; an int8 weight-only matmul; cross-entropy over a large
vocabulary; and a whole transformer block with several dispatched ops. Compared are

    ours      the ops as they are, tuned and dispatched by the patch
    stock     the same registration in the same PyTorch without the patch
    single    the one implementation that is best over all sizes, compiled with dynamic shapes
    python    a Python if over a separately compiled function for each range, each of them the
              best implementation for its range
    eager     the model without a compile
    floor     the fastest static compile at that size, over all implementations

On a GPU the time is the sum of the durations of a call's kernels, by the profiler, in bfloat16; on
a CPU it is wall time, in float32. The table gives the ratio to the floor at the same size.

Every workload has processes of its own. They compile at the same time; what is measured, tuning
included, is measured by one process at a time. Figures are written to --json as they come.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import end_to_end_summary as summary
from end_to_end_run import Job, Run
from reporting import read_records, Records, say
from workers import at_the_same_time


NAMES = (
    "rms_norm",
    "skinny_matmul",
    "swiglu",
    "attention",
    "int8_matmul",
    "cross_entropy",
    "block",
)


# The shares of the time limit after which the next phase begins, whatever is left undone.
COMPILED, TUNED, FOUND = 0.55, 0.75, 0.85


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workloads", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--sizes", type=int, nargs="+", help="tokens; 12 of them by default")
    parser.add_argument("--rivals", nargs="+", choices=summary.RIVALS, default=list(summary.RIVALS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default_device())
    parser.add_argument("--dtype", help="bfloat16 on a GPU and float32 on a CPU by default")
    parser.add_argument("--tiny", action="store_true", help="the smallest form, to see it work")
    parser.add_argument("--json", type=Path, help="a file for the figures, a line each")
    parser.add_argument("--chart", type=Path, help="an SVG file for the chart")
    parser.add_argument(
        "--read", type=Path, nargs="+", help="measure nothing; show what --json has written"
    )
    parser.add_argument("--time-limit", type=float, help="seconds; what is left by then is skipped")
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="that may compile at the same time; below 8, one workload is done after another",
    )
    parser.add_argument("--logs", type=Path, help="a folder that keeps the processes' logs")
    args = parser.parse_args()
    if args.read:
        records = [record for path in args.read for record in read_records(path)]
    else:
        records = measured(args)
    print(summary.text(records))
    if args.chart:
        args.chart.write_text(summary.chart(records))
    return 0


def default_device() -> str:
    return "cuda" if shutil.which("nvidia-smi") else "cpu"


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="range-dispatch-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if args.logs:
            args.logs.mkdir(parents=True, exist_ok=True)
        records = Records(args.json)
        records.add("run", workloads=args.workloads)
        # With many cores all workloads are compiled at once, otherwise one after another.
        batch = len(NAMES) if args.processes >= 8 else 1
        clock = Clock(args.time_limit, args.workloads, batch)
        for start in range(0, len(args.workloads), batch):
            Batch(args, args.workloads[start : start + batch], folder, records, clock).run()
            clock.next_batch()
        records.add("end", seconds=round(clock.seconds(), 1))
        return records.all


class Clock:
    """When each phase has to end. Every batch has its share of the time that is left."""

    def __init__(self, limit: float | None, workloads: Sequence[str], batch: int) -> None:
        self.started = time.monotonic()
        self.end = self.started + limit if limit else math.inf
        self.batches = math.ceil(len(workloads) / batch)
        self.next_batch()

    def next_batch(self) -> None:
        self.batch_started = time.monotonic()
        left = self.end - self.batch_started
        self.batch_length = left / max(self.batches, 1) if left < math.inf else math.inf
        self.batches -= 1

    def after(self, share: float) -> float:
        """The time at which this share of the batch's time is over."""
        return self.batch_started + share * self.batch_length

    def seconds(self) -> float:
        return time.monotonic() - self.started


class Batch:
    """Workloads that go through the phases together."""

    def __init__(
        self,
        args: argparse.Namespace,
        workloads: Sequence[str],
        folder: Path,
        records: Records,
        clock: Clock,
    ) -> None:
        self.args, self.records, self.clock = args, records, clock
        self.runs = [Run(args, name, folder, records) for name in workloads]

    def run(self) -> None:
        try:
            self.at_once("start", lambda run: run.starting(), math.inf)
            self.at_once("compile", lambda run: run.compiling(), self.clock.after(COMPILED))
            self.in_turn("static", lambda run: run.measuring_static(), self.clock.after(TUNED))
            self.in_turn("tune", lambda run: run.tuning("ours"), self.clock.after(FOUND))
            self.in_turn("tune stock", lambda run: run.tuning("stock"), self.clock.after(TUNED))
            self.at_once("combine", lambda run: run.combining(), self.clock.after(FOUND))
            self.at_once("load", lambda run: run.loading(), self.clock.after(FOUND))
            self.in_turn("measure", lambda run: run.measuring(), self.clock.after(1))
        finally:
            for run in self.runs:
                run.end()

    def at_once(self, title: str, jobs: Callable[[Run], list[Job]], until: float) -> None:
        """Every job in a thread of its own: the requests of one follow each other."""
        started = time.monotonic()
        with at_the_same_time(2 * self.args.processes) as pool:
            waiting = [
                pool.submit(self.go_through, run, job, until)
                for run in self.runs
                for job in jobs(run)
            ]
            for each in waiting:
                each.result()
        self.note(title, started)

    def in_turn(self, title: str, jobs: Callable[[Run], list[Job]], until: float) -> None:
        started = time.monotonic()
        for run in self.runs:
            for job in jobs(run):
                self.go_through(run, job, until)
        self.note(title, started)

    def go_through(self, run: Run, job: Job, until: float) -> None:
        for step in job:
            run.do(step, until, self.clock.after(1))

    def note(self, title: str, started: float) -> None:
        seconds = time.monotonic() - started
        names = [run.name for run in self.runs]
        self.records.add("phase", title=title, workloads=names, seconds=round(seconds, 1))
        say(f"[{self.clock.seconds():6.1f} s] {title}: {seconds:.1f} s ({', '.join(names)})")


if __name__ == "__main__":
    sys.exit(main())
