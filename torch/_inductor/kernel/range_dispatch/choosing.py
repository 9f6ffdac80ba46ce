"""From measurements to winners. Plain Python: the same measurements always give the same plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch._inductor.kernel.range_dispatch.ranges import Range


@dataclass(frozen=True)
class Measurement:
    """One candidate at one probe.

    Attributes:
        label: The candidate.
        milliseconds: Time of one call; infinite where it could not be run.
        spread: How far the rounds differ, in milliseconds.
        error: Why it could not be run, or may not be used.
        everywhere: Whether the error puts it out for all ranges, and not for this one alone.
        method: How it was timed. Times by different methods are not compared.
    """

    label: str
    milliseconds: float
    spread: float = 0.0
    error: str | None = None
    everywhere: bool = False
    method: str = ""


@dataclass(frozen=True)
class RangeResult:
    """What was measured for one range, and who won.

    Attributes:
        range: The range of sizes.
        probe: The size that was measured; None where nothing had to be or could be.
        measurements: One for each candidate, in registration order, the op itself last; empty
            where nothing was measured.
        winner: Label of the winning candidate.
        probes: Where several sizes were measured, each with what was measured there; then
            ``probe`` is the largest, and ``measurements`` are the geometric means.
        as_generated: The candidates whose times here are of the code of a branch. The other times
            are of code for all sizes.
    """

    range: Range
    probe: int | None
    measurements: tuple[Measurement, ...]
    winner: str
    probes: tuple[tuple[int, tuple[Measurement, ...]], ...] = ()
    as_generated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rules:
    """How winners are chosen.

    Attributes:
        op: Label of the op itself, which wins where nothing else can.
        threshold: How many times as fast as the op another candidate must be.
        noise: Relative difference below which two candidates count as equally fast. Where the
            measured spread is larger, that counts.
        force: True: an implementation wins wherever one can run; False: the op itself does.
    """

    op: str
    threshold: float = 1.0
    noise: float = 0.0
    force: bool | None = None


def combine(rows: Sequence[Sequence[Measurement]]) -> list[Measurement]:
    """One row for a range of which several sizes were measured, in which each size counts alike.

    A candidate's time is the geometric mean of its times; one that fails at a size fails.

    >>> (combined,) = combine([[Measurement("a", 1.0)], [Measurement("a", 4.0)]])
    >>> combined.milliseconds
    2.0
    """
    measured = [row for row in rows if row]
    if len(measured) < 2:
        return list(measured[0]) if measured else []
    return [_mean(column) for column in zip(*measured, strict=True)]


def _mean(column: Sequence[Measurement]) -> Measurement:
    failed = next((m for m in column if m.error is not None), None)
    if failed is not None:
        return failed
    times = [m.milliseconds for m in column]
    if min(times) <= 0:
        return replace(column[0], milliseconds=0.0)
    mean = math.exp(sum(map(math.log, times)) / len(times))
    spread = max(m.spread / m.milliseconds for m in column) * mean
    return Measurement(column[0].label, mean, spread)


def rule_out(rows: Sequence[Sequence[Measurement]]) -> list[list[Measurement]]:
    """``rows`` with what is out everywhere out in each of them, also where it was measured."""
    out = {m.label: m for row in rows for m in row if m.everywhere}
    return [[out.get(m.label, m) for m in row] for row in rows]


def choose(rows: Sequence[Sequence[Measurement]], rules: Rules) -> list[str]:
    """The winner of each range, given its row of measurements; ranges in ascending order.

    A candidate is good enough for a range if it is as fast as the fastest one there, up to the
    noise, and beats the op by the threshold. Of the plans in which every range runs a candidate
    that is good enough, the one with the fewest changes between neighbours is taken, then the
    fastest, then the one registered first. A row without measurements takes any candidate.
    Where a plan of several candidates is not better in total than a single one by the threshold,
    the single one is used throughout, if it too is the op or beats it by the threshold everywhere.

    >>> row = lambda a, b, op: [Measurement("a", a), Measurement("b", b), Measurement("op", op)]
    >>> choose([row(1, 2, 3), row(4, 2, 3)], Rules("op"))
    ['a', 'b']
    >>> choose([row(1.0, 1.01, 3), row(2.02, 2.0, 3)], Rules("op", noise=0.02))  # flat: no split
    ['b', 'b']
    >>> choose([row(1, 2, 3), row(1, 2, 3)], Rules("op", threshold=4))
    ['op', 'op']
    """
    labels = list(dict.fromkeys([*(m.label for row in rows for m in row), rules.op]))
    if rules.force is False or len(labels) == 1:
        return [rules.op] * len(rows)
    times = [{m.label: m.milliseconds for m in row} for row in rows]
    good = [_good_enough(row, rules) for row in rows]
    plan = _fewest_changes(labels, times, good, rules.op)
    single = _best_single(rows, times, labels, rules)
    if single is not None and len(set(plan)) > 1:
        total = sum(time.get(label, 0.0) for time, label in zip(times, plan, strict=True))
        alone = sum(time.get(single, 0.0) for time in times)
        if total >= alone or total * rules.threshold > alone:
            return [single] * len(rows)
    return plan


def close(
    row: Sequence[Measurement], winner: str, rules: Rules, margin: float
) -> list[tuple[float, str]]:
    """Who might win a range in place of ``winner``, if times were others by up to ``margin``.

    The op's time counts with the threshold: another candidate has to beat it by that.

    Returns:
        For each one by how much its time is above the winner's, relatively, and its label; the
        closest first. What is faster than the winner, and did not win for its changes, is below 0.

    >>> row = [Measurement("a", 1.0), Measurement("b", 1.0625), Measurement("op", 1.25)]
    >>> close(row, "a", Rules("op"), 0.1)
    [(0.0625, 'b')]
    >>> close(row, "a", Rules("op", threshold=1.25), 0.1)
    [(0.0, 'op'), (0.0625, 'b')]
    """
    times = {
        m.label: m.milliseconds / (rules.threshold if m.label == rules.op else 1.0)
        for m in row
        if m.error is None and math.isfinite(m.milliseconds)
    }
    own = times.pop(winner, 0.0)
    if own <= 0:
        return []
    above = sorted((time / own - 1, label) for label, time in times.items())
    return [(distance, label) for distance, label in above if distance <= margin]


def _good_enough(row: Sequence[Measurement], rules: Rules) -> set[str]:
    """Labels that may win this row; empty means that any may."""
    if not row:
        return set()
    able = {m.label: m for m in _eligible(row, rules)}
    if not able:
        return {rules.op}
    best = min(able.values(), key=lambda m: m.milliseconds)
    return {label for label, m in able.items() if not beats(best, m, rules.noise)}


def _eligible(row: Sequence[Measurement], rules: Rules) -> list[Measurement]:
    """What can run here and, other than the op itself, beats the op by the threshold."""
    ran = [m for m in row if math.isfinite(m.milliseconds)]
    op = next((m for m in ran if m.label == rules.op), None)
    if op is None:
        return ran
    others = [
        m
        for m in ran
        if m is not op
        and (
            rules.force
            or (
                m.milliseconds < op.milliseconds
                and m.milliseconds * rules.threshold <= op.milliseconds
            )
        )
    ]
    return others if rules.force and others else [*others, op]


def may_win(row: Sequence[Measurement], label: str, rules: Rules) -> bool:
    """Whether ``label`` is the op itself, or beats it by the threshold; anything does unmeasured.

    >>> row = [Measurement("a", 1.0), Measurement("b", 4.0), Measurement("op", 3.0)]
    >>> may_win(row, "a", Rules("op")), may_win(row, "b", Rules("op"))
    (True, False)
    """
    return not row or label == rules.op or label in {m.label for m in _eligible(row, rules)}


def slower(pairs: Sequence[tuple[Measurement, Measurement]], rules: Rules) -> bool:
    """Whether the first of each pair is slower than the second, which has to be worth a change.

    >>> slower([(Measurement("in", 3.0), Measurement("out", 2.0))], Rules("op", noise=0.02))
    True
    >>> slower([(Measurement("in", 3.0), Measurement("out", 2.0))], Rules("op", threshold=2))
    False
    """
    return bool(pairs) and all(
        beats(other, one, rules.noise) and other.milliseconds * rules.threshold <= one.milliseconds
        for one, other in pairs
    )


def beats(one: Measurement, other: Measurement, noise: float) -> bool:
    """Whether ``one`` is faster than ``other`` by more than the noise."""
    margin = max(noise * one.milliseconds, one.spread + other.spread)
    return one.milliseconds + margin < other.milliseconds


def _fewest_changes(
    labels: Sequence[str],
    times: Sequence[dict[str, float]],
    good: Sequence[set[str]],
    op: str,
) -> list[str]:
    """Of the plans through the good labels the one with (changes, time, order) smallest."""
    if not any(good):
        return [op] * len(times)
    # For each label that can end the plan so far: its cost and the plan itself.
    best: dict[str, tuple[tuple[int, float, tuple[int, ...]], list[str]]] = {}
    for i, (time, allowed) in enumerate(zip(times, good, strict=True)):
        following = {}
        for order, label in enumerate(labels):
            if allowed and label not in allowed:
                continue
            spent = time.get(label, 0.0)
            options = [
                (
                    (changes + (label != last), total + spent, (*orders, order)),
                    [*plan, label],
                )
                for last, ((changes, total, orders), plan) in best.items()
            ]
            following[label] = min(options) if i else ((0, spent, (order,)), [label])
        best = following
    return min(best.values())[1]


def _best_single(
    rows: Sequence[Sequence[Measurement]],
    times: Sequence[dict[str, float]],
    labels: Sequence[str],
    rules: Rules,
) -> str | None:
    """The fastest label, in total, of those that may win at every probe."""
    able = [{m.label for m in _eligible(row, rules)} for row in rows if row]
    if not able:
        return None
    usable = [label for label in labels if label in set.intersection(*able)]
    measured = [time for row, time in zip(rows, times, strict=True) if row]
    return min(usable, key=lambda label: sum(t[label] for t in measured), default=None)
