"""Plans and records on disk, read without compiling: for a report in another process.

Each plan is kept as JSON under Inductor's cache directory, where the next plan for the same line
of the same program replaces it. Where there is none, the records tell what was measured, and the
registration what would be chosen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch._inductor.kernel.range_dispatch import config, records
from torch._inductor.kernel.range_dispatch.choosing import (
    choose,
    combine,
    Measurement,
    RangeResult,
    rule_out,
    Rules,
)
from torch._inductor.kernel.range_dispatch.plan import OP, Plan, RECORDED
from torch._inductor.kernel.range_dispatch.ranges import (
    merge_neighbours,
    Range,
    ranges_from_split_points,
)
from torch._inductor.runtime.cache_dir_utils import cache_dir


log = logging.getLogger(__name__)

WRITER = "torch._inductor.kernel.range_dispatch.plan"


def cache_folder() -> Path:
    """Where records are kept in any case."""
    return Path(cache_dir()) / "range_dispatch"


def plan_folder() -> Path:
    return cache_folder() / "plans"


# ---------------------------------------------------------------------------------------------
# Plans.


def path_of(plan: Plan) -> Path:
    """The file of ``plan``, in which the next plan for the same line of code replaces it."""
    size = plan.size if plan.size.isdigit() else ""
    about = [plan.op, plan.device, plan.release, plan.dispatch_on, size]
    text = json.dumps([*about, plan.called_from, plan.backward])
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return plan_folder() / f"{records._cleaned(plan.op)}.{digest}.json"


def save(plan: Plan) -> Path | None:
    """Write ``plan``; None, and a line in the log, where that is not possible."""
    path = path_of(plan)
    content = {"_metadata": {"writer": WRITER, "saved": time.time()}, "plan": plan.to_dict()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        records.replace_file(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        log.info("plan %s: cannot be written: %s", path, error)
        return None
    return path


def plans(op: str | None = None) -> list[Plan]:
    """The plans on disk of this machine's cache, the oldest first, of one op or of all."""
    found = []
    for path in sorted(plan_folder().glob("*.json")):
        try:
            content = json.loads(path.read_text())
            if content["_metadata"]["writer"] != WRITER:
                continue
            plan = Plan.from_dict(content["plan"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.info("plan %s: ignored: %s", path, error)
            continue
        if op is None or plan.op == op:
            found.append((float(content["_metadata"].get("saved", 0.0)), plan))
    return [plan for _, plan in sorted(found, key=lambda pair: pair[0])]


# ---------------------------------------------------------------------------------------------
# Records.


@dataclass(frozen=True)
class Entry:
    """The measurements for one signature of a call.

    Attributes:
        path: The file.
        digest: The entry's name in the file.
        op: The op.
        device: The kind of device.
        signature: The call, and how it is measured.
        environment: The versions that the kernels come from.
        probes: Measurements by probe, then by the candidate's identity.
    """

    path: Path
    digest: str
    op: str
    device: str
    signature: Mapping[str, Any]
    environment: Mapping[str, Any]
    probes: Mapping[str, Mapping[str, Measurement]]

    @property
    def times(self) -> int:
        """How many measurements there are."""
        return sum(len(row) for row in self.probes.values())

    @property
    def release(self) -> str:
        return str(self.environment.get("torch", ""))

    @property
    def dispatch_on(self) -> str | None:
        where = self.signature.get("dispatch_on")
        return f"{where[0]}.shape[{where[1]}]" if where else None


def entries(folders: Sequence[Path], op: str | None = None) -> Iterator[Entry]:
    """What the records in ``folders`` hold. A file that is not ours is passed over, and logged."""
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            yield from entries_of(path, op)


def entries_of(path: Path, op: str | None = None) -> Iterator[Entry]:
    """The entries of one file; none where it is not usable."""
    try:
        content = records._read(path)
    except (records._NotUsable, OSError) as error:
        log.info("tuning records %s: ignored: %s", path, error)
        return
    about = content["_metadata"]
    if op is not None and about.get("op") != op:
        return
    for digest, entry in sorted(content["entries"].items()):
        try:
            probes = records._grid_from_json(entry)
        except records._NotUsable as error:
            log.info("tuning records %s: %s: ignored: %s", path, digest, error)
            continue
        yield Entry(
            path,
            digest,
            str(about.get("op")),
            str(about.get("device")),
            entry.get("signature") or {},
            entry.get("environment") or {},
            # What was measured about the neighbours of the op is under longer names.
            {probe: row for probe, row in probes.items() if " " not in probe},
        )


def plan_of(
    entry: Entry,
    ranges: Sequence[Range] = (),
    threshold: float = 1.0,
    labels: Sequence[str] = (),
) -> Plan:
    """What the measurements of ``entry`` lead to.

    Args:
        entry: What was measured.
        ranges: The ranges as registered. By default each probe is the end of a range, as it is
            where no probe sizes were given.
        threshold: ``min_speedup_threshold`` as registered.
        labels: The candidates as registered, in order; by default all that were measured.
    """
    known = labels or _labels(entry)
    by_size = {
        probe: _ordered([m for m in row.values() if m.label in known], known)
        for probe, row in entry.probes.items()
    }
    sizes = sorted(int(probe) for probe in by_size if probe.isdigit())
    if not sizes:
        points: list[list[int]] = [[]]
        rows = list(by_size.values())[:1]
        ranges = [Range(0, math.inf)]
    else:
        ranges = ranges or ranges_from_split_points(sizes[:-1])
        points = [[size for size in sizes if range.contains(size)] for range in ranges]
        allowed = iter(rule_out([by_size[str(size)] for at in points for size in at]))
        raw = [[next(allowed) for _ in at] for at in points]
        rows = [combine(at) for at in raw]
    rules = Rules(op=OP, threshold=threshold, noise=config.noise)
    winners = choose(rows, rules)
    results = tuple(
        RangeResult(
            range,
            max(at, default=None),
            tuple(row),
            winner,
            tuple((size, tuple(by_size[str(size)])) for size in at) if len(at) > 1 else (),
        )
        for range, at, row, winner in zip(ranges, points, rows, winners, strict=True)
    )
    merged = merge_neighbours(
        list(zip(ranges, winners, strict=True)), lambda one, other: one == other
    )
    out = {m.label: m.error for row in rows for m in row if m.everywhere and m.error}
    return Plan(
        op=entry.op,
        dispatch_on=entry.dispatch_on,
        size="any" if entry.dispatch_on else "",
        results=results,
        chosen=tuple(merged),
        rejected=tuple(out.items()),
        tuning_seconds=0.0,
        origin=RECORDED,
        device=entry.device,
        release=entry.release,
    )


def _labels(entry: Entry) -> list[str]:
    """All that was measured, in alphabetical order, the op itself last."""
    labels = sorted({m.label for row in entry.probes.values() for m in row.values()})
    return [*(label for label in labels if label != OP), *([OP] if OP in labels else [])]


def _ordered(row: Sequence[Measurement], labels: Sequence[str]) -> list[Measurement]:
    """``row`` with a measurement for each label, so that rows can be combined."""
    known = {m.label: m for m in row}
    missing = "it was not measured"
    return [known.get(label, Measurement(label, math.inf, 0.0, missing)) for label in labels]


# ---------------------------------------------------------------------------------------------
# Asking for a new tuning.


def generation_file() -> Path:
    return cache_folder() / "generation"


def generation() -> str:
    """What goes into the keys of compile caches, so that a new tuning is not hidden by them."""
    try:
        return generation_file().read_text(errors="replace")
    except OSError:
        return ""


def next_generation() -> None:
    """From now on no process is served what was compiled with the records as they were."""
    generation_file().parent.mkdir(parents=True, exist_ok=True)
    records.replace_file(generation_file(), os.urandom(8).hex())
