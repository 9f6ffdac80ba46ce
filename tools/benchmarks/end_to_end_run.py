"""One workload of end_to_end.py: what its processes are asked, phase by phase."""

from __future__ import annotations

import argparse
import bisect
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reporting import geomean, Records, say
from workers import Lost, Reply, Worker


HERE = Path(__file__).resolve().parent

Choice = dict[str, str]


@dataclass(frozen=True)
class Setting:
    """What is measured by default: on the ends of the ranges, next to them, and between."""

    sizes: tuple[int, ...]
    points: tuple[int, ...]
    top: int
    dtype: str


SETTINGS = {
    "cuda": Setting(
        (1, 7, 16, 17, 64, 65, 256, 300, 1024, 1025, 4096, 16384),
        (16, 64, 256, 1024, 4096),
        16384,
        "bfloat16",
    ),
    "cpu": Setting(
        (1, 3, 8, 9, 32, 33, 100, 128, 129, 300, 512, 1024), (8, 32, 128, 512), 1024, "float32"
    ),
    "tiny": Setting((3, 20), (4,), 32, "float32"),
}
# Where implementations take over from each other elsewhere on an H100 or H200, as a first tuning
# shows, and sizes to measure at where that is not the end of a range:
# (device, workload): (points, probes).
CROSSOVERS: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]]] = {
    ("cuda", "skinny_matmul"): ((8, 64, 768, 1024, 4096), ()),
    ("cuda", "swiglu"): ((16, 64, 256, 1024, 4096), (16, 64, 256, 1024, 1025, 4096, 16384)),
    ("cuda", "attention"): ((16, 32, 64, 128, 1024, 4096), (16, 32, 64, 96, 512, 4096, 16384)),
    ("cuda", "cross_entropy"): ((8, 32, 256, 1024, 4096), (8, 16, 24, 256, 1024, 4096, 16384)),
    ("cuda", "block"): ((16, 32, 64, 128, 1024, 4096), (16, 32, 64, 96, 512, 4096, 16384)),
}
# Seconds after the end of a phase that stock is left to finish what it has begun.
STOCK_EXTRA = 20.0
# Processes for the static compiles of a workload, where there are many cores: those that take long
# have more than two.
SHARDS = {"attention": 4, "block": 6}
# Static compiles that are measured again as the floor: those this close to the fastest.
NEAR = 1.03


@dataclass(frozen=True)
class Step:
    """One request to a worker, and what to do with the reply."""

    worker: Worker
    what: str
    request: Reply
    done: Callable[[Reply], None] = lambda reply: None


Job = list[Step]


