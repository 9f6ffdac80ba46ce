"""What a user registered for an op, checked before anything is compiled.

Every error here names the op, the argument, the value and the rule.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._inductor import config as inductor_config
from torch._inductor.kernel.range_dispatch import compat
from torch._inductor.kernel.range_dispatch.candidates import (
    accepted_names,
    callable_name,
    CustomOpConfig,
)
from torch._inductor.kernel.range_dispatch.inputs import InputGenerator
from torch._inductor.kernel.range_dispatch.ranges import (
    DEFAULT_RANGE_UPPER_BOUND,
    Range,
    ranges_from_split_points,
)
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload


log = logging.getLogger(__name__)

ConfigGenerator = Callable[[dict[str, torch.Tensor]], list[CustomOpConfig]]


@dataclass(frozen=True)
class DispatchOn:
    """The size that decides: dimension ``dim`` (may be negative) of argument ``tensor_name``."""

    tensor_name: str
    dim: int
    range_upper_bound: int = DEFAULT_RANGE_UPPER_BOUND


@dataclass(frozen=True)
class Registration:
    """One op's registration.

    Attributes:
        op: The overload whose lowering is replaced.
        name: What generated code and logs call it.
        configs: The variants; None where ``config_generator`` makes them.
        config_generator: Makes the variants from the fake tensors of a call.
        input_gen_fns: Benchmark input generators by argument name.
        dispatch_on: The size that decides; None for plain tuning.
        ranges: The ranges between the split points, from 0 to infinity.
        min_speedup_threshold: How many times as fast as the op a candidate must be.
        benchmark_with_cudagraphs: Whether the user asked for CUDA-graph replay.
        include_fallback: Whether the op itself competes.
        check: Tolerances by dtype for comparing answers; None where they are not compared.
        probe_sizes: Sizes to measure at, ascending; a range that holds none has its default.
        records: A folder for tuning records, beside Inductor's cache directory.
    """

    op: OpOverload
    name: str
    configs: tuple[CustomOpConfig, ...] | None
    config_generator: ConfigGenerator | None
    input_gen_fns: Mapping[str, InputGenerator]
    dispatch_on: DispatchOn | None
    ranges: tuple[Range, ...]
    min_speedup_threshold: float
    benchmark_with_cudagraphs: bool
    include_fallback: bool
    check: Mapping[torch.dtype, float] | None = field(default_factory=dict)
    probe_sizes: tuple[int, ...] = ()
    records: str | None = None

    def probes(self, range: Range) -> tuple[int, ...]:
        """The sizes at which ``range`` is measured, ascending."""
        given = tuple(size for size in self.probe_sizes if range.contains(size))
        upper = self.dispatch_on.range_upper_bound if self.dispatch_on is not None else 0
        return given or (range.probe(upper),)


def overload_of(custom_op: Any) -> OpOverload:
    """The overload that ``custom_op`` stands for.

    Raises:
        TypeError: It is neither a ``CustomOpDef`` nor an ``OpOverload``.
    """
    if isinstance(custom_op, CustomOpDef):
        return custom_op._opoverload
    if isinstance(custom_op, OpOverload):
        return custom_op
    hint = ""
    if isinstance(custom_op, torch._ops.OpOverloadPacket):
        hint = f"; pass one of its overloads, such as {custom_op}.{custom_op.overloads()[0]}"
    raise TypeError(
        "custom_op must be what torch.library.custom_op returns (a CustomOpDef) or an OpOverload "
        f"such as torch.ops.aten.mm.default, got {custom_op!r} of type "
        f"{type(custom_op).__name__}{hint}"
    )


def make_registration(
    custom_op: Any,
    configs: Any,
    config_generator: Any,
    name: Any,
    input_gen_fns: Any,
    dispatch_on: Any,
    split_points: Any,
    min_speedup_threshold: Any,
    benchmark_with_cudagraphs: Any,
    include_fallback: Any,
    check: Any = True,
    probe_sizes: Any = None,
    records: Any = None,
) -> Registration:
    """Check all arguments of ``register_custom_op_autotuning`` and bring them into one value.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has a value that breaks a rule.
    """
    op = overload_of(custom_op)
    checker = _Checker(op)
    if name is not None and not isinstance(name, str):
        raise checker.type_error("name", name, "a str or None")
    where = checker.dispatch_on(dispatch_on, split_points)
    ranges = checker.ranges(split_points, where) if where is not None else ()
    return Registration(
        op=op,
        name=name if name is not None else f"{op._name}_autotuned",
        configs=checker.configs(configs, config_generator),
        config_generator=config_generator,
        input_gen_fns=checker.input_gen_fns(input_gen_fns),
        dispatch_on=where,
        ranges=ranges,
        min_speedup_threshold=checker.threshold(min_speedup_threshold),
        benchmark_with_cudagraphs=checker.flag(
            "benchmark_with_cudagraphs", benchmark_with_cudagraphs
        ),
        include_fallback=checker.flag("include_fallback", include_fallback),
        check=checker.tolerances(check),
        probe_sizes=checker.probe_sizes(probe_sizes, where),
        records=checker.folder("records", records),
    )


@dataclass(frozen=True)
class _Checker:
    """Checks arguments on behalf of one op, whose name and schema go into every message."""

    op: OpOverload

    def _message(self, argument: str, value: Any, rule: str) -> str:
        shown = f"{value!r} of type {type(value).__name__}"
        return f"register_custom_op_autotuning({self.op}): {argument} must be {rule}, got {shown}"

    def type_error(self, argument: str, value: Any, rule: str) -> TypeError:
        return TypeError(self._message(argument, value, rule))

    def value_error(self, argument: str, value: Any, rule: str) -> ValueError:
        return ValueError(self._message(argument, value, rule))

    def configs(self, configs: Any, generator: Any) -> tuple[CustomOpConfig, ...] | None:
        if configs is not None and generator is not None:
            rule = "None where config_generator is given: they are mutually exclusive"
            raise self.value_error("configs", configs, rule)
        if generator is not None:
            if not callable(generator):
                raise self.type_error("config_generator", generator, "callable or None")
            return None
        if configs is None:
            rule = "a list of CustomOpConfig, or config_generator must be given"
            raise self.value_error("configs", configs, rule)
        if not isinstance(configs, (list, tuple)):
            raise self.type_error("configs", configs, "a list of CustomOpConfig")
        return self.checked_configs(configs, "configs")

    def checked_configs(self, configs: Sequence[Any], argument: str) -> tuple[CustomOpConfig, ...]:
        if not configs:
            raise self.value_error(argument, configs, "a list with at least one CustomOpConfig")
        for i, config in enumerate(configs):
            if not isinstance(config, CustomOpConfig):
                raise self.type_error(f"{argument}[{i}]", config, "a CustomOpConfig")
            self._check_parameters(f"{argument}[{i}]", config)
            self._check_patches(f"{argument}[{i}].config_patches", config.config_patches)
        return tuple(configs)

    def _check_parameters(self, argument: str, config: CustomOpConfig) -> None:
        of_op = {a.name for a in self.op._schema.arguments}
        accepted = of_op if config.decomposition is None else accepted_names(config.decomposition)
        if accepted is None:
            return
        taker = "the op" if config.decomposition is None else callable_name(config.decomposition)
        if unknown := sorted(config.params.keys() - accepted - of_op):
            rule = f"given parameters that {taker} has ({', '.join(sorted(accepted | of_op))})"
            raise self.value_error(argument, config, f"{rule}, not {', '.join(unknown)}")
        lost = sorted(config.params.keys() - accepted)
        if lost and not self._takes_by_position(config.decomposition):
            rule = f"given parameters that {taker} takes, not {', '.join(lost)}"
            raise self.value_error(argument, config, rule)

    def _check_patches(self, argument: str, patches: Mapping[str, Any]) -> None:
        if unknown := [name for name in patches if name not in inductor_config._config]:
            rule = f"settings of torch._inductor.config by name, not {', '.join(map(str, unknown))}"
            raise self.value_error(argument, patches, rule)

    def _takes_by_position(self, function: Any) -> bool:
        """Whether ``function`` has a place for each of the op's positional arguments."""
        parameters = inspect.signature(function).parameters.values()
        if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
            return True
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        places = sum(p.kind in by_place for p in parameters)
        return places >= sum(not a.kwarg_only for a in self.op._schema.arguments)

    def input_gen_fns(self, generators: Any) -> dict[str, InputGenerator]:
        if generators is None:
            return {}
        if not isinstance(generators, Mapping):
            raise self.type_error(
                "input_gen_fns", generators, "a dict of functions by argument name"
            )
        tensors = self._tensor_names()
        by_name = dict(generators)
        for name, generator in generators.items():
            if name not in tensors:
                rule = f"keyed by tensor arguments of the op ({', '.join(tensors)})"
                error = self.value_error("input_gen_fns", name, rule)
                if not compat.unknown_generator_is_passed_over():
                    raise error
                log.warning("%s; it is not used", error)
                del by_name[name]
            if not callable(generator):
                raise self.type_error(f"input_gen_fns[{name!r}]", generator, "callable")
        return by_name

    def _tensor_names(self) -> list[str]:
        arguments = self.op._schema.arguments
        return [a.name for a in arguments if "Tensor" in str(a.type)]

    def dispatch_on(self, value: Any, split_points: Any) -> DispatchOn | None:
        if value is None and split_points is None:
            return None
        if value is None:
            rule = "given with split_points, e.g. {'tensor_name': 'x', 'dim': 1}"
            raise self.value_error("dispatch_on", value, rule)
        if split_points is None:
            raise self.value_error("split_points", split_points, "given with dispatch_on")
        if not isinstance(value, Mapping):
            # ValueError as in stock PyTorch, whose callers may catch that.
            raise self.value_error(
                "dispatch_on", value, "a dict such as {'tensor_name': 'x', 'dim': 1}"
            )
        known = {"tensor_name", "dim", "range_upper_bound"}
        if unknown := sorted(map(str, value.keys() - known)):
            rule = f"a dict with the keys {', '.join(sorted(known))} only, not {', '.join(unknown)}"
            raise self.value_error("dispatch_on", dict(value), rule)
        if missing := sorted({"tensor_name", "dim"} - value.keys()):
            rule = f"a dict with the keys tensor_name and dim; {', '.join(missing)} is missing"
            raise self.value_error("dispatch_on", dict(value), rule)
        upper = value.get("range_upper_bound", _default_upper_bound(split_points))
        self._check_tensor_name(value["tensor_name"])
        if not _is_int(value["dim"]):
            raise self.value_error("dispatch_on['dim']", value["dim"], "an int")
        if not _is_int(upper) or upper <= 0:
            raise self.value_error("dispatch_on['range_upper_bound']", upper, "a positive int")
        return DispatchOn(value["tensor_name"], value["dim"], upper)

    def _check_tensor_name(self, name: Any) -> None:
        argument = "dispatch_on['tensor_name']"
        if not isinstance(name, str):
            raise self.value_error(argument, name, "a str, the name of a tensor argument of the op")
        by_name = {a.name: str(a.type) for a in self.op._schema.arguments}
        tensors = [n for n, kind in by_name.items() if kind in ("Tensor", "Optional[Tensor]")]
        if name not in tensors:
            kind = by_name.get(name)
            is_what = "is not an argument of the op" if kind is None else f"is a {kind}"
            rule = f"a tensor argument of the op ({', '.join(tensors)}); {name!r} {is_what}"
            raise self.value_error(argument, name, rule)

    def ranges(self, split_points: Any, where: DispatchOn) -> tuple[Range, ...]:
        if not isinstance(split_points, (list, tuple)) or not split_points:
            raise self.value_error("split_points", split_points, "a non-empty list of ints")
        for i, point in enumerate(split_points):
            if not _is_int(point) or point <= 0:
                raise self.value_error(f"split_points[{i}]", point, "a positive int")
        if any(a >= b for a, b in itertools.pairwise(split_points)):
            raise self.value_error("split_points", split_points, "sorted, strictly increasing")
        if where.range_upper_bound <= split_points[-1]:
            rule = f"above the last split point, {split_points[-1]}, as a size of the last range"
            raise self.value_error(
                "dispatch_on['range_upper_bound']", where.range_upper_bound, rule
            )
        return ranges_from_split_points(split_points)

    def threshold(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.type_error("min_speedup_threshold", value, "a number")
        if not 0 < value < float("inf"):
            raise self.value_error("min_speedup_threshold", value, "positive and finite")
        return float(value)

    def tolerances(self, value: Any) -> dict[torch.dtype, float] | None:
        rule = "True, False, or a dict of tolerances by dtype such as {torch.float16: 0.05}"
        if isinstance(value, bool):
            return {} if value else None
        if not isinstance(value, Mapping):
            raise self.type_error("check", value, rule)
        for dtype, allowed in value.items():
            if not isinstance(dtype, torch.dtype):
                raise self.type_error("check", dtype, rule)
            if isinstance(allowed, bool) or not isinstance(allowed, (int, float)):
                raise self.type_error(f"check[{dtype}]", allowed, "a number")
            if not allowed >= 0:
                raise self.value_error(f"check[{dtype}]", allowed, "0 or above")
        return dict(value)

    def probe_sizes(self, value: Any, where: DispatchOn | None) -> tuple[int, ...]:
        if value is None:
            return ()
        if where is None:
            raise self.value_error("probe_sizes", value, "None where dispatch_on is not given")
        if not isinstance(value, (list, tuple)):
            raise self.type_error("probe_sizes", value, "a list of ints or None")
        for i, size in enumerate(value):
            if not _is_int(size) or size <= 0:
                raise self.value_error(f"probe_sizes[{i}]", size, "a positive int")
        if any(a >= b for a, b in itertools.pairwise(value)):
            raise self.value_error("probe_sizes", value, "sorted, strictly increasing")
        return tuple(value)

    def folder(self, argument: str, value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
            raise self.type_error(argument, value, "the path of a folder or None")
        return os.fspath(value)

    def flag(self, argument: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.type_error(argument, value, "a bool")
        return value


def _default_upper_bound(split_points: Any) -> int:
    """Where the last range is measured if the user does not say; above any split point."""
    numbers = split_points if isinstance(split_points, (list, tuple)) else ()
    return max([DEFAULT_RANGE_UPPER_BOUND, *(2 * n for n in numbers if _is_int(n))])


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def checked_configs(op: OpOverload, configs: Any) -> tuple[CustomOpConfig, ...]:
    """What a config generator returned, checked; empty where it returned nothing.

    Raises:
        TypeError, ValueError: It is not a list of ``CustomOpConfig`` that fit the op.
    """
    check = _Checker(op)
    if configs is None:
        return ()
    if not isinstance(configs, (list, tuple)):
        rule = "a function that returns a list of CustomOpConfig"
        raise check.type_error("config_generator", configs, rule)
    return check.checked_configs(configs, "config_generator(...)") if configs else ()
