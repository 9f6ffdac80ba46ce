"""The nested ``torch.cond`` for the merged ranges, and its way into the graph being lowered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

import torch
from torch._inductor import config as inductor_config
from torch._inductor import ir
from torch._inductor.codegen.subgraph import inline_subgraph_to_ir_nodes
from torch._inductor.kernel.range_dispatch import compat, settings
from torch._inductor.kernel.range_dispatch.call import BoundCall
from torch._inductor.kernel.range_dispatch.inputs import symbols_of
from torch._inductor.kernel.range_dispatch.ranges import Range
from torch._inductor.kernel.range_dispatch.sizes import Known
from torch._inductor.kernel.range_dispatch.timing import templates_replayed
from torch._inductor.kernel.range_dispatch.triton_configs import generate_as_measured
from torch._inductor.lowering import validate_ir
from torch._inductor.virtualized import V
from torch.fx import Graph, GraphModule


log = logging.getLogger(__name__)

Traceable = Callable[..., tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Branch:
    """What runs for one merged range.

    Attributes:
        range: The sizes it runs for.
        function: From the operands to the op's output tensors.
        config_patches: Inductor settings for the kernels of this branch alone.
        known: What holds of the sizes in this branch.
        continued: Whether it is a part of a branch, and another part follows.
    """

    range: Range
    function: Traceable
    config_patches: Mapping[str, Any]
    known: Known | None = None
    continued: bool = False


def flat() -> Any:
    """The module of the flat node: its base classes are not there yet when this one is imported."""
    from torch._inductor.kernel.range_dispatch import ir as module

    return module


def nested_cond(branches: Sequence[Branch], operand: int, dim: int, taken: int) -> Traceable:
    """``cond(size <= end, branch, cond(...))`` with the last branch as the final else.

    Args:
        branches: In ascending order of their ranges.
        operand: Index of the operand whose size decides.
        dim: The dimension of it that is compared.
        taken: How many operands a branch takes. More may be given, see ``unbound_symbols``.
    """
    first, *rest = branches

    def branch(*operands: Any) -> tuple[torch.Tensor, ...]:
        return first.function(*operands[:taken])

    if not rest:
        return branch
    otherwise = nested_cond(rest, operand, dim, taken)

    def level(*operands: Any) -> tuple[torch.Tensor, ...]:
        fits = operands[operand].shape[dim] <= int(first.range.end)
        return torch.ops.higher_order.cond(fits, branch, otherwise, operands)

    return level


def unbound_symbols(call: BoundCall) -> list[sympy.Symbol]:
    """Size symbols that a conditional's sub-graph could not read off an operand.

    Generated code takes a symbol from a size or an operand that is just that symbol; where there
    is only ``2*s`` or ``s*t``, the symbols have to be operands of their own.
    """
    exprs: list[Any] = []
    for operand in call.operands:
        exprs.extend(operand.get_size() if isinstance(operand, ir.IRNode) else [operand])
    bound = {expr for expr in exprs if isinstance(expr, sympy.Symbol)}
    return [symbol for symbol in symbols_of(call) if symbol not in bound]


def _unused_prefix(name: str) -> str:
    """A prefix that no sub-graph of the graph being lowered has yet.

    Inductor looks sub-graphs up by name, and every trace calls its own ``true_graph_0``: with two
    dispatched ops in one graph the second would run the first one's branches.
    """
    number = 0
    base = _identifier(name)
    while any(seen.startswith(f"{base}_{number}_") for seen in V.graph.seen_subgraphs):
        number += 1
    return f"{base}_{number}"


def _branch_names(prefix: str, branches: Sequence[Branch]) -> list[str]:
    ends = [int(branch.range.end) for branch in branches[:-1]]
    return [*(f"{prefix}_le_{end}" for end in ends), f"{prefix}_gt_{ends[-1]}"]


def name_branches(nest: GraphModule, prefix: str, branches: Sequence[Branch]) -> list[str]:
    """Name the nest's sub-graphs after their ranges; the names of the branches, in order."""
    names = _branch_names(prefix, branches)
    level = nest
    for taken, branch in zip(names, branches[:-1], strict=False):
        (cond,) = level.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
        otherwise = f"{prefix}_gt_{int(branch.range.end)}"
        following = getattr(level, cond.args[2].target)
        for node, name in ((cond.args[1], taken), (cond.args[2], otherwise)):
            module = getattr(level, node.target)
            delattr(level, node.target)
            setattr(level, name, module)
            node.target = name
        level.recompile()
        level = following
    return names


