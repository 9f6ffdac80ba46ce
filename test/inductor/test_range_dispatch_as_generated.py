# Owner(s): ["module: inductor"]
"""Candidates that nearly tie are measured again as their branches are generated."""

import contextlib
import math
import random
import re
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import sympy
from range_dispatch_common import (
    config,
    counters,
    define_op,
    DEVICES,
    HAS_CPU,
    HAS_GPU,
    inductor_config,
    OP_LABEL,
    predicates,
    RangeDispatchTestCase,
    report,
    run_and_get_code,
)

import torch
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
from torch._inductor.kernel.range_dispatch import as_generated, records, tuner
from torch._inductor.kernel.range_dispatch.as_generated import Branches, Ranking
from torch._inductor.kernel.range_dispatch.choosing import choose, combine, Measurement, Rules
from torch._inductor.kernel.range_dispatch.grid import Measured
from torch._inductor.kernel.range_dispatch.inputs import Point
from torch._inductor.kernel.range_dispatch.plan import Plan
from torch._inductor.kernel.range_dispatch.ranges import merge_neighbours, ranges_from_split_points
from torch._inductor.kernel.range_dispatch.sizes import Known
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


WIDTH = 32
SMALL, MIDDLE, LARGE = 8, 4096, 100_000


def one(x, w):
    return x * w + 1.0


def two(x, w):
    return x * w + 2.0


def three(x, w):
    return x * w + 3.0


ADDED = {"one": 1.0, "two": 2.0, "three": 3.0, OP_LABEL: 0.0}


class AsGeneratedTestCase(RangeDispatchTestCase):
    def setUp(self) -> None:
        super().setUp()
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        stack.enter_context(config.patch(remeasure_margin=0.1))
        # The loops of the first module are parallel, those of a branch for small sizes are not.
        stack.enter_context(inductor_config.patch({"cpp.threads": 4}))
        self.asked: list[tuple[str, str, int]] = []

    def register(self, **options):
        self.op = define_op("tied", lambda x, w: x * w, schema="(Tensor x, Tensor w) -> Tensor")
        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(f) for f in (one, two, three)],
            **{
                "dispatch_on": {"tensor_name": "x", "dim": 0, "range_upper_bound": LARGE},
                "split_points": [SMALL, MIDDLE],
                **options,
            },
        )

    @contextlib.contextmanager
    def times(self, first, again=None, method=""):
        """Fake the timings: ``first`` by size and label, ``again`` by label and branch; else 9."""
        again = again or {}

        def fake(bench, contenders, point):
            row = []
            for contender in contenders:
                label, branch = contender.candidate.label, contender.branch
                milliseconds = first[point.size].get(label, 9.0)
                if branch is not None:
                    self.asked.append((label, str(branch), point.size))
                    milliseconds = again.get((label, str(branch)), milliseconds)
                row.append(Measurement(label, milliseconds, method=method if branch else ""))
            return row

        with mock.patch.object(tuner, "measure", fake):
            yield

    def tune(self, first, again=None, method=""):
        """Compile and run in all ranges; the plan, and the generated code."""
        torch._dynamo.reset()
        x = torch.randn(4, WIDTH)
        w = torch.randn(WIDTH)
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        with self.times(first, again, method):
            _, codes = run_and_get_code(compiled, x, w)
        plan = report.plans()[-1]
        for size in (2, SMALL, SMALL + 1, MIDDLE, MIDDLE + 1):
            label = next(label for range, label in plan.chosen if range.contains(size))
            x = torch.randn(size, WIDTH)
            self.assertEqual(compiled(x, w), x * w + ADDED[label])
        return plan, codes[-1]

    def chosen(self, plan):
        return [(str(range), label) for range, label in plan.chosen]


TIED = {
    SMALL: {"two": 1.0, "three": 1.05},
    MIDDLE: {"one": 1.0, "two": 2.0},
    LARGE: {"one": 1.0, "three": 2.0},
}
APART = [("[0, 8]", "two"), ("[9, inf]", "one")]
ASKED = [("two", "[0, 8]", SMALL), ("three", "[0, 8]", SMALL)]
CLEAR = {SMALL: {"two": 1.0}, MIDDLE: {"one": 1.0}, LARGE: {"one": 1.0}}
# Loops of a kernel for many rows.
PARALLEL = re.compile(r"omp parallel num_threads")
# The code for the middle of the sizes is that for large ones.
SAME = {SMALL: {"two": 1.0}, MIDDLE: {"one": 1.0, "two": 1.05}, LARGE: {"one": 1.0}}


