"""The grid of one call, range x candidate: from the records where they have it, else measured."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch._inductor import config as inductor_config
from torch._inductor.kernel.range_dispatch import config, description, progress, signature, tuner
from torch._inductor.kernel.range_dispatch.candidates import Candidate
from torch._inductor.kernel.range_dispatch.choosing import combine, Measurement, rule_out
from torch._inductor.kernel.range_dispatch.inputs import Point
from torch._inductor.kernel.range_dispatch.ranges import Range
from torch._inductor.kernel.range_dispatch.records import Records
from torch._inductor.kernel.range_dispatch.registration import Registration
from torch._inductor.kernel.range_dispatch.tuner import Bench, Contender


log = logging.getLogger(__name__)

Row = list[Measurement]


@dataclass(frozen=True)
class Measured:
    """What is known of one range.

    Attributes:
        probes: The sizes, ascending, each with a row of measurements.
        row: The rows in one, a measurement for each candidate; empty where there is none.
        out: The candidates that showed here that they are out for all ranges.
        as_generated: Labels of those whose times are of the code of a branch.
    """

    probes: tuple[tuple[int, tuple[Measurement, ...]], ...] = ()
    row: tuple[Measurement, ...] = ()
    out: tuple[Measurement, ...] = ()
    as_generated: tuple[str, ...] = ()


def pinned() -> bool:
    """Whether nothing may be measured, since the same program must always run the same kernels."""
    return (
        config.deterministic
        or torch.are_deterministic_algorithms_enabled()
        or bool(getattr(inductor_config, "deterministic", False))
    )


def recorded(registration: Registration, bench: Bench, contenders: Sequence[Contender]) -> set[str]:
    """Labels of the contenders that were measured before, and so could be traced."""
    return CallRecords(registration, bench, contenders).labels()


def fill(
    registration: Registration,
    bench: Bench,
    contenders: Sequence[Contender],
    points: Sequence[Sequence[Point]],
    about: str = "",
) -> list[Measured] | None:
    """Measurements of all contenders, in their order, at each point of each range.

    Returns None where something would have to be measured and must not be. A row is empty where
    nothing could be measured. What is measured ``about`` something else than which candidate is
    fastest is recorded apart.
    """
    known = CallRecords(registration, bench, contenders, about)
    if about:
        progress.more(len(contenders) * sum(map(len, points)))
    else:
        progress.start(bench, bench.call.op.name(), len(contenders), sum(map(len, points)))
    if pinned() and any(None in known.row(point) for at in points for point in at):
        log.info("%s: not tuned, to be deterministic: no records", bench.call.op)
        return None
    by_size: dict[int, Row] = {}
    for point in middle_first([point for at in points for point in at]):
        if point.size not in by_size:
            by_size[point.size] = _measured(known, bench, contenders, point)
    measured = [[by_size[point.size] for point in at] for at in points]
    known.save()
    allowed = iter(rule_out([row for rows in measured for row in rows]))
    out: dict[str, Measurement] = {}
    result = []
    for at, raw in zip(points, measured, strict=True):
        here = {m.label: m for row in raw for m in row if m.everywhere and m.label not in out}
        out |= here
        rows = [next(allowed) for _ in at]
        probes = tuple((point.size, tuple(row)) for point, row in zip(at, rows, strict=True))
        result.append(Measured(probes, tuple(combine(rows)), tuple(here.values())))
    return result


def middle_first(points: Sequence[Point]) -> list[Point]:
    """``points`` with the one in the middle of the sizes, in their order of magnitude, first.

    Modules are compiled, and Triton's kernels tuned, for the first sizes that they run at. What
    is chosen for 16 rows may take twice as long at 16384, or the other way round.
    """

    def magnitude(point: Point) -> float:
        return math.log2(1 + point.size)

    if not points:
        return []
    ends = [magnitude(point) for point in points]
    middle = (min(ends) + max(ends)) / 2
    first = min(points, key=lambda point: abs(magnitude(point) - middle))
    return [first, *(point for point in points if point is not first)]


def _measured(
    known: CallRecords, bench: Bench, contenders: Sequence[Contender], point: Point
) -> Row:
    row = known.row(point)
    missing = [c for c, found in zip(contenders, row, strict=True) if found is None]
    if missing:
        measured = tuner.measure(bench, missing, point)
        if not measured:
            return []
        known.add(point, missing, measured)
        rest = iter(measured)
        row = [next(rest) if found is None else found for found in row]
    whole = [found for found in row if found is not None]
    if missing and len({m.method for m in whole if m.error is None}) > 1:
        log.info("%s: measured again at size %d, by one method", bench.call.op, point.size)
        again = tuner.measure(bench, contenders, point)
        if again:
            known.add(point, contenders, again)
            whole = again
    progress.row(point.size, whole, len(missing))
    return whole


@dataclass
class CallRecords:
    """The records of one call, by the contenders' labels; empty where records are off.

    What was generated for a branch of a dispatch is recorded apart from what was generated for all
    sizes: ``branch`` says for which.
    """

    registration: Registration
    bench: Bench
    contenders: Sequence[Contender]
    about: str = ""

    def __post_init__(self) -> None:
        self._records: Records | None = None
        if not config.use_records:
            return
        call, device = self.bench.call, self.bench.device
        self._records = Records(
            signature.key_of(self.registration, call, device),
            signature.folders(self.registration),
            # What must not be measured can't be measured anew.
            retune=config.retune and not pinned(),
        )
        self._identities = {
            c.candidate.label: signature.candidate_identity(c.candidate, call) + c.variant
            for c in self.contenders
        }

    def introduce(self, label: str, made_of: Sequence[Candidate], ranges: Sequence[Range]) -> None:
        """Have records for what is made of several candidates, each for a range."""
        parts = [signature.candidate_identity(candidate, self.bench.call) for candidate in made_of]
        if self._records is not None:
            self._identities[label] = description.identity([label, parts, [*map(str, ranges)]])

    def labels(self) -> set[str]:
        """The contenders of which anything is known."""
        if self._records is None:
            return set()
        return {label for label, name in self._identities.items() if self._records.knows(name)}

    def row(self, point: Point) -> list[Measurement | None]:
        """What is known of each contender at ``point``."""
        return [self.find(c.candidate.label, point) for c in self.contenders]

    def find(self, label: str, point: Point, branch: str = "") -> Measurement | None:
        if self._records is None:
            return None
        found = self._records.find(self._probe(point, branch), self._identities[label])
        return None if found is None else replace(found, label=label)

    def add(
        self,
        point: Point,
        contenders: Sequence[Contender],
        measured: Sequence[Measurement],
    ) -> None:
        for contender, measurement in zip(contenders, measured, strict=True):
            self.put(contender.candidate.label, point, measurement)

    def put(self, label: str, point: Point, measurement: Measurement, branch: str = "") -> None:
        if self._records is None:
            return
        self._records.add(self._probe(point, branch), {self._identities[label]: measurement})

    def _probe(self, point: Point, branch: str) -> str:
        name = signature.probe_name(self.registration, self.bench.call, point, branch)
        return f"{name} {self.about}".rstrip()

    def save(self) -> None:
        if self._records is not None:
            self._records.save()
