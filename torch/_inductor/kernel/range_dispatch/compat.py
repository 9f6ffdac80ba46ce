"""The differences between the supported PyTorch releases: 2.11, 2.13, 2.15 and those between.

Each entry says which release needs it and what breaks without it, and tests for the feature
rather than for the version. Nothing else lives here, and nothing of it lives elsewhere. The
table at the end has all of them; a test compares it with the release that it runs on, and fails
for an entry that no supported release needs any more.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TYPE_CHECKING

from torch._inductor import config as inductor_config
from torch._inductor import lowering
from torch._inductor.codegen.cpp import CppKernel
from torch._inductor.codegen.cpp_wrapper_gpu import DeferredTritonCallWrapper
from torch._inductor.sizevars import SizeVarAllocator
from torch._inductor.virtualized import V
from torch._library.utils import is_builtin
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.experimental import symbolic_shapes
from torch.fx.experimental.symbolic_shapes import ShapeEnv


if TYPE_CHECKING:
    from torch._inductor.graph import GraphLowering
    from torch._inductor.ir import Operation
    from torch._inductor.runtime.benchmarking import Benchmarker


class GuardAttempt(RuntimeError):
    """Something asked for a guard while guards were frozen; ``args[0]`` is the expression."""


_FROZEN = "Guard attempted while ShapeEnv guards are frozen: "


def attempted_guard(error: BaseException) -> str | None:
    """The guard that ``error`` is about, also where a caller wrapped it in an error of its own."""
    if isinstance(error, GuardAttempt):
        return str(error.args[0])
    _, found, rest = str(error).partition(_FROZEN)
    return rest.splitlines()[0] if found else None


# ---------------------------------------------------------------------------------------------
# 2.11 has no lowering.user_lowerings: an op's entry in `lowerings` must be wrapped instead, with a
# recursion guard of our own and the default layout constraint that an unregistered op would get.

_active = threading.local()
_wrapped: dict[OpOverload, Any] = {}
_hinted: set[OpOverload] = set()


def install_lowering(op: OpOverload, lower: Callable[..., Any]) -> None:
    """Make ``lower`` the lowering of ``op``; where it returns None, the op is lowered normally.

    While ``lower`` runs, further calls of ``op`` (in its own branches, say) are lowered normally.
    Installing again replaces what was installed.
    """
    if hasattr(lowering, "user_lowerings"):
        lowering.user_lowerings[op] = lower
        return
    if op not in _wrapped:
        if op not in lowering.lowerings:
            _make_fallback(op)
        _wrapped[op] = lowering.lowerings[op]
    normal = _wrapped[op]

    def guarded(*args: Any, **kwargs: Any) -> Any:
        active = _active.__dict__.setdefault("ops", set())
        if op in active:
            return normal(*args, **kwargs)
        active.add(op)
        try:
            result = lower(*args, **kwargs)
        finally:
            active.discard(op)
        return normal(*args, **kwargs) if result is None else result

    lowering.lowerings[op] = guarded


def _being_lowered() -> Any:
    if hasattr(lowering, "user_lowerings"):
        return V.active_user_lowering_ops
    return _active.__dict__.setdefault("ops", set())


def being_lowered() -> frozenset[OpOverload]:
    """The ops whose lowering runs: further calls of them are lowered normally."""
    return frozenset(_being_lowered())


@contextlib.contextmanager
def lowered_normally(ops: Iterable[OpOverload]) -> Iterator[None]:
    """Have ``ops`` lowered normally inside, as the op is whose lowering runs."""
    active = _being_lowered()
    added = {op for op in ops if op not in active}
    active.update(added)
    try:
        yield
    finally:
        active.difference_update(added)


def has_lowering(op: OpOverload) -> bool:
    """Whether ``install_lowering`` was called for ``op``, by us or (2.13 and later) by others."""
    return op in getattr(lowering, "user_lowerings", _wrapped)


def leave_operands_unrealized(op: OpOverload) -> None:
    """Undo a hint that Inductor gives for an op that it has made a call of: to realize its inputs.

    The op itself is such a call, in the module that it is measured in. From then on what a
    registered op and something else read would be in memory before the op is dispatched.
    """
    if not is_builtin(op) and op in lowering.needs_realized_inputs:
        lowering.needs_realized_inputs.discard(op)
        _hinted.add(op)


def remove_lowering(op: OpOverload) -> None:
    """Undo ``install_lowering``; nothing happens where nothing was installed."""
    if op in _hinted:
        _hinted.discard(op)
        lowering.needs_realized_inputs.add(op)
    if hasattr(lowering, "user_lowerings"):
        lowering.user_lowerings.pop(op, None)
    elif op in _wrapped:
        lowering.lowerings[op] = _wrapped.pop(op)


def launch_with(kernel: Any, launcher: Any) -> None:
    """Have a Triton kernel that has been tuned run with another of its configurations."""
    kernel.launchers = [launcher]
    if hasattr(kernel, "_cached_launcher"):  # since 2.12 what it launched with is at hand
        kernel._cached_launcher = None


def _make_fallback(op: OpOverload) -> None:
    # What GraphLowering.call_function does on the first call of an unknown op. An op of ours is
    # never unknown on 2.11, so it has to happen here, or its operands come unconstrained.
    tag = lowering.get_layout_constraint_tag(op, with_default=not is_builtin(op))
    constraint = None if tag is None else lowering.tag_to_layout_constraint(tag)
    lowering.make_fallback(op, layout_constraint=constraint, warn=False, override_decomp=True)


# ---------------------------------------------------------------------------------------------
# 2.11 has no ShapeEnv.error_on_new_guards: a frozen ShapeEnv logs and goes on, which would leave
# out a guard that the traced code relies on. There, the check itself is made to raise.


@contextlib.contextmanager
def frozen_guards(shape_env: ShapeEnv | None) -> Iterator[None]:
    """Raise ``GuardAttempt`` instead of adding a guard. Re-entrant; restores on every path."""
    if shape_env is None:
        yield
        return
    if hasattr(shape_env, "error_on_new_guards"):
        try:
            with shape_env.error_on_new_guards(), _quiet_evaluation():
                yield
        except symbolic_shapes._ShapeEnvGuardError as error:
            raise GuardAttempt(attempted_guard(error)) from error
        return

    def refuse(expr: Any, value: Any) -> None:
        raise GuardAttempt(f"{expr} == {value}")

    frozen, patched = shape_env.frozen, shape_env.__dict__.get("_check_frozen")
    shape_env.frozen = True
    shape_env._check_frozen = refuse
    try:
        with _quiet_evaluation():
            yield
    finally:
        shape_env.frozen = frozen
        if patched is None:
            del shape_env._check_frozen
        else:
            shape_env._check_frozen = patched


@contextlib.contextmanager
def _quiet_evaluation() -> Iterator[None]:
    """Without the warning that every release logs where evaluating an expression raises.

    Here it raises by design, and whoever froze the guards says what follows from it.
    """

    def keep(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("failed during evaluate_expr")

    symbolic_shapes.log.addFilter(keep)
    try:
        yield
    finally:
        symbolic_shapes.log.removeFilter(keep)


# ---------------------------------------------------------------------------------------------
# 2.11 has neither of these test switches of stock's.


def stock_test_switch(name: str) -> Any:
    """The value of ``torch._inductor.config.test_configs.<name>``, None where there is none."""
    return getattr(inductor_config.test_configs, name, None)


# ---------------------------------------------------------------------------------------------
# 2.11 operations have no get_subgraphs(); its Conditional has the two sub-graphs as attributes.


def subgraphs_of(operation: Any) -> list[Any]:
    """The sub-graphs that ``operation`` holds, such as the two branches of a conditional."""
    if hasattr(operation, "get_subgraphs"):
        return list(operation.get_subgraphs())
    names = ("true_subgraph", "false_subgraph", "cond_subgraph", "body_subgraph", "subgraph")
    held = (getattr(operation, name, None) for name in names)
    return [subgraph for subgraph in held if subgraph is not None]


# ---------------------------------------------------------------------------------------------
# 2.11 decides by a hint whether a sum on the CPU is added up in a more exact and slower way, and
# guards on that. Later releases ask a question that a branch answers without a guard.


@contextlib.contextmanager
def sums_without_guards(refused: type[Exception]) -> Iterator[None]:
    """Inside, a sum that would need a guard is the exact one.

    Args:
        refused: What the sizes of the graph raise in place of adding a guard.
    """
    if hasattr(SizeVarAllocator, "guarding_hint_or_throw"):
        yield
        return
    decide = CppKernel.need_use_acc_helper

    def decided(self: CppKernel, *args: Any, **kwargs: Any) -> bool:
        try:
            with getattr(V.graph.sizevars, "no_guards", contextlib.nullcontext)():
                return bool(decide(self, *args, **kwargs))
        except refused:
            return True

    CppKernel.need_use_acc_helper = decided
    try:
        yield
    finally:
        CppKernel.need_use_acc_helper = decide


# ---------------------------------------------------------------------------------------------
# 2.11 graphs know nothing of streams: everything is on one. Pools of memory there are since 2.15.

_PLACES = ("stream", "mempool", "mempool_device")


def place_of(node: Node) -> dict[str, Any]:
    """The stream and the pool of memory that the user put ``node`` on; empty for the default."""
    if not hasattr(V.graph, "_get_node_stream"):
        return {}
    custom = node.meta.get("custom", {})
    return {name: custom[name] for name in _PLACES if name in custom}


def put_in_place(meta: dict[str, Any], place: Mapping[str, Any]) -> None:
    """Change what a node's ``meta`` says of where it runs; what it says is not shared after it."""
    custom = {k: v for k, v in meta.get("custom", {}).items() if k not in _PLACES}
    if custom or place or "custom" in meta:
        meta["custom"] = {**custom, **place}


