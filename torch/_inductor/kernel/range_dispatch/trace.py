"""Tracing a candidate: symbolic, functional, without adding a guard, with the op's own outputs.

What a candidate returns is made to fit what the rest of the graph was traced with, the outputs
of the op itself: the same structure, shapes, dtypes, devices and strides, and storage of its
own. What cannot be made to fit is rejected with the reason.
"""

from __future__ import annotations

import contextlib
import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.utils import counters, get_inputs_devices
from torch._functorch.compile_utils import fx_graph_cse
from torch._inductor import ir
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import (
    decompose_auto_functionalized,
    decompose_triton_kernel_wrapper_functional,
)
from torch._inductor.fx_passes.reinplace import reinplace_inplaceable_ops_core
from torch._inductor.kernel.range_dispatch import compat
from torch._inductor.kernel.range_dispatch.call import BoundCall, Unsupported
from torch._inductor.kernel.range_dispatch.candidates import Candidate, invoke
from torch._inductor.utils import convert_to_symint
from torch._inductor.virtualized import V
from torch._library.utils import is_builtin
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx import GraphModule, traceback
from torch.fx.experimental import _config as symbolic_config
from torch.fx.experimental.proxy_tensor import make_fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree


log = logging.getLogger(__name__)


class Rejected(Exception):
    """A candidate that cannot stand in for the op; the message says why."""


@dataclass(frozen=True)
class Reference:
    """What the op itself returns: its tensors, flattened, and the structure around them."""

    outputs: tuple[torch.Tensor, ...]
    structure: Any

    def pack(self, outputs: Sequence[Any]) -> Any:
        """The flat ``outputs`` in the structure that the op returns."""
        return unflatten(self.structure, iter(outputs))


def fake_operands(call: BoundCall) -> tuple[Any, ...]:
    """The operands as fake tensors and symbolic integers with the sizes of the graph."""

    def fake(operand: Any) -> Any:
        if isinstance(operand, ir.IRNode):
            return ir.ir_node_to_tensor(operand)
        return convert_to_symint(operand)

    with V.fake_mode:
        return tuple(fake(operand) for operand in call.operands)


def reference(call: BoundCall, fakes: Sequence[Any]) -> Reference:
    """What the graph expects the call to return.

    Raises:
        Unsupported: The op returns something other than tensors (and None).
    """
    node = call.node or V.graph.current_node
    if node is not None and node.target is call.op and "val" in node.meta:
        returned = node.meta["val"]
    else:
        op = Candidate("", None, {}, {}, ())
        with V.fake_mode, _no_guards():
            returned = invoke(op, call, fakes)
    leaves: list[Any] = []
    structure = flatten(returned, leaves)
    if odd := [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, torch.Tensor)]:
        raise Unsupported(f"it returns a {odd[0]}")
    if not leaves:
        raise Unsupported("it returns no tensor")
    return Reference(tuple(leaves), structure)


def traceable(candidate: Candidate, call: BoundCall, ref: Reference) -> Callable[..., Any]:
    """The candidate as a function from the operands to a flat tuple of the op's output tensors.

    It has no side effects, its outputs alias nothing, and their strides are the op's.
    """

    def run(*operands: Any) -> tuple[torch.Tensor, ...]:
        returned = _functional(candidate, call)(*operands)
        leaves: list[Any] = []
        if flatten(returned, leaves) != ref.structure:
            expected_shown = _shown(ref.pack(ref.outputs))
            raise Rejected(f"it returns {_shown(returned)}, the op returns {expected_shown}")
        taken = {StorageWeakRef(t.untyped_storage()) for t in operands if _is_tensor(t)}
        outputs = []
        for i, (leaf, expected) in enumerate(zip(leaves, ref.outputs, strict=True)):
            _check_output(i, leaf, expected)
            fitted = with_strides(i, leaf, expected)
            if StorageWeakRef(fitted.untyped_storage()) in taken:
                fitted = fitted.clone()
            taken.add(StorageWeakRef(fitted.untyped_storage()))
            outputs.append(fitted)
        return _finished(call, ref, outputs, operands)

    return run


def _finished(
    call: BoundCall, ref: Reference, outputs: Sequence[torch.Tensor], operands: Sequence[Any]
) -> tuple[torch.Tensor, ...]:
    """What the call's consumers make of its outputs, in the strides that the graph expects."""
    finished = call.finish(outputs, operands)
    if finished is outputs:
        return tuple(outputs)
    taken = {StorageWeakRef(t.untyped_storage()) for t in operands if _is_tensor(t)}
    fitted = []
    for i, (leaf, expected) in enumerate(zip(finished, call.results(ref.outputs), strict=True)):
        result = with_strides(i, leaf, expected)
        if StorageWeakRef(result.untyped_storage()) in taken:
            result = result.clone()
        taken.add(StorageWeakRef(result.untyped_storage()))
        fitted.append(result)
    return tuple(fitted)


