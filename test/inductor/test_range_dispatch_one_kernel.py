# Owner(s): ["module: inductor"]
"""A dispatch between pointwise branches in one kernel, where that is no slower."""

import contextlib
import functools
import re
import tempfile
from pathlib import Path
from unittest import mock

from range_dispatch_common import (
    config,
    counters,
    define_op,
    DEVICES,
    final_code,
    force_winners,
    HAS_CPU,
    HAS_GPU,
    inductor_config,
    OP_LABEL,
    predicates,
    RangeDispatchTestCase,
    report,
)

import torch
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
from torch._inductor.kernel.range_dispatch import one_kernel, records, tuner
from torch._inductor.kernel.range_dispatch.choosing import Measurement
from torch._inductor.kernel.range_dispatch.plan import Plan
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


WIDTH = 33
END, NEXT, LARGE = 4, 8, 16


def one(x, w):
    return x * w + 1.0


def two(x, w):
    return (w * x).sin()


def three(x, w):
    return torch.where(x > w, x, w)


def total(x, w):
    return x * w + (x * w).sum()


def alone(x, w):
    return x + 1.0


SIZES = (5, 2, 3, END, END + 1, NEXT, NEXT + 1, 20)
EACH = {END: "one", NEXT: "two", LARGE: "three"}


@contextlib.contextmanager
def unified_takes(milliseconds, winners=EACH):
    """Fake the timings: at each probe its winner takes 1, the one kernel this, and all else 2."""
    rows = []

    def fake(bench, contenders, point):
        labels = [contender.candidate.label for contender in contenders]
        rows.append((point.size, labels))
        times = {winners[point.size]: 1.0, one_kernel.LABEL: milliseconds}
        return [Measurement(label, times.get(label, 2.0)) for label in labels]

    with mock.patch.object(tuner, "measure", fake):
        yield rows


class OneKernelTestCase(RangeDispatchTestCase):
    vectors = True

    def setUp(self) -> None:
        super().setUp()
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        stack.enter_context(config.patch(unified_pointwise=True))

    def register(self, *functions, op=None, **options):
        schema = "(Tensor x, Tensor w) -> Tensor"
        fake = lambda x, w: torch.empty_like(x)  # noqa: E731
        self.op = op or define_op("unified", lambda x, w: x * w, fake, schema=schema)
        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(f) for f in functions],
            **{
                "dispatch_on": {"tensor_name": "x", "dim": 0, "range_upper_bound": LARGE},
                "split_points": [END, NEXT],
                **options,
            },
        )

    def inputs(self, rows, device="cpu", dtype=torch.float32):
        x = torch.randn(rows, WIDTH, device=device).to(dtype)
        return x, torch.randn(WIDTH, device=device).to(dtype)

    def check_sizes(self, compiled, expected, inputs, **tolerance):
        for rows in SIZES:
            args = inputs(rows)
            self.assertEqual(compiled(*args), expected(rows)(*args), **tolerance)
        self.assertEqual(counters["stats"]["unique_graphs"], 1)


def at(rows):
    return one if rows <= END else two if rows <= NEXT else three


def kernels(code):
    return re.findall(r"async_compile\.(?:cpp_pybinding|triton)\(", code)


