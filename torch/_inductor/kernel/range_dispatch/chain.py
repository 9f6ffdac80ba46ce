"""The shape of a dispatch in generated code, whatever the language: which size is compared when."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass


# More arms than this are found by halving, so that the chain stays short.
LONGEST_CHAIN = 8


@dataclass(frozen=True)
class Arm:
    """What runs for sizes up to ``end`` that no earlier arm takes; the last has no end."""

    end: int | None
    write: Callable[[], None]


def write_chain(
    arms: Sequence[Arm], block: Callable[[str, int | None], AbstractContextManager[None]]
) -> None:
    """Write the arms, in ascending order of their ends.

    Args:
        arms: The arms. ``write`` is called inside of the arm's block.
        block: Given "if", "elif" or "else" and the end to compare with, opens that block of the
            generated code and closes it again.

    >>> from contextlib import contextmanager
    >>> @contextmanager
    ... def block(kind, end):
    ...     print(kind, end)
    ...     yield
    >>> write_chain([Arm(end, lambda: None) for end in (4, 8, None)], block)
    if 4
    elif 8
    else None
    """
    if len(arms) > LONGEST_CHAIN:
        half = len(arms) // 2
        with block("if", arms[half - 1].end):
            write_chain(arms[:half], block)
        with block("else", None):
            write_chain(arms[half:], block)
        return
    for i, arm in enumerate(arms):
        kind = "else" if i == len(arms) - 1 else "elif" if i else "if"
        with block(kind, None if kind == "else" else arm.end):
            arm.write()
