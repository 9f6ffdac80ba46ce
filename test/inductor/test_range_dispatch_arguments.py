# Owner(s): ["module: inductor"]
"""What a dispatched op may be called with, and the benchmark inputs that are made for it."""

import collections
import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from range_dispatch_common import (
    counters,
    define_op,
    DEVICES,
    force_winners,
    HAS_CPU,
    HAS_GPU,
    OP_LABEL,
    report,
)
from range_dispatch_recording import (
    noted_op,
    quick_measuring,
    RecordingTestCase,
    what_ran,
)

import torch
from torch._inductor.kernel.custom_op import custom_op_autotuning, CustomOpConfig
from torch.testing import make_tensor
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


on_each_device = parametrize("device", DEVICES)

_library = torch.library.Library("range_dispatch_arguments", "FRAGMENT")
_numbers = itertools.count()


def op_from_schema(signature: str, function: Callable[..., Any]) -> Any:
    """An overload with a schema that ``torch.library.custom_op`` cannot infer."""
    name = f"op{next(_numbers)}"
    _library.define(f"{name}{signature}")
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"range_dispatch_arguments::{name}", function, lib=_library)
    return getattr(torch.ops.range_dispatch_arguments, name).default


class Seen:
    """An op function that keeps the real tensors, or other arguments, that it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def note(self, *values: Any) -> None:
        self.calls.append(values)

    def take(self) -> list[tuple[Any, ...]]:
        taken, self.calls = self.calls, []
        return taken


def layout(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(tensor.shape), tensor.stride()


def watched_op(name: str, seen: Seen) -> Any:
    """``xs[0] + 1``, keeping all of ``xs``; opaque to Inductor."""

    def function(xs: Sequence[torch.Tensor]) -> torch.Tensor:
        seen.note(*xs)
        return xs[0] + 1

    return define_op(name, function, lambda xs: torch.empty_like(xs[0] + 1))


class NamedTensorTest(RecordingTestCase):
    """The predicate reads the dimension of the tensor that ``dispatch_on`` names."""

    @on_each_device
    def test_second_tensor(self, device):
        def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return x.sum() + w

        op = define_op("named_second", function)
        # The first tensor's size runs the other way: reading it would give other branches.
        self.check_dispatched(
            op,
            lambda x, w: op(x, w),
            lambda n: (torch.randn(40 - n, device=device), torch.randn(3, n, device=device)),
            ("w", 1),
        )

    @on_each_device
    def test_negative_dimension(self, device):
        op = define_op("named_negative", _scaled)
        self.check_dispatched(
            op,
            lambda x: op(x, 2.0),
            lambda n: (torch.randn(40 - n, n, 3, device=device),),
            ("x", -2),
        )

    @on_each_device
    def test_by_keyword_in_any_order(self, device):
        def function(x: torch.Tensor, w: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return (x.sum() + w) * scale

        op = define_op("named_keyword", function)
        self.check_dispatched(
            op,
            lambda x, w: op(scale=3.0, w=w, x=x),
            lambda n: (torch.randn(40 - n, device=device), torch.randn(n, device=device)),
            ("w", 0),
        )

    @on_each_device
    def test_keyword_only(self, device):
        op = op_from_schema(
            "(float scale, Tensor x, *, Tensor w, bool square=False) -> Tensor",
            lambda scale, x, *, w, square=False: (x.sum() + (w * w if square else w)) * scale,
        )
        self.check_dispatched(
            op,
            lambda x, w: op(0.5, x, square=True, w=w),
            lambda n: (torch.randn(40 - n, device=device), torch.randn(n, device=device)),
            ("w", 0),
        )

    @on_each_device
    def test_after_lists_and_optionals(self, device):
        def function(
            many: Sequence[torch.Tensor], maybe: torch.Tensor | None, x: torch.Tensor
        ) -> torch.Tensor:
            return x + many[0].sum() + many[1].sum() + (0 if maybe is None else maybe.sum())

        op = define_op("named_after_lists", function)

        def args(n: int) -> tuple[torch.Tensor, ...]:
            return tuple(torch.randn(m, device=device) for m in (41 - n, 42 - n, 43 - n, n))

        where = ("x", 0)
        self.check_dispatched(op, lambda a, b, c, x: op([a, b], c, x), args, where)
        report.clear()
        torch._dynamo.reset()
        self.check_dispatched(op, lambda a, b, c, x: op([a, b], None, x), args, where)

    @on_each_device
    def test_in_a_registered_aten_overload(self, device):
        op = torch.ops.aten.mm.default
        self.check_dispatched(
            op,
            lambda a, b: torch.mm(a, b),
            lambda n: (torch.randn(40 - n, n, device=device), torch.randn(n, 3, device=device)),
            ("mat2", 0),
            short=noted_mm("short"),
            long=noted_mm("long"),
        )

    def test_out_of_range_dimension_is_an_error_that_names_it(self):
        op = define_op("named_out_of_range", _scaled)
        with self.assertRaisesRegex(
            Exception, r"named_out_of_range.*dispatch_on\['dim'\] must be in \[-1, 0\].*'x'.*got 2"
        ):
            self.check_dispatched(op, lambda x: op(x), lambda n: (torch.randn(n),), ("x", 2))


def noted_mm(label: str) -> Callable[..., Any]:
    def implementation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.ops.range_dispatch_test.ran(torch.mm(a, b), label)

    implementation.__name__ = label
    return implementation


def _scaled(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return x * scale


class ArgumentsTest(RecordingTestCase):
    @on_each_device
    def test_scalars_before_tensors(self, device):
        def function(a: float, b: int, c: bool, x: torch.Tensor, d: int) -> torch.Tensor:
            return x * a + b - (5 if c else 6) * d

        op = define_op("scalars_first", function)
        self.check_dispatched(
            op,
            lambda x: op(0.5, 3, True, x, 7),
            lambda n: (torch.randn(n, 2, device=device),),
            ("x", 0),
        )

    @on_each_device
    def test_optional_tensor_given_and_none(self, device):
        def function(
            x: torch.Tensor, bias: torch.Tensor | None, weight: torch.Tensor | None = None
        ) -> torch.Tensor:
            out = x if weight is None else x * weight
            return out + 1 if bias is None else out + bias

        op = define_op("optional", function)

        def f(x, bias, weight):
            return op(x, None), op(x, bias), op(x, bias, weight), op(x, None, weight)

        self.check_dispatched(
            op,
            f,
            lambda n: tuple(torch.randn(n, device=device) for _ in range(3)),
            ("x", 0),
            calls=4,
        )

    @on_each_device
    def test_dispatch_on_an_optional_tensor(self, device):
        def function(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            return x + 1 if bias is None else x.sum() + bias

        op = define_op("optional_named", function)

        def args(n):
            return (torch.randn(40 - n, device=device), torch.randn(n, device=device))

        self.check_dispatched(op, lambda x, b: op(x, b), args, ("bias", 0))
        torch._dynamo.reset()
        report.clear()
        # Nothing can be read from None.
        self.check_lowered_normally(
            op,
            lambda x: op(x),
            [torch.randn(5, device=device)],
            ("bias", 0),
            "argument 'bias' of this call is not a tensor",
        )

    @on_each_device
    def test_tensor_lists(self, device):
        def function(xs: list[torch.Tensor], ys: Sequence[torch.Tensor]) -> torch.Tensor:
            return sum(xs) + sum(y.sum() for y in ys)

        op = define_op(
            "lists",
            lambda x, xs, ys: x + function(xs, ys),
            schema=("(Tensor x, Tensor[] xs, Tensor[] ys) -> Tensor"),
        )
        self.check_dispatched(
            op,
            lambda x, a, b: (op(x, [a, b, a], [a]), op(x, [b], []))[0],
            lambda n: tuple(torch.randn(n, 2, device=device) for _ in range(3)),
            ("x", 0),
            calls=1,
        )

    @on_each_device
    def test_list_of_optional_tensors(self, device):
        op = op_from_schema(
            "(Tensor x, Tensor?[] others) -> Tensor",
            lambda x, others: x + sum(o.sum() for o in others if o is not None),
        )
        self.check_dispatched(
            op,
            lambda x, a: op(x, [None, a, None]),
            lambda n: (torch.randn(n, device=device), torch.randn(3, n, device=device)),
            ("x", 0),
        )

    @on_each_device
    def test_symbolic_ints(self, device):
        seen = Seen()

        def function(x: torch.Tensor, n: int, sizes: Sequence[int]) -> torch.Tensor:
            seen.note(tuple(x.shape), n, tuple(sizes))
            return x * n + sizes[0] - sizes[1] * sizes[2]

        op = define_op("symints", function, lambda x, n, sizes: torch.empty_like(x))
        self.check_dispatched(
            op,
            lambda x: op(x, x.shape[0], [x.shape[0] * 2, 7, x.shape[1] + 1]),
            lambda n: (torch.randn(n, 2, device=device),),
            ("x", 0),
        )
        # Benchmarks, too, gave the integers that belong to the tensor's size.
        self.assertEqual({shape[0] for shape, *_ in seen.calls} & {16}, {16})
        for shape, n, sizes in seen.calls:
            self.assertEqual((n, sizes), (shape[0], (2 * shape[0], 7, shape[1] + 1)))

    @on_each_device
    def test_strings_dtypes_devices_layouts(self, device):
        def function(
            mode: str,
            dtype: torch.dtype,
            x: torch.Tensor,
            place: torch.device,
            maybe: str | None = None,
            other: torch.dtype | None = None,
            flags: Sequence[bool] | None = None,
        ) -> torch.Tensor:
            if mode != "a b'c" or flags is None or flags[0] or not flags[1]:
                raise AssertionError(f"{mode}, {flags}")
            y = x.to(dtype) + (1 if maybe is None else len(maybe))
            return y.to(place).to(other or dtype)

        op = define_op("strings", function)

        def f(x):
            return op("a b'c", torch.float64, x, torch.device(device), "xyz", flags=[False, True])

        def g(x):
            return op(
                "a b'c", torch.float64, x, x.device, other=torch.bfloat16, flags=(False, True)
            )

        for function_ in (f, g):
            torch._dynamo.reset()
            report.clear()
            self.check_dispatched(
                op, function_, lambda n: (torch.randn(n, device=device),), ("x", 0)
            )

    @on_each_device
    def test_numbers(self, device):
        op = op_from_schema(
            "(Scalar a, Tensor x, Scalar? b=None, Layout? layout=None, int? n=None) -> Tensor",
            lambda a, x, b=None, layout=None, n=None: x * a + (b or 0) + (n or 0),
        )
        self.check_dispatched(
            op,
            lambda x: op(2, op(1.5, x, layout=torch.strided, n=3), b=True),
            lambda n: (torch.randn(n, device=device),),
            ("x", 0),
            calls=2,
        )

    @on_each_device
    def test_dynamic_float_is_right_either_way(self, device):
        """A float that Dynamo does not specialize comes as a symbol, or is wrapped in a tensor."""
        op = define_op("dynamic_float", _scaled)
        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(noted_op(op, "short"))],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[4],
            ),
            force_winners(lambda n: "short"),
        ):
            compiled = torch.compile(lambda x, s: op(x, s), dynamic=True)
            for n, scale in ((5, 0.5), (3, 2.5), (7, -1.25)):
                self.check(compiled, lambda x, s: op(x, s), torch.randn(n, device=device), scale)

    @on_each_device
    @parametrize("given", ["nothing", "default", "by_position", "by_name"])
    def test_defaults(self, device, given):
        def function(
            x: torch.Tensor, scale: float = 2.0, shift: int = 3, mode: str = "plus"
        ) -> torch.Tensor:
            return x * scale + shift if mode == "plus" else x * scale - shift

        op = define_op(f"defaults_{given}", function)

        # An implementation may have defaults of its own: the op's count, given or not.
        def short(x, scale=7.0, shift=8, mode="minus"):
            return torch.ops.range_dispatch_test.ran(op(x, scale, shift, mode), "short")

        # It may name arguments as it likes, and need not have those that the caller leaves alone.
        def long(y, factor=7.0):
            return torch.ops.range_dispatch_test.ran(op(y, factor), "long")

        f = {
            "nothing": lambda x: op(x),
            "default": lambda x: op(x, 2.0, 3),
            "by_position": lambda x: op(x, 5.0),
            "by_name": lambda x: op(x, scale=5.0, shift=3),
        }[given]
        self.check_dispatched(
            op, f, lambda n: (torch.randn(n, device=device),), ("x", 0), short=short, long=long
        )

    @on_each_device
    def test_own_parameters_beside_defaults(self, device):
        """A default of the op's does not end up in a parameter of the implementation's own."""
        op = define_op("own_parameters", _scaled)

        def short(x, block=16):
            if block != 16:
                raise AssertionError(f"block={block}")
            return torch.ops.range_dispatch_test.ran(x + 0, "short")

        def long(x, block, scale):
            if block != 4 or scale != 1.0:
                raise AssertionError(f"block={block}, scale={scale}")
            return torch.ops.range_dispatch_test.ran(x * scale, "long")

        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(short), CustomOpConfig(long, block=4)],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[4],
            ),
            force_winners(lambda n: "short" if n == 4 else "long(block=4)"),
        ):
            compiled = torch.compile(lambda x: op(x), dynamic=True, fullgraph=True)
            for n, label in ((5, "long"), (4, "short")):
                self.check(compiled, lambda x: op(x), torch.randn(n, device=device))
                self.assertEqual(what_ran(), [label])

    @on_each_device
    def test_argument_that_an_implementation_cannot_take(self, device):
        """It is out where the caller gives the argument, and in where the caller does not."""
        op = define_op("cannot_take", _scaled)

        def only_x(x):
            return torch.ops.range_dispatch_test.ran(x + 0, "only_x")

        for f, rejected in ((lambda x: op(x), []), (lambda x: op(x, 3.0), ["only_x"])):
            torch._dynamo.reset()
            report.clear()
            winner = "long" if rejected else "only_x"
            with (
                custom_op_autotuning(
                    op,
                    configs=[CustomOpConfig(only_x), CustomOpConfig(noted_op(op, "long"))],
                    dispatch_on={"tensor_name": "x", "dim": 0},
                    split_points=[4],
                ),
                force_winners({4: OP_LABEL, 65536: winner}),
            ):
                compiled = torch.compile(f, dynamic=True, fullgraph=True)
                self.check(compiled, f, torch.randn(5, device=device))
                self.assertEqual(what_ran(), [winner])
            (plan,) = report.plans()
            self.assertEqual([label for label, _ in plan.rejected], rejected)

    @on_each_device
    def test_same_tensor_twice(self, device):
        def function(x: torch.Tensor, y: torch.Tensor, zs: Sequence[torch.Tensor]) -> torch.Tensor:
            return x * 2 + y + zs[0] - zs[1] * 3

        op = define_op("twice", function)
        self.check_dispatched(
            op,
            lambda x: op(x, x, [x, x]),
            lambda n: (torch.randn(n, 3, device=device),),
            ("y", 0),
        )

    @on_each_device
    @parametrize("produced", [False, True])
    @parametrize(
        "form",
        [
            "view",
            "transposed",
            "permuted",
            "expanded",
            "expanded_dispatched",
            "channels_last",
            "offset",
            "strided",
            "padded",
            "diagonal",
            "squeezed",
        ],
    )
    def test_layouts(self, device, form, produced):
        """Made outside of the graph, and by the graph itself, as a view of its input."""

        def base(n: int) -> torch.Tensor:
            shape = {
                "view": (n * 6,),
                "transposed": (3, n),
                "permuted": (4, n, 3),
                "expanded": (n, 1),
                "expanded_dispatched": (1, 3),
                "channels_last": (2, 3, n, 4),
                "offset": (n + 2, 3),
                "strided": (n * 2, 3),
                "padded": (n, 10),
                "diagonal": (n, n),
                "squeezed": (n, 1, 3),
            }[form]
            return torch.randn(shape, device=device)

        def formed(x: torch.Tensor, n: int) -> torch.Tensor:
            return {
                "view": lambda: x.view(-1, 6),
                "transposed": lambda: x.t(),
                "permuted": lambda: x.permute(2, 1, 0),
                "expanded": lambda: x.expand(-1, 6),
                "expanded_dispatched": lambda: x.expand(n, 3),
                "channels_last": lambda: x.contiguous(memory_format=torch.channels_last),
                "offset": lambda: x[2:],
                "strided": lambda: x[::2],
                "padded": lambda: x[:, :6],
                "diagonal": lambda: x.diagonal(),
                "squeezed": lambda: x.squeeze(1),
            }[form]()

        seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

        def function(x: torch.Tensor) -> torch.Tensor:
            seen.append(layout(x))
            return (x * 2).contiguous()

        op = define_op(f"layout_{form}_{produced}", function, lambda x: (x * 2).contiguous())
        dim = {"permuted": 1, "channels_last": 2}.get(form, 0)
        if produced:
            if form == "expanded_dispatched":

                def make_args(n):
                    return (base(n), torch.empty(n, device=device))

                def f(x, like):
                    return op(formed(x, like.shape[0]))
            else:

                def make_args(n):
                    return (base(n),)

                def f(x):
                    return op(formed(x, 0))
        else:

            def make_args(n):
                return (formed(base(n), n),)

            def f(x):
                return op(x)

        self.check_dispatched(op, f, make_args, ("x", dim))
        # Whatever the benchmark made for a size has the layout that the real one has.
        real = formed(base(16), 16)
        if form == "diagonal" and not produced:
            return  # The stride of an input is a number of its own: nothing says that it follows.
        self.assertIn(16, {size[dim] for size, _ in seen})
        for size, stride in seen:
            if size[dim] == 16:
                self.assertEqual((size, stride), layout(real))

    @on_each_device
    def test_zero_dimensional_tensors(self, device):
        def function(a: torch.Tensor, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return x * a + b

        op = define_op("zero_dimensional", function)
        self.check_dispatched(
            op,
            lambda a, x, b: op(a, x, b),
            lambda n: (
                torch.randn((), device=device),
                torch.randn(n, device=device),
                torch.randn(()),  # on the CPU, as scalars are
            ),
            ("x", 0),
        )

    @on_each_device
    def test_producers(self, device):
        """An argument that an earlier node of the graph makes."""
        other = define_op(
            "producer", lambda x, scale: x * scale, schema="(Tensor x, float scale) -> Tensor"
        )
        op = define_op("consumer", lambda x: x * 2 + 1, schema="(Tensor x) -> Tensor")
        producers = {
            "pointwise": lambda x: op((x * 3).sin()),
            "reduction": lambda x: op(x.sum(-1)),
            "softmax": lambda x: op(x.softmax(-1)),
            "view of pointwise": lambda x: op((x + 1).t().unsqueeze(0)[0].t()),
            "custom op": lambda x: op(other(x, 3.0)),
            "slice of custom op": lambda x: op(other(torch.cat([x, x[:1]]), 3.0)[1:]),
            "concatenation": lambda x: op(torch.cat([x, x * 2], 1)),
            "matmul": lambda x: op(x @ x[:3]),
            "itself": lambda x: op(op(x)),
        }
        for name, f in producers.items():
            with self.subTest(name):
                torch._dynamo.reset()
                report.clear()
                self.check_dispatched(
                    op,
                    f,
                    lambda n: (torch.randn(n, 3, device=device),),
                    ("x", 0),
                    sizes=(5, 4, 8, 9),
                    measure=False,
                    calls=2 if name == "itself" else 1,
                )

    @on_each_device
    def test_dimension_that_may_be_empty(self, device):
        """``x[:, 1:]`` may have no columns: it is dispatched, with no guard on that."""
        op = define_op("may_be_empty", lambda x: x * 2 + 1, schema="(Tensor x) -> Tensor")

        def f(x):
            return op(x[:, 1:])

        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(noted_op(op, "short"))],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[4],
            ),
            force_winners(lambda n: "short" if n == 4 else OP_LABEL),
        ):
            compiled = torch.compile(f, dynamic=True, fullgraph=True)
            for n, columns in ((5, 3), (4, 3), (3, 7), (9, 4)):
                self.check(compiled, f, torch.randn(n, columns, device=device))
            self.assertEqual(counters["stats"]["unique_graphs"], 1)
        self.assertEqual([plan.rejected for plan in report.plans()], [()])
        self.assertEqual([len(plan.chosen) for plan in report.plans()], [2])

    @on_each_device
    def test_producers_with_other_users(self, device):
        """The producer's value is still there for those who use it after the op."""
        op = define_op("consumer_shared", lambda x: x * 2 + 1, schema="(Tensor x) -> Tensor")

        def f(x):
            y = (x * 3).sin()
            z = op(y)
            return y + 1, z * y, y

        self.check_dispatched(op, f, lambda n: (torch.randn(n, 3, device=device),), ("x", 0))

    @on_each_device
    def test_input_overwritten_after_the_call(self, device):
        """The graph updates the op's input in place after the call, which saw the old values."""
        op = define_op("overwritten", lambda x: x * 2 + 1, schema="(Tensor x) -> Tensor")

        def f(x):
            y = op(x)
            x.add_(1)
            return y

        with (
            custom_op_autotuning(
                op,
                configs=[
                    CustomOpConfig(noted_op(op, "short")),
                    CustomOpConfig(lambda x: x * 2 + 1),
                ],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[4],
            ),
            force_winners(lambda n: "short" if n == 4 else "<lambda>"),
        ):
            compiled = torch.compile(f, dynamic=True)
            for n in (5, 4, 3):
                x = torch.randn(n, device=device)
                ours, theirs = x.clone(), x.clone()
                self.assertEqual(compiled(ours), f(theirs))
                self.assertEqual(ours, theirs)
        self.assertEqual([len(p.chosen) for p in report.plans()], [2])

    @on_each_device
    def test_constants_and_parameters(self, device):
        def function(
            x: torch.Tensor, weight: torch.Tensor, table: torch.Tensor, c: torch.Tensor
        ) -> torch.Tensor:
            return x @ weight + table + c

        op = define_op("module", function)
        literal = torch.tensor([1.0, 2.0, 3.0], device=device)

        class Module(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.randn(2, 3))
                self.register_buffer("table", torch.randn(3))

            def forward(self, x):
                return op(
                    x, self.weight, self.table, torch.tensor([0.5, 1.5, 2.5], device=device)
                ) + op(x, self.weight, literal, self.table)

        module = Module().to(device).requires_grad_(False)
        self.check_dispatched(
            op, module, lambda n: (torch.randn(n, 2, device=device),), ("x", 0), calls=2
        )
        torch._dynamo.reset()
        report.clear()
        with torch._inductor.config.patch(freezing=True), torch.no_grad():
            self.check_dispatched(
                op,
                copy.deepcopy(module),
                lambda n: (torch.randn(n, 2, device=device),),
                ("x", 0),
                calls=2,
            )

    @on_each_device
    def test_constants_made_by_an_implementation(self, device):
        """A tensor that an implementation makes from numbers becomes a constant of its branch."""
        op = define_op("impl_constant", lambda x: x + 3, schema="(Tensor x) -> Tensor")

        def short(x):
            table = torch.tensor([float(i - 6) for i in range(16)], device=device)
            return torch.ops.range_dispatch_test.ran(x + table[9], "short")

        def long(x):
            table = torch.tensor([float(i - 7) for i in range(16)], device=device)
            return torch.ops.range_dispatch_test.ran(x + table[10], "long")

        def f(x):
            return op(x) * torch.tensor([float(i) for i in range(1, 17)], device=device)[2]

        self.check_dispatched(
            op, f, lambda n: (torch.randn(n, device=device),), ("x", 0), short=short, long=long
        )

    @on_each_device
    def test_constants_held_by_an_implementation(self, device):
        """A tensor from outside could be updated after the compile: such a candidate is out."""
        op = define_op("impl_held", lambda x: x + 3, schema="(Tensor x) -> Tensor")
        held = torch.full((1,), 3.0, device=device)
        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(lambda x: x + held), CustomOpConfig(noted_op(op, "long"))],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[4],
            ),
            force_winners(lambda n: "long" if n == 4 else OP_LABEL),
        ):
            compiled = torch.compile(lambda x: op(x), dynamic=True, fullgraph=True)
            for n in (5, 4):
                self.check(compiled, lambda x: op(x), torch.randn(n, device=device))
        (plan,) = report.plans()
        self.assertEqual([label for _, label in plan.chosen], ["long", OP_LABEL])
        ((label, reason),) = plan.rejected
        self.assertEqual(label, "<lambda>")
        self.assertIn("reads a tensor that is not an argument of the op", reason)

    @on_each_device
    def test_positional_names_of_its_own(self, device):
        def function(x: torch.Tensor, k: int, w: torch.Tensor) -> torch.Tensor:
            return x * k + w

        op = define_op("own_names", function)

        def short(first, second, third):
            return torch.ops.range_dispatch_test.ran(op(first, second, third), "short")

        def long(first, /, *rest):
            return torch.ops.range_dispatch_test.ran(op(first, *rest), "long")

        self.check_dispatched(
            op,
            lambda x, w: op(w=w, x=x, k=3),
            lambda n: (torch.randn(n, device=device), torch.randn(n, device=device)),
            ("x", 0),
            short=short,
            long=long,
        )

    @on_each_device
    @parametrize("mode", ["no_grad", "inference_mode", "enable_grad"])
    def test_grad_modes(self, device, mode):
        """The caller's grad mode is neither seen by an implementation nor changed by it."""

        def function(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        op = define_op(f"grad_{mode}", function)

        def short(x):
            with torch.enable_grad():
                y = op(x)
            return torch.ops.range_dispatch_test.ran(y.detach(), "short")

        def long(x):
            with torch.no_grad():
                return torch.ops.range_dispatch_test.ran(op(x), "long")

        with getattr(torch, mode)():
            before = torch.is_grad_enabled()
            self.check_dispatched(
                op,
                lambda x: op(x),
                lambda n: (torch.randn(n, device=device),),
                ("x", 0),
                short=short,
                long=long,
            )
            self.assertEqual(torch.is_grad_enabled(), before)

    @on_each_device
    @parametrize("inside", [False, True])
    def test_autocast_of_the_caller(self, device, inside):
        """A caller's autocast does not reach into an implementation, as it does not into the op."""

        def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            with torch.autocast(x.device.type, enabled=False):
                return torch.mm(x, w)

        op = define_op(f"autocast_{inside}", function)

        def plain(label: str) -> Callable[..., Any]:
            def implementation(x, w):
                return torch.ops.range_dispatch_test.ran(torch.mm(x, w), label)

            implementation.__name__ = label
            return implementation

        def f(x, w):
            if not inside:
                return op(x, w)
            with torch.autocast(device, dtype=torch.bfloat16):
                return op(x, w)

        with torch.autocast(device, dtype=torch.bfloat16, enabled=not inside):
            self.check_dispatched(
                op,
                f,
                lambda n: (torch.randn(n, 64, device=device), torch.randn(64, 8, device=device)),
                ("x", 0),
                short=plain("short"),
                long=plain("long"),
            )
        self.assertEqual(report.plans()[0].rejected, ())


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
    torch.complex64,
    torch.complex128,
    torch.complex32,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]


