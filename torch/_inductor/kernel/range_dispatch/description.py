"""Texts that change whenever what they describe could: of registrations, and of single values.

Values are described by their content: functions by their code, and by what their closures,
defaults and globals hold; objects by their attributes and methods. What has no content to go by (a
large tensor, an object of an extension) is a different one in every process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import hashlib
import logging
import sys
import types
import uuid
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch._inductor.kernel.range_dispatch.registration import Registration
from torch._library.custom_ops import CustomOpDef, OPDEFS
from torch._ops import OpOverload, OpOverloadPacket


log = logging.getLogger(__name__)


def hash_of(parts: Iterable[str]) -> str:
    """A hash of texts and of where each of them ends."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def describe(registration: Registration) -> str:
    """A text that changes whenever the code generated for the registration could.

    What was compiled for a value that has no content to go by is compiled anew in every process.
    """
    parts = [str(registration.op), registration.name]
    describer = _Describer()
    for name in sorted(registration.__dataclass_fields__):
        value = getattr(registration, name)
        if name == "configs" and value is not None:
            value = [(c.decomposition, c.params, c.config_patches) for c in value]
        try:
            parts.append(f"{name}={describer.describe(value)}")
        except Exception:  # attributes of the user's objects may raise anything when they are read
            log.debug("%s: %s has no description", registration.op, name, exc_info=True)
            parts.append(f"{name}={uuid.uuid4()}")
    return "\n".join(parts)


def identity(value: Any) -> str:
    """A short hash of what ``value`` is made of, the same in every process.

    For what has no content to go by it is another one each time.
    """
    try:
        return hash_of([_Describer().describe(value)])[:16]
    except Exception:  # as above
        log.debug("%r has no description", value, exc_info=True)
        return uuid.uuid4().hex[:16]


_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), torch.device)
_NAMED = (torch.dtype, torch.layout, torch.memory_format)
_BY_NAME = (
    types.ModuleType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
# Of the classes of libraries those whose objects are what their attributes are.
_LIBRARY_RECORDS = (torch.nn.Module, types.SimpleNamespace)
# Numbers in a tensor that is described by its content, and values in one description.
_SMALL_TENSOR = 1 << 16
_MOST_VALUES = 10_000


class _Describer:
    """One description, in which a value that comes again is described by where it came first."""

    def __init__(self) -> None:
        # The values are kept, so that no other one can come to have the id of one of them.
        self._seen: dict[int, tuple[int, Any]] = {}

    def describe(self, value: Any) -> str:
        if isinstance(value, (*_PLAIN, *_NAMED)):
            return f"{type(value).__name__}:{value!r}"
        if type(value) is tuple:  # whether equal ones are one object is up to the interpreter
            return f"tuple[{','.join(map(self.describe, value))}]"
        if id(value) in self._seen:
            return f"again:{self._seen[id(value)][0]}"
        if len(self._seen) >= _MOST_VALUES:
            raise RuntimeError(f"it reaches more than {_MOST_VALUES} values")
        self._seen[id(value)] = (len(self._seen), value)
        if isinstance(value, Mapping):
            items = (f"{self.describe(k)}:{self.describe(v)}" for k, v in value.items())
            return f"{type(value).__name__}{{{','.join(items)}}}"
        if isinstance(value, (list, tuple)):
            return f"{type(value).__name__}[{','.join(map(self.describe, value))}]"
        if isinstance(value, (set, frozenset)):
            return f"{type(value).__name__}{{{','.join(sorted(map(self.describe, value)))}}}"
        if isinstance(value, enum.Enum):
            return f"{_qualified(type(value))}.{value.name}:{self.describe(value.value)}"
        if isinstance(value, functools.partial):
            return f"partial:{self.describe([value.func, value.args, value.keywords])}"
        if isinstance(value, types.MethodType):
            return f"method:{self.describe([value.__func__, value.__self__])}"
        if isinstance(value, (staticmethod, classmethod)):
            return f"{type(value).__name__}:{self.describe(value.__func__)}"
        if isinstance(value, property):
            return f"property:{self.describe([value.fget])}"
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, CustomOpDef):
            return f"op:{value._qualname}:{self.describe(value._init_fn)}"
        if isinstance(value, (OpOverload, OpOverloadPacket)):
            return f"op:{value}:{self.describe(_defined(value))}"
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, _BY_NAME):
            return f"{type(value).__name__}:{getattr(value, '__qualname__', value.__name__)}"
        if isinstance(value, logging.Logger):
            return f"logger:{value.name}"
        return self._object(value)

    def _function(self, function: types.FunctionType) -> str:
        code = function.__code__
        held = [
            [_cell(cell) for cell in function.__closure__ or ()],
            function.__defaults__,
            function.__kwdefaults__,
            _globals_of(function),
        ]
        return f"{_qualified(function)}|{_code(code)}|{self.describe(held)}"

    def _tensor(self, tensor: torch.Tensor) -> str:
        kind = (
            f"tensor:{type(tensor).__name__}:{tuple(tensor.shape)}:{tensor.dtype}:{tensor.device}"
        )
        if tensor.device.type == "cpu" and tensor.numel() <= _SMALL_TENSOR:
            return f"{kind}:{tensor.detach().tolist()}"
        return f"{kind}:{_address(tensor)}"

    def _class(self, cls: type) -> str:
        if _is_library(cls.__module__):
            return f"class:{_qualified(cls)}"
        ours = [base for base in cls.__mro__ if not _is_library(base.__module__)]
        members = {
            name: member
            for base in reversed(ours)
            for name, member in sorted(vars(base).items())
            if name != "_abc_impl" and not (name.startswith("__") and not callable(member))
        }
        return f"class:{_qualified(cls)}:{self.describe(members)}"

    def _object(self, value: Any) -> str:
        cls = type(value)
        if cls.__module__.partition(".")[0] == "triton" and hasattr(value, "fn"):
            # A kernel holds caches, locks and the like; what it is, is in its function.
            return f"{_qualified(cls)}:{self.describe(value.fn)}:{getattr(value, 'configs', ())!s}"
        if callable(value) and hasattr(value, "__wrapped__"):
            return f"{_qualified(cls)}:{self.describe(value.__wrapped__)}"
        attributes = getattr(value, "__dict__", None)
        plain = dataclasses.is_dataclass(value) or isinstance(value, _LIBRARY_RECORDS)
        opaque = _is_library(cls.__module__) and not plain
        if attributes is None or opaque:
            return f"{_qualified(cls)}:{_address(value)}"
        return f"object:{self.describe(cls)}:{self.describe(attributes)}"


