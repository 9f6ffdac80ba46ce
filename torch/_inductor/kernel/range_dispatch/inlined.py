"""Operands of a dispatch that are computed in its branches."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch._inductor import ir
from torch._inductor.virtualized import V


@dataclass(frozen=True, eq=False)
class Inlined:
    """An operand that is computed in each branch, and is not in memory outside.

    Attributes:
        loops: How; a copy of what the graph around the branches would have computed.
        in_memory: Whether it is written to a buffer in the branch, as outside it would have been.
    """

    loops: ir.Loops
    in_memory: bool

    def read_buffers(self) -> list[Any]:
        """The buffers of the graph being lowered that it reads."""
        names = self.loops.get_read_names()
        found = [V.graph.get_buffer(name) for name in names if name not in V.graph.constants]
        return [_unboxed(buffer) for buffer in found]

    def box(self) -> ir.TensorBox:
        with ir.IRNode.current_origins(self.loops.origins):
            box = ir.TensorBox.create(copy.copy(self.loops))
            if self.in_memory:
                box.realize()
        return box


def _unboxed(buffer: Any) -> Any:
    while isinstance(buffer, ir.MutableBox):
        buffer = buffer.data
    return buffer
