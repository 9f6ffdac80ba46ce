"""Autotuning of custom ops, with one implementation for each range of a size.

A custom op has several implementations, and which of them is fastest depends on a size that is
known only at run time. They are registered once::

    register_custom_op_autotuning(
        my_op,
        configs=[CustomOpConfig(short_impl), CustomOpConfig(long_impl, block=64)],
        dispatch_on={"tensor_name": "x", "dim": 1},
        split_points=[512, 2048],
    )

and ``torch.compile(dynamic=True)`` makes one graph that runs the fastest one in each range.
This file is the public interface, and the way of one op from its call to IR; every step is one
call into ``torch._inductor.kernel.range_dispatch``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import sympy

import torch
from torch._inductor import ir, lowering
from torch._inductor.kernel.range_dispatch import (
    compat,
    config,
    dispatch,
    fingerprint,
    grid,
    neighbours,
    one_kernel,
    region,
    report,
    templates,
    tuner,
)
from torch._inductor.kernel.range_dispatch.as_generated import Branches, Ranking
from torch._inductor.kernel.range_dispatch.benchmark_module import BenchmarkModule
from torch._inductor.kernel.range_dispatch.call import (
    bind,
    BoundCall,
    lowered_node,
    Unsupported,
)
from torch._inductor.kernel.range_dispatch.candidates import (
    Candidate,
    candidates_from_configs,
    CustomOpConfig,
    OP_LABEL,
)
from torch._inductor.kernel.range_dispatch.choosing import (
    choose,
    Measurement,
    RangeResult,
    Rules,
    slower,
)
from torch._inductor.kernel.range_dispatch.grid import Measured
from torch._inductor.kernel.range_dispatch.inputs import (
    can_reach,
    hinted_point,
    NoSuchPoint,
    Point,
    point_at,
)
from torch._inductor.kernel.range_dispatch.one_kernel import OneKernel
from torch._inductor.kernel.range_dispatch.ranges import (
    DEFAULT_RANGE_UPPER_BOUND,
    merge_neighbours,
    parts_of,
    Range,
    reachable,
)
from torch._inductor.kernel.range_dispatch.registration import (
    checked_configs,
    make_registration,
    overload_of,
    Registration,
)
from torch._inductor.kernel.range_dispatch.sizes import Known, known_in
from torch._inductor.kernel.range_dispatch.stock import (  # noqa: F401  names of stock's
    _create_fallback_choice,
    DispatchOnConfig,
    ImplConfig,
    RangeBounds,
    RangeImplGroup,
)
from torch._inductor.kernel.range_dispatch.trace import (
    fake_operands,
    lift_constants,
    Reference,
    reference,
    Rejected,
    trace,
    trace_function,
    traceable,
)
from torch._inductor.kernel.range_dispatch.tuner import Bench, Contender
from torch._inductor.lowering import fallback_handler
from torch._inductor.utils import convert_symint_to_expr, convert_to_symint
from torch._inductor.virtualized import V
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload
from torch.fx import map_arg, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols


__all__ = [
    "autotune_custom_op",
    "custom_op_autotuning",
    "CustomOpConfig",
    "DEFAULT_RANGE_UPPER_BOUND",
    "register_custom_op_autotuning",
    "unregister_custom_op_autotuning",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

_registrations: dict[OpOverload, Registration] = {}


def register_custom_op_autotuning(
    custom_op: CustomOpDef | OpOverload,
    configs: Sequence[CustomOpConfig] | None = None,
    config_generator: Callable[[dict[str, torch.Tensor]], list[CustomOpConfig]] | None = None,
    name: str | None = None,
    input_gen_fns: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    dispatch_on: Mapping[str, Any] | None = None,
    split_points: Sequence[int] | None = None,
    min_speedup_threshold: float = 1.0,
    benchmark_with_cudagraphs: bool = False,
    include_fallback: bool = True,
    check: bool | Mapping[torch.dtype, float] = True,
    probe_sizes: Sequence[int] | None = None,
    records: str | os.PathLike[str] | None = None,
) -> None:
    """Let ``torch.compile`` choose between implementations of an op by measuring them.

    Without ``split_points`` the implementations are measured once, at the sizes of the first
    call, and the fastest is inlined. With them, they are measured for each range between the
    points, and the graph runs the fastest one of the range that the size falls into. Registering
    an op again replaces its registration.

    Args:
        custom_op: What ``torch.library.custom_op`` returned, or an overload such as
            ``torch.ops.aten.mm.default``.
        configs: The implementations with their parameters.
        config_generator: In place of ``configs``: a function from the fake tensors of a call, by
            argument name, to a list of ``CustomOpConfig``. An empty list, or None, means that the
            op is lowered as if it were not registered.
        name: What generated code and logs call the op; ``<op>_autotuned`` by default.
        input_gen_fns: By tensor argument, a function from a fake tensor to a real one of its
            shape, dtype and device, for ops whose speed depends on the values.
        dispatch_on: The size that decides, as ``{"tensor_name": str, "dim": int}``; a negative
            ``dim`` counts from the end. ``"range_upper_bound"`` is the size at which the last
            range, which has no end, is measured (65536 by default).
        split_points: Last sizes of the ranges, strictly increasing. ``[512, 2048]`` makes
            the ranges up to 512, 513 to 2048, and from 2049.
        min_speedup_threshold: How many times as fast as the op itself an implementation must be
            to be used instead.
        benchmark_with_cudagraphs: Time by CUDA-graph replay. Implementations that can be captured
            are timed that way in any case; this also asks for it where Inductor's own benchmarker
            does the timing.
        include_fallback: Whether the op itself competes.
        check: Whether what an implementation returns at a probe is compared with what the op
            itself returns; one that returns something else is not used. A dict gives tolerances
            by dtype: for floating dtypes relative to the element or to the root mean square of
            the output, of its row or of its column, whichever is largest (1e-4 for float32 by
            default), and for integers the largest difference (0 by default).
        probe_sizes: Sizes of the dispatched dimension to measure at, strictly increasing. Each
            counts for the range that holds it, several there count alike, and a range that holds
            none is measured at its end.
        records: A folder in which what was measured is kept as JSON, and looked up before
            Inductor's cache directory, where it is kept in any case. The environment variable
            TORCH_RANGE_DISPATCH_RECORDS names one for all registrations that name none.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument breaks a rule; the message names it, its value and the rule.

    Example:
        >>> @torch.library.custom_op("docs::scale", mutates_args=())
        ... def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
        ...     return x * factor
        >>> _ = scale.register_fake(lambda x, factor: torch.empty_like(x))
        >>> register_custom_op_autotuning(
        ...     scale,
        ...     configs=[
        ...         CustomOpConfig(lambda x, factor: x * factor),
        ...         CustomOpConfig(lambda x, factor: x / (1 / factor)),
        ...     ],
        ...     dispatch_on={"tensor_name": "x", "dim": 0},
        ...     split_points=[64, 1024],
        ... )
        >>> unregister_custom_op_autotuning(scale)
    """
    registration = make_registration(
        custom_op,
        configs,
        config_generator,
        name,
        input_gen_fns,
        dispatch_on,
        split_points,
        min_speedup_threshold,
        benchmark_with_cudagraphs,
        include_fallback,
        check,
        probe_sizes,
        records,
    )
    if registration.op in _registrations:
        log.debug("%s: registered again, replacing the earlier registration", registration.op)
    _install(registration)


def unregister_custom_op_autotuning(custom_op: CustomOpDef | OpOverload) -> None:
    """Undo ``register_custom_op_autotuning``: the op is lowered normally again.

    Nothing happens where the op is not registered.

    Raises:
        TypeError: ``custom_op`` is neither a custom op nor an overload.
    """
    op = overload_of(custom_op)
    if _registrations.pop(op, None) is not None:
        compat.remove_lowering(op)
        fingerprint.publish(_registrations.values())


@contextlib.contextmanager
def custom_op_autotuning(
    custom_op: CustomOpDef | OpOverload, *args: Any, **kwargs: Any
) -> Iterator[None]:
    """Register for the length of a ``with`` block; what was registered before comes back after.

    Takes the arguments of ``register_custom_op_autotuning``.
    """
    before = _registrations.get(overload_of(custom_op))
    register_custom_op_autotuning(custom_op, *args, **kwargs)
    try:
        yield
    finally:
        unregister_custom_op_autotuning(custom_op)
        if before is not None:
            _install(before)


@dataclass(frozen=True)
class AutotuneChoice:
    """The winner of ``autotune_custom_op``.

    Attributes:
        name: The candidate, with its parameters.
        gm: Its traced graph, from the input tensors to a tuple of outputs; None for the op itself.
        decomposition: Its implementation; None for the op itself.
        decomposition_kwargs: The parameters it runs with.
        config_patches: The Inductor settings that its kernels are generated under.
        layout: Layout of its first output.
    """

    name: str
    gm: torch.fx.GraphModule | None
    decomposition: Callable[..., Any] | None
    decomposition_kwargs: dict[str, Any]
    config_patches: dict[str, Any]
    layout: ir.Layout
    _output: Any = field(repr=False, default=None)

    def output_node(self) -> Any:
        """The IR of its result in the graph being lowered."""
        return self._output


def autotune_custom_op(
    name: str,
    decompositions: Sequence[Callable[..., Any]],
    inputs: Sequence[Any],
    non_tensor_args: Sequence[Mapping[str, Any]],
    op_overload: OpOverload,
    user_input_gen_fns: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    config_patches_list: Sequence[dict[str, Any]] | None = None,
    min_speedup_threshold: float = 1.0,
    benchmark_with_cudagraphs: bool = False,
    include_fallback: bool = True,
) -> tuple[Any, AutotuneChoice]:
    """Tune implementations of an op once, inside a lowering, and inline the winner.

    Args:
        name: What generated code calls the op.
        decompositions: The implementations.
        inputs: IR nodes for the tensor arguments of the op, in the order of its schema.
        non_tensor_args: For each implementation its other arguments and parameters by name.
        op_overload: The op itself; it runs with ``non_tensor_args[0]``.
        user_input_gen_fns: As ``input_gen_fns`` of ``register_custom_op_autotuning``.
        config_patches_list: For each implementation the Inductor settings for its kernels.
        min_speedup_threshold: How many times as fast as the op an implementation must be.
        benchmark_with_cudagraphs: As in ``register_custom_op_autotuning``.
        include_fallback: Whether the op itself competes.

    Returns:
        IR for the result (a tuple where the op returns several tensors), and the winning choice.

    Raises:
        TypeError: ``decompositions`` is not a list or tuple.
        ValueError: The lists differ in length, or an argument breaks a rule.
        RuntimeError: There are no inputs, or no implementation is usable and the op may not win.
    """
    if not isinstance(decompositions, (list, tuple)):
        raise TypeError(
            f"autotune_custom_op({name}): decompositions must be a list or tuple of callables, "
            f"got {decompositions!r} of type {type(decompositions).__name__}"
        )
    if not inputs:
        raise RuntimeError(f"autotune_custom_op({name}): inputs must hold at least one tensor")
    patches = config_patches_list or [{} for _ in decompositions]
    if not len(decompositions) == len(non_tensor_args) == len(patches):
        raise ValueError(
            f"autotune_custom_op({name}): decompositions, non_tensor_args and config_patches_list "
            f"must have the same length, got {len(decompositions)}, {len(non_tensor_args)} and "
            f"{len(patches)}"
        )
    configs = [
        CustomOpConfig(function, config_patches=patch, **given)
        for function, given, patch in zip(decompositions, non_tensor_args, patches, strict=True)
    ]
    registration = make_registration(
        op_overload,
        configs or None,
        None if configs else (lambda tensors: []),
        name,
        user_input_gen_fns,
        None,
        None,
        min_speedup_threshold,
        benchmark_with_cudagraphs,
        include_fallback,
    )
    call = _call_with(op_overload, inputs, non_tensor_args[0] if non_tensor_args else {})
    contest = _prepare(registration, call, candidates_from_configs(configs, include_fallback))
    if not contest.contenders:
        raise RuntimeError(f"autotune_custom_op({name}): no usable choice: {contest.rejected}")
    winner = _tune_once(contest)
    result = contest.inline(winner)
    if result is None:
        result = _normal_lowering(call)
    return result, contest.choice(winner, result)


def _call_with(op: OpOverload, inputs: Sequence[Any], given: Mapping[str, Any]) -> BoundCall:
    """The call of ``op`` with ``inputs`` as its tensor arguments, in the order of the schema."""
    arguments = op._schema.arguments
    tensors = [a.name for a in arguments if "Tensor" in str(a.type) and a.name not in given]
    known = {a.name for a in arguments}
    others = {key: value for key, value in given.items() if key in known}
    return bind(op, (), dict(zip(tensors, inputs, strict=False)) | others)


def _normal_lowering(call: BoundCall) -> Any:
    """A call of the op in the generated code; what comes after its operands goes by name."""
    arguments = call.fill(call.operands)
    schema = [a for a in call.op._schema.arguments if not a.kwarg_only]
    while schema and not call.holds_operand(schema[-1].name):
        schema.pop()
    positional = {a.name: arguments[a.name] for a in schema}
    by_name = {n: arguments[n] for n in arguments if n in call.supplied and n not in positional}
    handler = fallback_handler(call.op, add_to_fallback_set=False)
    return handler(*positional.values(), **by_name)


def _install(registration: Registration) -> None:
    _registrations[registration.op] = registration
    compat.install_lowering(registration.op, _lowering_of(registration))
    compat.leave_operands_unrealized(registration.op)
    fingerprint.publish(_registrations.values())


def _lowering_of(registration: Registration) -> Callable[..., Any]:
    def lower(*args: Any, **kwargs: Any) -> Any:
        try:
            return _lower(registration, args, kwargs)
        except Unsupported as reason:
            torch._logging.warning_once(
                log, "%s is lowered as if it were not registered: %s", registration.op, str(reason)
            )
            return None
        finally:
            # Others may have been tuned with it.
            for op in (registration.op, *_registrations):
                compat.leave_operands_unrealized(op)

    return lower


def _lower(registration: Registration, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Lower one call: IR for its result, or None for the op's normal lowering."""
    op = registration.op
    if op._schema.is_mutable or not op._schema.returns:
        raise Unsupported("it mutates an argument or returns nothing")
    if any(r.alias_info is not None for r in op._schema.returns):
        raise Unsupported("it returns an alias of an argument")
    call = bind(op, args, kwargs, keep=dispatch.flat().supported(), node=lowered_node(op))
    candidates = _candidates(registration, call)
    if not candidates:
        log.info("%s: no configs, lowered normally", op)
        return None
    if registration.dispatch_on is None:
        return _standard_lowering_fn(registration, call, candidates)
    return _range_based_lowering_fn(registration, call, candidates)


