"""Benchmark inputs for one point of the dispatch space.

A point gives every size symbol of the call a value, so that all dimensions that follow the
dispatched size, or an expression of it, follow it in the benchmark as well.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
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
from torch.utils._sympy.functions import Mod, PythonMod


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
    """The point at which ``size_expr`` comes to ``size``, or as near to it as it can in the range.

    The largest possible size below comes first (``2*n`` is never 9: 8), then the smallest above.
    One symbol moves, and the others keep the sizes that the graph was first called with. Where
    the size is made of several (``s*t``), the one that comes closest to ``size`` moves; where no
    size in the range can be had so, the others move as well. What the graph relies on, that ``s``
    is divisible by 4 or that ``t`` is ``2*s - 2``, say, holds at the point too.

    Raises:
        NoSuchPoint: No size from ``low`` to ``high`` was found.
    """
    size_expr = sympy.sympify(size_expr)
    symbols = sorted(size_expr.free_symbols, key=lambda s: s.name)
    first = hinted_point(call, size_expr).values
    base = {**{s: _hint(s) for expr in _equations() for s in expr.free_symbols}, **first}
    within = _Wanted(size, low, high)
    solved = [_solved(size_expr, symbol, base, within) for symbol in symbols]
    if not any(solved) and len(symbols) > 1:
        solved = [
            _solved(size_expr, symbol, {**base, other: value}, within)
            for symbol, other in itertools.permutations(symbols, 2)
            for value in range(_bounds(other)[0], _bounds(other)[0] + _OTHERS_TRIED)
        ]
    found = [point for point in solved if point is not None]
    if not found:
        raise NoSuchPoint(f"{size_expr} cannot come to a size in [{low}, {high}]")
    best = min(found, key=lambda point: within.distance(point.size))
    return Point(best.size, _with_room(call, first, {s: best.values[s] for s in first}))


def can_reach(size_expr: Any, low: int, high: int | float) -> bool:
    """Whether ``size_expr`` may come to a size from ``low`` to ``high``; True where in doubt."""
    size_expr = sympy.sympify(size_expr)
    if len(size_expr.free_symbols) != 1:
        return True
    (symbol,) = size_expr.free_symbols
    line = _line(size_expr, symbol)
    if line is None:
        return True
    (slope, rest), (first, last) = line, _bounds(symbol)
    step = _divisor(symbol, _equations())
    within = (-(-first // step), last // step)
    return _on_line(slope * step, rest, within, _Wanted(low, low, high)) is not None


# How many values around the best one are tried where the graph's guards do not allow that one.
_TRIED = 1024
# How many values of the other symbols are tried where one alone gives no size in the range.
_OTHERS_TRIED = 32


@dataclass(frozen=True)
class _Wanted:
    """A size that is looked for, and the range that it has to be in."""

    size: int
    low: int
    high: int | float

    def distance(self, size: int) -> tuple[bool, int]:
        """How far ``size`` is from the wanted one: any that is larger is further away."""
        return size > self.size, abs(size - self.size)


def _bounds(symbol: sympy.Symbol) -> tuple[int, int]:
    """The first and the last value that a symbol can have."""
    bounds = V.graph.sizevars.shape_env.var_to_range.get(symbol)
    if bounds is None:
        return 0, 2**62
    return max(0, _finite(bounds.lower, 0)), _finite(bounds.upper, 2**62)


def _solved(
    size_expr: sympy.Expr,
    symbol: sympy.Symbol,
    values: Mapping[sympy.Symbol, int],
    wanted: _Wanted,
) -> Point | None:
    """The point with the best value of ``symbol``; None if no value gives a size in the range."""
    others = {s: sympy.Integer(v) for s, v in values.items() if s != symbol}
    expr = size_expr.xreplace(others)
    line = _line(expr, symbol)
    if line is not None:
        value = _on_line(*line, _bounds(symbol), wanted)
    else:
        value = _on_curve(expr, symbol, wanted)
    if value is None:
        return None

    equations = _equations()

    def point(value: int) -> Point:
        size = int(expr.xreplace({symbol: sympy.Integer(value)}))
        moved = {**values, symbol: value}
        return Point(size, _followed(moved, size_expr.free_symbols, equations))

    return _as_relied_on(point, value, symbol, equations, wanted) if equations else point(value)


def _followed(
    values: Mapping[sympy.Symbol, int], decided: Set[sympy.Symbol], equations: Sequence[sympy.Eq]
) -> dict[sympy.Symbol, int]:
    """``values``, with symbols that are not ``decided`` moved to where the equations hold.

    Comparing a tensor of ``t`` rows with one of ``2*s - 2`` makes the graph rely on
    ``Eq(t, 2*s - 2)``, with ``t`` still a symbol of its own.
    """
    found, decided = dict(values), set(decided)
    waiting = list(equations)
    # Ends where the others have no decided symbol, or none whose value alone makes them true.
    while settled := [expr for expr in waiting if _made_true(expr, found, decided)]:
        waiting = [expr for expr in waiting if expr not in settled]
    return found


def _made_true(expr: sympy.Eq, values: dict[sympy.Symbol, int], decided: set[sympy.Symbol]) -> bool:
    """Whether ``expr`` holds, after moving one symbol in ``values`` if that is what it takes."""
    if not expr.free_symbols & decided:
        return False
    numbers = {s: sympy.Integer(v) for s, v in values.items()}
    if expr.xreplace(numbers) == sympy.true:
        decided |= expr.free_symbols
        return True
    for symbol in sorted(expr.free_symbols - decided, key=lambda s: s.name):
        others = {s: v for s, v in numbers.items() if s != symbol}
        line = _line((expr.lhs - expr.rhs).xreplace(others), symbol)
        first, last = _bounds(symbol)
        if line is not None and line[1] % line[0] == 0 and first <= -line[1] // line[0] <= last:
            values[symbol] = -line[1] // line[0]
            decided |= expr.free_symbols
            return True
    return False


def _as_relied_on(
    point: Callable[[int], Point],
    value: int,
    symbol: sympy.Symbol,
    equations: Sequence[sympy.Eq],
    wanted: _Wanted,
) -> Point | None:
    """The point in the range nearest to that of ``value`` at which the equations hold.

    ``x.view(-1, 4)`` makes the graph rely on ``Eq(Mod(s, 4), 0)``, and fails where that is not so.
    """

    def holds(value: int) -> bool:
        at = point(value)
        values = {s: sympy.Integer(v) for s, v in at.values.items()}
        in_range = wanted.low <= at.size <= wanted.high
        return in_range and all(expr.xreplace(values) != sympy.false for expr in equations)

    step = _divisor(symbol, equations)
    found = [m for expr in equations for m in expr.atoms(Mod, PythonMod)]
    period = math.lcm(*(int(m.args[1]) for m in found if m.args[1].is_Integer))
    tried = range(min(-(-period // step), _TRIED))
    below = (value // step * step - i * step for i in tried)
    above = (value // step * step + (i + 1) * step for i in tried)
    first, last = _bounds(symbol)
    nearest = [
        next((v for v in side if first <= v <= last and holds(v)), None) for side in (below, above)
    ]
    points = [point(v) for v in nearest if v is not None]
    return min(points, key=lambda at: wanted.distance(at.size), default=None)


def _equations() -> list[sympy.Eq]:
    """What the graph guards on: it is compiled anew where one of these is not so."""
    guards = [guard.expr for guard in V.graph.sizevars.shape_env.guards]
    return [expr for expr in guards if isinstance(expr, sympy.Eq)]


def _divisor(symbol: sympy.Symbol, equations: Sequence[sympy.Eq]) -> int:
    """What every value of ``symbol`` is divisible by, by those equations that say so."""
    divisors = [
        int(side.args[1])
        for expr in equations
        for side, other in (expr.args, expr.args[::-1])
        if isinstance(side, (Mod, PythonMod))
        and (side.args[0], other) == (symbol, 0)
        and side.args[1].is_Integer
    ]
    return math.lcm(*divisors)


def _line(expr: sympy.Expr, symbol: sympy.Symbol) -> tuple[int, int] | None:
    """``a`` and ``b`` where ``expr`` is ``a*symbol + b``, with integers."""
    slope = sympy.expand(expr).coeff(symbol, 1)
    rest = sympy.expand(expr - slope * symbol)
    if slope.is_Integer and rest.is_Integer and slope != 0:
        return int(slope), int(rest)
    return None


def _on_line(slope: int, rest: int, bounds: tuple[int, int], wanted: _Wanted) -> int | None:
    """The value within ``bounds`` at which ``slope*value + rest`` is nearest to what is wanted."""
    first, last = bounds
    to_low, to_size = wanted.low - rest, wanted.size - rest
    up = slope > 0
    # Python rounds down: -(-a // b) is a/b rounded up.
    nearest = to_size // slope if up else -(-to_size // slope)
    at_low = -(-to_low // slope) if up else to_low // slope
    if math.isinf(wanted.high):
        at_high = last if up else first
    else:
        to_high = int(wanted.high) - rest
        at_high = to_high // slope if up else -(-to_high // slope)
    least, most = (at_low, at_high) if up else (at_high, at_low)
    least, most = max(least, first), min(most, last)
    return min(max(nearest, least), most) if least <= most else None


def _on_curve(expr: sympy.Expr, symbol: sympy.Symbol, wanted: _Wanted) -> int | None:
    """The same for a size that grows with its symbol in any other way (``s//2``, ``s*s``)."""

    def at(value: int) -> int:
        return int(expr.xreplace({symbol: sympy.Integer(value)}))

    below, last = _bounds(symbol)
    # The last value that gives at most the wanted size; the next one gives more.
    step = 1
    while below + step <= last and at(below + step) <= wanted.size:
        below += step
        step *= 2
    while step > 0:
        if below + step <= last and at(below + step) <= wanted.size:
            below += step
        else:
            step //= 2
    fitting = [v for v in (below, below + 1) if v <= last and wanted.low <= at(v) <= wanted.high]
    return min(fitting, key=lambda v: wanted.distance(at(v)), default=None)


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


@dataclass(frozen=True)
class _Form:
    """What a tensor has to be, apart from its values."""

    size: list[int]
    stride: list[int]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, operand: ir.IRNode, point: Point) -> _Form:
        size = [point.evaluate(s) for s in operand.get_size()]
        stride = [point.evaluate(s) for s in operand.get_layout().stride]
        return cls(size, stride, operand.get_dtype(), operand.get_device())

    def empty(self) -> torch.Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)

    def length(self) -> int:
        """How many elements of memory it spans."""
        if 0 in self.size:
            return 1
        return 1 + sum((n - 1) * st for n, st in zip(self.size, self.stride, strict=True))


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
        MemoryError: They would take most of this machine's memory.
    """
    _check_room(call, point)
    torch_rng: dict[torch.device, torch.Generator] = {}
    made = []
    for place, (name, operand) in enumerate(zip(call.names(), call.operands, strict=True), 1):
        if not isinstance(operand, ir.IRNode):
            made.append(point.evaluate(operand))
            continue
        form = _Form.of(operand, point)
        argument = name.partition("[")[0]
        if argument in generators:
            where = f"{call.op}: input_gen_fns[{argument!r}]"
            first = _Form.of(operand, hinted_point(call, sympy.S.Zero))
            _seed(form.device, config.input_seed + place)
            made.append(_from_user(where, generators[argument], form, first))
            continue
        device = form.device
        if device not in torch_rng:
            torch_rng[device] = torch.Generator(device).manual_seed(config.input_seed)
        storage = _random(form.length(), form.dtype, device, torch_rng[device])
        made.append(storage.as_strided(form.size, form.stride))
    return tuple(made)


def _check_room(call: BoundCall, point: Point) -> None:
    """A GPU says that it is full; a CPU's system kills the process that fills its memory."""
    operands = [operand for operand in call.operands if isinstance(operand, ir.IRNode)]
    forms = [_Form.of(operand, point) for operand in operands]
    taken = sum(f.length() * f.dtype.itemsize for f in forms if f.device.type == "cpu")
    if taken > memory() / 2:
        raise MemoryError(f"they take {taken / 2**30:.1f} GiB, over half of this machine's memory")


