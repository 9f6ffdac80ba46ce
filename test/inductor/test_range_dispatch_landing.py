# Owner(s): ["module: inductor"]
"""Landing the patch in a PyTorch tree with tools/land.py, and taking it out again.

Most tests land in a small tree that holds little more than the file that is replaced. One lands in
a copy of the installed PyTorch, and runs it.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path
from unittest import mock

import torch
from torch._inductor.test_case import run_tests, TestCase
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


ROOT = Path(__file__).resolve().parents[2]
LAND = ROOT / "tools" / "land.py"
TORCH = Path(torch.__file__).resolve().parent
CUSTOM_OP = "torch/_inductor/kernel/custom_op.py"
MACHINERY = "torch/_inductor/kernel/range_dispatch"
STATE = ".range-dispatch-landed"
RELEASE = ".".join(torch.__version__.split(".")[:2])
HAS_GIT = shutil.which("git") is not None


@functools.cache
def load_land():
    spec = importlib.util.spec_from_file_location("_land_under_test", LAND)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def stock_custom_op():
    """What the patch replaces in the installed PyTorch, also if that is a landed one."""
    kept = TORCH.parent / STATE / "files" / CUSTOM_OP
    return (kept if kept.exists() else TORCH.parent / CUSTOM_OP).read_bytes()


def snapshot(root):
    """Every file and folder below ``root``, with mode and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        if ".git" in path.relative_to(root).parts:
            continue
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        found[str(path.relative_to(root))] = (stat.S_IMODE(path.stat().st_mode), content)
    return found


