"""Benchmark inputs for one point of the dispatch space.

A point gives every size symbol of the call a value, so that all dimensions that follow the
dispatched size, or an expression of it, follow it in the benchmark as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

import torch
from torch._inductor import ir
from torch._inductor.kernel.range_dispatch import config
from torch._inductor.kernel.range_dispatch.call import BoundCall
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import _disable_current_modes


InputGenerator = Callable[[torch.Tensor], torch.Tensor]

# Sizes that Inductor assumes where a symbol has no value at compile time.
_UNKNOWN_SIZE = 8192


class NoSuchPoint(Exception):
    """No value of the size symbols gives the dispatched dimension a size in the range."""


@dataclass(frozen=True)
class Point:
    """Values for all size symbols of a call.

    Attributes:
        size: What the dispatched dimension comes to.
        values: Each symbol's value.
    """

    size: int
    values: Mapping[sympy.Symbol, int]

    def evaluate(self, expr: Any) -> int:
        return int(
            sympy.sympify(expr).xreplace({s: sympy.Integer(v) for s, v in self.values.items()})
        )


def symbols_of(call: BoundCall) -> tuple[sympy.Symbol, ...]:
    """Every symbol in sizes, strides and symbolic integers of the operands, by name."""
    found: set[sympy.Symbol] = set()
    for operand in call.operands:
        for expr in _shape_exprs(operand):
            found |= sympy.sympify(expr).free_symbols
    return tuple(sorted(found, key=lambda s: s.name))


def _shape_exprs(operand: Any) -> list[Any]:
    if isinstance(operand, ir.IRNode):
        return [*operand.get_size(), *operand.get_layout().stride]
    return [operand]


def hinted_point(call: BoundCall, size_expr: Any) -> Point:
    """The point with the sizes that the graph was first called with."""
    values = {s: _hint(s) for s in symbols_of(call)}
    return Point(Point(0, values).evaluate(size_expr), values)


def point_at(call: BoundCall, size_expr: Any, size: int, low: int, high: int | float) -> Point:
    """The point at which ``size_expr`` comes to ``size``, or to the largest possible size below.

    One symbol moves, and the others keep the sizes that the graph was first called with. Where
    the size is made of several (``s*t``), the one that comes closest to ``size`` moves.

    Raises:
        NoSuchPoint: No value of any one symbol comes to a size from ``low`` to ``high``.
    """
    symbols = sorted(sympy.sympify(size_expr).free_symbols, key=lambda s: s.name)
    found = [_along(call, size_expr, symbol, size) for symbol in symbols]
    fitting = [p for p in found if low <= p.size <= high and p.size <= max(size, low)]
    if not fitting:
        raise NoSuchPoint(f"{size_expr} cannot come to a size in [{low}, {high}]")
    return max(fitting, key=lambda point: point.size)


def _along(call: BoundCall, size_expr: Any, symbol: sympy.Symbol, size: int) -> Point:
    """The point with the last value of ``symbol`` at which the size is at most ``size``."""
    base = hinted_point(call, size_expr).values
    bounds = V.graph.sizevars.shape_env.var_to_range.get(symbol)

    def at(value: int) -> Point:
        values = _with_room(call, base, {**base, symbol: value})
        return Point(Point(0, values).evaluate(size_expr), values)

    first = max(0, _finite(bounds.lower, 0)) if bounds is not None else 0
    last = _finite(bounds.upper, 2**62) if bounds is not None else 2**62
    # Sizes grow with their symbol (s, 2*s, s+1, s*t, s//2): look for the last value that fits.
    below, above = first, last
    step = 1
    while below + step <= above and at(below + step).size <= size:
        below += step
        step *= 2
    while step > 0:
        if below + step <= above and at(below + step).size <= size:
            below += step
        else:
            step //= 2
    return at(below)


def _with_room(
    call: BoundCall, base: Mapping[sympy.Symbol, int], values: Mapping[sympy.Symbol, int]
) -> dict[sympy.Symbol, int]:
    """``values``, with strides that no size decides grown where rows would come to overlap.

    The row stride of ``buffer[:, :n]`` is a symbol of its own, with the value of the first call.
    """
    grown = dict(values)
    sized: set[sympy.Symbol] = set()
    for operand in call.operands:
        of_sizes = operand.get_size() if isinstance(operand, ir.IRNode) else [operand]
        sized |= set().union(*(sympy.sympify(e).free_symbols for e in of_sizes))
    before = Point(0, base)
    for operand in call.operands:
        if not isinstance(operand, ir.IRNode):
            continue
        dims = zip(operand.get_size(), operand.get_layout().stride, strict=True)
        reach = reach_before = 1
        for size, stride in sorted(dims, key=lambda dim: before.evaluate(dim[1])):
            padding = before.evaluate(stride) - reach_before
            free = isinstance(stride, sympy.Symbol) and stride not in sized
            if free and padding >= 0 and grown[stride] < reach:
                grown[stride] = reach + padding
            reach_before += (before.evaluate(size) - 1) * before.evaluate(stride)
            after = Point(0, grown)
            reach += max(after.evaluate(size) - 1, 0) * after.evaluate(stride)
    return grown


def _finite(bound: Any, otherwise: int) -> int:
    value = sympy.sympify(bound)
    return int(value) if value.is_Integer and abs(int(value)) < 2**62 else otherwise


def _hint(symbol: sympy.Symbol) -> int:
    return int(V.graph.sizevars.optimization_hint(symbol, fallback=_UNKNOWN_SIZE))


@contextlib.contextmanager
def real_tensors(devices: Sequence[torch.device]) -> Iterator[None]:
    """Outside of every fake or tracing mode, leaving the global random generators as they were."""
    cuda = [d.index or 0 for d in devices if d.type == "cuda"]
    with (
        unset_fake_temporarily(),
        _disable_current_modes(),
        torch.no_grad(),
        torch._C._DisableAutocast(),
        torch.random.fork_rng(devices=cuda, device_type="cuda"),
    ):
        yield


def make_inputs(
    call: BoundCall, point: Point, generators: Mapping[str, InputGenerator]
) -> tuple[Any, ...]:
    """Real operands at ``point``: tensors of the operands' dtype, device and strides, and ints.

    Values come from the user's generator for that argument if there is one. Otherwise floating
    and complex values are standard normal, bool and 8-bit integers are uniform, and wider
    integers, which often index something, are zero: the only index that is always valid.

    For the user's generators the global random ones are seeded: the same call has the same inputs,
    and no two operands the same values.

    Raises:
        ValueError: A generator returned something of another shape, dtype or device.
    """
    torch_rng: dict[torch.device, torch.Generator] = {}
    made = []
    for place, (name, operand) in enumerate(zip(call.names(), call.operands, strict=True), 1):
        if not isinstance(operand, ir.IRNode):
            made.append(point.evaluate(operand))
            continue
        size = [point.evaluate(s) for s in operand.get_size()]
        stride = [point.evaluate(s) for s in operand.get_layout().stride]
        dtype, device = operand.get_dtype(), operand.get_device()
        generator = generators.get(name.partition("[")[0])
        if generator is not None:
            _seed(device, config.input_seed + place)
            made.append(_from_user(call, name, generator, size, stride, dtype, device))
            continue
        if device not in torch_rng:
            torch_rng[device] = torch.Generator(device).manual_seed(config.input_seed)
        length = 1 + sum((n - 1) * st for n, st in zip(size, stride, strict=True))
        storage = _random(max(length, 1) if 0 not in size else 1, dtype, device, torch_rng[device])
        made.append(storage.as_strided(size, stride))
    return tuple(made)


def _seed(device: torch.device, seed: int) -> None:
    """Seed what a user's generator draws from, on this device and on the CPU alone."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def _random(
    length: int, dtype: torch.dtype, device: torch.device, rng: torch.Generator
) -> torch.Tensor:
    if dtype.is_complex or dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return torch.randn(length, dtype=dtype, device=device, generator=rng)
    # Two float4 values in a byte: nothing converts to it, and every byte is a finite pair.
    if dtype.is_floating_point and dtype is not torch.float4_e2m1fn_x2:
        return torch.randn(length, device=device, generator=rng).to(dtype)
    if dtype.itemsize == 1:
        high = 2 if dtype is torch.bool else 256
        raw = torch.randint(high, (length,), dtype=torch.uint8, device=device, generator=rng)
        return raw.view(dtype)
    return torch.zeros(length, dtype=dtype, device=device)


