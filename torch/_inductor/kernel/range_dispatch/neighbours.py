"""Whether neighbours of an op are better left outside of its branches: measured.

What is computed element by element moves in for a pass over memory less, as Inductor would have
it without a dispatch. Two kinds of neighbours can also cost more there than they save, so these
are measured both ways, once the winners are known and with these alone:

- Reductions, and what depends on them: they tie the kernels of the implementation to their loops.
- Producers that an implementation of several kernels computes anew in each of them.

Left outside, they are modules of their own that run before or after the winner's, and hand over in
memory. The winners stay: they were fastest with all of the neighbours around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy

import torch
from torch._inductor.kernel.range_dispatch import region
from torch._inductor.kernel.range_dispatch.benchmark_module import (
    BenchmarkModule,
    compile_for_benchmark,
    Stage,
    StagedModule,
)
from torch._inductor.kernel.range_dispatch.call import BoundCall
from torch._inductor.kernel.range_dispatch.inputs import Point, symbols_of
from torch._inductor.kernel.range_dispatch.region import CallWithProducers, RegionCall
from torch._inductor.kernel.range_dispatch.trace import (
    fake_operands,
    Reference,
    Rejected,
    trace,
    trace_function,
    with_strides,
)
from torch._inductor.kernel.range_dispatch.tuner import Bench, Contender
from torch._inductor.virtualized import V
from torch.fx import GraphModule, Node


@dataclass(frozen=True)
class Arrangement:
    """Which neighbours run in the branches.

    Attributes:
        call: The call with its consumers there.
        tuned: The same, with its producers if they run there as well.
        left_out: Kinds of neighbours that stay outside.
    """

    call: BoundCall
    tuned: BoundCall
    left_out: tuple[str, ...] = ()

    @property
    def producers(self) -> tuple[Node, ...]:
        return self.tuned.producers if isinstance(self.tuned, CallWithProducers) else ()

    @property
    def consumers(self) -> tuple[Node, ...]:
        return self.call.region.consumers if isinstance(self.call, RegionCall) else ()

    @property
    def about(self) -> str:
        """What is left out, in words."""
        return f"without {' and '.join(self.left_out)}"

    def outside(self, whole: Arrangement) -> tuple[str, ...]:
        """The neighbours that ``whole`` has in its branches and this one has not."""
        inside = {*self.producers, *self.consumers}
        return tuple(n.name for n in (*whole.producers, *whole.consumers) if n not in inside)

    def without_reductions(
        self,
        alone: BoundCall,
        size: sympy.Expr,
        pack: Callable[..., Any],
        with_producers: Callable[[BoundCall], BoundCall],
    ) -> Arrangement | None:
        """This one without reductions; None where there are none, or where it can't be had."""
        if not any(map(region.is_reduction, self.consumers)):
            return None
        call = region.around(alone, size, pack, reductions=False)
        if call is alone and not isinstance(_node(alone).meta.get("val"), torch.Tensor):
            return None
        return Arrangement(call, with_producers(call), (*self.left_out, "reductions"))

    def without_producers(self, graphs: Sequence[GraphModule]) -> Arrangement | None:
        """This one without producers; None where none of ``graphs`` would compute one again."""
        computing = [node for node in self.producers if region.computes(node)]
        if not computing or not any(map(_has_several_kernels, graphs)):
            return None
        return replace(self, tuned=self.call, left_out=(*self.left_out, "producers"))


def _node(call: BoundCall) -> Node:
    assert call.node is not None
    return call.node


def _has_several_kernels(graph: GraphModule) -> bool:
    """Whether there are several nodes that Inductor makes loops of their own of."""
    return sum(_is_tensor_op(n) and not region.inlines(n) for n in graph.graph.nodes) > 1


def _is_tensor_op(node: Node) -> bool:
    value = node.meta.get("val")
    return node.op == "call_function" and isinstance(value, (torch.Tensor, tuple, list))


# ---------------------------------------------------------------------------------------------
# What is measured.


def variants(
    winner: Contender,
    one: Arrangement,
    other: Arrangement,
    whole: Arrangement,
    ref: Reference,
) -> list[Contender]:
    """``winner`` in two arrangements, computing in both what it computes in ``whole``."""
    first, second = (_variant(winner, each, whole, ref) for each in (one, other))
    label = f"{winner.candidate.label} {other.about}"
    return [first, replace(second, candidate=replace(second.candidate, label=label))]


