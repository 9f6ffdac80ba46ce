# Owner(s): ["module: inductor"]
"""Drawn cases: whatever the op, its arguments and ranges, the right branch gives the op's answer.

A case is an op with a drawn signature, implementations in drawn forms, split points, and a forced
winner for each range. Several cases go into one compiled graph, which is run at the first and the
last size of every range, beyond them, and at 2. There it has to agree with eager exactly (all
values are small integers, so that no order of additions rounds), in strides too, without a
recompile, and what ran has to be the winner of the range: implementations tell on themselves.

More cases, other cases, or some of them again::

    RANGE_DISPATCH_CASES=2000 python test/inductor/test_range_dispatch_property.py
    RANGE_DISPATCH_SEED=7 python test/inductor/test_range_dispatch_property.py
    RANGE_DISPATCH_ONLY=17,18 python test/inductor/test_range_dispatch_property.py
"""

import bisect
import contextlib
import dataclasses
import functools
import itertools
import math
import os
import random
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from range_dispatch_common import config, custom_op, RangeDispatchTestCase, report

import torch
import torch.fx.experimental._config as shapes_config
from torch._inductor.kernel.range_dispatch import fingerprint, tuner
from torch._inductor.kernel.range_dispatch.choosing import Measurement


CASES = int(os.environ.get("RANGE_DISPATCH_CASES", "200"))
SEED = os.environ.get("RANGE_DISPATCH_SEED", "0")
ONLY = [int(i) for i in os.environ.get("RANGE_DISPATCH_ONLY", "").split(",") if i]
NAMESPACE = "range_dispatch_property"
CASES_PER_GRAPH = 8
GRAPHS_PER_TEST = 5
# Sizes of the first call.
FIRST_SIZES = (11, 27, 41)
OP = 0  # what the op itself tells; its implementations tell 1, 2, ...

# What ran, as (case, what it tells), and the cases by number.
told: list[tuple[int, int]] = []
cases: dict[int, "Case"] = {}