def trace(
    candidate: Candidate, call: BoundCall, ref: Reference, fakes: Sequence[Any]
) -> GraphModule:
    """Trace one candidate; the graph takes the operands and returns a tuple of tensors.

    Raises:
        Rejected: It cannot be traced, would add a guard, or does not return what the op returns.
    """
    return trace_function(traceable(candidate, call, ref), fakes)


def trace_function(function: Callable[..., Any], fakes: Sequence[Any]) -> GraphModule:
    """``make_fx`` with symbolic sizes under the fake mode of the graph, guards frozen.

    Where that asks for a guard, the operands are taken as they are: they are fake tensors of that
    mode already, and ``tracing_mode="symbolic"`` makes them fake again, which asks whether the
    storage of a tensor is empty if it might be. A question that may be answered without a guard
    (``guard_or_false`` and the like) is.

    Raises:
        Rejected: ``function`` raised, or asked for a guard.
    """
    try:
        try:
            return _traced(function, fakes, "symbolic")
        except Exception as error:
            if compat.attempted_guard(error) is None:
                raise
            return _traced(function, fakes, "real")
    except Rejected:
        raise
    except Exception as error:
        raise Rejected(_why_not_traced(error)) from error


def _why_not_traced(error: Exception) -> str:
    guard = compat.attempted_guard(error)
    if guard is not None:
        counters["inductor"]["custom_op_decomp_guard_skips"] += 1
        return f"tracing it would add the guard {guard}"
    # The fake mode names its own switch when it meets a real tensor. It stays off: Inductor
    # writes the values of small constants into the code, and would miss a later update.
    if "allow_non_fake_inputs" in str(error):
        return "it reads a tensor that is not an argument of the op; make it an argument"
    return f"tracing it failed: {type(error).__name__}: {first_line(error)}"


def _traced(function: Callable[..., Any], fakes: Sequence[Any], mode: str) -> GraphModule:
    graph = _recorded(function, fakes, mode)
    with _no_guards():
        try:
            return _optimized(graph)
        except Exception as error:
            log.info("lowered as it was traced: the passes over the graph: %s", first_line(error))
    graph = _recorded(function, fakes, mode)
    with _no_guards():
        _lowerable(graph)
    return graph


def _recorded(function: Callable[..., Any], fakes: Sequence[Any], mode: str) -> GraphModule:
    with (
        V.fake_mode,
        _no_guards(),
        symbolic_config.patch(backed_size_oblivious=True),
        torch.no_grad(),
        torch._C._DisableAutocast(),
        enable_python_dispatcher(),
        traceback.preserve_node_meta(),
    ):
        table = select_decomp_table()
        return make_fx(function, tracing_mode=mode, decomposition_table=table)(*fakes)


def _optimized(graph: GraphModule) -> GraphModule:
    """``graph`` after the passes that a compile of it alone would run over it."""
    for level in graph.modules():
        if isinstance(level, GraphModule):
            level.graph = fx_graph_cse(level.graph)
            _return_what_is_there(level.graph)
            level.recompile()
    # The patterns are made once for each device that is named here: as in the compile around this.
    devices = get_inputs_devices(V.graph.example_inputs or (), V.graph.module)
    graph = _passed_over(graph, next(iter(devices)))
    for level in graph.modules():
        if isinstance(level, GraphModule):
            _separate_outputs(level)
    return graph


def _passed_over(graph: GraphModule, device: torch.device) -> GraphModule:
    """Run Inductor's passes over ``graph``, or over what it chooses among if it does no more.

    Over every level of a nest the passes would evaluate all that is below, again and again: with
    16 branches that takes most of a compile.
    """
    # Not there yet when Inductor imports this module.
    from torch._inductor.compile_fx import (
        _recursive_joint_graph_passes,
        _recursive_post_grad_passes,
    )

    conditionals = graph.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
    if conditionals and _only_chooses(graph.graph):
        for conditional in conditionals:
            for branch in conditional.args[1:3]:
                inside = getattr(graph, branch.target)
                setattr(graph, branch.target, _passed_over(inside, device))
        return graph
    graph = _recursive_joint_graph_passes(graph, input_device=device)
    _recursive_post_grad_passes(graph, V.graph.is_inference)
    return graph


