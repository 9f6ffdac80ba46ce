"""The shape of a dispatch in generated code, whatever the language: which size is compared when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol


# More arms than this are found by halving, so that the chain stays short.
LONGEST_CHAIN = 8


class Code(Protocol):
    """What lines are generated into; Inductor's ``IndentedBuffer`` is one."""

    def writeline(self, line: str) -> None: ...

    def indent(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Syntax:
    """How a language writes it, as format strings over ``size``, ``end`` and ``name``.

    Attributes:
        begin: The first line of a block: of an "if", an "elif" and an "else".
        finish: Its last line, behind the indented ones; None if there is none.
        declare: Gives a size that has to be computed a name.
    """

    begin: Mapping[str, str]
    finish: str | None
    declare: str


PYTHON = Syntax(
    {"if": "if {size} <= {end}:", "elif": "elif {size} <= {end}:", "else": "else:"},
    None,
    "{name} = {size}",
)
CPP = Syntax(
    {
        "if": "if ({size} <= {end}L) {{",
        "elif": "else if ({size} <= {end}L) {{",
        "else": "else {{",
    },
    "}",
    "int64_t {name} = {size};",
)


@dataclass(frozen=True)
class Arm:
    """What runs for sizes up to ``end`` that no earlier arm takes; the last has no end."""

    end: int | None
    write: Callable[[], None]


def write_arms(code: Code, syntax: Syntax, node: str, size: str, arms: Sequence[Arm]) -> None:
    """Write the arms of ``node``, a name unique in the scope, that ``size`` chooses between."""
    if not size.isidentifier():
        name = f"{node}_size"
        code.writeline(syntax.declare.format(name=name, size=size))
        size = name

    @contextmanager
    def block(kind: str, end: int | None) -> Iterator[None]:
        code.writeline(syntax.begin[kind].format(size=size, end=end))
        with code.indent():
            yield
        if syntax.finish is not None:
            code.writeline(syntax.finish)

    write_chain(arms, block)


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
