# Owner(s): ["module: inductor"]
"""What dispatched ops return, and what may implement them."""

import functools
import itertools
import re
import unittest
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

from range_dispatch_common import (
    config,
    counters,
    define_op,
    DEVICES,
    final_code,
    force_winners,
    GPU_TYPE,
    HAS_CPU,
    HAS_GPU,
    OP_LABEL,
    predicates,
    report,
    VECTOR_KERNELS,
)
from range_dispatch_recording import (
    noted,
    noted_op,
    quick_measuring,
    RecordingTestCase,
    SIZES,
    what_ran,
)

import torch
from torch._inductor import config as inductor_config
from torch._inductor.kernel.custom_op import (
    custom_op_autotuning,
    CustomOpConfig,
    register_custom_op_autotuning,
)
from torch._inductor.kernel.range_dispatch import tuner
from torch._inductor.kernel.range_dispatch.choosing import Measurement
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


on_each_device = parametrize("device", DEVICES)
ran = torch.ops.range_dispatch_test.ran

_library = torch.library.Library("range_dispatch_outputs", "FRAGMENT")
_numbers = itertools.count()


def op_from_schema(
    signature: str, function: Callable[..., Any], fake: Callable[..., Any] | None = None
) -> Any:
    """An overload with a schema that ``torch.library.custom_op`` cannot infer."""
    name = f"op{next(_numbers)}"
    _library.define(f"{name}{signature}")
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"range_dispatch_outputs::{name}", fake or function, lib=_library)
    return getattr(torch.ops.range_dispatch_outputs, name).default


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def double_op(name: str) -> Any:
    return define_op(name, lambda x: x * 2, schema="(Tensor x) -> Tensor")