class DtypesTest(RecordingTestCase):
    @on_each_device
    @parametrize("dtype", DTYPES)
    def test_benchmark_inputs(self, device, dtype):
        seen = Seen()

        def function(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            seen.note(x)
            return like + x.shape[0]

        name = str(dtype).removeprefix("torch.")
        op = define_op(f"dtype_{name}", function, lambda x, like: torch.empty_like(like))
        self.check_dispatched(
            op,
            lambda x, like: op(x, like),
            lambda n: (
                torch.zeros(n, 2, dtype=torch.uint8, device=device).view(dtype)
                if dtype.itemsize == 1
                else torch.zeros(n, 2, dtype=dtype, device=device),
                torch.randn(n, device=device),
            ),
            ("x", 0),
            sizes=(5, 4, 9),
        )
        for (x,) in seen.calls:
            self.assertEqual((x.dtype, x.device.type), (dtype, device))
        probes = [x for (x,) in seen.calls if x.shape[0] == 16]
        self.assertGreater(len(probes), 1)
        self.check_values(probes[0], dtype)

    def check_values(self, x: torch.Tensor, dtype: torch.dtype) -> None:
        raw = x.contiguous().view(torch.uint8)
        if dtype.is_floating_point or dtype.is_complex or dtype.itemsize == 1:
            self.assertGreater(len(raw.unique()), 1, "all values are the same")
        if dtype is torch.bool:
            self.assertEqual(raw.max().item(), 1)
        elif dtype in (
            torch.int16,
            torch.int32,
            torch.int64,
            torch.uint16,
            torch.uint32,
            torch.uint64,
        ):
            # They may index something: zero is the one index that is always valid.
            self.assertEqual(raw.max().item(), 0)
        elif dtype.is_complex:
            self.assertTrue(torch.view_as_real(x.to(torch.complex64)).isfinite().all())
        elif dtype.is_floating_point and dtype is not torch.float4_e2m1fn_x2:
            self.assertTrue(x.float().isfinite().all())

    @on_each_device
    def test_integers_within_the_users_bounds(self, device):
        """Indices from a generator: an invalid one fails, and all zeros would prove nothing."""
        rows, seen = 7, Seen()

        def function(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            seen.note(index)
            return table[index]

        op = define_op(
            "dtype_index",
            function,
            lambda table, index: table.new_empty(index.shape[0], table.shape[1]),
        )
        self.check_dispatched(
            op,
            lambda table, index: op(table, index),
            lambda n: (
                torch.randn(rows, 3, device=device),
                torch.randint(rows, (n,), device=device),
            ),
            ("index", 0),
            input_gen_fns={
                "index": lambda fake: torch.randint(rows, fake.shape, device=fake.device)
            },
        )
        probes = [i for (i,) in seen.calls if i.shape[0] == 16]
        self.assertTrue(probes and all(i.min() >= 0 and i.max() < rows for i in probes))
        self.assertGreater(len(probes[0].unique()), 1)

    @on_each_device
    @parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.bool])
    def test_generated_kernels(self, device, dtype):
        """Branches of generated code, not of opaque calls."""
        op = define_op(
            f"dtype_kernels_{str(dtype).removeprefix('torch.')}",
            lambda x: torch.where(x > 0, x, x),
            schema="(Tensor x) -> Tensor",
        )

        def short(x):
            return torch.ops.range_dispatch_test.ran(
                x | x if dtype is torch.bool else x * 1, "short"
            )

        self.check_dispatched(
            op,
            lambda x: op(x),
            lambda n: (make_tensor(n, 2, dtype=dtype, device=device),),
            ("x", 0),
            short=short,
        )

    @on_each_device
    def test_global_random_state_is_left_alone(self, device):
        op = define_op("dtype_rng", _scaled)
        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(noted_op(op, "short"))],
                dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 16},
                split_points=[4, 8],
                input_gen_fns={"x": lambda fake: torch.randn(fake.shape, device=fake.device)},
            ),
            quick_measuring(),
        ):
            x = torch.randn(5, device=device)
            before = torch.get_rng_state(), torch.randn((), device=device).item()
            torch.set_rng_state(before[0])
            if device != "cpu":
                torch.manual_seed(0)
                expected = torch.randn((), device=device).item()
                torch.manual_seed(0)
            else:
                expected = before[1]
            torch.compile(lambda x: op(x), dynamic=True)(x)
            self.assertEqual(torch.randn((), device=device).item(), expected)


