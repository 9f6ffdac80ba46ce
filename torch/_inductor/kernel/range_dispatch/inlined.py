"""Operands of a dispatch that are computed in its branches."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import sympy

from torch._inductor import ir
from torch._inductor.kernel.range_dispatch.call import made_from, viewed
from torch._inductor.virtualized import V


@dataclass(frozen=True, eq=False)
class Inlined:
    """An operand that is computed in each branch, and is not in memory outside.

    Attributes:
        loops: How; a copy of what the graph around the branches would have computed.
        in_memory: Whether it is written to a buffer in the branch, as outside it would have been.
        views: What it is of their result, one of the other, as an expanded or a transposed one.
    """

    loops: ir.Loops
    in_memory: bool
    views: tuple[ir.BaseView, ...] = ()

    def read_buffers(self) -> list[Any]:
        """The buffers of the graph being lowered that it reads."""
        names = self.loops.get_read_names()
        found = [V.graph.get_buffer(name) for name in names if name not in V.graph.constants]
        return [_unboxed(buffer) for buffer in found]

    def symbols(self) -> set[sympy.Symbol]:
        """The sizes that it depends on."""
        sizes = [size for view in self.views for size in view.get_size()]
        own: set[sympy.Symbol] = set(self.loops.get_free_symbol_uses())
        return own.union(*(sympy.sympify(size).free_symbols for size in sizes))

    def box(self) -> ir.TensorBox:
        with made_from(self.loops.origins):
            box = ir.TensorBox.create(copy.copy(self.loops))
            if self.in_memory:
                box.realize()
        return viewed(box, self.views)


def _unboxed(buffer: Any) -> Any:
    while isinstance(buffer, ir.MutableBox):
        buffer = buffer.data
    return buffer
