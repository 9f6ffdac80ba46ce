# Owner(s): ["module: inductor"]
"""``python3 -m torch_range_dispatch``: reports, records and retuning from a shell."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from range_dispatch_common import (
    config,
    define_op,
    force_winners,
    HAS_CPU,
    HAS_GPU,
    RangeDispatchTestCase,
    report,
)

import torch
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
from torch._inductor.kernel.range_dispatch import fingerprint, grid, records, saved
from torch._inductor.test_case import run_tests, TestCase


OVERLAY = Path(__file__).resolve().parents[2] / "tools" / "overlay"
HAS_OVERLAY = (OVERLAY / "torch_range_dispatch").is_dir()
if HAS_OVERLAY:
    sys.path.insert(0, str(OVERLAY))
    from torch_range_dispatch.__main__ import main

NAME = "range_dispatch_test::from_shell"


def _from_shell(x: torch.Tensor) -> torch.Tensor:
    return x * 2


from_shell = define_op("from_shell", _from_shell, torch.empty_like)


def double(x):
    return x + x


def run(*arguments):
    """Exit status, output and error output of the command, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse
            status = leaving.code
    return status, out.getvalue(), err.getvalue()


@unittest.skipUnless(HAS_OVERLAY, "there is no overlay here: the patch has landed")
class CommandTest(RangeDispatchTestCase):
    """A cache directory with the records and the plan of one op."""

    def setUp(self):
        super().setUp()
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.cache = self.folder / "cache"
        for module in (saved, grid.signature):
            self.enterContext(mock.patch.object(module, "cache_dir", lambda: str(self.cache)))
        self.enterContext(mock.patch.dict(os.environ))
        os.environ.pop("TORCH_RANGE_DISPATCH_RECORDS", None)
        self.enterContext(config.patch(use_records=True))
        records.forget()
        self.addCleanup(records.forget)

    def tune(self, **options):
        """Compile a call of the op; the sizes that were measured, and not found in records."""
        torch._dynamo.reset()
        records.forget()
        report.clear()
        register_custom_op_autotuning(
            from_shell,
            configs=[CustomOpConfig(double)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 16},
            split_points=[4],
            **options,
        )
        with force_winners({4: "double", 16: "op itself"}) as measured:
            torch.compile(lambda x: from_shell(x), dynamic=True)(torch.randn(5, 3))
        return measured

    def fails(self, *arguments):
        """The one line that a failing command prints."""
        status, out, err = run(*arguments)
        self.assertEqual((status, out), (1, ""), err)
        self.assertEqual(err.count("\n"), 1, err)
        self.assertTrue(err.startswith("error: "), err)
        return err

    def works(self, *arguments):
        status, out, err = run(*arguments)
        self.assertEqual(status, 0, err)
        return out


class ReportCommandTest(CommandTest):
    def test_text_json_and_page(self):
        self.tune()
        (plan,) = report.plans()
        for op in ((), (NAME,), ("from_shell",), (f"{NAME}.default",)):
            self.assertEqual(self.works("report", *op), f"{plan}\n")
        self.assertEqual(
            report.Report.from_json(self.works("report", "--json")).plans, report.plans()
        )
        page = self.folder / "plan.html"
        status, out, err = run("report", "--html", page)
        self.assertEqual((status, out, err), (0, "", f"wrote {page}\n"))
        self.assertEqual(page.read_text(), plan.to_html())

    def test_from_records_alone(self):
        self.tune()
        (plan,) = report.plans()
        for file in saved.plan_folder().iterdir():
            file.unlink()
        again = report.Report.from_json(self.works("report", "from_shell", "--json"))[0]
        self.assertEqual((again.chosen, again.origin), (plan.chosen, "recorded"))
        shipped = self.folder / "shipped"
        self.works("records", "export", shipped)
        self.assertIn("dispatched: [0, 4] double", self.works("report", "--folder", shipped))

    def test_faults(self):
        self.assertIn("no plans and no records in", self.fails("report"))
        self.assertIn("there are no plans or records at all", self.fails("report", "nix"))
        self.assertIn("there is no folder", self.fails("report", "--folder", self.folder / "no"))
        self.tune()
        fault = self.fails("report", "nix::op")
        self.assertIn("there are no plans or records of nix::op", fault)
        self.assertIn(NAME, fault)
        self.assertIn("cannot write", self.fails("report", "--html", self.folder / "no" / "x.html"))