def _candidates(registration: Registration, call: BoundCall) -> tuple[Candidate, ...]:
    configs = _configs_for(registration, call)
    return candidates_from_configs(configs, registration.include_fallback) if configs else ()


def _configs_for(registration: Registration, call: BoundCall) -> tuple[CustomOpConfig, ...]:
    if registration.config_generator is None:
        return registration.configs or ()
    tensors = {
        name: value
        for name, value in call.fill(fake_operands(call)).items()
        if isinstance(value, torch.Tensor)
    }
    return checked_configs(registration.op, registration.config_generator(tensors))


def _standard_lowering_fn(
    registration: Registration, call: BoundCall, candidates: Sequence[Candidate]
) -> Any:
    """Tune once, at the sizes of the first call, and inline the winner."""
    contest = _prepare(registration, call, candidates)
    return contest.inline(_tune_once(contest))


def _tune_once(contest: _Contest) -> Candidate:
    """The winner at the sizes of the first call."""
    point = hinted_point(contest.bench.call, sympy.S.Zero)
    (result,) = contest.tune([Range(0, math.inf)], lambda range: [point])
    winner = contest.by_label[result.winner]
    report.record(contest.plan(None, "", [result], [(result.range, winner)]))
    return winner


def _range_based_lowering_fn(
    registration: Registration, call: BoundCall, candidates: Sequence[Candidate]
) -> Any:
    """Tune each range that can occur, merge neighbours with the same winner, and dispatch.

    A size that is static here needs no dispatch: only the range that holds it is tuned.
    """
    tuned = _tune_ranges(registration, call, candidates)
    joint = _joined(tuned)
    others = [_tune_node(node) for node in joint.region.joined] if joint is not None else []
    together = [other for other in others if other is not None]
    if joint is None or len(together) < len(others):
        together = []
    everything = [tuned, *together]
    chosen = _merge(_cut([each.chosen for each in everything]), _all_same)
    if len(chosen) == 1:
        report.record(tuned.plan)
        return tuned.contest.inline(chosen[0][1][0])
    if joint is None:
        together_in_one = _in_one_kernel(tuned)
        if together_in_one is not None:
            return together_in_one
    contest = tuned.contest
    if joint is not None and together:
        arrangement = neighbours.Arrangement(joint, contest.with_producers(joint))
    else:
        arrangement = contest.arrange(tuned.size, tuned.points)
    plan = replace(tuned.plan, tuning_seconds=time.perf_counter() - contest.started)
    with compat.lowered_normally(each.contest.call.op for each in everything):
        dispatched = _dispatch(everything, arrangement, chosen)
    report.record(dispatched.described(plan, contest.whole))
    for other in together:
        report.record(other.plan)
    return dispatched.result


