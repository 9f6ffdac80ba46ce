# Owner(s): ["module: inductor"]
"""The main path: one op, several implementations, tuned per range, one compiled graph."""

import unittest
from unittest import mock

from range_dispatch_common import (
    config,
    counters,
    custom_op,
    define_op,
    DEVICES,
    final_code,
    force_winners,
    GPU_TYPE,
    HAS_CPU,
    HAS_GPU,
    inductor_config,
    OP_LABEL,
    predicates,
    RangeDispatchTestCase,
    report,
)

import torch
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.kernel.custom_op import (
    autotune_custom_op,
    CustomOpConfig,
    register_custom_op_autotuning,
)
from torch._inductor.kernel.range_dispatch import compat, tuner
from torch._inductor.kernel.range_dispatch.choosing import Measurement
from torch._inductor.utils import run_and_get_code
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


def scaled(x: torch.Tensor, w: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    return torch.sin(x) * w * factor


def by_sin(x, w, factor):
    return torch.sin(x) * w * factor


def by_cos(x, w, factor):
    return torch.cos(x - torch.pi / 2) * w * factor


def by_loop(x, w, factor, chunk=4):
    out = torch.zeros_like(x)
    for _ in range(chunk):
        out = out + torch.sin(x) * w * (factor / chunk)
    return out


class SeedTest(RangeDispatchTestCase):
    """What the plan that this project was founded on asked to be found out first."""

    @parametrize("device", DEVICES)
    def test_nested_cond_under_dynamic_shapes(self, device):
        def dispatch(x):
            n = x.shape[1]
            return torch.cond(
                n <= 4,
                lambda x: x * 2,
                lambda x: torch.cond(n <= 8, lambda x: x.tanh(), lambda x: x.relu(), (x,)),
                (x,),
            )

        compiled = torch.compile(dispatch, dynamic=True, fullgraph=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for n, expected in ((3, lambda x: x * 2), (7, torch.tanh), (9, torch.relu)):
                x = torch.randn(2, n, device=device)
                self.assertEqual(compiled(x), expected(x))
        self.assertEqual(predicates(final_code(compiled, x)), [4, 8])

    def test_make_fx_under_fake_mode_keeps_the_dimension_symbolic(self):
        def dispatch(x):
            return torch.ops.higher_order.cond(
                x.shape[1] <= 512, lambda x: (x.sin(),), lambda x: (x.cos(),), (x,)
            )

        mode = FakeTensorMode(shape_env=ShapeEnv())
        x = mode.from_tensor(torch.randn(2, 50))
        with mode:
            graph = make_fx(
                dispatch, tracing_mode="symbolic", decomposition_table=select_decomp_table()
            )(x)
        (cond,) = graph.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
        size = cond.args[0].meta["val"].node.expr
        self.assertEqual(str(size), f"{x.shape[1].node.expr} <= 512")
        self.assertEqual(mode.shape_env.guards, [])


class DispatchTest(RangeDispatchTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.op = define_op("scaled", scaled)

    def register(self, *configs, split_points=(4, 8), dim=0, **options):
        register_custom_op_autotuning(
            self.op,
            configs=list(configs) or [CustomOpConfig(by_sin), CustomOpConfig(by_cos)],
            dispatch_on={"tensor_name": "x", "dim": dim, **options.pop("dispatch_on", {})},
            split_points=list(split_points),
            **options,
        )

    def call(self, x, w):
        return self.op(x + 1, w).relu()

    def inputs(self, n, device="cpu"):
        return torch.randn(n, 6, device=device), torch.randn(6, device=device)

    @parametrize("device", DEVICES)
    def test_each_range_runs_its_winner(self, device):
        self.register(
            CustomOpConfig(by_sin), CustomOpConfig(by_loop), dispatch_on={"range_upper_bound": 16}
        )
        compiled = torch.compile(self.call, dynamic=True, fullgraph=True)
        winners = {4: "by_loop", 8: OP_LABEL, 16: "by_sin"}
        with force_winners(winners) as probes:
            self.check(compiled, self.call, *self.inputs(3, device))
        self.assertEqual(probes, [8, 4, 16])
        with torch._dynamo.config.patch(error_on_recompile=True):
            for n in (2, 4, 5, 8, 9, 16, 17, 1000):
                self.check(compiled, self.call, *self.inputs(n, device))
        (plan,) = report.plans()
        shown = [(str(r), label) for r, label in plan.chosen]
        self.assertEqual(
            shown, [("[0, 4]", "by_loop"), ("[5, 8]", OP_LABEL), ("[9, inf]", "by_sin")]
        )

    def test_the_branch_of_the_range_is_what_runs(self):
        # Implementations that differ in their answers show which one ran at each size.
        self.register(
            CustomOpConfig(lambda x, w, factor: x * w + 10.0),
            CustomOpConfig(lambda x, w, factor: x * w + 20.0),
            CustomOpConfig(lambda x, w, factor: x * w + 30.0),
        )
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        x, w = self.inputs(3)
        with force_winners({4: "<lambda>", 8: "<lambda> #2", 65536: "<lambda> #3"}):
            self.assertEqual(compiled(x, w), x * w + 10.0)
        for n, added in ((2, 10), (4, 10), (5, 20), (8, 20), (9, 30), (70000, 30)):
            x, w = self.inputs(n)
            self.assertEqual(compiled(x, w), x * w + added)

    def test_generated_code_compares_the_size_once_a_split_point(self):
        self.register()
        compiled = torch.compile(self.call, dynamic=True, fullgraph=True)
        with force_winners(lambda n: "by_cos" if n == 8 else "by_sin"):
            code = final_code(compiled, *self.inputs(3))
        self.assertEqual(predicates(code), [4, 8])

    def test_neighbours_with_the_same_winner_merge(self):
        self.register(split_points=[2, 4, 8, 16])
        compiled = torch.compile(self.call, dynamic=True, fullgraph=True)
        with force_winners(lambda n: "by_cos" if n in (4, 8) else "by_sin"):
            code = final_code(compiled, *self.inputs(3))
        self.assertEqual(predicates(code), [2, 8])
        (plan,) = report.plans()
        self.assertEqual([str(r) for r, _ in plan.chosen], ["[0, 2]", "[3, 8]", "[9, inf]"])
        self.assertIn("merged: [3, 4] [5, 8] all run by_cos", str(plan))
        self.assertIn("merged: [9, 16] [17, inf] all run by_sin", str(plan))

    def test_the_same_implementation_with_other_arguments_does_not_merge(self):
        self.register(CustomOpConfig(by_loop, chunk=2), CustomOpConfig(by_loop, chunk=3))
        compiled = torch.compile(self.call, dynamic=True, fullgraph=True)
        with force_winners(lambda n: f"by_loop(chunk={2 if n == 4 else 3})"):
            code = final_code(compiled, *self.inputs(3))
        self.assertEqual(predicates(code), [4])
        for n in (4, 5, 9):
            self.check(compiled, self.call, *self.inputs(n))

    def test_one_winner_everywhere_leaves_no_dispatch(self):
        self.register()
        compiled = torch.compile(self.call, dynamic=True, fullgraph=True)
        with force_winners(lambda n: "by_cos"):
            code = final_code(compiled, *self.inputs(3))
        self.assertEqual(predicates(code), [])
        # Inlined: producer, implementation and consumer are one kernel.
        self.assertEqual(code.count("async_compile.cpp_pybinding("), 1)
        for n in (4, 5, 9):
            self.check(compiled, self.call, *self.inputs(n))

    def test_the_op_itself_everywhere_is_its_normal_lowering(self):
        self.register()
        compiled = torch.compile(self.call, dynamic=True, fullgraph=True)
        with force_winners(lambda n: OP_LABEL):
            code = final_code(compiled, *self.inputs(3))
        self.assertEqual(predicates(code), [])
        self.assertIn("torch.ops.range_dispatch_test.scaled.default", code)

    @parametrize("size,winner", [(3, "by_cos"), (8, "by_sin"), (9, "by_cos")])
    def test_a_static_size_tunes_its_own_range_only(self, size, winner):
        self.register()
        compiled = torch.compile(self.call, dynamic=False, fullgraph=True)
        with force_winners(lambda n: winner) as probes:
            code = final_code(compiled, *self.inputs(size))
        self.assertEqual(probes, [size])
        self.assertEqual(predicates(code), [])
        self.check(compiled, self.call, *self.inputs(size))

    @parametrize("dim", [1, -1])
    def test_dimension_from_the_end(self, dim):
        self.register(dim=dim)

        def call(x, w):
            return self.op(x, w)

        compiled = torch.compile(call, dynamic=True, fullgraph=True)
        for n in (3, 4, 5, 9):
            args = torch.randn(3, n), torch.randn(n)
            with force_winners(lambda n: "by_cos" if n == 4 else "by_sin"):
                self.check(compiled, call, *args)
        self.assertEqual(report.plans()[0].dispatch_on, "x.shape[1]")
        self.assertEqual(len(report.plans()[0].chosen), 2)

    @parametrize("device", DEVICES)
    def test_measured_for_real(self, device):
        self.register(
            CustomOpConfig(by_sin), CustomOpConfig(by_cos), dispatch_on={"range_upper_bound": 16}
        )
        compiled = torch.compile(self.call, dynamic=True, fullgraph=True)
        for n in (3, 4, 5, 8, 9, 30):
            self.check(compiled, self.call, *self.inputs(n, device))
        (plan,) = report.plans()
        self.assertEqual([r.probe for r in plan.results], [4, 8, 16])
        for result in plan.results:
            labels = [m.label for m in result.measurements]
            self.assertEqual(labels, ["by_sin", "by_cos", OP_LABEL])
            for measurement in result.measurements:
                self.assertIsNone(measurement.error)
                self.assertTrue(0 < measurement.milliseconds < 1000)

    def test_each_candidate_is_traced_and_compiled_once(self):
        self.register(split_points=[2, 4, 8, 16], dispatch_on={"range_upper_bound": 32})
        compiled = torch.compile(self.call, dynamic=True, fullgraph=True)
        real = tuner._compile
        with mock.patch.object(tuner, "_compile", side_effect=real) as compile_module:
            compiled(*self.inputs(3))
        names = [call.args[1].candidate.label for call in compile_module.call_args_list]
        self.assertEqual(names, ["by_sin", "by_cos", OP_LABEL])

    def test_what_a_benchmark_assumes_is_no_guard_and_holds_where_it_is_run(self):
        # How a long sum is generated depends on its length, on a CPU (is it above 4096?) and on a
        # GPU (do indices fit into 32 bits?). The candidate is measured all the same.
        op = define_op("total", lambda x: x.sum(), schema="(Tensor x) -> Tensor")
        contenders = []
        real = tuner.measure

        def spy(bench, field, point):
            contenders[:] = field
            return real(bench, field, point)

        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(lambda x: x.sum())],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 9000},
            split_points=[4, 4000],
        )
        compiled = torch.compile(lambda x: op(x), dynamic=True, fullgraph=True)
        with mock.patch.object(tuner, "measure", spy):
            for n in (5, 4, 3000, 9001):
                self.assertEqual(compiled(torch.ones(n, 3)), torch.tensor(3.0 * n))
        for result in report.plans()[0].results:
            self.assertEqual([m.error for m in result.measurements], [None, None])
        # Opaque code assumes nothing, so one module serves; no two modules assume the same.
        generated, op_itself = contenders
        self.assertEqual([m.assumptions for m in op_itself.modules], [()])
        assumed = [m.assumptions for m in generated.modules]
        self.assertEqual(len(assumed), len(set(assumed)))

    def test_two_dispatched_calls_in_one_graph(self):
        self.register()

        def call(x, w):
            return self.op(self.op(x, w) + 1, w, 0.5)

        compiled = torch.compile(call, dynamic=True, fullgraph=True)
        with force_winners(lambda n: "by_cos" if n == 4 else "by_sin"):
            self.check(compiled, call, *self.inputs(3))
        for n in (4, 5, 9):
            self.check(compiled, call, *self.inputs(n))
        self.assertEqual([len(plan.chosen) for plan in report.plans()], [2, 2])

    def test_config_parameters_win_over_the_callers(self):
        self.register(CustomOpConfig(by_sin, factor=7.0), CustomOpConfig(factor=5.0))

        def call(x, w):
            return self.op(x, w, 3.0)

        compiled = torch.compile(call, dynamic=True, fullgraph=True)
        x, w = self.inputs(3)
        with force_winners(
            {4: "by_sin(factor=7.0)", 8: f"{OP_LABEL}(factor=5.0)", 65536: OP_LABEL}
        ):
            self.assertEqual(compiled(x, w), scaled(x, w, 7.0))
        for n, factor in ((4, 7.0), (5, 5.0), (8, 5.0), (9, 3.0)):
            x, w = self.inputs(n)
            self.assertEqual(compiled(x, w), scaled(x, w, factor))

    def test_tuning_adds_no_guard(self):
        self.register(dispatch_on={"range_upper_bound": 16})

        def guards():
            torch._dynamo.reset()
            seen = []
            with mock.patch.object(
                ShapeEnv,
                "produce_guards_verbose",
                autospec=True,
                side_effect=lambda env, *a, **k: (
                    seen.append([str(g.expr) for g in env.guards]),
                    original(env, *a, **k),
                )[1],
            ):
                torch.compile(self.call, dynamic=True, fullgraph=True)(*self.inputs(3))
            return seen

        original = ShapeEnv.produce_guards_verbose
        tuned = guards()
        custom_op.unregister_custom_op_autotuning(self.op)
        self.assertEqual(tuned, guards())
        self.assertTrue(tuned)

    def test_global_random_state_is_left_alone(self):
        self.register(dispatch_on={"range_upper_bound": 16})
        compiled = torch.compile(self.call, dynamic=True, fullgraph=True)
        args = self.inputs(3)
        before = torch.random.get_rng_state()
        compiled(*args)
        self.assertEqual(torch.random.get_rng_state(), before)


