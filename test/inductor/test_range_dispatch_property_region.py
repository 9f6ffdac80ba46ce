# Owner(s): ["module: inductor"]
"""Drawn graphs: whatever stands around dispatched ops, each branch gives what its winner gives.

A case is a graph of pointwise operations, casts, views, reductions and what stops a region, with
one to three dispatched calls in it, on drawn inputs, with drawn outputs. Winners are forced for
each range, and so is whether neighbours that may stay outside of the branches do. What the
candidates of an op return differs, so that the wrong one shows; values are small integers, so that
no order of additions rounds. A case is run around the ends of its ranges, and has to agree with
eager exactly, in strides too, without a recompile. Inductor does not keep the strides of an output
that is a view of something that is not returned itself, only their order. So where strides are not
those of eager, they have to be what Inductor gives for the graph with the winners in place of the
ops.

More cases, other cases, or some of them again::

    RANGE_DISPATCH_REGIONS=1000 python test/inductor/test_range_dispatch_property_region.py
    RANGE_DISPATCH_SEED=7 python test/inductor/test_range_dispatch_property_region.py
    RANGE_DISPATCH_ONLY=17,18 python test/inductor/test_range_dispatch_property_region.py
"""

import contextlib
import ctypes
import dataclasses
import functools
import os
import random
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from range_dispatch_common import custom_op, inductor_config, OP_LABEL, RangeDispatchTestCase

import torch
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CppCodeCache
from torch._inductor.kernel.range_dispatch import tuner
from torch._inductor.kernel.range_dispatch.choosing import Measurement


CASES = int(os.environ.get("RANGE_DISPATCH_REGIONS", "16"))
SEED = os.environ.get("RANGE_DISPATCH_SEED", "0")
ONLY = [int(i) for i in os.environ.get("RANGE_DISPATCH_ONLY", "").split(",") if i]
CASES_PER_TEST = 16
WIDTH = 4
FIRST = 11
# PyTorch may compile again where a size is that of another dimension.
SPECIAL = {WIDTH, WIDTH + 1, 2 * WIDTH, 2 * WIDTH + 1}
# They compile faster, and so they do without optimization.
SCALAR = {"cpp.simdlen": 1, "cpp.threads": 1, "aot_inductor.debug_compile": True}
# What a value may come to before it is clamped: bfloat16 holds all integers up to 256.
LIMIT = 100


# ---------------------------------------------------------------------------------------------
# The ops. Each takes x of shape [size, WIDTH] and w of shape [WIDTH]; by kind of computation.


def scaled(x, w, extra):
    return x * w + extra


def above_least(x, w, extra):
    return (x - x.amin(-1, keepdim=True) + extra) * w


def summed_twice(x, w, extra):
    y = x.clamp(-20, 20) + w
    return y - y.sum(-1, keepdim=True).clamp(-20, 20) + y.amax(-1, keepdim=True) + extra


def product(x, w, extra):
    return (x.unsqueeze(-1) * (w + extra)).sum(1)


def pair(x, w, extra):
    y = x * w + extra
    return y, y.sum(-1).clamp(-50, 50)


KINDS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (scaled, above_least, summed_twice, product, pair)
}
# How much larger than those of x the values of the result may be, at most.
GROWTH = {"scaled": 4, "above_least": 8, "summed_twice": 1, "product": 16, "pair": 4}
CANDIDATES = 3


def low(kind: str) -> Callable[..., Any]:
    return lambda x, w: KINDS[kind](x, w, 1)


def high(kind: str) -> Callable[..., Any]:
    return lambda x, w: KINDS[kind](x + 0, w, 2)


def define(kind: str) -> list[Any]:
    """The op of a kind, and what competes: what the op itself computes, and two others."""
    alone = lambda x, w: KINDS[kind](x, w, 0)  # noqa: E731
    returned = "(Tensor, Tensor)" if kind == "pair" else "Tensor"
    op = torch.library.custom_op(
        f"range_dispatch_regions::{kind}",
        alone,
        mutates_args=(),
        schema=f"(Tensor x, Tensor w) -> {returned}",
    )
    op.register_fake(alone)
    return [op, alone, low(kind), high(kind)]


OPS = {kind: define(kind) for kind in KINDS}
copy_op = torch.library.custom_op(
    "range_dispatch_regions::copy", torch.clone, mutates_args=(), schema="(Tensor x) -> Tensor"
)
copy_op.register_fake(torch.clone)


