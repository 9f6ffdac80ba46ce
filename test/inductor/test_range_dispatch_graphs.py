# Owner(s): ["module: inductor"]
"""Where a dispatched op stands: its sizes, other dispatches, training, export, guards."""

import os
import tempfile

from range_dispatch_common import (
    counters,
    define_op,
    DEVICES,
    final_code,
    force_winners,
    HAS_CPU,
    HAS_GPU,
    inductor_config,
    OP_LABEL,
    packages_load,
    predicates,
    RangeDispatchTestCase,
    report,
)

import torch
from torch._higher_order_ops import while_loop
from torch._inductor.kernel.custom_op import (
    CustomOpConfig,
    register_custom_op_autotuning,
)
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize
from torch.utils.checkpoint import checkpoint


WIDTH = 6
ENDS = (4, 8)
BOUNDARIES = (3, 4, 5, 8, 9, 50)


def weighted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) * w


def by_sin(x, w):
    return torch.sin(x) * w


def by_cos(x, w):
    return torch.cos(x - torch.pi / 2) * w


def pick(size: int) -> str:
    return {4: "by_sin", 8: "by_cos"}.get(size, OP_LABEL)


class GraphTestCase(RangeDispatchTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.op = define_op("weighted", weighted, fake=lambda x, w: torch.empty_like(x * w))
        self.register(self.op)

    def register(self, op, *functions, dim=0, ends=ENDS):
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(f) for f in functions or (by_sin, by_cos)],
            dispatch_on={"tensor_name": "x", "dim": dim},
            split_points=list(ends),
        )

    def run_all(self, f, argument_sets, *, graphs=1, pick=pick, **options):
        """Compiled agrees with eager on every set, from as many graphs as expected."""
        compiled = torch.compile(f, **{"dynamic": True, "fullgraph": True, **options})
        with force_winners(pick):
            for args in argument_sets:
                self.check(compiled, f, *args)
        self.assertEqual(counters["stats"]["unique_graphs"], graphs)
        return compiled

    def rows(self, *sizes, device="cpu"):
        w = torch.randn(WIDTH, device=device)
        return [(torch.randn(n, WIDTH, device=device), w) for n in sizes]

    def chosen(self):
        return [[(str(r), label) for r, label in plan.chosen] for plan in report.plans()]

    def all_three(self, count=1):
        expected = [("[0, 4]", "by_sin"), ("[5, 8]", "by_cos"), ("[9, inf]", OP_LABEL)]
        self.assertEqual(self.chosen(), [expected] * count)