class SwitchesTest(RangeDispatchTestCase):
    """Test switches, stock's and ours, and what upstream's tests read."""

    def setUp(self) -> None:
        super().setUp()
        self.op = define_op("scaled", scaled)
        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(by_sin)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 16},
            split_points=[4, 8],
        )
        self.compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        self.args = torch.randn(3, 6), torch.randn(6)

    def stock(self, **switches):
        missing = [name for name in switches if not hasattr(inductor_config.test_configs, name)]
        if missing:
            self.skipTest(f"this release has no torch._inductor.config.test_configs.{missing[0]}")
        return inductor_config.patch({f"test_configs.{k}": v for k, v in switches.items()})

    @parametrize("force,expected", [(True, "by_sin"), (False, OP_LABEL)])
    @parametrize("own", [True, False])
    def test_force_decomposition(self, force, expected, own):
        switch = (
            config.patch(force_decomposition=force)
            if own
            else self.stock(force_custom_op_decomposition=force)
        )
        # Whatever has to lose is faster, if it is measured at all.
        faster = OP_LABEL if force else "by_sin"

        def measure(bench, contenders, point):
            labels = [c.candidate.label for c in contenders]
            return [Measurement(label, 1.0 if label == faster else 2.0) for label in labels]

        with switch, mock.patch.object(tuner, "measure", measure):
            self.check(self.compiled, self.op, *self.args)
        self.assertEqual({label for _, label in report.plans()[0].chosen}, {expected})

    @parametrize("own", [True, False])
    def test_force_no_merge(self, own):
        switch = (
            config.patch(force_no_merge=True) if own else self.stock(force_no_impl_grouping=True)
        )
        with switch, force_winners(lambda n: "by_sin"):
            code = final_code(self.compiled, *self.args)
        self.assertEqual(predicates(code), [4, 8])

    def test_guard_skip_counter(self):
        def guarding(x, w, factor):
            return x * w if x.shape[0] > 100 else torch.sin(x) * w * factor

        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(guarding), CustomOpConfig(by_sin)],
            dispatch_on={"tensor_name": "x", "dim": 0},
            split_points=[4, 8],
        )
        with force_winners(lambda n: "by_sin"), self.assertLogs(custom_op.log, "WARNING") as logs:
            self.check(self.compiled, self.op, *self.args)
        self.assertEqual(counters["inductor"]["custom_op_decomp_guard_skips"], 1)
        self.assertIn("guarding is not used", logs.output[0])
        self.assertIn("> 100", logs.output[0])
        ((label, reason),) = report.plans()[0].rejected
        self.assertEqual(label, "guarding")
        self.assertIn("> 100", reason)