# ---------------------------------------------------------------------------------------------
# Drawing a graph.


@dataclasses.dataclass(frozen=True)
class Value:
    """A tensor in the graph.

    Attributes:
        name: Its name.
        shape: Its sizes; a string is an expression of the size of the graph.
        dtype: Its dtype.
        bound: How large its values are at most.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    bound: int

    @property
    def is_bool(self) -> bool:
        return self.dtype is torch.bool


FLOATS = (torch.float32, torch.float64)
LAYOUTS = ("contiguous", "contiguous", "transposed", "sliced", "padded", "expanded")


@dataclasses.dataclass
class Drawing:
    """A graph being drawn, as the lines of a function."""

    rng: random.Random
    values: list[Value] = dataclasses.field(default_factory=list)
    parameters: list[tuple[str, tuple[int | str, ...], torch.dtype, str]] = dataclasses.field(
        default_factory=list
    )
    lines: list[str] = dataclasses.field(default_factory=list)
    used: set[str] = dataclasses.field(default_factory=set)
    calls: list[str] = dataclasses.field(default_factory=list)

    def parameter(self, shape: tuple[int | str, ...], dtype: torch.dtype) -> None:
        name = f"t{len(self.parameters)}"
        layout = self.rng.choice(LAYOUTS)
        self.parameters.append((name, shape, dtype, layout))
        self.values.append(Value(name, shape, dtype, 3))

    def add(self, text: str, shape: Any, dtype: torch.dtype, bound: int) -> Value:
        name = f"v{len(self.lines)}"
        if bound > LIMIT:
            text, bound = f"({text}).clamp(-20, 20)", 20
        self.lines.append(f"{name} = {text}")
        self.values.append(Value(name, tuple(shape), dtype, bound))
        return self.values[-1]

    def pick(self, fits: Callable[[Value], bool] = lambda v: True) -> Value | None:
        """One that fits: mostly of the last few, so that chains come about."""
        able = [v for v in self.values if fits(v)]
        if not able:
            return None
        value = self.rng.choice(able[-4:] if self.rng.random() < 0.7 else able)
        self.used.add(value.name)
        return value


def number(v: Value) -> bool:
    return not v.is_bool


def unary(d: Drawing) -> None:
    if a := d.pick(number):
        text, bound = d.rng.choice(
            [
                ("-{}", a.bound),
                ("{}.abs()", a.bound),
                ("{}.relu()", a.bound),
                ("{} * 2 + 1", 2 * a.bound + 1),
                ("torch.clamp({}, min=-1)", a.bound + 1),
                ("{}.sign()", 1),
                ("{} + {}.shape[0] % 5", a.bound + 5),
                ("torch.full_like({}, 3)", 3),
                ("{}.square()", a.bound**2),
            ]
        )
        if a.shape or "shape" not in text:
            d.add(text.replace("{}", a.name), a.shape, a.dtype, bound)


def cast(d: Drawing) -> None:
    if a := d.pick():
        dtype = d.rng.choice(
            [*FLOATS, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32]
        )
        d.add(f"{a.name}.to({dtype})", a.shape, dtype, max(a.bound, 1))


def broadcasts(one: Value, other: Value) -> bool:
    pairs = zip(reversed(one.shape), reversed(other.shape), strict=False)
    return len(other.shape) <= len(one.shape) and all(b in (a, 1) for a, b in pairs)


def binary(d: Drawing) -> None:
    a = d.pick(number)
    b = d.pick(lambda v: a is not None and number(v) and broadcasts(a, v))
    if a is None or b is None:
        return
    dtype = torch.result_type(*(torch.empty((1,) * len(v.shape), dtype=v.dtype) for v in (a, b)))
    text, bound = d.rng.choice(
        [
            ("{a} + {b}", a.bound + b.bound),
            ("{b} - {a}", a.bound + b.bound),
            ("{a} * {b}", a.bound * b.bound),
            ("torch.maximum({a}, {b})", max(a.bound, b.bound)),
            ("torch.where({a} > {b}, {a}, {b} + 1)", max(a.bound, b.bound) + 1),
            ("{a} > {b}", 1),
        ]
    )
    result = torch.bool if text == "{a} > {b}" else dtype
    d.add(text.format(a=a.name, b=b.name), a.shape, result, bound)


def masked(d: Drawing) -> None:
    mask = d.pick(lambda v: v.is_bool)
    a = d.pick(lambda v: mask is not None and number(v) and v.shape == mask.shape)
    if mask and a:
        text = d.rng.choice(["{a}.masked_fill({m}, 2)", "torch.where({m}, {a}, 0)"])
        d.add(text.format(a=a.name, m=mask.name), a.shape, a.dtype, max(a.bound, 2))


def view(d: Drawing) -> None:
    a = d.pick(lambda v: len(v.shape) >= 1)
    if a is None:
        return
    rows, *others = a.shape
    options: list[tuple[str, tuple[int | str, ...]]] = [
        ("{}.unsqueeze(-1)", (*a.shape, 1)),
        ("{}.unsqueeze(0)", (1, *a.shape)),
        ("{}.contiguous()", a.shape),
    ]
    if len(a.shape) == 2:
        options += [("{}.t()", (others[0], rows)), ("{}.transpose(0, 1).contiguous().t()", a.shape)]
    if a.shape[-1] == WIDTH:
        half = (*a.shape[:-1], WIDTH // 2)
        options += [
            ("{}[..., :2]", half),
            ("{}.chunk(2, dim=-1)[1]", half),
            ("{}[..., 1]", a.shape[:-1]),
            (f"{{}}.unflatten(-1, (2, {WIDTH // 2}))", (*a.shape[:-1], 2, WIDTH // 2)),
            ("{}.flip(-1)", a.shape),
        ]
    if rows == "N":
        options += [("{}[1:]", ("N-1", *others)), ("{}[-1]", tuple(others))]
    text, shape = d.rng.choice([o for o in options if len(o[1]) < 4])
    d.add(text.replace("{}", a.name), shape, a.dtype, a.bound)


def cat(d: Drawing) -> None:
    a = d.pick(lambda v: len(v.shape) == 2)
    b = d.pick(lambda v: a is not None and v.shape == a.shape and v.dtype == a.dtype)
    if a is None or b is None:
        return
    if d.rng.random() < 0.5 and isinstance(a.shape[1], int):
        shape = (a.shape[0], 2 * a.shape[1])
        d.add(f"torch.cat([{a.name}, {b.name}], 1)", shape, a.dtype, max(a.bound, b.bound))
    elif a.shape[0] == "N" and number(a):
        # Of one size: where two were added, one of them alone would move to reach a probe.
        text = f"torch.cat([{a.name}, {a.name} + 1], 0)"
        d.add(text, ("2*N", a.shape[1]), a.dtype, a.bound + 1)


def reduction(d: Drawing) -> None:
    a = d.pick(lambda v: number(v) and len(v.shape) in (1, 2))
    if a is None:
        return
    dim = d.rng.choice([0, -1])
    keep = d.rng.random() < 0.3
    kept = {0: (1, *a.shape[1:]), -1: (*a.shape[:-1], 1)}[dim]
    shape = kept if keep else (a.shape[1:] if dim == 0 else a.shape[:-1])
    if d.rng.random() < 0.5:
        d.add(f"{a.name}.amax({dim}, keepdim={keep})", shape, a.dtype, a.bound)
    else:
        dtype = d.rng.choice(FLOATS)
        d.add(f"{a.name}.sum({dim}, dtype={dtype}, keepdim={keep})", shape, dtype, LIMIT + 1)


def barrier(d: Drawing) -> None:
    """What no region goes beyond, or has to be computed before it."""
    kind = d.rng.choice(["copy", "cumsum", "mm", "gather", "mutate"])
    if kind == "copy" and (a := d.pick()):
        d.add(f"torch.ops.range_dispatch_regions.copy({a.name})", a.shape, a.dtype, a.bound)
    if kind == "cumsum" and (a := d.pick(lambda v: v.dtype in FLOATS and len(v.shape) >= 1)):
        d.add(f"{a.name}.cumsum(0)", a.shape, a.dtype, LIMIT + 1)
    if kind == "mm":
        a = d.pick(lambda v: v.dtype in FLOATS and len(v.shape) == 2 and v.shape[1] == WIDTH)
        if a is not None:
            eye = f"(torch.eye({WIDTH}, dtype={a.dtype}) * 2)"
            d.add(f"{a.name} @ {eye}", a.shape, a.dtype, 2 * a.bound)
    if kind == "gather" and (a := d.pick(lambda v: len(v.shape) == 2 and v.shape[0] == WIDTH)):
        d.add(f"{a.name}[index]", ("N", *a.shape[1:]), a.dtype, a.bound)
    if kind == "mutate":
        names = {name for name, _, _, layout in d.parameters if layout != "expanded"}
        if a := d.pick(lambda v: v.name in names):
            d.lines.append(f"{a.name}.add_(1)")


def dispatched(d: Drawing) -> None:
    kind = d.rng.choice(list(KINDS))
    x = d.pick(
        lambda v: (
            v.dtype in FLOATS
            and len(v.shape) == 2
            and v.shape[1] == WIDTH
            and "N" in str(v.shape[0])
        )
    )
    w = d.pick(lambda v: x is not None and v.shape == (WIDTH,) and v.dtype == x.dtype)
    if x is None or w is None:
        return
    if d.rng.random() < 0.4:
        x = d.add(f"({x.name} + {w.name}).neg()", x.shape, x.dtype, x.bound + w.bound)
        d.used.add(x.name)
    d.calls.append(kind)
    bound = GROWTH[kind] * (x.bound + 3) * (w.bound + 3)
    if kind == "pair":
        d.lines.append(f"y{len(d.calls)}, s{len(d.calls)} = op_pair({x.name}, {w.name})")
        d.add(f"s{len(d.calls)} + 1", x.shape[:1], x.dtype, 51)
        d.add(f"y{len(d.calls)} * 1", x.shape, x.dtype, bound)
    else:
        d.lines.append(f"y{len(d.calls)} = op_{kind}({x.name}, {w.name})")
        if bound > LIMIT:
            d.add(f"y{len(d.calls)}", x.shape, x.dtype, bound)
        else:
            d.values.append(Value(f"y{len(d.calls)}", x.shape, x.dtype, bound))


STEPS = [unary, unary, cast, masked, view, view, cat, barrier]
STEPS += [binary] * 4 + [reduction] * 2


@dataclasses.dataclass(frozen=True)
class Case:
    """A drawn graph.

    Attributes:
        number: Its number; with the seed it determines everything else.
        parameters: Of the function: name, shape, dtype, layout.
        text: The function's source.
        points: Split points, for all ops.
        winners: For each kind, which candidate wins in each range.
        out: Kinds of neighbours that are measured to be slower in the branches.
    """

    number: int
    parameters: tuple[tuple[str, tuple[int | str, ...], torch.dtype, str], ...]
    text: str
    points: tuple[int, ...]
    winners: dict[str, list[int]]
    out: tuple[str, ...]

    def __str__(self) -> str:
        inputs = "\n  ".join(map(str, self.parameters))
        return (
            f"case {self.number}, {self.points} {self.winners} {self.out}\n  {inputs}\n{self.text}"
        )


def draw(number: int) -> Case:
    rng = random.Random(f"{SEED}:{number}")
    dtype = rng.choice([torch.float32, torch.float32, torch.float64])
    d = Drawing(rng)
    shapes = [("N", WIDTH), (WIDTH,), ("N", WIDTH), ("N",), (WIDTH, "N"), (WIDTH, WIDTH), ("N", 1)]
    for i, shape in enumerate(shapes[: rng.randint(2, len(shapes))]):
        d.parameter(shape, dtype if i < 2 else rng.choice([dtype, dtype, torch.int64]))
    for _ in range(rng.randint(0, 6)):
        rng.choice(STEPS)(d)
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
        dispatched(d)
        if rng.random() < 0.3:
            reduction(d)
        for _ in range(rng.randint(0, 5)):
            rng.choice(STEPS)(d)
    computed = [v.name for v in d.values if v.name[0] != "t"]
    outputs = [n for n in computed if n not in d.used or rng.random() < 0.2]
    rng.shuffle(outputs)
    body = textwrap.indent("\n".join([*d.lines, f"return ({', '.join(outputs)},)"]), "    ")
    names = ", ".join(["index", *(name for name, *_ in d.parameters)])
    points = tuple(sorted(rng.sample([6, 10, 13, 14, 20, 26], rng.choice([1, 1, 2]))))
    winners = {}
    for kind in KINDS:
        winners[kind] = [rng.randrange(CANDIDATES) for _ in range(len(points) + 1)]
    out = [kind for kind in ("reductions", "producers") if rng.random() < 0.5]
    text = f"def graph({names}):\n{body}"
    return Case(number, tuple(d.parameters), text, points, winners, tuple(out))


# ---------------------------------------------------------------------------------------------
# Running one.


def tensors(case: Case, n: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(case.number * 1000 + n)
    made = [torch.randint(0, WIDTH, (n,), generator=rng)]
    torch._dynamo.mark_dynamic(made[0], 0)
    for _, shape, dtype, layout in case.parameters:
        sizes = [n if size == "N" else int(size) for size in shape]

        def values(sizes: Sequence[int], dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.randint(-3, 4, tuple(sizes), generator=rng).to(dtype)

        made.append(laid_out(layout, sizes, values))
        for dim, size in enumerate(shape):
            if size == "N":
                torch._dynamo.mark_dynamic(made[-1], dim)
    return made


def laid_out(
    layout: str, sizes: list[int], values: Callable[[Sequence[int]], torch.Tensor]
) -> torch.Tensor:
    if layout == "transposed":
        return values(sizes[::-1]).permute(*reversed(range(len(sizes))))
    if layout == "sliced":
        return values([sizes[0] + 2, *sizes[1:]])[1:-1]
    if layout == "padded":
        return values([*sizes[:-1], sizes[-1] + 3])[..., : sizes[-1]]
    if layout == "expanded" and len(sizes) == 2:
        return values([1, *sizes[1:]]).expand(sizes)
    return values(sizes)


def winner(case: Case, kind: str, size: int) -> int:
    return case.winners[kind][len([point for point in case.points if point < size])]


@contextlib.contextmanager
def registered(case: Case) -> Iterator[None]:
    """The ops with the case's split points; its winners win, and its neighbours stay outside."""
    kinds = {op._opoverload: kind for kind, (op, *_) in OPS.items()}

    def fake(bench: Any, contenders: Any, point: Any) -> list[Measurement]:
        wins = winner(case, kinds[bench.call.op], point.size)
        wanted = [OP_LABEL, "low", "high"][wins]
        found = []
        for contender in contenders:
            label = contender.candidate.label
            time = 1.0 if label == wanted else 2.0
            if contender.variant:
                time = 0.5 if contender.variant.split()[-1] in case.out else 3.0
            found.append(Measurement(label, time))
        return found

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(tuner, "measure", fake))
        for op, _, *implementations in OPS.values():
            for label, implementation in zip(("low", "high"), implementations, strict=True):
                implementation.__name__ = label
            custom_op.register_custom_op_autotuning(
                op,
                configs=[custom_op.CustomOpConfig(f) for f in implementations],
                dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 64},
                split_points=list(case.points),
            )
            stack.callback(custom_op.unregister_custom_op_autotuning, op)
        yield