class SizesTest(GraphTestCase):
    @parametrize("device", DEVICES)
    def test_boundaries_and_far_beyond(self, device):
        with torch._dynamo.config.patch(error_on_recompile=True):
            self.run_all(lambda x, w: self.op(x, w), self.rows(*BOUNDARIES, 70000, device=device))
        self.all_three()

    def test_sizes_0_and_1(self):
        # torch.compile specializes on 0 and 1: a graph of its own for each, tuned for its range.
        self.run_all(
            lambda x, w: self.op(x, w), self.rows(5, 1, 0, 9), graphs=3, pick=lambda n: "by_cos"
        )
        self.assertEqual([plan.size for plan in report.plans()][1:], ["1", "0"])
        self.assertEqual(
            [str(plan.results[0].range) for plan in report.plans()[1:]], ["[0, 4]"] * 2
        )

    @parametrize("device", DEVICES)
    def test_an_unbacked_size_takes_every_value(self, device):
        def f(x, w):
            return self.op(x[(x[:, 0] > 0).nonzero().squeeze(1)], w)

        def rows(count):  # `count` of them are kept
            x = torch.randn(60, WIDTH, device=device).abs() + 0.1
            x[count:, 0] = -1
            return x, torch.ones(WIDTH, device=device)

        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            self.run_all(f, [rows(n) for n in (0, 1, 2, 4, 5, 8, 9, 60)])
        (plan,) = report.plans()
        self.assertTrue(plan.size.startswith("u"), plan.size)
        self.assertEqual(len(plan.chosen), 3)

    def test_an_unbacked_size_from_item(self):
        def f(flags, w):
            size = flags.sum().item()
            torch._check(size >= 0)
            torch._check(size <= 6)
            return self.op(torch.ones(size, WIDTH), w)

        w = torch.randn(WIDTH)
        with torch._dynamo.config.patch(capture_scalar_outputs=True):
            self.run_all(f, [(torch.arange(9) < n, w) for n in (0, 1, 4, 5, 6)])
        # Known to be 6 at most: the last range cannot occur, it is not tuned and gets no branch.
        self.assertEqual([[r.probe for r in p.results] for p in report.plans()], [[4, 6]])

    def test_masked_selection(self):
        def f(x, w):
            return self.op(torch.masked_select(x, x > 0).unsqueeze(1) * w, w)

        def values(count):
            x = torch.full((20,), -1.0)
            x[:count] = torch.arange(1, count + 1)
            return x, torch.randn(WIDTH)

        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            self.run_all(f, [values(n) for n in (0, 1, 4, 5, 8, 9, 20)])
        self.assertEqual(len(report.plans()[0].chosen), 3)

    def test_a_size_that_is_an_expression(self):
        def f(x, w):
            return self.op(torch.cat([x, x, x[:1]]), w)  # 2 * n + 1 rows

        sizes = (2, 3, 4, 5, 30)  # 5, 7, 9, 11 and 61 rows
        self.run_all(f, self.rows(*sizes), pick=lambda n: "by_sin" if n == 7 else "by_cos")
        (plan,) = report.plans()
        self.assertIn("2*", plan.size)
        # 5 is the smallest size there is, so the first range cannot occur.
        self.assertEqual([str(r) for r, _ in plan.chosen], ["[5, 8]", "[9, inf]"])
        self.assertEqual([result.probe for result in plan.results], [7, 65535])

    def test_a_size_that_is_a_product_of_symbols(self):
        def f(x, w):
            return self.op(x.reshape(-1, WIDTH), w)

        w = torch.randn(WIDTH)
        shapes = [(2, 3), (4, 2), (2, 4), (3, 3), (10, 5)]  # 6, 8, 8, 9, 50 rows
        self.run_all(f, [(torch.randn(*shape, WIDTH), w) for shape in shapes])
        self.assertIn("*", report.plans()[0].size)

    def test_bounds_from_mark_dynamic(self):
        (x, w), *others = self.rows(6, 5, 7, 8)
        torch._dynamo.mark_dynamic(x, 0, min=5, max=8)
        compiled = torch.compile(lambda x, w: self.op(x, w), fullgraph=True)
        with force_winners(lambda n: "by_cos") as probes:
            for args in [(x, w), *others]:
                self.check(compiled, weighted, *args)
        self.assertEqual(probes, [8])
        self.assertEqual(self.chosen(), [[("[5, 8]", "by_cos")]])

    def test_a_static_size_in_a_dynamic_graph(self):
        def f(x, w):
            return self.op(x[:3].sum(1, keepdim=True) * w + x.sum(), w)

        code = final_code(
            self.run_all(f, self.rows(7, 9), pick=lambda n: "by_cos"), *self.rows(9)[0]
        )
        self.assertEqual(predicates(code), [])
        self.assertEqual({plan.size for plan in report.plans()}, {"3"})