@dataclass(frozen=True)
class _Tuned:
    """One call, tuned: its contest, where the size is read, the merged ranges, and the report.

    ``points`` are the probes, each with the label of the winner there.
    """

    contest: _Contest
    operand: int
    dim: int
    size: sympy.Expr
    chosen: Sequence[tuple[Range, Candidate]]
    plan: report.Plan
    points: Sequence[tuple[str, Point]]


def _tune_ranges(
    registration: Registration, call: BoundCall, candidates: Sequence[Candidate]
) -> _Tuned:
    operand, dim, size = _dispatched_size(registration, call)
    ranges = _reachable_ranges(registration, size)
    contest = _prepare(registration, call, candidates, size)
    probes = {r: _probes(registration, contest.bench.call, size, r) for r in ranges}
    results = contest.tune(ranges, probes.__getitem__, size)
    chosen = _merge([(r.range, contest.by_label[r.winner]) for r in results], Candidate.same_as)
    contest.choose_configurations(chosen, probes)
    where = f"{registration.dispatch_on.tensor_name}.shape[{dim}]"  # type: ignore[union-attr]
    plan = contest.plan(where, str(size), results, chosen)
    points = [(result.winner, point) for result in results for point in probes[result.range]]
    return _Tuned(contest, operand, dim, size, chosen, plan, points)


