# Owner(s): ["module: inductor"]
"""The benchmarks run in their smallest form, and compute their figures as they say."""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from unittest import mock

from torch._inductor.test_case import TestCase
from torch.testing._internal.inductor_utils import HAS_CPU, HAS_GPU


TOOLS = Path(__file__).resolve().parents[2] / "tools" / "benchmarks"
if TOOLS.exists():
    sys.path.insert(0, str(TOOLS))
    import chart
    import end_to_end_summary as summary
    import measuring
    import selection
    import workers


def figure(rival, size, us, label="", **others):
    record = {"kind": "figure", "workload": "w", "rival": rival, "size": size, "label": label}
    given = {"us": us, "host": None, "kernels": None, "wrong": False}
    return {**record, **given, **others}


STARTED = [
    {"kind": "run", "workloads": ["w"]},
    {"kind": "workload", "workload": "w", "device": "d", "torch": "t", "dtype": "float32"},
]


@unittest.skipUnless(TOOLS.exists(), "this tree was landed without the tools")
class FiguresTest(TestCase):
    def test_ratios_are_to_the_fastest_static_compile_with_the_right_results(self):
        records = [
            *STARTED,
            figure("floor", 1, 10.0, "a", kernels=2),
            figure("floor", 1, 8.0, "b", kernels=1),
            figure("floor", 1, 1.0, "c", kernels=1, wrong=True),
            figure("floor", 2, 20.0, "a", kernels=2),
            figure("ours", 1, 8.8, kernels=3),
            figure("ours", 2, 25.0, kernels=2),
            figure("ours", 4, 1.0, kernels=2),
        ]
        ours = summary.compare(records, "w", "ours")
        self.assertEqual(ours.ratios, {1: 1.1, 2: 1.25})
        self.assertEqual(ours.kernels, {1: 2, 2: 0})
        self.assertIn(f"{math.sqrt(1.1 * 1.25):.3f}, 1.250", summary.text(records))

    def test_the_single_implementation_is_the_best_one_over_all_sizes(self):
        records = [
            *STARTED,
            *(figure("floor", n, 10.0, "a") for n in (1, 2)),
            *(figure("single", n, us, "a") for n, us in ((1, 10.0), (2, 40.0))),
            *(figure("single", n, us, "b") for n, us in ((1, 15.0), (2, 15.0))),
            figure("single", 1, 1.0, "only once"),
        ]
        single = summary.compare(records, "w", "single")
        self.assertEqual((single.label, single.ratios), ("b", {1: 1.5, 2: 1.5}))

    def test_ours_against_the_single_implementation_at_each_size(self):
        records = [
            *STARTED,
            *(figure("floor", n, 10.0, "a", kernels=1) for n in (1, 2, 3)),
            *(figure("single", n, 10.0, "a", kernels=1) for n in (1, 2)),
            figure("ours", 1, 10.05, kernels=1),
            figure("ours", 2, 10.5, kernels=3),
            figure("ours", 3, 99.0, kernels=1),
        ]
        self.assertEqual(summary.over_single(records, "w"), {1: 1.005, 2: 1.05})
        self.assertRegex(summary.text(records), r"\| w +\| 1.027 +\| 1.050 +\| 2 +\| 2 +\| 2 +\|")

    def test_runs_of_some_workloads_each_are_shown_together(self):
        runs = [
            record | {key: name for key in ("workload",) if key in record} | {"workloads": [name]}
            for name in ("w", "v")
            for record in [*STARTED, figure("floor", 1, 10.0), figure("ours", 1, 11.0)]
        ]
        cut = [*runs, {"kind": "end", "seconds": 2.0}]
        self.assertIn("not to the end", summary.text(cut))
        shown = summary.text([*cut, {"kind": "end", "seconds": 3.0}])
        self.assertIn("in 5 s", shown)
        self.assertEqual(summary.workloads(cut), ["w", "v"])

    def test_the_middle_is_finer_than_the_clock(self):
        ticks = [3.2] * 30 + [3.232] * 30 + [40.0] * 9
        self.assertAlmostEqual(measuring.middle(ticks), 3.220, places=3)
        self.assertEqual(measuring.middle([5.0]), 5.0)

    def test_wrong_results_have_no_ratio(self):
        records = [
            *STARTED,
            *(figure("floor", n, 10.0) for n in (1, 2)),
            figure("stock", 1, 5.0, wrong=True),
            figure("stock", 2, 12.0),
        ]
        stock = summary.compare(records, "w", "stock")
        self.assertEqual((stock.ratios, stock.wrong), ({2: 1.2}, (1,)))
        self.assertIn("wrong at 1 sizes", summary.text(records))

    def test_a_run_that_was_cut_off_can_be_shown(self):
        records = [*STARTED, {"kind": "skipped", "workload": "w", "what": "all", "why": "killed"}]
        self.assertIn("w: all: killed", summary.text(records))
        ElementTree.fromstring(summary.chart(records))

    def test_chart_draws_a_point_for_every_ratio(self):
        lines = {"ours": [(1, 1.0), (64, 1.01)], "eager": [(1, 50.0), (64, 1.5)]}
        root = ElementTree.fromstring(chart.draw([chart.Panel("a < b", lines)], "title"))
        space = "{http://www.w3.org/2000/svg}"
        circles = root.findall(f".//{space}circle")
        beyond = [p for p in root.iter(f"{space}path") if p.get("d", "").endswith("z")]
        self.assertEqual((len(circles), len(beyond)), (3, 1))
        heights = {name: chart._y(ratio) for name, ratio in (("one", 1.0), ("two", 2.0))}
        self.assertLess(heights["two"], heights["one"])

    def test_kernel_times_are_sums_between_markers(self):
        """The device is played: every call notes its kernels."""
        activities, clock = [], [0.0]

        def kernels(*durations):
            for duration in durations:
                activities.append((f"kernel{len(durations)}", clock[0], duration))
                clock[0] += duration + 1.0

        def profiled(function):
            activities.clear()
            function()
            return list(reversed(activities))

        def mark(cycles):
            activities.append(("marker", clock[0], 0.5))
            clock[0] += 1.0

        functions = {"one": lambda: kernels(3.0), "two": lambda: kernels(1.0, 4.0), "no": lambda: 0}
        with (
            mock.patch.object(measuring, "_profiled", profiled),
            mock.patch.object(measuring, "marker_name", lambda: "marker"),
            mock.patch("torch.cuda._sleep", mark),
        ):
            times = measuring.kernel_times(functions, 0.01)
        found = {name: (t.microseconds, t.kernels) for name, t in times.items()}
        self.assertEqual(found, {"one": (3.0, 1), "two": (5.0, 2), "no": (0.0, 0)})
        self.assertEqual(times["two"].parts, [("kernel2", 1.0), ("kernel2", 4.0)])
        self.assertEqual(times["no"].parts, [])

    def test_lost_activities_are_an_error(self):
        with (
            mock.patch.object(measuring, "_profiled", lambda function: [("marker", 0.0, 1.0)]),
            mock.patch.object(measuring, "marker_name", lambda: "marker"),
            self.assertRaisesRegex(RuntimeError, "the profiler saw 0 calls of"),
        ):
            measuring.kernel_times({"one": lambda: 0}, 0.01)

    def test_workers(self):
        echo = f"import sys; sys.path.insert(0, {str(TOOLS)!r}); import workers; "
        serve = "workers.serve(lambda request: {'got': request['a'] + 1})"
        with tempfile.TemporaryDirectory() as folder:

            def worker(code):
                return workers.Worker(
                    [sys.executable, "-c", code], os.environ, Path(folder) / "log"
                )

            answering = worker(echo + serve)
            self.assertEqual(answering.ask({"a": 1}), {"got": 2})
            self.assertIn("TypeError", answering.ask({"a": "1"})["error"])
            self.assertEqual(answering.ask({"a": 5}), {"got": 6})
            answering.end()
            ended, slow = worker("raise SystemExit('broken')"), worker("input(); input()")
            with self.assertRaisesRegex(workers.Lost, "the process ended"):
                ended.ask({"a": 1})
            for _ in range(2):
                with self.assertRaisesRegex(workers.Lost, "out of time"):
                    slow.ask({"a": 1}, time.monotonic() + 0.2)


