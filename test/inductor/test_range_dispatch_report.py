# Owner(s): ["module: inductor"]
"""Plans: as text, JSON, pages and charts; where they belong; where they are sent."""

import contextlib
import dataclasses
import io
import itertools
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

from range_dispatch_common import (
    config,
    counters,
    define_op,
    force_winners,
    HAS_CPU,
    HAS_GPU,
    inductor_config,
    OP_LABEL,
    RangeDispatchTestCase,
    report,
)

import torch
from torch._inductor.kernel.custom_op import (
    CustomOpConfig,
    register_custom_op_autotuning,
    unregister_custom_op_autotuning,
)
from torch._inductor.kernel.range_dispatch import chart, grid, logs, progress, records, saved
from torch._inductor.kernel.range_dispatch.choosing import Measurement, RangeResult
from torch._inductor.kernel.range_dispatch.page import page
from torch._inductor.kernel.range_dispatch.plan import margin, OP, Plan, RECORDED
from torch._inductor.kernel.range_dispatch.ranges import Range
from torch._inductor.kernel.range_dispatch.report import explain, NoPlan, Report
from torch._inductor.test_case import run_tests, TestCase
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


def row(**times):
    """Measurements in microseconds; a str is an error; a pair is a time and its spread."""
    found = []
    for label, time in times.items():
        label = OP if label == "op" else label
        if isinstance(time, str):
            found.append(Measurement(label, math.inf, 0.0, time))
        else:
            time, spread = time if isinstance(time, tuple) else (time, 0.0)
            found.append(Measurement(label, time / 1e3, spread / 1e3))
    return tuple(found)


@contextlib.contextmanager
def modules(**replaced):
    """Other modules by these names, None for none; what is imported meanwhile stays imported."""
    before = {name: sys.modules[name] for name in replaced if name in sys.modules}
    sys.modules.update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del sys.modules[name]
        sys.modules.update(before)


def make_plan(**changes):
    """Four ranges, of which the middle two are merged; one candidate fails in the first."""
    results = (
        RangeResult(Range(0, 16), 16, row(one=(10.0, 0.5), two="no memory", op=40.0), "one"),
        RangeResult(Range(17, 64), 64, row(one=60.0, two=30.0, op=60.0), "two"),
        RangeResult(Range(65, 256), 256, row(one=240.0, two=120.0, op=126.0), "two"),
        RangeResult(Range(257, math.inf), 1024, row(one=900.0, two=800.0, op=400.0), OP),
    )
    chosen = ((Range(0, 16), "one"), (Range(17, 256), "two"), (Range(257, math.inf), OP))
    plan = Plan(
        op="lib::<op>",
        dispatch_on="x.shape[0]",
        size="s77",
        results=results,
        chosen=chosen,
        rejected=(("three", "tracing it would add the guard Eq(s77, 4)"),),
        tuning_seconds=1.25,
        region=("mul", "relu", "add"),
        producers=("mul",),
        handed_out=("add",),
        left_out=("sum_1",),
        costs=(("compile", 1.0), ("measure", 0.2), ("branches", 0.25)),
        device="A CPU",
        release="2.13.0",
        compile_id="0/0",
        called_from="model.py:7 in forward",
    )
    return dataclasses.replace(plan, **changes)