def _from_user(
    call: BoundCall,
    name: str,
    generator: InputGenerator,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Ask the user's generator, first with a fake tensor of the wanted shape.

    ``torch.randn_like(fake)`` of a fake tensor is fake again: such a generator is asked a second
    time, with a real tensor of the same kind whose values mean nothing.
    """
    with FakeTensorMode():
        fake = torch.empty_strided(size, stride, dtype=dtype, device=device)
    where = f"{call.op}: input_gen_fns[{name.partition('[')[0]!r}]"
    result = _ask(where, generator, fake)
    if isinstance(result, FakeTensor):
        real = torch.empty_strided(size, stride, dtype=dtype, device=device)
        result = _ask(where, generator, real)
    if not isinstance(result, torch.Tensor):
        raise ValueError(f"{where} must return a tensor, got {result!r}")
    wanted = (tuple(size), dtype, device)
    got = (tuple(result.shape), result.dtype, result.device)
    if got != wanted:
        raise ValueError(
            f"{where} must return a tensor of the shape, dtype and device of the fake tensor that "
            f"it is given, {wanted}; it returned {got}"
        )
    if result.stride() != tuple(stride):
        result = _with_strides(result, size, stride)
    return result


def _ask(where: str, generator: InputGenerator, example: torch.Tensor) -> Any:
    try:
        return generator(example)
    except (RuntimeError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"{where} failed for a tensor of shape {tuple(example.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _with_strides(tensor: torch.Tensor, size: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    """``tensor`` in the strides that a compiled candidate reads with.

    An expanded dimension has one place in memory: the first of the values along it counts.
    """
    narrow = [min(n, 1) if st == 0 else n for n, st in zip(size, stride, strict=True)]
    for dim, length in enumerate(narrow):
        tensor = tensor.narrow(dim, 0, length)
    base = torch.empty_strided(narrow, stride, dtype=tensor.dtype, device=tensor.device)
    return base.copy_(tensor).as_strided(size, stride)