@unittest.skipUnless(TOOLS.exists(), "this tree was landed without the tools")
class SelectionTest(TestCase):
    def test_sizes_inside_of_the_ranges(self):
        self.assertEqual(selection.sweep_sizes([8, 64], 512, 1), [5, 37, 289])
        inside = selection.sweep_sizes([8, 64], 512, 3)
        self.assertEqual(len(inside), 9)
        self.assertFalse({8, 64, 512} & set(inside))

    def test_figures(self):
        """Two ranges; at their ends `a` and `b` are best, and at 6 `b` is by far."""
        times = {
            4: {"a": 1.0, "b": 1.01},
            6: {"a": 4.0, "b": 1.0},
            8: {"a": 1.0, "b": 2.0},
            12: {"a": 2.0, "b": 1.0},
            16: {"a": 2.0, "b": 1.0},
        }
        plans = [{4: "a", 6: "a", 12: "b"}, {4: "b", 6: "a", 12: "b"}]
        found = selection.figures(plans, times, [8], [8, 16])
        self.assertAlmostEqual(found["regret_geomean"], (1.01 * 16.0) ** (1 / 6))
        self.assertEqual(found["regret_worst"], 4.0)
        self.assertAlmostEqual(found["top1_agreement"], 3 / 6)
        self.assertAlmostEqual(found["top1_agreement_within_noise"], 4 / 6)
        self.assertEqual((found["flips"], found["flips_over_2_percent"]), (1, 0))
        self.assertAlmostEqual(found["flip_worst"], 1.01)
        self.assertAlmostEqual(found["bucket_transfer_geomean"], 4.0 ** (1 / 3))
        self.assertEqual(found["bucket_transfer_worst"], 4.0)
        self.assertEqual(found["best_single"], "b")
        self.assertAlmostEqual(found["best_single_geomean"], 1.01 ** (1 / 3))