def function_of(case: Case, op: Callable[[str], Callable[..., Any]]) -> Callable[..., Any]:
    """The case's function, with ``op`` of a kind in place of a dispatched op."""
    scope = {"torch": torch, **{f"op_{kind}": op(kind) for kind in OPS}}
    exec(compile(case.text, f"<case {case.number}>", "exec"), scope)
    return scope["graph"]


def with_winners(case: Case, *, itself: bool) -> Callable[..., Any]:
    """The case's function with the winners called; the op itself, or what it computes."""

    def chosen(kind: str) -> Callable[..., Any]:
        op, alone, *others = OPS[kind]
        contenders = [op if itself else alone, *others]
        return lambda x, w: contenders[winner(case, kind, x.shape[0])](x, w)

    return function_of(case, chosen)


@dataclasses.dataclass
class Kernels:
    """The C++ kernels of several graphs, compiled at once: most of the time goes into headers.

    Until ``compile`` they do nothing.
    """

    sources: list[str] = dataclasses.field(default_factory=list)
    library: Any = None

    def cpp_pybinding(self, argtypes: list[str], source: str) -> Callable[..., None]:
        name = f"kernel_{len(self.sources)}"
        lines = source.replace(" kernel(", f" {name}(").splitlines()
        self.sources += ["\n".join(line for line in lines if not line.startswith("#include"))]
        types = [self._type(argtype) for argtype in argtypes]

        def run(*args: Any) -> None:
            if self.library is not None:
                given = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args]
                wrapped = [kind(a) for kind, a in zip(types, given, strict=True)]
                getattr(self.library, name)(*wrapped)

        return run

    @staticmethod
    def _type(argtype: str) -> Any:
        if argtype.endswith("*"):
            return ctypes.c_void_p
        return {"int64_t": ctypes.c_int64, "double": ctypes.c_double}[argtype.split()[-1]]

    def compile(self) -> None:
        header = "#include <torch/csrc/inductor/cpp_prefix.h>"
        self.library = CppCodeCache.load("\n".join([header, *self.sources]))