@contextlib.contextmanager
def other_kernels(number, on_hints=True):
    """Kernels depend on hints, as on a GPU; how many there are is faked by ``number``."""
    with (
        mock.patch.object(as_generated, "depend_on_hints", lambda device: on_hints),
        mock.patch.object(as_generated, "number_of_kernels", number),
    ):
        yield


class AsGeneratedTest(AsGeneratedTestCase):
    def test_the_close_candidates_of_the_close_range_are_measured_again(self):
        self.register()
        plan, _ = self.tune(TIED, {("two", "[0, 8]"): 0.99, ("three", "[0, 8]"): 1.04})
        self.assertEqual(self.asked, ASKED)
        self.assertEqual(self.chosen(plan), APART)
        self.assertEqual([r.as_generated for r in plan.results], [("two", "three"), (), ()])
        self.assertIn("measured as generated: [0, 8] two, three", str(plan))
        self.assertEqual(Plan.from_json(plan.to_json()), plan)

    def test_what_runs_decides(self):
        self.register()
        plan, code = self.tune(TIED, {("three", "[0, 8]"): 0.5})
        self.assertEqual(self.chosen(plan), [("[0, 8]", "three"), ("[9, inf]", "one")])
        self.assertEqual(predicates(code), [SMALL])
        by_label = {m.label: m.milliseconds for m in plan.results[0].measurements}
        self.assertEqual((by_label["three"], by_label["one"]), (0.5, 9.0))

    def test_another_branch_then_is_measured_as_well(self):
        self.register(split_points=[4, SMALL, MIDDLE])
        first = {
            4: {"three": 1.0, "two": 1.05},
            SMALL: {"one": 1.0, "three": 1.05},
            MIDDLE: {"one": 1.0},
            LARGE: {"one": 1.0},
        }
        plan, _ = self.tune(first, {("three", "[0, 8]"): 0.5})
        joined = [(label, size) for label, branch, size in self.asked if branch == "[0, 8]"]
        self.assertEqual(joined, [("three", SMALL), ("three", 4)])
        self.assertEqual(self.chosen(plan), [("[0, 8]", "three"), ("[9, inf]", "one")])

    @parametrize("own, parallel", [(0.9, 1), (1.01, 1), (1.1, 2)])
    def test_code_that_is_slower_than_for_all_sizes_is_not_used(self, own, parallel):
        self.register()
        plan, code = self.tune(TIED, {("two", "[0, 8]"): own, ("three", "[0, 8]"): 3.0})
        self.assertEqual((self.asked, self.chosen(plan)), (ASKED, APART))
        self.assertEqual(len(PARALLEL.findall(code)), parallel)
        self.assertEqual(plan.results[0].as_generated, ("two",) if parallel == 1 else ())
        slower = (plan.chosen[0][0],) if parallel == 2 else ()
        self.assertEqual(plan.for_all_sizes, slower)
        self.assertEqual("generated as for all sizes: [0, 8]" in str(plan), bool(slower))
        self.assertEqual(Plan.from_json(plan.to_json()), plan)

    @parametrize("own, parallel", [(0.9, 1), (1.5, 2)])
    def test_a_winner_with_other_kernels_is_measured_where_nobody_is_close(self, own, parallel):
        self.register()
        with other_kernels(str):
            plan, code = self.tune(CLEAR, {("two", "[0, 8]"): own})
        self.assertEqual((self.asked, self.chosen(plan)), ([ASKED[0]], APART))
        self.assertEqual(len(PARALLEL.findall(code)), parallel)

    @parametrize("on_hints", [False, True])
    def test_a_winner_with_the_same_kernels_is_not(self, on_hints):
        self.register()
        with other_kernels(as_generated.number_of_kernels, on_hints):
            plan, _ = self.tune(CLEAR, {("two", "[0, 8]"): 0.5})
        self.assertEqual((self.asked, self.chosen(plan)), ([], APART))
        self.assertEqual([r.as_generated for r in plan.results], [(), (), ()])

    def test_number_of_kernels(self):
        code = """
cpp_fused_add_0 = async_compile.cpp_pybinding([], "")
    cpp_fused_add_0(arg0_1, buf0)
    triton_red_fused_sum_0.run(arg0_1, buf0, xnumel, stream=stream0)
    extern_kernels.mm(buf0, arg1_1, out=buf1)
"""
        self.assertEqual(as_generated.number_of_kernels(code), 3)

    def test_the_op_is_close_where_the_threshold_is(self):
        self.register(min_speedup_threshold=1.5)
        first = {
            SMALL: {"two": 1.1, OP_LABEL: 1.6},
            MIDDLE: {"one": 1.0, OP_LABEL: 3.0},
            LARGE: {"one": 1.0, OP_LABEL: 3.0},
        }
        plan, _ = self.tune(first, {("two", "[0, 8]"): 1.0})
        # An opaque op is the same code in all branches.
        self.assertEqual(self.asked, [("two", "[0, 8]", SMALL)])
        self.assertEqual([r.winner for r in plan.results], ["two", "one", "one"])

    def test_the_same_code_is_not_measured_again(self):
        self.register()
        with self.assertLogs(as_generated.log, "DEBUG") as logs:
            plan, _ = self.tune(SAME)
        self.assertEqual(self.asked, [])
        self.assertIn("one is the same code for [9, inf]", "".join(logs.output))
        self.assertEqual(self.chosen(plan), APART)

    @parametrize("margin,asked", [(0.0, []), (0.04, []), (0.06, ASKED)])
    def test_the_margin(self, margin, asked):
        self.register()
        with config.patch(remeasure_margin=margin):
            self.tune(TIED)
        self.assertEqual(self.asked, asked)

    @parametrize("most,winner", [(0, "two"), (2, "three"), (6, "three")])
    def test_winners_with_other_kernels_leave_ties_their_number(self, most, winner):
        self.register(split_points=[4, SMALL, MIDDLE])
        first = {
            4: {"one": 1.0},
            SMALL: {"two": 1.0, "three": 1.05},
            MIDDLE: {"one": 1.0},
            LARGE: {"one": 1.0, "two": 1.08},
        }
        with config.patch(remeasure_most=most), other_kernels(str):
            plan, _ = self.tune(first, {("three", "[5, 8]"): 0.5})
        asked = [("one", "[0, 4]", 4), ("two", "[5, 8]", SMALL)]
        self.assertTrue(set(asked) <= set(self.asked))
        self.assertEqual([r.winner for r in plan.results], ["one", winner, "one", "one"])

    @parametrize("most,asked", [(2, []), (3, []), (4, ASKED)])
    def test_the_closest_come_first(self, most, asked):
        self.register()
        with config.patch(remeasure_most=most):
            self.tune({**TIED, LARGE: {"one": 1.0, "two": 1.025}})
        self.assertEqual(self.asked, asked)

    def test_what_is_inlined_is_not_measured_again(self):
        self.register()
        tied = {size: {"two": 1.0, "three": 1.05} for size in (SMALL, MIDDLE, LARGE)}
        plan, _ = self.tune(tied)
        self.assertEqual((self.asked, self.chosen(plan)), ([], [("[0, inf]", "two")]))

    def test_who_would_win_everywhere_keeps_its_time(self):
        """It would be inlined, and so is generated for all sizes."""
        self.register()
        first = {**TIED, SMALL: {"three": 1.0, "one": 1.05}}
        plan, _ = self.tune(first, {("three", "[0, 8]"): 0.9})
        self.assertEqual(self.asked, [("three", "[0, 8]", SMALL)])
        self.assertEqual(self.chosen(plan), [("[0, 8]", "three"), ("[9, inf]", "one")])
        self.assertEqual(plan.results[0].as_generated, ("three",))

    def test_times_by_another_method_are_not_taken(self):
        self.register()
        plan, _ = self.tune(TIED, {("three", "[0, 8]"): 0.5}, "events")
        self.assertEqual((self.asked, self.chosen(plan)), (ASKED, APART))

    def test_what_cannot_be_generated_for_its_branch_keeps_its_time(self):
        self.register()
        real = tuner.generate_for_benchmark

        def failing(graph, call, point, patches, name, known=None):
            if known is not None and name == "three":
                raise RuntimeError("not for this range")
            return real(graph, call, point, patches, name, known)

        with mock.patch.object(tuner, "generate_for_benchmark", failing):
            plan, _ = self.tune(TIED, {("three", "[0, 8]"): 0.5})
        self.assertEqual((self.asked, self.chosen(plan)), (ASKED[:1], APART))

    @parametrize("device", DEVICES)
    def test_measured(self, device):
        def right(x, w):
            return w * x

        def wrong_for_many(x, w):
            return torch.mul(x, w)

        op = define_op("close", lambda x, w: x * w, schema="(Tensor x, Tensor w) -> Tensor")
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(right), CustomOpConfig(wrong_for_many)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": LARGE},
            split_points=[SMALL, MIDDLE],
        )
        everything = {"remeasure_margin": 1e9, "remeasure_most": 20, "force_no_merge": True}
        everything["noise"] = 1e9  # nothing is so slow that it is not used
        function = lambda x, w: op(x, w)  # noqa: E731
        compiled = torch.compile(function, dynamic=True, fullgraph=True)
        with config.patch(tuning_rounds=1, tuning_budget_ms=0.01, early_stop=1e9, **everything):
            for size in (4, SMALL + 1, MIDDLE + 1):
                x, w = torch.randn(size, WIDTH, device=device), torch.randn(WIDTH, device=device)
                self.check(compiled, function, x, w)
        (plan,) = report.plans()
        self.assertEqual(counters["stats"]["unique_graphs"], 1)
        labels = {"right", "wrong_for_many", OP_LABEL}
        measured = [set(r.as_generated) for r in plan.results]
        if device == "cpu":
            # The code for the middle range is that for all sizes.
            self.assertEqual(measured[0], labels)
            self.assertTrue(all(found in (set(), labels) for found in measured))
        else:  # by a GPU's clock, a time may be the same again
            self.assertTrue(measured[0])
        self.assertTrue(all(m.error is None for r in plan.results for m in r.measurements))

    @parametrize("device", DEVICES)
    def test_long_reductions(self, device):
        """On a GPU these are one kernel for many rows, and two for few."""

        def total(x):
            return x.sum(-1)

        def total_of_parts(x):
            return x.unflatten(-1, (64, -1)).sum(-1).sum(-1)

        op = define_op("long_rows", total, schema="(Tensor x) -> Tensor")
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(total), CustomOpConfig(total_of_parts)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 512},
            split_points=[4, 64],
        )
        quick = {"tuning_rounds": 2, "tuning_budget_ms": 0.01, "force_no_merge": True}
        compiled = torch.compile(op, fullgraph=True)
        with config.patch(**quick), torch._dynamo.config.patch(error_on_recompile=True):
            for rows in (6, 4, 64, 65, 300):
                x = torch.randn(rows, 1 << 14, device=device)
                torch._dynamo.mark_dynamic(x, 0)
                self.assertEqual(compiled(x), x.sum(-1), atol=2e-3, rtol=1e-4)
        (plan,) = report.plans()
        self.assertEqual([r.probe for r in plan.results], [4, 64, 512])
        self.assertTrue(all(m.error is None for r in plan.results for m in r.measurements))