@unittest.skipUnless(TOOLS.exists(), "this tree was landed without the tools")
@unittest.skipUnless(HAS_CPU, "needs a C++ compiler")
class SmokeTest(TestCase):
    def run_tool(self, name, *arguments):
        """The records that the tool has written, and what it has printed."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "figures.json"
            done = subprocess.run(
                [sys.executable, TOOLS / name, "--device=cpu", f"--json={path}", *arguments],
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": folder},
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            records = [json.loads(line) for line in path.read_text().splitlines()]
        skipped = [r for r in records if r["kind"] == "skipped"]
        self.assertEqual(skipped, [], done.stdout + done.stderr)
        return records, done.stdout

    def test_end_to_end(self):
        records, printed = self.run_tool(
            "end_to_end.py", "--tiny", "--workloads=rms_norm", "--sizes=3", "--rivals", "ours"
        )
        figures = [r for r in records if r["kind"] == "figure"]
        self.assertEqual({r["rival"] for r in figures}, {"ours", "floor"})
        self.assertTrue(all(r["us"] > 0 and not r["wrong"] for r in figures))
        self.assertIn("tuned in", printed)
        self.assertEqual(records[-1]["kind"], "end")

    def test_end_to_end_out_of_time(self):
        """What there is no time for is reported, and the tool ends well."""
        done = subprocess.run(
            [
                *(sys.executable, TOOLS / "end_to_end.py", "--device=cpu", "--tiny"),
                *("--workloads=rms_norm", "--rivals=ours", "--time-limit=0.1"),
            ],
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("out of time", done.stdout)

    def test_range_codegen(self):
        records, _ = self.run_tool(
            "range_codegen.py", "--tiny", "--cases=softmax", "--sizes", "8", "20"
        )
        (case,) = (r for r in records if r["kind"] == "case")
        self.assertEqual(case["branches"], 2)
        figures = [r for r in records if r["kind"] == "figure"]
        self.assertEqual([r["size"] for r in figures], [8, 20])
        for r in figures:
            self.assertTrue(all(r[rival]["us"] > 0 for rival in ("ours", "dynamic", "static")))

    def test_dispatch_cost(self):
        records, printed = self.run_tool(
            "dispatch_cost.py", "--branches=3", "--rounds=2", "--calls=20"
        )
        self.assertEqual([r["where"] for r in records], ["first", "last"])
        for r in records:
            self.assertEqual(set(r["us"]), {"alone", "static", "ours", "stock", "python"})
        self.assertIn("| 3        | last ", printed)


if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
