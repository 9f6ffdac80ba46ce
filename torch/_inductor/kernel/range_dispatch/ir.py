"""The flat dispatch node: one comparison chain on a host integer, each branch generated in place.

Stock lowers a nested ``torch.cond`` to Python functions that call functions, one level a split
point, and frees operands in the first branch only. Here the nest becomes one n-ary node. In the
generated wrapper it is a single ``if / elif / else`` whose bodies are what a graph of that branch
alone would be: its own memory plan, its own config patches, its operands freed at their last use.
A branch reads the outer buffers by their names and assigns the outputs by theirs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import sympy

import torch
from torch._inductor import config as inductor_config
from torch._inductor import ir
from torch._inductor.codegen.common import (
    get_device_op_overrides,
    get_wrapper_codegen_for_device,
    IndentedBuffer,
)
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.codegen.wrapper import (
    FreeIfNotReusedLine,
    PythonWrapperCodegen,
    SubgraphPythonWrapperCodegen,
    WrapperLine,
)
from torch._inductor.graph import GraphLowering, SubgraphLowering
from torch._inductor.kernel.range_dispatch import compat, ir_cpp, profiling
from torch._inductor.kernel.range_dispatch.call import made_from
from torch._inductor.kernel.range_dispatch.chain import Arm, PYTHON, write_arms
from torch._inductor.kernel.range_dispatch.inlined import Inlined
from torch._inductor.kernel.range_dispatch.sizes import (
    BranchSizes,
    HintsDisagree,
    Known,
    SizesAsTraced,
)
from torch._inductor.kernel.range_dispatch.timing import templates_replayed
from torch._inductor.kernel.range_dispatch.triton_configs import as_measured
from torch._inductor.scheduler import NopKernelSchedulerNode, Scheduler
from torch._inductor.utils import convert_symint_to_expr, get_op_names, is_cudagraph_unsafe_op
from torch._inductor.virtualized import V
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._ordered_set import OrderedSet


log = logging.getLogger(__name__)
cudagraphs_log = torch._logging.getArtifactLogger(__name__, "cudagraphs")

T = TypeVar("T")


@dataclass(frozen=True)
class FlatBranch:
    """A branch to lower: ``graph`` runs for sizes up to ``end`` that no earlier branch takes.

    Attributes:
        end: The last size; None for the final else.
        name: Prefix of the branch's buffers, unique in the compiled module.
        graph: From the operands to a tuple of tensors.
        config_patches: Inductor settings for this branch's kernels alone.
        known: What holds of the sizes in this branch.
        continued: Whether the next branch computes the same for the next sizes, and is to run for
            these as well where it comes out the same.
    """

    end: int | None
    name: str
    graph: GraphModule
    config_patches: dict[str, Any] = field(default_factory=dict)
    known: Known | None = None
    continued: bool = False


def supported() -> bool:
    """Whether the wrapper that V.graph will be generated with knows the flat node.

    The FX wrapper, wrappers of other backends, and C++ whose kernels are tuned by running the
    graph at one size get the stock conditional.
    """
    graph = V.graph
    cpp = bool(graph.cpp_wrapper)
    if graph.fx_wrapper or cpp != inductor_config.cpp_wrapper or (graph.aot_mode and not cpp):
        return False
    wrappers = {
        get_wrapper_codegen_for_device(device, cpp_wrapper=cpp)
        for device in {"cpu", *graph.device_types}
        if device != "meta"
    }
    if cpp:
        return wrappers <= ir_cpp.WRAPPERS and not compat.tunes_by_running(graph)
    return wrappers == {PythonWrapperCodegen}


def lower_flat(
    branches: Sequence[FlatBranch],
    operands: Sequence[Any],
    fakes: Sequence[Any],
    size: sympy.Expr,
    outputs: Sequence[torch.Tensor],
    kept: Mapping[int, torch.Tensor],
) -> tuple[ir.TensorBox, ...]:
    """Lower every branch, and make the node that chooses between them.

    Args:
        branches: In ascending order; the last has no end.
        operands: Realized IR nodes, symbolic integers, and what is computed in the branches.
        fakes: The operands as fake tensors and symbolic integers.
        size: What is compared with the ends.
        outputs: The results of the branches' graphs, whose shapes and strides every branch has.
        kept: Operands that are computed in the branches and used outside, as their place and the
            strides that they are expected in. They are the last outputs.
    """
    for operand in operands:
        for buffer in operand.read_buffers() if isinstance(operand, Inlined) else ():
            buffer.decide_layout()
    values = _Values(operands, fakes, outputs, kept)
    node = RangeDispatch([_lower_branch(branch, values) for branch in branches], values, size)
    return tuple(node.add_output(i, fake) for i, fake in enumerate([*outputs, *kept.values()]))


class BranchLowering(SizesAsTraced, SubgraphLowering):
    """One branch as a graph of its own, whose inputs are the outer buffers themselves."""

    def __init__(self, branch: FlatBranch, values: _Values) -> None:
        parent = V.graph
        self.branch = branch
        self.values = values
        self.operands = iter(values.operands)
        self.inlined: dict[Inlined, ir.TensorBox] = {}
        # It may be lowered again when it is generated: nothing is being lowered then.
        self.being_lowered = compat.being_lowered()
        super().__init__(
            parent,
            gm=branch.graph,
            example_inputs=list(values.fakes),
            shape_env=parent._shape_env,
            cpp_wrapper=parent.cpp_wrapper,
            aot_mode=parent.aot_mode,
            extern_node_serializer=parent.extern_node_serializer,
            is_inference=parent.is_inference,
            is_backward=parent.is_backward,
            name=parent.qualify_name(branch.name),
        )
        self.bw_donated_idxs = None
        # The module that is loaded has one set of constants, and one scope for the sizes that
        # are computed once ("ps0"), so neither may be numbered again here.
        self.constants = parent.constants
        self.constant_reprs = parent.constant_reprs
        self.allocated_constant_name = parent.allocated_constant_name
        if branch.known is not None:
            self.sizevars = BranchSizes(parent.sizevars.shape_env, branch.known)
        for shared in ("precomputed_replacements", "inv_precomputed_replacements"):
            setattr(self.sizevars, shared, getattr(parent.sizevars, shared))
        self.output_names: list[str | None] = []
        self.dying: OrderedSet[str] = OrderedSet()

    def placeholder(self, target: str, args: Any, kwargs: Any) -> Any:
        self.placeholder_idx += 1
        operand = next(self.operands)
        # Takes the example of this placeholder; the base class would make an input of it.
        torch.fx.Interpreter.placeholder(self, target, args, kwargs)
        if isinstance(operand, Inlined):
            return self._computed_here(operand)
        if not isinstance(operand, ir.IRNode):
            return operand
        self.add_device_info(operand.get_device())
        with made_from(operand.origins):
            return ir.TensorBox(self._outer(operand))

    def _computed_here(self, operand: Inlined) -> ir.TensorBox:
        if operand not in self.inlined:
            with V.set_graph_handler(self.parent):
                buffers = operand.read_buffers()
            for buffer in buffers:
                self._outer(buffer)
            self.add_device_info(operand.loops.get_device())
            needs = {name: self._computed_here(need) for name, need in operand.needs.items()}
            self.inlined[operand] = operand.box({n: box.get_name() for n, box in needs.items()})
        return self.inlined[operand]

    def _outer(self, operand: Any) -> Any:
        """IR for a buffer of the outer graph, or for a strided view of one."""
        if isinstance(operand, ir.TensorBox):
            return self._outer(operand.data)
        if isinstance(operand, ir.ReinterpretView):
            return ir.ReinterpretView(data=self._outer(operand.data), layout=operand.layout)
        name = operand.get_name()
        if name not in self.graph_inputs:
            buffer = ir.InputBuffer(name=name, layout=operand.get_layout())
            self.graph_inputs[name] = ir.TensorBox(ir.StorageBox(buffer))
            self.graph_inputs_original[name] = buffer
            self.graph_input_names.append(name)
            if name in self.parent.unaligned_buffers:
                self.unaligned_buffers.add(name)
        return self.graph_inputs[name].data

    def init_wrapper_code(self, *args: Any, **kwargs: Any) -> None:
        accelerators = [t for t in self.device_types if t not in ("cpu", "meta")]
        self.device_type = accelerators[0] if accelerators else "cpu"
        self.device_ops = get_device_op_overrides(self.device_type)
        self.wrapper_code = BranchWrapper(self)

    def schedule(self, outer: GraphLowering, donated: OrderedSet[str]) -> None:
        """Make the scheduler. The device that ``outer`` is in need not be entered again.

        Kernels may write in place of the outer buffers ``donated``.
        """
        for name in donated & OrderedSet(self.graph_inputs_original):
            buffer = ir.DonatedBuffer(name=name, layout=self.graph_inputs_original[name].layout)
            self.graph_inputs_original[name] = buffer
        self._update_scheduler()
        with V.set_graph_handler(outer):  # which keeps it, on behalf of the scheduler
            device = outer.scheduler.current_device
        if all(node.get_device() in (None, device) for node in self.scheduler.nodes):
            self.scheduler.default_device_context = device
            compat.stay_on_stream(self.scheduler, outer.scheduler)

    def generate_kernels(self) -> None:
        self.scheduler.codegen()

    def generate(
        self, outer: GraphLowering, dying: OrderedSet[str], donated: OrderedSet[str]
    ) -> BranchWrapper:
        """Schedule and generate the branch.

        Args:
            outer: The graph that the node is in.
            dying: The outer buffers that end with the branch.
            donated: Those of them whose memory its kernels may write to.
        """
        self.dying = dying
        # A planner of memory pools would number them as the outer one does.
        settings = {"graph_partition": False, "memory_planning": False}
        settings |= self.branch.config_patches
        with (
            V.set_graph_handler(self),
            inductor_config.patch(settings),
            as_measured(),
            templates_replayed(),
        ):
            self.init_wrapper_code()
            self.schedule(outer, donated)
            self.wrapper_code.push_codegened_graph(self)
            self.generate_kernels()
            self.wrapper_code.generate(self.is_inference)
            self.wrapper_code.pop_codegened_graph()
        return self.wrapper_code


@dataclass(frozen=True)
class _Values:
    """What goes into every branch and comes out; see ``lower_flat``."""

    operands: Sequence[Any]
    fakes: Sequence[Any]
    outputs: Sequence[torch.Tensor]
    kept: Mapping[int, torch.Tensor]


def _lower_branch(branch: FlatBranch, values: _Values) -> BranchLowering:
    try:
        graph = _lowered(branch, values)
    except Exception as reason:
        if branch.known is None:
            raise
        log.debug("%s is lowered for the hints of the graph: %s", branch.name, reason)
        graph = _lowered(replace(branch, known=None), values)
    parent = graph.parent
    for device in graph.device_types:
        if device not in parent.device_types:
            parent.add_device_info(torch.device(device))
    parent.device_node_mapping = {**graph.device_node_mapping, **parent.device_node_mapping}
    if parent.disable_cudagraphs_reason is None:
        parent.disable_cudagraphs_reason = graph.disable_cudagraphs_reason
    return graph


def _lowered(branch: FlatBranch, values: _Values) -> BranchLowering:
    graph = BranchLowering(branch, values)
    with V.set_graph_handler(graph), inductor_config.patch(branch.config_patches):
        # A kernel is named after what it computes. That may be operands as well, or may not be.
        op = ir.IRNode._current_origins & OrderedSet([graph.parent.current_node])
        with templates_replayed(), made_from(op):
            graph.run(*values.fakes)
        results = [ir.TensorBox(output) for output in graph.graph_outputs]
        results += [graph.inlined[values.operands[place]] for place in values.kept]
        expected = [*values.outputs, *values.kept.values()]
        graph.graph_outputs = [
            ir.ExternKernel.require_exact_strides(
                result, [convert_symint_to_expr(s) for s in fake.stride()], allow_padding=False
            )
            for result, fake in zip(results, expected, strict=True)
        ]
    return graph


class BranchWrapper(SubgraphPythonWrapperCodegen):
    """Generates the body of a branch into the scope of the outer wrapper."""

    def __init__(self, graph: BranchLowering) -> None:
        self.graph = graph
        self.outer_freed: OrderedSet[str] = OrderedSet()
        super().__init__(graph.name, graph.parent.wrapper_code)

    def write_prefix(self, *args: Any, **kwargs: Any) -> None:
        """No function, no arguments, no checks of them: the outer wrapper did that."""

    def register_alignment_check_inputs(self, *args: Any, **kwargs: Any) -> None:
        """The outer wrapper did that."""

    def get_wrapper_call_indent(self) -> int:
        return 0

    def generate_return(self, output_refs: list[str]) -> None:
        for name, ref in zip(self.graph.output_names, output_refs, strict=True):
            if name is not None:
                self.wrapper_call.writeline(f"{name} = {ref}")
        # The scope does not end here, so what a return would let go of must be let go of.
        if bound := self._still_bound():
            self.wrapper_call.writeline(f"del {', '.join(bound)}")

    def _still_bound(self) -> list[str]:
        """What holds a tensor after all that has been generated: names of the branch's own, and
        outer ones that end here, since the planner drops what would be freed last.
        """
        bound: dict[str, None] = dict.fromkeys(self.outer_freed)
        own = re.escape(self.graph.name)
        for line in self.wrapper_call.getvalue().splitlines():
            # A conditional's argument lists are bound on one path only, and empty after the call.
            if assigned := re.match(rf"\s*({own}_\w+)(?<!_args) = ", line):
                bound[assigned.group(1)] = None
            for deleted in re.findall(r"\bdel ([\w, ]+)", line.partition("#")[0]):
                for name in deleted.split(", "):
                    bound.pop(name.strip(), None)
        return list(bound)

    def codegen_free(self, buffer: Any) -> None:
        name = buffer.get_name()
        if name not in self.graph.graph_inputs:
            super().codegen_free(buffer)
        elif self.may_free(name):
            self.outer_freed.add(name)
            if isinstance(self.graph.graph_inputs_original[name], ir.DonatedBuffer):
                self.freed.add(name)
                self.writeline(FreeIfNotReusedLine(self, buffer))
            else:
                self.writeline(f"del {name}")

    def codegen_inplace_reuse(self, input_buffer: Any, output_buffer: Any) -> None:
        super().codegen_inplace_reuse(input_buffer, output_buffer)
        if input_buffer.get_name() in self.graph.graph_inputs:
            self.outer_freed.add(input_buffer.get_name())

    def may_free(self, name: str) -> bool:
        """Whether an outer buffer ends in this branch, and has not yet."""
        return name in self.graph.dying and name not in self.outer_freed


class RangeDispatch(ir.ExternKernel):
    """Runs the first branch whose end is not below ``size``."""

    def __init__(
        self, branches: Sequence[BranchLowering], values: _Values, size: sympy.Expr
    ) -> None:
        self.branches = branches
        self.size = size
        operands = values.operands
        self.results: list[DispatchOutput] = []
        inlined = [operand for operand in operands if isinstance(operand, Inlined)]
        read = [operand for operand in operands if isinstance(operand, ir.IRNode)]
        read += [ir.TensorBox.create(b) for operand in inlined for b in operand.read_buffers()]
        devices = [node.get_device() for node in (*read, *(each.loops for each in inlined))]
        symbols = self._symbols(read).union(*(operand.symbols() for operand in inlined))
        super().__init__(
            name=None,
            layout=ir.MultiOutputLayout(
                device=next((d for d in devices if d.type != "cpu"), devices[0])
            ),
            inputs=[ir.ExternKernel.realize_input(node) for node in read],
            constant_args=sorted(symbols, key=str),
        )
        self.name = V.graph.register_buffer(self)
        V.graph.register_operation(self)
        self._stay_out_of_captures()

    def _symbols(self, operands: Iterable[Any]) -> set[sympy.Symbol]:
        """All that the bodies may refer to: a graph partition has to be given them."""
        exprs = [self.size]
        for operand in operands:
            exprs += [
                *operand.get_size(),
                *operand.get_layout().stride,
                operand.get_layout().offset,
            ]
        return set().union(*(sympy.sympify(expr).free_symbols for expr in exprs))

    def _stay_out_of_captures(self) -> None:
        """Where a branch can't be captured in a CUDA graph, have the node partition the graph.

        Without partitions the whole graph runs without CUDA graphs, as it would with the branch.
        """
        if self.get_device().type == "cpu":
            return
        hazard = self._hazard()
        if hazard is None:
            return
        cudagraphs_log.info("%s is not captured: %s", self.name, hazard)
        # The scheduler asks this node whether an operation is safe; this one never is.
        self.fx_node = torch.fx.Graph().call_function(torch.ops.aten._local_scalar_dense)
        if not inductor_config.graph_partition:
            root = V.graph
            while isinstance(root, SubgraphLowering):
                root = root.parent
            root.disable_cudagraphs_reason = root.disable_cudagraphs_reason or hazard

    def _hazard(self) -> str | None:
        """Why it can't be captured: what is in a branch, or sizes, each of which is recorded."""
        if free_unbacked_symbols(self.constant_args):
            return "a size that it has depends on data"
        return next(filter(None, map(_capture_hazard, self.branches)), None)

    def get_free_symbol_uses(self, unbacked_only: bool = False) -> OrderedSet[sympy.Symbol]:
        used = [ir.get_free_symbols(symbol, unbacked_only) for symbol in self.constant_args]
        return OrderedSet().union(*used)

    def add_output(self, index: int, fake: torch.Tensor) -> ir.TensorBox:
        layout = ir.FixedLayout(
            fake.device,
            fake.dtype,
            [convert_symint_to_expr(s) for s in fake.shape],
            [convert_symint_to_expr(s) for s in fake.stride()],
        )
        self.results.append(DispatchOutput(layout, self, [(list, index)]))
        self.results[-1].fx_node = getattr(self, "fx_node", None)
        return ir.TensorBox.create(self.results[-1])

    def output_names(self) -> list[str | None]:
        """What the branches assign; None for an output that nothing reads."""
        names = [result.get_name() for result in self.results]
        return [None if name in V.graph.removed_buffers else name for name in names]

    def codegen(self, wrapper: PythonWrapperCodegen) -> None:
        scheduler = V.graph.scheduler
        names = OrderedSet(name for branch in self.branches for name in branch.graph_inputs)
        ended = scheduler.buffer_names_to_free - V.graph.removed_buffers - wrapper.freed
        dying = OrderedSet(name for name in names if name in ended and _can_free(name, wrapper))
        shared = _shared_memory(scheduler)
        donated = OrderedSet(name for name in dying - shared if self._may_overwrite(name, wrapper))
        if isinstance(wrapper, CppWrapperCpu):
            ir_cpp.write_dispatch(wrapper, self, dying, donated)
        else:
            self._write_dispatch(wrapper, dying, donated)
        # Every path has freed them, and the node itself is no object at run time.
        wrapper.freed |= dying | OrderedSet([self.get_name()])

    def _may_overwrite(self, name: str, wrapper: PythonWrapperCodegen) -> bool:
        """Whether a branch's kernels may write in place of ``name``, which ends with the node.

        The rule is the scheduler's for kernels of one graph: a buffer that was allocated for one
        result, not part of another, and written on the stream that the node is on.
        """
        if isinstance(V.graph.graph_inputs_original.get(name), ir.DonatedBuffer):
            return True
        buffer = V.graph.scheduler.name_to_buf.get(name)
        if buffer is None or not wrapper.can_reuse(buffer.node):
            return False
        owned = type(buffer.node.get_output_spec()) in (ir.FixedLayout, ir.FlexibleLayout)
        joined = isinstance(buffer.defining_op, NopKernelSchedulerNode)
        return owned and not joined and not compat.on_another_stream(name, self)

    def _write_dispatch(
        self, wrapper: PythonWrapperCodegen, dying: OrderedSet[str], donated: OrderedSet[str]
    ) -> None:
        bodies = []
        for branch in self.branches:
            branch.output_names = self.output_names()
            body = self.generate(branch, lambda b: b.generate(V.graph, dying, donated))
            wrapper.imports.splice(body.imports)
            wrapper.header.splice(body.header)
            wrapper.subgraph_definitions.splice(body.subgraph_definitions)
            unused = dying - body.outer_freed
            flat = branch.branch
            bodies.append(_Body(branch.name, flat.end, body.wrapper_call, unused, flat.continued))
        if isinstance(wrapper, BranchWrapper):
            wrapper.outer_freed |= dying & wrapper.graph.dying
        size = wrapper.codegen_python_sizevar(self.size)
        wrapper.imports.splice(profiling.IMPORT)
        wrapper.writeline(DispatchLine(self.get_name(), size, _distinct(bodies)))

    def generate(self, branch: BranchLowering, write: Callable[[BranchLowering], T]) -> T:
        """What ``write`` makes of a branch; where its hints get in the way, of it without them."""
        if branch.branch.known is None:
            return write(branch)
        wrapper = V.graph.wrapper_code
        caches = [wrapper.src_to_kernel, wrapper.user_defined_kernel_cache]
        defined = [dict(cache) for cache in caches]
        try:
            with compat.sums_without_guards(HintsDisagree):
                return write(branch)
        except Exception as reason:
            log.debug("%s is generated for the hints of the graph: %s", branch.name, reason)
        # Kernels that were defined for what is thrown away.
        for cache, before in zip(caches, defined, strict=True):
            cache.clear()
            cache.update(before)
        with compat.lowered_normally(branch.being_lowered):
            plain = _lowered(replace(branch.branch, known=None), branch.values)
        plain.output_names = branch.output_names
        return write(plain)


