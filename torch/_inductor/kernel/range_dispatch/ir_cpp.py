"""The flat dispatch node in C++: ``cpp_wrapper=True`` and AOTInductor.

The outputs are declared before the chain, and each branch moves its own into them. A branch is
a block of C++, written through the outer wrapper, so what it declares ends with it: the memos of
"this is declared already" must not outlive the block, and each block is planned by itself.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TYPE_CHECKING

from torch._inductor import config as inductor_config
from torch._inductor.codegen.common import IndentedBuffer
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.codegen.cpp_wrapper_gpu import CppWrapperGpu
from torch._inductor.codegen.wrapper import FreeLine, WrapperLine
from torch._inductor.kernel.range_dispatch import compat, profiling
from torch._inductor.kernel.range_dispatch.chain import Arm, CPP, write_arms
from torch._inductor.virtualized import V
from torch.utils._ordered_set import OrderedSet


if TYPE_CHECKING:
    from torch._inductor.kernel.range_dispatch.ir import BranchLowering, RangeDispatch


# Wrappers derived from these do other things with buffers (stack allocation, Metal).
WRAPPERS = frozenset({CppWrapperCpu, CppWrapperGpu})


def write_dispatch(
    wrapper: CppWrapperCpu,
    node: RangeDispatch,
    dying: OrderedSet[str],
    donated: OrderedSet[str],
) -> None:
    """Generate the branches of ``node``.

    ``dying`` are the outer buffers that end with it, ``donated`` those of them whose memory the
    branches may write to.
    """
    outputs = node.output_names()
    for name in outputs:
        if name is not None:
            wrapper.writeline(f"RAIIAtenTensorHandle {name};")
    bodies = [
        node.generate(branch, lambda b: _generate(wrapper, b, dying, donated, outputs))
        for branch in node.branches
    ]
    size = wrapper.codegen_sizevar(node.size)
    wrapper.writeline(CppDispatchLine(wrapper, node.get_name(), size, bodies))


@dataclass(frozen=True)
class _Body:
    graph: BranchLowering
    lines: list[Any]


def _generate(
    wrapper: CppWrapperCpu,
    branch: BranchLowering,
    dying: OrderedSet[str],
    donated: OrderedSet[str],
    outputs: Sequence[str | None],
) -> _Body:
    outer = V.graph
    # Memory pools would be declared in one block and used in another.
    settings = {"graph_partition": False, "memory_planning": False}
    settings |= branch.branch.config_patches
    with (
        _block_of_its_own(wrapper),
        _codegened(wrapper, branch),
        inductor_config.patch(settings),
    ):
        # The scheduler frees what is not freed yet: of the operands, those that end here.
        wrapper.freed |= OrderedSet(branch.graph_inputs) - dying
        branch.wrapper_code = wrapper
        for shared in ("device_ops", "device_types", "device_idxs", "device_type"):
            setattr(branch, shared, getattr(outer, shared))
        branch.schedule(outer, donated)
        branch.generate_kernels()
        _hand_over(wrapper, branch, outputs)
        if unused := dying - wrapper.freed - _freed_in(wrapper.lines):
            wrapper.lines.insert(0, wrapper.make_free_by_names(list(unused)))
        wrapper.run_wrapper_ir_passes(branch.is_inference)
        return _Body(branch, wrapper.lines)


@contextlib.contextmanager
def _block_of_its_own(wrapper: CppWrapperCpu) -> Iterator[None]:
    """Collect lines for a block, whose declarations are unknown outside of it."""
    outside = {name: getattr(wrapper, name) for name in compat.block_state(wrapper)}
    try:
        for name, value in outside.items():
            setattr(wrapper, name, copy.copy(value))
        wrapper.lines = []
        yield
    finally:
        for name, value in outside.items():
            setattr(wrapper, name, value)


@contextlib.contextmanager
def _codegened(wrapper: CppWrapperCpu, branch: BranchLowering) -> Iterator[None]:
    with V.set_graph_handler(branch):
        wrapper.push_codegened_graph(branch)
        try:
            yield
        finally:
            wrapper.pop_codegened_graph()


def _hand_over(
    wrapper: CppWrapperCpu, branch: BranchLowering, outputs: Sequence[str | None]
) -> None:
    """Move the branch's outputs into those of the node."""
    for name, output in zip(outputs, branch.graph_outputs, strict=True):
        if name is not None:
            wrapper.writeline(f"{name} = std::move({output.codegen_reference()});")


def _freed_in(lines: Sequence[Any]) -> OrderedSet[str]:
    return OrderedSet(line.node.get_name() for line in lines if isinstance(line, FreeLine))


class CppDispatchLine(WrapperLine):
    """The comparison chain with its blocks. To the planner of the code around it, one line."""

    def __init__(
        self, wrapper: CppWrapperCpu, name: str, size: str, bodies: Sequence[_Body]
    ) -> None:
        self.wrapper = wrapper
        self.name = name
        self.size = size
        self.bodies = bodies

    def codegen(self, code: IndentedBuffer) -> None:
        arms = [
            Arm(body.graph.branch.end, partial(self._write, code, body)) for body in self.bodies
        ]
        write_arms(code, CPP, self.name, self.size, arms)

    def _write(self, code: IndentedBuffer, body: _Body) -> None:
        profiling.write_cpp(code, self.name, body.graph.name)
        # A kernel's call is written, and the kernel tuned, when its line is.
        own = compat.tuning_examples_of_its_own(self.wrapper)
        with _codegened(self.wrapper, body.graph), own:
            for line in body.lines:
                if isinstance(line, WrapperLine):
                    line.codegen(code)
                else:
                    code.writeline(line)