class SeveralTest(GraphTestCase):
    def test_the_same_op_many_times(self):
        def f(x, w):
            for _ in range(5):
                x = self.op(x, w) + 1
            return x

        self.run_all(f, self.rows(*BOUNDARIES))
        self.all_three(5)

    def test_many_ops_with_other_split_points(self):
        # The regression of stock's: sub-graphs of one dispatch must not run in place of another's.
        ops = []
        for i in range(3):
            op = define_op(
                f"shifted_{i}", lambda x, i=i: x * (i + 1), schema="(Tensor x) -> Tensor"
            )
            ends = [2 + i, 5 + i]
            functions = [lambda x, i=i: x * (i + 1) + 0.0, lambda x, i=i: (x + 0.0) * (i + 1)]
            self.register(op, *functions, ends=ends)
            ops.append(op)

        def f(x):
            return sum(op(x + i) for i, op in enumerate(ops))

        def winner(size):
            return OP_LABEL if size > 100 else "<lambda>" if size <= 4 else "<lambda> #2"

        self.run_all(f, [(torch.randn(n, WIDTH),) for n in range(2, 10)], pick=winner)
        self.assertEqual([len(chosen) for chosen in self.chosen()], [3, 3, 3])

    def test_in_a_cond_branch(self):
        def f(x, w, flag):
            return torch.cond(
                flag, lambda x, w: self.op(x, w) + 1, lambda x, w: self.op(x + 1, w), (x, w)
            )

        flags = (torch.tensor(True), torch.tensor(False))
        self.run_all(
            f,
            [(*args, flag) for args in self.rows(*BOUNDARIES) for flag in flags],
            graphs=counters["stats"]["unique_graphs"] + 3,
        )
        self.all_three(2)

    def test_in_a_while_loop(self):
        def f(x, w):
            def body(i, x):
                return i + 1, self.op(x, w) + 1

            return while_loop(lambda i, x: i < 3, body, (torch.tensor(0), x))[1]

        self.run_all(f, self.rows(*BOUNDARIES), graphs=3)
        self.all_three()

    def test_in_another_dispatched_ops_implementation(self):
        def outer_by_op(x, w):
            return self.op(x + 1, w) * 2

        def outer_plain(x, w):
            return torch.sin(x + 1) * w * 2

        outer = define_op(
            "outer",
            lambda x, w: weighted(x + 1, w) * 2,
            fake=lambda x, w: torch.empty_like(x * w),
            schema="(Tensor x, Tensor w) -> Tensor",
        )
        self.register(outer, outer_by_op, outer_plain, ends=[6])

        with force_winners_by_labels(
            {"outer_by_op": lambda n: "outer_by_op" if n <= 6 else "outer_plain", "by_sin": pick}
        ):
            compiled = torch.compile(lambda x, w: outer(x, w), dynamic=True, fullgraph=True)
            for args in self.rows(*BOUNDARIES, 6, 7):
                self.check(compiled, outer, *args)
        (whole,) = report.plans("range_dispatch_test::outer")
        self.assertEqual(len(whole.chosen), 2)
        # In the branch that runs up to 6 rows only.
        inner = report.plans("range_dispatch_test::weighted")[-1]
        self.assertEqual(len(inner.chosen), 3)