@unittest.skipUnless(LAND.is_file(), "tools/land.py is not here")
class LandingTestCase(TestCase):
    def setUp(self):
        super().setUp()
        self.land = load_land()
        self.folder = Path(tempfile.mkdtemp(prefix="range-dispatch-landing-")).resolve()
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def make_site(self, release=torch.__version__):
        """A site-packages folder with as much of PyTorch as landing looks at."""
        site = self.folder / "site-packages"
        kernel = site / "torch/_inductor/kernel"
        compiled = kernel / "__pycache__"
        compiled.mkdir(parents=True)
        (site / "torch/version.py").write_text(f"debug = False\n__version__ = '{release}'\n")
        (kernel / "mm.py").write_text("mm = 1\n")
        (kernel / "custom_op.py").write_bytes(stock_custom_op())
        (kernel / "custom_op.py").chmod(0o640)
        (compiled / "custom_op.cpython-39.pyc").write_bytes(b"stock bytecode")
        (compiled / "mm.cpython-39.pyc").write_bytes(b"other bytecode")
        return site

    def make_checkout(self):
        """A git checkout with a commit of the release."""
        tree = self.folder / "pytorch"
        (tree / "torch/_inductor/kernel").mkdir(parents=True)
        (tree / "test/inductor").mkdir(parents=True)
        (tree / "version.txt").write_text(f"{RELEASE}.0a0\n")
        (tree / CUSTOM_OP).write_bytes(stock_custom_op())
        (tree / "test/inductor/test_mm.py").write_text("pass\n")
        self.git(tree, "init", "-q")
        self.git(tree, "add", "-A")
        self.git(tree, "commit", "-q", "-m", "a release")
        return tree

    def git(self, tree, *arguments):
        identity = ["-c", "user.name=tester", "-c", "user.email=tester@localhost"]
        done = subprocess.run(
            ["git", "-C", str(tree), *identity, *arguments], capture_output=True, text=True
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def run_land(self, *arguments, status=0):
        """Run the tool in this process: (what it printed, its errors)."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            returned = self.land.main([str(a) for a in arguments])
        self.assertEqual(returned, status, out.getvalue() + err.getvalue())
        return out.getvalue(), err.getvalue()

    def refuses(self, *arguments, status=1):
        """The one line that it says about why it does nothing."""
        out, err = self.run_land(*arguments, status=status)
        self.assertEqual(out, "")
        self.assertRegex(err, r"\Aerror: [^\n]+\n\Z")
        return err

    def assert_landed(self, tree):
        self.assertEqual((tree / CUSTOM_OP).read_bytes(), (ROOT / CUSTOM_OP).read_bytes())
        ours = sorted(path.name for path in (ROOT / MACHINERY).glob("*.py"))
        self.assertEqual(sorted(path.name for path in (tree / MACHINERY).glob("*.py")), ours)


class LandingTest(LandingTestCase):
    def test_land_and_revert_leave_no_trace(self):
        site = self.make_site()
        before = snapshot(site)
        out, _ = self.run_land(site)
        self.assertIn(f"PyTorch {torch.__version__}", out)
        self.assert_landed(site)
        kernel = site / "torch/_inductor/kernel"
        self.assertFalse((kernel / "__pycache__/custom_op.cpython-39.pyc").exists())
        self.assertTrue((kernel / "__pycache__/mm.cpython-39.pyc").exists())
        # What Python leaves behind when the landed tree is used.
        (kernel / "__pycache__/custom_op.cpython-311.pyc").write_bytes(b"our bytecode")
        (kernel / "range_dispatch/__pycache__").mkdir()
        (kernel / "range_dispatch/__pycache__/ir.cpython-311.opt-1.pyc").write_bytes(b"ours")
        self.run_land(site, "--revert")
        self.assertEqual(snapshot(site), before)

    def test_dry_run_changes_nothing_and_names_every_file(self):
        site = self.make_site()
        before = snapshot(site)
        out, _ = self.run_land(site, "--dry-run")
        self.assertEqual(snapshot(site), before)
        named = sorted(line.split()[-1] for line in out.splitlines())
        self.assertIn(f"would replace {CUSTOM_OP}\n", out)
        self.run_land(site)
        after = snapshot(site)
        landed = [p for p in after if p not in before and after[p][1] and not p.startswith(STATE)]
        self.assertEqual(named, sorted([*landed, CUSTOM_OP]))

        during = snapshot(site)
        out, _ = self.run_land(site, "--dry-run", "--revert")
        self.assertEqual(sorted(line.split()[-1] for line in out.splitlines()), named)
        self.assertIn(f"would restore {CUSTOM_OP}\n", out)
        self.assertEqual(snapshot(site), during)

    def test_again_is_nothing_to_do(self):
        site = self.make_site()
        before = snapshot(site)
        self.assertIn("nothing to revert", self.run_land(site, "--revert")[0])
        self.run_land(site)
        landed = snapshot(site)
        self.assertIn("already", self.run_land(site)[0])
        self.assertEqual(snapshot(site), landed)
        self.run_land(site, "--revert")
        self.assertIn("nothing to revert", self.run_land(site, "--revert")[0])
        self.assertEqual(snapshot(site), before)

    def test_another_version_has_to_be_reverted_first(self):
        site = self.make_site()
        before = snapshot(site)
        self.run_land(site)
        config = site / MACHINERY / "config.py"
        landed = config.read_bytes()
        config.write_bytes(landed + b"# edited\n")
        self.assertIn("another version", self.refuses(site))
        self.assertIn(f"{config} was changed after the landing", self.refuses(site, "--revert"))
        config.write_bytes(landed)
        self.run_land(site, "--revert")
        self.assertEqual(snapshot(site), before)

    def test_reverted_by_other_means(self):
        site = self.make_site()
        before = snapshot(site)
        self.run_land(site)
        (site / CUSTOM_OP).write_bytes(stock_custom_op())
        (site / CUSTOM_OP).chmod(0o640)
        (site / MACHINERY / "ir.py").unlink()
        self.run_land(site, "--revert")
        self.assertEqual(snapshot(site), before)

    def test_another_release_was_installed_over_it(self):
        site = self.make_site()
        self.run_land(site)
        newer = b"another release\n"
        digest = hashlib.sha256(newer).hexdigest()
        (site / CUSTOM_OP).write_bytes(newer)
        with mock.patch.dict(self.land.STOCK, {"2.99": digest}):
            self.run_land(site, "--revert")
        self.assertEqual((site / CUSTOM_OP).read_bytes(), newer)
        self.assertFalse((site / MACHINERY).exists())
        self.assertFalse((site / STATE).exists())

    def test_files_of_others_stay(self):
        site = self.make_site()
        self.run_land(site)
        notes = site / MACHINERY / "notes.txt"
        notes.write_text("mine\n")
        self.run_land(site, "--revert")
        self.assertEqual([notes], list((site / MACHINERY).iterdir()))

    def test_hard_linked_files_keep_their_content(self):
        """In a copy by hard links, the original must not change with the copy."""
        site = self.make_site()
        twin = self.folder / "twin.py"
        os.link(site / CUSTOM_OP, twin)
        self.run_land(site)
        self.assertEqual(twin.read_bytes(), stock_custom_op())
        self.run_land(site, "--revert")
        self.assertTrue(twin.samefile(site / CUSTOM_OP))

    def test_no_hard_links_on_this_file_system(self):
        site = self.make_site()
        before = snapshot(site)
        with mock.patch.object(os, "link", side_effect=OSError("not supported")):
            self.run_land(site)
            self.assert_landed(site)
            self.run_land(site, "--revert")
        self.assertEqual(snapshot(site), before)


class RefusalTest(LandingTestCase):
    def test_unsupported_release(self):
        for release in ("2.10.1", "2.16.0a0+git123", "3.0"):
            site = self.make_site(release)
            before = snapshot(site)
            said = self.refuses(site)
            self.assertIn(release, said)
            self.assertIn("2.11 to 2.15", said)
            self.assertEqual(snapshot(site), before)
            shutil.rmtree(site)

    def test_unknown_file(self):
        site = self.make_site()
        with (site / CUSTOM_OP).open("a") as file:
            file.write("# a local change\n")
        before = snapshot(site)
        self.assertIn("restore the released file", self.refuses(site))
        self.assertIn("restore the released file", self.refuses(site, "--dry-run"))
        self.assertEqual(snapshot(site), before)

    def test_file_of_another_supported_release(self):
        other = next(r for r, h in self.land.STOCK.items() if h != self.land.STOCK[RELEASE])
        self.assertIn(
            f"is not that of PyTorch {other}.0", self.refuses(self.make_site(f"{other}.0"))
        )

    def test_added_file_is_there_already(self):
        site = self.make_site()
        (site / MACHINERY).mkdir()
        (site / MACHINERY / "ir.py").write_text("someone else's\n")
        before = snapshot(site)
        self.assertIn(f"{site / MACHINERY / 'ir.py'} exists", self.refuses(site))
        self.assertEqual(snapshot(site), before)

    def test_wrong_places(self):
        site = self.make_site()
        self.assertIn(f"give {site}", self.refuses(site / "torch"))
        self.assertIn("give a PyTorch checkout", self.refuses(self.folder))
        self.assertIn("is not a folder", self.refuses(self.folder / "nowhere"))
        self.assertIn("own repository", self.refuses(ROOT))
        (site / "torch/version.py").unlink()
        self.assertIn("neither version.txt nor", self.refuses(site))

    def test_wrong_usage(self):
        for arguments in ([], ["--revert"], ["a", "b"], ["a", "--force"]):
            with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit) as caught:
                self.land.main(arguments)
            self.assertEqual(caught.exception.code, 2)

    def test_folder_that_cannot_be_written(self):
        site = self.make_site()
        with mock.patch.object(os, "access", lambda path, mode: "kernel" not in str(path)):
            self.assertIn("cannot be written to", self.refuses(site))

    def test_two_at_once(self):
        site = self.make_site()
        with self.land._locked(site):
            self.assertIn("another landing is at work", self.refuses(site))
        self.run_land(site)

    def test_manifest_that_cannot_be_read(self):
        site = self.make_site()
        self.run_land(site)
        (site / STATE / "manifest.json").write_text("{")
        self.assertIn("cannot be read", self.refuses(site, "--revert"))

    def test_known_files_are_those_of_the_supported_releases(self):
        overlay = ROOT / "tools/overlay/torch_range_dispatch/_overlay.py"
        spec = importlib.util.spec_from_file_location("_overlay_for_landing", overlay)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        minors = range(module.OLDEST[1], module.NEWEST[1] + 1)
        self.assertEqual(list(self.land.STOCK), [f"{module.OLDEST[0]}.{n}" for n in minors])
        digest = hashlib.sha256(stock_custom_op()).hexdigest()
        self.assertEqual(self.land.STOCK[RELEASE], digest)


# Everything by which the tool changes the tree.
CHANGES = [
    (os, "replace"),
    (os, "link"),
    (os, "mkdir"),
    (os, "rmdir"),
    (os, "unlink"),
    (shutil, "copyfile"),
    (Path, "write_text"),
]


@contextlib.contextmanager
def at_change(number, happens):
    """Call ``happens`` in place of the change of that number; yields a list with the count."""
    count = [0]

    def counted(original):
        @functools.wraps(original)
        def wrapper(*args, **kwargs):
            count[0] += 1
            if count[0] == number:
                happens()
            return original(*args, **kwargs)

        return wrapper

    with contextlib.ExitStack() as stack:
        for holder, name in CHANGES:
            replaced = mock.patch.object(holder, name, counted(getattr(holder, name)))
            stack.enter_context(replaced)
        yield count


def fail():
    raise OSError("disk full")


def interrupt():
    raise KeyboardInterrupt


class AtomicTest(LandingTestCase):
    """Whatever step fails, the tree is as it was before the command. Four files are enough."""

    def setUp(self):
        super().setUp()
        *added, replaced = self.land.patch_files(with_tests=False)
        few = mock.patch.object(self.land, "patch_files", lambda with_tests: [*added[:3], replaced])
        few.start()
        self.addCleanup(few.stop)

    def changes(self, site, *arguments):
        with at_change(0, fail) as count:
            self.run_land(site, *arguments)
        return count[0]

    @parametrize("how", ["error", "interrupt"])
    def test_landing_fails_at_every_step(self, how):
        happens, status = {"error": (fail, 1), "interrupt": (interrupt, 130)}[how]
        site = self.make_site()
        before = snapshot(site)
        total = self.changes(site)
        landed = snapshot(site)
        self.run_land(site, "--revert")
        managed = []
        for step in range(1, total + 1):
            out, err = io.StringIO(), io.StringIO()
            with (
                at_change(step, happens),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                returned = self.land.main([str(site)])
            if returned == 0:  # a folder was there already, or a file was copied and not linked
                managed.append(step)
                self.assertEqual(snapshot(site), landed, f"step {step}")
                self.run_land(site, "--revert")
            else:
                self.assertEqual(returned, status, err.getvalue())
                self.assertIn("as it was", err.getvalue())
            self.assertEqual(snapshot(site), before, f"step {step}")
        self.assertGreater(total - len(managed), 12)

    def test_reverting_fails_at_every_step(self):
        site = self.make_site()
        before = snapshot(site)
        self.run_land(site)
        landed = snapshot(site)
        total = self.changes(site, "--revert")
        statuses = []
        for step in range(1, total + 1):
            self.run_land(site)
            self.assertEqual(snapshot(site), landed)
            out, err = io.StringIO(), io.StringIO()
            with (
                at_change(step, fail),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                statuses.append(self.land.main([str(site), "--revert"]))
            if statuses[-1] == 1:
                self.assertEqual(snapshot(site), landed, f"step {step}")
                self.run_land(site, "--revert")
            elif statuses[-1] == 3:  # all is reverted but for what was kept: that is left
                self.assertIn("--revert", err.getvalue())
                self.assertFalse(list((site / MACHINERY).glob("*.py")))
                self.run_land(site, "--revert")
            self.assertEqual(snapshot(site), before, f"step {step}")
        self.assertGreater(statuses.count(1), 5)

    @unittest.skipUnless(hasattr(os, "fork"), "needs fork")
    @parametrize("command", ["land", "revert"])
    def test_killed_at_every_step(self, command):
        site = self.make_site()
        before = snapshot(site)
        arguments = ["--revert"] if command == "revert" else []
        if command == "revert":
            self.run_land(site)
        total = self.changes(site, *arguments)
        for step in range(1, total + 1):
            if command == "land" and (site / STATE).exists():
                self.run_land(site, "--revert")
            elif command == "revert":
                self.run_land(site)
            child = os.fork()
            if not child:
                with (
                    at_change(step, lambda: os._exit(9)),
                    contextlib.redirect_stdout(None),
                    contextlib.redirect_stderr(None),
                ):
                    self.land.main([str(site), *arguments])
                os._exit(0)
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 9)
            # PyTorch itself is there at every moment: the stock file, or the patch's.
            found = (site / CUSTOM_OP).read_bytes()
            self.assertIn(found, (stock_custom_op(), (ROOT / CUSTOM_OP).read_bytes()))
            self.run_land(site, "--revert")
            self.assertEqual(snapshot(site), before, f"step {step}")

    def test_undoing_fails_too(self):
        site = self.make_site()
        before = snapshot(site)
        real = os.replace

        def replace(source, target):
            if str(target) == str(site / CUSTOM_OP):
                raise OSError("disk full")
            if str(source).startswith(str(site / MACHINERY)):
                raise OSError("read-only file system")
            return real(source, target)

        with mock.patch.object(os, "replace", replace):
            said = self.refuses(site, status=3)
        self.assertIn("disk full", said)
        self.assertIn("read-only file system", said)
        self.assertIn("--revert", said)
        self.run_land(site, "--revert")
        self.assertEqual(snapshot(site), before)


@unittest.skipUnless(HAS_GIT, "needs git")
class CheckoutTest(LandingTestCase):
    def test_tests_land_too_and_git_sees_the_change_alone(self):
        tree = self.make_checkout()
        before = snapshot(tree)
        patch = self.folder / "change.patch"
        self.run_land(tree, "--patch", patch)
        self.assert_landed(tree)
        landed = {path.name for path in (tree / "test/inductor").iterdir()}
        self.assertIn("test_range_dispatch.py", landed)
        self.assertIn("range_dispatch_common.py", landed)
        self.assertFalse(landed & self.land.NOT_LANDED)
        changed = self.git(tree, "status", "--porcelain", "-uall").split()[1::2]
        self.assertIn(CUSTOM_OP, changed)
        self.assertEqual([name for name in changed if STATE in name], [])
        self.run_land(tree, "--revert")
        self.assertEqual(self.git(tree, "status", "--porcelain"), "")
        self.assertEqual(snapshot(tree), before)

    def test_git_am_takes_the_patch(self):
        tree = self.make_checkout()
        patch = self.folder / "change.patch"
        out, _ = self.run_land(tree, "--patch", patch)
        self.assertIn(str(patch), out)
        landed = {name: state for name, state in snapshot(tree).items() if STATE not in name}
        self.run_land(tree, "--revert")
        self.git(tree, "am", patch)
        self.assertEqual(
            {name: c for name, (_, c) in snapshot(tree).items()},
            {name: c for name, (_, c) in landed.items()},
        )
        self.assertEqual(self.git(tree, "status", "--porcelain"), "")
        subject = self.git(tree, "log", "-1", "--format=%s").strip()
        self.assertEqual(subject, self.land.SUBJECT)
        self.git(tree, "am", "-q", self.git_format_patch(tree))  # which git writes the same way

    def git_format_patch(self, tree):
        """The last commit as git writes it, after taking it back."""
        written = self.git(tree, "format-patch", "-1", "-o", str(self.folder)).strip()
        self.git(tree, "reset", "-q", "--hard", "HEAD~1")
        return written

    def test_patch_of_files_without_a_last_newline(self):
        tree = self.make_checkout()
        for name, ours in (("a.py", b"one\ntwo"), ("b.py", b""), ("c.py", "ü\n".encode())):
            diff = self.land._diff(self.land.File(name, "", None), b"", ours)
            (self.folder / "one.patch").write_bytes(diff)
            self.git(tree, "apply", self.folder / "one.patch")
            self.assertEqual((tree / name).read_bytes(), ours)
        for stock, ours in ((b"x\ny", b"x\ny\n"), (b"x\ny\n", b"x\nz"), (b"-- x\n", b"++ y\n")):
            (tree / "d.py").write_bytes(stock)
            (self.folder / "one.patch").write_bytes(
                self.land._diff(self.land.File("d.py", "", ""), stock, ours)
            )
            self.git(tree, "apply", self.folder / "one.patch")
            self.assertEqual((tree / "d.py").read_bytes(), ours)

    def test_place_of_the_patch(self):
        tree = self.make_checkout()
        before = snapshot(tree)
        inside = tree / "change.patch"
        self.assertIn("is inside of", self.refuses(tree, "--patch", inside))
        missing = self.folder / "nowhere" / "change.patch"
        self.assertIn("no such folder", self.refuses(tree, "--patch", missing))
        self.assertEqual(snapshot(tree), before)
        back = os.getcwd()
        self.addCleanup(os.chdir, back)
        os.chdir(tree / "torch")
        self.run_land(tree)
        self.assertTrue((self.folder / "range-dispatch.patch").is_file())

    def test_patch_that_cannot_be_written_undoes_the_landing(self):
        tree = self.make_checkout()
        before = snapshot(tree)
        with mock.patch.object(Path, "write_bytes", side_effect=OSError("disk full")):
            said = self.refuses(tree, "--patch", self.folder / "change.patch")
        self.assertIn("disk full", said)
        self.assertEqual(snapshot(tree), before)

    def test_what_lands_needs_nothing_of_this_repository(self):
        for name, source in self.land.patch_files(with_tests=True):
            text = source.read_text()
            self.assertNotIn("parents[2]", text, name)
            for other in self.land.NOT_LANDED:
                self.assertNotRegex(text, rf"(from|import) {Path(other).stem}\b", name)
        for name in self.land.NOT_LANDED:
            self.assertTrue((ROOT / "test/inductor" / name).is_file(), name)


USE = """
    import torch
    from torch._inductor.kernel import custom_op
    from torch._inductor.kernel.range_dispatch import config, report

    @torch.library.custom_op("landed::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    double.register_fake(lambda x: torch.empty_like(x))
    custom_op.register_custom_op_autotuning(
        double,
        configs=[custom_op.CustomOpConfig(lambda x: x + x)],
        dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 64},
        split_points=[8],
    )
    torch._inductor.config.cpp_cache_precompile_headers = False  # which takes minutes
    with config.patch(force_no_merge=True):
        f = torch.compile(lambda x: double(x) + 1, dynamic=True)
        for n in (4, 16):
            x = torch.randn(n, 3)
            torch.testing.assert_close(f(x), x * 2 + 1)
    print(custom_op.__file__, len(report.plans()[0].chosen))
"""


class InstalledTest(LandingTestCase):
    def test_a_landed_pytorch_works_without_the_overlay(self):
        site = self.folder / "site"
        try:
            shutil.copytree(TORCH, site / "torch", copy_function=os.link, symlinks=True)
        except (OSError, shutil.Error):
            self.skipTest("no hard links from the installed PyTorch to the temporary folder")
        if (TORCH.parent / STATE).exists():
            shutil.copytree(TORCH.parent / STATE, site / STATE, copy_function=os.link)
            self.run_land(site, "--revert")
        before = snapshot_of_sources(site)
        self.run_land(site)
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("TORCH_RANGE_DISPATCH")
        }
        environ |= {
            "PYTHONPATH": str(site),
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "cache"),  # nothing is tuned on a hit
        }
        script = self.folder / "use.py"
        script.write_text(textwrap.dedent(USE))
        done = subprocess.run(
            [sys.executable, str(script)],
            env=environ,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.split(), [str(site / CUSTOM_OP), "2"])
        self.run_land(site, "--revert")
        self.assertEqual(snapshot_of_sources(site), before)
        self.assertFalse((site / MACHINERY).exists())


def snapshot_of_sources(site):
    """The Python files of Inductor in a whole PyTorch, and what lies beside PyTorch."""
    sources = (site / "torch/_inductor").rglob("*.py")
    found = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sources}
    return found | {str(path): "" for path in site.iterdir()}


instantiate_parametrized_tests(AtomicTest)

if __name__ == "__main__":
    run_tests()