class Drawn:
    """A tuning whose candidates, times and kernels are drawn; nothing is compiled.

    Takes the place of a call's records, and of what tunes it.
    """

    def __init__(self, seed: int, device: str) -> None:
        self.draw = random.Random(seed)
        ends = sorted(self.draw.sample(range(1, 1000), self.draw.randint(1, 7)))
        self.ranges = ranges_from_split_points(ends)
        sizes = [sorted({r.start, min(r.end, 4096)}) for r in self.ranges]
        self.points = [[Point(size, {}) for size in at] for at in sizes]
        self.labels = [*"abcd"[: self.draw.randint(1, 4)], OP_LABEL]
        self.contenders = [self.contender(label) for label in self.labels]
        call = SimpleNamespace(op=SimpleNamespace(name=lambda: "drawn"))
        self.bench = SimpleNamespace(device=torch.device(device), call=call)
        self.kept: dict[tuple[str, int, str], Measurement] = {}
        self.generated = self.measured = 0

    @staticmethod
    def contender(label):
        module = SimpleNamespace(code="1")
        candidate = SimpleNamespace(label=label)
        return SimpleNamespace(
            candidate=candidate, graph=None, branch=None, module_at=lambda point: module
        )

    def rows(self):
        time = lambda: self.draw.choice([1.0, 1.05, 1.3, 2.0, 3.0])  # noqa: E731
        for points in self.points:
            rows = [[Measurement(label, time()) for label in self.labels] for _ in points]
            probes = [(p.size, tuple(row)) for p, row in zip(points, rows, strict=True)]
            yield Measured(tuple(probes), tuple(combine(rows)))

    def merge(self, winners):
        pairs = list(zip(self.ranges, winners, strict=True))
        return [merged for merged, _ in merge_neighbours(pairs, lambda a, b: a == b)]

    def find(self, label, point, branch=""):
        return self.kept.get((label, point.size, branch))

    def put(self, label, point, measurement, branch=""):
        self.kept[label, point.size, branch] = measurement

    def save(self):
        pass

    def generate(self, bench, contender, point, known=None):
        self.generated += 1
        module = SimpleNamespace(function=lambda: None, serves=lambda point: True)
        return SimpleNamespace(code=str(self.draw.randint(1, 3)), compile=lambda: module)

    def measure(self, bench, contenders, point):
        self.measured += len(contenders)
        time = lambda: self.draw.choice([0.5, 1.0, 1.05, 1.3, 2.0, 4.0])  # noqa: E731
        return [Measurement(c.candidate.label, time()) for c in contenders]

    @contextlib.contextmanager
    def instead(self):
        with (
            mock.patch.multiple(tuner, generate=self.generate, measure=self.measure),
            mock.patch.object(as_generated, "Contender", self.entrant),
            mock.patch.object(as_generated, "number_of_kernels", int),
            mock.patch.object(as_generated, "compiled_together", self.together),
        ):
            yield

    def entrant(self, candidate, trace, modules, branch):
        return SimpleNamespace(candidate=candidate, branch=branch)

    @contextlib.contextmanager
    def together(self):
        yield lambda function: None