def _only_chooses(graph: torch.fx.Graph) -> bool:
    """Whether all that ``graph`` computes is what its conditionals compare."""
    choosing = (
        torch.ops.higher_order.cond,
        torch.ops.aten.sym_size.int,
        operator.getitem,
        operator.le,
    )
    called = [node for node in graph.nodes if node.op.startswith("call_")]
    return all(node.op == "call_function" and node.target in choosing for node in called)


def _return_what_is_there(graph: torch.fx.Graph) -> None:
    """Return what is computed inside anyway.

    What is handed out of a branch is computed once for the op and once to be returned, and
    ``fx_graph_cse`` leaves alone what is returned.
    """

    def storage(node: torch.fx.Node) -> StorageWeakRef | None:
        value = node.meta.get("val")
        return StorageWeakRef(value.untyped_storage()) if _is_tensor(value) else None

    returned = dict.fromkeys(graph.output_node().all_input_nodes)
    taken = {storage(node) for node in returned}
    inside: dict[str, torch.fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not _has_no_effect(node.target):
            continue
        computed = f"{node.target} {node.args} {node.kwargs}"
        twin = inside.get(computed)
        if node not in returned:
            inside.setdefault(computed, node)
        elif twin is not None and storage(twin) not in taken:
            taken.add(storage(twin))
            node.replace_all_uses_with(twin)
            graph.erase_node(node)


def _has_no_effect(target: Any) -> bool:
    """Whether two calls with the same arguments are one."""
    return (
        isinstance(target, torch._ops.OpOverload)
        and is_builtin(target)  # what others do, their tags need not say
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
    )


def _separate_outputs(graph: GraphModule) -> None:
    """Clone what is returned twice, or is an input: the passes drop a multiplication by 1."""
    output = graph.graph.output_node()
    taken = set(graph.graph.find_nodes(op="placeholder"))

    def own(node: torch.fx.Node) -> torch.fx.Node:
        if isinstance(node.meta.get("val"), torch.Tensor) and node in taken:
            with graph.graph.inserting_before(output), V.fake_mode:
                clone = graph.graph.call_function(torch.ops.aten.clone.default, (node,))
                clone.meta["val"] = node.meta["val"].clone()
            return clone
        taken.add(node)
        return node

    output.args = torch.fx.map_arg(output.args, own)
    graph.recompile()


def _lowerable(graph: GraphModule) -> None:
    """What passes over the user's graph do to it, and lowering relies on.

    A Triton kernel, or a custom op that mutates, was made functional while tracing. In place of
    that come the kernel or the op itself, and clones of what may not be overwritten.
    """
    # Not there yet when Inductor imports this module.

    for level in graph.modules():
        if isinstance(level, GraphModule):
            reinplace_inplaceable_ops_core(level.graph)
            decompose_triton_kernel_wrapper_functional(level.graph)
            decompose_auto_functionalized(level.graph)
            level.recompile()


def first_line(error: BaseException) -> str:
    """The first line of the message: what follows is often a stack, which the log has anyway."""
    return (str(error).strip().splitlines() or [""])[0]


def lift_constants(graph: GraphModule) -> list[torch.Tensor]:
    """Make the tensors that ``graph`` and its conditionals' branches hold operands, at the end.

    A branch is generated by itself, and where it refers to a constant of its own, generated code
    looks for it in the graph around it, among constants that have the same names.

    Returns:
        The tensors, for those operands.
    """
    levels = [module for module in graph.modules() if isinstance(module, GraphModule)]
    held = [
        (level, node, value)
        for level in levels
        for node in level.graph.find_nodes(op="get_attr")
        if _is_tensor(value := operator.attrgetter(node.target)(level))
    ]
    for level in levels if held else ():
        *_, last = level.graph.find_nodes(op="placeholder")
        lifted: list[torch.fx.Node] = []
        for i, (owner, node, value) in enumerate(held):
            with level.graph.inserting_after(lifted[-1] if lifted else last):
                lifted.append(level.graph.placeholder(f"constant_{i}"))
            lifted[-1].meta["val"] = V.fake_mode.from_tensor(value, static_shapes=True)
            if owner is level:
                node.replace_all_uses_with(lifted[-1])
                level.graph.erase_node(node)
        for cond in level.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond):
            cond.args = (*cond.args[:3], (*cond.args[3], *lifted))
        level.recompile()
    return [value for _, _, value in held]


