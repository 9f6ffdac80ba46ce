# Owner(s): ["module: inductor"]
"""Tuning records: what is measured once is found again, in memory and in files; what is pinned."""

import json
import math
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import uuid
from pathlib import Path
from unittest import mock

from range_dispatch_common import (
    config,
    custom_op,
    define_op,
    HAS_CPU,
    inductor_config,
    OP_LABEL,
    RangeDispatchTestCase,
    report,
)

import torch
from torch._inductor.codegen.common import custom_backend_codegen_configs
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
from torch._inductor.kernel.range_dispatch import (
    description,
    fingerprint,
    records,
    saved,
    signature,
    tuner,
)
from torch._inductor.kernel.range_dispatch.choosing import Measurement
from torch._inductor.kernel.range_dispatch.records import Key, Records
from torch._inductor.test_case import TestCase
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


KEY = Key("lib::op.default", "A CPU", {"operands": []}, {"torch": "2.0"})
ROW = {
    "aaaa": Measurement("fast", 0.25, 0.01, method="clock"),
    "bbbb": Measurement("failing", math.inf, 0.0, "it fails", everywhere=True),
}


class FilesTest(TestCase):
    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / KEY.file_name
        records.forget()
        self.addCleanup(records.forget)

    def open(self, key=KEY, folders=None, **options):
        """As a new process would."""
        records.forget()
        return Records(key, folders or [self.folder], **options)

    def save(self, row=ROW, probe="64", **options):
        opened = self.open(**options)
        opened.add(probe, row)
        opened.save()

    def found(self, opened, probe="64"):
        return {name: opened.find(probe, name) for name in ROW}

    def test_what_is_saved_is_found(self):
        self.save()
        self.assertEqual(self.found(self.open()), ROW)
        self.assertIsNone(self.open().find("128", "aaaa"))
        self.assertIsNone(self.open().find("64", "cccc"))

    def test_readable_and_diffable(self):
        self.save()
        text = self.path.read_text()
        content = json.loads(text)
        self.assertEqual(self.path.name, "lib_op_default.A_CPU.json")
        self.assertEqual(
            content["_metadata"],
            {
                "writer": records.WRITER,
                "format": 1,
                "op": "lib::op.default",
                "device": "A CPU",
                "torch": "2.0",
            },
        )
        (entry,) = content["entries"].values()
        self.assertEqual(entry["signature"], {"operands": []})
        self.assertEqual(
            entry["probes"]["64"]["aaaa"],
            {"label": "fast", "milliseconds": 0.25, "spread": 0.01, "method": "clock"},
        )
        self.save(ROW)
        self.assertEqual(self.path.read_text(), text)

    def test_another_signature_or_environment_is_another_entry_of_the_file(self):
        self.save()
        for other in (
            Key(KEY.op, KEY.device, {"operands": [1]}, KEY.environment),
            Key(KEY.op, KEY.device, KEY.signature, {"torch": "2.1"}),
        ):
            self.assertIsNone(self.open(other).find("64", "aaaa"))
            self.save(key=other)
            self.assertEqual(self.found(self.open(other)), ROW)
        self.assertEqual(self.found(self.open()), ROW)
        self.assertEqual(len(list(self.folder.glob("*.json"))), 1)

    def test_a_file_has_the_rights_of_new_files(self):
        """Others may read what lies in a folder that is shared."""
        before = os.umask(0o022)
        self.addCleanup(os.umask, before)
        self.save()
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o644)

    def test_a_generation_that_is_no_text_is_one(self):
        with mock.patch.object(saved, "cache_folder", lambda: self.folder):
            self.assertEqual(saved.generation(), "")
            saved.generation_file().write_bytes(b"\xff\xfe")
            self.assertNotEqual(saved.generation(), "")

    def test_writers_add_to_each_other(self):
        one, other = self.open(), None
        one.add("64", ROW)
        records.forget()
        other = Records(KEY, [self.folder])
        other.add("128", ROW)
        one.save()
        other.save()
        both = self.open()
        self.assertEqual((self.found(both), self.found(both, "128")), (ROW, ROW))

    def test_many_writers_at_once_lose_nothing(self):
        def write(i):
            records._merge_into(self.path, KEY, {str(i): ROW})

        threads = [threading.Thread(target=write, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        opened = self.open()
        for i in range(12):
            self.assertEqual(self.found(opened, str(i)), ROW)
        left = {p.name for p in self.folder.iterdir()}
        self.assertEqual(left - {self.path.name}, {f".{self.path.name}.lock"})

    def test_a_writer_that_dies_leaves_the_old_file(self):
        self.save()
        before = self.path.read_text()
        dies = mock.patch.object(os, "replace", side_effect=KeyboardInterrupt)
        with dies, self.assertRaises(KeyboardInterrupt):
            self.save(probe="128")
        self.assertEqual(self.path.read_text(), before)
        self.assertEqual(list(self.folder.glob("*.tmp")), [])

    def test_lookup_order_is_memory_then_folders_in_order(self):
        named, cache = self.folder / "named", self.folder / "cache"

        def row(milliseconds):
            return {"aaaa": Measurement("a", milliseconds)}

        self.save(row(2.0), folders=[cache])
        self.save(row(1.0), folders=[named])
        self.assertEqual(self.open(folders=[named, cache]).find("64", "aaaa").milliseconds, 1.0)
        opened = self.open(folders=[cache, named])
        self.assertEqual(opened.find("64", "aaaa").milliseconds, 2.0)
        with mock.patch.object(records, "_read", side_effect=AssertionError("read")):
            again = Records(KEY, [named])
            self.assertEqual(again.find("64", "aaaa").milliseconds, 2.0)

    def test_what_the_cache_has_goes_into_the_named_folder(self):
        named, cache = self.folder / "named", self.folder / "cache"
        self.save(folders=[cache])
        opened = self.open(folders=[named, cache])
        self.found(opened)
        opened.save()
        self.assertEqual(self.found(self.open(folders=[named])), ROW)

    def test_retune_reads_no_file_and_replaces_what_it_measures(self):
        self.save()
        self.save({"cccc": Measurement("c", 3.0)})
        opened = self.open(retune=True)
        self.assertIsNone(opened.find("64", "aaaa"))
        opened.add("64", {"aaaa": Measurement("fast", 9.0)})
        opened.save()
        again = self.open()
        self.assertEqual(again.find("64", "aaaa").milliseconds, 9.0)
        self.assertEqual(again.find("64", "cccc").milliseconds, 3.0)

    @parametrize(
        "what",
        [
            "truncated",
            "binary",
            "another_json",
            "list",
            "foreign",
            "newer",
            "entries",
            "nan",
            "huge",
            "type",
        ],
    )
    def test_unusable_files_are_ignored_with_one_warning(self, what):
        self.save()
        content = json.loads(self.path.read_text())
        ours = what in ("truncated", "entries", "nan", "huge", "type")
        if what == "truncated":
            text = self.path.read_text()[:-40]
        elif what == "binary":
            text = "\x80\x04\x95\x00"
        elif what == "another_json":
            text = '{"name": "package"}'
        elif what == "list":
            text = "[1, 2]"
        else:
            (entry,) = content["entries"].values()
            if what == "foreign":
                content["_metadata"]["writer"] = "another"
            elif what == "newer":
                content["_metadata"]["format"] = 2
            elif what == "entries":
                content["entries"] = [1]
            elif what == "nan":
                entry["probes"]["64"]["aaaa"]["milliseconds"] = math.nan
            elif what == "huge":
                entry["probes"]["64"]["aaaa"]["milliseconds"] = 10**400
            else:
                entry["probes"]["64"]["aaaa"] = "fast"
            text = json.dumps(content)
        self.path.write_text(text)
        with self.assertLogs(records.log, "WARNING") as logged:
            opened = self.open()
            self.assertIsNone(opened.find("64", "aaaa"))
            opened.add("128", ROW)
            opened.save()
        self.assertEqual(len(logged.output), 1)
        self.assertIn(str(self.path), logged.output[0])
        if ours:
            self.assertEqual(self.found(self.open(), "128"), ROW)
        else:
            self.assertEqual(self.path.read_text(), text)

    def test_a_folder_that_cannot_be_written_is_warned_of_once(self):
        file = self.folder / "file"
        file.write_text("")
        with self.assertLogs(records.log, "WARNING") as logged:
            for _ in range(2):
                opened = Records(KEY, [file / "below", self.folder])
                opened.add("64", ROW)
                opened.save()
        self.assertEqual(len(logged.output), 1)
        self.assertEqual(self.found(self.open()), ROW)


def tripled(x: torch.Tensor, factor: float = 3.0) -> torch.Tensor:
    return x * factor


def by_sum(x, factor):
    return x * (factor - 1) + x


def by_half(x, factor):
    return x * (factor / 2) * 2


class TunedOnceTest(RangeDispatchTestCase):
    """The records in use: what is measured is seen at the tuner."""

    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        records.forget()
        self.addCleanup(records.forget)
        for patch in (
            config.patch(use_records=True),
            mock.patch.object(signature, "cache_dir", lambda: str(self.folder / "cache")),
        ):
            self.enterContext(patch)
        self.op = define_op("tripled", tripled)

    def measured(
        self, *functions, n=3, call=None, new_process=True, dtype=None, method="", **options
    ):
        """Tune in what might be a new process: probe and labels of what the tuner measured."""
        if new_process:
            records.forget()
        torch._dynamo.reset()
        options = {
            "dispatch_on": {"tensor_name": "x", "dim": 0, "range_upper_bound": 8},
            "split_points": [4],
            **options,
        }
        configs = [f if isinstance(f, CustomOpConfig) else CustomOpConfig(f) for f in functions]
        register_custom_op_autotuning(self.op, configs=configs, **options)
        calls = []

        def fake(bench, contenders, point):
            labels = [c.candidate.label for c in contenders]
            calls.append((point.size, *labels))
            times = [2.0 if label == OP_LABEL else 1.0 for label in labels]
            return [Measurement(*m, method=method) for m in zip(labels, times, strict=True)]

        call = call or (lambda x: self.op(x))
        with mock.patch.object(tuner, "measure", fake):
            x = torch.randn(n, 6, dtype=dtype)
            self.check(torch.compile(call, dynamic=True), call, x)
        return calls

    def test_a_warm_process_measures_nothing_even_in_another_graph(self):
        first = self.measured(by_sum)
        self.assertEqual(first, [(4, "by_sum", OP_LABEL), (8, "by_sum", OP_LABEL)])
        self.assertEqual(self.measured(by_sum), [])
        another = lambda x: self.op(x @ x.t() @ x).cumsum(0) + 1  # noqa: E731
        self.assertEqual(self.measured(by_sum, call=another, n=7), [])
        plans = [plan.chosen for plan in report.plans()]
        self.assertEqual(plans[0], plans[2])

    def test_what_fuses_with_the_op_is_part_of_the_key(self):
        alone = self.measured(by_sum)
        with_consumer = lambda x: self.op(x).relu()  # noqa: E731
        self.assertEqual(self.measured(by_sum, call=with_consumer), alone)
        elsewhere = lambda x: torch.relu(self.op(x @ x.t() @ x)).cumsum(0)  # noqa: E731
        self.assertEqual(self.measured(by_sum, call=elsewhere), [])

    def test_a_warm_process_traces_the_winners_alone(self):
        def traced():
            with mock.patch.object(custom_op, "trace", side_effect=custom_op.trace) as trace:
                self.measured(by_sum, by_half)
            return [call.args[0].label for call in trace.call_args_list]

        self.assertEqual(traced(), ["by_sum", "by_half", OP_LABEL])
        self.assertEqual(traced(), ["by_sum"])

    def test_a_winner_on_record_that_cannot_be_traced_here_is_out(self):
        self.measured(by_sum, by_half)
        real = custom_op.trace

        def trace(candidate, *args):
            if candidate.label == "by_sum":
                raise custom_op.Rejected("not in this graph")
            return real(candidate, *args)

        with mock.patch.object(custom_op, "trace", trace):
            self.assertEqual(self.measured(by_sum, by_half), [])
        plan = report.plans()[-1]
        self.assertEqual([label for _, label in plan.chosen], ["by_half"])
        self.assertEqual(plan.rejected, (("by_sum", "not in this graph"),))

    def test_memory_serves_a_second_compile_without_files(self):
        self.measured(by_sum)
        with mock.patch.object(records, "_read", side_effect=AssertionError("read")):
            self.assertEqual(self.measured(by_sum, new_process=False), [])

    def test_what_is_new_is_measured_alone(self):
        self.measured(by_sum)
        self.assertEqual(self.measured(by_sum, by_half), [(4, "by_half"), (8, "by_half")])
        changed = CustomOpConfig(lambda x, factor: x * (factor - 2) + 2 * x)
        self.assertEqual(self.measured(changed, by_sum), [(4, "<lambda>"), (8, "<lambda>")])
        self.assertEqual(self.measured(by_sum, split_points=[4, 6]), [(6, "by_sum", OP_LABEL)])
        self.assertEqual(
            self.measured(CustomOpConfig(by_sum, factor=3.0)),
            [(4, "by_sum(factor=3.0)"), (8, "by_sum(factor=3.0)")],
        )
        patched = CustomOpConfig(by_sum, config_patches={"max_autotune": False})
        self.assertEqual(len(self.measured(patched)), 2)

    def test_times_by_different_methods_are_not_compared(self):
        """As on a GPU where what is new can't be captured in a CUDA graph."""
        self.measured(by_sum, method="CUDA graph")
        again = self.measured(by_sum, by_half, method="events")
        whole = ("by_sum", "by_half", OP_LABEL)
        self.assertEqual(again, [(4, "by_half"), (4, *whole), (8, "by_half"), (8, *whole)])
        self.assertEqual(self.measured(by_sum, by_half, method="events"), [])

    def test_the_signature_is_part_of_the_key(self):
        self.measured(by_sum)
        self.assertEqual(len(self.measured(by_sum, dtype=torch.float64)), 2)
        self.assertEqual(len(self.measured(by_sum, call=lambda x: self.op(x, 2.0))), 2)
        transposed = self.measured(by_sum, call=lambda x: self.op(x.t().contiguous().t()))
        self.assertEqual(len(transposed), 2)
        self.assertEqual(len(self.measured(by_sum, check=False)), 2)
        five = lambda x: self.op(x[:, :1].expand(-1, 5).contiguous())  # noqa: E731
        seven = lambda x: self.op(x[:, :1].expand(-1, 7).contiguous())  # noqa: E731
        columns = [self.measured(by_sum, call=call) for call in (five, seven, five)]
        self.assertEqual(list(map(len, columns)), [2, 2, 0])
        deeper = self.measured(by_sum, call=lambda x: self.op(x.unsqueeze(-1)))
        self.assertEqual(len(deeper), 2)
        with inductor_config.patch(max_autotune=not inductor_config.max_autotune):
            self.assertEqual(len(self.measured(by_sum)), 2)

    def test_the_named_folder(self):
        named = self.folder / "named"
        self.measured(by_sum, records=named)
        (file,) = named.glob("*.json")
        self.assertEqual(len(list((self.folder / "cache").rglob("*.json"))), 1)
        file.rename(file.with_suffix(".away"))
        self.assertEqual(self.measured(by_sum, records=named), [])
        self.assertTrue(file.exists())
        with (
            config.patch(records_folder=str(named)),
            mock.patch.object(signature, "cache_dir", lambda: str(self.folder / "other")),
        ):
            self.assertEqual(self.measured(by_sum), [])

    def test_plain_tuning_is_recorded_by_its_sizes(self):
        plain = {"dispatch_on": None, "split_points": None}
        self.assertEqual(len(self.measured(by_sum, **plain)), 1)
        self.assertEqual(self.measured(by_sum, **plain), [])
        self.assertEqual(len(self.measured(by_sum, n=5, **plain)), 1)

    def test_retune(self):
        self.measured(by_sum)
        with config.patch(retune=True):
            self.assertEqual(len(self.measured(by_sum)), 2)
            self.assertEqual(self.measured(by_sum, new_process=False), [])

    def key(self):
        """What a compile cache hashes of us now, in what might be a new process."""
        with mock.patch.object(fingerprint, "_this_process", str(uuid.uuid4())):
            kept = custom_backend_codegen_configs["range_dispatch"].save_config_portable(
                ignore_private_configs=False
            )
        return kept["records"]

    def test_what_a_compile_writes_does_not_change_the_key(self):
        for options in ({}, {"records": self.folder / "named"}):
            before = None
            for functions in ((by_sum,), (by_sum,), (by_sum, by_half)):
                self.measured(*functions, **options)
                before = before or self.key()
                self.assertEqual(self.key(), before)

    def test_a_shipped_folder_that_says_something_else_changes_the_key(self):
        named = self.folder / "named"
        self.measured(by_sum, records=named)
        cold = self.key()
        with mock.patch.object(signature, "cache_dir", lambda: str(self.folder / "elsewhere")):
            shipped = self.key()
            self.assertNotEqual(shipped, cold)
            self.assertEqual(self.measured(by_sum, records=named), [])
            self.assertEqual(self.key(), shipped)  # it was not copied
            self.assertEqual(len(self.measured(by_sum, by_half, records=named)), 2)
            self.assertEqual(self.key(), shipped)
            (file,) = named.glob("*.json")
            file.write_text(file.read_text().replace("2.0", "2.5"))
            self.assertNotIn(self.key(), (shipped, cold))
            file.unlink()
            self.assertNotEqual(self.key(), shipped)

    def test_another_op_in_the_folder_does_not_change_the_key(self):
        named = self.folder / "named"
        self.measured(by_sum, records=named)
        before = self.key()
        (named / "another_op.A_CPU.json").write_text("{}")
        self.assertEqual(self.key(), before)

    def test_retuning_misses_the_compile_caches(self):
        self.measured(by_sum)
        keys = {self.key()}
        with config.patch(retune=True):
            for _ in range(2):
                self.measured(by_sum)
                keys.add(self.key())
        self.assertEqual(len(keys), 3)
        retuned = self.key()
        self.assertNotIn(retuned, keys)
        self.measured(by_sum)
        self.assertEqual(self.key(), retuned)

    def test_pinned_code_depends_on_all_records(self):
        with config.patch(deterministic=True):
            self.measured(by_sum)
            without = self.key()
            self.measured(by_sum)
            self.assertEqual(self.key(), without)
        self.measured(by_sum)
        with config.patch(deterministic=True):
            pinned = self.key()
            self.assertNotEqual(pinned, without)
            self.measured(by_sum, records=self.folder / "named")
            self.assertTrue(list((self.folder / "named").glob("*.json")))
            self.assertEqual(self.key(), pinned)  # that is a copy

    @parametrize("knob", sorted(set(config._config) - set(config._cache_config_ignore_prefix)))
    def test_knobs_are_part_of_the_key(self, knob):
        def all_keys():
            keyed = custom_backend_codegen_configs["range_dispatch"]
            return keyed.save_config_portable(ignore_private_configs=False)

        self.measured(by_sum)
        before = all_keys()
        value = getattr(config, knob)
        other = value + 1 if isinstance(value, (int, float)) else "another"
        with config.patch({knob: not value if isinstance(value, bool) else other}):
            self.assertNotEqual(all_keys(), before)

    def test_records_can_be_turned_off(self):
        with config.patch(use_records=False):
            for _ in range(2):
                self.assertEqual(len(self.measured(by_sum, new_process=False)), 2)
        self.assertEqual(list(self.folder.rglob("*.json")), [])

    def test_a_wrong_candidate_stays_out(self):
        def wrong(x, factor):
            return x * factor + 1

        options = {"split_points": [4], "dispatch_on": {"tensor_name": "x", "dim": 0}}
        register_custom_op_autotuning(self.op, configs=[CustomOpConfig(wrong)], **options)
        for _ in range(2):
            torch._dynamo.reset()
            records.forget()
            x = torch.randn(3, 6)
            self.check(torch.compile(lambda x: self.op(x), dynamic=True), self.op, x)
            self.assertEqual([label for label, _ in report.plans()[-1].rejected], ["wrong"])

    @parametrize("switch", ["knob", "algorithms", "inductor"])
    def test_deterministic_mode_never_benchmarks(self, switch):
        def pinned():
            if switch == "knob":
                return config.patch(deterministic=True)
            if switch == "inductor":
                return inductor_config.patch(deterministic=True)
            before = torch.are_deterministic_algorithms_enabled()
            torch.use_deterministic_algorithms(True)
            self.addCleanup(torch.use_deterministic_algorithms, before)
            return mock.patch.object(self, "folder", self.folder)

        with pinned():
            self.assertEqual(self.measured(by_sum), [])
            self.assertEqual([c for _, c in report.plans()[-1].chosen], [OP_LABEL])
        torch.use_deterministic_algorithms(False)
        self.assertEqual(len(self.measured(by_sum)), 2)
        # Dynamo turns Inductor's flag off again after a frame that it compiled.
        for functions, winner in (((by_sum,), "by_sum"), ((by_sum, by_half), OP_LABEL)):
            with pinned(), config.patch(retune=True):
                self.assertEqual(self.measured(*functions), [])
            self.assertEqual([c for _, c in report.plans()[-1].chosen], [winner])


PROGRAM = """
    import json
    from unittest import mock
    import torch
    from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
    from torch._inductor.kernel.range_dispatch import report, tuner
    from torch._inductor import config

    @torch.library.custom_op("range_dispatch_records::op", mutates_args=())
    def op(x: torch.Tensor) -> torch.Tensor:
        return x * 3
    op.register_fake(torch.empty_like)

    K = 1

    def by_sum(x):
        return x * 2 + x * K

    def by_half(x):
        return x * 1.5 * 2

    register_custom_op_autotuning(
        op,
        configs=[CustomOpConfig(by_sum), CustomOpConfig(by_half, {"max_autotune": False})],
        dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 8},
        split_points=[4],
    )
    real, calls = tuner.measure, []
    def measure(bench, contenders, point):
        calls.append([c.candidate.label for c in contenders])
        return real(bench, contenders, point)
    tuner.measure = measure
    with config.patch(fx_graph_cache=False):
        out = torch.compile(GRAPH, dynamic=True)(torch.ones(3, 2))
    print(json.dumps([calls, [label for _, label in report.plans()[-1].chosen]]))
"""


CACHED = """
    import json
    import torch
    import torch._functorch.config as functorch_config
    from torch._dynamo.utils import counters
    from torch._inductor import config
    from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
    from torch._inductor.kernel.range_dispatch import tuner
    from torch._inductor.kernel.range_dispatch.choosing import Measurement

    @torch.library.custom_op("range_dispatch_records::cached", mutates_args=())
    def op(x: torch.Tensor) -> torch.Tensor:
        return x + 1
    op.register_fake(torch.empty_like)

    ran, measured = [], []

    @torch.library.custom_op("range_dispatch_records::noting", mutates_args=())
    def noting(x: torch.Tensor) -> torch.Tensor:
        ran.append("ours")
        return x + 1
    noting.register_fake(torch.empty_like)

    def ours(x):
        return torch.ops.range_dispatch_records.noting(x)

    def measure(bench, contenders, point):
        measured.append(point.size)
        labels = [c.candidate.label for c in contenders]
        return [Measurement(label, 1.5 if label == "ours" else 2.0) for label in labels]

    tuner.measure = measure
    register_custom_op_autotuning(
        op,
        configs=[CustomOpConfig(ours)],
        dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 8},
        split_points=[4],
    )
    found = {}
    for cache in ("fx_graph", "aot_autograd"):
        torch._dynamo.reset()
        for seen in (counters, ran, measured):
            seen.clear()
        with (
            config.patch(fx_graph_cache=True, fx_graph_remote_cache=False),
            functorch_config.patch(enable_autograd_cache=cache == "aot_autograd"),
        ):
            torch.compile(op, dynamic=True)(torch.ones(5, 3))
        fx = counters["inductor"]["fxgraph_cache_hit"]
        aot = counters["aot_autograd"]["autograd_cache_hit"]
        hit = fx if cache == "fx_graph" else aot
        found[cache] = [hit == 1, len(measured), ran[:]]
    print(json.dumps(found))
"""


class ProcessesTest(TestCase):
    def test_compile_caches_follow_the_records(self):
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder, "named")

            def run(**environment):
                environment = {
                    **os.environ,
                    "TORCHINDUCTOR_CACHE_DIR": str(Path(folder, "cache")),
                    "TORCH_RANGE_DISPATCH_RECORDS": str(named),
                    **environment,
                }
                done = subprocess.run(
                    [sys.executable, "-c", textwrap.dedent(CACHED)],
                    env=environment,
                    capture_output=True,
                    text=True,
                )
                self.assertEqual(done.returncode, 0, done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                (hit, _, ran), (also_hit, _, also_ran) = found.values()
                self.assertEqual((hit, ran), (also_hit, also_ran))
                return hit, found["fx_graph"][1], ran

            miss, hit = False, True
            self.assertEqual(run(), (miss, 2, ["ours"]))
            self.assertEqual(run(), (hit, 0, ["ours"]))
            self.assertEqual(run(TORCH_RANGE_DISPATCH_RETUNE="1"), (miss, 2, ["ours"]))
            self.assertEqual(run(), (miss, 0, ["ours"]))
            self.assertEqual(run(), (hit, 0, ["ours"]))
            (file,) = named.glob("*.json")
            file.write_text(file.read_text().replace("1.5", "2.5"))  # as one that was shipped
            self.assertEqual(run(), (miss, 0, []))
            self.assertEqual(run(), (hit, 0, []))
            pinned = {"TORCH_RANGE_DISPATCH_DETERMINISTIC": "1"}
            self.assertEqual(run(**pinned), (miss, 0, []))
            file.write_text(file.read_text().replace("2.5", "1.5"))
            self.assertEqual(run(**pinned), (miss, 0, ["ours"]))
            self.assertEqual(run(**pinned), (hit, 0, ["ours"]))

    def test_two_processes_that_write_lose_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            program = f"""
                import sys
                from pathlib import Path
                from torch._inductor.kernel.range_dispatch import records
                from torch._inductor.kernel.range_dispatch.choosing import Measurement
                key = records.Key("lib::op.default", "A CPU", {{}}, {{}})
                for i in range(20):
                    opened = records.Records(key, [Path({folder!r})])
                    opened.add(sys.argv[1] + str(i), {{"aaaa": Measurement("a", 1.0)}})
                    opened.save()
            """
            writers = [
                subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), name])
                for name in ("one", "other")
            ]
            self.assertEqual([writer.wait() for writer in writers], [0, 0])
            (file,) = Path(folder).glob("*.json")
            (entry,) = json.loads(file.read_text())["entries"].values()
            self.assertEqual(len(entry["probes"]), 40)

    def test_a_new_process_benchmarks_only_what_is_new(self):
        with tempfile.TemporaryDirectory() as folder:

            def run(graph="lambda x: op(x)", k="1", **environment):
                program = textwrap.dedent(PROGRAM).replace("GRAPH", graph)
                program = program.replace("K = 1", f"K = {k}")
                environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder, **environment}
                done = subprocess.run(
                    [sys.executable, "-c", program],
                    env=environment,
                    capture_output=True,
                    text=True,
                )
                self.assertEqual(done.returncode, 0, done.stderr)
                return json.loads(done.stdout.splitlines()[-1])

            labels = ["by_sum", "by_half(max_autotune=False)", OP_LABEL]
            calls, chosen = run()
            self.assertEqual(calls, [labels, labels])
            self.assertEqual(run("lambda x: (op(x @ x.t() @ x).cumsum(0), x)"), [[], chosen])
            self.assertEqual(run(k="0.5 + 0.5")[0], [["by_sum"], ["by_sum"]])
            calls, _ = run(TORCH_RANGE_DISPATCH_RETUNE="1")
            self.assertEqual(calls, [labels, labels])
            elsewhere = str(Path(folder, "named"))
            self.assertEqual(run(TORCH_RANGE_DISPATCH_RECORDS=elsewhere)[0], [])
            (file,) = Path(elsewhere).glob("range_dispatch_records_op.*.json")
            metadata = json.loads(file.read_text())["_metadata"]
            self.assertEqual(metadata["torch"], torch.__version__)
            wanted = {"writer", "format", "op", "device", "capability", "torch", "triton", "cuda"}
            self.assertEqual(set(metadata), wanted | {"patch"})