class PlanTest(TestCase):
    def test_text(self):
        self.assertExpectedInline(
            str(make_plan()),
            """\
lib::<op> on x.shape[0] = s77, tuned in 1.2 s
  A CPU, PyTorch 2.13.0, called from model.py:7 in forward
       range  probe           one       two  op itself     winner  margin
     [0, 16]     16  10.0 ±0.5 us    failed    40.0 us        one   4.00x
    [17, 64]     64       60.0 us   30.0 us    60.0 us        two   2.00x
   [65, 256]    256      240.0 us  120.0 us   126.0 us        two   1.05x
  [257, inf]   1024      900.0 us  800.0 us   400.0 us  op itself   2.00x
  not used: three: tracing it would add the guard Eq(s77, 4)
  not used in [0, 16]: two: no memory
  merged: [17, 64] [65, 256] all run two
  in the branches: mul (before), relu, add; 3 nodes x 3 branches in 0.25 s
  handed out of them: add
  left out, since measured slower there: sum_1
  dispatched: [0, 16] one; [17, 256] two; [257, inf] op itself
  predicted: 1.70x as fast as the op itself""",
        )

    def test_parts(self):
        """They are branches as well."""
        plan = make_plan(parts=(Range(17, 64), Range(65, 256)))
        self.assertIn("  generated in parts: [17, 64] [65, 256]\n", str(plan))
        self.assertIn("3 nodes x 4 branches", str(plan))
        self.assertEqual(Plan.from_json(plan.to_json()), plan)

    def test_derived_values(self):
        plan = make_plan()
        self.assertEqual([margin(r) for r in plan.results], [4.0, 2.0, 1.05, 2.0])
        self.assertEqual(plan.merged_with(plan.results[1]), (Range(65, 256),))
        self.assertEqual(plan.merged_with(plan.results[0]), ())
        # "two" cannot run everywhere; (4 * 2 * 1.05 * 1)^(1/4) and (1 * 2 * 2 * 2.25)^(1/4)
        self.assertEqual(plan.best_single, OP)
        self.assertAlmostEqual(plan.gain_over_op, (4 * 2 * 1.05) ** 0.25)
        without_op = tuple(
            dataclasses.replace(r, measurements=r.measurements[:2]) for r in plan.results[1:3]
        )
        plan = make_plan(results=without_op, chosen=((Range(17, 256), "two"),))
        self.assertEqual((plan.best_single, plan.gain_over_single), ("two", 1.0))
        self.assertIsNone(plan.gain_over_op)

    def test_nothing_measured(self):
        results = (RangeResult(Range(0, math.inf), None, row(op=0.0), OP),)
        plan = make_plan(results=results, chosen=((Range(0, math.inf), OP),), rejected=())
        self.assertEqual((plan.best_single, plan.gain_over_op, plan.predicted()), (None, None, ""))
        self.assertIn("inlined: [0, inf] op itself", str(plan))
        self.assertNotIn("0.0 us", str(plan))
        self.assertEqual(chart.svg(plan), "")
        with self.assertRaisesRegex(ValueError, "nothing was measured"):
            plan.plot()

    def test_json_round_trip(self):
        probes = ((20, row(one=1.0, op=2.0)), (60, row(one=3.0, op="slow")))
        several = RangeResult(Range(17, 64), 60, row(one=1.7, op="slow"), "one", probes)
        results = (*make_plan().results[:1], several)
        for plan in (make_plan(), make_plan(results=results, dispatch_on=None, backward=True)):
            self.assertEqual(Plan.from_json(plan.to_json()), plan)
            self.assertEqual(Report.from_json(Report((plan, plan)).to_json()).plans, (plan, plan))

    def test_json_is_stable(self):
        """Tools read these keys: whoever changes them raises FORMAT and docs/report.md."""
        data = json.loads(make_plan().to_json())
        self.assertEqual(
            " ".join(data),
            "format op dispatch_on size origin device release compile_id called_from backward "
            "one_kernel for_all_sizes parts tuning_seconds costs ranges chosen rejected region "
            "producers handed_out left_out best_single gain_over_single gain_over_op",
        )
        self.assertEqual(data["format"], 1)
        self.assertEqual(
            data["ranges"][0],
            {
                "start": 0,
                "end": 16,
                "probe": 16,
                "winner": "one",
                "margin": 4.0,
                "merged_with": [],
                "measurements": [
                    {
                        "candidate": "one",
                        "milliseconds": 0.01,
                        "spread": 0.0005,
                        "error": None,
                        "everywhere": False,
                        "method": "",
                    },
                    {
                        "candidate": "two",
                        "milliseconds": None,
                        "spread": 0.0,
                        "error": "no memory",
                        "everywhere": False,
                        "method": "",
                    },
                    {
                        "candidate": "op itself",
                        "milliseconds": 0.04,
                        "spread": 0.0,
                        "error": None,
                        "everywhere": False,
                        "method": "",
                    },
                ],
                "probes": [],
                "as_generated": [],
            },
        )
        self.assertEqual(data["ranges"][1]["merged_with"], [{"start": 65, "end": 256}])
        self.assertEqual(data["chosen"][2], {"start": 257, "end": None, "candidate": "op itself"})

    def test_json_from_before_ranges_were_measured_as_generated(self):
        data = make_plan().to_dict()
        for of_range in data["ranges"]:
            del of_range["as_generated"]
        del data["one_kernel"], data["for_all_sizes"], data["parts"]
        self.assertEqual(Plan.from_dict(data), make_plan())

    def test_json_of_something_else(self):
        for text in (
            "[]",
            '{"format": 2}',
            '{"format": 1}',
            '{"format": 1, "op": "x"}',
            "nonsense",
        ):
            with self.assertRaises(ValueError):
                Plan.from_json(text)
            with self.assertRaises(ValueError):
                Report.from_json(text)