class RecordsCommandTest(CommandTest):
    def test_list_and_show(self):
        self.assertIn("there are no records in", self.fails("records", "list"))
        self.tune()
        header, line = self.works("records", "list").splitlines()
        self.assertEqual(header.split()[:3], ["op", "device", "PyTorch"])
        for expected in (NAME, torch.__version__, "x.shape[0]", str(self.cache)):
            self.assertIn(expected, line)
        (row,) = json.loads(self.works("records", "list", "from_shell", "--json"))
        self.assertEqual((row["op"], row["probes"], row["times"]), (NAME, ["4", "16"], 4))
        shown = self.works("records", "show")
        for expected in ("1000.0 us", "entry ", '"dispatch_on": ["x", 0]', '"torch": '):
            self.assertIn(expected, shown)

    def test_export_is_picked_up(self):
        self.assertEqual(self.tune(), [4, 16])
        shipped = self.folder / "model" / "tuning"
        out = self.works("records", "export", shipped, "from_shell")
        self.assertIn(f'records="{shipped}"', out)
        self.assertIn(f"TORCH_RANGE_DISPATCH_RECORDS={shipped}", out)
        (file,) = shipped.iterdir()  # and no lock file to commit
        umask = os.umask(0)
        os.umask(umask)
        self.assertEqual(file.stat().st_mode & 0o777, 0o666 & ~umask)
        self.cache = self.folder / "another machine"
        self.assertEqual(self.tune(records=shipped), [])
        self.cache = self.folder / "a third one"
        with config.patch(records_folder=str(shipped)):
            self.assertEqual(self.tune(), [])
        self.assertEqual(self.tune(), [4, 16])  # what was shipped is not copied into the cache

    def test_import(self):
        self.tune()
        shipped = self.folder / "shipped"
        self.works("records", "export", shipped)
        self.cache = self.folder / "another machine"
        self.assertIn("there is no folder", self.fails("records", "import", self.folder / "no"))
        self.assertIn("there are no records in", self.fails("records", "import", self.folder))
        before = saved.generation()
        self.assertIn(f"wrote 4 times of {NAME}", self.works("records", "import", shipped))
        self.assertNotEqual(saved.generation(), before)
        self.assertEqual(self.tune(), [])

    def test_export_merges(self):
        self.tune()
        shipped = self.folder / "shipped"
        self.works("records", "export", shipped)
        (file,) = shipped.iterdir()
        content = json.loads(file.read_text())
        (entry,) = content["entries"].values()
        del entry["probes"]["4"]
        content["entries"]["another"] = entry
        file.write_text(json.dumps(content))
        self.works("records", "export", shipped)
        merged = json.loads(file.read_text())["entries"]
        self.assertEqual(len(merged), 2)
        self.assertEqual(sorted(map(len, (e["probes"] for e in merged.values()))), [1, 2])

    def test_export_faults(self):
        self.tune()
        self.assertIn("there are no records of nix", self.fails("records", "export", "x", "nix"))
        blocked = self.folder / "file"
        blocked.touch()
        self.assertIn("cannot write to", self.fails("records", "export", blocked / "below"))

    def test_prune(self):
        self.tune()
        self.assertIn("nothing to prune", self.works("records", "prune"))
        (file,) = saved.cache_folder().glob("*.json")
        content = json.loads(file.read_text())
        (entry,) = content["entries"].values()
        content["entries"]["old"] = {**entry, "environment": {"torch": "2.10.0"}}
        file.write_text(json.dumps(content))
        self.assertIn("would remove 4 times", self.works("records", "prune", "--dry-run"))
        self.assertEqual(len(json.loads(file.read_text())["entries"]), 2)
        self.assertIn(f"removed 4 times of {NAME}", self.works("records", "prune"))
        self.assertEqual(list(json.loads(file.read_text())["entries"].values()), [entry])
        self.assertEqual(self.tune(), [])
        # What only an older release could use is not shipped, unless that is asked for.
        content["entries"] = {"old": content["entries"]["old"]}
        file.write_text(json.dumps(content))
        self.assertIn("nothing to export", self.fails("records", "export", self.folder / "x"))
        self.works("records", "export", self.folder / "x", "--all")
        self.works("records", "prune")
        self.assertFalse(file.exists())

    def test_prune_keeps_what_is_added_meanwhile(self):
        """By a process that measures, between the look at a file and the lock of it."""
        self.tune()
        (file,) = saved.cache_folder().glob("*.json")
        content = json.loads(file.read_text())
        (entry,) = content["entries"].values()
        old = {**entry, "environment": {"torch": "2.10.0"}}
        file.write_text(json.dumps({**content, "entries": {"old": old}}))
        locked = records._locked

        @contextlib.contextmanager
        def locked_late(path):
            with locked(path):
                path.write_text(json.dumps({**content, "entries": {"old": old, "new": entry}}))
                yield

        with mock.patch.object(records, "_locked", locked_late):
            self.assertIn(f"removed 4 times of {NAME}", self.works("records", "prune"))
        self.assertEqual(json.loads(file.read_text())["entries"], {"new": entry})


