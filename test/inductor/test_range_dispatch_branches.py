# Owner(s): ["module: inductor"]
"""Each branch is generated for its own range, and nothing of that shows outside of it."""

import contextlib
import re
from unittest import mock

from range_dispatch_common import (
    custom_op,
    define_op,
    DEVICES,
    final_code,
    force_winners,
    HAS_CPU,
    HAS_GPU,
    inductor_config,
    RangeDispatchTestCase,
)

import torch
from torch._inductor.graph import GraphLowering
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
from torch._inductor.kernel.range_dispatch.ranges import Range
from torch._inductor.kernel.range_dispatch.sizes import BranchSizes, HintsDisagree, known_in
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


WIDTH = 32
END = 8


def times_low(x, w):
    return x * w + 1.0


def times_high(x, w):
    return x * w + 2.0


def times_low_by_names(x, w):
    return torch.add(torch.mul(x, w), 1.0)


def down_low(x, w):
    return (x * w).sum(0)


def down_high(x, w):
    return (w * x).sum(0) + 1.0


@contextlib.contextmanager
def guards_of_graphs():
    """Yields a list that gets the guards of every graph that is generated."""
    found = []
    real = GraphLowering.compile_to_module

    def compile_to_module(self):
        module = real(self)
        found.append(sorted(str(guard.expr) for guard in self.sizevars.shape_env.guards))
        return module

    with mock.patch.object(GraphLowering, "compile_to_module", compile_to_module):
        yield found


class BranchTestCase(RangeDispatchTestCase):
    vectors = True

    def make(self, low, high, fake):
        op = define_op("branch", low, fake, schema="(Tensor x, Tensor w) -> Tensor")
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(low), CustomOpConfig(high)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 100_000},
            split_points=[END],
        )
        return op, {END: low.__name__, 100_000: high.__name__}

    def inputs(self, rows, device="cpu"):
        x, w = torch.randn(rows, WIDTH, device=device), torch.randn(WIDTH, device=device)
        torch._dynamo.mark_dynamic(x, 0)
        return x, w

    def compiled(self, function):
        torch._dynamo.reset()
        return torch.compile(function, fullgraph=True)


class OwnRangeTest(BranchTestCase):
    def kernels(self, code):
        """The source of the kernels of the branch for small sizes, and of the other."""
        called = re.findall(r"^\s+(cpp_fused_\w+)\(.*_(le|gt)_\d+_buf", code, re.MULTILINE)
        sources = {
            name: code[code.index(f"{name} = async_compile") :].split("''')")[0]
            for name, _ in called
        }
        return [
            "\n".join(sources[name] for name, side in called if side == wanted)
            for wanted in ("le", "gt")
        ]

    @parametrize("first_call", [4, 4096])
    def test_loops_are_parallel_where_the_range_is_large(self, first_call):
        op, labels = self.make(times_low, times_high, lambda x, w: torch.empty_like(x))
        compiled = self.compiled(lambda x, w: op(x, w))
        with inductor_config.patch({"cpp.threads": 4}), force_winners(labels):
            code = final_code(compiled, *self.inputs(first_call))
        small, large = self.kernels(code)
        self.assertNotIn("omp parallel", small)
        self.assertIn("omp parallel", large)
        for rows in (2, END, END + 1, 5000):
            x, w = self.inputs(rows)
            self.assertEqual(compiled(x, w), x * w + (1.0 if rows <= END else 2.0))

    @parametrize("cpp_wrapper", [False, True])
    def test_a_kernel_that_branches_have_in_common_is_generated_once(self, cpp_wrapper):
        op, labels = self.make(times_low, times_low_by_names, lambda x, w: torch.empty_like(x))
        compiled = self.compiled(lambda x, w: op(x, w).sin())
        settings = {"cpp.threads": 1, "cpp_wrapper": cpp_wrapper}
        with force_winners(labels), inductor_config.patch(settings):
            code = final_code(compiled, *self.inputs(20))
        called = re.findall(r"^\s+(cpp_fused_\w+)\(", code, re.MULTILINE)
        self.assertEqual((len(called), len(set(called))), (2, 1))
        for rows in (2, END, END + 1, 40):
            x, w = self.inputs(rows)
            self.assertEqual(compiled(x, w), (x * w + 1.0).sin())

    @parametrize("device", DEVICES)
    @parametrize("first_call", [4, 9000])
    def test_reductions_of_the_dispatched_size_add_no_guard(self, device, first_call):
        op, labels = self.make(down_low, down_high, lambda x, w: x.new_empty(x.shape[1]))
        function = lambda x, w: op(x, w)  # noqa: E731
        compiled = self.compiled(function)
        with (
            force_winners(labels),
            guards_of_graphs() as guards,
            torch._dynamo.config.patch(error_on_recompile=True),
        ):
            compiled(*self.inputs(first_call, device))
            for rows in (2, END, END + 1, 4095, 4097, 20_000):
                x, w = self.inputs(rows, device)
                expected = (down_low if rows <= END else down_high)(x.double(), w.double())
                self.assertEqual(compiled(x, w).double(), expected, atol=1e-2, rtol=1e-4)
        custom_op.unregister_custom_op_autotuning(op)
        with guards_of_graphs() as without:
            self.compiled(function)(*self.inputs(first_call, device))
        index_width = re.compile(r"2147483647|_32")  # asked for by every GPU kernel there is
        self.assertEqual(
            [g for g in guards[-1] if not index_width.search(g)],
            [g for g in without[-1] if not index_width.search(g)],
        )

    @parametrize("device", DEVICES)
    def test_guards_are_those_of_the_op_alone(self, device):
        op, labels = self.make(times_low, times_high, lambda x, w: torch.empty_like(x))
        function = lambda x, w: op(x + 1, w).relu() * 2  # noqa: E731
        with force_winners(labels), guards_of_graphs() as guards:
            self.compiled(function)(*self.inputs(20, device))
        custom_op.unregister_custom_op_autotuning(op)
        with guards_of_graphs() as without:
            self.compiled(function)(*self.inputs(20, device))
        self.assertEqual(guards[-1], without[-1])