def on_another_stream(buffer: str, operation: Operation) -> bool:
    """Whether ``buffer`` was written on another stream than the one that ``operation`` is on."""
    scheduler = V.graph.scheduler
    find = getattr(scheduler, "has_cross_stream_hazard", None)
    if find is None:
        return False
    return bool(find(buffer, scheduler.name_to_node[operation.get_operation_name()]))


def stay_on_stream(scheduler: Any, outer: Any) -> None:
    """Have what ``scheduler`` generates run on the stream that ``outer`` has entered.

    It has no streams of its own. A kernel that it launches asks for the current one, and does not
    write over what the graph around it knows as the default one.
    """
    entered = getattr(outer, "_current_stream_ctx", None)
    if entered is not None:
        scheduler._current_stream_ctx = entered


# ---------------------------------------------------------------------------------------------
# The C++ wrapper's memos of what its code has declared so far; 2.14 has another name for one.

_DECLARED = (
    "allocated_workspaces",
    "codegen_int_array_var_cache",
    "computed_sizes",
    "custom_op_wrapper_loaded",
    "last_seen_device_guard_index",
    "unbacked_symbol_decls",
    "used_cond_predicate",
    "used_switch_selector",  # from 2.14; before that, used_cond_predicate
)


def block_state(wrapper: Any) -> list[str]:
    """The attributes of a C++ wrapper that hold lines, or what those have declared and freed."""
    return ["lines", "freed", *(name for name in _DECLARED if hasattr(wrapper, name))]


