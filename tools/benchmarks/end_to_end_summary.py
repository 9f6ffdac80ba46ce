"""Tables and the chart from the records of end_to_end.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import chart as charts
from reporting import geomean, markdown, Record


# In the order in which they are shown.
RIVALS = ("ours", "python", "single", "stock", "eager")
FLOOR = "floor"
# Over the best single implementation; what lies above it at a size is listed.
SLOWER = 1.01


@dataclass(frozen=True)
class Compared:
    """A rival in a workload, against the floor at the same sizes.

    Attributes:
        ratios: By size, its time over the floor's.
        hosts: By size, its host time over the floor's; empty on a CPU.
        kernels: By size, how many kernels more than the floor it runs; empty on a CPU.
        wrong: Sizes at which its results are wrong. They are in none of the others.
        label: Which of several it is, where it is one of several.
    """

    ratios: dict[int, float]
    hosts: dict[int, float]
    kernels: dict[int, int]
    wrong: tuple[int, ...]
    label: str


def workloads(records: Sequence[Record]) -> list[str]:
    """Those that were started, in the order in which they were asked for."""
    started = {r["workload"] for r in records if r["kind"] == "workload"}
    asked = [name for r in records if r["kind"] == "run" for name in r["workloads"]]
    return [name for name in dict.fromkeys([*asked, *sorted(started)]) if name in started]


def figures(records: Sequence[Record], workload: str, rival: str) -> dict[str, dict[int, Record]]:
    """The figures of a rival by label and size."""
    found: dict[str, dict[int, Record]] = {}
    for r in records:
        if r["kind"] == "figure" and r["workload"] == workload and r["rival"] == rival:
            found.setdefault(r["label"], {})[r["size"]] = r
    return found


def floors(records: Sequence[Record], workload: str) -> dict[int, Record]:
    """The fastest static compile at each size."""
    best: dict[int, Record] = {}
    for by_size in figures(records, workload, FLOOR).values():
        for size, figure in by_size.items():
            if not figure["wrong"] and (size not in best or figure["us"] < best[size]["us"]):
                best[size] = figure
    return best


def compare(records: Sequence[Record], workload: str, rival: str) -> Compared | None:
    """A rival against the floor; of several labels the one that is best over all sizes."""
    floor = floors(records, workload)
    made = [
        _compared(by_size, floor, label)
        for label, by_size in figures(records, workload, rival).items()
    ]
    made = [c for c in made if c.ratios or c.wrong]
    if not made:
        return None
    return min(
        made, key=lambda c: (-len(c.ratios), geomean(c.ratios.values()) if c.ratios else 0.0)
    )


def _compared(by_size: dict[int, Record], floor: dict[int, Record], label: str) -> Compared:
    right = {n: f for n, f in by_size.items() if n in floor and not f["wrong"]}
    return Compared(
        {n: f["us"] / floor[n]["us"] for n, f in right.items()},
        {n: f["host"] / floor[n]["host"] for n, f in right.items() if f["host"]},
        {
            n: f["kernels"] - floor[n]["kernels"]
            for n, f in right.items()
            if f["kernels"] is not None
        },
        tuple(sorted(n for n, f in by_size.items() if f["wrong"])),
        label,
    )


def text(records: Sequence[Record]) -> str:
    parts = [_heading(records), _summary(records), _beside(records)]
    parts += [_details(records, workload) for workload in workloads(records)]
    parts.append(_skipped(records))
    return "\n\n".join(part for part in parts if part)


def _heading(records: Sequence[Record]) -> str:
    first: dict[str, Any] = next((r for r in records if r["kind"] == "workload"), {})
    if not first:
        return "nothing was measured"
    started = sum(r["kind"] == "run" for r in records)
    ended = [r["seconds"] for r in records if r["kind"] == "end"]
    took = f", in {sum(ended):.0f} s" if len(ended) == started else ", not to the end"
    return f"{first['device']}, torch {first['torch']}, {first['dtype']}{took}"


def _summary(records: Sequence[Record]) -> str:
    """Ratios to the floor: geometric mean, and worst with its size."""
    rows = [["workload", *RIVALS]]
    means: dict[str, list[float]] = {rival: [] for rival in RIVALS}
    for workload in workloads(records):
        row = [workload]
        for rival in RIVALS:
            compared = compare(records, workload, rival)
            row.append(_cell(compared))
            if compared and compared.ratios:
                means[rival].append(geomean(compared.ratios.values()))
        rows.append(row)
    if len(rows) > 2:
        rows.append(
            ["all", *(f"{geomean(m):.3f}" if m else "-" for m in (means[r] for r in RIVALS))]
        )
    title = "Time over that of the floor: geometric mean over the sizes, and the worst"
    return f"{title}\n\n{markdown(rows)}" if len(rows) > 1 else ""


def over_single(records: Sequence[Record], workload: str) -> dict[int, float]:
    """Our time over that of the best single implementation, by size."""
    ours, single = (compare(records, workload, rival) for rival in ("ours", "single"))
    if ours is None or single is None:
        return {}
    return {n: r / single.ratios[n] for n, r in ours.ratios.items() if n in single.ratios}


def _beside(records: Sequence[Record]) -> str:
    """The other goals: against one implementation for all sizes, and in kernels a call."""
    rows = [["workload", "geomean", "worst", "at", f"above {SLOWER}", "kernels more"]]
    for workload in workloads(records):
        ratios, ours = over_single(records, workload), compare(records, workload, "ours")
        if not ratios or ours is None:
            continue
        worst = max(ratios, key=lambda n: ratios[n])
        above = [str(n) for n, ratio in sorted(ratios.items()) if ratio > SLOWER]
        rows.append(
            [
                workload,
                f"{geomean(ratios.values()):.3f}",
                f"{ratios[worst]:.3f}",
                str(worst),
                ", ".join(above) or "-",
                str(max(ours.kernels.values())) if ours.kernels else "-",
            ]
        )
    title = (
        "Ours over the best single implementation; and kernels a call more than the floor's, most"
    )
    return f"{title}\n\n{markdown(rows)}" if len(rows) > 1 else ""


def _cell(compared: Compared | None) -> str:
    if compared is None:
        return "-"
    wrong = f"wrong at {len(compared.wrong)} sizes" if compared.wrong else ""
    if not compared.ratios:
        return wrong
    ratios = compared.ratios
    said = f"{geomean(ratios.values()):.3f}, {max(ratios.values()):.3f}"
    return f"{said}, {wrong}" if wrong else said


def _details(records: Sequence[Record], workload: str) -> str:
    """A row a size: the floor's time and kernels, and each rival's ratio, kernels and host time."""
    floor = floors(records, workload)
    if not floor:
        return ""
    rivals = {rival: compare(records, workload, rival) for rival in RIVALS}
    shown = {rival: compared for rival, compared in rivals.items() if compared}
    gpu = any(f["kernels"] is not None for f in floor.values())
    rows = [["tokens", "floor, us", "by", *shown]]
    for size, figure in sorted(floor.items()):
        kernels = f" ({figure['kernels']})" if gpu else ""
        row = [str(size), f"{figure['us']:.1f}{kernels}", figure["label"]]
        for compared in shown.values():
            row.append(_size_cell(compared, size, figure))
        rows.append(row)
    single = shown.get("single")
    notes = f"; single is {single.label}" if single else ""
    title = f"{workload}: ratio to the floor"
    title += ", kernels a call in brackets, then host time over the floor's" if gpu else ""
    plans = [r["text"] for r in records if r["kind"] == "plan" and r["workload"] == workload]
    return "\n\n".join([title + notes, markdown(rows), *plans])


def _size_cell(compared: Compared, size: int, floor: Record) -> str:
    if size in compared.wrong:
        return "wrong"
    if size not in compared.ratios:
        return "-"
    said = f"{compared.ratios[size]:.3f}"
    if size in compared.kernels:
        said += f" ({floor['kernels'] + compared.kernels[size]})"
    return f"{said} {compared.hosts[size]:.2f}" if size in compared.hosts else said


def _skipped(records: Sequence[Record]) -> str:
    lines: dict[tuple[str, str], list[str]] = {}
    for r in records:
        if r["kind"] == "skipped":
            lines.setdefault((r["workload"], r["why"]), []).append(r["what"])
    if not lines:
        return ""
    said = [
        f"  {workload}: {', '.join(what[:3])}{' ...' if len(what) > 3 else ''}: {why}"
        for (workload, why), what in lines.items()
    ]
    return "Skipped:\n" + "\n".join(said)


def chart(records: Sequence[Record]) -> str:
    """The ratio to the floor against the size, a panel a workload, as SVG."""
    panels = []
    for workload in workloads(records):
        lines = {}
        for rival in RIVALS:
            compared = compare(records, workload, rival)
            if compared and compared.ratios:
                lines[rival] = sorted(compared.ratios.items())
        panels.append(charts.Panel(workload.replace("_", " "), lines))
    first: dict[str, Any] = next((r for r in records if r["kind"] == "workload"), {})
    what = f"{first.get('device', '')}, torch {first.get('torch', '')}, {first.get('dtype', '')}"
    return charts.draw(panels, f"Time over the fastest static compile, by tokens ({what})")