class Elements(HTMLParser):
    """What a page consists of, and whether its tags are balanced."""

    ALONE = frozenset(("meta", "circle", "rect", "line", "polyline", "path", "i", "wbr"))

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.classes, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            raise AssertionError(f"</{tag}> closes nothing")

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag, **attributes):
        return [
            a
            for t, a in self.found
            if t == tag and all(a.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]


class PageTest(TestCase):
    def test_structure(self):
        text = make_plan().to_html()
        elements = Elements(text)
        self.assertEqual(elements.open, [])
        self.assertEqual(len(elements.all("svg")), 2)  # the times, and as multiples
        # 4 probes x 3 candidates less the failed one, in both; a border where one runs
        self.assertEqual(len(elements.all("circle")), 2 * 11)
        self.assertEqual(len(elements.all("circle", class_="runs")), 2 * 4)
        self.assertEqual(len(elements.all("path", class_="failed")), 2)
        self.assertEqual(
            [a["class"] for a in elements.all("g") if "band" in a["class"]],
            ["band s0", "band s1", "band op"] * 2,
        )
        shown = " ".join(elements.text)
        for expected in (
            "lib::<op>",
            "3 branches",
            "[17, 256] runs",
            "tracing it would add",
            "no memory",
            "relu, add",
            "1.70x as fast",
        ):
            self.assertIn(expected, shown)

    def test_nothing_comes_from_elsewhere(self):
        text = make_plan(called_from="<script>alert(1)</script>").to_html()
        self.assertEqual(re.findall(r"(?:src|href)=|url\(|@import|https?:", text), [])
        elements = Elements(text)
        self.assertEqual([a.get("type") for a in elements.all("script")], ["application/json"])

    def test_data_is_in_the_page(self):
        plan = make_plan(called_from="</script>")
        data = re.search(
            r'<script type="application/json" id="plans">(.*?)</script>',
            page([plan, plan]),
            re.DOTALL,
        )
        self.assertEqual([Plan.from_dict(each) for each in json.loads(data[1])], [plan, plan])

    def test_one_size(self):
        plan = make_plan(results=make_plan().results[:1], chosen=((Range(0, math.inf), "one"),))
        elements = Elements(plan.to_html())
        self.assertEqual(len(elements.all("svg")), 1)
        self.assertEqual(len([a for a in elements.all("g") if "bar" in a["class"]]), 2)

    def test_dots_are_where_the_numbers_are(self):
        scale = chart.Scale(1.0, 100.0, 0.0, 200.0)
        self.assertEqual([scale(v) for v in (1, 10, 100, 1000)], [0.0, 100.0, 200.0, 200.0])
        elements = Elements(chart.svg(make_plan()))
        across = sorted({float(c["cx"]) for c in elements.all("circle")})
        self.assertEqual(len(across), 4)
        # Probes are 4 times the one before: equal steps on a log axis.
        steps = [b - a for a, b in itertools.pairwise(across)]
        self.assertLess(max(steps) - min(steps), 0.2)

    def test_labels_do_not_overlap(self):
        labels = {f"candidate_{i}": 100.0 + i // 2 for i in range(9)}
        results = tuple(
            RangeResult(Range(start, end), probe, row(**labels), "candidate_0")
            for start, end, probe in ((0, 8, 8), (9, math.inf, 64))
        )
        plan = make_plan(results=results, chosen=((Range(0, math.inf), "candidate_0"),))
        names = [
            (float(a["x"]), float(a["y"]))
            for a in Elements(chart.svg(plan)).all("text")
            if a["class"].startswith("name s")
        ]
        self.assertEqual(len(names), 18)
        for place in (names[:9], names[9:]):
            rows = sorted(y for _, y in place)
            self.assertGreaterEqual(min(b - a for a, b in itertools.pairwise(rows)), 15.9)
            self.assertTrue(all(0 < y < 430 for y in rows), rows)

    @unittest.skipIf(CHROMIUM is None, "no Chromium to render with")
    @parametrize("scheme", ("light", "dark"))
    def test_rendered(self, scheme):
        """A browser shows all of it: nothing is cut off, and the colours follow the scheme."""
        probe = """<script>
          const outside = [];
          for (const svg of document.querySelectorAll('svg')) {
            const frame = svg.getBoundingClientRect();
            for (const text of svg.querySelectorAll('text, circle, rect')) {
              const box = text.getBoundingClientRect();
              if (box.width == 0 || box.left < frame.left - 1 || box.right > frame.right + 1 ||
                  box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
                outside.push(text.textContent);
            }
          }
          document.title = JSON.stringify({outside: outside,
            drawn: document.querySelectorAll('svg circle').length,
            paper: getComputedStyle(document.body).backgroundColor,
            wide: document.documentElement.scrollWidth});
        </script></body>"""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "plan.html")
            path.write_text(make_plan().to_html().replace("</body>", probe))
            chosen = "0" if scheme == "dark" else "1"
            done = subprocess.run(
                [
                    CHROMIUM,
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--dump-dom",
                    f"--user-data-dir={folder}/profile",
                    "--window-size=1100,900",
                    f"--blink-settings=preferredColorScheme={chosen}",
                    f"file://{path}",
                ],
                capture_output=True,
                text=True,
                timeout=120,
            )
        title = re.search(r"<title>(.*?)</title>", done.stdout)
        self.assertTrue(title, done.stderr)
        seen = json.loads(title[1].replace("&quot;", '"'))
        paper = "rgb(20, 23, 27)" if scheme == "dark" else "rgb(255, 255, 255)"
        self.assertEqual(seen, {"outside": [], "drawn": 22, "paper": paper, "wide": seen["wide"]})
        self.assertLessEqual(seen["wide"], 1100)


class PlotTest(TestCase):
    def test_says_how_to_install_it(self):
        with (
            modules(**{"matplotlib": None, "matplotlib.pyplot": None}),
            self.assertRaisesRegex(ImportError, r"pip install matplotlib\. to_html\(\)"),
        ):
            make_plan().plot()

    def test_draws(self):
        try:
            import matplotlib
        except ImportError:
            self.skipTest("no matplotlib")
        matplotlib.use("Agg")
        ax = make_plan().plot()
        self.assertEqual(ax.get_legend_handles_labels()[1], ["one", "two", "op itself"])
        self.assertEqual((ax.get_xscale(), ax.get_yscale()), ("log", "log"))
        self.assertEqual(len(ax.patches), 3)
        ax.figure.savefig(io.BytesIO())


def double(x):
    return x + x


def twice(x):
    return x * 2


def wrong(x):
    return x * 3


def _reported(x: torch.Tensor) -> torch.Tensor:
    return x * 2


reported = define_op("reported", _reported, torch.empty_like)
reported.register_autograd(lambda ctx, grad: reported(grad))


class OpTestCase(RangeDispatchTestCase):
    """One op with two implementations; its records and plans in a folder of the test's own."""

    def setUp(self):
        super().setUp()
        self.cache = Path(self.enterContext(tempfile.TemporaryDirectory()))
        for module in (saved, grid.signature):
            self.enterContext(mock.patch.object(module, "cache_dir", lambda: str(self.cache)))
        self.op = reported
        self.name = "range_dispatch_test::reported"

    def register(self, *functions, **options):
        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(f) for f in functions or (double, twice)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 16},
            split_points=[4, 8],
            **options,
        )

    def compile(self, function=None):
        """A function that calls the op, compiled and called once, with winners by the range."""
        compiled = torch.compile(function or (lambda x: self.op(x)), dynamic=True)
        with force_winners({4: "double", 8: "twice", 16: "twice"}):
            compiled(torch.randn(5, 3))
        return compiled