class OneKernelTest(OneKernelTestCase):
    @parametrize("device", DEVICES)
    @parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_one_kernel_and_no_comparison_in_the_wrapper(self, device, dtype):
        self.register(one, two, three)
        function = lambda x, w: self.op(x + 1, w) * 2  # noqa: E731
        compiled = torch.compile(function, dynamic=True, fullgraph=True)
        inputs = functools.partial(self.inputs, device=device, dtype=dtype)
        with unified_takes(1.0) as rows:
            code = final_code(compiled, *inputs(5))
        measured = [(size, [label, one_kernel.LABEL]) for size, label in EACH.items()]
        self.assertEqual(sorted(rows[3:]), measured)
        self.assertEqual((len(kernels(code)), predicates(code)), (1, []))
        self.assertNotRegex(code.split("def call")[1], r"\bif s\d+")
        tolerance = {"atol": 0.1, "rtol": 0.02} if dtype is torch.bfloat16 else {}
        self.check_sizes(
            compiled, lambda rows: lambda x, w: at(rows)(x + 1, w) * 2, inputs, **tolerance
        )
        (plan,) = report.plans()
        self.assertTrue(plan.one_kernel)
        self.assertIn("in one kernel: [0, 4] one; [5, 8] two; [9, inf] three", str(plan))
        self.assertEqual(Plan.from_json(plan.to_json()), plan)

    @parametrize("device", DEVICES)
    def test_what_all_branches_read_is_read_once(self, device):
        self.register(one, two, three)
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        with unified_takes(1.0):
            code = final_code(compiled, *self.inputs(5, device))
        if device == "cpu":
            # A loop over whole vectors, and what is left of a row.
            loads = re.findall(r"in_ptr\d(?: \+|\[)", code)
            self.assertEqual(len(loads), 2 * len(re.findall(r"out_ptr0(?: \+|\[)", code)))
        else:
            self.assertEqual(len(re.findall(r"tl\.load\(in_ptr", code)), 2)

    @parametrize("device", DEVICES)
    def test_loads_of_branches_not_taken_are_masked(self, device):
        def column(x, w):
            return x[:, :1] * w

        self.register(one, column)
        winners = {END: "one", NEXT: "column", LARGE: "one"}
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        with unified_takes(1.0, winners):
            code = final_code(compiled, *self.inputs(5, device))
        masked = device != "cpu"
        self.assertEqual(report.plans()[0].one_kernel, masked)
        self.assertEqual(predicates(code), [] if masked else [END, NEXT])
        if masked:
            loads = re.findall(r"tl\.load\(in_ptr.*\)", code)
            self.assertGreaterEqual(len(loads), 4)
            for load in loads:
                self.assertRegex(load, r", .*\btmp\d+")
        self.check_sizes(
            compiled,
            lambda rows: column if END < rows <= NEXT else one,
            functools.partial(self.inputs, device=device),
        )

    @parametrize("device", DEVICES)
    def test_nothing_of_a_branch_not_taken_shows(self, device):
        def infinite(x, w):
            return x / (w - w) + x.log()

        def plain(x, w):
            return x * w

        self.register(plain, infinite)
        winners = {END: "plain", NEXT: "infinite", LARGE: "plain"}
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        with unified_takes(1.0, winners):
            compiled(*self.inputs(5, device))
        self.assertTrue(report.plans()[0].one_kernel)
        self.check_sizes(
            compiled,
            lambda rows: infinite if END < rows <= NEXT else plain,
            functools.partial(self.inputs, device=device),
        )

    @parametrize("device", DEVICES)
    def test_a_division_by_zero_that_is_not_reached(self, device):
        def quotient(x, w):
            return x // w

        def product(x, w):
            return x * w

        self.register(product, quotient)
        winners = {END: "product", NEXT: "quotient", LARGE: "product"}
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)

        def inputs(rows):
            x = torch.arange(rows * WIDTH, device=device).reshape(rows, WIDTH)
            divided = END < rows <= NEXT
            return x, torch.full((WIDTH,), 3 if divided else 0, device=device)

        with unified_takes(1.0, winners):
            compiled(*inputs(5))
        self.assertEqual(report.plans()[0].one_kernel, device != "cpu")
        self.check_sizes(compiled, lambda rows: quotient if END < rows <= NEXT else product, inputs)

    @parametrize("milliseconds,used", [(1.0, True), (1.01, True), (1.1, False), (0.5, True)])
    def test_only_where_it_is_no_slower(self, milliseconds, used):
        self.register(one, two, three)
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        with unified_takes(milliseconds):
            code = final_code(compiled, *self.inputs(5))
        self.assertEqual(report.plans()[0].one_kernel, used)
        self.assertEqual(predicates(code), [] if used else [END, NEXT])
        self.check_sizes(compiled, at, self.inputs)

    def test_slower_at_one_probe(self):
        self.register(one, two, three)

        def slower_at_the_end(bench, contenders, point):
            times = {EACH[point.size]: 1.0, one_kernel.LABEL: 1.0 + (point.size == LARGE)}
            labels = [c.candidate.label for c in contenders]
            return [Measurement(label, times.get(label, 3.0)) for label in labels]

        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        with mock.patch.object(tuner, "measure", slower_at_the_end):
            code = final_code(compiled, *self.inputs(5))
        self.assertEqual(predicates(code), [END, NEXT])

    @parametrize(
        "other,why",
        [
            (total, "is not computed element by element"),
            (alone, "not all branches read the same"),
            (OP_LABEL, None),
        ],
    )
    def test_other_branches_stay_apart(self, other, why):
        label = other if isinstance(other, str) else other.__name__
        self.register(one, *([] if why is None else [other]))
        winners = {END: "one", NEXT: label, LARGE: "one"}
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        with (
            unified_takes(0.1, winners) as rows,
            self.assertLogs("torch._inductor", "DEBUG") as log,
        ):
            code = final_code(compiled, *self.inputs(5))
        self.assertEqual(predicates(code), [END, NEXT])
        self.assertEqual(len(rows), 3)
        if why is not None:
            self.assertRegex("\n".join(log.output), f"branches stay apart: .*{why}")

    def test_config_patches_keep_branches_apart(self):
        self.register(one)
        self.op = define_op("patched", lambda x, w: x * w, schema="(Tensor x, Tensor w) -> Tensor")
        patched = CustomOpConfig(two, config_patches={"cpp.simdlen": 1})
        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(one), patched],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": LARGE},
            split_points=[END],
        )
        labels = {END: "one", LARGE: "two"}
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        with unified_takes(0.1, labels):
            code = final_code(compiled, *self.inputs(5))
        self.assertEqual(predicates(code), [END])

    @parametrize("switch", ["unified_pointwise", "force_no_merge"])
    def test_switches(self, switch):
        self.register(one, two, three)
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        off = config.patch({switch: switch == "force_no_merge"})
        with unified_takes(0.1) as rows, off:
            code = final_code(compiled, *self.inputs(5))
        self.assertEqual((predicates(code), len(rows)), ([END, NEXT], 3))

    def test_what_cannot_be_made_stays_apart(self):
        self.register(one, two, three)
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        refusing = mock.patch.object(one_kernel, "_loops", side_effect=one_kernel.Apart("no"))
        with force_winners(EACH), refusing:
            code = final_code(compiled, *self.inputs(5))
        self.assertEqual(predicates(code), [END, NEXT])
        self.check_sizes(compiled, at, self.inputs)

    @parametrize("device", DEVICES)
    def test_several_outputs_and_a_reduction_behind(self, device):
        def both(x, w):
            return x * w, x + w

        def exchanged(x, w):
            return w * x, w + x + 1.0

        op = define_op(
            "unified_pair",
            both,
            lambda x, w: (torch.empty_like(x), torch.empty_like(x)),
            schema="(Tensor x, Tensor w) -> (Tensor, Tensor)",
        )
        self.register(both, exchanged, op=op, split_points=[END])
        labels = {END: "both", LARGE: "exchanged"}

        def function(x, w):
            first, second = self.op(x, w)
            return first.relu(), second.sum(1), second

        compiled = torch.compile(function, dynamic=True, fullgraph=True)
        inputs = functools.partial(self.inputs, device=device)
        with unified_takes(1.0, labels):
            code = final_code(compiled, *inputs(5))
        self.assertTrue(report.plans()[0].one_kernel)
        self.assertEqual(predicates(code), [])

        def expected(rows):
            def run(x, w):
                first, second = both(x, w) if rows <= END else exchanged(x, w)
                return first.relu(), second.sum(1), second

            return run

        self.check_sizes(compiled, expected, inputs)

    @parametrize("device", DEVICES)
    def test_measured(self, device):
        """For real: whatever comes out, the answers are the op's."""

        def added(x, w):
            return w * x + 0.0

        self.register(added, lambda x, w: x * (w + 0.0))
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        real = tuner.measure
        seen = []

        def noting(bench, contenders, point):
            row = real(bench, contenders, point)
            labels = [c.candidate.label for c in contenders]
            if one_kernel.LABEL in labels:
                seen.extend(row)
                return [Measurement(m.label, 1.0, error=m.error) for m in row]
            times = {"added" if point.size == NEXT else "<lambda>": 1.0}
            return [Measurement(m.label, times.get(m.label, 2.0), error=m.error) for m in row]

        quick = config.patch(tuning_rounds=1, tuning_budget_ms=0.01)
        with quick, mock.patch.object(tuner, "measure", noting):
            compiled(*self.inputs(5, device))
        self.assertEqual([m.error for m in seen], [None] * 6)
        self.assertTrue(all(m.milliseconds > 0 for m in seen))
        self.assertTrue(report.plans()[0].one_kernel)
        self.check_sizes(
            compiled, lambda rows: lambda x, w: x * w, functools.partial(self.inputs, device=device)
        )

    @parametrize("device", DEVICES)
    def test_with_the_cpp_wrapper(self, device):
        self.register(one, two, three)
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        inputs = functools.partial(self.inputs, device=device)
        with unified_takes(1.0), inductor_config.patch(cpp_wrapper=True):
            compiled(*inputs(5))
            self.assertTrue(report.plans()[0].one_kernel)
            self.check_sizes(compiled, at, inputs)