class OuterGraphTest(BranchTestCase):
    def code(self, device, known):
        """What is generated around the branches, kernels included."""
        op, labels = self.make(times_low, times_high, lambda x, w: torch.empty_like(x))

        def function(x, w):
            inner = (x * 3).sum(0).sin()  # before the op
            y = op(torch.mm(x, x.t() @ x), w)
            return torch.mm(y, y.t() @ y).cos().sum(0) + inner  # behind it

        patch = contextlib.nullcontext()
        if not known:
            patch = mock.patch.object(custom_op, "known_in", lambda *args: None)
        with patch, force_winners(labels), inductor_config.patch({"cpp.threads": 4}):
            code = final_code(self.compiled(function), *self.inputs(20, device))
        inside = set(re.findall(r"^\s+(\w+?)(?:\.run)?\(.*_(?:le|gt)_\d+_buf", code, re.MULTILINE))
        blocks = re.split(r"(?m)^(?=\w+ = async_compile)", code)
        kept = [b for b in blocks if b.split(" = ")[0] not in inside]
        lines = "".join(kept).splitlines()
        apart = re.compile(r"_(le|gt)_\d+_buf|^# AOT ID")
        return [line for line in lines if not apart.search(line)]

    @parametrize("device", DEVICES)
    def test_same_with_and_without_what_branches_know(self, device):
        with_it, without = self.code(device, True), self.code(device, False)
        number = re.compile(r"(?<=_)\d+(?=\(|\.run| = async)|(?<=# kernel path: ).*")
        self.assertEqual(
            [number.sub("", line) for line in with_it], [number.sub("", line) for line in without]
        )


class SizesTest(RangeDispatchTestCase):
    """The allocator of a branch by itself: a size of 20 at the first call, from 129 in here."""

    def setUp(self):
        super().setUp()
        from torch._dynamo.source import ConstantSource
        from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

        self.env = ShapeEnv()
        self.size, self.other = (
            self.env.create_symbol(value, ConstantSource(name), dynamic_dim=DimDynamic.DYNAMIC)
            for value, name in ((20, "n"), (7, "m"))
        )

    def sizes(self, start, end, hint):
        range = Range(start, end)
        hints = {self.size: hint, self.other: 7}
        return BranchSizes(self.env, known_in(range, self.size, hints, self.env))

    def test_hints_are_the_branchs(self):
        sizes = self.sizes(129, 4096, 4096)
        self.assertEqual(sizes.optimization_hint(self.size * 2 + self.other), 8199)
        self.assertEqual(sizes.optimization_hint(3), 3)

    def test_facts_are_the_branchs(self):
        sizes = self.sizes(129, 4096, 4096)
        self.assertTrue(sizes.statically_known_true(self.size > 128))
        self.assertTrue(sizes.statically_known_leq(self.size, 4096))
        self.assertFalse(sizes.statically_known_true(self.size > 129))
        self.assertTrue(sizes.evaluate_expr(self.size >= 129))
        self.assertFalse(sizes.evaluate_expr(self.size <= 128))
        self.assertEqual(self.env.guards, [])

    def test_questions_that_need_no_answer_add_no_guard(self):
        sizes = self.sizes(129, 4096, 4096)
        self.assertFalse(sizes.guard_or_false(self.size > 1000))
        self.assertTrue(sizes.guard_or_true(self.size > 1000))
        self.assertTrue(sizes.guard_or_false(self.size > 100))
        self.assertFalse(sizes.guard_or_true(self.size < 100))
        self.assertEqual(self.env.guards, [])

    def test_a_guard_that_would_fail_is_refused(self):
        sizes = self.sizes(2, 4096, 4096)
        with self.assertRaises(HintsDisagree):
            sizes.check(self.size > 1000)
        self.assertEqual(self.env.guards, [])
        sizes.check(self.size < 5000)  # always so
        self.assertEqual(self.env.guards, [])

    def test_the_environment_is_as_it_was(self):
        before = (dict(self.env.var_to_range), dict(self.env.backed_var_to_val))
        sizes = self.sizes(129, 4096, 4096)
        sizes.statically_known_true(self.size > 128)
        sizes.optimization_hint(self.size)
        self.assertEqual((dict(self.env.var_to_range), dict(self.env.backed_var_to_val)), before)
        self.assertFalse(self.env.evaluate_expr(self.size > 128))


instantiate_parametrized_tests(OwnRangeTest)
instantiate_parametrized_tests(OuterGraphTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests()
