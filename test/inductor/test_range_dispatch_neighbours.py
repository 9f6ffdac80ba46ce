# Owner(s): ["module: inductor"]
"""Neighbours that are measured to be slower in the branches than outside of them stay outside."""

import contextlib
import dataclasses
import math
import re
import tempfile
from pathlib import Path
from unittest import mock

from range_dispatch_common import (
    config,
    define_op,
    DEVICES,
    final_code,
    HAS_CPU,
    HAS_GPU,
    OP_LABEL,
    RangeDispatchTestCase,
    report,
)

import torch
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
from torch._inductor.kernel.range_dispatch import records, saved, signature, tuner
from torch._inductor.kernel.range_dispatch.choosing import Measurement, Rules, slower
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


WIDTH = 16
SPLIT = 8
PROBES = (8, 64)
REDUCTIONS = "without reductions"
PRODUCERS = "without producers"


def norm_low(x, w):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w


def norm_high(x, w):
    peak = x.abs().amax(-1, keepdim=True) + 1e-6
    x = x / peak
    return x / torch.sqrt(x.square().sum(-1, keepdim=True) / x.shape[-1] + 1e-6) * w


def pair_low(x, w):
    y = norm_low(x, w)
    return y, y.sum(-1)


def pair_high(x, w):
    y = norm_high(x, w)
    return y, y.sum(-1)


def quantised(y):
    peak = y.abs().amax(-1, keepdim=True) + 1e-6
    return torch.round(y * (127.0 / peak)), peak


# Each takes the op, x of shape [rows, WIDTH], w, and r of x's shape.
GRAPHS = {
    "reduction_at_the_end": lambda op, x, w, r: (op(x, w) * r).sum(-1),
    "of_the_op_itself": lambda op, x, w, r: op(x, w).sum(0),
    "and_what_depends_on_it": lambda op, x, w, r: quantised(op(x, w).relu()),
    "result_used_elsewhere": lambda op, x, w, r: (lambda y: (y, y.sum(0), y @ y.t()))(op(x, w)),
    "transposed": lambda op, x, w, r: (op(x, w).t() + 1).amax(0),
    "view_between": lambda op, x, w, r: op(x, w).view(-1, 4, 4).transpose(1, 2).sum(1) + r[:, :4],
    "producers_too": lambda op, x, w, r: op(x + r.sigmoid(), w).square().sum(-1),
    "residual_handed_on": lambda op, x, w, r: (lambda h: (h.exp(), op(h, w).sum(0) + h.sum(0)))(
        x * r.tanh()
    ),
}


def bare(names):
    """The names of nodes without the numbers that tell them apart."""
    return tuple(re.sub(r"_\d+$", "", name) for name in names)