class ExplainTest(OpTestCase):
    def test_what_can_be_asked(self):
        self.register()
        compiled = self.compile()
        expected = report.plans()
        self.assertEqual(len(expected), 1)
        overload = torch.ops.range_dispatch_test.reported
        asked = [compiled, self.op, self.name, overload, overload.default]
        asked += ["range_dispatch_test.reported", f"{self.name}.default"]
        for what in asked:
            self.assertEqual(explain(what).plans, expected, msg=str(what))

    def test_plan_says_where_it_belongs(self):
        self.register()
        self.compile()
        (plan,) = report.plans()
        self.assertEqual((plan.compile_id, plan.backward), ("0/0", False))
        self.assertRegex(plan.called_from, r"test_range_dispatch_report.py:\d+ in <lambda>$")
        self.assertEqual(plan.release, torch.__version__)
        self.assertTrue(plan.device)
        self.assertEqual(plan.labels, ("double", "twice", OP_LABEL))
        self.assertEqual(plan.merged_with(plan.results[1]), (Range(9, math.inf),))
        self.assertEqual(plan.gain_over_op, 2.0)

    def test_compiled_functions_are_told_apart(self):
        self.register()

        def first(x):
            y = self.op(x)
            torch._dynamo.graph_break()
            return self.op(y) + 1

        def second(x):
            return self.op(x) - 1

        first, second = self.compile(first), self.compile(second)
        self.assertEqual(len(report.plans()), 3)
        self.assertEqual(explain(first).plans, report.plans()[:2])
        self.assertEqual(explain(second).plans, report.plans()[2:])
        self.assertEqual(len(explain(self.op)), 3)

    def test_modules_and_backward_graphs(self):
        self.register()

        class Model(torch.nn.Module):
            def forward(model, x):
                return self.op(x)

        with force_winners({4: "double", 8: "twice", 16: "twice"}):
            compiled = torch.compile(Model(), dynamic=True)
            compiled(torch.randn(5, 3, requires_grad=True)).sum().backward()
            inside = Model()
            inside.compile(dynamic=True)
            inside(torch.randn(5, 3))
        self.assertEqual([plan.backward for plan in explain(compiled)][:2], [False, True])
        self.assertGreaterEqual(len(explain(inside)), 1)

    def test_errors(self):
        self.register()
        compiled = torch.compile(lambda x: x + 1)
        with self.assertRaisesRegex(NoPlan, "was not compiled yet.*call it first"):
            explain(compiled)
        compiled(torch.randn(3))
        with self.assertRaisesRegex(NoPlan, f"nothing was tuned for it.*Registered: {self.name}"):
            explain(compiled)
        with self.assertRaisesRegex(NoPlan, f"{self.name} is registered and was not tuned yet"):
            explain(self.op)
        with self.assertRaisesRegex(NoPlan, f"nix::op is not registered.*here: {self.name}"):
            explain("nix::op")
        with self.assertRaisesRegex(TypeError, "explain.. takes an op.*got 3 of type int"):
            explain(3)
        with self.assertRaisesRegex(TypeError, "what torch.compile returned"):
            explain(double)