class OneSizeManyPlacesTest(RecordingTestCase):
    """Everything that follows the dispatched size follows it in the benchmark."""

    def probed(self, device: str, f: Callable[..., Any], args: Sequence[Any], seen: Seen, op: Any):
        """Layouts of the tensors that ``op`` was measured with, by the first one's dim 0."""
        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(noted_op(op, "short"))],
                dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 16},
                split_points=[4, 8],
            ),
            quick_measuring(),
        ):
            expected = f(*args)
            compiled = torch.compile(f, dynamic=True, fullgraph=True)
            seen.take()
            self.assertEqual(compiled(*args), expected)
            (plan,) = report.plans()
            self.assertEqual([r.probe for r in plan.results], [4, 8, 16])
            for result in plan.results:
                self.assertEqual([m.error for m in result.measurements], [None, None])
        found: dict[int, set[Any]] = collections.defaultdict(set)
        for tensors in seen.calls[:-1]:
            found[tensors[0].shape[0]].add(tuple(layout(t) for t in tensors))
        self.assertEqual(sorted(found), [4, 8, 16])
        for layouts in found.values():
            self.assertEqual(len(layouts), 1, "the layout differs between candidates")
        return {size: layouts.pop() for size, layouts in found.items()}

    @on_each_device
    def test_expressions(self, device):
        seen = Seen()

        def function(
            x: torch.Tensor,
            same: torch.Tensor,
            double: torch.Tensor,
            next_: torch.Tensor,
            product: torch.Tensor,
            half: torch.Tensor,
            apart: torch.Tensor,
        ) -> torch.Tensor:
            seen.note(x, same, double, next_, product, half, apart)
            return x + same.sum() + double.sum() + next_.sum() + product.sum() + half.sum()

        op = define_op("expressions", function, lambda x, *rest: torch.empty_like(x))

        def f(x, apart):
            double = torch.cat([x, x], 0)
            next_ = torch.cat([x, x[:1]], 0)
            product = (x[:, None] * apart[None, :]).flatten()
            return op(x, x * 2, double, next_, product, x[: x.shape[0] // 2], apart)

        args = (torch.randn(6, device=device), torch.randn(3, device=device))
        for size, layouts in self.probed(device, f, args, seen, op).items():
            sizes = [shape[0] for shape, _ in layouts]
            self.assertEqual(sizes, [size, size, 2 * size, size + 1, 3 * size, size // 2, 3])

    @on_each_device
    def test_dispatched_size_is_an_expression(self, device):
        seen = Seen()

        def function(x: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
            seen.note(x, half)
            return x + half.sum()

        op = define_op("dispatched_expression", function, lambda x, half: torch.empty_like(x))
        args = (torch.randn(6, device=device),)

        def f(half):
            return op(torch.cat([half, half]), half)

        for size, layouts in self.probed(device, f, args, seen, op).items():
            self.assertEqual([shape[0] for shape, _ in layouts], [size, size // 2])

    @on_each_device
    def test_strides_keep_order_expansion_and_padding(self, device):
        seen = Seen()

        def function(
            x: torch.Tensor,
            transposed: torch.Tensor,
            expanded: torch.Tensor,
            padded: torch.Tensor,
            offset: torch.Tensor,
            channels_last: torch.Tensor,
        ) -> torch.Tensor:
            seen.note(x, transposed, expanded, padded, offset, channels_last)
            return x + transposed.sum() + expanded.sum() + padded.sum() + offset.sum()

        op = define_op("layouts_follow", function, lambda x, *rest: torch.empty_like(x))

        def forms(x: torch.Tensor, wide: torch.Tensor, image: torch.Tensor) -> list[torch.Tensor]:
            return [wide[:, :2].t(), x[:, None].expand(-1, 5), wide[:, :3], wide[1:, 1:], image]

        def inputs(n: int) -> tuple[torch.Tensor, ...]:
            image = torch.randn(2, 3, n, 4, device=device)
            return (
                torch.randn(n, device=device),
                torch.randn(n, 8, device=device),
                image.contiguous(memory_format=torch.channels_last),
            )

        def f(x, wide, image):
            return op(x, *forms(x, wide, image))

        for size, layouts in self.probed(device, f, inputs(6), seen, op).items():
            x, wide, image = inputs(size)
            self.assertEqual(list(layouts), [layout(t) for t in (x, *forms(x, wide, image))])

    @on_each_device
    def test_strides_that_no_size_decides(self, device):
        """The row stride of a slice is a number of its own: rows must not come to overlap."""
        seen = Seen()

        def function(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            seen.note(x, rows)
            return x + rows.sum()

        op = define_op("free_strides", function, lambda x, rows: torch.empty_like(x))
        args = (torch.randn(6, device=device), torch.randn(3, 2, 11, device=device)[..., :6])

        def f(x, rows):
            return op(x, rows)

        for size, layouts in self.probed(device, f, args, seen, op).items():
            _, (shape, stride) = layouts
            self.assertEqual(shape, (3, 2, size))
            # 5 elements of padding after 6, as in the call that was compiled.
            row = 11 if size <= 11 else size + 5
            self.assertEqual(stride, (2 * row, row, 1))

    @on_each_device
    def test_shape_of_a_second_tensor_that_is_equal(self, device):
        """Two inputs of one graph whose sizes must agree share a symbol."""
        seen = Seen()

        def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            seen.note(x, w)
            return x + w

        op = define_op("equal_sizes", function, lambda x, w: x + w)
        args = (torch.randn(6, device=device), torch.randn(6, device=device))
        for size, layouts in self.probed(device, lambda x, w: op(x, w), args, seen, op).items():
            self.assertEqual([shape for shape, _ in layouts], [(size,), (size,)])


class UserGeneratorsTest(RecordingTestCase):
    """``input_gen_fns`` decide values; the sizes are decided by the probe."""

    def compile(self, op: Any, f: Callable[..., Any], args: Sequence[Any], generators: Any) -> Any:
        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(noted_op(op, "short"))],
                dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 16},
                split_points=[4, 8],
                input_gen_fns=generators,
            ),
            quick_measuring(),
        ):
            return torch.compile(f, dynamic=True, fullgraph=True)(*args)

    @on_each_device
    def test_called_with_a_fake_of_the_probe(self, device):
        seen, asked, made = Seen(), [], []

        def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            seen.note(x, w)
            return x + w

        def generate(fake: torch.Tensor) -> torch.Tensor:
            asked.append((type(fake), *layout(fake), fake.dtype, fake.device.type))
            made.append(torch.full(fake.shape, 7.0, dtype=fake.dtype, device=fake.device))
            return made[-1]

        op = define_op("generator_fake", function, lambda x, w: torch.empty_like(x + w))
        args = [torch.randn(5, dtype=torch.float64, device=device) for _ in range(2)]
        self.compile(op, lambda x, w: op(x, w), args, {"w": generate})
        fake = torch._subclasses.FakeTensor
        self.assertEqual(asked, [(fake, (n,), (1,), torch.float64, device) for n in (8, 4, 16)])
        # What it returned is what the candidates ran on: the same memory, not a copy.
        measured = seen.calls[:-1]
        self.assertEqual({x.shape[0] for x, _ in measured}, {4, 8, 16})
        for x, w in measured:
            self.assertIn(w.data_ptr(), [m.data_ptr() for m in made])
            self.assertEqual(w, torch.full_like(w, 7.0))
            self.assertNotEqual(x, w)

    @on_each_device
    def test_like_functions_work(self, device):
        """``torch.full_like(fake, ...)`` of a fake tensor is fake: it still comes out real."""
        seen = Seen()

        def function(x: torch.Tensor) -> torch.Tensor:
            seen.note(x)
            return x + 1

        op = define_op("generator_like", function, lambda x: torch.empty_like(x))
        args = [torch.randn(5, device=device)]
        self.compile(op, lambda x: op(x), args, {"x": lambda fake: torch.full_like(fake, 7.0)})
        for (x,) in seen.calls[:-1]:
            self.assertEqual(x, torch.full_like(x, 7.0))
        self.assertEqual({x.shape[0] for (x,) in seen.calls[:-1]}, {4, 8, 16})

    @on_each_device
    def test_random_values_are_the_same_in_every_tuning_and_no_other_operands(self, device):
        op = define_op(
            "generator_random",
            lambda x, w, v: x + w + v,
            schema="(Tensor x, Tensor w, Tensor v) -> Tensor",
            fake=lambda x, w, v: torch.empty_like(x),
        )
        made = []

        def generate(fake: torch.Tensor) -> torch.Tensor:
            made.append(torch.randn(fake.shape, device=fake.device))
            return made[-1]

        args = [torch.randn(5, device=device) for _ in range(3)]
        before = torch.get_rng_state()
        for _ in range(2):
            torch.manual_seed(0 if made else 1)
            torch._dynamo.reset()
            self.compile(op, lambda x, w, v: op(x, w, v), args, {"w": generate, "v": generate})
        torch.set_rng_state(before)
        first, second = made[: len(made) // 2], made[len(made) // 2 :]
        self.assertEqual(first, second)
        self.assertNotEqual(first[0], first[1])

    @on_each_device
    def test_for_the_tensors_of_a_list(self, device):
        seen = Seen()

        def function(x: torch.Tensor, ys: Sequence[torch.Tensor]) -> torch.Tensor:
            seen.note(x, *ys)
            return x + 1

        op = define_op("generator_list", function, lambda x, ys: torch.empty_like(x))
        args = [torch.randn(5, device=device), torch.randn(5, 2, device=device)]
        shapes = []

        def generate(fake: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(fake.shape))
            return torch.full(fake.shape, float(fake.dim()), device=fake.device)

        self.compile(op, lambda x, y: op(x, [y, x]), args, {"ys": generate})
        self.assertEqual(shapes, [s for n in (8, 4, 16) for s in ((n, 2), (n,))])
        for _, y0, y1 in seen.calls[:-1]:
            self.assertEqual((y0, y1), (torch.full_like(y0, 2.0), torch.full_like(y1, 1.0)))

    @on_each_device
    @parametrize("form", ["transposed", "expanded", "padded"])
    def test_values_reach_any_layout(self, device, form):
        """The compiled candidates read with the operand's strides; the values are the user's."""
        seen = Seen()
        make = {
            "transposed": lambda n: torch.randn(3, n, device=device).t(),
            "expanded": lambda n: torch.randn(n, 1, device=device).expand(n, 3),
            "padded": lambda n: torch.randn(n, 8, device=device)[:, :3],
        }[form]

        def function(x: torch.Tensor) -> torch.Tensor:
            seen.note(x)
            return x.contiguous()

        def generate(fake: torch.Tensor) -> torch.Tensor:
            rows = torch.arange(fake.shape[0], dtype=fake.dtype, device=fake.device)
            return rows[:, None].repeat(1, fake.shape[1])

        op = define_op(f"generator_{form}", function, lambda x: x.new_empty(x.shape))
        self.compile(op, lambda x: op(x), [make(5)], {"x": generate})
        measured = [x for (x,) in seen.calls[:-1]]
        self.assertEqual({x.shape[0] for x in measured}, {4, 8, 16})
        for x in measured:
            self.assertEqual(layout(x), layout(make(x.shape[0])))
            self.assertEqual(x, generate(x))

    @on_each_device
    @parametrize("form", ["returned", "combined"])
    def test_one_that_knows_the_shape_of_the_first_call_alone(self, device, form):
        """As with stock, which asks for that shape and resizes what it gets."""
        seen, asked = Seen(), []

        def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            seen.note(x, w)
            return x + w

        first = torch.arange(10.0, device=device).reshape(5, 2)

        def generate(fake: torch.Tensor) -> torch.Tensor:
            asked.append(tuple(fake.shape))
            if form == "returned":
                return first
            return first + torch.zeros(fake.shape, device=device)

        op = define_op(f"generator_first_{form}", function, lambda x, w: torch.empty_like(x + w))
        args = [torch.randn(5, 2, device=device) for _ in range(2)]
        self.compile(op, lambda x, w: op(x, w), args, {"w": generate})
        self.assertEqual(asked, [s for n in (8, 4, 16) for s in ((n, 2), (5, 2))])
        measured = [w for _, w in seen.calls[:-1]]
        self.assertEqual({len(w) for w in measured}, {4, 8, 16})
        for w in measured:
            self.assertEqual(w, first.repeat(4, 1)[: len(w)])

    @parametrize(
        "fault",
        ["shape", "dtype", "device", "type"],
    )
    def test_what_does_not_fit_is_an_error(self, fault):
        op = define_op(f"generator_fault_{fault}", _scaled)
        generate = {
            "shape": lambda fake: torch.zeros(fake.shape[0] + 1),
            "dtype": lambda fake: torch.zeros(fake.shape, dtype=torch.float64),
            "device": lambda fake: torch.zeros(fake.shape, device="meta"),
            "type": lambda fake: [1.0] * fake.shape[0],
        }[fault]
        shown = (
            {
                "shape": r"wanted.*\(8,\), torch.float32.*got.*\(9,\), torch.float32",
                "dtype": r"torch.float32.*torch.float64",
                "device": r"device\(type='cpu'\).*device\(type='meta'\)",
                "type": r"\[1.0(, 1.0){7}\]",
            }[fault]
            .replace("wanted.*", "")
            .replace("got.*", "")
        )
        rule = rf"ValueError.*generator_fault_{fault}.*input_gen_fns\['x'\] must return .*{shown}"
        with self.assertRaisesRegex(Exception, f"(?s){rule}"):
            self.compile(op, lambda x: op(x), [torch.randn(5)], {"x": generate})

    def test_what_it_raises_is_not_swallowed(self):
        op = define_op("generator_raises", _scaled)

        def generate(fake: torch.Tensor) -> torch.Tensor:
            raise KeyError("the generator's own fault")

        with self.assertRaisesRegex(Exception, "the generator's own fault"):
            self.compile(op, lambda x: op(x), [torch.randn(5)], {"x": generate})


class SideEffectsTest(RecordingTestCase):
    """Ops that do more than return new tensors are lowered normally, with one warning."""

    @on_each_device
    def test_mutates_an_argument(self, device):
        @torch.library.custom_op("range_dispatch_test::mutating", mutates_args=("x",))
        def op(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            x.add_(y)
            return y * 2

        op.register_fake(lambda x, y: torch.empty_like(y))

        def f(x, y):
            z = op(x, y)
            return x + z, x

        args = [torch.randn(5, device=device), torch.randn(5, device=device)]
        self.check_lowered_normally(op, f, args, ("x", 0), "it mutates an argument")

    @on_each_device
    def test_no_outputs(self, device):
        @torch.library.custom_op("range_dispatch_test::no_outputs", mutates_args=("x",))
        def op(x: torch.Tensor, y: torch.Tensor) -> None:
            x.mul_(y)

        op.register_fake(lambda x, y: None)

        def f(x, y):
            op(x, y)
            return x + 1

        args = [torch.randn(5, device=device), torch.randn(5, device=device)]
        self.check_lowered_normally(
            op, f, args, ("y", 0), "it mutates an argument or returns nothing"
        )

    @on_each_device
    def test_returns_nothing_and_mutates_nothing(self, device):
        """An op for its side effect alone, kept alive by the effects it is registered with."""
        happened = []
        op = op_from_schema("(Tensor x) -> ()", lambda x: None)
        torch.fx.node.has_side_effect(op)
        self.addCleanup(torch.fx.node._side_effectful_functions.discard, op)
        _library.impl(
            op._schema.name.split("::")[1], lambda x: happened.append(tuple(x.shape)), "CPU"
        )
        if device != "cpu":
            _library.impl(
                op._schema.name.split("::")[1], lambda x: happened.append(tuple(x.shape)), "CUDA"
            )

        def f(x):
            op(x * 2)
            return x + 1

        self.check_lowered_normally(
            op, f, [torch.randn(5, device=device)], ("x", 0), "returns nothing"
        )
        self.assertEqual(happened, [(5,), (5,)])

    @on_each_device
    def test_returns_an_alias(self, device):
        def f(x):
            y = torch.unsqueeze(x, 0)
            y.add_(1)
            return x * 2, y

        self.check_lowered_normally(
            torch.ops.aten.unsqueeze.default,
            f,
            [torch.randn(5, 2, device=device)],
            ("self", 0),
            "it returns an alias of an argument",
        )


instantiate_parametrized_tests(NamedTensorTest)
instantiate_parametrized_tests(ArgumentsTest)
instantiate_parametrized_tests(DtypesTest)
instantiate_parametrized_tests(OneSizeManyPlacesTest)
instantiate_parametrized_tests(UserGeneratorsTest)
instantiate_parametrized_tests(SideEffectsTest)


if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests()