class TrainingTest(GraphTestCase):
    def setUp(self) -> None:
        super().setUp()

        def backward(g, x, w):
            return g * w * torch.cos(x)

        def by_shift(g, x, w):
            return g * w * torch.sin(x + torch.pi / 2)

        fake = lambda g, x, w: torch.empty_like(x * w)  # noqa: E731
        schema = "(Tensor g, Tensor x, Tensor w) -> Tensor"
        self.backward_op = define_op("weighted_backward", backward, fake=fake, schema=schema)
        self.register(self.backward_op, backward, by_shift)

        def run_backward(ctx, g):
            x, w = ctx.saved_tensors
            return self.backward_op(g, x, w), (g * torch.sin(x)).sum(0)

        def save(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        self.op.register_autograd(run_backward, setup_context=save)

    def gradients(self, f, x, w):
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        loss = f(x, w)
        loss.backward()
        return loss.detach(), x.grad, w.grad

    @parametrize("device", DEVICES)
    @parametrize("checkpointed", [False, True])
    def test_forward_and_backward_both_dispatch(self, device, checkpointed):
        def loss(x, w):
            if checkpointed:
                y = checkpoint(lambda x: self.op(torch.tanh(x), w), x, use_reentrant=False)
            else:
                y = self.op(torch.tanh(x), w)
            return (y * y).sum()

        compiled = torch.compile(loss, dynamic=True, fullgraph=True)
        with force_winners_by_labels(
            {"by_sin": pick, "by_shift": lambda n: {4: "backward", 8: "by_shift"}.get(n, OP_LABEL)}
        ):
            for x, w in self.rows(*BOUNDARIES, device=device):
                self.assertEqual(self.gradients(compiled, x, w), self.gradients(loss, x, w))
        names = [plan.op.split("::")[1] for plan in report.plans()]
        self.assertIn("weighted", names)
        self.assertIn("weighted_backward", names)
        self.assertEqual({len(plan.chosen) for plan in report.plans()}, {3})

    def test_func_grad(self):
        # A custom op with register_autograd refuses torch.func.grad, in eager mode too; an
        # overload of PyTorch's own does not.
        def by_sum(a, b):
            return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)

        register_custom_op_autotuning(
            torch.ops.aten.mm.default,
            configs=[CustomOpConfig(by_sum)],
            dispatch_on={"tensor_name": "self", "dim": 0},
            split_points=[4],
        )

        def f(a, b):
            return torch.func.grad(lambda a: torch.mm(torch.tanh(a), b).sin().sum())(a)

        b = torch.randn(5, 7)
        compiled = torch.compile(f, dynamic=True, fullgraph=True)
        with force_winners(lambda n: "by_sum" if n == 4 else OP_LABEL):
            for n in (3, 4, 5, 9):
                a = torch.randn(n, 5)
                self.assertEqual(compiled(a, b), f(a, b))
        self.assertGreaterEqual(len(report.plans()), 2)
        self.assertIn(2, {len(plan.chosen) for plan in report.plans()})


class ExportTest(GraphTestCase):
    class Module(torch.nn.Module):
        def __init__(self, op, device):
            super().__init__()
            self.op = op
            self.w = torch.nn.Parameter(torch.randn(WIDTH, device=device))

        def forward(self, x):
            return self.op(x * 2, self.w) + 1

    @parametrize("device", DEVICES)
    def test_package_dispatches_at_run_time(self, device):
        # Implementations that differ in their answers show what runs in the package.
        self.register(self.op, lambda x, w: x * w + 10.0, lambda x, w: x * w + 20.0)
        module = self.Module(self.op, device).eval()
        rows = torch.export.Dim("rows", min=2, max=4096)
        example = torch.randn(20, WIDTH, device=device)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            program = torch.export.export(module, (example,), dynamic_shapes={"x": {0: rows}})
            with force_winners({4: "<lambda>", 8: "<lambda> #2", 4096: OP_LABEL}):
                path = torch._inductor.aoti_compile_and_package(
                    program, package_path=os.path.join(folder, "model.pt2")
                )
            self.assertEqual(len(report.plans()[0].chosen), 3)
            if not packages_load(device):
                self.skipTest("no package can be loaded on this machine, dispatched or not")
            loaded = torch._inductor.aoti_load_package(path)
            for n in BOUNDARIES:
                x = torch.randn(n, WIDTH, device=device)
                y = x * 2 * module.w
                expected = y + 11 if n <= 4 else y + 21 if n <= 8 else module(x)
                self.assertEqual(loaded(x), expected)

    def test_ranges_beyond_the_exported_bounds_are_not_tuned(self):
        module = self.Module(self.op, "cpu").eval()
        rows = torch.export.Dim("rows", min=5, max=8)
        example = torch.randn(6, WIDTH)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            program = torch.export.export(module, (example,), dynamic_shapes={"x": {0: rows}})
            with force_winners(lambda n: "by_cos") as probes:
                path = os.path.join(folder, "model.pt2")
                torch._inductor.aoti_compile_and_package(program, package_path=path)
            self.assertEqual(torch._inductor.aoti_load_package(path)(example), module(example))
        self.assertEqual(probes, [8])
        self.assertEqual(self.chosen(), [[("[5, 8]", "by_cos")]])

    @parametrize("device", DEVICES)
    def test_cpp_wrapper_dispatches_at_run_time(self, device):
        self.register(self.op, lambda x, w: x * w + 10.0, lambda x, w: x * w + 20.0)
        module = self.Module(self.op, device).eval()

        def f(x, w):
            return self.op(x * 2, w) + 1

        compiled = torch.compile(f, dynamic=True, fullgraph=True)
        with (
            inductor_config.patch(cpp_wrapper=True),
            force_winners(lambda n: {4: "<lambda>", 8: "<lambda> #2"}.get(n, OP_LABEL)),
        ):
            for n in BOUNDARIES:
                x, w = torch.randn(n, WIDTH, device=device), module.w.detach()
                y = x * 2 * w
                expected = y + 11 if n <= 4 else y + 21 if n <= 8 else f(x, w)
                self.assertEqual(compiled(x, w), expected)
        self.assertEqual(counters["stats"]["unique_graphs"], 1)