class OutputsTest(RecordingTestCase):
    @on_each_device
    def test_one_tensor(self, device):
        op = double_op("one_tensor")
        self.check_dispatched(
            op, lambda x: op(x), lambda n: (torch.randn(n, 3, device=device),), ("x", 0)
        )

    @on_each_device
    def test_tuple(self, device):
        """Outputs of different shapes and dtypes, some without users."""

        def function(
            x: torch.Tensor,
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
            return x * 2, x.sum(), (x > 0), x.t().contiguous()

        op = define_op("tuple", function)

        def f(x):
            a, b, c, d = op(x)
            _, e, _, _ = op(x + 1)
            return d, c, b, a + 1, e

        self.check_dispatched(
            op, f, lambda n: (torch.randn(n, 3, device=device),), ("x", 0), calls=2
        )

    @on_each_device
    def test_tuple_of_generated_kernels(self, device):
        """Implementations that return lists and named tuples where the op returns a tuple."""

        def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            values, indices = x.max(-1)
            return values, indices

        op = define_op("tuple_kernels", function)

        def short(x):
            return torch.max(noted_identity(x, "short"), -1)  # torch.return_types.max

        def long(x):
            indices = noted_identity(x, "long").argmax(-1)
            return [x.gather(-1, indices[:, None])[:, 0], indices]

        self.check_dispatched(
            op,
            lambda x: op(x),
            lambda n: (torch.randn(n, 7, device=device),),
            ("x", 0),
            short=short,
            long=long,
        )

    @on_each_device
    def test_named_tuple_of_an_aten_op(self, device):
        op = torch.ops.aten.sort.default

        def f(x):
            result = torch.sort(x, -1)
            return result.values + 1, result.indices

        self.check_dispatched(
            op, f, lambda n: (torch.randn(n, 7, device=device),), ("self", 0), measure=False
        )

    @on_each_device
    def test_list(self, device):
        """``Tensor[]`` among the outputs."""
        op = op_from_schema(
            "(Tensor x) -> Tensor[]", lambda x: [x * 2, x.sum(), torch.empty_like(x).copy_(x)]
        )

        def f(x):
            a, b, c = op(x)
            return a + b, c

        self.check_dispatched(op, f, lambda n: (torch.randn(n, 3, device=device),), ("x", 0))

    @on_each_device
    def test_list_and_tensor(self, device):
        """A list beside a tensor: right, or left alone as if it were not registered."""
        op = op_from_schema("(Tensor x) -> (Tensor, Tensor[])", lambda x: (x * 2, [x + 1, x + 2]))

        def f(x):
            a, (b, c) = op(x)
            return a, b, c

        def outcome() -> Any:
            torch._dynamo.reset()
            try:
                return torch.compile(f, dynamic=True)(torch.ones(5, device=device))
            except Exception as error:
                return type(error)

        unregistered = outcome()
        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(noted_op(op, "short"))],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[4],
            ),
            force_winners(lambda n: "short" if n == 4 else OP_LABEL),
        ):
            registered = outcome()
        if isinstance(unregistered, type):
            self.assertIs(registered, unregistered)
        else:
            self.assertEqual(registered, unregistered)

    @on_each_device
    def test_none_among_them(self, device):
        op = op_from_schema(
            "(Tensor x, bool both) -> (Tensor, Tensor?, Tensor)",
            lambda x, both: (x * 2, x[0] * 3 if both else None, x + 1),
        )

        def f(x):
            a, none, b = op(x, False)
            c, d, e = op(x, True)
            return a, none is None, b, c, d, e

        def plain(label: str) -> Callable[..., Any]:
            def implementation(x, both):
                return ran(x + x, label), x[0] * 3 if both else None, x + 1

            implementation.__name__ = label
            return implementation

        self.check_dispatched(
            op,
            f,
            lambda n: (torch.randn(n, 3, device=device),),
            ("x", 0),
            short=plain("short"),
            long=plain("long"),
            calls=2,
        )

    @on_each_device
    def test_wrong_structures_are_refused(self, device):
        """What is returned is not what the op returns: out, with both in the reason."""

        def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * 2, x.sum()

        op = define_op("wrong_structures", function)
        wrong: dict[str, tuple[Callable[..., Any], str]] = {
            "too_few": (
                lambda x: (x * 2,),
                r"returns \(a tensor.*\), the op returns \(a tensor.*a",
            ),
            "not_a_tuple": (lambda x: x * 2, "it returns a tensor of shape"),
            "none": (lambda x: (x * 2, None), "NoneType"),
            "a_number": (
                lambda x: (x * 2, 3.0),
                "output 1 is a float where the op returns a tensor",
            ),
            "dtype": (lambda x: ((x * 2).double(), x.sum()), "output 0 has dtype torch.float64"),
            "shape": (
                lambda x: (x * 2, x.sum(0)),
                r"output 1 has shape \(s\d+\), the op's has \(\)",
            ),
            "broadcast": (lambda x: (x[:1] * 2, x.sum()), "output 0 has shape"),
            "meta": (lambda x: (x * 2, x.sum().to("meta")), "output 1 has device meta"),
            "raises": (lambda x: 1 / 0, "ZeroDivisionError"),
            "writes": (lambda x: (x.mul_(2), x.sum()), "it writes to argument x"),
            "no_place": (lambda: None, "TypeError"),
        }
        for name, (implementation, _) in wrong.items():
            implementation.__name__ = name
        with (
            custom_op_autotuning(
                op,
                configs=[
                    *(CustomOpConfig(implementation) for implementation, _ in wrong.values()),
                    CustomOpConfig(noted_op(op, "right")),
                ],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[4],
            ),
            force_winners(lambda n: "right" if n == 4 else OP_LABEL),
        ):
            compiled = torch.compile(lambda x: op(x), dynamic=True, fullgraph=True)
            for n in (5, 4):
                x = torch.randn(n, 3, device=device)
                kept = x.clone()
                self.check(compiled, lambda x: op(x), x)
                self.assertEqual(x, kept)
        (plan,) = report.plans()
        rejected = dict(plan.rejected)
        self.assertEqual(list(rejected), list(wrong))
        for name, (_, reason) in wrong.items():
            self.assertRegex(rejected[name], reason, name)

    @on_each_device
    def test_strides_made_equal(self, device):
        """Outputs that lie differently in memory are copied to the op's strides."""

        def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = x * 2
            return y.clone(), y.transpose(1, 2).contiguous().transpose(1, 2)

        op = define_op("strides_equal", function)

        def short(x):
            y = ran(x, "short") * 2
            return y.transpose(0, 2).contiguous().transpose(0, 2), y

        def long(x):
            y = ran(x, "long") * 2
            return y.contiguous(memory_format=torch.contiguous_format).permute(0, 1, 2), y + 0

        self.check_dispatched(
            op,
            lambda x: op(x),
            lambda n: (torch.randn(n, 3, 6, device=device),),
            ("x", 0),
            short=short,
            long=long,
        )

    @on_each_device
    def test_the_stride_of_one_element_takes_no_copy(self, device):
        """As after attention of one token: nothing but the product runs."""

        def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return torch.bmm(x.transpose(0, 1), w).transpose(0, 1)

        def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return x.new_empty(x.shape).copy_(product(x, w))

        op = define_op("one_element", function, fake=lambda x, w: x.new_empty(x.shape))
        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(product)],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[4],
            ),
            force_winners(lambda n: "product"),
        ):
            x, w = torch.randn(1, 4, 8, device=device), torch.randn(4, 8, 8, device=device)
            self.assertEqual(product(x, w).stride(), (8, 8, 1))
            compiled = torch.compile(lambda x, w: op(x, w))
            code = final_code(compiled, x, w)
            self.assertEqual(compiled(x, w), op(x, w), exact_stride=True)
        self.assertNotIn("one_element.default(", code)
        self.assertNotRegex(code, r"fused_\w*clone")

    @on_each_device
    def test_channels_last_output(self, device):
        def function(x: torch.Tensor) -> torch.Tensor:
            return (x * 2).contiguous(memory_format=torch.channels_last)

        op = define_op("channels_last_output", function)
        self.check_dispatched(
            op,
            lambda x: op(x),
            lambda n: (torch.randn(2, 3, n, 6, device=device),),
            ("x", 2),
            short=noted(lambda x: (x * 2).contiguous(), "short"),
            long=noted(lambda x: x * 2, "long"),
        )

    @on_each_device
    @parametrize("form", ["padded", "expanded"])
    def test_strides_that_no_copy_can_have(self, device, form):
        """Refused, with both strides in the reason; whoever has the op's strides is in."""

        def function(x: torch.Tensor) -> torch.Tensor:
            if form == "padded":
                return x.new_empty(x.shape[0], 16)[:, :6].copy_(x)
            return x[:, :1].clone().expand(-1, 6)

        op = define_op(f"strides_refused_{form}", function)

        def dense(x):
            return x.clone() if form == "padded" else x[:, :1].repeat(1, 6)

        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(dense), CustomOpConfig(noted_like_op(op, "right"))],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[4],
            ),
            force_winners(lambda n: "right" if n == 4 else OP_LABEL),
        ):

            def f(x):
                return op(x)

            compiled = torch.compile(f, dynamic=True, fullgraph=True)
            for n in (5, 4, 3):
                self.check(compiled, f, torch.randn(n, 6, device=device))
        (plan,) = report.plans()
        ((label, reason),) = plan.rejected
        self.assertEqual(label, "dense")
        theirs = r"\(16, 1\)" if form == "padded" else r"\(1, 0\)"
        self.assertRegex(reason, rf"strides \(6, 1\), the op's has {theirs}")

    @on_each_device
    def test_fake_says_other_strides_than_the_op_has(self, device):
        """The graph was traced with the fake's strides: implementations have to have those."""
        op = define_op(
            "fake_other_strides",
            lambda x: x * 2,
            lambda x: torch.empty_like(x.t()).t(),
            schema="(Tensor x) -> Tensor",
        )

        def outcome(f: Callable[..., Any], x: torch.Tensor) -> Any:
            torch._dynamo.reset()
            try:
                return torch.compile(f, dynamic=True)(x)
            except AssertionError as error:  # Inductor's own check of the op's strides
                return str(error).splitlines()[0][:40]

        # The op alone: whatever compiled code does with a lying fake, it does it here too.
        # The other branches keep what the fake promised, so what reads the result is right.
        def f(x):
            return op(x) + 1

        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(noted(lambda x: x * 2, "short"))],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[4],
            ),
            force_winners(lambda n: "short" if n == 4 else OP_LABEL),
        ):
            compiled = torch.compile(f, dynamic=True)
            for n in (4, 3):
                x = torch.randn(n, 6, device=device)
                self.assertEqual(compiled(x), f(x))
                self.assertEqual(what_ran(), ["short"])
            x = torch.randn(5, 6, device=device)
            self.assertEqual(outcome(f, x), self.unregistered(op, outcome, f, x))

    def unregistered(self, op: Any, outcome: Callable[..., Any], *args: Any) -> Any:
        from torch._inductor.kernel import custom_op

        custom_op.unregister_custom_op_autotuning(op)
        return outcome(*args)

    @on_each_device
    def test_returned_inputs_and_views_are_made_safe(self, device):
        """The op returns memory of its own: the graph may write to it, or to the input."""
        op = define_op(
            "aliases",
            lambda x, y: (x.clone(), y.t().clone(memory_format=torch.contiguous_format)),
            schema="(Tensor x, Tensor y) -> (Tensor, Tensor)",
        )

        def short(x, y):
            ran(x.sum(), "short")
            return x, y.t()

        def long(x, y):
            noted_ = noted_identity(x, "long")
            return noted_.view(-1).view_as(noted_), y.t().contiguous()

        def f(x, y):
            a, b = op(x, y)
            a.add_(1)
            b.mul_(3)
            return a, b, x + 0, y * 1

        def g(x, y):
            a, b = op(x, y)
            x.add_(1)
            y.zero_()
            return a, b

        def h(x, y):
            return op(x, y)

        def args(n):
            return (torch.randn(n, 6, device=device), torch.randn(6, n, device=device))

        for function in (f, g, h):
            torch._dynamo.reset()
            report.clear()
            with (
                custom_op_autotuning(
                    op,
                    configs=[CustomOpConfig(short), CustomOpConfig(long)],
                    dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 16},
                    split_points=[4, 8],
                ),
                force_winners({4: "short", 8: "long", 16: OP_LABEL}),
            ):
                compiled = torch.compile(function, dynamic=True, fullgraph=True)
                for n in SIZES:
                    ours, theirs = args(n), None
                    theirs = tuple(t.clone() for t in ours)
                    result = compiled(*ours)
                    self.assertEqual(result, function(*theirs), exact_stride=True)
                    self.assertEqual(ours, theirs)
                    for out, given in itertools.product(result[:2], ours):
                        self.assertNotEqual(storage(out), storage(given))
            (plan,) = report.plans()
            self.assertEqual(
                ([c[1] for c in plan.chosen], plan.rejected), (["short", "long", OP_LABEL], ())
            )

    @on_each_device
    def test_outputs_that_alias_each_other_are_made_safe(self, device):
        op = define_op(
            "aliasing_outputs",
            lambda x: (x * 2, x * 2),
            schema="(Tensor x) -> (Tensor, Tensor)",
        )

        def short(x):
            y = ran(x * 2, "short")
            return y, y

        def long(x):
            y = ran(x * 2, "long")
            return y[:], y.view(-1).view(y.shape)

        def f(x):
            a, b = op(x)
            return a.add_(1), b.mul_(3)

        self.check_dispatched(
            op,
            f,
            lambda n: (torch.randn(n, 6, device=device),),
            ("x", 0),
            short=short,
            long=long,
        )
        x = torch.randn(4, 6, device=device)
        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(short)],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[64],
            ),
            force_winners(lambda n: "short"),
        ):
            # Inlined, with no dispatch.
            torch._dynamo.reset()
            a, b = torch.compile(lambda x: op(x), dynamic=True)(x)
            self.assertNotEqual(storage(a), storage(b))

    @on_each_device
    def test_shape_depends_on_the_dispatch_size(self, device):
        def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            n = x.shape[0]
            return (
                torch.cat([x, x]),
                x.new_ones(n + 1, 2 * n),
                x.view(-1) * 3,
            )

        op = define_op("size_dependent", function)

        def f(x):
            a, b, c = op(x)
            return a.sum(0), b * b.shape[1], c.view(-1, 3), a[: b.shape[0] - 1]

        self.check_dispatched(
            op,
            f,
            lambda n: (torch.randn(n, 3, device=device),),
            ("x", 0),
            short=noted(function, "short"),
            sizes=(5, 4, 8, 9),
        )

    @on_each_device
    def test_shape_depends_on_the_data(self, device):
        """A size that only the op knows: nothing can stand in for it."""

        def function(x: torch.Tensor) -> torch.Tensor:
            return x[x > 0]

        def fake(x):
            return x.new_empty(torch.library.get_ctx().new_dynamic_size())

        op = define_op("data_dependent", function, fake)

        def f(x):
            return op(x) + 1

        with (
            torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True),
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(noted_op(op, "short"))],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[4],
            ),
            force_winners(lambda n: "short" if n == 4 else OP_LABEL),
        ):
            compiled = torch.compile(f, dynamic=True, fullgraph=True)
            for n in (5, 4, 30):
                self.check(compiled, f, torch.randn(n, device=device))
        self.assertEqual(what_ran(), [])

    @on_each_device
    def test_number_among_the_outputs_is_lowered_normally(self, device):
        op = op_from_schema("(Tensor x) -> (Tensor, SymInt)", lambda x: (x * 2, x.shape[0] + 1))

        def f(x):
            y, n = op(x)
            return y + n

        self.check_lowered_normally(
            op, f, [torch.randn(5, device=device)], ("x", 0), "it returns a (SymInt|int)"
        )


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def noted_identity(x: torch.Tensor, label: str) -> torch.Tensor:
    return ran(x, label)