class IdentityTest(TestCase):
    def test_of_the_op_itself_follows_its_definition(self):
        def identity(function):
            op = torch.library.custom_op("range_dispatch_test::identity", function, mutates_args=())
            op.register_fake(torch.empty_like)
            candidate = custom_op.Candidate(OP_LABEL, None, {}, {}, ())
            call = mock.Mock(op=torch.ops.range_dispatch_test.identity.default)
            return signature.candidate_identity(candidate, call)

        def one(x: torch.Tensor) -> torch.Tensor:
            return x + 1

        def other(x: torch.Tensor) -> torch.Tensor:
            return x + 2

        self.assertEqual(identity(one), identity(one))
        self.assertNotEqual(identity(one), identity(other))

    def test_of_what_calls_an_operator_follows_its_definition(self):
        """By its path, as an overload, and as a packet."""

        def identities(function):
            op = torch.library.custom_op("range_dispatch_test::called", function, mutates_args=())
            op.register_fake(torch.empty_like)
            packet = torch.ops.range_dispatch_test.called
            implementations = (
                lambda x: torch.ops.range_dispatch_test.called(x),
                lambda x: packet(x),
                packet.default,
            )
            kept.append(op)
            return [description.identity(implementation) for implementation in implementations]

        def one(x: torch.Tensor) -> torch.Tensor:
            return x + 1

        def other(x: torch.Tensor) -> torch.Tensor:
            return x + 2

        kept: list = []
        first = identities(one)
        self.assertEqual(identities(one), first)
        for before, after in zip(first, identities(other), strict=True):
            self.assertNotEqual(before, after)

    def test_what_has_no_description_is_another_each_time(self):
        class Odd:
            @property
            def __dict__(self):
                raise RuntimeError("no")

        odd = Odd()
        self.assertNotEqual(description.identity(odd), description.identity(odd))


instantiate_parametrized_tests(FilesTest)
instantiate_parametrized_tests(TunedOnceTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU:
        run_tests(needs="filelock")