class RecordedTest(OneKernelTestCase):
    def setUp(self) -> None:
        super().setUp()
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(config.patch(use_records=True, records_folder=str(folder)))
        where = "torch._inductor.kernel.range_dispatch.signature.cache_dir"
        self.enterContext(mock.patch(where, return_value=str(folder / "cache")))
        records.forget()
        self.addCleanup(records.forget)

    def compile(self):
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, w: self.op(x, w), dynamic=True, fullgraph=True)
        compiled(*self.inputs(5))
        return report.plans()[-1]

    @parametrize("milliseconds", [1.0, 1.5])
    @parametrize("deterministic", [False, True])
    def test_a_warm_process_measures_and_compiles_nothing(self, milliseconds, deterministic):
        self.register(one, two, three)
        with unified_takes(milliseconds):
            cold = self.compile()
        self.assertEqual(cold.one_kernel, milliseconds == 1.0)
        records.forget()
        with (
            mock.patch.object(tuner, "measure", side_effect=AssertionError("measured")),
            mock.patch.object(one_kernel, "_compiled", side_effect=AssertionError("compiled")),
            config.patch(deterministic=deterministic),
        ):
            warm = self.compile()
        self.assertEqual((warm.one_kernel, warm.chosen), (cold.one_kernel, cold.chosen))
        self.assertEqual(warm.origin, "recorded")

    def test_that_it_cannot_be_made_is_on_record(self):
        self.register(one, two, three)
        fails = mock.patch.object(one_kernel, "_compiled", side_effect=RuntimeError("no"))
        with unified_takes(1.0), fails as asked:
            self.assertFalse(self.compile().one_kernel)
            self.assertFalse(self.compile().one_kernel)
        self.assertEqual(asked.call_count, 1)

    def test_of_other_branches_nothing_is_on_record(self):
        self.register(one, two, three)
        with unified_takes(1.0):
            self.compile()
        self.register(one, two, three, split_points=[END - 1, NEXT], probe_sizes=[3, NEXT, LARGE])
        with unified_takes(1.5, {3: "one", **EACH}) as rows:
            self.assertFalse(self.compile().one_kernel)
        self.assertEqual(
            sorted(labels[0] for _, labels in rows if labels[1:] == [one_kernel.LABEL]),
            ["one", "three", "two"],
        )

    def test_without_records_a_deterministic_process_keeps_them_apart(self):
        self.register(one, two, three)
        with unified_takes(1.0), config.patch(unified_pointwise=False):
            self.compile()
        with config.patch(deterministic=True):
            self.assertFalse(self.compile().one_kernel)


instantiate_parametrized_tests(OneKernelTest)
instantiate_parametrized_tests(RecordedTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests()