class SavedTest(OpTestCase):
    def setUp(self):
        super().setUp()
        self.enterContext(config.patch(use_records=True))
        records.forget()
        self.addCleanup(records.forget)

    def test_another_process_reads_the_plan(self):
        self.register()
        self.compile()
        (plan,) = report.plans()
        self.assertEqual(plan.origin, "measured")
        report.clear()
        self.assertEqual(explain(self.op).plans, (plan,))
        unregister_custom_op_autotuning(self.op)
        self.assertEqual(explain(self.name).plans, (plan,))

    def test_the_next_plan_for_a_line_replaces_the_last(self):
        self.register()
        for _ in range(2):
            torch._dynamo.reset()
            self.compile()
        self.assertEqual(len(report.plans()), 2)
        self.assertEqual([plan.origin for plan in report.plans()], ["measured", RECORDED])
        self.assertEqual(saved.plans(self.name), [report.plans()[-1]])
        self.assertIn("from records in", str(report.plans()[-1]))
        self.assertEqual(counters["inductor"]["range_dispatch_from_records"], 1)

    def test_records_speak_where_there_is_no_plan(self):
        self.register()
        self.compile()
        (plan,) = report.plans()
        report.clear()
        shutil.rmtree(saved.plan_folder())
        (again,) = explain(self.op)
        self.assertEqual(again.chosen, plan.chosen)
        self.assertEqual(again.labels, plan.labels)
        self.assertEqual(again.origin, RECORDED)
        self.assertEqual([r.probe for r in again.results], [4, 8, 16])
        # Without the registration each probe ends a range, which is what it does by default.
        (entry,) = saved.entries([saved.cache_folder()])
        self.assertEqual(saved.plan_of(entry).chosen, plan.chosen)

    def test_a_plan_of_another_registration_does_not_count(self):
        self.register()
        self.compile()
        report.clear()
        self.register(double)
        shutil.rmtree(self.cache / "range_dispatch" / "plans" / "nothing", ignore_errors=True)
        (plan,) = explain(self.op)  # what the records of the one that is left lead to
        self.assertEqual(plan.labels, ("double", OP_LABEL))

    def test_files_that_are_not_plans(self):
        self.register()
        self.compile()
        folder = saved.plan_folder()
        (folder / "a.json").write_text("nonsense")
        (folder / "b.json").write_text('{"_metadata": {"writer": "somebody"}}')
        (folder / "c.json").write_text("[]")
        self.assertEqual(len(saved.plans()), 1)

    def test_a_folder_that_cannot_be_written_stops_nothing(self):
        self.register()
        with mock.patch.object(records, "replace_file", side_effect=PermissionError("read-only")):
            compiled = self.compile()
        self.assertEqual(compiled(torch.ones(2, 3)), torch.full((2, 3), 2.0))
        self.assertEqual(len(report.plans()), 1)