def memory() -> float:
    """Bytes of memory that this machine has."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        return math.inf


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


def _from_user(where: str, generator: InputGenerator, form: _Form, first: _Form) -> torch.Tensor:
    """A tensor of ``form`` from the user's generator.

    Stock asks for the shapes of the first call only, and resizes what it gets. A generator that
    knows no other shape (it returns a tensor of the user's, say) is asked for that one: its
    values are repeated, or cut off, up to the size of the probe.
    """
    try:
        result = _asked(where, generator, form)
    except (ValueError, RuntimeError):
        if first.size == form.size or 0 in first.size:
            raise
        try:
            result = _asked(where, generator, first)
        except (ValueError, RuntimeError):
            result = None
        if result is None:
            raise
        result = _resized(result, form.size)
    if result.stride() != tuple(form.stride):
        result = _with_strides(result, form.size, form.stride)
    return result


def _asked(where: str, generator: InputGenerator, form: _Form) -> torch.Tensor:
    """Ask the user's generator, first with a fake tensor of the wanted shape.

    ``torch.randn_like(fake)`` of a fake tensor is fake again: such a generator is asked a second
    time, with a real tensor of the same kind whose values mean nothing.
    """
    with FakeTensorMode():
        fake = form.empty()
    result = _ask(where, generator, fake)
    if isinstance(result, FakeTensor):
        result = _ask(where, generator, form.empty())
    if not isinstance(result, torch.Tensor):
        raise ValueError(f"{where} must return a tensor, got {result!r}")
    wanted = (tuple(form.size), form.dtype, form.device)
    got = (tuple(result.shape), result.dtype, result.device)
    if got != wanted:
        raise ValueError(
            f"{where} must return a tensor of the shape, dtype and device of the fake tensor that "
            f"it is given, {wanted}; it returned {got}"
        )
    return result


def _resized(tensor: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """``tensor`` repeated and cut off to ``size``."""
    times = [-(-n // have) for n, have in zip(size, tensor.shape, strict=True)]
    return tensor.repeat(times)[tuple(slice(n) for n in size)]


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