# ---------------------------------------------------------------------------------------------
# 2.11 generates Python before C++ and runs it, to tune Triton kernels, unless they are tuned at
# compile time. Elsewhere kernels are tuned when they first run; a package of AOTInductor, which
# cannot wait for that, still has a first pass. It runs the graph at the sizes of the example: the
# kernels of the branches that it does not take would stay untuned.


def tunes_by_running(graph: GraphLowering) -> bool:
    """Whether ``graph`` is run to tune its kernels before its C++ is generated."""
    if inductor_config.triton.autotune_at_compile_time:
        return False
    when_called = hasattr(DeferredTritonCallWrapper, "generate_lazy")
    return (graph.aot_mode or not when_called) and any(
        device not in ("cpu", "meta") for device in graph.device_types
    )


# ---------------------------------------------------------------------------------------------
# Where Triton kernels are tuned at compile time, it is on examples of their arguments: tensors of
# the sizes that are hinted where the first kernel reads them, kept by name. Another branch has
# other hints, and its kernels would read beyond the ends of those. 2.15 keeps them, and the
# storages below them, in other places than the releases before.

_EXAMPLES = (
    "kernel_autotune_example_args",
    "kernel_autotune_example_arg_cache",
    "kernel_autotune_storage_cache",
)


@contextlib.contextmanager
def tuning_examples_of_its_own(wrapper: Any) -> Iterator[None]:
    """Inside, kernels are tuned on examples of their own; those from before are dropped."""
    _drop_tuning_examples(wrapper)
    try:
        yield
    finally:
        _drop_tuning_examples(wrapper)


