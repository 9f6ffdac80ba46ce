"""Split points, the ranges between them, and merging ranges that chose the same winner.

Plain Python on purpose: what is dispatched at run time is decided by these few rules, and
they are tested without compiling anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar


T = TypeVar("T")

DEFAULT_RANGE_UPPER_BOUND = 65536

# Blocks of matmul templates have 16 rows at least.
_SMALLEST_PART = 16


@dataclass(frozen=True, order=True)
class Range:
    """All sizes from ``start`` to ``end``, both included; ``end`` is ``math.inf`` for the last one.

    >>> Range(513, 2048).contains(2048), Range(513, 2048).contains(2049)
    (True, False)
    >>> print(Range(2049, math.inf))
    [2049, inf]
    """

    start: int
    end: int | float

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ValueError(f"a range starts at 0 or above, got start={self.start}")
        if self.end < self.start:
            raise ValueError(f"a range ends where it starts or above, got {self.start}..{self.end}")
        if self.end != math.inf and self.end != int(self.end):
            raise ValueError(f"a range ends at an integer or at infinity, got end={self.end}")

    @property
    def bounded(self) -> bool:
        return self.end != math.inf

    def contains(self, size: int) -> bool:
        return self.start <= size <= self.end

    def intersects(self, low: int | float, high: int | float) -> bool:
        """Whether some size of the closed interval ``[low, high]`` lies in this range."""
        return self.start <= high and low <= self.end

    def probe(self, upper_bound: int) -> int:
        """The size to measure this range at: its end, or ``upper_bound`` where it has none.

        >>> Range(0, 512).probe(65536), Range(513, math.inf).probe(65536)
        (512, 65536)
        """
        return int(self.end) if self.bounded else max(self.start, upper_bound)

    def __str__(self) -> str:
        end = str(int(self.end)) if self.bounded else "inf"
        return f"[{self.start}, {end}]"


def parts_of(whole: Range, probe: int, factor: int) -> tuple[Range, ...]:
    """Cut ``whole`` where a size is ``probe`` over a power of ``factor``, down to 16.

    >>> [str(r) for r in parts_of(Range(0, 256), 256, 4)]
    ['[0, 16]', '[17, 64]', '[65, 256]']
    >>> [str(r) for r in parts_of(Range(257, math.inf), 8192, 4)]
    ['[257, 512]', '[513, 2048]', '[2049, inf]']
    >>> [str(r) for r in parts_of(Range(0, 12), 12, 4)]
    ['[0, 12]']
    """
    ends: list[int | float] = [whole.end]
    size = probe // factor
    while size >= max(_SMALLEST_PART, whole.start):
        if size < whole.end:
            ends.append(size)
        size //= factor
    ends.reverse()
    starts = [whole.start, *(int(end) + 1 for end in ends[:-1])]
    return tuple(Range(start, end) for start, end in zip(starts, ends, strict=True))


def ranges_from_split_points(split_points: Sequence[int]) -> tuple[Range, ...]:
    """Cut ``[0, inf)`` after each split point.

    A size equal to a split point belongs to the range that ends there. The first range starts
    at 0, since an empty dimension has to run somewhere.

    >>> [str(r) for r in ranges_from_split_points([512, 2048])]
    ['[0, 512]', '[513, 2048]', '[2049, inf]']
    """
    starts = [0, *(point + 1 for point in split_points)]
    ends: list[int | float] = [*split_points, math.inf]
    return tuple(Range(start, end) for start, end in zip(starts, ends, strict=True))


def reachable(ranges: Sequence[Range], low: int | float, high: int | float) -> tuple[Range, ...]:
    """The ranges that a size known to lie in ``[low, high]`` can fall into.

    >>> [str(r) for r in reachable(ranges_from_split_points([4, 8, 16]), 6, 10)]
    ['[5, 8]', '[9, 16]']
    """
    return tuple(r for r in ranges if r.intersects(low, high))


def merge_neighbours(
    winners: Sequence[tuple[Range, T]], same: Callable[[T, T], bool]
) -> list[tuple[Range, T]]:
    """Join neighbouring ranges whose winners are the same; the lower one's stands for both.

    ``winners`` is in ascending order. Ranges between two entries may be missing (they cannot
    occur); what is left keeps its order and still covers every size that can.

    >>> ranges = ranges_from_split_points([512, 1024, 2048])
    >>> merged = merge_neighbours(list(zip(ranges, "aabc")), lambda x, y: x == y)
    >>> [(str(r), w) for r, w in merged]
    [('[0, 1024]', 'a'), ('[1025, 2048]', 'b'), ('[2049, inf]', 'c')]
    """
    merged: list[tuple[Range, T]] = []
    for current, winner in winners:
        if merged and same(merged[-1][1], winner):
            previous, kept = merged[-1]
            merged[-1] = (Range(previous.start, current.end), kept)
        else:
            merged.append((current, winner))
    return merged