class NeighboursTestCase(RangeDispatchTestCase):
    def setUp(self):
        super().setUp()
        self.norm = define_op("neighbours_norm", norm_low, schema="(Tensor x, Tensor w) -> Tensor")

    def register(self, op=None, low=norm_low, high=norm_high, **options):
        register_custom_op_autotuning(
            op or self.norm,
            configs=[CustomOpConfig(low), CustomOpConfig(high)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": PROBES[1]},
            split_points=[SPLIT],
            **options,
        )

    @contextlib.contextmanager
    def timed(self, slow=(), real=False):
        """Winners are forced, and what is left out is faster, except at the ``slow`` sizes.

        Yields what was measured, as sizes and labels.
        """
        measured = []
        measure = tuner.measure

        def fake(bench, contenders, point):
            labels = [c.candidate.label for c in contenders]
            measured.append((point.size, *labels))
            winner = "low" if point.size <= SPLIT else "high"
            found = [Measurement(label, 1.0) for label in labels]
            if real:
                found = measure(bench, contenders, point)
                self.assertEqual([m.error for m in found], [None] * len(found))
            out = [label for label in labels if "without" in label]
            times = [
                (2.0 if point.size in slow else 0.5)
                if m.label == "".join(out)
                else (1.0 if winner in m.label else 4.0)
                for m in found
            ]
            return [
                dataclasses.replace(m, milliseconds=t, spread=0.0)
                for m, t in zip(found, times, strict=True)
            ]

        with mock.patch.object(tuner, "measure", fake):
            yield measured

    def inputs(self, rows, device="cpu"):
        shapes = ((rows, WIDTH), (WIDTH,), (rows, WIDTH))
        made = tuple(torch.randn(shape, device=device) for shape in shapes)
        for tensor in (made[0], made[2]):
            torch._dynamo.mark_dynamic(tensor, 0)
        return made

    def check_everywhere(self, compiled, graph, device="cpu"):
        for rows in (2, SPLIT, SPLIT + 1, 40):
            args = self.inputs(rows, device)
            # The implementations round in another order than the op.
            near = {"rtol": 1e-4, "atol": 1e-4}
            self.assertEqual(compiled(*args), graph(*args), exact_stride=True, **near)


class ChoiceTest(RangeDispatchTestCase):
    def test_slower_at_every_probe_by_more_than_the_noise(self):
        def pairs(*times):
            return [(Measurement("in", a), Measurement("out", b)) for a, b in times]

        rules = Rules(OP_LABEL, noise=0.02)
        self.assertTrue(slower(pairs((2.0, 1.0), (1.1, 1.0)), rules))
        self.assertFalse(slower(pairs((2.0, 1.0), (1.01, 1.0)), rules))
        self.assertFalse(slower(pairs((2.0, 1.0), (1.0, math.inf)), rules))
        self.assertFalse(slower(pairs((2.0, 1.9)), Rules(OP_LABEL, threshold=1.1)))
        self.assertFalse(slower([], rules))


class LeftOutTest(NeighboursTestCase):
    """With faked timings: what is left out, and that the answers stay right."""

    @parametrize("device", DEVICES)
    @parametrize("name", list(GRAPHS))
    def test_reductions_that_are_slower_inside(self, name, device):
        self.register()
        graph = lambda *args: GRAPHS[name](self.norm, *args)  # noqa: E731
        compiled = torch.compile(graph, fullgraph=True)
        with self.timed(real=True), torch._dynamo.config.patch(error_on_recompile=True):
            compiled(*self.inputs(20, device))
            self.check_everywhere(compiled, graph, device)
        (plan,) = report.plans()
        self.assertTrue(any(n.startswith(("sum", "amax")) for n in plan.left_out), plan.left_out)
        self.assertFalse({*plan.left_out} & {*plan.region})
        self.assertIn("left out, since measured slower there", str(plan))

    def plan(self, graph, slow=(), **options):
        self.register(**options)
        with self.timed(slow) as measured:
            code = final_code(torch.compile(graph, fullgraph=True), *self.inputs(20))
        (plan,) = report.plans()
        return plan, measured, code

    def test_the_kernels_are_outside(self):
        graph = lambda x, w, r: (self.norm(x, w) * r).sum(-1)  # noqa: E731
        plan, _, code = self.plan(graph)
        self.assertEqual((bare(plan.region), bare(plan.handed_out)), (("mul",), ("mul",)))
        self.assertEqual(bare(plan.left_out), ("sum",))
        _, _, outside = code[code.index("def call(") :].partition(".__exit__(")
        self.assertIn("cpp_fused_sum", outside)

    def test_faster_inside(self):
        graph = lambda x, w, r: (self.norm(x, w) * r).sum(-1)  # noqa: E731
        plan, measured, _ = self.plan(graph, slow=PROBES)
        self.assertEqual((bare(plan.region), plan.left_out), (("mul", "sum"), ()))
        # The first winner settled it.
        self.assertEqual(measured[2:], [(8, "norm_low", f"norm_low {REDUCTIONS}")])

    def test_slower_inside_at_one_probe_alone(self):
        graph = lambda x, w, r: (self.norm(x, w) * r).sum(-1)  # noqa: E731
        plan, measured, _ = self.plan(graph, slow=PROBES[1:])
        self.assertEqual(plan.left_out, ())
        self.assertEqual(measured[-1], (64, "norm_high", f"norm_high {REDUCTIONS}"))

    def test_not_by_the_threshold(self):
        graph = lambda x, w, r: (self.norm(x, w) * r).sum(-1)  # noqa: E731
        self.assertEqual(self.plan(graph, min_speedup_threshold=3.0)[0].left_out, ())

    def test_producers_that_are_computed_in_several_kernels(self):
        graph = lambda x, w, r: self.norm(x * r.sigmoid(), w) + 1  # noqa: E731
        plan, measured, code = self.plan(graph)
        self.assertEqual((bare(plan.region), plan.producers), (("add",), ()))
        self.assertEqual(bare(plan.left_out), ("sigmoid", "mul"))
        self.assertEqual(measured[2], (8, "norm_low", f"norm_low {PRODUCERS}"))
        before = code[code.index("def call(") :].partition("if s")[0]
        self.assertIn("cpp_fused", before)
        self.check_everywhere(torch.compile(graph, fullgraph=True), graph)

    def test_reductions_and_producers(self):
        graph = lambda x, w, r: self.norm(x * r.sigmoid(), w).sum(-1)  # noqa: E731
        plan, measured, _ = self.plan(graph)
        self.assertEqual((plan.region, bare(plan.left_out)), ((), ("sigmoid", "mul", "sum")))
        both = "without reductions and producers"
        self.assertEqual(measured[-1], (64, "norm_high", f"norm_high {both}"))
        self.check_everywhere(torch.compile(graph, fullgraph=True), graph)

    def test_what_is_computed_element_by_element_is_not_measured(self):
        graph = lambda x, w, r: torch.relu(self.norm(x, w)) * r  # noqa: E731
        plan, measured, _ = self.plan(graph)
        self.assertEqual([size for size, *_ in measured], list(PROBES))
        self.assertEqual(bare(plan.region), ("relu", "mul"))

    def test_producers_of_one_kernel_are_not_measured(self):
        op = define_op("neighbours_scale", torch.mul, schema="(Tensor x, Tensor w) -> Tensor")
        self.register(op, low=lambda_low, high=lambda_high)
        with self.timed() as measured:
            torch.compile(lambda x, w, r: op(x * r.sigmoid(), w) + 1)(*self.inputs(20))
        self.assertEqual([size for size, *_ in measured], list(PROBES))

    def test_an_op_of_two_outputs(self):
        op = define_op(
            "neighbours_pair", pair_low, schema="(Tensor x, Tensor w) -> (Tensor, Tensor)"
        )
        self.register(op, low=pair_low, high=pair_high)
        graph = lambda x, w, r: (lambda y, s: ((y * r).sum(0), s + 1))(*op(x, w))  # noqa: E731
        compiled = torch.compile(graph, fullgraph=True)
        with self.timed(real=True):
            compiled(*self.inputs(20))
        self.check_everywhere(compiled, graph)
        (plan,) = report.plans()
        self.assertEqual(bare(plan.left_out), ("sum",))

    def test_ops_that_are_dispatched_together_keep_their_neighbours(self):
        self.register()
        graph = lambda x, w, r: self.norm(self.norm(x, w) + r, w).sum(-1)  # noqa: E731
        with self.timed() as measured:
            torch.compile(graph, fullgraph=True)(*self.inputs(20))
        self.assertFalse([labels for _, *labels in measured if len(labels) == 2])
        first, second = report.plans()
        self.assertIn("sum", bare(first.region))
        self.assertEqual((first.origin, second.origin), ("measured", "measured"))

    @parametrize("apart", [False, True])
    def test_measured_for_real(self, apart):
        """Both ways give the op's answer, in this process or in another."""
        self.register()
        graph = lambda x, w, r: quantised(self.norm(x * r.sigmoid(), w))  # noqa: E731
        compiled = torch.compile(graph, fullgraph=True)
        with self.timed(real=True) as measured, config.patch(measure_in_subprocess=apart):
            compiled(*self.inputs(20))
        self.assertEqual(len(measured), 6)
        self.check_everywhere(compiled, graph)

    def test_the_files_of_the_modules_can_be_loaded(self):
        self.register()
        answers = []
        real = tuner._row

        def both(bench, contenders, point):
            row = real(bench, contenders, point)
            for entrant in row.entrants:
                loaded = entrant.module.file.load()
                answers.append([m(point, row.inputs) for m in (entrant.module, loaded)])
            return row

        graph = lambda x, w, r: self.norm(x * r.sigmoid(), w).sum(-1)  # noqa: E731
        with mock.patch.object(tuner, "_row", both), self.timed(real=True):
            torch.compile(graph, fullgraph=True)(*self.inputs(20))
        self.assertEqual(len(answers), 2 * 3 + 2 * 2 * 2)
        for one, other in answers:
            self.assertEqual(list(one), list(other))

    def test_a_failure_apart_leaves_them_inside(self):
        self.register()
        real = tuner.compile_for_benchmark

        def failing(*args, **kwargs):
            if kwargs.get("strided"):
                raise RuntimeError("no such instruction")
            return real(*args, **kwargs)

        graph = lambda x, w, r: (self.norm(x, w) * r).sum(-1)  # noqa: E731
        with mock.patch(
            "torch._inductor.kernel.range_dispatch.neighbours.compile_for_benchmark", failing
        ):
            torch.compile(graph, fullgraph=True)(*self.inputs(20))
        (plan,) = report.plans()
        self.assertEqual(plan.left_out, ())


def lambda_low(x, w):
    return x * w


def lambda_high(x, w):
    return w * x


class RecordedTest(NeighboursTestCase):
    """What was decided is found again without measuring."""

    def setUp(self):
        super().setUp()
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        records.forget()
        self.addCleanup(records.forget)
        self.enterContext(config.patch(use_records=True))
        self.enterContext(mock.patch.object(signature, "cache_dir", lambda: str(folder)))

    def tuned(self, slow=(), **knobs):
        records.forget()
        torch._dynamo.reset()
        report.clear()
        self.register()
        graph = lambda x, w, r: (self.norm(x * r.sigmoid(), w) * r).sum(-1)  # noqa: E731
        with self.timed(slow) as measured, config.patch(knobs):
            torch.compile(graph, fullgraph=True)(*self.inputs(20))
        (plan,) = report.plans()
        return plan, measured

    @parametrize("slow", [(), PROBES])
    def test_a_warm_process_measures_nothing(self, slow):
        first, measured = self.tuned(slow)
        self.assertEqual(len(measured), 4 if slow else 6)
        again, measured = self.tuned(slow)
        self.assertEqual(measured, [])
        self.assertEqual((again.left_out, again.region), (first.left_out, first.region))
        self.assertEqual(bool(first.left_out), not slow)
        self.assertEqual(again.origin, "recorded")

    def test_a_warm_process_compiles_nothing_to_measure(self):
        self.tuned()
        with mock.patch.object(tuner, "_compile") as compiled:
            self.tuned()
        compiled.assert_not_called()

    def test_where_nothing_may_be_measured_they_stay_inside(self):
        self.tuned()
        plan, measured = self.tuned(deterministic=True)
        self.assertEqual((measured, bool(plan.left_out)), ([], True))
        for path in Path(signature.cache_dir()).rglob("*.json"):
            path.unlink()
        plan, measured = self.tuned(deterministic=True)
        self.assertEqual((measured, plan.left_out), ([], ()))

    def test_other_readers_of_the_records_are_not_misled(self):
        plan, _ = self.tuned()
        (entry,) = saved.entries([Path(signature.cache_dir()) / "range_dispatch"])
        recorded = saved.plan_of(entry)
        self.assertEqual(set(recorded.labels), set(plan.labels))
        self.assertEqual([r.probe for r in recorded.results], list(PROBES))


instantiate_parametrized_tests(LeftOutTest)
instantiate_parametrized_tests(RecordedTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests()