def _no_guards() -> contextlib.AbstractContextManager[None]:
    return compat.frozen_guards(V.graph.sizevars.shape_env)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _functional(candidate: Candidate, call: BoundCall) -> Callable[..., Any]:
    """Run the candidate with its in-place updates made functional, as AOTAutograd would.

    A graph that Inductor lowers holds no mutation; an implementation may fill a buffer of its own.
    """

    def run(*operands: Any) -> Any:
        no_outer = torch._C._ExcludeDispatchKeyGuard(
            torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)
        )
        with no_outer, FunctionalTensorMode():
            wrapped = [FunctionalTensor.to_functional(o) if _is_tensor(o) else o for o in operands]
            returned = invoke(candidate, call, wrapped)
            for name, operand in zip(call.names(), wrapped, strict=True):
                if _is_tensor(operand) and torch._functionalize_has_data_mutation(operand.elem):
                    raise Rejected(f"it writes to argument {name}, which the op does not")
            return pytree.tree_map_only(FunctionalTensor, _unwrap, returned)

    return run


def _unwrap(tensor: FunctionalTensor) -> torch.Tensor:
    torch._sync(tensor)
    return torch._from_functional_tensor(tensor.elem)


class _Tensor:
    """Marks the place of a tensor in the structure of what an op returns."""


def flatten(returned: Any, leaves: list[Any]) -> Any:
    """Append the tensors in ``returned`` to ``leaves``; what is left is its structure.

    Lists, tuples and named tuples come out alike, as tuples; None stays None.
    """
    if isinstance(returned, (list, tuple)):
        return tuple(flatten(item, leaves) for item in returned)
    if returned is None:
        return None
    leaves.append(returned)
    return _Tensor


def unflatten(structure: Any, leaves: Iterator[Any]) -> Any:
    """Put ``leaves`` back into a structure that ``flatten`` returned."""
    if isinstance(structure, tuple):
        return tuple(unflatten(item, leaves) for item in structure)
    return None if structure is None else next(leaves)


def _check_output(index: int, actual: Any, expected: torch.Tensor) -> None:
    where = f"output {index}"
    if not _is_tensor(actual):
        raise Rejected(f"{where} is a {type(actual).__name__} where the op returns a tensor")
    for what in ("dtype", "device"):
        ours, theirs = getattr(actual, what), getattr(expected, what)
        if ours != theirs:
            raise Rejected(f"{where} has {what} {ours}, the op's has {theirs}")
    if not _known_equal(actual.shape, expected.shape):
        raise Rejected(
            f"{where} has shape {_shown(actual.shape)}, the op's has {_shown(expected.shape)}"
        )


def with_strides(index: int, actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """``actual``, copied to the strides of ``expected`` where it has others."""
    if _known_equal(actual.stride(), expected.stride()) and _starts_at_zero(actual):
        return actual
    view = _with_plain_ones(actual)
    if _known_equal(view.stride(), expected.stride()) and _starts_at_zero(view):
        return view
    order = _dimension_order(expected)
    inverse = [order.index(d) for d in range(len(order))]
    copied = actual.permute(order).clone(memory_format=torch.contiguous_format).permute(inverse)
    if not _known_equal(copied.stride(), expected.stride()):
        raise Rejected(
            f"output {index} has strides {_shown(actual.stride())}, the op's has "
            f"{_shown(expected.stride())}, and a dense copy cannot have those"
        )
    return copied


def _with_plain_ones(tensor: torch.Tensor) -> torch.Tensor:
    """A view with the usual strides for dimensions of one element, whose strides mean nothing."""
    ones = [d for d, size in enumerate(tensor.shape) if isinstance(size, int) and size == 1]
    for d in reversed(ones):
        tensor = tensor.squeeze(d)
    for d in ones:
        tensor = tensor.unsqueeze(d)
    return tensor


def _starts_at_zero(tensor: torch.Tensor) -> bool:
    offset = tensor.storage_offset()
    return isinstance(offset, int) and offset == 0


def _dimension_order(tensor: torch.Tensor) -> list[int]:
    """Dimensions from the largest stride to the smallest, by hints, without asking for a guard."""
    hint = V.graph.sizevars.optimization_hint
    strides = [hint(_expr(s)) for s in tensor.stride()]
    sizes = [hint(_expr(s)) for s in tensor.shape]
    return sorted(range(tensor.dim()), key=lambda d: (-strides[d], -sizes[d], d))


def _known_equal(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(
        V.graph.sizevars.statically_known_equals(_expr(a), _expr(b))
        for a, b in zip(one, other, strict=True)
    )


def _expr(value: Any) -> Any:
    return value.node.expr if isinstance(value, torch.SymInt) else value


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {_shown(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(_shown(v) for v in value)})"
    return str(_expr(value)) if isinstance(value, (int, torch.SymInt)) else type(value).__name__