@contextlib.contextmanager
def recorded_kernels() -> Iterator[Kernels]:
    """What is compiled inside has scalar kernels, which do nothing before they are compiled."""
    kernels = Kernels()
    with (
        inductor_config.patch(SCALAR),
        # 2.11 counts the graphs of all cases as one function's.
        torch._dynamo.config.patch(recompile_limit=2 * CASES_PER_TEST),
        mock.patch.object(AsyncCompile, "cpp_pybinding", lambda _, *a: kernels.cpp_pybinding(*a)),
    ):
        yield kernels


@dataclasses.dataclass
class Compiled:
    """A case, compiled."""

    case: Case
    function: Callable[..., Any]
    eager: Callable[..., Any]

    @staticmethod
    def of(case: Case) -> "Compiled":
        function = torch.compile(function_of(case, lambda kind: OPS[kind][0]), fullgraph=True)
        with registered(case):
            function(*tensors(case, FIRST))
        return Compiled(case, function, with_winners(case, itself=False))

    @functools.cached_property
    def stock(self) -> Callable[..., Any]:
        """The winners' graph compiled without a dispatch, for strides: no kernel computes."""
        return torch.compile(with_winners(self.case, itself=True), fullgraph=True)

    def stock_results(self, n: int) -> Sequence[torch.Tensor]:
        with recorded_kernels(), torch._dynamo.config.patch(error_on_recompile=False):
            return self.stock(*tensors(self.case, n))

    def check(self, test: RangeDispatchTestCase) -> None:
        ends = {n for p in self.case.points for n in (p, p + 1, p // 2, p // 2 + 1)}
        for n in sorted({3, FIRST, 40, *ends} - SPECIAL):
            args, same = tensors(self.case, n), tensors(self.case, n)
            pairs = [
                ("results", self.function(*args), self.eager(*same)),
                ("inputs", args, same),
            ]
            for what, ours, theirs in pairs:
                for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
                    said = f"{what}[{i}] at {n}"
                    test.assertEqual(one, other, said, rtol=0, atol=0)
                    if what == "results" and moving_strides(one) != moving_strides(other):
                        other = self.stock_results(n)[i]
                    test.assertEqual(*map(moving_strides, (one, other)), f"strides of {said}")


def moving_strides(tensor: torch.Tensor) -> list[int]:
    """Of the dimensions with more than one place: of others Inductor changes them at will."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return [stride for size, stride in pairs if size > 1]


class TestRangeDispatchRegions(RangeDispatchTestCase):
    vectors = True

    def run_cases(self, numbers: Sequence[int]) -> None:
        compiled = []
        with recorded_kernels() as kernels:
            for number in numbers:
                with self.subTest(number=number), described(draw(number)) as case:
                    compiled.append(Compiled.of(case))
            kernels.compile()
        with torch._dynamo.config.patch(error_on_recompile=True):
            for each in compiled:
                with self.subTest(number=each.case.number), described(each.case):
                    each.check(self)


@contextlib.contextmanager
def described(case: Case) -> Iterator[Case]:
    try:
        yield case
    except Exception as error:
        again = f"RANGE_DISPATCH_SEED={SEED} RANGE_DISPATCH_ONLY={case.number} python {__file__}"
        said = f"{type(error).__name__}: {error}"[:3000]
        raise AssertionError(f"{said}\n{case}\n{again}") from error


def _test(numbers: Sequence[int]) -> Callable[[TestRangeDispatchRegions], None]:
    def test(self: TestRangeDispatchRegions) -> None:
        self.run_cases(numbers)

    return test


_numbers = ONLY or list(range(CASES))
for _start in range(0, len(_numbers), CASES_PER_TEST):
    _some = _numbers[_start : _start + CASES_PER_TEST]
    setattr(TestRangeDispatchRegions, f"test_cases_{_some[0]:05}_to_{_some[-1]:05}", _test(_some))


if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    run_tests()