def _tune_node(node: Node) -> _Tuned | None:
    """Tune a call that is not lowered yet; None where it has to be lowered by itself."""
    registration = _registrations[node.target]
    args, kwargs = map_arg((node.args, node.kwargs), region.operand_for)
    try:
        call = bind(registration.op, args, kwargs, keep=True, node=node)
        candidates = _candidates(registration, call)
        with compat.lowered_normally([registration.op]):
            return _tune_ranges(registration, call, candidates) if candidates else None
    except Unsupported as reason:
        log.info("%s: dispatched by itself: %s", registration.op, reason)
        return None


def _joined(tuned: _Tuned) -> region.RegionCall | None:
    """The region of a call with other dispatched ops in it; None where there are none."""

    def joins(node: Node) -> bool:
        registration = _registrations.get(node.target)
        where = registration.dispatch_on if registration is not None else None
        if registration is None or where is None or registration.config_generator is not None:
            return False
        if any(config.config_patches for config in registration.configs or ()):
            return False  # they would hold for what else is in the branch
        names = [a.name for a in registration.op._schema.arguments]
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        value = getattr(given.get(where.tensor_name), "meta", {}).get("val")
        if not isinstance(value, torch.Tensor) or not -value.dim() <= where.dim < value.dim():
            return False
        return bool(convert_symint_to_expr(value.shape[where.dim]) == tuned.size)

    contest = tuned.contest
    patched = any(c.candidate.config_patches for c in contest.contenders)
    if patched or not dispatch.flat().supported() or tuned.size.is_Integer:
        return None
    call = region.around(contest.alone, tuned.size, contest.ref.pack, joins)
    return call if isinstance(call, region.RegionCall) and call.region.joined else None


