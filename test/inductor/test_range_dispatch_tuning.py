# Owner(s): ["module: inductor"]
"""The tuning engine: right answers only, faults, the grid's probes, early stop, timing."""

import ast
import contextlib
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import sympy
from range_dispatch_common import (
    config,
    custom_op,
    define_op,
    DEVICES,
    force_winners,
    GPU_TYPE,
    HAS_CPU,
    HAS_GPU,
    OP_LABEL,
    RangeDispatchTestCase,
    report,
)

import torch
from torch._inductor import config as inductor_config
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import LambdaFuture
from torch._inductor.exc import CppCompileError
from torch._inductor.graph import GraphLowering
from torch._inductor.kernel.custom_op import (
    custom_op_autotuning,
    CustomOpConfig,
    register_custom_op_autotuning,
)
from torch._inductor.kernel.range_dispatch import (
    benchmark_module,
    compiling,
    inputs,
    records,
    row,
    timing,
    tuner,
    verify,
    worker,
)
from torch._inductor.kernel.range_dispatch.choosing import combine, Measurement, rule_out
from torch._inductor.kernel.range_dispatch.inputs import Point
from torch._inductor.test_case import TestCase
from torch._inductor.utils import fresh_cache
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


WRONG_FROM = 6  # rows
SLOW_S = 0.05


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x.double().mul(2).to(x.dtype)


def right(x):
    return x + x


def reordered(x):
    return x * 3.0 - x


def by_relu(x):
    return 2 * (torch.relu(x) - torch.relu(-x))


def wrong(x):
    return x + x + (x > 1.5) * 0.01


def undefined(x):
    return (x - x[0]) / (x - x[0]) * (x + x)


def raising(x):
    return torch.ops.range_dispatch_tuning.raises(x)


def slow(x):
    return torch.ops.range_dispatch_tuning.sleeps(x)


def unwritten(x):
    out = torch.empty_like(x)
    out[1:] = x[1:] + x[1:]
    return out


def unwritten_in_op(x):
    return torch.ops.range_dispatch_tuning.leaves_one(x)


def waiting(x):
    return torch.ops.range_dispatch_tuning.waits(x)


def lucky(x):
    return torch.ops.range_dispatch_tuning.lucky(x)


def greedy(x):
    return torch.ops.range_dispatch_tuning.takes_all_memory(x)


def holding(x):
    return torch.ops.range_dispatch_tuning.holds(x)


def aborting(x):
    return torch.ops.range_dispatch_tuning.aborts(x)


def exiting(x):
    return torch.ops.range_dispatch_tuning.exits(x)


def hanging(x):
    return torch.ops.range_dispatch_tuning.hangs(x)


def fallible(name, function):
    op = torch.library.custom_op(f"range_dispatch_tuning::{name}", function, mutates_args=())
    op.register_fake(torch.empty_like)
    return op


def _raises(x: torch.Tensor) -> torch.Tensor:
    if len(x) > WRONG_FROM:
        raise torch.OutOfMemoryError("no memory for this size")
    return x + x


def _sleeps(x: torch.Tensor) -> torch.Tensor:
    time.sleep(SLOW_S)
    return x + x