def _capture_hazard(branch: BranchLowering) -> str | None:
    """Why a branch on an accelerator can't be captured in a CUDA graph."""
    for operation in branch.operations:
        device = operation.get_device()
        name = operation.get_operation_name()
        if isinstance(operation, RangeDispatch) and getattr(operation, "fx_node", None) is None:
            continue
        if isinstance(operation, ir.DeviceCopy) or (device is not None and device.type == "cpu"):
            return f"{name} of a branch works on the CPU"
        if getattr(operation, "unbacked_bindings", None):
            return f"{name} of a branch has a size that depends on data"
        if is_cudagraph_unsafe_op(operation):
            return f"{name} of a branch is not safe to capture"
        if _partitions(operation):
            return f"{name} of a branch is among config.custom_should_partition_ops"
    return None


def _partitions(operation: ir.Operation) -> bool:
    """Whether the user asks for partitions of the graph that end at ``operation``."""
    op = operation.op_overload if isinstance(operation, ir.FallbackKernel) else None
    asked = inductor_config.custom_should_partition_ops
    return op is not None and not set(get_op_names(op)).isdisjoint(asked)


def _shared_memory(scheduler: Scheduler) -> OrderedSet[str]:
    """Buffers whose memory another one has as well: views, and what is mutated."""
    shared: OrderedSet[str] = OrderedSet()
    for buffer in scheduler.name_to_buf.values():
        others = [*buffer.get_aliases(), *buffer.get_mutations()]
        shared.update([buffer.get_name(), *others] if others else [])
    return shared