class PlainTuningTest(RangeDispatchTestCase):
    """Without split points: tuned once, at the sizes of the first call."""

    def setUp(self) -> None:
        super().setUp()
        self.op = define_op("scaled", scaled)
        self.args = torch.randn(3, 6), torch.randn(6)

    def compiled(self):
        return torch.compile(lambda x, w: self.op(x, w) + 1, dynamic=True, fullgraph=True)

    def eager(self, x, w):
        return self.op(x, w) + 1

    def test_the_winner_is_inlined(self):
        register_custom_op_autotuning(
            self.op, configs=[CustomOpConfig(by_sin), CustomOpConfig(by_cos)]
        )
        compiled = self.compiled()
        with force_winners(lambda n: "by_cos"):
            code = final_code(compiled, *self.args)
        self.assertNotIn("torch.ops.range_dispatch_test", code)
        self.assertEqual(code.count("async_compile.cpp_pybinding("), 1)
        self.check(compiled, self.eager, *self.args)
        (plan,) = report.plans()
        self.assertIsNone(plan.dispatch_on)
        self.assertEqual(plan.chosen[0][1], "by_cos")

    @parametrize("device", DEVICES)
    def test_measured_for_real(self, device):
        register_custom_op_autotuning(
            self.op, configs=[CustomOpConfig(by_sin), CustomOpConfig(by_cos)]
        )
        self.check(self.compiled(), self.eager, *(a.to(device) for a in self.args))
        (result,) = report.plans()[0].results
        self.assertEqual(len(result.measurements), 3)
        self.assertTrue(all(m.error is None for m in result.measurements))

    def test_threshold_is_the_speedup_over_the_op(self):
        def faked(bench, contenders, point):
            times = {"by_sin": 1.0, OP_LABEL: 1.5}
            return [
                custom_op.Measurement(c.candidate.label, times[c.candidate.label])
                for c in contenders
            ]

        for threshold, winner in ((1.0, "by_sin"), (1.5, "by_sin"), (1.6, OP_LABEL)):
            report.clear()
            torch._dynamo.reset()
            register_custom_op_autotuning(
                self.op, configs=[CustomOpConfig(by_sin)], min_speedup_threshold=threshold
            )
            with mock.patch.object(tuner, "measure", faked):
                self.check(self.compiled(), self.eager, *self.args)
            self.assertEqual(report.plans()[0].chosen[0][1], winner)

    def test_without_fallback_the_only_candidate_is_compared_with_the_op(self):
        def wrong(x, w):
            return by_sin(x, w) + 1

        for candidate, used in ((by_sin, "by_sin"), (wrong, OP_LABEL)):
            report.clear()
            torch._dynamo.reset()
            register_custom_op_autotuning(
                self.op, configs=[CustomOpConfig(candidate)], include_fallback=False
            )
            self.check(self.compiled(), self.eager, *self.args)
            self.assertEqual(report.plans()[0].chosen[0][1], used)

    def test_without_fallback_and_check_the_only_candidate_is_not_measured(self):
        register_custom_op_autotuning(
            self.op, configs=[CustomOpConfig(by_sin)], include_fallback=False, check=False
        )
        with mock.patch.object(tuner, "measure", side_effect=AssertionError("measured")):
            self.check(self.compiled(), self.eager, *self.args)
        self.assertEqual(report.plans()[0].chosen[0][1], "by_sin")

    def test_config_generator(self):
        seen = []

        def generate(tensors):
            seen.append({name: (tuple(map(int, t.shape)), t.dtype) for name, t in tensors.items()})
            return [CustomOpConfig(by_loop, chunk=k) for k in (2, 3)]

        register_custom_op_autotuning(self.op, config_generator=generate)
        with force_winners(lambda n: "by_loop(chunk=3)"):
            self.check(
                torch.compile(self.eager, dynamic=False, fullgraph=True), self.eager, *self.args
            )
        self.assertEqual(seen, [{"x": ((3, 6), torch.float32), "w": ((6,), torch.float32)}])
        self.assertEqual(report.plans()[0].chosen[0][1], "by_loop(chunk=3)")

    @parametrize("nothing", [[], None])
    def test_config_generator_returning_nothing_is_the_normal_lowering(self, nothing):
        register_custom_op_autotuning(self.op, config_generator=lambda tensors: nothing)
        code = final_code(self.compiled(), *self.args)
        self.assertIn("torch.ops.range_dispatch_test.scaled.default", code)
        self.check(self.compiled(), self.eager, *self.args)
        self.assertEqual(report.plans(), ())

    def test_aten_overload(self):
        def as_sum(a, b):
            return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)

        register_custom_op_autotuning(torch.ops.aten.mm.default, configs=[CustomOpConfig(as_sum)])
        a, b = torch.randn(3, 4), torch.randn(4, 5)
        for winner in ("as_sum", OP_LABEL):
            torch._dynamo.reset()
            compiled = torch.compile(lambda a, b: torch.mm(a, b) + 1, dynamic=True, fullgraph=True)
            with force_winners(lambda n, winner=winner: winner):
                _, codes = run_and_get_code(compiled, a, b)
            self.assertEqual("extern_kernels.mm(" in codes[-1], winner == OP_LABEL)
            self.assertEqual(compiled(a, b), torch.mm(a, b) + 1)

    def test_autotune_custom_op_returns_result_and_choice(self):
        choices = []

        def lower(x, w, factor=2.0):
            result, choice = autotune_custom_op(
                "direct",
                [by_sin, by_loop],
                [x, w],
                [{"factor": factor}, {"factor": factor, "chunk": 2}],
                self.op._opoverload,
            )
            choices.append(choice)
            return result

        compat.install_lowering(self.op._opoverload, lower)
        self.addCleanup(compat.remove_lowering, self.op._opoverload)
        for winner in ("by_sin(factor=2.0)", "by_loop(factor=2.0, chunk=2)", OP_LABEL):
            torch._dynamo.reset()
            with force_winners(lambda n, winner=winner: winner):
                self.check(self.compiled(), self.eager, *self.args)
            self.assertEqual(choices[-1].name, winner)
        self.assertIs(choices[0].decomposition, by_sin)
        self.assertEqual(choices[1].decomposition_kwargs, {"factor": 2.0, "chunk": 2})
        self.assertIsInstance(choices[0].gm, torch.fx.GraphModule)
        self.assertIsNone(choices[2].gm)
        self.assertEqual(choices[0].layout.dtype, torch.float32)

    def test_autotune_custom_op_errors(self):
        op = self.op._opoverload
        with self.assertRaisesRegex(TypeError, "decompositions must be a list or tuple"):
            autotune_custom_op("n", by_sin, [object()], [{}], op)
        with self.assertRaisesRegex(RuntimeError, "at least one tensor"):
            autotune_custom_op("n", [by_sin], [], [{}], op)
        with self.assertRaisesRegex(ValueError, "same length"):
            autotune_custom_op("n", [by_sin], [object()], [], op)


