"""What the benchmarks share to show their figures: means, tables, files that grow line by line."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO


Record = dict[str, Any]


class Records:
    """Records in memory and, as they come, as lines of JSON in a file: a killed run keeps them."""

    def __init__(self, path: Path | None = None) -> None:
        self.all: list[Record] = []
        self._file: TextIO | None = path.open("w") if path else None

    def add(self, kind: str, **values: Any) -> None:
        record = {"kind": kind, **values}
        self.all.append(record)
        if self._file:
            print(json.dumps(record), file=self._file, flush=True)


def read_records(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def geomean(values: Iterable[float]) -> float:
    """
    >>> round(geomean([1, 4]), 6)
    2.0
    """
    return math.exp(statistics.mean(map(math.log, values)))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the header, its columns aligned.

    >>> print(markdown([["a", "b"], ["10", "2"]]))
    | a  | b |
    | -- | - |
    | 10 | 2 |
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    header, *body = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "| " + " | ".join("-" * w for w in widths) + " |"
    return "\n".join([header, rule, *body])


def say(message: str) -> None:
    """Progress, which is not part of the figures."""
    print(message, file=sys.stderr, flush=True)