def _leaves_one(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    torch.add(x[1:], x[1:], out=out[1:])
    return out


def _lucky(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    expected = x + x
    # Where memory was not written since, it often holds what the op before left there.
    return torch.where(out.isnan(), out, expected)


def _waits(x: torch.Tensor) -> torch.Tensor:
    return x * int(x.new_full((), 2.0).item())


def _takes_all_memory(x: torch.Tensor) -> torch.Tensor:
    if len(x) > WRONG_FROM:
        torch.empty(1 << 55, dtype=torch.uint8, device=x.device)
    return x + x


held: list[weakref.ref] = []


def _holds(x: torch.Tensor) -> torch.Tensor:
    buffer = torch.empty(1000)
    held.append(weakref.ref(buffer))
    raise ValueError("after it allocated")


def _aborts(x: torch.Tensor) -> torch.Tensor:
    if len(x) > WRONG_FROM:
        os.abort()
    return x + x


def _exits(x: torch.Tensor) -> torch.Tensor:
    os._exit(7)


def _hangs(x: torch.Tensor) -> torch.Tensor:
    if len(x) > WRONG_FROM:
        time.sleep(1000)
    return x + x


_ops = [
    fallible(function.__name__.removeprefix("_"), function)
    for function in (
        _raises,
        _sleeps,
        _leaves_one,
        _lucky,
        _waits,
        _takes_all_memory,
        _holds,
        _aborts,
        _exits,
        _hangs,
    )
]


class TuningTestCase(RangeDispatchTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.op = define_op("doubled", doubled)
        torch._logging.warning_once.cache_clear()

    def tune(self, *functions, n=3, device="cpu", split_points=(4,), top=8, **options):
        """Compile a call of the op and run it at each range; the plan."""
        register_custom_op_autotuning(
            self.op,
            configs=[f if isinstance(f, CustomOpConfig) else CustomOpConfig(f) for f in functions],
            **{
                "dispatch_on": {"tensor_name": "x", "dim": 0, "range_upper_bound": top},
                "split_points": list(split_points) or None,
                **options,
            },
        )
        torch._dynamo.reset()  # or what was compiled of the lambda with others is what runs
        compiled = torch.compile(lambda x: self.op(x), dynamic=True, fullgraph=True)
        for size in (n, 5, 20):
            x = torch.randn(size, 6, device=device)
            self.check(compiled, self.op, x)
        return report.plans()[-1]

    def errors(self, plan):
        """By candidate what is wrong with it in each range."""
        return {
            label: [
                next((m.error or "" for m in r.measurements if m.label == label), None)
                for r in plan.results
            ]
            for label in {m.label for r in plan.results for m in r.measurements}
        }


class RightAnswersTest(TuningTestCase):
    @parametrize("device", DEVICES)
    def test_a_wrong_answer_is_out_everywhere_with_one_warning(self, device):
        with self.assertLogs(custom_op.log, "WARNING") as logged:
            plan = self.tune(wrong, right, device=device)
        (message,) = logged.output
        self.assertRegex(
            message,
            r"doubled.* wrong is not used: in \[0, 4\], it gives another answer than the op at "
            r"size 4: output 0 .*largest absolute error 0.01, largest relative error 0.00",
        )
        self.assertTrue(all(self.errors(plan)["wrong"]))
        self.assertNotIn("wrong", [label for _, label in plan.chosen])
        self.assertEqual(self.errors(plan)["right"], ["", ""])
        self.assertEqual([label for label, _ in plan.rejected], ["wrong"])

    def test_wrong_at_one_probe_is_out_at_all(self):
        def sometimes(x):
            return torch.ops.range_dispatch_tuning.sometimes(x)

        _kept = fallible("sometimes", lambda_with_types(lambda x: x * (2 if len(x) < 6 else 3)))
        plan = self.tune(sometimes)
        self.assertRegex(self.errors(plan)["sometimes"][0], "another answer than the op at size 8")
        self.assertRegex(
            plan.rejected[0][1], r"in \[5, inf\], it gives another answer than the op at size 8"
        )
        self.assertEqual([label for _, label in plan.chosen], [OP_LABEL])

    def test_nan_where_the_op_has_none(self):
        plan = self.tune(undefined)
        self.assertRegex(plan.rejected[0][1], "absolute error nan")

    def test_within_the_tolerance(self):
        plan = self.tune(reordered)
        self.assertEqual(self.errors(plan)["reordered"], ["", ""])

    def test_the_op_is_run_to_compare_even_if_it_does_not_compete(self):
        plan = self.tune(wrong, right, include_fallback=False)
        self.assertEqual([label for label, _ in plan.rejected], ["wrong"])
        self.assertEqual([label for _, label in plan.chosen], ["right"])

    def test_nothing_left_is_the_op_itself(self):
        def wrong_too(x):
            return x * 2.5

        plan = self.tune(wrong, wrong_too, include_fallback=False)
        self.assertEqual([label for _, label in plan.chosen], [OP_LABEL])

    def test_tolerances_of_the_registration(self):
        for check, out in ((True, True), (False, False), ({torch.float32: 0.1}, False)):
            with custom_op_autotuning(
                self.op, configs=[CustomOpConfig(wrong)], check=check, name=f"check_{out}"
            ):
                torch._dynamo.reset()
                torch.compile(lambda x: self.op(x))(torch.randn(8, 6))
            (result,) = report.plans()[-1].results
            self.assertEqual(result.measurements[0].error is not None, out)

    @parametrize("dtype,out", [(torch.bfloat16, False), (torch.float32, True)])
    def test_a_wide_output_is_as_exact_as_the_tensors_it_is_made_of(self, dtype, out):
        def total(x: torch.Tensor) -> torch.Tensor:
            return x.float().square().sum(-1)

        def rounded(x):
            return x.float().square().sum(-1) * 1.005

        op = define_op("total", total, fake=lambda x: x.new_empty(len(x), dtype=torch.float32))
        register_custom_op_autotuning(op, configs=[CustomOpConfig(rounded)])
        torch.compile(lambda x: op(x))(torch.randn(8, 3, dtype=dtype))
        (result,) = report.plans()[0].results
        self.assertEqual(result.measurements[0].error is not None, out)

    def test_an_op_that_draws_random_numbers_is_not_compared(self):
        def noisy(x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

        op = define_op("noisy", noisy)
        register_custom_op_autotuning(op, configs=[CustomOpConfig(lambda x: x + 0.5)])
        torch.compile(lambda x: op(x))(torch.randn(8, 6))
        (result,) = report.plans()[0].results
        self.assertIsNone(result.measurements[0].error)

    @parametrize("device", DEVICES)
    def test_an_unwritten_element_shows(self, device):
        x = torch.arange(4.0, device=device)
        scope = {"empty_strided_cpu": lambda *args: x.clone(), "torch": torch}
        exec("def call():\n    return empty_strided_cpu()", scope)
        with verify.poisoned_allocations(scope["call"]):
            self.assertTrue(scope["call"]().isnan().all())
        self.assertEqual(scope["call"](), x)

    @parametrize("device", DEVICES)
    @parametrize("implementation", [unwritten, unwritten_in_op])
    def test_an_implementation_that_leaves_an_element_unwritten_is_out(
        self, device, implementation
    ):
        for _ in range(3):  # what the allocator hands out must not matter
            custom_op.unregister_custom_op_autotuning(self.op)
            torch._dynamo.reset()
            torch._logging.warning_once.cache_clear()
            with self.assertLogs(custom_op.log, "WARNING") as logged:
                plan = self.tune(implementation, right, device=device)
            (message,) = logged.output
            self.assertIn(f"{implementation.__name__} is not used: in [0, 4], it gives", message)
            self.assertEqual(self.errors(plan)["right"], ["", ""])
        self.assertFalse(torch.are_deterministic_algorithms_enabled())

    def test_memory_that_happens_to_hold_the_answer(self):
        plan = self.tune(lucky, right)
        for error in self.errors(plan)["lucky"]:
            self.assertRegex(error, "another answer than the op.*absolute error nan")

    @parametrize("dtype", [torch.float32, torch.float16, torch.int32])
    def test_what_a_custom_op_allocates_is_filled(self, dtype):
        keep = torch.utils.deterministic.fill_uninitialized_memory
        with verify.filled_allocations():
            made = torch.empty(1000, dtype=dtype)
        wanted = math.nan if dtype.is_floating_point else torch.iinfo(dtype).max
        self.assertEqual(made, torch.full((1000,), wanted, dtype=dtype))
        self.assertEqual(torch.utils.deterministic.fill_uninitialized_memory, keep)

    def test_generated_modules_allocate_poison(self):
        seen = []

        def noting(tensor):
            seen.append(tuple(tensor.shape))
            return verify_poison(tensor)

        verify_poison = verify.poison
        with mock.patch.object(verify, "poison", noting):
            self.tune(right)
        self.assertEqual(set(seen), {(4, 6), (8, 6)})

    @parametrize("dtype", [torch.int32, torch.bool, torch.uint8])
    def test_poisoned_integers(self, dtype):
        self.assertTrue((verify.poison(torch.zeros(3, dtype=dtype)) != 0).all())


def lambda_with_types(function):
    def typed(x: torch.Tensor) -> torch.Tensor:
        return function(x)

    return typed


class CompareTest(TestCase):
    def mismatch(self, ours, theirs, **tolerances):
        given = {getattr(torch, name): value for name, value in tolerances.items()}
        return verify.find_mismatch([ours], [theirs], given)

    @parametrize(
        "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
    )
    def test_tolerance_is_relative_to_the_element_or_the_rms(self, dtype):
        theirs = torch.tensor([1000.0, -1000.0, 1000.0, 0.0]).to(dtype)
        limit = verify.tolerance(dtype, {})
        for factor, fits in ((0.5, True), (2.0, False)):
            ours = theirs.clone()
            ours[3] = factor * limit * 1000.0 * math.sqrt(3 / 4)
            self.assertEqual(self.mismatch(ours, theirs) is None, fits)

    @parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
    @parametrize("line", ["row", "column"])
    def test_a_line_of_larger_values_counts_by_itself(self, dtype, line):
        """As of a channel with a large scale: near zero it is as inexact as elsewhere."""
        theirs = torch.ones(8, 64, 64)
        theirs[3, 5] = 1000.0
        theirs[3, 5, :7] = 0.0
        limit = verify.tolerance(dtype, {}) * 1000.0
        for place, factor, fits in (
            ((3, 5, 0), 0.5, True),  # in the line, where the others are as large
            ((3, 5, 0), 2.0, False),
            ((3, 6, 20), 0.5, False),  # beside the line
            ((3, 5, 0), math.nan, False),
        ):
            ours = theirs.clone()
            ours[place] += factor * limit
            given = [t.to(dtype) for t in (ours, theirs)]
            if line == "column":
                given = [t.reshape(-1, 64).t().contiguous() for t in given]
            with mock.patch.object(verify, "_CHUNK", 1 << 10):
                self.assertEqual(self.mismatch(*given) is None, fits, (place, factor))

    def test_tolerances_of_the_user_hold_as_they_are(self):
        half = torch.zeros(1, dtype=torch.float16)
        found = verify.tolerances_of([half, 1], {torch.float32: 1e-6})
        self.assertEqual((found[torch.float32], found[torch.float64]), (1e-6, 1e-2))
        self.assertEqual(verify.tolerances_of([half], {torch.float16: 0.5})[torch.float32], 0.5)

    def test_small_outputs_are_compared_at_their_scale(self):
        theirs = torch.full((4,), 1e-6)
        self.assertIsNotNone(self.mismatch(torch.zeros(4), theirs))
        self.assertIsNone(self.mismatch(theirs * (1 + 1e-5), theirs))

    def test_integers_are_exact_unless_the_user_says_otherwise(self):
        theirs = torch.tensor([1, 2**53], dtype=torch.int64)
        self.assertIsNotNone(self.mismatch(theirs + 1, theirs))
        self.assertIsNone(self.mismatch(theirs - 1, theirs, int64=1))
        mask = torch.tensor([True, False])
        self.assertIsNotNone(self.mismatch(~mask, mask))
        self.assertIsNone(self.mismatch(mask, mask))

    def test_nan_and_infinity(self):
        nan, inf = math.nan, math.inf
        theirs = torch.tensor([nan, inf, -inf, 1.0])
        self.assertIsNone(self.mismatch(theirs.clone(), theirs))
        for i, value in ((0, 1.0), (1, 1.0), (1, -inf), (3, nan), (3, inf)):
            ours = theirs.clone()
            ours[i] = value
            self.assertIsNotNone(self.mismatch(ours, theirs), f"{value} at {i}")

    def test_other_layouts_and_empty(self):
        theirs = torch.randn(3, 4).t()
        self.assertIsNone(self.mismatch(theirs.contiguous(), theirs))
        self.assertIsNone(self.mismatch(torch.empty(0), torch.empty(0)))

    def test_pieces(self):
        theirs = torch.randn(100)
        ours = theirs.clone()
        ours[70] += 1.0
        with mock.patch.object(verify, "_CHUNK", 16):
            found = self.mismatch(ours, theirs)
        self.assertEqual(round(found.absolute, 3), 1.0)

    def test_eight_bit_floats(self):
        theirs = torch.randn(64).to(torch.float8_e4m3fn)
        self.assertIsNone(self.mismatch(theirs.clone(), theirs))
        self.assertIsNotNone(self.mismatch((-theirs.float()).to(theirs.dtype), theirs))


# What a worker process of Inductor's sends back when a kernel does not compile.
IN_A_WORKER = """An exception occurred in a subprocess:

Name=triton_poi_fused_0
Traceback (most recent call last):
  File "worker.py", line 3, in compile
    kernel.compile()
triton.compiler.errors.CompilationError: at 4:8:
def triton_poi_fused_0(x):
    y = nothing(x)
        ^
NameError('nothing is not defined')
"""
SAID = {
    "plain": (KeyError("x"), "KeyError: 'x'"),
    "empty": (RuntimeError(), "RuntimeError"),
    "more lines": (
        RuntimeError("CUDA error: no device\nFor debugging consider"),
        "RuntimeError: CUDA error: no device",
    ),
    "gcc": (
        CppCompileError(["g++"], "a.cpp: In function 'f':\na.cpp:7:9: error: no member 'f'\n ^~"),
        "CppCompileError: C++ compile error: no member 'f'",
    ),
    "fatal": (
        CppCompileError(["g++"], "a.cpp:1:10: fatal error: x.h: No such file or directory"),
        "CppCompileError: C++ compile error: x.h: No such file or directory",
    ),
    "nvcc": (
        RuntimeError('it failed\na.cu(12): error: identifier "x" is undefined'),
        'RuntimeError: it failed: identifier "x" is undefined',
    ),
    "linker": (
        CppCompileError(["g++"], "/usr/bin/ld: cannot find -lnothing\ncollect2: ld returned 1"),
        "CppCompileError: C++ compile error: /usr/bin/ld: cannot find -lnothing",
    ),
    "worker": (
        RuntimeError(IN_A_WORKER),
        "RuntimeError: An exception occurred in a subprocess: "
        "triton.compiler.errors.CompilationError: at 4:8: NameError('nothing is not defined')",
    ),
    "long": (RuntimeError("x" * 500), f"RuntimeError: {'x' * 240}..."),
}


class FaultsTest(TuningTestCase):
    def test_out_for_the_range_in_which_it_fails(self):
        plan = self.tune(raising, right)
        first, second = self.errors(plan)["raising"]
        self.assertEqual(first, "")
        self.assertRegex(second, "fails at size 8: OutOfMemoryError: no memory for this size")
        self.assertEqual(plan.rejected, ())
        self.assertIn("failed", str(plan))

    @parametrize("device", DEVICES)
    def test_out_of_memory(self, device):
        plan = self.tune(greedy, right, device=device)
        first, second = self.errors(plan)["greedy"]
        self.assertEqual(first, "")
        self.assertRegex(second, "fails at size 8: .*allocate")
        self.assertEqual(self.errors(plan)["right"], ["", ""])

    def test_inputs_that_would_fill_the_memory_are_not_made(self):
        """Where a CPU's memory is full, the system kills the process."""
        eight_rows = 8 * 6 * 4
        with (
            mock.patch.object(inputs, "memory", lambda: 2 * eight_rows - 1),
            self.assertLogs(tuner.log, "WARNING") as logs,
        ):
            plan = self.tune(right, reordered)
        (message,) = logs.output
        self.assertIn("not measured at size 8, since its inputs could not be made: ", message)
        self.assertIn("they take 0.0 GiB, over half of this machine's memory", message)
        measured, unknown = plan.results
        self.assertEqual([m.error for m in measured.measurements], [None] * 3)
        self.assertEqual((unknown.measurements, unknown.winner), ((), measured.winner))

    def test_what_a_failed_candidate_held_is_freed(self):
        kept = []
        real = row.Row.measure

        def noting(self, *args):
            found = real(self, *args)
            kept.extend(reference() is not None for reference in held)
            return found

        with mock.patch.object(row.Row, "measure", noting):
            plan = self.tune(holding, right)
        self.assertTrue(all(self.errors(plan)["holding"]))
        self.assertEqual(kept, [False] * 3)  # one at the first probe, two at the second

    def test_the_time_limit(self):
        with config.patch(time_limit_s=SLOW_S / 2):
            plan = self.tune(slow, right)
        for error in self.errors(plan)["slow"]:
            self.assertRegex(error, "OverTimeLimit: one call takes .* the limit is 0.025 s")

    def test_what_does_not_compile_is_out_everywhere(self):
        real = tuner.compile_for_benchmark

        def failing(graph, call, point, patches, name):
            if name == "right":
                raise RuntimeError("no such instruction")
            return real(graph, call, point, patches, name)

        with mock.patch.object(tuner, "compile_for_benchmark", failing):
            plan = self.tune(right, reordered)
        for error in self.errors(plan)["right"]:
            self.assertRegex(error, "does not compile: RuntimeError: no such instruction")
        self.assertEqual(self.errors(plan)["reordered"], ["", ""])

    def test_the_reason_is_what_the_compiler_says(self):
        patches = {"cpp.inject_relu_bug_TESTING_ONLY": "compile_error"}
        with self.assertLogs(custom_op.log, "WARNING") as logged:
            plan = self.tune(CustomOpConfig(by_relu, config_patches=patches), right)
        (message,) = [record.getMessage() for record in logged.records]
        reason = r"it does not compile: CppCompileError: C\+\+ compile error: [^/:]*compile[^/:]*$"
        self.assertRegex(message, f"by_relu.* is not used: in .*, {reason}")
        self.assertRegex(str(plan), f"(?m)not used: by_relu.*, {reason}")

    @parametrize("case", list(SAID))
    def test_what_is_wrong_in_one_line(self, case):
        error, expected = SAID[case]
        self.assertEqual(row.described(error), expected)

    def test_the_slower_the_fewer_rounds(self):
        calls = {}
        real = row.make_timer

        def counting(run, device, cudagraphs, captured):
            label = f"timer {len(calls)}"
            calls[label] = 0
            times = iter(
                [[1.0] * 5, [50.0, 1.0, 1.3, 1.3, 1.3], [4.0] * 2, [1.7] * 3][len(calls) - 1]
            )
            real(run, device, cudagraphs)

            def time():
                calls[label] += 1
                return next(times)

            return timing.Timer("faked", time)

        register_custom_op_autotuning(
            self.op, configs=[CustomOpConfig(f) for f in (right, reordered, lambda x: x * 2)]
        )
        with (
            mock.patch.object(row, "make_timer", counting),
            config.patch(tuning_rounds=5, early_stop=2.0),
        ):
            torch.compile(lambda x: self.op(x))(torch.randn(8, 6))
        self.assertEqual(list(calls.values()), [5, 5, 2, 3])


class SubprocessTest(TuningTestCase):
    """What ends a process ends that of the measuring alone. On a CPU that is a fork."""

    def setUp(self) -> None:
        super().setUp()
        apart = contextlib.ExitStack()
        apart.enter_context(config.patch(measure_in_subprocess=True))
        self.addCleanup(apart.close)

    def test_measures_as_well_as_in_process(self):
        here = []
        real = row.Row.measure

        def noting(self, *args):
            here.append(os.getpid())
            return real(self, *args)

        with mock.patch.object(row.Row, "measure", noting):
            plan = self.tune(right, wrong, raising)
        self.assertEqual(here, [])
        self.assertEqual([label for label, _ in plan.rejected], ["wrong"])
        self.assertRegex(self.errors(plan)["raising"][1], "fails at size 8: OutOfMemoryError")
        for label in ("right", OP_LABEL):
            self.assertEqual(self.errors(plan)[label], ["", ""])
        for result in plan.results:
            (ours,) = (m for m in result.measurements if m.label == "right")
            self.assertTrue(0 < ours.milliseconds < 1e3)

    @parametrize("how", ["aborting", "exiting"])
    def test_one_that_ends_the_process_is_out_everywhere(self, how):
        implementation = {"aborting": aborting, "exiting": exiting}[how]
        with self.assertLogs(custom_op.log, "WARNING") as logged:
            plan = self.tune(implementation, right)
        size, what = ("8", "SIGABRT") if how == "aborting" else ("4", "exit code 7")
        reason = f"it fails at size {size}: it ended the process, {what}"
        for error in self.errors(plan)[how]:
            self.assertEqual(error, reason)
        self.assertEqual(self.errors(plan)["right"], ["", ""])
        self.assertIn(f"{how} is not used", logged.output[0])
        self.assertIn(reason, logged.output[0])

    def test_one_that_hangs_is_ended_and_out_for_that_range(self):
        started = time.monotonic()
        with config.patch(time_limit_s=0.4):
            plan = self.tune(hanging, right)
        self.assertLess(time.monotonic() - started, 60)
        first, second = self.errors(plan)["hanging"]
        self.assertEqual(first, "")
        self.assertEqual(
            second,
            "it fails at size 8: it gave no sign of life for 2 s, and was ended "
            "(config.time_limit_s is 0.4 s)",
        )
        self.assertEqual(self.errors(plan)["right"], ["", ""])

    def test_several_that_end_the_process(self):
        plan = self.tune(aborting, exiting, right)
        errors = self.errors(plan)
        self.assertTrue(all(errors["aborting"] + errors["exiting"]))
        self.assertEqual(errors["right"], ["", ""])
        self.assertNotIn("aborting", [label for _, label in plan.chosen])

    def test_the_op_itself_runs_where_no_process_can_be_started(self):
        refuses = mock.patch.object(
            multiprocessing.context.ForkProcess, "start", side_effect=AssertionError("daemonic")
        )
        with refuses, self.assertLogs(tuner.log, "WARNING") as logged:
            plan = self.tune(right)
        (message,) = logged.output
        self.assertRegex(message, "not measured in a subprocess, .*: no process .*: daemonic")
        self.assertEqual([label for _, label in plan.chosen], [OP_LABEL])

    def test_kernels_in_the_fork_use_as_many_threads(self):
        def product():
            return torch.randn(400, 400) @ torch.randn(400, 400)

        def run(arguments):
            product()
            raise RuntimeError(f"{torch.get_num_threads()} threads")

        product()  # starts the threads of this process, which are not there in the fork
        module = benchmark_module.BenchmarkModule(run, (), (), None)
        entrant = row.Entrant("product", module, is_op=True)
        one = row.Row(torch.device("cpu"), False, Point(4, {}), [entrant], (), None)
        with config.patch(time_limit_s=4.0):
            found = worker.measure(lambda: one)
        self.assertIn(f"{torch.get_num_threads()} threads", found[0].error)


SPAWNING = """
    import json, os, sys, time
    import torch
    from torch._inductor import config as inductor_config
    from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
    from torch._inductor.kernel.range_dispatch import config, report, worker

    def op_of(name, function):
        op = torch.library.custom_op(f"range_dispatch_spawning::{name}", function, mutates_args=())
        op.register_fake(torch.empty_like)
        return op

    def _doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    def _aborts(x: torch.Tensor) -> torch.Tensor:
        os.abort()

    def _hangs(x: torch.Tensor) -> torch.Tensor:
        if len(x) == 8:
            time.sleep(1000)
        return x * 2

    doubled, _, _ = op_of("doubled", _doubled), op_of("aborts", _aborts), op_of("hangs", _hangs)

    def right(x):
        return x + x

    def by_constant(x):
        return x * torch.tensor([float(i) for i in range(16)], device=x.device)[2]

    def wrong(x):
        return x + 1

    def aborts(x):
        return torch.ops.range_dispatch_spawning.aborts(x)

    def hangs(x):
        return torch.ops.range_dispatch_spawning.hangs(x)

    def defined_late(x):
        return torch.ops.range_dispatch_spawning.late(x)

    if __name__ == "__main__":
        late = op_of("late", _doubled)
        device, *names = sys.argv[1:]
        worker._method = lambda device: "spawn"
        config.measure_in_subprocess, config.use_records, config.time_limit_s = True, False, 1.0
        register_custom_op_autotuning(
            doubled,
            configs=[CustomOpConfig(globals()[name]) for name in names],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 8},
            split_points=[4],
        )
        x = torch.randn(3, 6, device=device)
        with inductor_config.patch(fx_graph_cache=False):
            out = torch.compile(lambda x: doubled(x), dynamic=True)(x)
        torch.testing.assert_close(out, x * 2)
        (plan,) = report.plans()
        errors = [{m.label: m.error for m in r.measurements} for r in plan.results]
        print(json.dumps([errors, [label for _, label in plan.chosen]]))
"""


ILLEGAL = """
    import triton
    import triton.language as tl

    @triton.jit
    def astray(x, out, n, BLOCK: tl.constexpr):
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = at < n
        far = at.to(tl.int64) * 1099511627776 + 1099511627776
        tl.store(out + far, tl.load(x + at, mask=inside), mask=inside)

    @torch.library.triton_op("range_dispatch_spawning::illegal", mutates_args=())
    def illegal(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        torch.library.wrap_triton(astray)[(1,)](x, out, x.numel(), BLOCK=64)
        return out

"""


class SpawnedTest(TestCase):
    """A new interpreter, which imports the main module: the worker of a GPU, here of a CPU too."""

    def run_program(self, *names, device="cpu", program=SPAWNING):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "program.py")
            file.write_text(textwrap.dedent(program))
            done = subprocess.run(
                [sys.executable, str(file), device, *names],
                capture_output=True,
                text=True,
                timeout=600,
            )
        self.assertEqual(done.returncode, 0, done.stderr)
        errors, chosen = json.loads(done.stdout.splitlines()[-1])
        return errors, chosen, done.stderr

    @parametrize("device", DEVICES)
    def test_measures_and_leaves_out_what_ends_it(self, device):
        names = ["right", "by_constant", "wrong", "aborts", "hangs"]
        errors, _, _ = self.run_program(*names, device=device)
        for of_range in errors:
            for label in ("right", "by_constant", OP_LABEL):
                self.assertIsNone(of_range[label])
            self.assertRegex(of_range["wrong"], "gives another answer than the op at size 4")
            ended = "it fails at size 4: it ended the process, SIGABRT"
            self.assertEqual(of_range["aborts"], ended)
        self.assertIsNone(errors[0]["hangs"])
        self.assertRegex(errors[1]["hangs"], "fails at size 8: it gave no sign of life for 5 s")

    @unittest.skipUnless(HAS_GPU and GPU_TYPE == "cuda", "illegal memory accesses")
    def test_an_illegal_access_on_a_gpu(self):
        program = SPAWNING.replace('worker._method = lambda device: "spawn"', "")
        program = program.replace("    def wrong(x):", ILLEGAL + "    def wrong(x):")
        errors, chosen, _ = self.run_program("illegal", "right", device=GPU_TYPE, program=program)
        for of_range in errors:
            self.assertRegex(of_range["illegal"], "size 4: it left the device unusable: .*illegal")
            self.assertEqual((of_range["right"], of_range[OP_LABEL]), (None, None))
        self.assertNotIn("illegal", chosen)

    def test_an_operator_that_the_main_module_does_not_define_on_import(self):
        errors, chosen, said = self.run_program("right", "defined_late")
        self.assertEqual(chosen, [OP_LABEL])
        self.assertEqual(errors, [{}, {}])
        self.assertRegex(said, "not measured in a subprocess.*defined_late needs the operator")
        self.assertEqual(said.count("not measured in a subprocess"), 1)

    def test_a_main_module_that_compiles_when_it_is_imported(self):
        unguarded = SPAWNING.replace('if __name__ == "__main__":', "if True:")
        _, chosen, said = self.run_program("right", program=unguarded)
        self.assertEqual(chosen, [OP_LABEL])
        self.assertRegex(said, "before a candidate ran, it ended the process, exit code 1")


class ProbesTest(TuningTestCase):
    def test_several_probes_a_range(self):
        with force_winners(lambda n: "right" if n > 4 else OP_LABEL) as probes:
            plan = self.tune(right, probe_sizes=[2, 3, 6, 12])
        self.assertEqual(probes, [6, 2, 3, 12])  # the middle one is what modules are made for
        self.assertEqual([r.probe for r in plan.results], [3, 12])
        self.assertEqual([[n for n, _ in r.probes] for r in plan.results], [[2, 3], [6, 12]])
        self.assertIn("6, 12", str(plan))

    @parametrize("recorded", [False, True])
    @parametrize(
        "winners, chosen_again",
        [
            ("rrrr", [("right", [2, 4, 8, 16, 32])]),
            ("oorr", [(OP_LABEL, [2, 4]), ("right", [8, 16, 32])]),
            # What is for 8 alone is tuned for that, the middle one, from the start.
            ("oror", [(OP_LABEL, [2]), ("right", [4]), ("right", [16, 32])]),
        ],
    )
    def test_what_configurations_are_chosen_for(self, winners, chosen_again, recorded):
        """Each winner's, for the probes of its merged range; see ``triton_configs``."""
        winner_of = dict(zip((2, 4, 8, 16, 32), winners[:3] + winners[-1] * 2, strict=True))
        labels = {"r": "right", "o": OP_LABEL}
        real, found, modules = tuner.measure, [], {}

        def measure(bench, contenders, point):
            real(bench, contenders, point)
            for contender in contenders:
                modules.update((id(m), contender.candidate.label) for m in contender.modules)
            names = [contender.candidate.label for contender in contenders]
            wins = labels[winner_of[point.size]]
            return [Measurement(name, 1.0 if name == wins else 2.0) for name in names]

        def choose(bench, module, points):
            found.append((modules[id(module)], [point.size for point in points]))

        records.forget()
        self.addCleanup(records.forget)
        with (
            fresh_cache(),
            config.patch(use_records=True),
            mock.patch.object(tuner, "measure", measure),
            mock.patch.object(tuner, "choose_configurations", choose),
        ):
            for _ in range(1 + recorded):
                found.clear()
                torch._dynamo.reset()
                self.tune(right, split_points=[2, 4, 8], top=32, probe_sizes=[2, 4, 8, 16, 32])
        self.assertEqual(found, [] if recorded else chosen_again)

    @parametrize("device", DEVICES)
    def test_inductors_patterns_are_made_once(self, device):
        """They take longer than a compile, and once made again they are all looked for twice."""
        from torch._inductor.fx_passes import joint_graph, post_grad

        torch.compile(lambda x: x.cos().sum(0), dynamic=True)(torch.randn(3, 6, device=device))
        made = [m.lazy_init.cache_info().misses for m in (joint_graph, post_grad)]
        self.tune(right, reordered, device=device)
        again = [m.lazy_init.cache_info().misses for m in (joint_graph, post_grad)]
        self.assertEqual(again, made)

    def test_a_range_without_a_probe_size_has_its_default(self):
        with force_winners(lambda n: OP_LABEL) as probes:
            self.tune(right, probe_sizes=[2])
        self.assertEqual(probes, [2, 8])

    def test_of_several_symbols_the_one_that_comes_closest_moves(self):
        # With s * t rows, first called with s = 3 and t = 7: 9 = 3 * 3, 20 = 2 * 7 or 3 * 6.
        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(right)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 100},
            split_points=[6, 9, 20],
        )

        def call(x):
            return self.op(x.reshape(-1, 6))

        with force_winners(lambda n: OP_LABEL) as probes:
            compiled = torch.compile(call, dynamic=True, fullgraph=True)
            self.check(compiled, call, torch.randn(3, 7, 6))
        self.assertEqual(probes, [18, 6, 9, 99])

    def dispatch(self, call, *shapes, top, split_points):
        """Compile ``call(op, *tensors)`` and run it; the probes, and the plan if there is one."""
        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(right), CustomOpConfig(reordered)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": top},
            split_points=split_points,
        )
        ends = [*split_points, math.inf]
        labels = ["right", "reordered", OP_LABEL]

        def pick(size):  # another one than in the ranges next to it
            return labels[next(i for i, end in enumerate(ends) if size <= end) % 3]

        with force_winners(pick) as probes:
            compiled = torch.compile(lambda *a: call(self.op, *a), dynamic=True, fullgraph=True)
            for shape in shapes:
                tensors = [torch.randn(n, 6) for n in shape]
                self.check(compiled, lambda *a: call(self.op, *a), *tensors)
        (plan,) = report.plans()
        return sorted(probes), plan

    def test_the_probe_of_an_expression_is_in_its_range(self):
        """2*n+1 rows: 9 is the last size up to 10, but not in [10, inf]; 8 does not occur."""
        probes, plan = self.dispatch(
            lambda op, x: op(torch.cat([x, x, x[:1]])),
            (5,),
            (2,),
            (3,),
            (30,),
            top=10,
            split_points=[7, 8, 9],
        )
        self.assertEqual(probes, [7, 9, 11])
        self.assertEqual([str(r.range) for r in plan.results], ["[0, 7]", "[9, 9]", "[10, inf]"])
        winners = ["right", OP_LABEL, "right"]
        self.assertEqual([label for _, label in plan.chosen], winners)

    def test_the_probe_of_a_size_that_shrinks_with_its_symbol(self):
        """100-2*n rows are at most 96, since a symbol is 2 or more."""

        def call(op, x):
            return op(torch.arange(600.0).reshape(100, 6)[2 * x.shape[0] :])

        probes, plan = self.dispatch(call, (5,), (40,), (20,), top=99, split_points=[50, 51, 97])
        self.assertEqual(probes, [50, 96])
        self.assertEqual([str(r.range) for r in plan.results], ["[0, 50]", "[52, 97]"])

    def test_the_probe_of_a_size_that_grows_faster_than_its_symbol(self):
        """n*n rows: 16 is the last size up to 17, but not in [17, inf]."""

        def call(op, x):
            return op((x[:, None] * x[None]).reshape(-1, 6))

        probes, _ = self.dispatch(call, (5,), (2,), (4,), top=17, split_points=[12, 16])
        self.assertEqual(probes, [9, 16, 25])

    def test_both_symbols_move_where_one_is_not_enough(self):
        """s*t rows, first called with 3 and 7: 10 is 2 * 5, and 11 does not occur."""

        def call(op, x, y):
            return op((x[:, None] * y[None]).reshape(-1, 6))

        probes, plan = self.dispatch(
            call, (3, 7), (2, 5), (5, 2), (4, 5), top=40, split_points=[9, 10, 11]
        )
        self.assertEqual(probes, [9, 10, 39])
        self.assertEqual([r.probe for r in plan.results], [9, 10, None, 39])

    @parametrize("neighbours", ["none", "before", "after"])
    def test_what_the_graph_relies_on_holds_at_a_probe(self, neighbours):
        """A view of n elements in rows of 4 needs n to be divisible by 4, in benchmarks as well."""

        def call(op, x):
            before = x.relu() if neighbours == "before" else x
            rows = op(before.view(-1, 4))
            return rows.view(-1) + x.relu() if neighbours == "after" else rows

        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(right)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 20},
            split_points=[4, 9],
        )
        compiled = torch.compile(lambda x: call(self.op, x), dynamic=True, fullgraph=True)
        for n in (20, 16, 24, 100):
            self.check(compiled, lambda x: call(self.op, x), torch.randn(n))
        (plan,) = report.plans()
        self.assertEqual([r.probe for r in plan.results], [4, 9, 20])
        self.assertEqual((plan.rejected, self.errors(plan)["right"]), ((), ["", "", ""]))

    def test_a_symbol_follows_another_that_the_graph_ties_it_to(self):
        """The op adds t-1 columns to s-1: s is t then, and x still has s-1 columns."""

        def total(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y[:, 1:]

        def implementation(x, y):
            return torch.add(y[:, 1:], x)

        op = define_op("tuning_total", total)
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(implementation)],
            dispatch_on={"tensor_name": "x", "dim": 1, "range_upper_bound": 20},
            split_points=[4, 9],
        )
        call = lambda x, y: op(x.narrow(1, 1, x.shape[1] - 1), y)  # noqa: E731
        unrelated = torch.fx.experimental._config.patch(use_duck_shape=False)
        winners = {4: OP_LABEL, 9: "implementation", 20: OP_LABEL}
        with unrelated, force_winners(winners) as probes:
            compiled = torch.compile(call, dynamic=True, fullgraph=True)
            for n in (8, 4, 9, 29):
                self.check(compiled, call, torch.randn(3, n + 1), torch.randn(3, n + 1))
        (plan,) = report.plans()
        self.assertEqual(sorted(probes), [4, 9, 20])
        self.assertEqual(
            [label for _, label in plan.chosen], [OP_LABEL, "implementation", OP_LABEL]
        )

    @parametrize("chain", [("u", "t"), ("t", "u")])
    def test_symbols_that_follow_one_another(self, chain):
        s, t, u = sympy.symbols("s t u", integer=True, positive=True)
        relies = {"t": sympy.Eq(t, 2 * s - 2), "u": sympy.Eq(t + 1, u)}
        equations = [relies[name] for name in chain]
        env = ShapeEnv()
        with mock.patch.object(inputs, "V") as virtual:
            virtual.graph.sizevars.shape_env = env
            before = {s: 5, t: 8, u: 9}
            found = inputs._followed({**before, s: 11}, {s}, equations)
            self.assertEqual(found, {s: 11, t: 20, u: 21})
            # s is what is asked for: it does not follow the others.
            self.assertEqual(inputs._followed({**before, s: 11}, {s, t, u}, equations)[t], 8)

    def test_ranges_without_a_multiple_do_not_occur(self):
        """n elements are viewed in rows of 8: 17 to 23 and 25 elements do not occur."""

        def call(op, x):
            elements = x[:, 0].contiguous()
            return op(elements) + elements.view(-1, 8).sum(1).repeat_interleave(8)

        ends = [16, 23, 24, 25]
        probes, plan = self.dispatch(call, (40,), (16,), (24,), (80,), top=29, split_points=ends)
        self.assertEqual(probes, [16, 24, 32])
        self.assertEqual([str(r.range) for r in plan.results], ["[0, 16]", "[24, 24]", "[26, inf]"])

    def test_how_kernels_are_launched_at_probes_is_not_kept(self):
        found = []

        def codegen(graph):
            name = "benchmark" if (graph.name or "").startswith("benchmark_") else "final"
            found.append((name, inductor_config.autotune_local_cache))
            return generate(graph)

        generate = GraphLowering.codegen
        with (
            mock.patch.object(GraphLowering, "codegen", codegen),
            inductor_config.patch(autotune_local_cache=True),
        ):
            self.tune(right)
        self.assertEqual(set(found), {("benchmark", False), ("final", True)})

    def test_each_probe_counts_alike(self):
        rows = [
            [Measurement("a", 1.0, 0.1), Measurement("b", 3.0)],
            [],
            [Measurement("a", 100.0), Measurement("b", math.inf, error="it fails")],
        ]
        a, b = combine(rows)
        self.assertEqual((a.milliseconds, a.spread), (10.0, 1.0))
        self.assertEqual(b.error, "it fails")

    def test_out_everywhere(self):
        out = Measurement("a", math.inf, 0.0, "wrong", everywhere=True)
        (first, second) = rule_out([[Measurement("a", 1.0), Measurement("b", 2.0)], [out]])
        self.assertEqual(first, [out, Measurement("b", 2.0)])
        self.assertEqual(second, [out])

    @parametrize("argument", ["check", "probe_sizes", "records"])
    def test_arguments_are_checked(self, argument):
        bad = {
            "check": [None, 1, {"float32": 1.0}, {torch.float32: "x"}, {torch.float32: -1}],
            "probe_sizes": [3, [0], ["x"], [2, 2], [True]],
            "records": [3, b"folder"],
        }[argument]
        for value in bad:
            with self.assertRaisesRegex((TypeError, ValueError), f"doubled.*{argument}"):
                self.tune(right, **{argument: value})
        with self.assertRaisesRegex(ValueError, "probe_sizes must be None where dispatch_on"):
            register_custom_op_autotuning(self.op, configs=[CustomOpConfig(right)], probe_sizes=[1])


