"""What was tuned and chosen, kept for people and for tools."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch._inductor.kernel.range_dispatch.choosing import Measurement, RangeResult
from torch._inductor.kernel.range_dispatch.ranges import Range


# Plans of one process, the latest last. Bounded: a server may compile for weeks.
_KEPT = 1024
_plans: collections.deque[Plan] = collections.deque(maxlen=_KEPT)


@dataclass(frozen=True)
class Plan:
    """What was decided for one call of an op.

    Attributes:
        op: The op, as ``namespace::name.overload``.
        dispatch_on: Where the size is read, as ``x.shape[1]``; None where the op is not dispatched.
        size: The size as the graph knows it: a number, a symbol or an expression.
        results: What was measured, for each range that can occur.
        chosen: The merged ranges and the label of what runs in each, in ascending order.
        rejected: Candidates that could not compete, with the reason.
        tuning_seconds: Wall time of tracing, compiling and measuring.
    """

    op: str
    dispatch_on: str | None
    size: str
    results: tuple[RangeResult, ...]
    chosen: tuple[tuple[Range, str], ...]
    rejected: tuple[tuple[str, str], ...]
    tuning_seconds: float

    def __str__(self) -> str:
        return "\n".join([*self._heading(), *self._rows(), *self._footing()])

    def _heading(self) -> list[str]:
        where = f" on {self.dispatch_on} = {self.size}" if self.dispatch_on else ""
        return [f"{self.op}{where}, tuned in {self.tuning_seconds:.1f} s"]

    def _rows(self) -> list[str]:
        labels = [m.label for m in self.results[0].measurements] if self.results else []
        header = ["range", "probe", *labels, "winner"]
        rows = [header]
        for result in self.results:
            times = {m.label: _shown_time(m) for m in result.measurements}
            sizes: list[int | None] = [size for size, _ in result.probes] or [result.probe]
            probe = ", ".join("-" if size is None else str(size) for size in sizes)
            cells = [times.get(label, "-") for label in labels]
            rows.append([str(result.range), probe, *cells, result.winner])
        return _aligned(rows)

    def _footing(self) -> list[str]:
        lines = [f"  not used: {label}: {reason}" for label, reason in self.rejected]
        for range, label in self.chosen:
            parts = [
                str(r.range) for r in self.results if range.start <= r.range.start <= range.end
            ]
            if len(parts) > 1:
                lines.append(f"  merged: {' '.join(parts)} all run {label}")
        pieces = [f"{r} {label}" for r, label in self.chosen]
        verb = "dispatched" if len(self.chosen) > 1 else "inlined"
        return [*lines, f"  {verb}: {'; '.join(pieces)}"]


def _shown_time(measurement: Measurement) -> str:
    if not math.isfinite(measurement.milliseconds):
        return "failed" if measurement.error else "-"
    return f"{measurement.milliseconds * 1e3:.1f} us"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def record(plan: Plan) -> None:
    """Keep ``plan``, in place of the oldest one where too many are kept."""
    _plans.append(plan)


def plans(op: str | None = None) -> tuple[Plan, ...]:
    """The plans of this process in the order in which they were made, of one op or of all.

    A graph that came out of a compile cache leaves none: nothing was tuned.
    """
    return tuple(plan for plan in _plans if op is None or plan.op == op)


def clear() -> None:
    """Forget all plans."""
    _plans.clear()