def _variant(
    winner: Contender, arrangement: Arrangement, whole: Arrangement, ref: Reference
) -> Contender:
    if not arrangement.left_out:
        return winner
    call = arrangement.tuned
    return Apart(
        winner.candidate,
        lambda: trace(winner.candidate, call, ref, fake_operands(call)),
        variant=f" {arrangement.about}",
        inside=call,
        whole=whole.tuned,
    )


@dataclass(kw_only=True)
class Apart(Contender):
    """A candidate with some of its neighbours in modules of their own, before and after it.

    Attributes:
        inside: The call with what is left around it.
        whole: The call with all of its neighbours.
    """

    inside: BoundCall
    whole: BoundCall

    def compiled(self, bench: Bench, point: Point) -> BenchmarkModule:
        modules = _Modules(bench.call, point)
        modules.add_nodes(_nodes(self.inside), fake_operands(self.inside))
        patches = self.candidate.config_patches
        module = compile_for_benchmark(
            self.graph, self.inside, point, patches, "among_fewer", strided=True
        )
        modules.add(module, _nodes(self.inside), _results(self.inside))
        results = _results(self.whole)
        modules.add_nodes(results, [region.expected(node) for node in results])
        return modules.staged(results)


class _Modules:
    """Modules that are added one by one, and what is computed by then."""

    def __init__(self, call: BoundCall, point: Point) -> None:
        self.call = call
        self.point = point
        self.stages: list[Stage] = []
        self.operands: dict[Node, Any] = {}
        self.places: dict[Node, int] = {}
        for place, (node, operand) in enumerate(zip(_nodes(call), call.operands, strict=True)):
            if node not in self.places:
                self.places[node], self.operands[node] = place, operand
        self.count = len(call.operands)

    def add(self, module: BenchmarkModule, takes: Sequence[Node], gives: Sequence[Node]) -> None:
        if missing := [node.name for node in takes if node not in self.places]:
            raise Rejected(f"{missing} can't be computed apart")
        self.stages.append(Stage(module, tuple(self.places[node] for node in takes)))
        for node in gives:
            self.places.setdefault(node, self.count)
            self.operands.setdefault(node, region.stand_in(node, region.expected(node)))
            self.count += 1

    def add_nodes(self, wanted: Sequence[Node], like: Sequence[Any]) -> None:
        """A module for those of ``wanted`` that are not computed yet, strided as in ``like``."""
        missing = {n: fake for n, fake in zip(wanted, like, strict=True) if n not in self.places}
        if not missing:
            return
        nodes = self._needed(list(missing))
        reads = {n: None for node in nodes for n in node.all_input_nodes if n not in nodes}
        call = BoundCall(
            self.call.op, {}, frozenset(), tuple(self.operands[node] for node in reads)
        )
        if not {*symbols_of(call)} <= {*self.point.values}:
            raise Rejected("a size of a neighbour is not one of the op's")

        def run(*operands: Any) -> tuple[torch.Tensor, ...]:
            env = dict(zip(reads, operands, strict=True))
            region.compute(nodes, env)
            fakes = enumerate(missing.items())
            return tuple(with_strides(i, env[node], fake) for i, (node, fake) in fakes)

        graph = trace_function(run, fake_operands(call))
        module = compile_for_benchmark(graph, call, self.point, {}, "neighbours", strided=True)
        self.add(module, list(reads), list(missing))

    def _needed(self, wanted: Sequence[Node]) -> list[Node]:
        """What has to be computed for ``wanted``, in the order of the graph."""
        needed: dict[Node, None] = {}
        left = list(wanted)
        while left:
            node = left.pop()
            if node in self.places or node in needed:
                continue
            if node.op != "call_function" or node is self.call.node:
                raise Rejected(f"{node.name} can't be computed apart")
            needed[node] = None
            left += node.all_input_nodes
        return [node for node in V.graph.graph.nodes if node in needed]

    def staged(self, results: Sequence[Node]) -> BenchmarkModule:
        return StagedModule.of(self.stages, [self.places[node] for node in results])


def _nodes(call: BoundCall) -> list[Node]:
    if any(node is None for node in call.nodes):
        raise Rejected("an operand is not the value of a node")
    return [node for node in call.nodes if node is not None]


def _results(call: BoundCall) -> tuple[Node, ...]:
    if isinstance(call, CallWithProducers):
        return (*_results(call.call), *call.kept)
    return call.region.outputs if isinstance(call, RegionCall) else (_node(call),)
