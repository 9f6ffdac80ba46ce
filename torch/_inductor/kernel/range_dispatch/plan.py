"""A plan: what was measured and decided for one call of an op, as a value, as text and as JSON.

Plain Python: a plan that another process wrote can be read and shown without compiling anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch._inductor.kernel.range_dispatch.choosing import Measurement, RangeResult
from torch._inductor.kernel.range_dispatch.ranges import Range


FORMAT = 1

# Where the times of a plan come from.
MEASURED = "measured"
RECORDED = "recorded"


@dataclass(frozen=True)
class Plan:
    """What was decided for one call of an op.

    Attributes:
        op: The op, as ``namespace::name``, with ``.overload`` where that is not the default one.
        dispatch_on: Where the size is read, as ``x.shape[1]``; None where the op is not dispatched.
        size: The size as the graph knows it: a number, a symbol or an expression.
        results: What was measured, for each range that can occur.
        chosen: The merged ranges and the label of what runs in each, in ascending order.
        rejected: Candidates that could not compete, with the reason.
        tuning_seconds: Wall time of tracing, compiling and measuring.
        region: The op's neighbours in the graph that moved into its branches, in words.
        producers: Those of them that run before the op.
        handed_out: Those of them whose values the rest of the graph uses.
        left_out: Neighbours that were measured to be faster outside of the branches.
        costs: Seconds by the kind of work, in the order in which it was done.
        origin: ``"measured"`` where something was measured for this plan, ``"recorded"`` where
            all times come from records, and None where it needed no times.
        device: The kind of device, as its maker calls it.
        release: The PyTorch release.
        compile_id: Dynamo's number of the compilation, such as ``0/0``; empty outside of one.
        called_from: The user's line that calls the op, as ``file:line in function``.
        backward: Whether the call is in a backward graph.
        one_kernel: Whether what runs in the merged ranges is one kernel, and no dispatch.
        for_all_sizes: Those of the merged ranges whose branches are generated as for all sizes,
            since code made for them was measured to be slower.
        parts: Of the branches that are generated in parts, since Inductor chooses what they consist
            of by the size (``config.template_parts``): the sizes that each part is made for.
    """

    op: str
    dispatch_on: str | None
    size: str
    results: tuple[RangeResult, ...]
    chosen: tuple[tuple[Range, str], ...]
    rejected: tuple[tuple[str, str], ...]
    tuning_seconds: float
    region: tuple[str, ...] = ()
    producers: tuple[str, ...] = ()
    handed_out: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    costs: tuple[tuple[str, float], ...] = ()
    origin: str | None = MEASURED
    device: str = ""
    release: str = ""
    compile_id: str = ""
    called_from: str = ""
    backward: bool = False
    one_kernel: bool = False
    for_all_sizes: tuple[Range, ...] = ()
    parts: tuple[Range, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The candidates that were measured, in registration order, the op itself last."""
        return tuple(dict.fromkeys(m.label for r in self.results for m in r.measurements))

    @property
    def op_label(self) -> str | None:
        """The candidate that is the op as it was called; None where it did not compete."""
        return OP if OP in self.labels else None

    def merged_with(self, result: RangeResult) -> tuple[Range, ...]:
        """The other ranges that run as one with the range of ``result``."""
        for merged, _ in self.chosen:
            if merged.start <= result.range.start <= merged.end:
                inside = (r.range for r in self.results if merged.contains(r.range.start))
                return tuple(range for range in inside if range != result.range)
        return ()

    @property
    def best_single(self) -> str | None:
        """The candidate that would be fastest if one had to run at every size.

        None where nothing was measured, or no candidate can run everywhere.
        """
        totals = {label: self._mean_over_winners(label) for label in self.labels}
        able = {label: mean for label, mean in totals.items() if mean is not None}
        return min(able, key=able.__getitem__, default=None)

    @property
    def gain_over_single(self) -> float | None:
        """How many times as fast the plan is as the best single candidate throughout.

        The geometric mean of the ranges, each of which counts alike; 1 where one candidate runs
        throughout, and None where that is not known.
        """
        best = self.best_single
        return None if best is None else self._mean_over_winners(best)

    @property
    def gain_over_op(self) -> float | None:
        """As ``gain_over_single``, for the op itself throughout."""
        return None if self.op_label is None else self._mean_over_winners(self.op_label)

    def _mean_over_winners(self, label: str) -> float | None:
        """The geometric mean of ``label``'s time by the winner's; None where one is missing."""
        ratios = []
        for result in self.results:
            times = times_of(result)
            if not times:
                continue
            if label not in times or result.winner not in times:
                return None
            ratios.append(times[label] / times[result.winner])
        if not ratios:
            return None
        return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))

    def __str__(self) -> str:
        return "\n".join([*self._heading(), *self._table(), *self._footing()])

    def _heading(self) -> list[str]:
        where = f" on {self.dispatch_on} = {self.size}" if self.dispatch_on else ""
        how = "from records" if self.origin == RECORDED else "tuned"
        lines = [f"{self.op}{where}, {how} in {self.tuning_seconds:.1f} s"]
        about = [self.device, f"PyTorch {self.release}" if self.release else ""]
        about += [f"called from {self.called_from}" if self.called_from else ""]
        about += ["in the backward graph" if self.backward else ""]
        if any(about):
            lines.append("  " + ", ".join(filter(None, about)))
        return lines

    def _table(self) -> list[str]:
        rows = [["range", "probe", *self.labels, "winner", "margin"]]
        for result in self.results:
            by_label = {m.label: m for m in result.measurements}
            sizes: list[int | None] = [size for size, _ in result.probes] or [result.probe]
            probe = ", ".join("-" if size is None else str(size) for size in sizes)
            cells = [shown_time(by_label.get(label), result) for label in self.labels]
            ahead = margin(result)
            shown = "-" if ahead is None else f"{ahead:.2f}x"
            rows.append([str(result.range), probe, *cells, result.winner, shown])
        return aligned(rows)

    def _footing(self) -> list[str]:
        lines = [f"  not used: {label}: {reason}" for label, reason in self.rejected]
        out = {label for label, _ in self.rejected}
        for result in self.results:
            for m in result.measurements:
                if m.error is not None and m.label not in out:
                    lines.append(f"  not used in {result.range}: {m.label}: {m.error}")
        for merged, label in self.chosen:
            parts = [str(r.range) for r in self.results if merged.contains(r.range.start)]
            if len(parts) > 1:
                lines.append(f"  merged: {' '.join(parts)} all run {label}")
        again = [f"{r.range} {', '.join(r.as_generated)}" for r in self.results if r.as_generated]
        if again:
            lines.append(f"  measured as generated: {'; '.join(again)}")
        if self.for_all_sizes:
            lines.append(f"  generated as for all sizes: {' '.join(map(str, self.for_all_sizes))}")
        if self.parts:
            lines.append(f"  generated in parts: {' '.join(map(str, self.parts))}")
        lines += [f"  {what}: {said}" for what, said in self.neighbours()]
        pieces = [f"{r} {label}" for r, label in self.chosen]
        verb = "dispatched" if len(self.chosen) > 1 else "inlined"
        if self.one_kernel:
            verb = "in one kernel"
        lines.append(f"  {verb}: {'; '.join(pieces)}")
        if gains := self.predicted():
            lines.append(f"  predicted: {gains}")
        return lines

    def _branches(self) -> int:
        """How many are lowered: each part is one."""
        starts = [part.start for part in self.parts]
        whole = [r for r, _ in self.chosen if not any(map(r.contains, starts))]
        return len(whole) + len(self.parts)

    def neighbours(self) -> list[tuple[str, str]]:
        """What became of the op's neighbours, as pairs of what is said and of what."""
        about = []
        if self.region:
            shown = ", ".join(f"{n} (before)" if n in self.producers else n for n in self.region)
            if len(self.chosen) > 1:
                shown += f"; {len(self.region)} nodes x {self._branches()} branches"
            if seconds := dict(self.costs).get("branches"):
                shown += f" in {seconds:.2f} s"
            about.append(("in the branches", shown))
        if self.handed_out:
            about.append(("handed out of them", ", ".join(self.handed_out)))
        if self.left_out:
            about.append(("left out, since measured slower there", ", ".join(self.left_out)))
        return about

    def predicted(self) -> str:
        """The predicted gains in words; empty where nothing was measured."""
        parts = []
        single = self.gain_over_single
        if single is not None and len(self.chosen) > 1 and self.best_single != self.op_label:
            parts.append(f"{single:.2f}x as fast as {self.best_single} throughout")
        over_op = self.gain_over_op
        if over_op is not None and {label for _, label in self.chosen} != {self.op_label}:
            parts.append(f"{over_op:.2f}x as fast as the op itself")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The plan in JSON's types; ``docs/report.md`` describes the keys."""
        return {
            "format": FORMAT,
            "op": self.op,
            "dispatch_on": self.dispatch_on,
            "size": self.size,
            "origin": self.origin,
            "device": self.device,
            "release": self.release,
            "compile_id": self.compile_id,
            "called_from": self.called_from,
            "backward": self.backward,
            "one_kernel": self.one_kernel,
            "for_all_sizes": [_range_to_dict(range) for range in self.for_all_sizes],
            "parts": [_range_to_dict(range) for range in self.parts],
            "tuning_seconds": self.tuning_seconds,
            "costs": dict(self.costs),
            "ranges": [
                {
                    **_range_to_dict(result.range),
                    "probe": result.probe,
                    "winner": result.winner,
                    "margin": margin(result),
                    "merged_with": [_range_to_dict(r) for r in self.merged_with(result)],
                    "measurements": _row_to_list(result.measurements),
                    "probes": [
                        {"size": size, "measurements": _row_to_list(row)}
                        for size, row in result.probes
                    ],
                    "as_generated": list(result.as_generated),
                }
                for result in self.results
            ],
            "chosen": [
                {**_range_to_dict(range), "candidate": label} for range, label in self.chosen
            ],
            "rejected": [{"candidate": label, "reason": reason} for label, reason in self.rejected],
            "region": list(self.region),
            "producers": list(self.producers),
            "handed_out": list(self.handed_out),
            "left_out": list(self.left_out),
            "best_single": self.best_single,
            "gain_over_single": self.gain_over_single,
            "gain_over_op": self.gain_over_op,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Plan:
        """The plan that ``to_dict`` described. Derived values are not read but derived again.

        Raises:
            ValueError: ``data`` is not of this format.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else data
            raise ValueError(f"not a plan of format {FORMAT}: its format is {found!r}")
        try:
            return Plan(
                op=str(data["op"]),
                dispatch_on=data["dispatch_on"],
                size=str(data["size"]),
                results=tuple(
                    RangeResult(
                        _range_from_dict(r),
                        r["probe"],
                        _row_from_list(r["measurements"]),
                        str(r["winner"]),
                        tuple((p["size"], _row_from_list(p["measurements"])) for p in r["probes"]),
                        # Not there in what was written before it was known.
                        tuple(map(str, r.get("as_generated", ()))),
                    )
                    for r in data["ranges"]
                ),
                chosen=tuple((_range_from_dict(c), str(c["candidate"])) for c in data["chosen"]),
                rejected=tuple((str(r["candidate"]), str(r["reason"])) for r in data["rejected"]),
                tuning_seconds=float(data["tuning_seconds"]),
                region=tuple(map(str, data["region"])),
                # Not in what earlier versions wrote.
                producers=tuple(map(str, data.get("producers", ()))),
                handed_out=tuple(map(str, data.get("handed_out", ()))),
                left_out=tuple(map(str, data.get("left_out", ()))),
                costs=tuple((str(kind), float(s)) for kind, s in data["costs"].items()),
                origin=data["origin"],
                device=str(data["device"]),
                release=str(data["release"]),
                compile_id=str(data["compile_id"]),
                called_from=str(data["called_from"]),
                backward=bool(data["backward"]),
                one_kernel=bool(data.get("one_kernel", False)),
                for_all_sizes=tuple(map(_range_from_dict, data.get("for_all_sizes", ()))),
                parts=tuple(map(_range_from_dict, data.get("parts", ()))),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a plan of format {FORMAT}: {error!r}") from None

    def to_json(self) -> str:
        """The plan as one JSON object; ``from_json`` reads it back."""
        return json.dumps(self.to_dict(), indent=1)

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that ``to_json`` wrote.

        Raises:
            ValueError: ``text`` is not JSON, or not a plan of this format.
        """
        return Plan.from_dict(json.loads(text))

    def to_html(self) -> str:
        """One self-contained page about the plan, with a chart of time against size."""
        from torch._inductor.kernel.range_dispatch.page import page

        return page([self])

    def to_svg(self) -> str:
        """The chart alone, as an SVG file; empty where nothing was measured."""
        from torch._inductor.kernel.range_dispatch.chart import picture

        return picture(self) if any(map(times_of, self.results)) else ""

    def plot(self, ax: Any = None) -> Any:
        """Draw time against size with matplotlib, into ``ax`` or axes of their own; the axes.

        Raises:
            ImportError: There is no matplotlib.
            ValueError: Nothing was measured.
        """
        from torch._inductor.kernel.range_dispatch.chart import plot

        return plot(self, ax)


# The label of the op itself; candidates.OP_LABEL, which this module cannot import without torch.
OP = "op itself"


def times_of(result: RangeResult) -> dict[str, float]:
    """Milliseconds by label of the candidates that ran and may be used."""
    return {
        m.label: m.milliseconds
        for m in result.measurements
        if m.error is None and math.isfinite(m.milliseconds) and m.milliseconds > 0
    }


def margin(result: RangeResult) -> float | None:
    """How many times the winner's time the fastest other candidate takes; None without one.

    Below 1 where the winner is not the fastest: within the noise, fewer branches were preferred.

    >>> row = (Measurement("a", 2.0), Measurement("b", 3.0))
    >>> margin(RangeResult(Range(0, 4), 4, row, "a"))
    1.5
    """
    times = times_of(result)
    mine = times.pop(result.winner, None)
    return None if mine is None or not times else min(times.values()) / mine


def shown_time(measurement: Measurement | None, result: RangeResult) -> str:
    """A time for people: ``12.3 ±0.4 us``."""
    if measurement is None:
        return "-"
    if measurement.error is not None:
        return "failed"
    if measurement.label not in times_of(result):
        return "-"
    spread = f" ±{measurement.spread * 1e3:.1f}" if measurement.spread > 0 else ""
    return f"{measurement.milliseconds * 1e3:.1f}{spread} us"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, in columns that are set flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def _range_to_dict(range: Range) -> dict[str, Any]:
    return {"start": range.start, "end": int(range.end) if range.bounded else None}


def _range_from_dict(data: Mapping[str, Any]) -> Range:
    return Range(int(data["start"]), math.inf if data["end"] is None else int(data["end"]))


def _row_to_list(row: Iterable[Measurement]) -> list[dict[str, Any]]:
    return [
        {
            "candidate": m.label,
            "milliseconds": m.milliseconds if math.isfinite(m.milliseconds) else None,
            "spread": m.spread,
            "error": m.error,
            "everywhere": m.everywhere,
            "method": m.method,
        }
        for m in row
    ]


def _row_from_list(row: Iterable[Mapping[str, Any]]) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(
            str(m["candidate"]),
            math.inf if m["milliseconds"] is None else float(m["milliseconds"]),
            float(m["spread"]),
            m["error"],
            bool(m["everywhere"]),
            str(m["method"]),
        )
        for m in row
    )