def _can_free(name: str, wrapper: PythonWrapperCodegen) -> bool:
    buffer = V.graph.scheduler.name_to_buf.get(name)
    if buffer is not None:
        # Memory of a pool is not freed before the pool, and the planner of pools has to see that
        # the buffer lives until after the node.
        pooled = inductor_config.memory_planning and V.graph.is_inference
        return not pooled and bool(buffer.can_free())
    if isinstance(wrapper, BranchWrapper):
        return wrapper.may_free(name)
    return name in V.graph.graph_inputs


class DispatchOutput(ir.MultiOutput):
    """An output of the node. Each branch assigns it, so there is nothing to generate.

    It has to be in the partition that the node is in: to the scheduler it is what the node is.
    """

    def get_free_symbol_uses(self, unbacked_only: bool = False) -> OrderedSet[sympy.Symbol]:
        of_node = self.inputs[0].get_free_symbol_uses(unbacked_only)
        return super().get_free_symbol_uses(unbacked_only) | of_node

    def codegen(self, wrapper: PythonWrapperCodegen) -> None:
        pass


@dataclass(frozen=True)
class _Body:
    name: str
    end: int | None
    lines: IndentedBuffer
    unused: OrderedSet[str]
    continued: bool

    def runs(self) -> str:
        """What it does, but for the names of its own buffers."""
        return re.sub(rf"\b{re.escape(self.name)}_", "", self.lines.getvalue())


def _distinct(bodies: Sequence[_Body]) -> list[_Body]:
    """``bodies`` without those that are continued by one that does the same."""
    kept: list[_Body] = []
    for body in reversed(bodies):
        if not (
            body.continued and body.unused == kept[-1].unused and body.runs() == kept[-1].runs()
        ):
            kept.append(body)
    return kept[::-1]


class DispatchLine(WrapperLine):
    """The comparison chain with its bodies."""

    def __init__(self, name: str, size: str, bodies: Sequence[_Body]) -> None:
        self.name = name
        self.size = size
        self.bodies = bodies

    def codegen(self, code: IndentedBuffer) -> None:
        arms = [Arm(body.end, partial(self._write, code, body)) for body in self.bodies]
        write_arms(code, PYTHON, self.name, self.size, arms)
        profiling.write_end(code, self.name)

    def _write(self, code: IndentedBuffer, body: _Body) -> None:
        if body.unused:
            code.writeline(f"del {', '.join(body.unused)}")
        profiling.write_begin(code, self.name, body.name)
        code.splice(body.lines)