class GuardsTest(GraphTestCase):
    def test_an_implementation_that_guards_is_left_out(self):
        def guarding(x, w):
            return by_cos(x, w) if x.shape[0] % 2 == 0 else by_sin(x, w)

        self.register(self.op, guarding, by_sin)
        with torch._dynamo.config.patch(error_on_recompile=True):
            self.run_all(
                lambda x, w: self.op(x, w),
                self.rows(*BOUNDARIES),
                pick=lambda n: "by_sin" if n == 4 else OP_LABEL,
            )
        self.assertEqual(counters["inductor"]["custom_op_decomp_guard_skips"], 1)
        ((label, reason),) = report.plans()[0].rejected
        self.assertEqual(label, "guarding")
        self.assertRegex(reason, r"would add the guard .*Mod\(.*2\)")

    def test_all_implementations_guard(self):
        def guarding(x, w):
            return by_sin(x, w) if x.shape[0] > 5 else by_cos(x, w)

        self.register(self.op, guarding)
        code = final_code(
            self.run_all(
                lambda x, w: self.op(x, w), self.rows(*BOUNDARIES), pick=lambda n: OP_LABEL
            ),
            *self.rows(3)[0],
        )
        self.assertIn("torch.ops.range_dispatch_test.weighted.default", code)

    def test_a_question_that_static_sizes_answer_is_no_guard(self):
        def by_width(x, w):
            return by_cos(x, w) if x.shape[1] == WIDTH else by_sin(x, w)

        self.register(self.op, by_width, by_sin)
        (x, w), *_ = self.rows(5)
        torch._dynamo.mark_static(x, 1)
        torch._dynamo.mark_static(w, 0)
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        with force_winners(lambda n: "by_width" if n == 4 else OP_LABEL):
            self.check(compiled, self.op, x, w)
        self.assertEqual(report.plans()[0].rejected, ())


def force_winners_by_labels(picks):
    """As force_winners, for several ops: which dict entry's label competes decides who picks."""
    from unittest import mock

    from torch._inductor.kernel.range_dispatch import tuner
    from torch._inductor.kernel.range_dispatch.choosing import Measurement

    def fake(bench, contenders, point):
        labels = [c.candidate.label for c in contenders]
        if any(c.variant for c in contenders):  # a winner with fewer neighbours, which is slower
            return [Measurement(label, 1.0 + i) for i, label in enumerate(labels)]
        (choose,) = (f for label, f in picks.items() if label in labels)
        winner = choose(point.size)
        if winner not in labels:
            raise AssertionError(f"no candidate {winner!r} among {labels}")
        return [Measurement(label, 1.0 if label == winner else 2.0) for label in labels]

    return mock.patch.object(tuner, "measure", fake)


instantiate_parametrized_tests(SizesTest)
instantiate_parametrized_tests(TrainingTest)
instantiate_parametrized_tests(ExportTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