def noted_like_op(op: Any, label: str) -> Callable[..., Any]:
    """The op itself, noted on its input, so that its output keeps the op's strides."""

    def implementation(x):
        return op(ran(x, label))

    implementation.__name__ = label
    return implementation


class Callback:
    def __init__(self, label: str) -> None:
        self.label = label

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ran(x + x, self.label)

    def method(self, x: torch.Tensor) -> torch.Tensor:
        return ran(2 * x, self.label)

    @classmethod
    def of_class(cls, x: torch.Tensor) -> torch.Tensor:
        return ran(x / 0.5, cls.__name__)

    @staticmethod
    def static(x: torch.Tensor) -> torch.Tensor:
        return ran(x * 4 / 2, "static")


def with_factor(x: torch.Tensor, factor: float, label: str = "with_factor") -> torch.Tensor:
    return ran(x * factor * 2, label)


class ImplementationsTest(RecordingTestCase):
    """Every kind of callable; none is taken for another."""

    def check_each_runs(
        self,
        op: Any,
        configs: Sequence[CustomOpConfig],
        labels: Sequence[str],
        notes: Sequence[str],
        device: str,
    ) -> str:
        """One range for each config, and one for the op: each runs in its own, and notes it."""
        ends = [4 * (i + 1) for i in range(len(configs))]
        probes = dict(zip([*ends, 100], [*labels, OP_LABEL], strict=True))
        with (
            custom_op_autotuning(
                op,
                configs=configs,
                dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 100},
                split_points=ends,
            ),
            force_winners(probes),
        ):

            def f(x):
                return op(x)

            compiled = torch.compile(f, dynamic=True, fullgraph=True)
            code = final_code(compiled, torch.randn(5, 3, device=device))
            self.assertEqual(sorted(predicates(code)), ends)
            for end, note in zip(ends, notes, strict=True):
                for n in (end - 1, end):
                    what_ran()
                    self.check(compiled, f, torch.randn(n, 3, device=device))
                    self.assertEqual(what_ran(), [note], f"at size {n}")
            self.check(compiled, f, torch.randn(ends[-1] + 1, 3, device=device))
            self.assertEqual(what_ran(), [])
        (plan,) = report.plans()
        self.assertEqual([label for _, label in plan.chosen], [*labels, OP_LABEL])
        self.assertEqual(counters["stats"]["unique_graphs"], 1)
        return code

    @on_each_device
    def test_callables(self, device):
        op = double_op("callables")
        other = define_op(
            "callables_other", lambda x: ran(x * 2, "other op"), schema="(Tensor x) -> Tensor"
        )
        overload = define_op(
            "callables_overload", lambda x: ran(x * 2, "overload"), schema="(Tensor x) -> Tensor"
        )

        def function(x):
            return ran(x * 2, "function")

        configs = [
            CustomOpConfig(function),
            CustomOpConfig(lambda x: ran(2 * x, "lambda")),
            CustomOpConfig(functools.partial(with_factor, factor=1.0, label="partial")),
            CustomOpConfig(Callback("method").method),
            CustomOpConfig(Callback("object")),
            CustomOpConfig(Callback.of_class),
            CustomOpConfig(Callback.static),
            CustomOpConfig(other),
            CustomOpConfig(overload._opoverload),
            CustomOpConfig(torch.nn.Sequential(Module())),
        ]
        self.check_each_runs(
            op,
            configs,
            [
                "function",
                "<lambda>",
                "with_factor(factor=1.0, label='partial')",
                "method",
                "Callback",
                "of_class",
                "static",
                "callables_other",
                "callables_overload.default",
                "Sequential",
            ],
            [
                "function",
                "lambda",
                "partial",
                "method",
                "object",
                "Callback",
                "static",
                "other op",
                "overload",
                "module",
            ],
            device,
        )

    @on_each_device
    def test_mutating_custom_op(self, device):
        """An implementation may have other ops fill its own buffers, and update its copies."""

        @torch.library.custom_op("range_dispatch_test::fill_double", mutates_args=("out",))
        def fill(x: torch.Tensor, out: torch.Tensor) -> None:
            out.copy_(x * 2)

        fill.register_fake(lambda x, out: None)

        def own_buffer(x):
            out = torch.empty_like(x)
            fill(x, out)
            return ran(out, "own_buffer")

        def own_copy(x):
            y = x.clone()
            fill(y, y)
            return ran(y, "own_copy")

        def views(x):
            out = x.new_zeros(2, *x.shape)
            fill(x, out[1])
            return ran(out.sum(0), "views")

        self.check_each_runs(
            double_op("mutating_inside"),
            [CustomOpConfig(own_buffer), CustomOpConfig(own_copy), CustomOpConfig(views)],
            ["own_buffer", "own_copy", "views"],
            ["own_buffer", "own_copy", "views"],
            device,
        )

        def on_the_input(x):
            fill(x, x)
            return x

        on_the_input.__name__ = "on_the_input"
        op = double_op("mutating_its_input")
        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(on_the_input)],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[4],
            ),
            force_winners(lambda n: OP_LABEL),
        ):
            report.clear()
            x = torch.randn(5, 3, device=device)
            kept = x.clone()
            self.check(torch.compile(lambda x: op(x), dynamic=True), lambda x: op(x), x)
            self.assertEqual(x, kept)
        (plan,) = report.plans()
        self.assertEqual(
            plan.rejected, (("on_the_input", "it writes to argument x, which the op does not"),)
        )

    @on_each_device
    def test_same_name(self, device):
        def make(label: str) -> Callable[..., Any]:
            def implementation(x):
                return ran(x * 2, label)

            return implementation

        self.check_each_runs(
            double_op("same_name"),
            [CustomOpConfig(make("first")), CustomOpConfig(make("second"))],
            ["implementation", "implementation #2"],
            ["first", "second"],
            device,
        )

    @on_each_device
    def test_same_function_with_other_parameters(self, device):
        def implementation(x, block: Any = 0):
            return ran(x * 2, repr(block))

        blocks = [1, 2, 1.0, True, "1", None, (1,), [1]]
        self.check_each_runs(
            double_op("other_parameters"),
            [CustomOpConfig(implementation, block=block) for block in blocks],
            [f"implementation(block={block!r})" for block in blocks],
            [repr(block) for block in blocks],
            device,
        )

    @on_each_device
    def test_methods_of_two_objects(self, device):
        one, two = Callback("one"), Callback("two")
        self.check_each_runs(
            double_op("two_objects"),
            [CustomOpConfig(one.method), CustomOpConfig(two.method), CustomOpConfig(one)],
            ["method", "method #2", "Callback"],
            ["one", "two", "one"],
            device,
        )

    @on_each_device
    def test_partials_of_one_function(self, device):
        self.check_each_runs(
            double_op("partials"),
            [
                CustomOpConfig(functools.partial(with_factor, factor=1.0, label="a")),
                CustomOpConfig(functools.partial(with_factor, factor=1.0, label="b")),
                CustomOpConfig(
                    functools.partial(functools.partial(with_factor, label="c"), factor=1.0)
                ),
            ],
            [
                f"with_factor({given})"
                for given in (
                    "factor=1.0, label='a'",
                    "factor=1.0, label='b'",
                    "label='c', factor=1.0",
                )
            ],
            ["a", "b", "c"],
            device,
        )

    @on_each_device
    def test_equal_things_are_merged(self, device):
        """The same object with the same parameters, registered twice, is one candidate."""
        op = double_op("merged")
        callback = Callback("one")
        configs = [
            CustomOpConfig(callback.method),
            CustomOpConfig(callback.method),
            CustomOpConfig(with_factor, factor=1.0),
            CustomOpConfig(with_factor, factor=1.0),
            CustomOpConfig(functools.partial(with_factor, factor=1.0)),
            CustomOpConfig(functools.partial(with_factor, factor=1.0)),
        ]
        with (
            custom_op_autotuning(
                op,
                configs=configs,
                dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 16},
                split_points=[4, 8],
            ),
            quick_measuring(),
        ):

            def f(x):
                return op(x)

            self.check(torch.compile(f, dynamic=True), f, torch.randn(5, 3, device=device))
        (plan,) = report.plans()
        for result in plan.results:
            self.assertEqual(
                [m.label for m in result.measurements],
                ["method", "with_factor(factor=1.0)", "with_factor(factor=1.0) #2", OP_LABEL],
            )

    @on_each_device
    def test_neighbours_with_one_winner_are_one_branch(self, device):
        op = double_op("one_branch")
        callback = Callback("method")
        with (
            custom_op_autotuning(
                op,
                configs=[CustomOpConfig(callback.method), CustomOpConfig(callback)],
                dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 32},
                split_points=[4, 8, 16],
            ),
            force_winners({4: "method", 8: "method", 16: "Callback", 32: "Callback"}),
        ):
            compiled = torch.compile(lambda x: op(x), dynamic=True)
            code = final_code(compiled, torch.randn(5, 3, device=device))
        self.assertEqual(predicates(code), [8])

    @on_each_device
    def test_same_function_with_other_config_patches(self, device):
        """The same function under other settings is another candidate, with a branch of its own."""

        def implementation(x):
            return ran(x, "any").sin().cos()

        op = define_op("patches", lambda x: x.sin().cos(), schema="(Tensor x) -> Tensor")
        patches: list[dict[str, Any]] = [{}, {"max_fusion_size": 1}, {"max_fusion_size": 64}]
        self.check_each_runs(
            op,
            [CustomOpConfig(implementation, config_patches=patch) for patch in patches],
            [
                "implementation",
                "implementation(max_fusion_size=1)",
                "implementation(max_fusion_size=64)",
            ],
            ["any"] * 3,
            device,
        )

    @unittest.skipUnless(HAS_CPU, "requires a CPU compiler")
    @inductor_config.patch(VECTOR_KERNELS)
    def test_config_patches_change_the_kernels_of_their_branch_only(self):
        """No vectors in one branch; the other, and what is around the op, is generated as ever."""
        op = define_op("patches_cpu", lambda x: x.exp(), schema="(Tensor x) -> Tensor")

        def plain(x):
            return x.exp()

        def f(x):
            return op(x) + 1

        with (
            custom_op_autotuning(
                op,
                configs=[
                    CustomOpConfig(plain, config_patches={"cpp.simdlen": 0}),
                    CustomOpConfig(plain),
                ],
                dispatch_on={"tensor_name": "x", "dim": 0},
                split_points=[64],
            ),
            force_winners(lambda n: "plain(cpp.simdlen=0)" if n == 64 else "plain"),
        ):
            compiled = torch.compile(f, dynamic=True)
            code = final_code(compiled, torch.randn(65, 64))
            for n in (65, 64, 63):
                self.check(compiled, f, torch.randn(n, 64))
        kernels = code.split("async_compile.cpp_pybinding")[1:]
        exps = [k for k in kernels if "exp" in k]
        self.assertEqual(len(exps), 2)
        if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
            # One with vector instructions, one without; the addition has them.
            self.assertEqual(sorted("at::vec::Vectorized" in k for k in exps), [False, True])
            others = [k for k in kernels if k not in exps]
            self.assertTrue(all("at::vec::Vectorized" in k for k in others))

    @unittest.skipUnless(HAS_CPU, "requires a CPU compiler")
    @parametrize("cpp_wrapper", [False, True])
    @inductor_config.patch(VECTOR_KERNELS)
    def test_config_patches_of_a_winner_that_is_inlined_in_a_branch(self, cpp_wrapper):
        """An implementation calls another registered op; what is beside that has vectors."""
        inner = define_op("patches_inner", lambda x: x.exp(), schema="(Tensor x) -> Tensor")
        outer = define_op("patches_outer", lambda x, w: x, schema="(Tensor x, Tensor w) -> Tensor")
        register_custom_op_autotuning(
            inner,
            configs=[CustomOpConfig(lambda x: x.exp(), config_patches={"cpp.simdlen": 0})],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 64},
            split_points=[8],
        )

        def calls(x, w):
            return (torch.ops.range_dispatch_test.patches_inner(x) @ w).cos()

        def other(x, w):
            return (x.exp() @ w).cos() + 0.0

        register_custom_op_autotuning(
            outer,
            configs=[CustomOpConfig(calls), CustomOpConfig(other)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 64},
            split_points=[8],
        )

        def measured(bench, contenders, point):
            labels = [c.candidate.label for c in contenders]
            wanted = {"calls" if point.size == 8 else "other", "<lambda>(cpp.simdlen=0)"}
            return [Measurement(label, 1.0 if label in wanted else 2.0) for label in labels]

        compiled = torch.compile(lambda x, w: outer(x, w), dynamic=True)
        x, w = torch.randn(8, 64), torch.randn(64, 64)
        with (
            mock.patch.object(tuner, "measure", measured),
            inductor_config.patch(cpp_wrapper=cpp_wrapper),
        ):
            code = final_code(compiled, x, w)
            for rows in (8, 9):
                x = torch.randn(rows, 64)
                self.assertEqual(compiled(x, w), (x.exp() @ w).cos())
        functions = re.findall(r"extern \"C\".*?\n}\n", code, re.DOTALL)
        exps = [f for f in functions if "exp()" in f or "std::exp" in f]
        others = [f for f in functions if "cos" in f and f not in exps]
        self.assertEqual((len(exps) > 1, len(others) > 0), (True, True))
        if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
            self.assertEqual({"at::vec::Vectorized" in f for f in exps}, {False, True})
            self.assertTrue(all("at::vec::Vectorized" in f for f in others))

    @unittest.skipUnless(HAS_CPU, "requires a CPU compiler")
    @parametrize("cpp_wrapper", [False, True])
    @inductor_config.patch(VECTOR_KERNELS)
    def test_config_patches_change_the_kernels_of_an_inlined_winner_only(self, cpp_wrapper):
        op = define_op("patches_inlined", lambda x: x.exp(), schema="(Tensor x) -> Tensor")
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(lambda x: x.exp(), config_patches={"cpp.simdlen": 0})],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 64},
            split_points=[8],
        )

        def f(x, w):
            return (op(x) @ w).cos()

        compiled = torch.compile(f, dynamic=True)
        x, w = torch.randn(8, 32), torch.randn(32, 16)
        with config.patch(force_decomposition=True), inductor_config.patch(cpp_wrapper=cpp_wrapper):
            code = final_code(compiled, x, w)
            self.check(compiled, f, x, w)
        (plan,) = report.plans()
        self.assertEqual(len(plan.chosen), 1)
        if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
            # One element at a time; what is around the op works on vectors.
            self.assertIn("std::exp(", code)
            self.assertRegex(code, r"tmp\d+\.cos\(\)")
            self.assertNotRegex(code, r"tmp\d+\.exp\(\)|std::cos\(")

    @unittest.skipUnless(HAS_GPU, "requires a GPU with Triton")
    def test_triton_op(self):
        import triton
        import triton.language as tl

        @triton.jit
        def double_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
            offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            inside = offsets < n
            tl.store(out_ptr + offsets, tl.load(x_ptr + offsets, inside) * 2, inside)

        @torch.library.triton_op("range_dispatch_test::triton_double", mutates_args=())
        def triton_double(x: torch.Tensor, block: int = 128) -> torch.Tensor:
            out = torch.empty_like(x)
            grid = (triton.cdiv(x.numel(), block),)
            torch.library.wrap_triton(double_kernel)[grid](x, out, x.numel(), BLOCK=block)
            return out

        def wrapped(x, block):
            return triton_double(ran(x, f"block {block}"), block)

        op = double_op("triton")
        self.check_each_runs(
            op,
            [CustomOpConfig(wrapped, block=64), CustomOpConfig(wrapped, block=256)],
            ["wrapped(block=64)", "wrapped(block=256)"],
            ["block 64", "block 256"],
            GPU_TYPE,
        )
        torch._dynamo.reset()
        report.clear()
        self.check_dispatched(
            op,
            lambda x: op(x) + 1,
            lambda n: (torch.randn(n, 3, device=GPU_TYPE),),
            ("x", 0),
            short=noted(triton_double, "short"),
            long=noted(functools.partial(triton_double, block=64), "long"),
        )


class Module(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ran(x * 2, "module")


instantiate_parametrized_tests(OutputsTest)
instantiate_parametrized_tests(ImplementationsTest)


if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests()