class CacheTest(RangeDispatchTestCase):
    def test_a_changed_registration_is_not_served_from_the_cache(self):
        op = define_op("scaled", scaled)
        x, w = torch.randn(3, 6), torch.randn(6)
        caches = inductor_config.patch(fx_graph_cache=True)
        with caches, torch._functorch.config.patch(enable_autograd_cache=True):
            for added in (1.0, 2.0, 1.0):
                torch._dynamo.reset()
                register_custom_op_autotuning(
                    op,
                    configs=[CustomOpConfig(lambda x, w, factor, added=added: x * w + added)],
                    include_fallback=False,
                    check=False,
                )
                compiled = torch.compile(lambda x, w: op(x, w), dynamic=True, fullgraph=True)
                self.assertEqual(compiled(x, w), x * w + added)


class ValidateTest(RangeDispatchTestCase):
    def test_dispatch_runs_under_the_graphs_fake_mode_and_validates_ir(self):
        op = define_op("scaled", scaled)
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(by_sin), CustomOpConfig(by_cos)],
            dispatch_on={"tensor_name": "x", "dim": 0},
            split_points=[4],
        )
        modes, validated = [], []
        from torch._inductor.kernel.range_dispatch import dispatch, trace

        def spy_make_fx(function, **options):
            def traced(*fakes):
                modes.append((options["tracing_mode"], fakes[0].fake_mode is V.fake_mode))
                return make_fx(function, **options)(*fakes)

            return traced

        def spy_validate(node):
            validated.append(node)
            return validate(node)

        validate = dispatch.validate_ir
        with (
            mock.patch.object(trace, "make_fx", spy_make_fx),
            mock.patch.object(dispatch, "validate_ir", spy_validate),
            force_winners(lambda n: "by_sin" if n == 4 else "by_cos"),
        ):
            compiled = torch.compile(lambda x, w: op(x, w), dynamic=True, fullgraph=True)
            compiled(torch.randn(3, 6), torch.randn(6))
        self.assertEqual(modes, [("symbolic", True)] * 4)  # three candidates and the nest
        self.assertTrue(validated)


