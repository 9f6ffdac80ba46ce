"""Operands of a dispatch that are computed in its branches."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy

from torch._inductor import ir
from torch._inductor.kernel.range_dispatch.call import made_from, viewed
from torch._inductor.ops_handler import WrapperHandler
from torch._inductor.virtualized import V


@dataclass(frozen=True, eq=False)
class Inlined:
    """An operand that is computed in each branch, and is not in memory outside.

    Attributes:
        loops: How; a copy of what the graph around the branches would have computed.
        in_memory: Whether it is written to a buffer in the branch, as outside it would have been.
        views: What it is of their result, one of the other, as an expanded or a transposed one.
        needs: Buffers that the loops read and that are computed in the branch, too, by name.
    """

    loops: ir.Loops
    in_memory: bool
    views: tuple[ir.BaseView, ...] = ()
    needs: Mapping[str, Inlined] = field(default_factory=dict)

    def read_buffers(self) -> list[Any]:
        """The buffers of the graph being lowered that it reads."""
        names = [*self.loops.get_read_names()]
        known = {*V.graph.constants, *self.needs}
        own = [unboxed(V.graph.get_buffer(name)) for name in names if name not in known]
        return own + [buffer for need in self.needs.values() for buffer in need.read_buffers()]

    def symbols(self) -> set[sympy.Symbol]:
        """The sizes that it depends on."""
        sizes = [size for view in self.views for size in view.get_size()]
        own: set[sympy.Symbol] = set(self.loops.get_free_symbol_uses())
        own.update(*(need.symbols() for need in self.needs.values()))
        return own.union(*(sympy.sympify(size).free_symbols for size in sizes))

    def box(self, names: Mapping[str, str]) -> ir.TensorBox:
        """It as a tensor in the graph being lowered, in which its needs have these names."""
        with made_from(self.loops.origins):
            loops = _renamed(self.loops, names) if names else copy.copy(self.loops)
            box = ir.TensorBox.create(loops)
            if self.in_memory:
                box.realize()
        return viewed(box, self.views)


class _Renamed(WrapperHandler):
    """Has buffers read by other names."""

    def __init__(self, inner: Any, names: Mapping[str, str]) -> None:
        super().__init__(inner)
        self._names = names

    def load(self, name: str, index: sympy.Expr) -> Any:
        return self._inner.load(self._names.get(name, name), index)


def _renamed(loops: ir.Loops, names: Mapping[str, str]) -> ir.Loops:
    def inner(*indices: Any) -> Any:
        with V.set_ops_handler(_Renamed(V.get_ops_handler(), names)):
            return loops.inner_fn(*indices)

    return replace(loops, inner_fn=inner)


def unboxed(buffer: Any) -> Any:
    while isinstance(buffer, ir.MutableBox):
        buffer = buffer.data
    return buffer
