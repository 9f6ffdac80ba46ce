"""What competes: an implementation with its parameters and config patches.

A candidate's identity is decided here and nowhere else. Two candidates are the same if they
call the same object with the same parameters under the same config patches; equal names or
equal source do not make them the same, and neither do values that merely compare equal
(``1``, ``1.0`` and ``True``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._inductor.kernel.range_dispatch.call import BoundCall


class CustomOpConfig:
    """One variant of a custom op to be tuned: an implementation and values for its parameters.

    Args:
        decomposition: The implementation: a function of the op's arguments, built from PyTorch
            ops. None means the op itself, with ``params`` in place of the caller's arguments.
        config_patches: ``torch._inductor.config`` settings under which the kernels of this
            variant, and no others, are generated, e.g. ``{"coordinate_descent_tuning": True}``.
        **params: Values by parameter name. A value for one of the op's own arguments wins over
            what the caller passes.

    Raises:
        TypeError: ``decomposition`` is not callable, or ``config_patches`` is not a dict.

    Example:
        >>> def split_k(a, b, k_splits=4):
        ...     return (a.unflatten(1, (k_splits, -1)) @ b.unflatten(0, (k_splits, -1))).sum(0)
        >>> CustomOpConfig(split_k, k_splits=8)
        CustomOpConfig(split_k, k_splits=8)
    """

    def __init__(
        self,
        decomposition: Callable[..., Any] | None = None,
        config_patches: Mapping[str, Any] | None = None,
        **params: Any,
    ) -> None:
        if decomposition is not None and not callable(decomposition):
            raise TypeError(
                "CustomOpConfig: decomposition must be callable or None, "
                f"got {decomposition!r} of type {type(decomposition).__name__}"
            )
        if config_patches is not None and not isinstance(config_patches, Mapping):
            raise TypeError(
                "CustomOpConfig: config_patches must be a dict of torch._inductor.config "
                f"settings, got {config_patches!r} of type {type(config_patches).__name__}"
            )
        self.decomposition = decomposition
        self.config_patches = dict(config_patches or {})
        self.params = params

    def get_decomposition(
        self, default_impl: Callable[..., Any] | None = None
    ) -> Callable[..., Any]:
        """The implementation, or ``default_impl`` where none was given.

        Raises:
            TypeError: There is neither.
        """
        chosen = self.decomposition if self.decomposition is not None else default_impl
        if not callable(chosen):
            raise TypeError(
                "CustomOpConfig: no decomposition was given and default_impl is "
                f"{default_impl!r}; pass one of them"
            )
        return chosen

    def __repr__(self) -> str:
        shown = "default" if self.decomposition is None else callable_name(self.decomposition)
        return f"CustomOpConfig({', '.join([shown, *_assignments(self.params)])})"


@dataclass(frozen=True)
class Candidate:
    """A contender for the ranges of one call.

    Attributes:
        label: What reports and generated names call it; unique among the candidates of a call.
        function: The implementation; None for the op itself.
        params: Values that replace or extend the caller's arguments.
        config_patches: Inductor settings for this candidate's kernels.
        key: Identity. Equal keys mean the same candidate.
    """

    label: str
    function: Callable[..., Any] | None
    params: Mapping[str, Any] = field(compare=False)
    config_patches: Mapping[str, Any] = field(compare=False)
    key: tuple[Any, ...] = field(compare=False)

    @property
    def is_op(self) -> bool:
        """Whether this is the op as the user called it: the reference."""
        return self.function is None and not self.params and not self.config_patches

    def same_as(self, other: Candidate) -> bool:
        return self.key == other.key


OP_LABEL = "op itself"


def candidates_from_configs(
    configs: Sequence[CustomOpConfig], include_op: bool
) -> tuple[Candidate, ...]:
    """One candidate for each distinct config in registration order, then the op itself."""
    wanted = [(c.decomposition, c.params, c.config_patches) for c in configs]
    if include_op:
        wanted.append((None, {}, {}))
    found: dict[tuple[Any, ...], Candidate] = {}
    labels: dict[str, int] = {}
    for function, params, patches in wanted:
        key = _identity(function, params, patches)
        if key in found:
            continue
        label = _label(function, params, patches)
        labels[label] = labels.get(label, 0) + 1
        if labels[label] > 1:
            label = f"{label} #{labels[label]}"
        found[key] = Candidate(label, function, dict(params), dict(patches), key)
    return tuple(found.values())


def _identity(
    function: Callable[..., Any] | None, params: Mapping[str, Any], patches: Mapping[str, Any]
) -> tuple[Any, ...]:
    return (_callable_key(function), _value_key(params), _value_key(patches))


def _callable_key(function: Any) -> tuple[Any, ...]:
    if isinstance(function, functools.partial):
        bound = (_value_key(function.args), _value_key(function.keywords))
        return ("partial", _callable_key(function.func), *bound)
    if inspect.ismethod(function):
        return ("method", id(function.__self__), _callable_key(function.__func__))
    return ("object", id(function))


def _value_key(value: Any) -> Any:
    """A hashable key that is equal for values of equal type and content only."""
    if isinstance(value, Mapping):
        items = ((str(k), _value_key(k), _value_key(v)) for k, v in value.items())
        return ("map", tuple(sorted(items, key=lambda item: item[0])))
    if isinstance(value, (list, tuple)):
        return (type(value), tuple(_value_key(v) for v in value))
    if isinstance(value, float):
        return (float, value.hex())
    plain = (bool, int, str, bytes, type(None), torch.dtype, torch.device, torch.layout)
    return (type(value), value if isinstance(value, plain) else id(value))


def callable_name(function: Callable[..., Any]) -> str:
    """A short name for any callable: partials, bound methods, custom ops and objects included."""
    if isinstance(function, functools.partial):
        given = [repr(a) for a in function.args] + _assignments(function.keywords)
        return f"{callable_name(function.func)}({', '.join(given)})"
    name = getattr(function, "__name__", None) or getattr(function, "_name", None)
    return str(name) if name else type(function).__name__


def _assignments(values: Mapping[str, Any]) -> list[str]:
    return [f"{k}={v!r}" for k, v in values.items()]


def _label(
    function: Callable[..., Any] | None, params: Mapping[str, Any], patches: Mapping[str, Any]
) -> str:
    if function is None and not params and not patches:
        return OP_LABEL
    name = OP_LABEL if function is None else callable_name(function)
    given = [*_assignments(params), *(f"{k}={v!r}" for k, v in patches.items())]
    return f"{name}({', '.join(given)})" if given else name


def invoke(candidate: Candidate, call: BoundCall, operands: Sequence[Any]) -> Any:
    """Call the candidate the way the op was called, its own parameters winning over the caller's.

    Arguments that the implementation knows by the op's names go by name. Others go by position,
    in the order of the op's schema, so that an implementation may name them as it likes.
    """
    arguments = call.fill(operands)
    schema = call.op._schema.arguments
    own = {name: value for name, value in candidate.params.items() if name in arguments}
    extra = {name: value for name, value in candidate.params.items() if name not in arguments}
    arguments.update(own)
    if candidate.function is None:
        positional = [arguments[a.name] for a in schema if not a.kwarg_only]
        keyword = {a.name: arguments[a.name] for a in schema if a.kwarg_only}
        return call.op(*positional, **keyword, **extra)
    given = call.supplied | own.keys()
    positional, keyword = _match(candidate.function, schema, arguments, given, extra.keys())
    return candidate.function(*positional, **{**keyword, **extra})


def _match(
    function: Callable[..., Any],
    schema: Sequence[Any],
    arguments: Mapping[str, Any],
    given: Set[str],
    extra: Set[str],
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments by position and by name; ``extra`` are parameters that the op does not have.

    A default that the caller did not give goes to an implementation that has a parameter for it,
    which may have another default; one that has none need not take it.
    """
    named, takes_any_name, takes_any_place = _parameters(function)
    places = _places(function, extra)
    shares_names = any(a.name in named for a in schema)
    last = -1
    for i, argument in enumerate(schema):
        by_name = argument.name in named or takes_any_name
        if argument.kwarg_only or (by_name and not takes_any_place):
            continue
        # Where the names are the op's, an unknown parameter with a default is the implementation's
        # own. Where they are not, it stands for the op's argument at its place.
        has_place = i < len(places) and not (shares_names and places[i].default is not _NONE)
        if argument.name in given or has_place:
            last = i
    positional = [arguments[a.name] for a in schema[: last + 1]]
    keyword = {
        a.name: arguments[a.name] for a in schema[last + 1 :] if a.name in named or a.name in given
    }
    return positional, keyword


_NONE = inspect.Parameter.empty


def _places(function: Callable[..., Any], extra: Set[str]) -> list[inspect.Parameter]:
    """The parameters of ``function`` that are open to an argument by position."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in parameters if p.kind in kinds and p.name not in extra]


def _parameters(function: Callable[..., Any]) -> tuple[set[str], bool, bool]:
    """Names that ``function`` takes by keyword, and whether it has ``**kwargs`` and ``*args``."""
    schema = getattr(getattr(function, "_opoverload", function), "_schema", None)
    if schema is not None:
        return {a.name for a in schema.arguments}, False, False
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set(), False, True
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    kinds = {p.kind for p in parameters}
    return (
        {p.name for p in parameters if p.kind in by_name},
        inspect.Parameter.VAR_KEYWORD in kinds,
        inspect.Parameter.VAR_POSITIONAL in kinds,
    )


def accepted_names(function: Callable[..., Any]) -> set[str] | None:
    """Parameter names that ``function`` can be given by keyword; None if any name will do."""
    named, takes_any_name, _ = _parameters(function)
    unknown_signature = not named and not takes_any_name and not _has_signature(function)
    return None if takes_any_name or unknown_signature else named


def _has_signature(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function)
    except (TypeError, ValueError):
        return False
    return True
