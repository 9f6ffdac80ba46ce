"""The fingerprint of all registrations, which is part of the keys of Inductor's compile caches.

Without it a graph compiled for one registration is served for another, with the old
implementations in it: neither FxGraphCache nor AOTAutogradCache knows of registrations. Both
hash the config modules of custom backends, on every supported release, so a knob of ours among
them carries the fingerprint in.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._inductor.codegen.common import custom_backend_codegen_configs
from torch._inductor.kernel.range_dispatch import config
from torch._inductor.kernel.range_dispatch.registration import Registration


def publish(registrations: Iterable[Registration]) -> None:
    """Make the compile caches tell these registrations from all others."""
    ordered = sorted(registrations, key=lambda r: str(r.op))
    config.registrations = _hash([own_source(), *map(describe, ordered)]) if ordered else ""
    # A process that registered nothing keeps stock's cache keys.
    custom_backend_codegen_configs["range_dispatch"] = sys.modules[config.__name__]


def _hash(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@functools.cache
def own_source() -> str:
    """Hash of the patch's own files: PyTorch's key covers only the files of its wheel."""
    folder = Path(__file__).parent
    files = sorted(folder.glob("*.py"))
    files.append(folder.parent / "custom_op.py")
    return _hash(file.name + file.read_text() for file in files if file.exists())


def describe(registration: Registration) -> str:
    """A text that changes whenever the code generated for the registration could."""
    seen: set[int] = set()
    parts = [str(registration.op), registration.name]
    for name in sorted(registration.__dataclass_fields__):
        value = getattr(registration, name)
        if name == "configs" and value is not None:
            value = [(c.decomposition, c.params, c.config_patches) for c in value]
        parts.append(f"{name}={_describe(value, seen)}")
    return "\n".join(parts)


def _describe(value: Any, seen: set[int]) -> str:
    """Content of plain values; source and closures of functions; the address of anything else.

    An address differs between processes: what cannot be described is compiled anew there.
    """
    if isinstance(value, (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, Mapping):
        items = (f"{_describe(k, seen)}:{_describe(v, seen)}" for k, v in value.items())
        return "{" + ",".join(sorted(items)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_describe(v, seen) for v in value) + "]"
    if id(value) in seen:
        return "again"
    seen.add(id(value))
    if isinstance(value, functools.partial):
        return _describe([value.func, value.args, value.keywords], seen)
    if isinstance(value, types.MethodType):
        return _describe([value.__func__, value.__self__], seen)
    if isinstance(value, types.FunctionType):
        return _describe_function(value, seen)
    if isinstance(value, torch.Tensor):
        return f"tensor:{tuple(value.shape)}:{value.dtype}:{id(value)}"
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        return f"{type(value).__name__}:{getattr(value, '__qualname__', value.__name__)}"
    if hasattr(value, "_schema") or hasattr(value, "_opoverload"):
        return f"op:{getattr(value, '_qualname', value)}:{_describe_op(value, seen)}"
    attributes = getattr(value, "__dict__", None)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if attributes and type(value).__module__.partition(".")[0] not in ("torch", "builtins"):
        methods = [f for f in vars(type(value)).values() if isinstance(f, types.FunctionType)]
        return f"{kind}:{_describe(attributes, seen)}:{_describe(methods, seen)}"
    return f"{kind}:{id(value)}"


def _describe_op(value: Any, seen: set[int]) -> str:
    """Custom ops have Python source; overloads of PyTorch's own do not, and do not change."""
    function = getattr(value, "_init_fn", None)
    return _describe(function, seen) if function is not None else ""


def _describe_function(function: types.FunctionType, seen: set[int]) -> str:
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = ""
    code = function.__code__
    closure = [_cell(cell) for cell in function.__closure__ or ()]
    used = {name: function.__globals__.get(name) for name in code.co_names}
    own = {n: v for n, v in used.items() if _is_users(v)}
    return "|".join(
        [
            function.__qualname__,
            source,
            _code(code),
            _describe([closure, function.__defaults__, function.__kwdefaults__, own], seen),
        ]
    )


def _is_users(value: Any) -> bool:
    """Globals that an implementation may depend on: plain values, and functions outside of torch."""
    if isinstance(value, types.FunctionType):
        return not (value.__module__ or "").startswith("torch.")
    return isinstance(value, (bool, int, float, str, tuple))


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _code(code: types.CodeType) -> str:
    constants = ",".join(map(_constant, code.co_consts))
    return f"{code.co_code.hex()}:{constants}:{','.join(code.co_names)}"


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, frozenset):  # its order is another one in every process
        return f"frozenset:{sorted(map(repr, value))}"
    return repr(value)