class RetuneCommandTest(CommandTest):
    def test_measures_anew(self):
        self.tune()
        self.assertEqual(self.tune(), [])
        before = config.registrations
        out = self.works("retune", "from_shell")
        self.assertIn(f"removed 4 times of {NAME}", out)
        self.assertEqual(self.tune(), [4, 16])
        self.assertNotEqual(config.registrations, before)  # no compile cache hides it
        self.works("retune", "--all")
        self.assertEqual(self.tune(), [4, 16])

    def test_a_shipped_folder_is_mentioned(self):
        self.tune()
        shipped = self.folder / "shipped"
        self.works("records", "export", shipped)
        os.environ["TORCH_RANGE_DISPATCH_RECORDS"] = str(shipped)
        self.assertIn(f"add --folder {shipped}", self.works("retune", "from_shell"))
        self.works("retune", "from_shell", "--folder", shipped)
        self.assertEqual(list(shipped.iterdir()), [])

    def test_runs_a_program(self):
        code = "import os, sys; sys.exit(os.environ['TORCH_RANGE_DISPATCH_RETUNE'] == '1' and 7)"
        self.assertEqual(run("retune", "--", sys.executable, "-c", code)[0], 7)
        self.assertIn("cannot run", self.fails("retune", "--", "/no/such/program"))

    def test_faults(self):
        self.assertIn("Name ops, or --all", self.fails("retune"))
        self.assertIn("there are no records at all", self.fails("retune", "nix"))

    def test_generation_changes_the_fingerprint_only_with_registrations(self):
        saved.next_generation()
        fingerprint.publish([])
        self.assertEqual(config.registrations, "")


class HelpTest(CommandTest):
    def test_every_command_has_help(self):
        below = (("records", "export"), ("retune",))
        for command in ((), ("status",), ("report",), ("records",), *below):
            status, out, err = run(*command, "--help")
            self.assertEqual((status, err), (0, ""))
            self.assertIn("examples:\n", out)
            self.assertIn("python3 -m torch_range_dispatch", out)
        self.assertEqual(run()[0], 0)

    def test_misuse(self):
        for wrong in (("bogus",), ("records", "bogus"), ("report", "--", "x"), ("records",)):
            self.assertEqual(run(*wrong)[0], 2, wrong)

    def test_patch_that_is_not_active(self):
        import torch_range_dispatch

        inactive = mock.Mock(active=False, reason="it is switched off")
        with mock.patch.object(torch_range_dispatch, "activate", return_value=inactive):
            self.assertIn("not active: it is switched off", self.fails("report"))


@unittest.skipUnless(HAS_OVERLAY, "there is no overlay here: the patch has landed")
class ProcessTest(TestCase):
    """What only a process of its own shows."""

    def python(self, *arguments, **variables):
        environ = {k: v for k, v in os.environ.items() if k not in ("TORCH_LOGS", "PYTHONPATH")}
        return subprocess.run(
            [sys.executable, *arguments],
            env={**environ, "PYTHONPATH": str(OVERLAY), **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def test_import_torch_knows_the_name_of_the_logs(self):
        code = "import sys, torch; print(torch._logging._internal.log_state.log_qname_to_level)"
        code += "; assert 'torch._inductor.kernel' not in sys.modules"
        for asked, level in (("range_dispatch", 20), ("+range_dispatch", 10)):
            done = self.python("-c", code, TORCH_LOGS=asked)
            self.assertEqual(done.stdout, f"{{'range_dispatch': {level}}}\n", done.stderr)

    def test_logs_of_a_process(self):
        code = """
import torch, torch_range_dispatch, logging
torch_range_dispatch.activate()
from torch._inductor.kernel.range_dispatch import logs
from torch._inductor.kernel import custom_op
print(logs.asked_for(), custom_op.log.isEnabledFor(logging.DEBUG))
torch._logging._init_logs()
print(logs.asked_for(), custom_op.log.isEnabledFor(logging.DEBUG))
"""
        done = self.python("-c", code, TORCH_LOGS="+range_dispatch")
        self.assertEqual(done.stdout, "True True\nTrue True\n", done.stderr)


if __name__ == "__main__":
    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
