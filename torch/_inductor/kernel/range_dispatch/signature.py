"""The key under which the tuning of a call is recorded: stable over processes and graphs.

Symbols have other names in every graph, so they are numbered by their first appearance; the
sizes that they stand for are not part of the key, since a size that is dynamic is measured once.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sympy

import torch
from torch._inductor import config as inductor_config
from torch._inductor import ir
from torch._inductor.kernel.range_dispatch import __version__, config, description
from torch._inductor.kernel.range_dispatch.call import BoundCall, Operand
from torch._inductor.kernel.range_dispatch.candidates import Candidate
from torch._inductor.kernel.range_dispatch.inputs import Point
from torch._inductor.kernel.range_dispatch.records import Key
from torch._inductor.kernel.range_dispatch.registration import Registration
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.virtualized import V
from torch._library.custom_ops import OPDEFS
from torch.utils import _pytree as pytree


# Settings of Inductor that decide how good the kernels of a candidate are.
_SETTINGS = (
    "max_autotune",
    "max_autotune_gemm",
    "max_autotune_pointwise",
    "coordinate_descent_tuning",
    "freezing",
    "emulate_precision_casts",
)


# Arguments that a record shows as they are.
_SHOWN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout)


def key_of(registration: Registration, call: BoundCall, device: torch.device) -> Key:
    """The key of the records of ``call``, tuned on ``device`` as ``registration`` says."""
    return Key(
        op=call.op.name(),
        device=device_kind(device),
        signature=_signature(registration, call),
        environment=environment(device),
    )


def candidate_identity(candidate: Candidate, call: BoundCall) -> str:
    """What tells a candidate from others in every process: source, parameters and patches.

    Where the op itself is what runs, that is what the op was defined with in Python.
    """
    function: Any = candidate.function
    if function is None:
        definition = OPDEFS.get(call.op._schema.name)
        kernels = getattr(definition, "_backend_fns", {})
        function = [str(call.op), getattr(definition, "_init_fn", None), dict(kernels)]
    return description.identity([function, dict(candidate.params), dict(candidate.config_patches)])


def probe_name(registration: Registration, call: BoundCall, point: Point, branch: str = "") -> str:
    """A probe's name in the records: the dispatched size, or all sizes where none is.

    What was generated for a ``branch`` has a name that says for which.
    """
    if registration.dispatch_on is not None:
        return f"{point.size} in the branch for {branch}" if branch else str(point.size)
    numbered = _Numbered()
    for operand in call.operands:
        _operand(operand, numbered)
    return ",".join(f"{name}={point.values[s]}" for s, name in numbered.names.items()) or "static"


def folders(registration: Registration) -> list[Path]:
    """Where the files are, in the order of their lookup."""
    named = registration.records or config.records_folder
    return [*([Path(named)] if named else []), Path(cache_dir()) / "range_dispatch"]


def device_kind(device: torch.device) -> str:
    """The device as its maker calls it."""
    if device.type == "cpu":
        return _processor()
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name(device)) if name is not None else device.type


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "cpu"


def environment(device: torch.device) -> dict[str, Any]:
    """The versions that generated kernels and their times come from."""
    return {
        "capability": _capability(device),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "cuda": torch.version.cuda,
        "patch": __version__,
    }


def _capability(device: torch.device) -> Any:
    if device.type == "cuda":
        return list(torch.cuda.get_device_capability(device))
    if device.type == "cpu":
        return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return None


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


class _Numbered:
    """Symbols by their order of appearance."""

    def __init__(self) -> None:
        self.names: dict[sympy.Symbol, str] = {}

    def __call__(self, expr: Any) -> int | str:
        expr = sympy.sympify(expr)
        if expr.is_Integer:
            return int(expr)
        for symbol in sorted(expr.free_symbols, key=lambda s: s.name):
            self.names.setdefault(symbol, f"n{len(self.names)}")
        renamed = {s: sympy.Symbol(n, integer=True) for s, n in self.names.items()}
        return str(expr.xreplace(renamed))


def _signature(registration: Registration, call: BoundCall) -> dict[str, Any]:
    numbered = _Numbered()
    where = registration.dispatch_on
    return {
        "operands": [_operand(operand, numbered) for operand in call.operands],
        "arguments": {name: _argument(value) for name, value in call.arguments.items()},
        "region": call.described(),
        "dispatch_on": None if where is None else [where.tensor_name, where.dim],
        "inputs": _identities(registration.input_gen_fns),
        "check": None if registration.check is None else _shown(registration.check),
        "cudagraphs": registration.benchmark_with_cudagraphs,
        "time_limit_s": config.time_limit_s,
        "settings": {name: getattr(inductor_config, name, None) for name in _SETTINGS},
        "matmul_precision": torch.get_float32_matmul_precision(),
    }


def _operand(operand: Any, numbered: _Numbered) -> Any:
    if not isinstance(operand, ir.IRNode):
        return numbered(operand)
    sizes, strides = operand.get_size(), operand.get_layout().stride
    return {
        "dtype": str(operand.get_dtype()).removeprefix("torch."),
        "device": operand.get_device().type,
        "size": [numbered(size) for size in sizes],
        "stride_order": _stride_order(strides),
    }


def _stride_order(strides: Any) -> list[int]:
    """Each dimension's place among the strides, the smallest first; -1 where nothing moves."""
    hints = [V.graph.sizevars.optimization_hint(s) for s in strides]
    moving = sorted((d for d, h in enumerate(hints) if h != 0), key=lambda d: (hints[d], -d))
    return [moving.index(d) if d in moving else -1 for d in range(len(hints))]


def _argument(value: Any) -> str:
    """An argument that is no operand; ``Operand`` marks the places of those that are."""
    leaves, structure = pytree.tree_flatten(value)
    shown = [
        repr(leaf) if isinstance(leaf, (Operand, *_SHOWN)) else description.identity(leaf)
        for leaf in leaves
    ]
    return shown[0] if leaves == [value] else f"{', '.join(shown)} in {structure}"


def _identities(generators: Mapping[str, Any]) -> dict[str, str]:
    return {name: description.identity(function) for name, function in generators.items()}


def _shown(tolerances: Mapping[torch.dtype, float]) -> dict[str, float]:
    return {str(dtype).removeprefix("torch."): float(value) for dtype, value in tolerances.items()}