def _drop_tuning_examples(wrapper: Any) -> None:
    names = set()
    for cache in filter(None, (getattr(wrapper, name, None) for name in _EXAMPLES)):
        names |= {getattr(entry, "name", None) or entry[0] for entry in cache.values()}
        cache.clear()
    # Workspaces are freed by themselves.
    dropped = sorted(n for n in names if not n.startswith(("workspace", "semaphore")))
    if dropped:
        wrapper.kernel_autotune_calls.writeline(f"del {', '.join(dropped)}")


# ---------------------------------------------------------------------------------------------
# 2.11 cannot time by CUDA-graph replay: where a user asks for that, we replay graphs of our own.


def graph_benchmark(benchmarker: Benchmarker) -> Callable[[Callable[[], Any]], float] | None:
    """Inductor's timing by CUDA-graph replay, in milliseconds of a call; None where it has none."""
    return getattr(benchmarker, "benchmark_gpu_with_cuda_graph", None)


# ---------------------------------------------------------------------------------------------
# 2.11 warns of an input generator for an argument that the op does not have, and goes on; code for
# it, PyTorch's own tests included, registers such. Later releases refuse it.


def unknown_generator_is_passed_over() -> bool:
    """Whether a generator of an unknown argument is no more than a warning."""
    return not hasattr(lowering, "user_lowerings")


# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A feature that some supported releases lack, and what is here on that account.

    Attributes:
        feature: what the newer releases have, as ``module:attribute`` below ``torch``
        since: the first release that has it; those before it need the entry
        used_by: the functions above that make up for it
    """

    feature: str
    since: str
    used_by: tuple[str, ...]

    def found(self) -> bool:
        """Whether this release has it."""
        module, _, attributes = self.feature.partition(":")
        value: Any = importlib.import_module(f"torch.{module}")
        for name in attributes.split("."):
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True


DIFFERENCES = (
    Difference(
        "_inductor.lowering:user_lowerings",
        "2.12",
        (
            "install_lowering",
            "remove_lowering",
            "has_lowering",
            "being_lowered",
            "lowered_normally",
            "leave_operands_unrealized",
            "unknown_generator_is_passed_over",
        ),
    ),
    Difference(
        "fx.experimental.symbolic_shapes:ShapeEnv.error_on_new_guards",
        "2.12",
        ("frozen_guards", "attempted_guard"),
    ),
    Difference(
        "_inductor.config:test_configs.force_custom_op_decomposition",
        "2.12",
        ("stock_test_switch",),
    ),
    Difference(
        "_inductor.config:test_configs.force_no_impl_grouping", "2.12", ("stock_test_switch",)
    ),
    Difference("_inductor.ir:IRNode.get_subgraphs", "2.12", ("subgraphs_of",)),
    Difference(
        "_inductor.graph:GraphLowering._get_node_stream", "2.12", ("place_of", "put_in_place")
    ),
    Difference(
        "_inductor.scheduler:Scheduler.has_cross_stream_hazard", "2.12", ("on_another_stream",)
    ),
    Difference(
        "_inductor.scheduler:Scheduler.generate_stream_ctx_switching",
        "2.12",
        ("stay_on_stream",),
    ),
    Difference(
        "_inductor.sizevars:SizeVarAllocator.guarding_hint_or_throw",
        "2.12",
        ("sums_without_guards",),
    ),
    Difference(
        "_inductor.codegen.cpp_wrapper_cpu:CppWrapperCpu.codegen_switch", "2.14", ("block_state",)
    ),
    Difference(
        "_inductor.codegen.cpp_wrapper_gpu:DeferredTritonCallWrapper.generate_lazy",
        "2.12",
        ("tunes_by_running",),
    ),
    Difference(
        "_inductor.codegen.wrapper:AutotuneExampleArg", "2.15", ("tuning_examples_of_its_own",)
    ),
    Difference(
        "_inductor.runtime.triton_heuristics:CachingAutotuner._build_fast_launcher",
        "2.12",
        ("launch_with",),
    ),
    Difference(
        "_inductor.runtime.benchmarking:Benchmarker.benchmark_gpu_with_cuda_graph",
        "2.12",
        ("graph_benchmark",),
    ),
)
