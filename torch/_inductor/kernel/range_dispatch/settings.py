"""Inductor settings for some of a graph's kernels, and for no others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TYPE_CHECKING

from torch._inductor import config as inductor_config
from torch._inductor.virtualized import V


if TYPE_CHECKING:
    from torch._inductor.graph import GraphLowering


# The attribute of an operation, and of a graph that has such operations.
_SETTINGS = "range_dispatch_settings"

# What makes one kernel, or one fused from several, in every backend. First comes what is scheduled.
_GENERATE = (
    "codegen_node",
    "codegen_template",
    "codegen_mix_order_reduction",
    "codegen_combo_kernel",
)


def generate_under(graph: GraphLowering, patches: Mapping[str, Any]) -> None:
    """Have all kernels of ``graph`` scheduled and generated under ``patches``."""
    _generate_within(graph, lambda: inductor_config.patch(dict(patches)))


def attach(operations: Iterable[Any], patches: Mapping[str, Any]) -> None:
    """Have kernels that compute any of these operations generated under ``patches``.

    They belong to the graph that is being lowered, which has others too. From 2.12 on an operation
    can carry settings, but they reach Triton's kernels alone.
    """
    for operation in operations:
        setattr(operation, _SETTINGS, dict(patches))
    if not hasattr(V.graph, _SETTINGS):
        setattr(V.graph, _SETTINGS, True)
        _generate_within(V.graph, _by_operation)


def _generate_within(
    graph: Any, context: Callable[[], contextlib.AbstractContextManager[Any]]
) -> None:
    # For a sub-graph the Python wrapper calls codegen(), the C++ wrapper codegen_subgraph(), and
    # both call generate_kernels() for a branch of a dispatch.
    for method in ("codegen", "codegen_subgraph", "generate_kernels"):
        if hasattr(graph, method):
            setattr(graph, method, _within(context, getattr(graph, method)))


def _within(
    context: Callable[[], contextlib.AbstractContextManager[Any]], generate: Callable[..., Any]
) -> Callable[..., Any]:
    def generate_within(*args: Any, **kwargs: Any) -> Any:
        with context():
            return generate(*args, **kwargs)

    return generate_within


@contextlib.contextmanager
def _by_operation() -> Iterator[None]:
    """Inside, each kernel is generated under the settings of what it computes."""
    from torch._inductor.codegen.cpp import CppScheduling
    from torch._inductor.codegen.simd import SIMDScheduling

    def generating(generate: Callable[..., Any]) -> Callable[..., Any]:
        def generate_under_settings(self: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            with inductor_config.patch(_settings([scheduled, *args])):
                return generate(self, scheduled, *args, **kwargs)

        return generate_under_settings

    with contextlib.ExitStack() as stack:
        for backend in (CppScheduling, SIMDScheduling):
            for name in _GENERATE:
                generate = vars(backend).get(name)
                if generate is not None:
                    stack.callback(setattr, backend, name, generate)
                    setattr(backend, name, generating(generate))
        yield


def _settings(scheduled: Sequence[Any]) -> dict[str, Any]:
    """Of the operations in nodes of the scheduler, or in sequences of them."""
    found: dict[str, Any] = {}
    for each in scheduled:
        if isinstance(each, (list, tuple)):
            found |= _settings(each)
        elif hasattr(each, "get_nodes"):
            for node in each.get_nodes():
                found |= getattr(node.node, _SETTINGS, {})
    return found
