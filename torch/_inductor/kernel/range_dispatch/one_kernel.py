"""A dispatch in one kernel: where every branch is pointwise, the comparison moves into the loop.

Branches that compute each element by itself, over the same elements and from the same tensors, need
no ``if`` in the wrapper. Here they become one piece of pointwise IR, which compares the size, takes
the value of the branch that is for it, and fuses with its neighbours like any other. Where all of
them read the same elements, each is read once. Elsewhere, what a branch that is not taken would
read is masked away; that is for accelerators alone, since in C++ a masked load of the last vector
of a row reads on behind its end.

What is computed for nothing is not free, so this is measured against the branches (``no_slower``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy

import torch
from torch._inductor import ir
from torch._inductor.kernel.range_dispatch import config, grid, progress, region, tuner
from torch._inductor.kernel.range_dispatch.benchmark_module import (
    BenchmarkModule,
    generate_for_benchmark,
    with_values,
)
from torch._inductor.kernel.range_dispatch.call import BoundCall, Operand, unrealized
from torch._inductor.kernel.range_dispatch.candidates import Candidate, OP_LABEL
from torch._inductor.kernel.range_dispatch.choosing import beats, Measurement
from torch._inductor.kernel.range_dispatch.dispatch import inline
from torch._inductor.kernel.range_dispatch.grid import CallRecords
from torch._inductor.kernel.range_dispatch.inputs import hinted_point, Point
from torch._inductor.kernel.range_dispatch.ranges import Range
from torch._inductor.kernel.range_dispatch.trace import fake_operands, Reference, Rejected, trace
from torch._inductor.kernel.range_dispatch.tuner import Bench, Contender
from torch._inductor.virtualized import ops, V
from torch.fx import Graph, GraphModule
from torch.utils import _pytree as pytree


log = logging.getLogger(__name__)

LABEL = "one kernel"

# Of integers, these end the process on a CPU where the divisor is 0.
_TRAPS = frozenset({"floordiv", "mod", "remainder", "truncdiv"})


class Apart(Exception):
    """The branches can't be computed in one kernel; the message says why."""