class DrawnTest(RangeDispatchTestCase):
    @parametrize("device", ["cpu", "cuda"])
    @parametrize("beats_the_op", [None, False])
    def test_any_times(self, device, beats_the_op):
        """No order of events fails, and what was recorded leads to the same plan.

        If no plan beats the op itself everywhere, which is hardly ever drawn, all of the first
        plan is generated as it was measured.
        """
        if beats_the_op is not None:
            never = mock.patch.object(Ranking, "_beats_the_op", lambda *args: beats_the_op)
            never.start()
            self.addCleanup(never.stop)
        rules = Rules(OP_LABEL, noise=0.02)
        self.seen = Counter()
        for seed in range(400):
            drawn = Drawn(seed, device)
            measured = list(drawn.rows())
            known = lambda branch: Known({}, {}, frozenset())  # noqa: E731
            branches = Branches(drawn.ranges, drawn.merge, known, sympy.Symbol("s"))
            limits = {
                "remeasure_margin": drawn.draw.choice([0.1, 1.0]),
                "remeasure_most": drawn.draw.choice([0, 1, 3, 6]),
            }
            plans = []
            for _ in ("cold", "warm"):
                done = drawn.generated, drawn.measured
                ranking = Ranking(drawn, branches, drawn.points, measured, rules)
                with drawn.instead(), config.patch(**limits):
                    plans.append(self.check_ranking(ranking, drawn))
                self.assertLessEqual(len(ranking._tied), limits["remeasure_most"])
            self.assertEqual(plans[0], plans[1])
            self.assertEqual((drawn.generated, drawn.measured), done)
        expected = ["changed", "as for all sizes"]
        expected.append("restless" if beats_the_op is None else "last resort")
        for what in expected:
            self.assertGreater(self.seen[what], 4, what)

    def check_ranking(self, ranking, drawn):
        """Choose, and look at what is chosen: the times known, the winners, the general code."""
        before = choose([m.row for m in ranking.measured], ranking.rules)
        found, winners = ranking.choose_again(before)
        general = ranking.for_all_sizes(winners)
        starts = [range.start for range in drawn.ranges]
        cells = {(winners[starts.index(r.start)], r) for r in drawn.merge(winners)}
        self.assertTrue(set(general) <= cells)
        for row, winner in zip((m.row for m in found), winners, strict=True):
            times = {m.label: m.milliseconds for m in row}
            self.assertLessEqual(times[winner], times[OP_LABEL])
        restless = winners != choose([m.row for m in found], ranking.rules)
        if ranking._all_general:
            self.assertEqual((winners, set(general)), (before, cells))
        elif restless and ranking._beats_the_op(before):
            ours, first = map(ranking._relative_time, (winners, before))
            self.assertLessEqual(ours, first)
        self.seen["changed"] += winners != before
        self.seen["as for all sizes"] += bool(general)
        self.seen["restless"] += restless
        self.seen["last resort"] += ranking._all_general
        return found, winners, general

    @parametrize("small,is_slower", [(1.5, True), (1.05, False)])
    def test_each_probe_counts_alike(self, small, is_slower):
        """Code for many rows that gains a little there may lose much more for few."""
        drawn = Drawn(0, "cuda")
        drawn.ranges, label = ranges_from_split_points([8]), drawn.labels[0]
        drawn.points = [[Point(8, {})], [Point(4096, {})]]
        first, own = (1.0, 100.0), (small, 94.0)
        rows = [(Measurement(label, time),) for time in first]
        measured = [
            Measured(((at[0].size, row),), row) for at, row in zip(drawn.points, rows, strict=True)
        ]
        known = lambda branch: Known({}, {}, frozenset())  # noqa: E731
        branches = Branches(drawn.ranges, drawn.merge, known, sympy.Symbol("s"))
        ranking = Ranking(drawn, branches, drawn.points, measured, Rules(OP_LABEL, noise=0.02))
        (branch,) = drawn.merge([label, label])
        for place, time in enumerate(own):
            ranking._times[place, (label, branch)] = [Measurement(label, time)]
        slower = [(label, branch)] if is_slower else []
        self.assertEqual(list(ranking.for_all_sizes([label, label])), slower)

    def test_what_is_made_for_many_rows_is_slow_for_few(self):
        """A loss over 32768 classes, in microseconds, as an H100 took for it."""
        drawn = Drawn(0, "cuda")
        drawn.ranges = ranges_from_split_points([16, 64, 256, 1024, 4096])
        sizes = (16, 64, 256, 1024, 4096, 16384)
        drawn.points = [[Point(size, {})] for size in sizes]
        times = {
            "plain": (8.1, 8.3, 15.9, 59.8, 215.4, 847.6),
            "chunks=8": (6.0, 10.2, 24.2, 75.8, 275.5, 1075.5),
            "chunks=64": (6.3, 8.4, 14.8, 47.4, 170.6, 658.0),
        }
        for_many = {64: 12.5, 256: 18.1, 1024: 47.4, 4096: 164.0, 16384: 632.0}
        drawn.contenders = [drawn.contender(label) for label in times]
        measured = []
        for place, at in enumerate(drawn.points):
            row = tuple(Measurement(label, time[place]) for label, time in times.items())
            measured.append(Measured(((at[0].size, row),), row))

        def measure(bench, contenders, point):
            own = {}
            for label, branch in ((c.candidate.label, c.branch) for c in contenders):
                many = label == "chunks=64" and branch is not None and branch.end == math.inf
                place = sizes.index(point.size)
                own[label] = for_many[point.size] if many else times[label][place]
            return [Measurement(label, time) for label, time in own.items()]

        known = lambda branch: Known({}, {}, frozenset())  # noqa: E731
        branches = Branches(drawn.ranges, drawn.merge, known, sympy.Symbol("s"))
        rules = Rules(OP_LABEL, noise=0.02)
        for margin in (0.1, 1.0):
            ranking = Ranking(drawn, branches, drawn.points, measured, rules)
            limits = config.patch(remeasure_margin=margin, remeasure_most=20)
            with drawn.instead(), mock.patch.object(tuner, "measure", measure), limits:
                _, winners = ranking.choose_again(choose([m.row for m in measured], rules))
            self.assertEqual(winners, ["chunks=8", *["chunks=64"] * 5])
            general = [(label, branch.start) for label, branch in ranking.for_all_sizes(winners)]
            self.assertEqual(general, [("chunks=64", 17)])


