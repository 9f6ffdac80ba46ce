"""Candidates that nearly tie, measured as they will be generated.

A candidate has one benchmark module for all sizes, but the branch that runs in the end is generated
for its own range, with other block sizes, loop splits and index types (``sizes``). Where it is
clear who wins, that makes no difference. Where it is not, the winner and those close to it are
generated again, each for the branch that it would be in; if that is other code, it is measured, and
the winners are chosen again. Only a dispatch has branches: one winner throughout is inlined, and is
generated for all sizes, as it was measured.

On a GPU a long reduction over few rows becomes two kernels, which may well be slower: a winner
whose branch would have other kernels is measured even where nobody is close. Code for a branch that
turns out to be slower than that for all sizes is not used: the branch keeps its range, and gets the
hints that the faster code was made with.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import sympy

import torch
from torch._inductor.kernel.range_dispatch import config, grid, progress, tuner
from torch._inductor.kernel.range_dispatch.benchmark_module import BenchmarkModule, Generated
from torch._inductor.kernel.range_dispatch.choosing import (
    choose,
    close,
    combine,
    may_win,
    Rules,
)
from torch._inductor.kernel.range_dispatch.compiling import compiled_together
from torch._inductor.kernel.range_dispatch.grid import CallRecords, Measured, Row
from torch._inductor.kernel.range_dispatch.inputs import Point
from torch._inductor.kernel.range_dispatch.ranges import Range
from torch._inductor.kernel.range_dispatch.sizes import Known
from torch._inductor.kernel.range_dispatch.tuner import Contender


log = logging.getLogger(__name__)

# How often winners are chosen again: with other winners, other ranges merge.
_ROUNDS = 3

# A candidate in the branch for a merged range.
Cell = tuple[str, Range]

# Where generated code runs a kernel.
_LAUNCH = re.compile(r"\.run\(|\bextern_kernels\.\w+\(|^\s*cpp_fused_\w+\(", re.MULTILINE)


def number_of_kernels(code: str) -> int:
    """How many kernels a generated module runs.

    >>> number_of_kernels("  triton_red_0.run(a, b)\\n  extern_kernels.mm(a, b, out=c)")
    2
    """
    return len(_LAUNCH.findall(code))


def depend_on_hints(device: torch.device) -> bool:
    """Whether which kernels there are depends on the sizes that code is made for."""
    return device.type != "cpu"


@dataclass(frozen=True)
class Branches:
    """How winners become branches.

    Attributes:
        ranges: The ranges of the dispatch, in ascending order.
        merge: From a winner for each range to the merged ranges.
        known: What holds in the branch for a merged range.
        size: The size that is dispatched on.
    """

    ranges: Sequence[Range]
    merge: Callable[[Sequence[str]], Sequence[Range]]
    known: Callable[[Range], Known | None]
    size: sympy.Expr

    def cell(self, winners: Sequence[str], place: int, label: str) -> Cell:
        """Where ``label`` would be if it won the range at ``place`` instead."""
        instead = [*winners[:place], label, *winners[place + 1 :]]
        start = self.ranges[place].start
        return label, next(merged for merged in self.merge(instead) if merged.contains(start))

    def is_inlined(self, branch: Range) -> bool:
        """Whether ``branch`` is for all sizes, and so is none."""
        return branch.start == self.ranges[0].start and branch.end == self.ranges[-1].end

    def name(self, branch: Range) -> str:
        """``branch``, with the size that its code is made for."""
        known = self.known(branch)
        if known is None:
            return str(branch)
        values = {s: sympy.Integer(value) for s, value in known.hints.items()}
        return f"{branch} at {self.size.xreplace(values)}"


@dataclass
class Ranking:
    """Chooses winners again by the times of what will run.

    Attributes:
        records: Of the call.
        branches: How winners become branches.
        points: The probes of each range.
        measured: What is known of each range.
        rules: How winners are chosen.
    """

    records: CallRecords
    branches: Branches
    points: Sequence[Sequence[Point]]
    measured: Sequence[Measured]
    rules: Rules
    # Of a range, by its place, and a cell: times at the probes.
    _times: dict[tuple[int, Cell], Row] = field(default_factory=dict)
    _tried: set[tuple[int, Cell]] = field(default_factory=set)
    # Those of them that nearly tied, of which there are only so many.
    _tied: set[Cell] = field(default_factory=set)
    # Whether all branches are to be generated as for all sizes.
    _all_general: bool = False
    # Of a cell: its code, where it is not that for all sizes, compiled.
    _modules: dict[Cell, BenchmarkModule | None] = field(default_factory=dict)

    def choose_again(self, winners: Sequence[str]) -> tuple[list[Measured], list[str]]:
        """What is known now, and the winners by that.

        Other winners merge into other branches, whose code may be slower than what they won with.
        Where that goes back and forth, the winners count whose branches are fastest as they are.
        If the op itself is faster somewhere with each of them, the first are generated as measured.
        """
        chosen = list(winners)
        plans: list[list[str]] = []
        while chosen not in plans and len(plans) <= _ROUNDS:
            plans.append(chosen)
            self._find_out(chosen)
            chosen = choose([m.row for m in self._known(chosen)], self.rules)
        if chosen != plans[-1]:
            log.debug("%s: no plan is the best one with its own branches: %s", self._op, plans)
            usable = [plan for plan in plans if self._beats_the_op(plan)]
            chosen = min(usable, key=self._relative_time, default=plans[0])
            self._all_general = not usable
        return self._known(chosen), chosen

    def _beats_the_op(self, winners: Sequence[str]) -> bool:
        pairs = zip(self._known(winners), winners, strict=True)
        return all(may_win(known.row, winner, self.rules) for known, winner in pairs)

    def _relative_time(self, winners: Sequence[str]) -> float:
        """The logarithm of the geometric mean of the winners' times, in the branches they make."""
        rows = [{m.label: m.milliseconds for m in known.row} for known in self._known(winners)]
        times = [row.get(winner, 1.0) for row, winner in zip(rows, winners, strict=True)]
        return sum(math.log(max(time, 1e-9)) for time in times) / max(len(times), 1)

    def for_all_sizes(self, winners: Sequence[str]) -> dict[Cell, Point]:
        """The branches whose own code is slower than that for all sizes, made at this point."""
        cells = self._cells(winners)
        slower = [cell for cell in cells if self._all_general or self._is_slower(cell)]
        if slower:
            log.info("%s: as for all sizes: %s", self._op, slower)
        return dict.fromkeys(slower, self._middle)

    def modules(self, winners: Sequence[str]) -> dict[Cell, BenchmarkModule]:
        """Of winners that were generated for their branches and run like that: their modules."""
        general = self.for_all_sizes(winners)
        cells = [cell for cell in self._cells(winners) if cell not in general]
        found = ((cell, self._modules.get(cell)) for cell in cells)
        return {cell: module for cell, module in found if module is not None}

    def _cells(self, winners: Sequence[str]) -> list[Cell]:
        """The branches that ``winners`` make, each with who runs in it."""
        starts = [range.start for range in self.branches.ranges]
        branches = self.branches.merge(winners)
        return [(winners[starts.index(branch.start)], branch) for branch in branches]

    @property
    def _middle(self) -> Point:
        """What code for all sizes is made for."""
        return grid.middle_first([point for at in self.points for point in at])[0]

    def _is_slower(self, cell: Cell) -> bool:
        """Whether the code of ``cell`` is slower than that for all sizes, beyond the noise.

        Each probe counts alike, as everywhere: what gains a little for many rows may take half as
        long again for few.
        """
        slower = [
            math.log(max(m.milliseconds, 1e-9) / first)
            for (place, measured), row in self._times.items()
            if measured == cell
            for i, m in enumerate(row)
            if 0 < (first := self._first(place, i, cell[0])) < math.inf
        ]
        return bool(slower) and sum(slower) / len(slower) > math.log1p(self.rules.noise)

    def _first(self, place: int, probe: int, label: str) -> float:
        _, row = self.measured[place].probes[probe]
        return next(m.milliseconds for m in row if m.label == label)

    def _known(self, winners: Sequence[str]) -> list[Measured]:
        """What is known of each range, where the other ranges have these winners."""

        def times(place: int, label: str) -> Row | None:
            cell = self.branches.cell(winners, place, label)
            row = self._times.get((place, cell))
            if row is None or self._all_general or self._is_slower(cell):
                return None
            first = [self._first(place, i, label) for i in range(len(row))]
            return row if [m.milliseconds for m in row] != first else None

        known = []
        for place, first in enumerate(self.measured):
            again = {m.label: times(place, m.label) for m in first.row}
            found = {label: row for label, row in again.items() if row is not None}
            if not found:
                known.append(first)
                continue
            probes = tuple(
                (size, tuple(found[m.label][i] if m.label in found else m for m in row))
                for i, (size, row) in enumerate(first.probes)
            )
            row = tuple(combine([row for _, row in probes]))
            known.append(Measured(probes, row, first.out, tuple(found)))
        return known

    def _find_out(self, winners: Sequence[str]) -> None:
        """Get the times of those that nearly tie, and of winners that may be other kernels."""
        close = self._close(winners)
        ties = {cell for cells in close.values() for cell in cells}
        # What has its times keeps them: they are what another process will find in the records.
        rows = {
            place: [cell for cell in cells if (place, cell) not in self._tried]
            for place, cells in (self._winners(winners) | close).items()
        }
        rows = {place: cells for place, cells in rows.items() if cells}
        self._tried.update((place, cell) for place, cells in rows.items() for cell in cells)
        missing = {place: cells for place, cells in rows.items() if not self._look_up(place, cells)}
        if missing and not grid.pinned():
            wanted = {cell: place for place, cells in missing.items() for cell in cells}
            self._compile(wanted, {cell for cell in wanted if cell not in ties})
            for place, cells in missing.items():
                self._measure(place, cells)
            self.records.save()

    def _winners(self, winners: Sequence[str]) -> dict[int, list[Cell]]:
        """By the place of a range its winner, where that may come to run other kernels."""
        alone = len(self.branches.merge(winners)) == 1
        if alone or not depend_on_hints(self.records.bench.device):
            return {}
        return {
            place: [self.branches.cell(winners, place, winner)]
            for place, winner in enumerate(winners)
            if self.measured[place].probes and all(row for _, row in self.measured[place].probes)
        }

    def _close(self, winners: Sequence[str]) -> dict[int, list[Cell]]:
        """By the place of a range who nearly ties there, the winner first."""
        if len(self.branches.merge(winners)) == 1:
            return {}
        known = self._known(winners)
        ties = []
        for place, winner in enumerate(winners):
            rivals = close(known[place].row, winner, self.rules, config.remeasure_margin)
            if rivals and all(row for _, row in known[place].probes):
                labels = [winner, *(label for _, label in rivals)]
                ties.append((abs(rivals[0][0]), place, labels))
        found = {}
        for _, place, labels in sorted(ties):
            cells = [self.branches.cell(winners, place, label) for label in labels]
            while cells and len(self._tied.union(cells)) > config.remeasure_most:
                cells.pop()
            if len(cells) > 1:
                self._tied.update(cells)
                found[place] = cells
        return found

    def _look_up(self, place: int, cells: Iterable[Cell]) -> bool:
        """Take the times from the records; False where they do not have all of them."""
        rows = {}
        for label, branch in cells:
            name = self.branches.name(branch)
            row = [self.records.find(label, point, name) for point in self.points[place]]
            rows[place, (label, branch)] = [m for m in row if m is not None]
            if None in row:
                return False
        self._times.update(rows)
        progress.more(len(rows) * len(self.points[place]))
        for i, point in enumerate(self.points[place]):
            progress.row(point.size, [row[i] for row in rows.values()], 0)
        return True

    def _compile(self, cells: Mapping[Cell, int], other_kernels: Set[Cell]) -> None:
        """Generate cells, given the place of a range of each, and compile what is other code.

        Of ``other_kernels``, only what has other kernels. What can't be generated for its branch is
        generated for all sizes when it comes to that.
        """
        new = {cell: place for cell, place in cells.items() if cell not in self._modules}
        self._modules.update(dict.fromkeys(new))

        def without(cell: Cell, reason: Exception) -> None:
            log.debug("%s: %s is not made for %s", self._op, *cell, exc_info=reason)
            self._modules[cell] = None

        with compiled_together() as finish:
            for cell, place in new.items():
                try:
                    code = self._other_code(cell, place, cell in other_kernels)
                    if code is None:
                        same = (
                            "has the same kernels" if cell in other_kernels else "is the same code"
                        )
                        log.debug("%s: %s %s for %s", self._op, cell[0], same, cell[1])
                        continue
                    log.info("%s: compiling %s for %s", self._op, *cell)
                    self._modules[cell] = code.compile()
                except Exception as reason:
                    without(cell, reason)
            for cell in new:
                module = self._modules[cell]
                try:
                    if module is not None:
                        finish(module.function)
                except Exception as reason:
                    without(cell, reason)

    def _other_code(self, cell: Cell, place: int, other_kernels: bool) -> Generated | None:
        """The code of ``cell``; None where it is that for all sizes, or has as many kernels."""
        label, branch = cell
        known = self.branches.known(branch)
        if known is None or self.branches.is_inlined(branch):
            return None
        progress.phase("compile", f"{label} for {branch}")
        bench, contender = self.records.bench, self._contender(label)
        first = contender.module_at(self.points[place][0])
        plain = first or tuner.generate(bench, contender, self._middle)
        own = tuner.generate(bench, contender, self.points[place][-1], known)
        aspect = number_of_kernels if other_kernels else str
        return None if aspect(own.code) == aspect(plain.code) else own

    def _contender(self, label: str) -> Contender:
        return next(c for c in self.records.contenders if c.candidate.label == label)

    @property
    def _op(self) -> str:
        return self.records.bench.call.op.name()

    def _measure(self, place: int, cells: Sequence[Cell]) -> None:
        """Time ``cells`` in one row at each probe of a range, unless none of them is other code."""
        points = self.points[place]
        contenders = [self._entrant(cell, points) for cell in cells]
        rows: list[Row] = []
        for point, (_, first) in zip(points, self.measured[place].probes, strict=True):
            before = {m.label: m for m in first}
            row = [before[label] for label, _ in cells]
            if any(contender.branch is not None for contender in contenders):
                again = tuner.measure(self.records.bench, contenders, point)
                if not again or not _comparable(row, again):
                    return
                progress.more(len(again))
                progress.row(point.size, again, len(again))
                row = again
            rows.append(row)
        for cell, times in zip(cells, zip(*rows, strict=True), strict=True):
            self._times[place, cell] = list(times)
            for point, measurement in zip(points, times, strict=True):
                self.records.put(cell[0], point, measurement, self.branches.name(cell[1]))

    def _entrant(self, cell: Cell, points: Sequence[Point]) -> Contender:
        contender, module = self._contender(cell[0]), self._modules.get(cell)
        if module is None or not all(map(module.serves, points)):
            return contender
        return Contender(contender.candidate, lambda: contender.graph, [module], branch=cell[1])


def _comparable(one: Row, other: Row) -> bool:
    return len({m.method for m in (*one, *other) if m.error is None}) <= 1