def _qualified(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"


def _defined(op: OpOverload | OpOverloadPacket) -> CustomOpDef | None:
    """What ``torch.library`` made an operator of, where it was made in Python."""
    name = op._schema.name if isinstance(op, OpOverload) else op._qualified_op_name
    return OPDEFS.get(name)


@functools.cache
def _is_library(module: str | None) -> bool:
    """Whether a module is Python's, PyTorch's or Triton's: their versions are in the keys."""
    top = (module or "builtins").partition(".")[0]
    return top in ("torch", "triton") or top in sys.stdlib_module_names


def _globals_of(function: types.FunctionType) -> dict[str, Any]:
    """The globals that ``function`` reads, what it reads of modules among them, and operators."""
    names = _names(function.__code__)
    found: dict[str, Any] = {}
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType) and not _is_foreign(value.__name__, function):
            found |= {f"{name}.{n}": vars(value)[n] for n in names if n in vars(value)}
        elif name in function.__globals__:
            found[name] = value
    if "ops" in names:  # torch.ops.namespace.name
        for qualified, op in sorted(OPDEFS.items()):
            namespace, _, name = qualified.partition("::")
            if namespace in names and name in names:
                found[f"ops.{qualified}"] = op
    return {
        name: _qualified(value) if _is_defined_elsewhere(value, function) else value
        for name, value in sorted(found.items())
    }


def _is_defined_elsewhere(value: Any, function: types.FunctionType) -> bool:
    defines = (type, types.FunctionType)
    return isinstance(value, defines) and _is_foreign(value.__module__, function)


def _is_foreign(module: str, function: types.FunctionType) -> bool:
    """Whether ``module`` is a library's, or one of another installed package than ``function``."""
    if _is_library(module):
        return True
    origin = getattr(sys.modules.get(module), "__file__", None) or ""
    installed = "site-packages" in origin or "dist-packages" in origin
    return installed and module.partition(".")[0] != (function.__module__ or "").partition(".")[0]


def _names(code: types.CodeType) -> list[str]:
    """Names of globals and attributes in ``code`` and in the functions that it defines."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= dict.fromkeys(_names(constant))
    return list(names)


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _code(code: types.CodeType) -> str:
    constants = ",".join(map(_constant, code.co_consts))
    names = ",".join([*code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars])
    return f"{code.co_code.hex()}:{constants}:{names}:{code.co_flags}"


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, frozenset):  # its order is another one in every process
        return f"frozenset:{sorted(map(repr, value))}"
    return f"{type(value).__name__}:{value!r}"


_addresses: dict[int, tuple[weakref.ref[Any], str]] = {}


def _address(value: Any) -> str:
    """A name for this very object; unlike its address, no other object ever has it."""
    known = _addresses.get(id(value))
    if known is not None and known[0]() is value:
        return known[1]
    name = str(uuid.uuid4())
    with contextlib.suppress(TypeError):  # not every object can be referred to weakly
        _addresses[id(value)] = (weakref.ref(value), name)
    return name
