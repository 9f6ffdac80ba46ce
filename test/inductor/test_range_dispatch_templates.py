# Owner(s): ["module: inductor"]
"""Under max-autotune a branch with a matmul is generated in parts, for some of its sizes each."""

import unittest
from unittest import mock

import sympy
from range_dispatch_common import (
    config,
    define_op,
    final_code,
    GPU_TYPE,
    HAS_CPU,
    HAS_GPU,
    inductor_config,
    predicates,
    RangeDispatchTestCase,
    report,
)

import torch
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
from torch._inductor.kernel.range_dispatch import ir as flat_ir
from torch._inductor.kernel.range_dispatch import templates
from torch._inductor.kernel.range_dispatch.plan import Plan
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


ON = {"max_autotune_gemm": True}
# With one choice there is nothing to time.
ATEN = {**ON, "max_autotune_gemm_backends": "ATEN"}
WIDTH, COLUMNS = 16, 32


class ChosenTest(RangeDispatchTestCase):
    """Which graphs have what Inductor chooses by the size."""

    def chosen(self, function, patches, *shapes, dim=0):
        """Of a call with tensors of ``shapes``, of which the first varies along ``dim`` alone."""
        mode = FakeTensorMode(shape_env=ShapeEnv())
        first, *others = (mode.from_tensor(torch.randn(s), static_shapes=True) for s in shapes)
        size = sympy.Integer(shapes[0][dim or 0])
        if dim is not None:
            varies = [DimDynamic.STATIC] * first.dim()
            varies[dim] = DimDynamic.DYNAMIC
            context = StatelessSymbolicContext(dynamic_sizes=varies)
            first = mode.from_tensor(torch.randn(shapes[0]), symbolic_context=context)
            size = first.shape[dim].node.expr
        with mode:
            graph = make_fx(function, tracing_mode="real")(first, *others)
        return templates.chosen_by_size([graph], patches, size)

    @parametrize(
        "name, function, dim, shapes",
        [
            ("mm", torch.mm, 0, [(6, 4), (4, 8)]),
            ("addmm", lambda x, w, b: torch.addmm(b, x, w), 0, [(6, 4), (4, 8), (8,)]),
            ("bmm", torch.bmm, 1, [(3, 6, 4), (3, 4, 8)]),
            ("among_others", lambda x, w: (x.relu() @ w).relu() + 1, 0, [(6, 4), (4, 8)]),
            ("convolution", torch.nn.functional.conv2d, 0, [(6, 3, 8, 8), (5, 3, 3, 3)]),
        ],
        name_fn=lambda name, function, dim, shapes: name,
    )
    def test_what_is(self, name, function, dim, shapes):
        for setting in ("max_autotune", "max_autotune_gemm"):
            self.assertTrue(self.chosen(function, {setting: True}, *shapes, dim=dim))
            with inductor_config.patch({setting: True}):
                self.assertTrue(self.chosen(function, {}, *shapes, dim=dim))
                self.assertFalse(self.chosen(function, {setting: False}, *shapes, dim=dim))

    def test_what_is_not(self):
        self.assertFalse(self.chosen(torch.mm, {}, (6, 4), (4, 8)))
        self.assertFalse(self.chosen(lambda x: x.softmax(-1), ON, (6, 4)))
        # The matmul does not depend on the size, or there is no size that varies.
        self.assertFalse(self.chosen(lambda x, v, w: x + v @ w, ON, (6, 8), (1, 4), (4, 8)))
        self.assertFalse(self.chosen(torch.mm, ON, (6, 4), (4, 8), dim=None))