@dataclass(frozen=True)
class OneKernel:
    """Branches of a call to be computed in one kernel.

    Attributes:
        name: What it is called in generated code.
        call: The call, without its neighbours.
        ref: What the call returns.
        ranges: What each branch is for, in ascending order.
        winners: The candidate of each.
        graphs: The trace of each, from the operands of the call.
        operand: Index of the operand whose size decides.
        dim: The dimension of it that is compared.
    """

    name: str
    call: BoundCall
    ref: Reference
    ranges: Sequence[Range]
    winners: Sequence[Candidate]
    graphs: Sequence[GraphModule]
    operand: int
    dim: int

    def __str__(self) -> str:
        pairs = zip(self.ranges, self.winners, strict=True)
        return f"{LABEL} of {'; '.join(f'{r} {w.label}' for r, w in pairs)}"

    def lower(
        self, operands: Sequence[Any], graphs: Sequence[GraphModule] | None = None
    ) -> tuple[ir.TensorBox, ...]:
        """The flat outputs of the call in the graph being lowered, in no buffer yet.

        Args:
            operands: IR for the operands of the call.
            graphs: The traces, where those of this graph are others.

        Raises:
            Apart: It can't be done.
        """
        before = len(V.graph.buffers), len(V.graph.operations)
        graphs = graphs or self.graphs
        lowered = {id(graph): graph for graph in graphs}
        results = {i: inline(graph, operands, self.name, {}) for i, graph in lowered.items()}
        branches = [results[id(graph)] for graph in graphs]
        if before != (len(V.graph.buffers), len(V.graph.operations)):
            raise Apart("something in a branch has to be in memory")
        size = sympy.sympify(operands[self.operand].get_size()[self.dim])
        loops = [[_loops(output) for output in outputs] for outputs in branches]
        read = [set().union(*(one.get_read_names() for one in outputs)) for outputs in loops]
        if any(names != read[0] for names in read):
            raise Apart("not all branches read the same")
        return tuple(self._combined(list(parts), size) for parts in zip(*loops, strict=True))

    def _combined(self, parts: Sequence[ir.Pointwise], size: sympy.Expr) -> ir.TensorBox:
        first = parts[0]
        for part in parts[1:]:
            same = part.get_dtype() == first.get_dtype() and part.get_device() == first.get_device()
            if not same or list(part.get_size()) != list(first.get_size()):
                raise Apart("not all branches compute the same elements")
        if first.get_dtype().is_complex:
            raise Apart("there are no complex kernels")
        reads = [part.get_reads() for part in parts]
        masks = any(read != reads[0] for read in reads)
        if first.get_device().type == "cpu":
            if masks:
                raise Apart("not all branches read the same elements")
            if any(_TRAPS & part.inner_fn_opcount().used_ops for part in parts):
                raise Apart("a branch divides, which may trap where it is not taken")
        return ir.Pointwise.create(
            device=first.get_device(),
            dtype=first.get_dtype(),
            inner_fn=self._chosen(size, parts, masks),
            ranges=list(first.get_size()),
        )

    def _chosen(
        self, size: sympy.Expr, parts: Sequence[ir.Pointwise], masks: bool
    ) -> Callable[[Any], Any]:
        """For each element the value of the part that is for ``size``."""
        bodies = [part.make_loader() for part in parts]
        ends = [int(range.end) for range in self.ranges[:-1]]
        dtype = parts[0].get_dtype()
        nothing = False if dtype is torch.bool else 0.0 if dtype.is_floating_point else 0

        def value(index: Any) -> Any:
            compared = ops.index_expr(size, torch.int64)
            fits = [ops.le(compared, ops.constant(end, torch.int64)) for end in ends]

            def of(place: int) -> Any:
                if not masks:
                    return bodies[place](index)
                taken = fits[place] if place < len(ends) else None
                if place > 0:
                    above = ops.logical_not(fits[place - 1])
                    taken = above if taken is None else ops.logical_and(above, taken)
                return ops.masked(taken, lambda: bodies[place](index), nothing)

            result = of(len(ends))
            for place in reversed(range(len(ends))):
                result = ops.where(fits[place], of(place), result)
            return result

        return value

    def benchmark_graph(self, bench: Bench) -> GraphModule:
        """What is measured: the call as it is tuned, with the branches in one kernel in its place.

        Raises:
            Apart: The call is not to be found there.
        """
        op = Candidate(OP_LABEL, None, {}, {}, ())
        try:
            around = trace(op, bench.call, self.ref, bench.fakes)
        except Rejected as reason:
            raise Apart(str(reason)) from reason
        graph = Graph()
        graph.output(graph.graph_copy(around.graph, {}))
        nodes = [node for node in graph.nodes if node.target is self.call.op]
        if len(nodes) != 1:
            raise Apart("the call is not to be found among its neighbours")
        nodes[0].target = self._stand_in()
        return GraphModule(around, graph)

    def _stand_in(self) -> Callable[..., Any]:
        """In place of the op in a benchmark: the op for fake tensors, the one kernel for IR."""

        def one_kernel(*args: Any, **kwargs: Any) -> Any:
            if not any(isinstance(leaf, ir.IRNode) for leaf in pytree.tree_leaves((args, kwargs))):
                return self.call.op(*args, **kwargs)
            operands = self._operands(args, kwargs)
            fakes = fake_operands(replace(self.call, operands=tuple(operands)))
            graphs = [with_values(graph, V.fake_mode, fakes) for graph in self.graphs]
            return self.ref.pack(self.lower(operands, graphs))

        one_kernel._inductor_lowering_function = True  # type: ignore[attr-defined]
        return one_kernel

    def _operands(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        names = (argument.name for argument in self.call.op._schema.arguments)
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        found: dict[int, Any] = {}
        for name, value in self.call.arguments.items():
            places, structure = pytree.tree_flatten(value)
            if any(isinstance(place, Operand) for place in places):
                values = structure.flatten_up_to(given[name])
                pairs = zip(places, values, strict=True)
                found.update({p.index: v for p, v in pairs if isinstance(p, Operand)})
        return [found[i] for i in range(len(self.call.operands))]


def _loops(output: Any) -> ir.Pointwise:
    loops = unrealized(output)
    if loops is None:
        raise Apart("a branch returns what is in memory")
    return loops


def refusal(graphs: Sequence[GraphModule]) -> str | None:
    """Why branches with these traces can't be one kernel, as far as the traces tell."""
    read = []
    for graph in graphs:
        for node in graph.graph.nodes:
            if node.op not in ("placeholder", "output") and not region.is_elementwise(node):
                return f"{node.target} is not computed element by element"
        placeholders = graph.graph.find_nodes(op="placeholder")
        read.append([bool(node.users) for node in placeholders])
    return None if all(used == read[0] for used in read) else "not all branches read the same"


# At a probe the winner's time, and that of the one kernel.
Pair = tuple[Measurement, Measurement]
# Each probe with the winner's label.
Probes = Sequence[tuple[str, Point]]


def no_slower(kernel: OneKernel, records: CallRecords, probes: Probes) -> bool:
    """Whether ``kernel`` is at no probe slower than the winner there, by more than the noise.

    What was measured is recorded; with all of it on record nothing is compiled.
    """
    records.introduce(LABEL, kernel.winners, kernel.ranges)
    found = [_look_up(records, kernel, label, point) for label, point in probes]
    if None in found and not grid.pinned():
        found = _measured(kernel, records, probes)
        _save(records, kernel, probes, found)
    for (label, point), pair in zip(probes, found, strict=True):
        log.debug("%s at %d: %s: %s", kernel.call.op, point.size, label, pair)
    return bool(found) and not any(pair is None or _is_slower(pair) for pair in found)


def _is_slower(pair: Pair) -> bool:
    winner, kernel = pair
    failed = winner.error is not None or kernel.error is not None
    return failed or beats(winner, kernel, config.noise)


def _look_up(records: CallRecords, kernel: OneKernel, label: str, point: Point) -> Pair | None:
    winner, own = (records.find(each, point, str(kernel)) for each in (label, LABEL))
    return None if winner is None or own is None else (winner, own)


def _save(
    records: CallRecords, kernel: OneKernel, probes: Probes, pairs: Sequence[Pair | None]
) -> None:
    for (label, point), pair in zip(probes, pairs, strict=True):
        if pair is not None:
            records.put(label, point, pair[0], str(kernel))
            records.put(LABEL, point, pair[1], str(kernel))
    records.save()


def _measured(kernel: OneKernel, records: CallRecords, probes: Probes) -> list[Pair | None]:
    op = kernel.call.op
    log.info("%s: compiling %s", op, kernel)
    progress.phase("compile", LABEL)
    try:
        module = _compiled(kernel, records.bench)
        if not all(module.serves(point) for _, point in probes):
            raise Apart("its code is not for all sizes")
    except Exception as reason:
        log.info("%s: branches stay apart: %s", op, reason)
        log.debug("%s", LABEL, exc_info=reason)
        out = Measurement(LABEL, math.inf, 0.0, f"it cannot be made: {reason}")
        return [(Measurement(label, 0.0), out) for label, _ in probes]
    contenders = {c.candidate.label: c for c in records.contenders}
    winners = {point.size: contenders[label] for label, point in probes}
    pairs = {
        point.size: _measured_at(point, winners[point.size], module, records.bench)
        for point in grid.middle_first([point for _, point in probes])
    }
    return [pairs[point.size] for _, point in probes]


def _compiled(kernel: OneKernel, bench: Bench) -> BenchmarkModule:
    graph = kernel.benchmark_graph(bench)
    point = hinted_point(bench.call, sympy.S.Zero)
    return generate_for_benchmark(graph, bench.call, point, {}, "one_kernel").compile()


def _measured_at(
    point: Point, winner: Contender, module: BenchmarkModule, bench: Bench
) -> Pair | None:
    # At this size it computes what the winner does.
    same = replace(winner.candidate, label=LABEL)
    row = tuner.measure(bench, [winner, Contender(same, lambda: winner.graph, [module])], point)
    progress.more(len(row))
    progress.row(point.size, row, len(row))
    return (row[0], row[1]) if row else None