def inline(
    graph: GraphModule, operands: Sequence[Any], name: str, config_patches: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Lower ``graph`` node by node into the graph being lowered, its kernels under the patches."""
    before = len(V.graph.operations)
    # What has settings of its own is realized, or it would be generated with those around it.
    graph = graph if config_patches else _with_values_out(graph)
    op_node = V.graph.current_node
    place = {} if op_node is None else compat.place_of(op_node)
    for node in graph.graph.nodes:
        compat.put_in_place(node.meta, place)
    with inductor_config.patch(dict(config_patches)), templates_replayed():
        results = inline_subgraph_to_ir_nodes(graph, list(operands), name)
    # What is returned may be copied in the name of the op.
    own = () if op_node is None else (op_node,)
    generate_as_measured(V.graph, [*graph.graph.nodes, *own])
    if config_patches:
        settings.attach(V.graph.operations[before:], config_patches)
    for result in results:
        validate_ir(result)
    return tuple(results)


def _with_values_out(graph: GraphModule) -> GraphModule:
    """``graph`` with its outputs taken by one more node.

    What goes to an output is realized, and would not fuse as it does where it is written in place.
    """
    copied = Graph()
    outputs = copied.graph_copy(graph.graph, {})
    taken = copied.call_function(_values, tuple(outputs))
    taken.meta["val"] = tuple(node.meta["val"] for node in outputs)
    copied.output(taken)
    return GraphModule(graph, copied)


def _values(*outputs: Any) -> tuple[Any, ...]:
    return outputs


_values._inductor_lowering_function = True  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Lowering:
    """The way of a dispatch into the graph being lowered; each branch keeps its own patches.

    Attributes:
        name: What the branches are called in generated code.
        branches: The branches, in ascending order.
        size: The size that the predicates compare.
        outputs: What the branches return, as fake tensors.
        kept: Further outputs, see ``ir.lower_flat``.
    """

    name: str
    branches: Sequence[Branch]
    size: sympy.Expr
    outputs: Sequence[torch.Tensor]
    kept: Mapping[int, torch.Tensor]

    def inline(self, nest: GraphModule, operands: Sequence[Any]) -> tuple[Any, ...]:
        """Lower the trace of ``nested_cond``, which takes ``operands``: IR nodes and integers."""
        prefix = _unused_prefix(self.name)
        names = name_branches(nest, prefix, self.branches)
        if flat().supported():
            return self._flat(_leaves(nest, names), names, operands)
        log.debug("%s: this wrapper does not know the flat node, torch.cond is lowered", self.name)
        return _inline_conditional(nest, operands, self.name, self.branches, names)

    def inline_branches(
        self, graphs: Sequence[GraphModule], operands: Sequence[Any]
    ) -> tuple[Any, ...]:
        """Lower a graph for each branch, where there is no nest of them."""
        names = _branch_names(_unused_prefix(self.name), self.branches)
        return self._flat(graphs, names, operands)

    def _flat(
        self, graphs: Sequence[GraphModule], names: Sequence[str], operands: Sequence[Any]
    ) -> tuple[Any, ...]:
        lowered = []
        for branch, name, graph in zip(self.branches, names, graphs, strict=True):
            V.graph.seen_subgraphs[name] = ir.Subgraph(name=name, graph_module=graph)
            end = None if branch is self.branches[-1] else int(branch.range.end)
            patches = dict(branch.config_patches)
            lowered.append(
                flat().FlatBranch(end, name, graph, patches, branch.known, branch.continued)
            )
        fakes = [node.meta["val"] for node in graphs[0].graph.find_nodes(op="placeholder")]
        results = flat().lower_flat(lowered, operands, fakes, self.size, self.outputs, self.kept)
        for result in results:
            validate_ir(result)
        return results


def _leaves(nest: GraphModule, names: Sequence[str]) -> list[GraphModule]:
    """The graphs of the branches, out of a nest whose sub-graphs have been named."""
    leaves = []
    level = nest
    for name in names[:-1]:
        (cond,) = level.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
        leaves.append(getattr(level, name))
        level = getattr(level, cond.args[2].target)
    return [*leaves, level]


def _inline_conditional(
    nest: GraphModule,
    operands: Sequence[Any],
    name: str,
    branches: Sequence[Branch],
    names: Sequence[str],
) -> tuple[Any, ...]:
    before = len(V.graph.operations)
    results = inline(nest, operands, name, {})
    lowered = dict(_subgraphs(V.graph.operations[before:]))
    for branch_name, branch in zip(names, branches, strict=True):
        if branch.config_patches:
            settings.generate_under(lowered[branch_name].graph, branch.config_patches)
    return results


def _identifier(name: str) -> str:
    """``name`` for generated Python, in which a class renames what starts with ``__``, and C++."""
    cleaned = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
    return cleaned if cleaned[:1].isalpha() else f"dispatch_{cleaned}"


def _subgraphs(operations: Sequence[Any]) -> list[tuple[str, ir.Subgraph]]:
    """All sub-graphs below ``operations`` by the name that they were given."""
    found = []
    for operation in operations:
        for subgraph in compat.subgraphs_of(operation):
            found.append((subgraph.name, subgraph))
            if subgraph.graph is not None:
                found.extend(_subgraphs(subgraph.graph.operations))
    return found
