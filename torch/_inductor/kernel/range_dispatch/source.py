"""Which compilation and which line of the user's program a plan belongs to."""

from __future__ import annotations

import contextlib
import re
import types
from typing import Any

import torch
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.resume_execution import ContinueExecutionCache
from torch._guards import CompileContext
from torch._inductor.virtualized import V


def of_current_node() -> dict[str, Any]:
    """The fields of a plan that say where the call that is being lowered comes from."""
    from torch._inductor.kernel.range_dispatch.signature import device_kind

    fields: dict[str, Any] = {
        "release": torch.__version__,
        "compile_id": str(CompileContext.current_compile_id() or ""),
    }
    with contextlib.suppress(AttributeError):  # not inside of a lowering
        meta = V.graph.current_node.meta
        fields["backward"] = bool(V.graph.is_backward)
        fields["called_from"] = _last_line(meta.get("stack_trace") or "")
        fields["device"] = device_kind(_device(meta.get("val")))
    return fields


def _device(value: Any) -> torch.device:
    tensors = value if isinstance(value, (list, tuple)) else [value]
    devices = [t.device for t in tensors if isinstance(t, torch.Tensor)]
    return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))


def _last_line(trace: str) -> str:
    r"""The innermost line of a stack trace.

    >>> _last_line('  File "a.py", line 3, in f\n    g(x)\n  File "b.py", line 9, in g\n    op(x)')
    'b.py:9 in g'
    """
    places = re.findall(r'File "([^"\n]+)", line (\d+), in (\S+)', trace)
    return "{}:{} in {}".format(*places[-1]) if places else ""


def compiled_function(what: Any) -> Any:
    """The function that ``torch.compile`` was given; None if ``what`` did not come out of it."""
    if isinstance(what, torch.nn.Module):
        if hasattr(what, "_orig_mod"):
            return type(what._orig_mod).forward
        return type(what).forward if what._compiled_call_impl is not None else None
    function = getattr(what, "_torchdynamo_orig_callable", None)
    if isinstance(function, torch.nn.Module):
        return type(function).forward
    return function


def name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", function))


def compile_ids(function: Any) -> set[str]:
    """Dynamo's numbers of all compilations of ``function``, parts after graph breaks included."""
    code = getattr(function, "__code__", None)
    if code is None:
        return set()
    entries = (entry for part in _parts(code) for entry in _debug_get_cache_entry_list(part))
    return {str(entry.compile_id) for entry in entries}


def _parts(code: types.CodeType) -> set[types.CodeType]:
    """``code`` and what Dynamo made of it to go on after a graph break."""
    parts: set[types.CodeType] = set()
    waiting = [code]
    while waiting:
        part = waiting.pop()
        if part not in parts:
            parts.add(part)
            if part in ContinueExecutionCache.cache:
                waiting.extend(ContinueExecutionCache.cache[part].values())
    return parts