class CaptureTest(RangeDispatchTestCase):
    """An op that cannot be captured in a CUDA graph is measured all the same, without a trace."""

    @unittest.skipUnless(HAS_GPU and GPU_TYPE == "cuda", "requires a CUDA GPU")
    @parametrize("way", ["reads a value", "synchronizes"])
    def test_an_op_that_waits_for_the_device(self, way):
        def function(x: torch.Tensor) -> torch.Tensor:
            if way == "reads a value":
                return x * 2 + x.sum().item() * 0
            y = x * 2
            torch.cuda.synchronize()
            return y

        op = define_op(f"waits_{way.partition(' ')[0]}", function, torch.empty_like)
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(lambda x: x * 2)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 16},
            split_points=[4],
        )
        stream = torch.cuda.current_stream()
        compiled = torch.compile(lambda x: op(x), dynamic=True, fullgraph=True)
        x = torch.ones(3, 6, device=GPU_TYPE)
        self.assertEqual(compiled(x), x * 2)
        self.assertEqual(torch.cuda.current_stream(), stream)
        self.assertEqual(torch.cuda.get_sync_debug_mode(), 0)
        torch.randn(3, device=GPU_TYPE)  # raises where the generator takes itself for captured
        for result in report.plans()[0].results:
            self.assertEqual([m.error for m in result.measurements], [None, None])


instantiate_parametrized_tests(SeedTest)
instantiate_parametrized_tests(CaptureTest)
instantiate_parametrized_tests(DispatchTest)
instantiate_parametrized_tests(SwitchesTest)
instantiate_parametrized_tests(PlainTuningTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