def _cut(
    plans: Sequence[Sequence[tuple[Range, Candidate]]],
) -> list[tuple[Range, tuple[Candidate, ...]]]:
    """The winners of several calls where they are dispatched together: cut where any changes.

    Their first ranges may start apart: what is below the other one's start does not occur.
    """
    starts = sorted({range.start for plan in plans for range, _ in plan})
    last = max(plans[0][-1][0].end, starts[-1])
    ends = [*(start - 1 for start in starts[1:]), last]
    return [
        (
            Range(start, end),
            tuple(
                next(
                    (winner for range, winner in reversed(plan) if range.start <= start), plan[0][1]
                )
                for plan in plans
            ),
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def _in_one_kernel(tuned: _Tuned) -> Any:
    """The branches as one piece of pointwise IR; None where they are not, or it is slower."""
    contest, alone = tuned.contest, tuned.contest.alone
    ranges, winners = zip(*tuned.chosen, strict=True)
    if (
        not config.unified_pointwise
        or _kept_apart()
        or _forced() is not None
        or any(winner.is_op or winner.config_patches for winner in winners)
        or free_unbacked_symbols(tuned.size)
    ):
        return None
    try:
        graphs = {w.label: contest.graph_alone(w) for w in winners}
    except Rejected as reason:  # where it fits with its neighbours alone
        log.debug("%s: branches stay apart: %s", alone.op, reason)
        return None
    traces = [graphs[winner.label] for winner in winners]
    why = one_kernel.refusal(traces)
    if why is not None:
        log.debug("%s: branches stay apart: %s", alone.op, why)
        return None
    name = contest.registration.name
    kernel = OneKernel(name, alone, contest.ref, ranges, winners, traces, tuned.operand, tuned.dim)
    records = grid.CallRecords(contest.registration, contest.bench, contest.contenders)
    if not one_kernel.no_slower(kernel, records, tuned.points):
        return None
    try:
        with compat.frozen_guards(V.graph.sizevars.shape_env):
            outputs = kernel.lower(region.given(alone))
    except Exception as reason:  # as branches, it can be lowered
        log.info("%s: branches stay apart: %s", alone.op, reason)
        return None
    log.info("%s: %s", alone.op, kernel)
    report.record(replace(tuned.plan, one_kernel=True))
    return contest.ref.pack(outputs)


def _all_same(one: tuple[Candidate, ...], other: tuple[Candidate, ...]) -> bool:
    return all(a.same_as(b) for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class _Dispatched:
    """IR for the result of a dispatched op, and what the branches compute beside it.

    Attributes:
        result: The IR.
        arrangement: The neighbours in the branches.
        handed_out: Those of them whose values the rest of the graph uses.
        parts: Of branches that are generated in parts: the sizes of each.
        seconds: Wall time of tracing and lowering the branches.
    """

    result: Any
    arrangement: neighbours.Arrangement
    handed_out: Sequence[Node]
    parts: Sequence[Range]
    seconds: float

    def described(self, plan: report.Plan, whole: neighbours.Arrangement) -> report.Plan:
        """``plan`` with where the neighbours run, of those in ``whole``."""
        producers, consumers = self.arrangement.producers, self.arrangement.consumers
        return replace(
            plan,
            region=tuple(node.name for node in (*producers, *consumers)),
            producers=tuple(node.name for node in producers),
            handed_out=tuple(node.name for node in self.handed_out),
            parts=tuple(self.parts),
            left_out=self.arrangement.outside(whole) if self.arrangement.left_out else (),
            costs=(("branches", self.seconds),),
        )


def _dispatch(
    tuned: Sequence[_Tuned],
    arrangement: neighbours.Arrangement,
    chosen: Sequence[tuple[Range, tuple[Candidate, ...]]],
) -> _Dispatched:
    """The nested cond over the merged ranges in place of the op, and of what moves with it."""
    started = time.perf_counter()
    first, *others = tuned
    contest = first.contest
    call = region.lowered(arrangement.call)

    def branch(range: Range, winners: tuple[Candidate, ...], continued: bool) -> dispatch.Branch:
        run = call
        if others and isinstance(call, region.RegionCall):
            pairs = zip(others, winners[1:], strict=True)
            stand_ins = {other.contest.alone.node: other.contest.stand_in(w) for other, w in pairs}
            run = replace(call, stand_ins=stand_ins)
        function = traceable(winners[0], run, contest.ref)
        made_for = None if others else contest.general.get((winners[0].label, range))
        known = contest.known(range, first.size, made_for)
        return dispatch.Branch(range, function, winners[0].config_patches, known, continued)

    parts = {range: _parts(tuned, range, winners) for range, winners in chosen}
    branches = [
        branch(part, winners, continued=part is not parts[range][-1])
        for range, winners in chosen
        for part in parts[range]
    ]
    fakes = fake_operands(call)
    nested = dispatch.nested_cond(branches, first.operand, first.dim, len(fakes))
    symbols = dispatch.unbound_symbols(call)
    size = sympy.sympify(call.operands[first.operand].get_size()[first.dim])
    outputs = call.results(contest.ref.outputs)
    operands: list[Any] = list(call.operands)
    handed_out: dict[int, Node] = {}
    if dispatch.flat().supported() and "producers" not in arrangement.left_out:
        operands, handed_out = region.move_producers(call)
    dispatched = dispatch.Lowering(
        contest.registration.name,
        branches,
        size,
        outputs,
        {place: region.expected(node) for place, node in handed_out.items()},
    )
    try:
        nest = trace_function(nested, [*fakes, *map(convert_to_symint, symbols)])
    except Rejected as reason:
        results = dispatched.inline_branches(
            _graphs_without_cond(branches, fakes, reason), operands
        )
    else:
        constants = map(V.graph.add_tensor_constant, lift_constants(nest))
        results = dispatched.inline(nest, [*operands, *symbols, *constants])
    for node, value in zip(handed_out.values(), results[len(outputs) :], strict=True):
        region.hand_out(node, value)
    results = results[: len(outputs)]
    used = list(handed_out.values())
    if isinstance(call, region.RegionCall):
        used += [node for node in call.region.outputs if node is not call.node]
        result = region.settle(call, results)
    else:
        result = contest.ref.pack(results)
    in_parts = [part for of_range in parts.values() if len(of_range) > 1 for part in of_range]
    return _Dispatched(result, arrangement, used, in_parts, time.perf_counter() - started)


def _parts(tuned: Sequence[_Tuned], range: Range, winners: Sequence[Candidate]) -> Sequence[Range]:
    """``range``, or where what its branch consists of is chosen by the size, parts of it."""
    contest, size = tuned[0].contest, tuned[0].size
    whole = contest.known(range, size)
    if (
        config.template_parts < 2
        or whole is None
        or not dispatch.flat().supported()
        or (len(tuned) == 1 and (winners[0].label, range) in contest.general)
    ):
        return [range]
    graphs = [
        contender.graph
        for each, winner in zip(tuned, winners, strict=True)
        for contender in each.contest.contenders
        if contender.candidate.same_as(winner)
    ]
    if not templates.chosen_by_size(graphs, winners[0].config_patches, size):
        return [range]
    parts = parts_of(range, int(size.xreplace(dict(whole.hints))), config.template_parts)
    reached = [part for part in parts if contest.known(part, size) is not None]
    # What is left covers the range, since a branch runs for whatever is below its end.
    return reached if reached and reached[-1] is parts[-1] else [range]


def _graphs_without_cond(
    branches: Sequence[dispatch.Branch], fakes: Sequence[Any], reason: Rejected
) -> list[torch.fx.GraphModule]:
    """The winners' own traces, for where ``torch.cond`` would not take them together.

    It merges the outputs of its branches, and asks for a guard if a dimension might be 0 or 1
    (the columns of ``x[:, 1:]``). Here they are known to be equal: the op's.
    """
    if not dispatch.flat().supported():
        raise Unsupported(f"the dispatch over its ranges cannot be traced: {reason}") from reason
    try:
        return [trace_function(branch.function, fakes) for branch in branches]
    except Rejected as other:
        raise Unsupported(f"the op itself cannot be traced: {other}") from other


def _dispatched_size(registration: Registration, call: BoundCall) -> tuple[int, int, sympy.Expr]:
    """Which operand's which dimension decides, and that size as the graph knows it."""
    where = registration.dispatch_on
    assert where is not None
    operand = call.operand_of(where.tensor_name)
    if operand is None:
        raise Unsupported(f"argument {where.tensor_name!r} of this call is not a tensor")
    sizes = call.operands[operand.index].get_size()
    if not -len(sizes) <= where.dim < len(sizes):
        raise ValueError(
            f"register_custom_op_autotuning({call.op}): dispatch_on['dim'] must be in "
            f"[{-len(sizes)}, {len(sizes) - 1}], since {where.tensor_name!r} has {len(sizes)} "
            f"dimensions in this call, got {where.dim}"
        )
    dim = where.dim % len(sizes)
    return operand.index, dim, V.graph.sizevars.simplify(sympy.sympify(sizes[dim]))


def _reachable_ranges(registration: Registration, size: sympy.Expr) -> tuple[Range, ...]:
    """The ranges that the size can fall into: one where it is static."""
    if size.is_Integer:
        return reachable(registration.ranges, int(size), int(size))
    bounds = V.graph.sizevars.shape_env.bound_sympy(size)
    low, high = (float(bound) for bound in (bounds.lower, bounds.upper))
    ranges = reachable(registration.ranges, low, high)
    return tuple(r for r in ranges if can_reach(size, r.start, r.end))


def _probes(
    registration: Registration, call: BoundCall, size: sympy.Expr, range: Range
) -> list[Point]:
    """The points at which a range is measured: none where the graph knows of no size in it."""
    if size.is_Integer:
        return [hinted_point(call, size)]
    points: dict[int, Point] = {}
    for wanted in registration.probes(range):
        try:
            point = point_at(call, size, wanted, range.start, range.end)
        except NoSuchPoint as reason:
            log.info("%s %s: not measured: %s", call.op, range, reason)
        else:
            points.setdefault(point.size, point)
    return list(points.values())


def _merge(
    winners: Sequence[tuple[Range, T]], same: Callable[[T, T], bool]
) -> list[tuple[Range, T]]:
    return list(winners) if _kept_apart() else merge_neighbours(winners, same)


def _kept_apart() -> bool:
    """Whether a test switch asks for a dispatch with a branch for each range."""
    switch = compat.stock_test_switch("force_no_impl_grouping")
    return bool(config.force_no_merge or switch)


def _forced() -> bool | None:
    """True: an implementation must win; False: the op itself must; None: measurements decide."""
    if config.force_decomposition is not None:
        return config.force_decomposition
    return compat.stock_test_switch("force_custom_op_decomposition")


def _prepare(
    registration: Registration,
    alone: BoundCall,
    candidates: Sequence[Candidate],
    size: sympy.Expr = sympy.S.Zero,
) -> _Contest:
    """Trace every candidate; those that cannot compete are out, with the reason.

    One that is on record could be traced before: it is traced again only if it wins.

    Args:
        registration: What the user registered.
        alone: The call, without its neighbours.
        candidates: What competes.
        size: What may be dispatched on.
    """
    started = time.perf_counter()
    ref = reference(alone, fake_operands(alone))
    call = region.around(alone, size, ref.pack)
    if _forced():  # an implementation has to win, whatever it returns: nothing is asked of the op
        registration = replace(registration, check=None)
        candidates = [c for c in candidates if not c.is_op] or candidates
    tuned = region.with_producers(call, registration.input_gen_fns.keys())
    fakes = fake_operands(tuned)
    bench = Bench(
        tuned,
        fakes,
        registration.input_gen_fns,
        registration.benchmark_with_cudagraphs,
        registration.check,
    )
    contenders = [Contender(c, functools.partial(trace, c, tuned, ref, fakes)) for c in candidates]
    contest = _Contest(registration, alone, call, ref, contenders, [], bench, started)
    on_record = grid.recorded(registration, bench, contenders)
    contest.drop_untraceable([c for c in contenders if c.candidate.label not in on_record])
    return contest


@dataclass(frozen=True)
class _Contest:
    """The contenders of one call, and what they are tuned, inlined and dispatched with."""

    registration: Registration
    alone: BoundCall
    call: BoundCall
    ref: Reference
    contenders: list[Contender]
    rejected: list[tuple[str, str]]
    bench: Bench
    started: float
    # Branches that are generated as for all sizes, with the sizes that such code is made for.
    general: dict[tuple[str, Range], Point] = field(default_factory=dict)
    # Of branches that were measured as they will be generated: the modules.
    made: dict[tuple[str, Range], BenchmarkModule] = field(default_factory=dict)

    @property
    def by_label(self) -> dict[str, Candidate]:
        """All that can win. The op itself always can, as what is left if nothing else works."""
        op = Candidate(OP_LABEL, None, {}, {}, candidates_from_configs((), True)[0].key)
        return {OP_LABEL: op} | {c.candidate.label: c.candidate for c in self.contenders}

    def tune(
        self,
        ranges: Sequence[Range],
        probes: Callable[[Range], Sequence[Point]],
        size: sympy.Expr = sympy.S.Zero,
    ) -> list[RangeResult]:
        """Measure every contender at every range's probes, and choose the winners.

        Those that nearly tie are measured again as branches of a dispatch on ``size``.
        """
        points = [probes(range) for range in ranges]
        while True:
            results = self._choose(ranges, points, size)
            winners = {result.winner for result in results}
            if not self.drop_untraceable(
                [c for c in self.contenders if c.candidate.label in winners]
            ):
                return results

    @property
    def whole(self) -> neighbours.Arrangement:
        """All neighbours in the branches, as the contenders are measured."""
        return neighbours.Arrangement(self.call, self.bench.call)

    def with_producers(self, call: BoundCall) -> BoundCall:
        return region.with_producers(call, self.registration.input_gen_fns.keys())

    def arrange(
        self, size: sympy.Expr, points: Sequence[tuple[str, Point]]
    ) -> neighbours.Arrangement:
        """The neighbours in the branches: not those that are measured to be slower there.

        Args:
            size: What is dispatched on.
            points: The probes, each with the label of the winner there.
        """
        best = self.whole
        if _forced() is not None:
            return best
        fewer = best.without_reductions(self.alone, size, self.ref.pack, self.with_producers)
        best = self._faster(best, fewer, points)
        if not dispatch.flat().supported():
            return best
        winners = {label for label, _ in points}
        graphs = [c.graph for c in self.contenders if c.candidate.label in winners]
        return self._faster(best, best.without_producers(graphs), points)

    def _faster(
        self,
        best: neighbours.Arrangement,
        fewer: neighbours.Arrangement | None,
        points: Sequence[tuple[str, Point]],
    ) -> neighbours.Arrangement:
        """``fewer``, if all winners are faster with it wherever they were measured."""
        if fewer is None:
            return best
        rules = Rules(OP_LABEL, self.registration.min_speedup_threshold, config.noise)
        pairs = []
        for winner in self.contenders:
            won = [point for label, point in points if label == winner.candidate.label]
            if not won:
                continue
            both = neighbours.variants(winner, best, fewer, self.whole, self.ref)
            found = grid.fill(self.registration, self.bench, both, [won], fewer.about)
            pairs += [(row[0], row[1]) for at in found or () for _, row in at.probes if row]
            # Nearly always the first winner already says so, and no other is compiled.
            if not slower(pairs, rules):
                return best
        names = ", ".join(fewer.outside(best))
        log.info("%s: faster with these left outside of its branches: %s", self.call.op, names)
        return fewer

    def choose_configurations(
        self, chosen: Sequence[tuple[Range, Candidate]], probes: Mapping[Range, Sequence[Point]]
    ) -> None:
        """Tune the kernels of each winner that was measured for the sizes that it is to run at."""
        middle = grid.middle_first([point for at in probes.values() for point in at])[:1]
        for range, winner in chosen:
            points = [p for part, at in probes.items() if range.contains(part.start) for p in at]
            module = self.made.get((winner.label, range))
            tuned_at = points[:1] if module is not None else middle
            contenders = [c for c in self.contenders if c.candidate.label == winner.label]
            if module is None and contenders and points:
                module = contenders[0].module_at(points[0])
            if module is None or not all(map(module.serves, points)) or points == tuned_at:
                continue
            tuner.choose_configurations(self.bench, module, points)

    def drop_untraceable(self, contenders: Sequence[Contender]) -> bool:
        """Trace ``contenders``; those that can't be are out, with the reason. Whether any was."""
        dropped = False
        for contender in contenders:
            label = contender.candidate.label
            try:
                contender.graph  # noqa: B018
            except Rejected as reason:
                dropped = True
                self.contenders.remove(contender)
                self.rejected.append((label, str(reason)))
                torch._logging.warning_once(
                    log, "%s: %s is not used: %s", self.call.op, label, str(reason)
                )
        return dropped

    def _choose(
        self, ranges: Sequence[Range], points: Sequence[Sequence[Point]], size: sympy.Expr
    ) -> list[RangeResult]:
        measured = self._measure(points)
        rules = Rules(
            op=OP_LABEL,
            threshold=self.registration.min_speedup_threshold,
            noise=config.noise,
            force=_forced() if measured is not None else False,
        )
        found = measured or [Measured()] * len(ranges)
        winners = choose([of_range.row for of_range in found], rules)
        if measured is not None and rules.force is None and self._is_dispatched(size):
            ranking = self._ranking(ranges, points, found, rules, size)
            found, winners = ranking.choose_again(winners)
            self.general.clear()
            self.general.update(ranking.for_all_sizes(winners))
            self.made.clear()
            self.made.update(ranking.modules(winners))
        results = []
        for range, of_range, winner in zip(ranges, found, winners, strict=True):
            log.info("%s %s: %s", self.call.op, range, winner)
            for measurement in of_range.out:
                self._rule_out(measurement, range)
            sizes = [size for size, _ in of_range.probes]
            results.append(
                RangeResult(
                    range,
                    max(sizes, default=None),
                    of_range.row,
                    winner,
                    of_range.probes,
                    of_range.as_generated,
                )
            )
        return results

    def _is_dispatched(self, size: sympy.Expr) -> bool:
        """Whether branches on ``size`` are generated for their ranges."""
        return not size.is_Integer and config.remeasure_margin > 0 and dispatch.flat().supported()

    def _ranking(
        self,
        ranges: Sequence[Range],
        points: Sequence[Sequence[Point]],
        measured: Sequence[Measured],
        rules: Rules,
        size: sympy.Expr,
    ) -> Ranking:
        def merge(winners: Sequence[str]) -> list[Range]:
            candidates = [self.by_label[label] for label in winners]
            merged = _merge(list(zip(ranges, candidates, strict=True)), Candidate.same_as)
            return [range for range, _ in merged]

        records = grid.CallRecords(self.registration, self.bench, self.contenders)
        known = functools.partial(self.known, size=size)
        return Ranking(records, Branches(ranges, merge, known, size), points, measured, rules)

    def _measure(self, points: Sequence[Sequence[Point]]) -> list[Measured] | None:
        """A time for each contender; None where nothing may be measured or is on record."""
        if _forced() is False:
            return [Measured() for _ in points]
        rivals = len(self.contenders) > 1 or _forced()
        if not self.contenders or not (rivals or self._is_to_be_checked()):
            row = tuple(Measurement(c.candidate.label, 0.0) for c in self.contenders)
            return [Measured((), row) for _ in points]
        return grid.fill(self.registration, self.bench, self.contenders, points)

    def _is_to_be_checked(self) -> bool:
        """Whether an implementation that has no rival has to give the op's answers all the same."""
        implementations = [c for c in self.contenders if not c.candidate.is_op]
        return bool(implementations) and self.registration.check is not None and not grid.pinned()

    def _rule_out(self, measurement: Measurement, range: Range) -> None:
        """Say, once, that what showed in ``range`` puts a candidate out for all ranges."""
        label, reason = measurement.label, f"in {range}, {measurement.error}"
        self.rejected.append((label, reason))
        torch._logging.warning_once(log, "%s: %s is not used: %s", self.call.op, label, reason)

    def plan(
        self,
        where: str | None,
        size: str,
        results: Sequence[RangeResult],
        chosen: Sequence[tuple[Range, Candidate]],
    ) -> report.Plan:
        return report.Plan(
            op=self.call.op.name(),
            dispatch_on=where,
            size=size,
            results=tuple(results),
            chosen=tuple((range, candidate.label) for range, candidate in chosen),
            for_all_sizes=tuple(
                range for range, candidate in chosen if (candidate.label, range) in self.general
            ),
            rejected=tuple(self.rejected),
            tuning_seconds=time.perf_counter() - self.started,
            region=self.bench.call.neighbours(),
        )

    def inline(self, winner: Candidate) -> Any:
        """The winner in place of the op; None, the normal lowering, where that is the op itself."""
        if winner.is_op:
            op = self.call.op
            known = op in lowering.lowerings and op not in lowering.fallbacks
            return None if known else _normal_lowering(self.alone)
        graph, operands = self.graph_alone(winner), region.given(self.alone)
        if not winner.config_patches and region.made_together(
            self._graph(winner), graph, self.call
        ):
            return self._inline_with_consumers(winner)
        inputs = graph.graph.find_nodes(op="placeholder")
        for operand, node in zip(operands, inputs, strict=True):
            # As the graph around does with a value that it computes for several nodes.
            if isinstance(operand, ir.TensorBox) and len(node.users) > 1:
                operand.mark_reuse(len(node.users))
        name = self.registration.name
        return self.ref.pack(dispatch.inline(graph, operands, name, winner.config_patches))

    def _inline_with_consumers(self, winner: Candidate) -> Any:
        call = region.lowered(self.call)
        assert isinstance(call, region.RegionCall)
        graph = trace(winner, call, self.ref, fake_operands(call))
        results = dispatch.inline(graph, region.given(call), self.registration.name, {})
        return region.settle(call, results)

    def _graph(self, winner: Candidate) -> torch.fx.GraphModule:
        """The trace of ``winner`` with its neighbours."""
        return next(c.graph for c in self.contenders if c.candidate.same_as(winner))

    def graph_alone(self, winner: Candidate) -> torch.fx.GraphModule:
        """The trace of ``winner`` over the operands of the call, without its neighbours."""
        if self.bench.call is self.alone:
            return self._graph(winner)
        return trace(winner, self.alone, self.ref, fake_operands(self.alone))

    def choice(self, winner: Candidate, result: Any) -> AutotuneChoice:
        first = self.ref.outputs[0]
        # Called where the op is no node: its neighbours are unknown, and the traces are its own.
        graphs = [c.graph for c in self.contenders if c.candidate.same_as(winner)]
        return AutotuneChoice(
            name=winner.label,
            gm=None if winner.is_op else graphs[0],
            decomposition=winner.function,
            decomposition_kwargs=dict(winner.params),
            config_patches=dict(winner.config_patches),
            layout=ir.FixedLayout(
                first.device,
                first.dtype,
                [convert_symint_to_expr(s) for s in first.shape],
                [convert_symint_to_expr(s) for s in first.stride()],
            ),
            _output=result,
        )

    def stand_in(self, winner: Candidate) -> Callable[[Mapping[Node, Any]], Any]:
        """``winner`` in place of the op's node in a region, from the values of the nodes before."""
        run = traceable(winner, self.alone, self.ref)

        def call(values: Mapping[Node, Any]) -> Any:
            return self.ref.pack(run(*(values[node] for node in self.alone.nodes if node)))

        return call

    def known(self, range: Range, size: sympy.Expr, made_for: Point | None = None) -> Known | None:
        """What a branch for ``range`` is generated for: its last size that was measured, say."""
        if made_for is not None:
            return known_in(range, size, made_for.values, V.graph.sizevars.shape_env)
        hinted = hinted_point(self.call, size)
        wanted = max(self.registration.probes(range))
        if range.contains(hinted.size):
            wanted = max(wanted, hinted.size)
        try:
            point = point_at(self.call, size, wanted, range.start, range.end)
        except NoSuchPoint:
            return None
        return known_in(range, size, point.values, V.graph.sizevars.shape_env)