class PartsTest(RangeDispatchTestCase):
    def register(self, function, patches=ATEN, points=(256,), **options):
        self.op = define_op("parted", torch.mm, schema="(Tensor x, Tensor w) -> Tensor")
        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(function, config_patches=patches)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 4096},
            split_points=list(points),
            check=False,
            **options,
        )

    def run_at(self, sizes, options=None, **settings):
        """Compile once and run at all ``sizes``; the code, the plan, and the branches' sizes."""
        made_for = []
        lower = flat_ir.lower_flat

        def see(branches, *others):
            for branch in branches:
                (size,) = branch.known.hints.values()
                made_for.append((branch.end, size))
            return lower(branches, *others)

        torch._dynamo.reset()
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        w = torch.randn(WIDTH, COLUMNS, **options or {})
        torch._dynamo.mark_static(w)
        code = None
        with (
            config.patch(force_decomposition=True, force_no_merge=True, **settings),
            inductor_config.patch({"cpp.threads": 4, "fx_graph_cache": False}),
            mock.patch.object(flat_ir, "lower_flat", see),
        ):
            for size in sizes:
                x = torch.randn(size, WIDTH, **options or {})
                if code is None:
                    code = final_code(compiled, x, w)
                with torch._dynamo.config.patch(error_on_recompile=True):
                    found = compiled(x, w)
                expected = self.expected(x.float(), w.float())
                torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
        return code, report.plans()[-1], made_for

    def expected(self, x, w):
        return torch.relu(x @ w)

    SIZES = (5, 16, 17, 64, 65, 256, 257, 1024, 1025, 5000)
    ENDS = ((16, 16), (64, 64), (256, 256), (1024, 1024), (None, 4096))

    def test_each_part_is_made_for_its_end(self):
        self.register(lambda x, w: torch.relu(x @ w))
        code, plan, made_for = self.run_at(self.SIZES)
        self.assertEqual(made_for, [*self.ENDS])
        shown = "[0, 16] [17, 64] [65, 256] [257, 1024] [1025, inf]"
        self.assertEqual(" ".join(map(str, plan.parts)), shown)
        self.assertIn(f"generated in parts: {shown}", str(plan))
        self.assertEqual([str(r) for r, _ in plan.chosen], ["[0, 256]", "[257, inf]"])
        self.assertEqual(Plan.from_json(plan.to_json()), plan)
        # On a CPU with four threads the relu of few elements has one, and of more has four: there
        # the parts are not the same.
        self.assertIn(256, predicates(code))
        self.assertTrue({16, 64} & set(predicates(code)), code)

    def test_parts_that_come_out_the_same_are_one(self):
        """Those of a range; ranges stay apart."""
        self.register(torch.mm)
        with mock.patch.object(self, "expected", torch.mm):
            code, plan, made_for = self.run_at(self.SIZES)
        self.assertEqual((made_for, predicates(code)), ([*self.ENDS], [256]))
        self.assertEqual(len(plan.parts), 5)

    @parametrize("factor, ends", [(16, [(16, 16), (256, 256), (None, 4096)]), (0, None)])
    def test_the_factor_is_a_knob(self, factor, ends):
        self.register(lambda x, w: torch.relu(x @ w))
        _, plan, made_for = self.run_at((5, 16, 200, 5000), template_parts=factor)
        self.assertEqual(made_for, ends or [(256, 256), (None, 4096)])
        self.assertEqual(len(plan.parts), 2 if ends else 0)

    def test_what_a_part_is_made_for(self):
        """As a range is: its end, or the sizes that are given, or that of a larger first call."""
        self.register(lambda x, w: torch.relu(x @ w), probe_sizes=[8, 40, 200, 3000])
        _, _, made_for = self.run_at((50, 10, 5000))
        self.assertEqual(made_for, [(50, 50), (256, 200), (750, 750), (None, 3000)])

    def test_in_cpp(self):
        """Where a part is not known to be the same as another: its lines are written later."""
        self.register(torch.mm)
        with (
            mock.patch.object(self, "expected", torch.mm),
            inductor_config.patch(cpp_wrapper=True),
        ):
            code, _, made_for = self.run_at((5, 64, 65, 300, 5000))
        self.assertEqual(made_for, [*self.ENDS])
        for end in (16, 64, 256, 1024):
            self.assertRegex(code, rf"<= {end}L?\b")

    def test_without_max_autotune_there_are_none(self):
        self.register(lambda x, w: torch.relu(x @ w), patches={})
        _, plan, made_for = self.run_at((5, 300))
        self.assertEqual((made_for, plan.parts), ([(256, 256), (None, 4096)], ()))

    def test_what_cannot_occur_has_none(self):
        self.register(lambda x, w: torch.relu(x @ w))
        w = torch.randn(WIDTH, COLUMNS)
        torch._dynamo.mark_static(w)
        x = torch.randn(100, WIDTH)
        torch._dynamo.mark_dynamic(x, 0, min=40, max=2000)
        compiled = torch.compile(lambda x, w: self.op(x, w), fullgraph=True)
        with config.patch(force_decomposition=True, force_no_merge=True):
            code = final_code(compiled, x, w)
        (plan,) = report.plans()
        shown = "[17, 64] [65, 256] [257, 500] [501, inf]"
        self.assertEqual(" ".join(map(str, plan.parts)), shown)
        self.assertNotIn(16, predicates(code))

    @unittest.skipUnless(HAS_GPU, "needs a GPU")
    def test_each_part_has_its_template_device_cuda(self):
        settings = {
            **ON,
            "max_autotune_gemm_backends": "ATEN,TRITON",
            "test_configs.max_mm_configs": 3,
        }
        self.register(lambda x, w: torch.relu(x @ w), settings)
        options = {"device": GPU_TYPE, "dtype": torch.bfloat16}
        _, plan, made_for = self.run_at(self.SIZES, options)
        self.assertEqual(made_for, [*self.ENDS])
        self.assertEqual(len(plan.parts), len(self.ENDS))


instantiate_parametrized_tests(ChosenTest)
instantiate_parametrized_tests(PartsTest)


if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests()