class TimingTest(TuningTestCase):
    def test_candidates_take_turns_on_the_same_inputs(self):
        runs, turns = [], []
        real = benchmark_module.BenchmarkModule.__call__

        def running(module, point, operands):
            runs.append((point.size, id(operands[0])))
            return real(module, point, operands)

        def timing_each(run, device, cudagraphs, captured):
            module = id(run.func)

            def time():
                turns.append(module)
                run()
                return 1.0

            return timing.Timer("faked", time)

        with (
            mock.patch.object(benchmark_module.BenchmarkModule, "__call__", running),
            mock.patch.object(row, "make_timer", timing_each),
            config.patch(tuning_rounds=3),
        ):
            self.tune(right, reordered, split_points=(), dispatch_on=None)
        self.assertEqual(len(set(turns)), 3)
        self.assertEqual(turns, turns[:3] * 3)
        self.assertEqual(len(runs), 3 + 9)
        self.assertEqual(len(set(runs)), 1)

    def test_summaries(self):
        on_cpu = row._cpu_summary("a", [3.0, 2.0, 9.0, 2.5], "clock")
        self.assertEqual(on_cpu, Measurement("a", 2.0, 0.5, method="clock"))
        on_gpu = row._gpu_summary("a", [3.0, 2.0, 9.0, 4.0, 5.0], "events")
        self.assertEqual(on_gpu, Measurement("a", 4.0, 1.0, method="events"))
        for summary in (row._cpu_summary, row._gpu_summary):
            self.assertEqual(summary("a", [3.0], "x"), Measurement("a", 3.0, method="x"))

    @parametrize(
        "once,replayed,expected",
        [
            (0.2, 0.005, [2, 100]),  # launched for longer than it takes
            (0.2, 0.05, [2, 10]),
            (0.02, 0.005, [25]),  # enough calls in any case
            (0.3, 0.3, [1]),
            (5.0, 5.0, [1]),
        ],
    )
    def test_enough_calls_are_captured(self, once, replayed, expected):
        captured = []

        def capture(run, side, calls):
            captured.append(calls)
            return SimpleNamespace(calls=calls)

        with (
            mock.patch.object(timing, "_captured", capture),
            mock.patch.object(timing, "_between_events", lambda run: once),
            mock.patch.object(timing, "_replayed", lambda graph: graph.calls * replayed),
            mock.patch.object(timing, "_waiting_is_an_error", contextlib.nullcontext),
            mock.patch.object(torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
            mock.patch.object(torch.cuda, "current_stream", mock.MagicMock()),
        ):
            graph, calls = timing._capture(lambda: None, mock.MagicMock(), 0.5)
        self.assertEqual((captured, graph.calls, calls), (expected, expected[-1], expected[-1]))

    def test_a_cpu_timing_is_the_median_of_its_calls(self):
        durations = iter([0.03, 0.001, 0.002])
        timer = timing._cpu_timer(lambda: time.sleep(next(durations)), 1.0)
        self.assertLess(timer(), 20.0)

    def test_at_least_three_timed_calls_whatever_the_budget(self):
        ran = []
        with config.patch(tuning_budget_ms=0.0):
            timer = timing.make_timer(lambda: ran.append(1), torch.device("cpu"))
        before = len(ran)
        timer()
        self.assertEqual(len(ran) - before, 3)

    def test_the_thread_count_stays(self):
        """A candidate that changes it is timed with what it sets, and no other is."""
        threads, measure = torch.get_num_threads(), tuner.measure
        seen, after = [], []

        def greedy(x: torch.Tensor) -> torch.Tensor:
            torch.set_num_threads(threads + 1)
            return x + 1

        def modest(x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return x + 1

        self.addCleanup(torch.set_num_threads, threads)
        ops = [define_op(f"threads_{f.__name__}", f, torch.empty_like) for f in (greedy, modest)]
        op = define_op("threads", lambda x: x + 1, schema="(Tensor x) -> Tensor")
        register_custom_op_autotuning(
            op, configs=[CustomOpConfig(lambda x, f=f, of="": f(x), of=f._name) for f in ops]
        )

        def measured(*args):
            found = measure(*args)
            after.append(torch.get_num_threads())
            return found

        every_round = config.patch(tuning_rounds=2, early_stop=math.inf)
        with every_round, mock.patch.object(tuner, "measure", measured):
            torch.compile(lambda x: op(x), dynamic=False)(torch.randn(4))
        self.assertEqual(set(seen), {threads})
        self.assertEqual(after, [threads])

    def test_a_row_is_timed_by_one_method(self):
        """Where one of a row can't be captured, all of it is timed by events."""
        tried = []

        def faked(run, device, cudagraphs, captured):
            tried.append(captured)
            if captured and len(tried) == 2:
                raise timing.NotCaptured("it waits for the device")
            return timing.Timer("CUDA graph" if captured else "events", lambda: 1.0)

        with mock.patch.object(row, "make_timer", faked):
            plan = self.tune(right, reordered)
        self.assertEqual(tried, [True, True, *[False] * 3, *[True] * 3])
        methods = [{m.method for m in result.measurements} for result in plan.results]
        self.assertEqual(methods, [{"events"}, {"CUDA graph"}])

    @unittest.skipUnless(HAS_GPU and GPU_TYPE == "cuda", "CUDA graphs")
    @parametrize("asked", [False, True])
    def test_on_a_gpu_a_row_is_timed_by_one_method(self, asked):
        for function, method in ((right, "CUDA graph"), (waiting, "events")):
            plan = self.tune(function, reordered, device=GPU_TYPE, benchmark_with_cudagraphs=asked)
            for result in plan.results:
                self.assertEqual([m.error for m in result.measurements], [None] * 3)
                (used,) = {m.method for m in result.measurements}
                self.assertIn(method, used)

    @unittest.skipUnless(HAS_GPU and GPU_TYPE == "cuda", "CUDA graphs")
    def test_on_a_gpu_events_and_graphs_agree_up_to_the_launches(self):
        x = torch.randn(1 << 24, device=GPU_TYPE)
        times = {}
        for captured in (True, False):
            timer = timing.make_timer(lambda: x * 2, x.device, False, captured)
            # What else uses the device only ever adds time.
            times[timer.method] = min(timer() for _ in range(30))
        self.assertEqual(set(times), {"CUDA graph", "events"})
        by_graph, by_events = times["CUDA graph"], times["events"]
        self.assertLess(abs(by_events - by_graph), 0.01 + 0.1 * by_graph)

    def test_all_kernels_are_under_way_before_the_first_is_waited_for(self):
        events = []
        generate, wait = GraphLowering.compile_to_module, AsyncCompile.wait

        def generating(graph):
            events.append("generated")
            return generate(graph)

        def waiting(self, scope):
            events.append("waited")
            return wait(self, scope)

        with (
            mock.patch.object(GraphLowering, "compile_to_module", generating),
            mock.patch.object(AsyncCompile, "wait", waiting),
        ):
            self.tune(lambda x: x * 1.25 + x * 0.75, lambda x: x * 1.125 + x * 0.875)
        self.assertEqual(events[:3], ["generated"] * 3)
        self.assertIs(AsyncCompile.wait, wait)

    @contextlib.contextmanager
    def starting_workers(self, events, together=1):
        """Inductor's workers start; so many kernels have to be compiled at the same time."""
        ready, barrier = Future(), threading.Barrier(together)

        def triton(self, name, source, device_str="cuda"):
            events.append(name)
            if ready.done():
                return LambdaFuture(lambda: f"{name}, by a worker")
            if len(events) <= together:
                barrier.wait(timeout=60)
            if source == "broken" or (source == "alone" and len(events) <= together):
                raise RuntimeError(name)
            return name

        with (
            inductor_config.patch(compile_threads=together + 1),
            mock.patch.object(AsyncCompile, "_ready_future", ready),
            mock.patch.object(AsyncCompile, "use_process_pool", ready.done),
            mock.patch.object(AsyncCompile, "triton", triton),
        ):
            yield ready
            self.assertIs(AsyncCompile.triton, triton)

    def modules(self, sources):
        """Functions of modules of one kernel each, as generated code makes them."""
        made = []
        for name, source in sources.items():
            scope = {"AsyncCompile": AsyncCompile, "name": name, "source": source}
            code = """
                compiler = AsyncCompile()
                kernel = compiler.triton(name, source)
                compiler.wait(globals())
                def call(): return kernel
            """
            exec(textwrap.dedent(code), scope)
            made.append(scope["call"])
        return made

    def test_kernels_are_compiled_by_threads_while_the_workers_start(self):
        events = []
        with self.starting_workers(events, together=3), compiling.compiled_together() as finish:
            one, two, three = self.modules({"one": "", "two": "broken", "three": ""})
            self.assertEqual(events, [])
            finish(one)
            self.assertEqual(set(events), {"one", "two", "three"})
            self.assertRaisesRegex(RuntimeError, "two", finish, two)
        self.assertEqual((one(), three()), ("one", "three"))

    def test_a_kernel_that_fails_beside_others_is_compiled_alone(self):
        events = []
        with self.starting_workers(events, together=2), compiling.compiled_together() as finish:
            one, two = self.modules({"one": "", "two": "alone"})
            finish(one)
            self.assertEqual(events[2:], ["two"])
        self.assertEqual((one(), two()), ("one", "two"))

    def test_a_few_threads_are_enough(self):
        events, most = [], compiling._MOST_THREADS
        names = {f"kernel{i}": "" for i in range(3 * most)}
        with (
            self.starting_workers(events, together=most),
            inductor_config.patch(compile_threads=100),
            mock.patch.object(
                compiling, "ThreadPoolExecutor", side_effect=ThreadPoolExecutor
            ) as made,
            compiling.compiled_together() as finish,
        ):
            made_of = self.modules(names)
            finish(made_of[0])
        made.assert_called_once_with(most)
        self.assertEqual([f() for f in made_of], list(names))

    @unittest.skipIf(sys.version_info >= (3, 12), "threads parse there as they like")
    def test_one_thread_at_a_time_parses(self):
        inside, together = [0], [0]

        def parse(*args, **kwargs):
            inside[0] += 1
            together[0] = max(together[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

        with (
            mock.patch.object(ast, "parse", parse),
            compiling._parsing_in_turn(),
            ThreadPoolExecutor(4) as pool,
        ):
            for _ in range(12):
                pool.submit(lambda: ast.parse("x"))
        self.assertEqual(together, [1])

    def test_workers_that_are_there_by_then_get_the_kernels(self):
        events = []
        with self.starting_workers(events) as ready, compiling.compiled_together() as finish:
            one, two = self.modules({"one": "", "two": ""})
            ready.set_result(None)
            (three,) = self.modules({"three": ""})
            self.assertEqual(events, ["three"])
            finish(one)
        self.assertEqual([f() for f in (one, three)], ["one, by a worker", "three, by a worker"])
        self.assertEqual(two(), "two, by a worker")

    def test_kernels_are_not_kept_where_no_workers_start(self):
        events = []
        with (
            self.starting_workers(events),
            mock.patch.object(AsyncCompile, "_ready_future", None),
            compiling.compiled_together(),
        ):
            (one,) = self.modules({"one": ""})
            self.assertEqual(events, ["one"])
        self.assertEqual(one(), "one")


instantiate_parametrized_tests(RightAnswersTest)
instantiate_parametrized_tests(CompareTest)
instantiate_parametrized_tests(FaultsTest)
instantiate_parametrized_tests(SubprocessTest)
instantiate_parametrized_tests(SpawnedTest)
instantiate_parametrized_tests(ProbesTest)
instantiate_parametrized_tests(TimingTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