class LogsTest(OpTestCase):
    def test_quiet_by_default(self):
        self.register()
        with contextlib.redirect_stderr(io.StringIO()) as err:
            self.compile()
        self.assertEqual(err.getvalue(), "")
        self.assertTrue(logs.artifact_log.name.endswith(".__range_dispatch"))
        self.assertFalse(logs.artifact_log.isEnabledFor(logging.INFO))

    def test_artifact_is_registered(self):
        registry = torch._logging._internal.log_registry
        self.assertTrue(registry.is_artifact("range_dispatch"))
        self.assertIn("range_dispatch", registry.visible_artifacts)
        self.register()
        with self.assertLogs(logs.artifact_log, "INFO") as seen:
            self.compile()
        (plan,) = report.plans()
        self.assertEqual([r.getMessage() for r in seen.records], [str(plan)])

    def test_counters(self):
        self.register()
        self.compile()
        seen = {k: v for k, v in counters["inductor"].items() if k.startswith("range_dispatch")}
        expected = {"plans": 1, "dispatched": 1, "branches": 2, "not_used": 0, "times": 9}
        self.assertEqual(seen, {f"range_dispatch_{k}": v for k, v in expected.items()})

    def test_structured_trace(self):
        self.register()
        with mock.patch.object(torch._logging, "trace_structured") as trace:
            self.compile()
        sent = {}
        for call in trace.call_args_list:
            about = call.kwargs.get("metadata_fn", dict)() if call.args[:1] == ("artifact",) else {}
            if str(about.get("name", "")).startswith("range_dispatch"):
                sent[about["name"], about["encoding"]] = call.kwargs["payload_fn"]()
        (plan,) = report.plans()
        self.assertEqual(Plan.from_json(sent["range_dispatch_plan", "json"]), plan)
        self.assertEqual(sent["range_dispatch_plan_table", "string"], str(plan))

    def test_debug_output(self):
        self.register()
        with (
            inductor_config.patch({"trace.enabled": True}),
            torch._dynamo.config.patch(debug_dir_root=str(self.cache)),
            mock.patch.dict(os.environ),
        ):
            self.compile(lambda x: self.op(self.op(x)))
        first, second = report.plans()
        (text,) = self.cache.rglob("range_dispatch.txt")
        self.assertEqual(text.read_text(), f"{first}\n\n{second}\n\n")
        self.assertEqual((text.parent / "range_dispatch.html").read_text(), page([first, second]))
        self.assertTrue((text.parent / "output_code.py").exists())

    def test_a_fault_in_reporting_stops_nothing(self):
        self.register()
        with (
            mock.patch.object(logs, "publish", side_effect=RuntimeError("broken")),
            self.assertLogs("torch._inductor.kernel.range_dispatch.report", "WARNING") as seen,
        ):
            compiled = self.compile()
        self.assertIn("could not be made known", seen.output[0])
        self.assertEqual(compiled(torch.ones(2, 3)), torch.full((2, 3), 2.0))


class Terminal(io.StringIO):
    def isatty(self):
        return True