# ---------------------------------------------------------------------------------------------
# A case. Its op adds up its tensor arguments and scales the sum by its scalar ones.


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a drawn op.

    Attributes:
        name: Its name in the schema.
        kind: What it does: a key of ``SCHEMA``.
        keyword_only: Whether it stands after the star.
        value: What a call passes, of an argument that holds no tensor.
        omitted: Whether a call leaves it out, for its default.
        layout: How its tensors lie in memory, or come about in the graph.
    """

    name: str
    kind: str
    keyword_only: bool = False
    value: Any = None
    omitted: bool = False
    layout: str = "contiguous"


SCHEMA = {
    "x": "Tensor",  # the named tensor
    "optional_x": "Tensor?",
    "same": "Tensor",  # of its shape
    "again": "Tensor",  # the named tensor once more
    "vector": "Tensor",  # as long as the dispatched dimension
    "index": "Tensor",  # the same, of integers
    "double": "Tensor",  # twice as long
    "plus_one": "Tensor",  # longer by one
    "weight": "Tensor",  # as long as the last dimension that is not dispatched
    "zero_d": "Tensor",
    "optional": "Tensor?",
    "list": "Tensor[]",
    "int": "int",
    "float": "float",
    "bool": "bool",
    "str": "str",
    "ints": "int[]",
    "size": "SymInt",
    "dtype": "ScalarType?",
    "block": "int",  # changes nothing but what the op tells
}
DEFAULTS = {
    "optional": None,
    "int": 1,
    "float": 1.0,
    "bool": False,
    "str": "add",
    "dtype": None,
    "block": OP,
}
TENSORS = ("x", "optional_x", "same", "vector", "index", "double", "plus_one", "weight", "zero_d")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclasses.dataclass
class Case:
    """A drawn op, its registration, and how it is called.

    Attributes:
        number: Its number; with the seed it determines everything else.
        arguments: In the order of the schema.
        shape: Of the named tensor; 0 stands for the dispatched size.
        negative_dim: Whether the registration counts the dimension from the end.
        dtype: Of all tensors but indices.
        symbol: Which of the sizes of the graph the dispatched one follows.
        grows: How it follows: as itself, doubled, or one less.
        returns: A key of ``RETURNS``.
        by_keyword: How many of the last positional arguments a call gives by keyword.
        forms: For each implementation its form, a key of ``FORMS``.
        kernels: Whether Inductor generates kernels for its implementations and neighbours.
        split_points: As registered.
        winners: For each range what it tells that is forced to win there.
        include_fallback: As registered.
        generator: Whether the configs come from a generator.
        measured: Whether the candidates are timed before the winner is forced.
        op: The op, once it is defined.
        probes: Sizes at which its candidates were compared.
        unsupported: Why it was lowered as if it were not registered, if it was.
    """

    number: int
    arguments: tuple[Argument, ...]
    shape: tuple[int, ...]
    negative_dim: bool
    dtype: torch.dtype
    symbol: int
    grows: str
    returns: str
    by_keyword: int
    forms: tuple[str, ...]
    kernels: bool
    split_points: tuple[int, ...]
    upper_bound: int
    winners: tuple[int, ...]
    include_fallback: bool
    generator: bool
    measured: bool
    op: Any = None
    probes: set[int] = dataclasses.field(default_factory=set)
    unsupported: str | None = None

    @property
    def dim(self) -> int:
        return self.shape.index(0)

    @property
    def named(self) -> Argument:
        return next(a for a in self.arguments if a.kind in ("x", "optional_x"))

    def size(self, n: int) -> int:
        """The dispatched size where the size of the graph is ``n``."""
        return {"itself": n, "doubled": 2 * n, "one_less": n - 1}[self.grows]

    def boundaries(self) -> set[int]:
        """Sizes of the graph around which the range changes, and beyond the last."""
        back = {"itself": lambda s: s, "doubled": lambda s: s // 2, "one_less": lambda s: s + 1}
        last = [back[self.grows](point) for point in self.split_points]
        return {*last, *(n + 1 for n in last), 3 * last[-1] + 7}

    def range(self, size: int) -> int:
        """The index of the range that a size falls into."""
        return bisect.bisect_left(self.split_points, size)

    def winner(self, size: int) -> int:
        return self.winners[self.range(size)]

    def right(self, size: int) -> list[int]:
        """What may run at a size: the winner of its range; anything where that was not measured."""
        if self.unsupported:
            return [OP]
        if self.range(size) in map(self.range, self.probes):
            return [self.winner(size)]
        return list(range(len(self.forms) + 1))

    def schema(self) -> str:
        texts = []
        for argument in self.arguments:
            if argument.keyword_only and "*" not in texts:
                texts.append("*")
            text = f"{SCHEMA[argument.kind]} {argument.name}"
            if argument.omitted or argument.kind in ("block", "dtype"):
                default = DEFAULTS[argument.kind]
                text += f"={default!r}".replace("'", '"')
            texts.append(text)
        return f"({', '.join(texts)}) -> {RETURNS[self.returns]}"

    def __str__(self) -> str:
        points = ", ".join(map(str, self.split_points))
        return "\n  ".join(
            [
                f"case {self.number}: op{self.schema()}",
                f"{self.dtype}, shape {self.shape}, dim {self.dim}, negative {self.negative_dim}, "
                f"size {self.grows}, kernels {self.kernels}, measured {self.measured}",
                f"split points [{points}], winners {list(self.winners)}, forms {list(self.forms)}, "
                f"fallback {self.include_fallback}, generator {self.generator}",
                *(f"{a}" for a in self.arguments),
            ]
        )


RETURNS = {
    "one": "Tensor",
    "flat": "Tensor",
    "pair": "(Tensor, Tensor)",
    "copy": "(Tensor, Tensor)",  # implementations return the input itself, or a view of it
    "list": "Tensor[]",
}


def compute(case: Case, values: dict[str, Any], variant: int = 0) -> Any:
    """What the op returns. ``variant`` changes the way, and what aliases what, not the values."""
    x = values[case.named.name]
    size = x.shape[case.dim]
    along = [1] * x.dim()
    along[case.dim] = size
    terms: list[Any] = []
    scale: Any = 1
    dtype = None
    for argument in case.arguments:
        value = values[argument.name]
        if argument.kind in ("same", "again", "zero_d"):
            terms.append(value)
        elif argument.kind == "optional":
            terms += [] if value is None else [value]
        elif argument.kind == "list":
            terms += value
        elif argument.kind in ("vector", "index"):
            terms.append(value.to(x.dtype).reshape(along))
        elif argument.kind == "double":
            terms.append(value.reshape(2, size).sum(0, dtype=x.dtype).reshape(along))
        elif argument.kind == "plus_one":
            terms.append(value[1:].reshape(along))
        elif argument.kind == "weight":
            across = [1] * x.dim()
            across[case.dim - 1] = value.shape[0]
            terms.append(value.reshape(across))
        elif argument.kind in ("int", "float"):
            scale = scale * value
        elif argument.kind == "bool":
            scale = -scale if value else scale
        elif argument.kind == "str":
            scale = -scale if value == "sub" else scale
        elif argument.kind == "ints":
            scale = scale * sum(value)
        elif argument.kind == "size":
            terms.append(x.new_zeros(value).reshape(along))
        elif argument.kind == "dtype":
            dtype = value
    out = x
    for term in terms[:: -1 if variant % 2 else 1]:
        out = out + term
    out = out * scale
    if dtype is not None:
        out = out.to(dtype)
    if variant % 3 == 2:  # other strides than the op's
        out = out.movedim(0, -1).contiguous().movedim(-1, 0)
    if case.returns == "flat":
        return out.reshape(-1)
    if case.returns in ("pair", "list"):
        both = (out, out.sum(-1))
        return list(both) if case.returns == "list" else both
    if case.returns == "copy":
        copy = x.clone() if variant == 0 else x
        return out, copy.view_as(x) if variant % 2 else copy
    return out


# ---------------------------------------------------------------------------------------------
# What implementations are made of: ops whose kernels tell what ran.


def rebuild(case: Case, tensors: Sequence[torch.Tensor], sizes: Sequence[int]) -> dict[str, Any]:
    """The arguments of a call from its tensors and sizes, in the order of the schema."""
    tensors, sizes, values = list(tensors), list(sizes), {}
    for argument in case.arguments:
        if argument.kind == "list":
            values[argument.name] = [tensors.pop(0) for _ in range(argument.value)]
        elif argument.kind == "size":
            values[argument.name] = sizes.pop(0)
        elif argument.kind in (*TENSORS, "again") or (
            argument.kind == "optional" and not argument.omitted
        ):
            values[argument.name] = tensors.pop(0)
        else:
            values[argument.name] = passed_value(argument)
    return values


def passed_value(argument: Argument) -> Any:
    return DEFAULTS[argument.kind] if argument.omitted else argument.value


def opaque(
    tensors: Sequence[torch.Tensor], sizes: Sequence[int], number: int, tells: int
) -> list[torch.Tensor]:
    told.append((number, tells))
    returned = compute(cases[number], rebuild(cases[number], tensors, sizes))
    return list(returned) if isinstance(returned, (list, tuple)) else [returned]


def opaque_fake(
    tensors: Sequence[torch.Tensor], sizes: Sequence[int], number: int, tells: int
) -> list[torch.Tensor]:
    returned = compute(cases[number], rebuild(cases[number], tensors, sizes))
    return list(returned) if isinstance(returned, (list, tuple)) else [returned]


def tell(x: torch.Tensor, number: int, tells: int) -> torch.Tensor:
    told.append((number, tells))
    return x.clone()


library = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(name: str, function: Callable[..., Any], fake: Callable[..., Any], schema: str) -> Any:
    """A custom op; an overload where it takes a tensor by keyword only, which custom_op refuses."""
    qualified = f"{NAMESPACE}::{name}"
    if "Tensor" not in schema.partition("->")[0].partition("*")[2]:
        op = torch.library.custom_op(qualified, function, mutates_args=(), schema=schema)
        op.register_fake(fake)
        return op
    library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
    library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=library)
    return getattr(torch.ops.range_dispatch_property, name).default


def overload(op: Any) -> Any:
    return getattr(op, "_opoverload", op)


opaque_op = define(
    "opaque",
    opaque,
    opaque_fake,
    "(Tensor[] tensors, SymInt[] sizes, int n, int tells) -> Tensor[]",
)
tell_op = define(
    "tell", tell, lambda x, number, tells: x.clone(), "(Tensor x, int n, int tells) -> Tensor"
)
copy_op = define("copy", torch.clone, torch.clone, "(Tensor x) -> Tensor")


def implementation(case: Case, values: dict[str, Any], tells: int) -> Any:
    """The body of all implementations; they differ in how they get their arguments."""
    tensors, sizes = [], []
    for argument in case.arguments:
        value = values[argument.name]
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif argument.kind == "list":
            tensors += value
        elif argument.kind == "size":
            sizes.append(value)
        elif argument.kind != "block" and value != passed_value(argument):
            raise AssertionError(f"{argument.name} is {value!r}, passed {passed_value(argument)!r}")
    if case.kernels:
        name = case.named.name
        return compute(case, {**values, name: tell_op(values[name], case.number, tells)}, tells)
    returned = opaque_op(tensors, sizes, case.number, tells)
    if case.returns == "copy":
        return compute_copy(case, values, returned[0], tells)
    return returned if len(returned) > 1 else returned[0]


def compute_copy(case: Case, values: dict[str, Any], out: torch.Tensor, tells: int) -> Any:
    """The input itself, or a view of it, as the second result."""
    x = values[case.named.name]
    return out, x if tells % 2 else x.movedim(0, -1).movedim(-1, 0)


# ---------------------------------------------------------------------------------------------
# The forms that an implementation comes in.


def signature(case: Case, rename: bool, extra: str = "") -> str:
    """A Python parameter list for the op's arguments."""
    texts = []
    for i, argument in enumerate(case.arguments):
        if argument.keyword_only and "*" not in texts:
            texts.append("*")
        text = f"p{i}" if rename and not argument.keyword_only else argument.name
        if argument.omitted or argument.kind in ("block", "dtype"):
            text += f"={DEFAULTS[argument.kind]!r}"
        texts.append(text)
    if extra:
        texts += [extra] if "*" in texts else ["*", extra]
    return ", ".join(texts)