class Run:
    """One workload: its processes, what they have built, and what was found out."""

    def __init__(self, args: argparse.Namespace, name: str, folder: Path, records: Records) -> None:
        self.name, self.records = name, records
        self.rivals: list[str] = args.rivals
        form = "tiny" if args.tiny else args.device
        setting = SETTINGS[form]
        self.sizes: list[int] = sorted(args.sizes or setting.sizes)
        self.points, probes = CROSSOVERS.get((form, name), (setting.points, ()))
        self.start_request = {
            "do": "start",
            "workload": name,
            "device": args.device,
            "form": form,
            "dtype": args.dtype or setting.dtype,
            "points": list(self.points),
            "probes": list(probes),
            "top": setting.top,
        }
        self.many = args.processes >= 8
        shards = SHARDS.get(name, 2) if self.many else 0
        logs = args.logs or folder
        make = lambda role: start_worker(folder, logs / f"{name}-{role}.log", role, self.many)  # noqa: E731
        self.main = make("main")
        # Without processes of their own the static compiles are made where the rest is.
        self.shards = [make(f"static{i}") for i in range(shards)] or [self.main]
        self.stock = make("stock") if "stock" in self.rivals else None
        self.choices: list[Choice] = []
        self.most_tokens: dict[str, float] = {}
        self.built: set[tuple[int, str]] = set()
        self.static_times: dict[int, dict[str, float]] = {size: {} for size in self.sizes}

    def workers(self) -> list[Worker]:
        stock = [self.stock] if self.stock else []
        return list(dict.fromkeys([self.main, *self.shards, *stock]))

    def end(self) -> None:
        for worker in self.workers():
            worker.end()

    def do(self, step: Step, until: float, end: float) -> None:
        """Do a step, unless it is later than ``until``; it may last until ``end``."""
        if time.monotonic() > until:
            self.skip(step.what, "out of time")
            return
        # What stock takes longer for must not take the others' time.
        late = min(end, until + STOCK_EXTRA) if step.worker is self.stock else end
        try:
            reply = step.worker.ask(step.request, late)
        except Lost as lost:
            self.skip(step.what, str(lost))
            return
        if "error" in reply:
            self.skip(step.what, reply["error"])
            return
        step.done(reply)

    def skip(self, what: str, why: str) -> None:
        self.records.add("skipped", workload=self.name, what=what, why=why)
        say(f"  {self.name}: {what} skipped: {why}")

    # --- the phases: each gives the jobs of this workload ---

    def starting(self) -> list[Job]:
        jobs = []
        for worker in self.workers():
            done = self.started if worker is self.main else lambda reply: None
            jobs.append([Step(worker, "start", self.start_request, done)])
        return jobs

    def started(self, reply: Reply) -> None:
        self.choices = reply["choices"]
        labels = map(self.label, self.choices)
        self.most_tokens = dict(zip(labels, reply["most_tokens"], strict=True))
        self.records.add(
            "workload",
            workload=self.name,
            sizes=self.sizes,
            device=reply["device"],
            torch=reply["torch"],
            dtype=self.start_request["dtype"],
            points=list(self.points),
        )

    def compiling(self) -> list[Job]:
        statics: list[Job] = [
            [
                self.build_static(shard, choice, size)
                for size in self.sizes[i :: len(self.shards)]
                for choice in self.choices
                if size <= self.most_tokens[self.label(choice)]
            ]
            for i, shard in enumerate(self.shards)
        ]
        rest: Job = []
        if "ours" in self.rivals and self.many:
            rest.append(self.build(self.main, "ours", "tuned", practice=True))
        if "single" in self.rivals:
            rest += [
                self.build_single(choice)
                for choice in self.choices
                if self.most_tokens[self.label(choice)] >= self.sizes[-1]
            ]
        if "eager" in self.rivals:
            rest.append(self.build(self.main, "eager", "eager"))
        jobs = [*statics, rest] if self.many else [[*statics[0], *rest]]
        if self.stock and self.many:
            jobs.append([self.build(self.stock, "stock", "tuned", practice=True)])
        return jobs

    def measuring_static(self) -> list[Job]:
        return [
            [
                self.measure(shard, self.static_keys(shard, size), size, self.found_static)
                for size in self.sizes
                if self.static_keys(shard, size)
            ]
            for shard in self.shards
        ]

    def tuning(self, rival: str) -> list[Job]:
        worker = self.stock if rival == "stock" else self.main
        if rival not in self.rivals or worker is None or self.failed_practice(rival):
            return []
        return [[self.build(worker, rival, "tuned")]]

    def failed_practice(self, rival: str) -> bool:
        what = f"{rival}, practice"
        return any(
            r["kind"] == "skipped" and r["workload"] == self.name and r["what"] == what
            for r in self.records.all
        )

    def combining(self) -> list[Job]:
        """Static compiles of the best implementations together, where there are several ops."""
        return [
            [
                self.build_static(shard, self.best([size]), size)
                for size in self.sizes[i :: len(self.shards)]
                if self.static_times[size] and not self.is_built(self.best([size]), size)
            ]
            for i, shard in enumerate(self.shards)
        ]

    def loading(self) -> list[Job]:
        """What is left, and the floors, whose kernels are compiled already."""
        job = [
            self.build_static(self.main, choice, size)
            for size in self.sizes
            for choice in self.near_best(size)
            if (id(self.main), static_key(self.label(choice), size)) not in self.built
        ]
        found = [size for size in self.sizes if self.static_times[size]]
        if found and "single" in self.rivals and self.best(found) not in self.choices:
            job.append(self.build_single(self.best(found)))
        if found and "python" in self.rivals:
            first = [min(found, key=lambda s: abs(s - end)) for end in [*self.points, found[-1]]]
            choices = [self.best(self.in_range(i, found)) for i in range(len(first))]
            job.append(self.build(self.main, "python", "python", choices=choices, first=first))
        return [job]

    def measuring(self) -> list[Job]:
        jobs = []
        for size in self.sizes:
            floors = {static_key(self.label(c), size) for c in self.near_best(size)}
            keys = [
                key
                for where, key in sorted(self.built)
                if where == id(self.main) and (key in floors or not key.startswith("static "))
            ]
            jobs.append([self.measure(self.main, keys, size, self.found, final=True)])
            if self.stock and (id(self.stock), "stock") in self.built:
                jobs.append([self.measure(self.stock, ["stock"], size, self.found, final=True)])
        return jobs

    # --- requests ---

    def build(
        self,
        worker: Worker,
        key: str,
        kind: str,
        sizes: Sequence[int] = (),
        practice: bool = False,
        **details: Any,
    ) -> Step:
        # With dynamic shapes the first call decides what the code is made for.
        middle = self.sizes[len(self.sizes) // 2]
        request = {
            "do": "build",
            "key": key,
            "kind": kind,
            "sizes": list(sizes) or [middle, *self.sizes],
            **details,
        }
        if kind == "tuned":
            request["practice"] = practice

        def done(reply: Reply) -> None:
            if not practice:
                self.built.add((id(worker), key))
                seconds = round(reply["seconds"], 2)
                self.records.add(
                    "built", workload=self.name, key=key, seconds=seconds, graphs=reply["graphs"]
                )
                for plan in reply["plans"]:
                    self.records.add("plan", workload=self.name, text=plan)

        return Step(worker, f"{key}, {'practice' if practice else 'build'}", request, done)

    def build_static(self, worker: Worker, choice: Choice, size: int) -> Step:
        key = static_key(self.label(choice), size)
        return self.build(worker, key, "static", [size], choice=choice)

    def build_single(self, choice: Choice) -> Step:
        return self.build(self.main, f"single {self.label(choice)}", "dynamic", choice=choice)

    def measure(
        self,
        worker: Worker,
        keys: Sequence[str],
        size: int,
        found: Callable[[int, Reply], None],
        final: bool = False,
    ) -> Step:
        request = {"do": "measure", "keys": list(keys), "size": size, "final": final}

        def done(reply: Reply) -> None:
            found(size, reply["times"])
            for key, why in reply["errors"].items():
                self.skip(f"{key} at {size}", why)

        return Step(worker, f"measure at {size}", request, done)

    def found_static(self, size: int, times: Reply) -> None:
        for key, time_ in times.items():
            label = static_label(key)
            self.static_times[size][label] = time_["microseconds"]
            us = round(time_["microseconds"], 3)
            self.records.add("static", workload=self.name, size=size, label=label, us=us)

    def found(self, size: int, times: Reply) -> None:
        for key, time_ in times.items():
            rival = "floor" if key.startswith("static ") else key.partition(" ")[0]
            label = static_label(key) if rival == "floor" else key.partition(" ")[2]
            self.records.add(
                "figure",
                workload=self.name,
                size=size,
                rival=rival,
                label=label,
                us=round(time_["microseconds"], 3),
                host=round(time_["host"], 3) if "host" in time_ else None,
                kernels=time_["kernels"],
                parts=[(name, round(us, 3)) for name, us in time_.get("parts", ())],
                launched=time_.get("launched"),
                spread=round(time_["spread"], 4),
                error=time_["error"],
                wrong=time_["wrong"],
            )

    # --- what is best where ---

    def label(self, choice: Choice) -> str:
        """The implementation; of several ops those that are not plain."""
        plain = self.choices[0]
        if len(choice) == 1:
            return next(iter(choice.values()))
        other = [f"{op} {label}" for op, label in choice.items() if label != plain[op]]
        return ", ".join(other) or "plain"

    def static_keys(self, worker: Worker, size: int) -> list[str]:
        return [
            key
            for where, key in sorted(self.built)
            if where == id(worker) and key.startswith("static ") and key.endswith(f" @{size}")
        ]

    def is_built(self, choice: Choice, size: int) -> bool:
        key = static_key(self.label(choice), size)
        return any(built == key for _, built in self.built)

    def best(self, sizes: Iterable[int]) -> Choice:
        """The best implementation of each op over some sizes, the others being plain."""
        tables = [self.static_times[size] for size in sizes]
        plain = self.choices[0]
        best = dict(plain)
        for op in plain:
            tried = [c for c in self.choices if {**c, op: ""} == {**plain, op: ""}]
            means = [
                (geomean(t[self.label(c)] for t in tables), c[op])
                for c in tried
                if all(self.label(c) in t for t in tables)
            ]
            if means:
                best[op] = min(means)[1]
        return best

    def near_best(self, size: int) -> list[Choice]:
        """What may be the fastest static compile at a size."""
        times = self.static_times[size]
        if not times:
            return []
        least = min(times.values())
        near = [c for c in self.choices if times.get(self.label(c), math.inf) <= NEAR * least]
        near.sort(key=lambda c: times[self.label(c)])
        best = self.best([size])
        return near[:2] if best in near[:2] else [*near[:2], best]

    def in_range(self, index: int, sizes: Sequence[int]) -> list[int]:
        """The sizes in a range, or the one next to it."""
        inside = [size for size in sizes if bisect.bisect_left(self.points, size) == index]
        ends = [*self.points, math.inf]
        return inside or [min(sizes, key=lambda s: abs(s - min(ends[index], sizes[-1])))]


def static_key(label: str, size: int) -> str:
    return f"static {label} @{size}"


def static_label(key: str) -> str:
    return key.removeprefix("static ").rpartition(" @")[0]


def start_worker(folder: Path, log: Path, role: str, many: bool) -> Worker:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    environment.pop("TORCH_RANGE_DISPATCH_RECORDS", None)
    if many:
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if role == "stock":
        environment["TORCH_RANGE_DISPATCH"] = "0"
        environment.pop("PYTHONPATH", None)
    return Worker([sys.executable, str(HERE / "end_to_end_worker.py")], environment, log)