class ProgressTest(OpTestCase):
    def run_on(self, stream, tqdm):
        hidden = {} if tqdm else {"tqdm": None}
        self.enterContext(config.patch(use_records=True))
        with mock.patch.object(sys, "stderr", stream), modules(**hidden):
            self.register()
            self.compile()
        return stream.getvalue()

    def test_nothing_where_nobody_looks(self):
        self.assertEqual(self.run_on(io.StringIO(), tqdm=False), "")

    @parametrize("how", ("knob", "level", "rank"))
    def test_nothing_where_it_is_turned_off(self, how):
        if how == "knob":
            self.enterContext(config.patch(progress=False))
        elif how == "level":
            logger = logging.getLogger("torch._inductor.kernel.range_dispatch")
            self.addCleanup(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        else:
            self.enterContext(mock.patch.dict(os.environ, {"LOCAL_RANK": "1"}))
        self.assertEqual(self.run_on(Terminal(), tqdm=False), "")

    def test_plain_lines(self):
        def measure(bench, contenders, point):
            progress.phase("measure", f"at {point.size}")
            return [
                Measurement(c.candidate.label, 0.001 * (i + 1)) for i, c in enumerate(contenders)
            ]

        stream = Terminal()
        with mock.patch.object(grid.tuner, "measure", measure):
            self.register()
            with (
                mock.patch.object(sys, "stderr", stream),
                modules(tqdm=None),
                config.patch(use_records=True),
            ):
                records.forget()
                self.addCleanup(records.forget)
                torch.compile(lambda x: self.op(x), dynamic=True)(torch.randn(5, 3))
        lines = stream.getvalue().splitlines()
        self.assertEqual(len(lines), 4, lines)
        for line, done, size in zip(lines, (3, 6, 9), (8, 4, 16), strict=False):
            self.assertRegex(
                line, rf"^{self.name}: {done} of 9 times, [\d.]+ s, best at {size}: double 1.0 us$"
            )
        page = re.match(
            rf"^{self.name}: tuned in [\d.]+ s, runs double\. Report: (.*\.html)$", lines[3]
        )
        self.assertTrue(page, lines[3])
        self.assertIn("<svg", Path(page[1]).read_text())
        self.assertEqual(report.plans()[0].origin, "measured")
        self.assertEqual([kind for kind, _ in report.plans()[0].costs], ["measure"])

    def test_one_line_with_tqdm(self):
        shown = []

        class Bar:
            def __init__(bar, total, initial, desc, file, leave, bar_format):
                bar.n = initial
                shown.append((desc, initial, total, leave))

            def set_postfix_str(bar, text):
                shown.append((bar.n, text))

            def close(bar):
                shown.append("closed")

        bench = unittest.TestCase()  # any object that can be told apart
        with (
            modules(tqdm=mock.Mock(tqdm=Bar)),
            config.patch(progress=True),
        ):
            progress.start(bench, "a::b", 2, 1)
            progress.phase("compile", "one")
            progress.row(8, row(one=3.0, op=2.0), 2)
            progress.finish(make_plan(op="a::b"))
        best = "best at 8: op itself 2.0 us"
        self.assertEqual(shown, [("a::b", 0, 2, False), (0, "compile one"), (2, best), "closed"])

    def test_a_tuning_that_failed_leaves_nothing(self):
        class Bench:
            pass

        bench = Bench()
        progress.start(bench, "a::b", 2, 2)
        progress.phase("compile")
        del bench
        self.assertEqual(progress.finish(make_plan(op="c::d")).origin, None)
        again = Bench()
        progress.start(again, "a::b", 1, 1)
        self.assertEqual(len(progress._running()), 1)
        plan = progress.finish(make_plan(op="a::b", costs=()))
        self.assertEqual((plan.costs, plan.origin), ((), None))
        self.assertEqual(progress._running(), [])


class ProfileTest(OpTestCase):
    def test_a_profile_names_the_branch(self):
        self.register()
        compiled = self.compile()
        for size, branch in ((3, "le_4"), (9, "gt_4")):
            with torch.profiler.profile() as profile:
                compiled(torch.randn(size, 3))
            names = {e.name for e in profile.events() if "reported" in e.name}
            self.assertEqual(len(names), 1, names)
            self.assertTrue(names.pop().endswith(branch))

    def test_nothing_is_recorded_otherwise(self):
        self.register()
        compiled = self.compile()
        with mock.patch.object(torch.autograd.profiler, "record_function") as record:
            compiled(torch.randn(3, 3))
        record.assert_not_called()


instantiate_parametrized_tests(PageTest)
instantiate_parametrized_tests(ProgressTest)


if __name__ == "__main__":
    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