def written(case: Case, tells: Any, rename: bool = False, extra: str = "") -> Callable[..., Any]:
    """A function with the op's parameters, by their names or by others."""
    items = ", ".join(
        f"{a.name!r}: {f'p{i}' if rename and not a.keyword_only else a.name}"
        for i, a in enumerate(case.arguments)
    )
    lines = f"def written({signature(case, rename, extra)}): return run(case, {{{items}}}, {tells})"
    scope: dict[str, Any] = {"run": implementation, "case": case}
    exec(lines, scope)
    return scope["written"]


def bound(case: Case, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name from any way to pass them."""
    values = dict(zip((a.name for a in case.arguments), args, strict=False)) | kwargs
    missing = [a for a in case.arguments if a.name not in values]
    return values | {a.name: DEFAULTS[a.kind] for a in missing}


class Holder:
    """An implementation as an object, and as a method."""

    def __init__(self, case: Case, tells: int) -> None:
        self.case, self.tells = case, tells

    def run(self, *args: Any, **kwargs: Any) -> Any:
        return implementation(self.case, bound(self.case, args, kwargs), self.tells)

    __call__ = run


def as_op(case: Case, tells: int) -> Any:
    """Another custom op of the same signature."""
    return define_case_op(case, f"impl_{case.number}_{tells}", tells)


Config = custom_op.CustomOpConfig
FORMS: dict[str, Callable[[Case, int], custom_op.CustomOpConfig]] = {
    "function": lambda case, i: Config(written(case, i)),
    "other names": lambda case, i: Config(written(case, i, rename=True)),
    "parameter": lambda case, i: Config(shared(case), tells=i),
    "partial": lambda case, i: Config(functools.partial(shared(case), tells=i)),
    "partial and parameter": lambda case, i: Config(functools.partial(shared(case)), tells=i),
    "lambda": lambda case, i: Config(
        lambda *args, **kwargs: implementation(case, bound(case, args, kwargs), i)
    ),
    "method": lambda case, i: Config(Holder(case, i).run),
    "object": lambda case, i: Config(Holder(case, i)),
    "patches": lambda case, i: Config(written(case, i), {"realize_reads_threshold": 4 + i}),
    "custom op": lambda case, i: Config(as_op(case, i)),
    "overload": lambda case, i: Config(overload(as_op(case, i))),
    "op with parameter": lambda case, i: Config(block=i),
    "function with block": lambda case, i: Config(written(case, "block"), block=i),
}

BLOCK_FORMS = ("op with parameter", "function with block")


@functools.cache
def _shared(number: int) -> Callable[..., Any]:
    return written(cases[number], "tells", extra="tells")


def shared(case: Case) -> Callable[..., Any]:
    """One function for all configs of a case that ask for it."""
    return _shared(case.number)


def define_case_op(case: Case, name: str, tells: int) -> Any:
    """A custom op of the case's signature that tells on itself."""

    def run(*args: Any, **kwargs: Any) -> Any:
        values = bound(case, args, kwargs)
        told.append((case.number, values.get("block") or tells))
        return compute(case, values)

    def fake(*args: Any, **kwargs: Any) -> Any:
        return compute(case, bound(case, args, kwargs))

    return define(name, run, fake, case.schema())


# ---------------------------------------------------------------------------------------------
# Drawing.


def draw(number: int, kernels: bool) -> Case:
    rng = random.Random(f"{SEED}:{number}")
    rank = rng.choice([1, 2, 2, 2, 3, 4])
    shape = [rng.randint(2, 5) for _ in range(rank)]
    shape[rng.randrange(rank)] = 0
    dtype = rng.choice([torch.float32] * 4 + [*FLOATS, torch.int64, torch.int32, torch.complex64])
    grows = rng.choice(["itself"] * 4 + ["doubled", "one_less"])
    arguments = draw_arguments(rng, shape, dtype, grows, kernels)
    positional = [a for a in arguments if not a.keyword_only]
    points = sorted(rng.sample(range(1, rng.choice([20, 90, 400])), rng.randint(1, 5)))
    forms = draw_forms(rng, arguments)
    include_fallback = rng.random() < 0.8
    codes = range(0 if include_fallback else 1, len(forms) + 1)
    winners = [rng.choice(codes) for _ in range(len(points) + 1)]
    first_keyword = next((i for i, a in enumerate(positional) if a.omitted), len(positional))
    least = len(positional) - first_keyword
    return Case(
        number=number,
        arguments=tuple(arguments),
        shape=tuple(shape),
        negative_dim=rng.random() < 0.4,
        dtype=dtype,
        symbol=rng.randrange(len(FIRST_SIZES)),
        grows=grows,
        returns=rng.choice(["one", "one", *RETURNS]),
        by_keyword=rng.randint(least, len(positional)),
        forms=forms,
        kernels=kernels,
        split_points=tuple(points),
        upper_bound=points[-1] + rng.choice([1, 50, 1000]),
        winners=tuple(winners),
        include_fallback=include_fallback,
        generator=rng.random() < 0.15,
        measured=grows != "one_less" and rng.random() < (0.02 if kernels else 0.08),
    )


def draw_arguments(
    rng: random.Random, shape: list[int], dtype: torch.dtype, grows: str, kernels: bool
) -> list[Argument]:
    named = Argument(
        rng.choice(["x", "input", "tokens"]),
        rng.choice(["x", "x", "optional_x"]),
        layout=draw_layout(rng, shape, dtype, kernels) if grows == "itself" else "contiguous",
    )
    kinds = rng.sample([k for k in SCHEMA if k not in ("x", "optional_x")], rng.randint(0, 4))
    if len(shape) < 2 or shape.index(0) == 0:
        kinds = [k for k in kinds if k != "weight"]
    if dtype not in FLOATS:
        kinds = [k for k in kinds if k != "dtype"]
    others = [draw_other(rng, f"a{i}", kind, shape, dtype, kernels) for i, kind in enumerate(kinds)]
    arguments = [*others[:2], named, *others[2:]]
    rng.shuffle(arguments)
    # Those with a default come last, then those after the star.
    starred = {a.name for a in arguments if rng.random() < 0.25}
    arguments = [dataclasses.replace(a, keyword_only=a.name in starred) for a in arguments]
    with_default = lambda a: a.omitted or a.kind in ("block", "dtype")  # noqa: E731
    return sorted(arguments, key=lambda a: (a.keyword_only, with_default(a)))


def draw_other(
    rng: random.Random, name: str, kind: str, shape: list[int], dtype: torch.dtype, kernels: bool
) -> Argument:
    values = {
        "int": [1, 2, -1],
        "float": [2.0, -1.0],
        "bool": [True, False],
        "str": ["add", "sub"],
        "ints": [[1], [2, -1], [1, 1]],
        "dtype": [torch.float32, torch.float64],
        "list": [1, 2, 3],
        "block": [OP],
    }
    if kind == "block":
        name = "block"
    return Argument(
        name,
        kind,
        value=rng.choice(values[kind]) if kind in values else None,
        omitted=kind in DEFAULTS and rng.random() < 0.3,
        layout=draw_layout(rng, shape, dtype, kernels)
        if kind in ("same", "optional", "list")
        else rng.choice(["contiguous", "sliced", "opaque"]),
    )


def draw_layout(rng: random.Random, shape: list[int], dtype: torch.dtype, kernels: bool) -> str:
    layouts = ["contiguous", "contiguous", "sliced", "expanded", "opaque"]
    if len(shape) > 1:
        layouts += ["transposed", "padded", "transposed in the graph"]
    if len(shape) == 4:
        layouts += ["channels last"] * 2
    if len(shape) == 2 and dtype in (torch.float32, torch.float64):
        layouts += ["product"]
    if kernels:
        layouts += ["pointwise", "reduction"] * 2
    return rng.choice(layouts)


def draw_forms(rng: random.Random, arguments: Sequence[Argument]) -> tuple[str, ...]:
    has_block = any(a.kind == "block" for a in arguments)
    able = [f for f in FORMS if has_block or f not in BLOCK_FORMS]
    forms = [rng.choice(able) for _ in range(rng.randint(1, 4))]
    if has_block:
        forms.append("op with parameter")
    return tuple(forms)


# ---------------------------------------------------------------------------------------------
# The graph: its source, its inputs, and what its calls return in eager.


@dataclasses.dataclass
class Source:
    """The function that is compiled, being written."""

    parameters: list[str] = dataclasses.field(default_factory=list)
    lines: list[str] = dataclasses.field(default_factory=list)
    # For each parameter a function from the sizes to its tensor.
    makers: list[Callable[[Sequence[int]], torch.Tensor]] = dataclasses.field(default_factory=list)

    def input(self, maker: Callable[[Sequence[int]], torch.Tensor]) -> str:
        self.parameters.append(f"t{len(self.parameters)}")
        self.makers.append(maker)
        return self.parameters[-1]

    def tensors(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        return [maker(sizes) for maker in self.makers]

    def text(self) -> str:
        body = [*self.lines, f"return ({', '.join(f'r{i}' for i in self.results)},)"]
        return f"def graph({', '.join(self.parameters)}):\n" + textwrap.indent(
            "\n".join(body), "    "
        )

    results: list[int] = dataclasses.field(default_factory=list)


def write_graph(drawn: Sequence[Case], direct: bool) -> Source:
    """The calls of all cases; ``direct`` calls plain Python in place of the ops."""
    source = Source()
    for case in drawn:
        write_call(source, case, "direct" if direct else f"torch.ops.{NAMESPACE}.op_{case.number}")
    return source


def write_call(source: Source, case: Case, target: str) -> None:
    positional = [a for a in case.arguments if not a.keyword_only]
    keyword = positional[len(positional) - case.by_keyword :]
    keyword += [a for a in case.arguments if a.keyword_only]
    named = None
    if any(a.kind == "again" for a in case.arguments):
        named = f"x{case.number}"
        source.lines.append(f"{named} = {write_tensor(source, case, case.named, 0)}")
    texts = []
    for argument in case.arguments:
        if argument.omitted:
            continue
        text = write_argument(source, case, argument, named)
        texts.append(f"{argument.name}={text}" if argument in keyword else text)
    if target == "direct":
        target, texts = "direct", [str(case.number), *texts]
    result = f"r{case.number}"
    source.lines.append(f"{result} = {target}({', '.join(texts)})")
    if case.kernels and case.returns == "one":
        source.lines.append(f"{result} = {result} * 2 + 1")
    source.results.append(case.number)


def write_argument(source: Source, case: Case, argument: Argument, named: str | None) -> str:
    if argument.kind == "again" or (argument is case.named and named is not None):
        return str(named)
    if argument.kind == "list":
        items = [write_tensor(source, case, argument, i) for i in range(argument.value)]
        return f"[{', '.join(items)}]"
    if argument.kind == "size":
        some = write_tensor(source, case, Argument("", "vector"), 0)
        return f"{some}.shape[0]"
    if argument.kind in TENSORS or argument.kind == "optional":
        return write_tensor(source, case, argument, 0)
    return repr(argument.value)


def shape_of(case: Case, kind: str, size: int) -> list[int]:
    if kind in ("vector", "index"):
        return [size]
    if kind == "double":
        return [2 * size]
    if kind == "plus_one":
        return [size + 1]
    if kind == "weight":
        return [case.shape[case.dim - 1]]
    if kind == "zero_d":
        return []
    return [n or size for n in case.shape]


def write_tensor(source: Source, case: Case, argument: Argument, i: int) -> str:
    """An expression for a tensor argument; its input is laid out so that the argument fits."""
    dtype = torch.int64 if argument.kind == "index" else case.dtype
    layout, rank = argument.layout, len(shape_of(case, argument.kind, 0))
    seed = f"{case.number}:{argument.name}:{i}"

    def values(shape: Sequence[int]) -> torch.Tensor:
        rng = torch.Generator().manual_seed(random.Random(f"{seed}:{tuple(shape)}").getrandbits(32))
        return torch.randint(-3, 4, tuple(shape), generator=rng).to(dtype)

    def make(sizes: Sequence[int]) -> torch.Tensor:
        n = sizes[case.symbol]
        shape = shape_of(case, argument.kind, case.size(n))
        if argument is case.named and case.grows == "doubled":
            shape[case.dim : case.dim + 1] = [n, 2]
        elif argument is case.named and case.grows == "one_less":
            shape[case.dim] = n
        return laid_out(layout, shape, values)

    name = source.input(make)
    if argument is case.named and case.grows == "doubled":
        return f"{name}.flatten({case.dim}, {case.dim + 1})"
    if argument is case.named and case.grows == "one_less":
        return f"{name}.narrow({case.dim}, 1, {name}.shape[{case.dim}] - 1)"
    if layout == "transposed in the graph" and rank > 1:
        return f"{name}.transpose(0, -1)"
    if layout == "opaque":
        return f"torch.ops.{NAMESPACE}.copy({name})"
    if layout == "product":
        eye = source.input(lambda sizes: torch.eye(case.shape[1 - case.dim], dtype=dtype))
        return f"{name} @ {eye}" if case.dim == 0 else f"{eye} @ {name}"
    if layout == "pointwise":
        return f"({name} + 1)"
    if layout == "reduction":
        return f"{name}.sum(-1, dtype={dtype})"
    return name


def laid_out(
    layout: str, shape: list[int], values: Callable[[Sequence[int]], torch.Tensor]
) -> torch.Tensor:
    if layout == "transposed":
        return values(shape[::-1]).permute(*reversed(range(len(shape))))
    if layout == "transposed in the graph" and len(shape) > 1:
        return values([shape[-1], *shape[1:-1], shape[0]])
    if layout == "sliced" and shape:
        return values([shape[0] + 2, *shape[1:]])[1:-1]
    if layout == "padded":
        return values([*shape[:-1], shape[-1] + 3])[..., : shape[-1]]
    if layout == "expanded":
        return values([1, *shape[1:]]).expand(shape)
    if layout == "channels last":
        return values(shape).contiguous(memory_format=torch.channels_last)
    if layout == "reduction":
        return values([*shape, 2])
    return values(shape)


def direct(number: int, *args: Any, **kwargs: Any) -> Any:
    """The op in eager, without telling."""
    return compute(cases[number], bound(cases[number], args, kwargs))


# ---------------------------------------------------------------------------------------------
# Running.


def register(case: Case) -> None:
    configs = [FORMS[form](case, i) for i, form in enumerate(case.forms, 1)]
    dim = case.dim - len(case.shape) if case.negative_dim else case.dim
    custom_op.register_custom_op_autotuning(
        case.op,
        configs=None if case.generator else configs,
        config_generator=(lambda tensors: configs) if case.generator else None,
        dispatch_on={
            "tensor_name": case.named.name,
            "dim": dim,
            "range_upper_bound": case.upper_bound,
        },
        split_points=list(case.split_points),
        include_fallback=case.include_fallback,
    )


@contextlib.contextmanager
def forced(drawn: Sequence[Case]) -> Iterator[None]:
    """The drawn winners win. On the way, the benchmark inputs are run through the op."""
    by_op = {overload(case.op): case for case in drawn}
    real = tuner.measure

    def fake(bench: Any, contenders: Any, point: Any) -> list[Measurement]:
        case = by_op[bench.call.op]
        told_by = [*range(1, len(case.forms) + 1), *([OP] if case.include_fallback else [])]
        labels = [c.candidate.label for c in contenders]
        if any(c.variant for c in contenders):  # with fewer neighbours in the branches, or not
            times = (1.0, 2.0 if case.number % 2 else 0.5)
            return [Measurement(*pair) for pair in zip(labels, times, strict=True)]
        case.probes.add(point.size)
        if len(labels) != len(told_by):
            raise AssertionError(f"expected {len(told_by)} candidates, there are {labels}")
        with tuner.real_tensors([torch.device("cpu")]):
            inputs = tuner.make_inputs(bench.call, point, bench.generators)
            compute(case, bench.call.fill(inputs))
        if case.measured:
            failed = [
                m for m in real(bench, contenders, point) if not math.isfinite(m.milliseconds)
            ]
            if failed:
                raise AssertionError(f"not measured: {failed}")
        winner = case.winner(point.size)
        pairs = zip(labels, told_by, strict=True)
        return [Measurement(label, 1.0 if tells == winner else 2.0) for label, tells in pairs]

    lower = custom_op._lower

    def noted(registration: Any, *args: Any) -> Any:
        try:
            return lower(registration, *args)
        except custom_op.Unsupported as reason:
            by_op[registration.op].unsupported = str(reason)
            raise

    with (
        mock.patch.object(custom_op, "_lower", noted),
        mock.patch.object(tuner, "measure", fake),
        config.patch(tuning_rounds=1, tuning_budget_ms=0.0),
    ):
        yield


def sizes_to_run(drawn: Sequence[Case]) -> list[tuple[int, ...]]:
    """Sizes for all symbols at once, so that every case meets each of its boundaries from 2 on."""
    wanted = []
    for symbol in range(len(FIRST_SIZES)):
        along = [case for case in drawn if case.symbol == symbol]
        # Sizes 0 and 1 are compiled for on their own.
        least = next(n for n in itertools.count(2) if all(case.size(n) >= 2 for case in along))
        here = {least}.union(*(case.boundaries() for case in along))
        wanted.append(sorted(n for n in here if n >= least))
    longest = max(map(len, wanted))
    cycled = [itertools.islice(itertools.cycle(column), longest) for column in wanted]
    return list(zip(*cycled, strict=True))


class Failed(AssertionError):
    """A graph that failed, at some sizes."""


def run_graph(drawn: Sequence[Case], test: RangeDispatchTestCase, mode: str) -> None:
    """Compile the cases into one graph, and compare at all sizes.

    ``mode``: "dynamic", all sizes are symbols; "marked", only those that vary; "static", none.
    """
    source = write_graph(drawn, direct=False)
    scopes = [{"torch": torch}, {"torch": torch, "direct": direct}]
    exec(source.text(), scopes[0])
    exec(write_graph(drawn, direct=True).text(), scopes[1])
    for case in drawn:
        case.probes.clear()
        case.unsupported = None
        register(case)
    torch._dynamo.reset()
    compiled = torch.compile(scopes[0]["graph"], fullgraph=True, dynamic=mode == "dynamic" or None)
    if mode == "static":
        compiled = torch.compile(scopes[0]["graph"], fullgraph=True, dynamic=False)
    later = sizes_to_run(drawn)
    if mode == "static":
        later = random.Random(drawn[0].number).sample(later, 2)
    with forced(drawn), contextlib.ExitStack() as stack:
        first = True
        for sizes in later if mode == "static" else [FIRST_SIZES, *later]:
            tensors = source.tensors(sizes)
            if first and mode == "marked":
                mark(tensors, source.tensors([n + 50 for n in sizes]))
            compare(drawn, test, compiled, scopes[1]["graph"], tensors, sizes)
            if first and mode != "static":
                stack.enter_context(torch._dynamo.config.patch(error_on_recompile=True))
                first = False


def mark(tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> None:
    """Mark what differs between the two lists as dynamic."""
    for tensor, other in zip(tensors, others, strict=True):
        for dim, (n, m) in enumerate(zip(tensor.shape, other.shape, strict=True)):
            if n != m:
                torch._dynamo.maybe_mark_dynamic(tensor, dim)


def compare(
    drawn: Sequence[Case],
    test: RangeDispatchTestCase,
    compiled: Callable[..., Any],
    eager: Callable[..., Any],
    tensors: Sequence[torch.Tensor],
    sizes: Sequence[int],
) -> None:
    try:
        actual = compiled(*tensors)
        told.clear()
        compiled(*tensors)
    except Exception as error:
        raise Failed(f"at sizes {sizes}: {type(error).__name__}: {error}") from error
    expected = eager(*tensors)
    for case, one, other in zip(drawn, actual, expected, strict=True):
        where = f"case {case.number} at {case.size(sizes[case.symbol])}"
        ran = [tells for number, tells in told if number == case.number]
        test.assertIsNone(case.unsupported, where)
        right = case.right(case.size(sizes[case.symbol]))
        # A product of symbols may have no measured size in a range; nothing else is let off.
        test.assertTrue(len(right) == 1 or case.grows == "doubled" or len(case.forms) == 1, where)
        test.assertTrue(len(ran) == 1 and ran[0] in right, f"{where}: {ran} ran, not {right}")
        test.assertEqual(one, other, f"{where}: the answer", rtol=0, atol=0, exact_stride=True)


def define_cases(drawn: Sequence[Case]) -> None:
    for case in drawn:
        if case.number not in cases:
            cases[case.number] = case
            case.op = define_case_op(case, f"op_{case.number}", OP)
        else:
            case.op = cases[case.number].op


def draw_graph(numbers: Sequence[int]) -> tuple[list[Case], str]:
    """The cases of one graph, and how it is compiled."""
    graph = numbers[0] // CASES_PER_GRAPH
    mode = {3: "static", 5: "marked"}.get(graph % 8, "dynamic")
    # Every C++ kernel takes a second or more to compile.
    return [draw(number, kernels=graph % 5 == 4 and number % 4 == 0) for number in numbers], mode


def reproduce(drawn: Sequence[Case], test: RangeDispatchTestCase, mode: str) -> str:
    """The cases that fail on their own, or all, and how to run them again."""
    alone = []
    for case in drawn:
        unregister_all()
        try:
            run_graph([case], test, mode)
        except Exception:
            alone.append(case)
    culprits = alone or drawn
    numbers = ",".join(str(case.number) for case in culprits)
    return "\n".join(
        [
            f"{len(culprits)} of {len(drawn)} fail {'alone' if alone else 'together'} ({mode})",
            *map(str, culprits[:3]),
            write_graph(culprits[:3], direct=False).text(),
            f"RANGE_DISPATCH_SEED={SEED} RANGE_DISPATCH_ONLY={numbers} python {__file__}",
        ]
    )


def unregister_all() -> None:
    for op in list(custom_op._registrations):
        custom_op.unregister_custom_op_autotuning(op)


class TestRangeDispatchProperty(RangeDispatchTestCase):
    def setUp(self) -> None:
        super().setUp()
        # No cache is on, and implementations that reach all cases are long to describe.
        patched = mock.patch.object(fingerprint, "publish")
        patched.start()
        self.addCleanup(patched.stop)

    def run_numbers(self, numbers: Sequence[int]) -> None:
        drawn, mode = draw_graph(numbers)
        define_cases(drawn)
        try:
            # Sizes, strides and offsets that happen to be equal at first must not be taken for one.
            with shapes_config.patch(use_duck_shape=False):
                run_graph(drawn, self, mode)
        except Exception as error:
            said = "".join(traceback.format_exception_only(error))[:3000]
            with shapes_config.patch(use_duck_shape=False):
                again = reproduce(drawn, self, mode)
            raise AssertionError(f"{said}\n{again}") from error
        finally:
            unregister_all()
            report.clear()


def numbers_of_graphs() -> list[list[int]]:
    if ONLY:
        return [ONLY]
    return [
        list(range(start, min(start + CASES_PER_GRAPH, CASES)))
        for start in range(0, CASES, CASES_PER_GRAPH)
    ]


def _test(graphs: Sequence[Sequence[int]]) -> Callable[[TestRangeDispatchProperty], None]:
    def test(self: TestRangeDispatchProperty) -> None:
        for numbers in graphs:
            with self.subTest(first=numbers[0]):
                self.run_numbers(numbers)

    return test


_graphs = numbers_of_graphs()
for _start in range(0, len(_graphs), GRAPHS_PER_TEST):
    _some = _graphs[_start : _start + GRAPHS_PER_TEST]
    setattr(
        TestRangeDispatchProperty,
        f"test_cases_{_some[0][0]:05}_to_{_some[-1][-1]:05}",
        _test(_some),
    )


if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    run_tests()
