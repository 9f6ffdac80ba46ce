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
from dataclasses import dataclass, field
from typing import Any

import sympy

import torch
from torch._inductor import ir
from torch._inductor.kernel.range_dispatch import (
    compat,
    config,
    dispatch,
    fingerprint,
    grid,
    report,
)
from torch._inductor.kernel.range_dispatch.call import bind, BoundCall, Unsupported
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
)
from torch._inductor.kernel.range_dispatch.grid import Measured
from torch._inductor.kernel.range_dispatch.inputs import hinted_point, NoSuchPoint, Point, point_at
from torch._inductor.kernel.range_dispatch.ranges import (
    DEFAULT_RANGE_UPPER_BOUND,
    merge_neighbours,
    Range,
    reachable,
)
from torch._inductor.kernel.range_dispatch.registration import (
    checked_configs,
    make_registration,
    overload_of,
    Registration,
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


__all__ = [
    "autotune_custom_op",
    "custom_op_autotuning",
    "CustomOpConfig",
    "DEFAULT_RANGE_UPPER_BOUND",
    "register_custom_op_autotuning",
    "unregister_custom_op_autotuning",
]

log = logging.getLogger(__name__)

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
            the output, whichever is larger (1e-4 for float32 by default), and for integers the
            largest difference (0 by default).
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
    arguments = call.fill(call.operands)
    schema = call.op._schema.arguments
    positional = [arguments[a.name] for a in schema if not a.kwarg_only]
    keyword = {a.name: arguments[a.name] for a in schema if a.kwarg_only}
    return fallback_handler(call.op, add_to_fallback_set=False)(*positional, **keyword)


def _install(registration: Registration) -> None:
    _registrations[registration.op] = registration
    compat.install_lowering(registration.op, _lowering_of(registration))
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

    return lower


def _lower(registration: Registration, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Lower one call: IR for its result, or None for the op's normal lowering."""
    op = registration.op
    if op._schema.is_mutable or not op._schema.returns:
        raise Unsupported("it mutates an argument or returns nothing")
    if any(r.alias_info is not None for r in op._schema.returns):
        raise Unsupported("it returns an alias of an argument")
    call = bind(op, args, kwargs)
    configs = _configs_for(registration, call)
    if not configs:
        log.info("%s: no configs, lowered normally", op)
        return None
    candidates = candidates_from_configs(configs, registration.include_fallback)
    if registration.dispatch_on is None:
        return _standard_lowering_fn(registration, call, candidates)
    return _range_based_lowering_fn(registration, call, candidates)


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
    point = hinted_point(contest.call, sympy.Integer(0))
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
    operand, dim, size = _dispatched_size(registration, call)
    ranges = _reachable_ranges(registration, size)
    contest = _prepare(registration, call, candidates)
    results = contest.tune(ranges, lambda range: _probes(registration, call, size, range))
    chosen = _merge([(r.range, contest.by_label[r.winner]) for r in results])
    where = f"{registration.dispatch_on.tensor_name}.shape[{dim}]"  # type: ignore[union-attr]
    plan = contest.plan(where, str(size), results, chosen)
    if len(chosen) == 1:
        lowered = contest.inline(chosen[0][1])
    else:
        lowered = contest.dispatch(chosen, operand, dim)
    report.record(plan)
    return lowered


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
    return reachable(registration.ranges, low, high)


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


def _merge(winners: Sequence[tuple[Range, Candidate]]) -> list[tuple[Range, Candidate]]:
    if config.force_no_merge or compat.stock_test_switch("force_no_impl_grouping"):
        return list(winners)
    return merge_neighbours(winners, Candidate.same_as)


def _forced() -> bool | None:
    """True: an implementation must win; False: the op itself must; None: measurements decide."""
    if config.force_decomposition is not None:
        return config.force_decomposition
    return compat.stock_test_switch("force_custom_op_decomposition")


def _prepare(
    registration: Registration, call: BoundCall, candidates: Sequence[Candidate]
) -> _Contest:
    """Trace every candidate; those that cannot compete are out, with the reason.

    One that is on record could be traced before: it is traced again only if it wins.
    """
    started = time.perf_counter()
    fakes = fake_operands(call)
    ref = reference(call, fakes)
    bench = Bench(
        call,
        fakes,
        registration.input_gen_fns,
        registration.benchmark_with_cudagraphs,
        registration.check,
    )
    contenders = [Contender(c, functools.partial(trace, c, call, ref, fakes)) for c in candidates]
    contest = _Contest(registration, call, fakes, ref, contenders, [], bench, started)
    on_record = grid.recorded(registration, bench, contenders)
    contest.drop_untraceable([c for c in contenders if c.candidate.label not in on_record])
    return contest


@dataclass(frozen=True)
class _Contest:
    """The contenders of one call, and what they are tuned, inlined and dispatched with."""

    registration: Registration
    call: BoundCall
    fakes: Sequence[Any]
    ref: Reference
    contenders: list[Contender]
    rejected: list[tuple[str, str]]
    bench: Bench
    started: float

    @property
    def by_label(self) -> dict[str, Candidate]:
        """All that can win. The op itself always can, as what is left if nothing else works."""
        op = Candidate(OP_LABEL, None, {}, {}, candidates_from_configs((), True)[0].key)
        return {OP_LABEL: op} | {c.candidate.label: c.candidate for c in self.contenders}

    def tune(
        self, ranges: Sequence[Range], probes: Callable[[Range], Sequence[Point]]
    ) -> list[RangeResult]:
        """Measure every contender at every range's probes, and choose the winners."""
        points = [probes(range) for range in ranges]
        while True:
            results = self._choose(ranges, points)
            winners = {result.winner for result in results}
            if not self.drop_untraceable(
                [c for c in self.contenders if c.candidate.label in winners]
            ):
                return results

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
        self, ranges: Sequence[Range], points: Sequence[Sequence[Point]]
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
        results = []
        for range, of_range, winner in zip(ranges, found, winners, strict=True):
            log.info("%s %s: %s", self.call.op, range, winner)
            for measurement in of_range.out:
                self._rule_out(measurement, range)
            sizes = [size for size, _ in of_range.probes]
            results.append(
                RangeResult(range, max(sizes, default=None), of_range.row, winner, of_range.probes)
            )
        return results

    def _measure(self, points: Sequence[Sequence[Point]]) -> list[Measured] | None:
        """A time for each contender; None where nothing may be measured or is on record."""
        if len(self.contenders) < 2:
            row = tuple(Measurement(c.candidate.label, 0.0) for c in self.contenders)
            return [Measured((), row) for _ in points]
        if _forced() is False:
            return [Measured() for _ in points]
        return grid.fill(self.registration, self.bench, self.contenders, points)

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
            rejected=tuple(self.rejected),
            tuning_seconds=time.perf_counter() - self.started,
        )

    def inline(self, winner: Candidate) -> Any:
        """The winner in place of the op; None, the normal lowering, where that is the op itself."""
        if winner.is_op:
            return None
        (graph,) = (c.graph for c in self.contenders if c.candidate.same_as(winner))
        outputs = dispatch.inline(
            graph, self.call.operands, self.registration.name, winner.config_patches
        )
        return self.ref.pack(outputs)

    def choice(self, winner: Candidate, result: Any) -> AutotuneChoice:
        first = self.ref.outputs[0]
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

    def dispatch(self, chosen: Sequence[tuple[Range, Candidate]], operand: int, dim: int) -> Any:
        """The nested cond over the merged ranges in place of the op."""
        branches = [
            dispatch.Branch(r, traceable(c, self.call, self.ref), c.config_patches)
            for r, c in chosen
        ]
        nested = dispatch.nested_cond(branches, operand, dim, len(self.fakes))
        symbols = dispatch.unbound_symbols(self.call)
        size = sympy.sympify(self.call.operands[operand].get_size()[dim])
        name = self.registration.name
        try:
            nest = trace_function(nested, [*self.fakes, *map(convert_to_symint, symbols)])
        except Rejected as reason:
            graphs = self._graphs_without_cond([c for _, c in chosen], reason)
            results = dispatch.inline_branches(
                graphs, self.call.operands, name, branches, size, self.ref.outputs
            )
        else:
            constants = map(V.graph.add_tensor_constant, lift_constants(nest))
            operands = [*self.call.operands, *symbols, *constants]
            results = dispatch.inline_dispatch(
                nest, operands, name, branches, size, self.ref.outputs
            )
        return self.ref.pack(results)

    def _graphs_without_cond(
        self, winners: Sequence[Candidate], reason: Rejected
    ) -> list[torch.fx.GraphModule]:
        """The winners' own traces, for where ``torch.cond`` would not take them together.

        It merges the outputs of its branches, and asks for a guard if a dimension might be 0 or 1
        (the columns of ``x[:, 1:]``). Here they are known to be equal: the op's.
        """
        if not dispatch.flat.supported():
            raise Unsupported(
                f"the dispatch over its ranges cannot be traced: {reason}"
            ) from reason
        contenders = {c.candidate.key: c for c in self.contenders}
        try:
            return [
                contenders[w.key].graph
                if w.key in contenders
                else trace(w, self.call, self.ref, self.fakes)
                for w in winners
            ]
        except Rejected as other:
            raise Unsupported(f"the op itself cannot be traced: {other}") from other