class RecordedTest(AsGeneratedTestCase):
    def setUp(self) -> None:
        super().setUp()
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(config.patch(use_records=True, records_folder=str(self.folder)))
        stack.enter_context(
            mock.patch(
                "torch._inductor.kernel.range_dispatch.signature.cache_dir",
                return_value=str(self.folder / "cache"),
            )
        )
        self.addCleanup(records.forget)
        records.forget()

    def generated(self):
        """The names of all benchmark modules that are generated."""
        names = []
        real = tuner.generate_for_benchmark

        def noting(*args):
            names.append(args[4])
            return real(*args)

        patched = mock.patch.object(tuner, "generate_for_benchmark", noting)
        return names, patched

    def warm(self, first, deterministic):
        """As ``tune`` in a new process, which may neither measure nor generate a module."""
        records.forget()
        names, noting = self.generated()
        fails = mock.patch.object(tuner, "measure", side_effect=AssertionError("measured"))
        with (
            noting,
            config.patch(deterministic=deterministic),
            mock.patch.object(self, "times", lambda *args: fails),
        ):
            found = self.tune(first)
        self.assertEqual(names, [])
        return found

    @parametrize("deterministic", [False, True])
    @parametrize("own", [0.5, 5.0])
    def test_a_warm_process_knows_winners_with_other_kernels(self, own, deterministic):
        self.register()
        with other_kernels(str):
            _, cold = self.tune(CLEAR, {("two", "[0, 8]"): own})
            _, warm = self.warm(CLEAR, deterministic)
        parallel = [len(PARALLEL.findall(code)) for code in (cold, warm)]
        self.assertEqual(parallel, [1, 1] if own < 1 else [2, 2])

    @parametrize("deterministic", [False, True])
    def test_a_warm_process_measures_and_generates_nothing(self, deterministic):
        self.register()
        again = {("three", "[0, 8]"): 0.5}
        cold, _ = self.tune(TIED, again)
        self.assertEqual(self.asked, ASKED)
        warm, _ = self.warm(TIED, deterministic)
        self.assertEqual(warm.origin, "recorded")
        self.assertEqual(
            (warm.chosen, [r.as_generated for r in warm.results]),
            (cold.chosen, [r.as_generated for r in cold.results]),
        )

    def test_the_same_code_is_not_generated_again(self):
        self.register()
        names, noting = self.generated()
        with noting:
            self.tune(SAME)
            self.assertEqual(set(names), {"one", "two"})
            names.clear()
            records.forget()
            self.tune(SAME)
        self.assertEqual((names, self.asked), ([], []))

    def test_times_of_another_branch_are_not_taken(self):
        self.register()
        self.tune(TIED, {("three", "[0, 8]"): 0.5})
        self.asked.clear()
        self.register(split_points=[2 * SMALL, MIDDLE], probe_sizes=[SMALL, MIDDLE, LARGE])
        plan, _ = self.tune(TIED)
        branch = "[0, 16]"
        self.assertEqual(self.asked, [("two", branch, SMALL), ("three", branch, SMALL)])
        self.assertEqual(plan.results[0].winner, "two")

    def test_a_deterministic_process_measures_nothing(self):
        self.register()
        with config.patch(remeasure_margin=0.0):
            self.tune(TIED)
        with config.patch(deterministic=True):
            plan, _ = self.tune(TIED, {("three", "[0, 8]"): 0.5})
        self.assertEqual((self.asked, self.chosen(plan)), ([], APART))


instantiate_parametrized_tests(AsGeneratedTest)
instantiate_parametrized_tests(DrawnTest)
instantiate_parametrized_tests(RecordedTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests()
