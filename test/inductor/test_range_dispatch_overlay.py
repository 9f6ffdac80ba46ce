# Owner(s): ["module: inductor"]
"""The overlay, seen from outside: environments of its own, and processes of their own.

Two environments are made once. ``REAL`` sees the torch of the running interpreter. ``BARE`` has no
torch but what a test writes for it: a few lines that load entry points as torch does, in whatever
release and state the test is about.
"""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import unittest
import zipfile
from pathlib import Path

from range_dispatch_scratch import scratch_folder

import torch
from torch._inductor.test_case import run_tests, TestCase


try:
    from pytest import mark

    on_one_worker = mark.xdist_group(
        "range_dispatch_overlay"
    )  # or each worker makes the environments
except ImportError:

    def on_one_worker(cls):
        return cls


ROOT = Path(__file__).resolve().parents[2]
OVERLAY = ROOT / "tools" / "overlay"
KERNEL = Path("torch", "_inductor", "kernel")
CUSTOM_OP = "torch._inductor.kernel.custom_op"
HIDDEN = ("PYTHONPATH", "PYTHONWARNINGS", "TORCH_RANGE_DISPATCH", "TORCH_DEVICE_BACKEND_AUTOLOAD")

HAS_OVERLAY = (OVERLAY / "torch_range_dispatch").is_dir()
HAS_LANDED = Path(torch.__file__).parent.joinpath("_inductor/kernel/range_dispatch").is_dir()
CAN_INSTALL = all(importlib.util.find_spec(needed) for needed in ("pip", "venv"))


def load(path):
    """A module from a file that is on no path."""
    spec = importlib.util.spec_from_file_location(f"_{path.stem}_under_test", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def child(python, *arguments, **variables):
    """Run a Python that knows nothing of this one, from a folder that is not the repository."""
    environ = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    return subprocess.run(
        [str(python), *map(str, arguments)],
        env={**environ, **{name: str(value) for name, value in variables.items()}},
        cwd=scratch(),
        capture_output=True,
        text=True,
        timeout=300,
    )


@functools.cache
def scratch():
    """A folder for all that these tests make."""
    return scratch_folder("overlay")


def make_venv(name, see_torch=False):
    folder = scratch() / name
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    if see_torch:
        (packages / "linked.pth").write_text(f"{link_packages(folder / 'linked')}\n")
    return folder / "bin" / "python"


def link_packages(target):
    """The packages of the running interpreter, less the patch, which may be installed there."""
    target.mkdir()
    folders = [Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    for folder in [*folders, Path(torch.__file__).parents[1]]:
        for entry in folder.iterdir():
            link = target / entry.name
            ours = "torch_range_dispatch" in entry.name
            if not ours and entry.suffix != ".pth" and not link.exists():
                link.symlink_to(entry)
    return target


def pip(python, *arguments):
    done = child(sys.executable, "-m", "pip", "--python", python, *arguments)
    if done.returncode:
        raise AssertionError(f"pip {' '.join(map(str, arguments))}:\n{done.stdout}\n{done.stderr}")


def install(python, *what):
    """As on a machine with neither network nor build tools."""
    pip(python, "install", "--no-index", "--no-deps", "--no-build-isolation", "-q", *what)


def files_of(python):
    return {str(path) for path in python.parents[1].rglob("*")}


@functools.cache
def installed(name, see_torch=False):
    python = make_venv(name, see_torch)
    install(python, ROOT)
    return python


def bare():
    return installed("bare")


def fake_torch(release="2.13.0", landed=False, early=False):
    """A folder with a torch of this release, which may contain the patch or import too early."""
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    kernel = folder / KERNEL
    kernel.mkdir(parents=True)
    loads = f"import {CUSTOM_OP}" if early else ""
    (folder / "torch" / "__init__.py").write_text(
        textwrap.dedent(f"""
            import os
            __version__ = {release!r}
            {loads}
            if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") == "1":
                from importlib.metadata import entry_points
                for each in entry_points(group="torch.backends"):
                    each.load()()
        """)
    )
    for package in (kernel.parent, kernel, *([kernel / "range_dispatch"] if landed else [])):
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
    (kernel / "custom_op.py").write_text("WHOSE = 'stock'\n")
    return folder


IMPORT_STOCK = f"import torch; import {CUSTOM_OP} as c; print(c.WHOSE)"


def status(python, **variables):
    """The exit status of the command, and what it answers."""
    done = child(python, "-m", "torch_range_dispatch", "status", "--json", **variables)
    if not done.stdout:
        raise AssertionError(done.stderr)
    return done.returncode, json.loads(done.stdout)


@on_one_worker
@unittest.skipUnless(HAS_OVERLAY, "there is no overlay here: the patch has landed")
@unittest.skipUnless(CAN_INSTALL, "this interpreter lacks pip or venv")
class TestOverlay(TestCase):
    """What PyTorch is there, and what the patch does about it."""

    def assertStock(self, python, **variables):
        """Importing works, gives stock PyTorch's module, and says nothing."""
        done = child(python, "-c", IMPORT_STOCK, **variables)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "stock\n", ""))

    def assertWarnsOnce(self, done, *parts):
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr.count("RangeDispatchWarning: "), 1, done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr)

    def test_supported_releases(self):
        for release in ("2.11.0", "2.12.0a0+git1a2b", "2.13.0+cpu", "2.15.7+cu132", "2.15"):
            code, found = status(bare(), PYTHONPATH=fake_torch(release))
            self.assertEqual((code, found["state"], found["active"]), (0, "active", True))
            self.assertEqual(found["release"], release)
            self.assertIn("_tree", found["source"])

    def test_unsupported_releases(self):
        for release in ("2.10.2", "2.16.0a0+git1a2b", "3.0", "1.13.1"):
            path = fake_torch(release)
            done = child(bare(), "-c", IMPORT_STOCK, PYTHONPATH=path)
            self.assertEqual(done.stdout, "stock\n")
            self.assertWarnsOnce(
                done, f"found {release}", "2.11 to 2.15", "uninstall", "TORCH_RANGE_DISPATCH=0"
            )
            code, found = status(bare(), PYTHONPATH=path)
            self.assertEqual((code, found["state"]), (1, "unsupported"))
            self.assertEqual(found["source"], str(path / KERNEL / "custom_op.py"))

    def test_unreadable_release(self):
        done = child(bare(), "-c", IMPORT_STOCK, PYTHONPATH=fake_torch("main"))
        self.assertWarnsOnce(done, "found main")

    def test_warnings_as_errors_do_not_break_the_import(self):
        path = fake_torch("2.16.0")
        done = child(bare(), "-W", "error", "-c", IMPORT_STOCK, PYTHONPATH=path)
        self.assertEqual((done.returncode, done.stdout), (0, "stock\n"), done.stderr)
        self.assertIn("found 2.16.0", done.stderr)

    def test_told_once(self):
        code = "import torch, torch_range_dispatch as t; t.activate(); print(t.activate().state)"
        done = child(bare(), "-W", "always", "-c", code, PYTHONPATH=fake_torch("2.16.0"))
        self.assertEqual(done.stdout, "unsupported\n")
        self.assertWarnsOnce(done)

    def test_a_fault_of_ours_does_not_break_the_import(self):
        code = """
            import sys, torch_range_dispatch._overlay as overlay
            overlay.decide = lambda version: 1 / 0
            import torch
            import torch_range_dispatch
            print(torch_range_dispatch.status().state)
        """
        done = child(bare(), "-c", textwrap.dedent(code), PYTHONPATH=fake_torch())
        self.assertEqual(done.stdout, "broken\n", done.stderr)
        self.assertWarnsOnce(done, "ZeroDivisionError")

    def test_switched_off(self):
        path = fake_torch()
        for value in ("0", "off", "False", " no "):
            self.assertStock(bare(), PYTHONPATH=path, TORCH_RANGE_DISPATCH=value)
        code, found = status(bare(), PYTHONPATH=path, TORCH_RANGE_DISPATCH=0)
        self.assertEqual((code, found["state"]), (1, "off"))
        self.assertIn("TORCH_RANGE_DISPATCH=0", found["reason"])
        code, found = status(bare(), PYTHONPATH=path, TORCH_RANGE_DISPATCH=1)
        self.assertEqual((code, found["state"]), (0, "active"))

    def test_switched_off_silences_an_unsupported_release(self):
        self.assertStock(bare(), PYTHONPATH=fake_torch("2.16.0"), TORCH_RANGE_DISPATCH=0)

    def test_landed(self):
        for release in ("2.13.0", "2.16.0"):
            path = fake_torch(release, landed=True)
            self.assertStock(bare(), PYTHONPATH=path)
            code, found = status(bare(), PYTHONPATH=path)
            self.assertEqual((code, found["state"], found["active"]), (0, "landed", True))
            self.assertEqual(found["source"], str(path / KERNEL / "custom_op.py"))

    def test_stock_module_imported_first(self):
        path = fake_torch(early=True)
        done = child(bare(), "-c", IMPORT_STOCK, PYTHONPATH=path)
        self.assertEqual(done.stdout, "stock\n")
        self.assertWarnsOnce(done, f"imported from {path / KERNEL / 'custom_op.py'}", "activate()")
        code, found = status(bare(), PYTHONPATH=path)
        self.assertEqual((code, found["state"]), (1, "too late"))

    def test_stock_module_imported_before_activate(self):
        code = f"import {CUSTOM_OP}, torch_range_dispatch as t; print(t.activate().state)"
        variables = {"PYTHONPATH": fake_torch(), "TORCH_DEVICE_BACKEND_AUTOLOAD": 0}
        done = child(bare(), "-c", code, **variables)
        self.assertEqual(done.stdout, "too late\n")
        self.assertWarnsOnce(done, "stays out of this process")

    def test_autoload_disabled(self):
        variables = {"PYTHONPATH": fake_torch(), "TORCH_DEVICE_BACKEND_AUTOLOAD": 0}
        code, found = status(bare(), **variables)
        self.assertEqual((code, found["state"]), (1, "not loaded"))
        self.assertIn("TORCH_DEVICE_BACKEND_AUTOLOAD=0", found["reason"])
        self.assertIn("torch_range_dispatch.activate()", found["reason"])
        self.assertStock(bare(), **variables)

    def test_not_installed_but_on_the_path(self):
        path = os.pathsep.join([str(OVERLAY), str(fake_torch())])
        code, found = status(make_venv("empty"), PYTHONPATH=path)
        self.assertEqual((code, found["state"]), (1, "not loaded"))
        self.assertIn("pip install", found["reason"])

    def test_another_finder_stands_before(self):
        code = """
            import sys, importlib.util, torch, torch_range_dispatch
            class Other:
                def find_spec(self, name, path=None, target=None):
                    if name == "torch._inductor.kernel.custom_op":
                        return importlib.util.spec_from_file_location(name, "/elsewhere.py")
            sys.meta_path.insert(0, Other())
            found = torch_range_dispatch.status()
            print(found.active, found.state, found.source)
        """
        done = child(bare(), "-c", textwrap.dedent(code), PYTHONPATH=fake_torch())
        self.assertEqual(done.stdout, "False displaced /elsewhere.py\n", done.stderr)

    def test_incomplete_installation(self):
        folder = Path(tempfile.mkdtemp(dir=scratch())) / "a" / "b"
        shutil.copytree(OVERLAY, folder)
        path = os.pathsep.join([str(folder), str(fake_torch())])
        code = "import torch_range_dispatch as t; print(t.activate().state)"
        done = child(make_venv("incomplete"), "-c", code, PYTHONPATH=path)
        self.assertEqual(done.stdout, "broken\n", done.stderr)
        self.assertWarnsOnce(done, "Install it again")

    def test_putting_it_in_twice_changes_nothing(self):
        code = """
            import sys, torch, torch_range_dispatch as t
            before = list(sys.meta_path)
            print(t.activate() == t.activate() == t.status(), before == sys.meta_path)
        """
        done = child(bare(), "-c", textwrap.dedent(code), PYTHONPATH=fake_torch())
        self.assertEqual((done.stdout, done.stderr), ("True True\n", ""))

    def test_uninstalled(self):
        python = make_venv("uninstalled")
        path = fake_torch()
        before = files_of(python)
        for what in ([ROOT], ["-e", ROOT]):
            install(python, *what)
            code, found = status(python, PYTHONPATH=path)
            self.assertEqual((code, found["state"]), (0, "active"))
            editable = found["source"] == str(ROOT / KERNEL / "custom_op.py")
            self.assertEqual(editable, "-e" in what, found["source"])
            pip(python, "uninstall", "-y", "-q", "torch-range-dispatch")
            self.assertEqual(files_of(python) - before, set())
            self.assertStock(python, PYTHONPATH=path)


@on_one_worker
@unittest.skipUnless(HAS_OVERLAY, "there is no overlay here: the patch has landed")
@unittest.skipUnless(CAN_INSTALL, "this interpreter lacks pip or venv")
@unittest.skipIf(HAS_LANDED, "the torch that runs this contains the patch: the overlay stays out")
class TestOverlayOnTorch(TestCase):
    """The same on the torch that runs this."""

    def real(self):
        return installed("real", see_torch=True)

    def test_active(self):
        code = """
            import inspect, json, sys, torch, torch_range_dispatch
            early = [m for m in sys.modules if m.startswith("torch._inductor")]
            before = torch_range_dispatch.status()
            asked = [m for m in sys.modules if m.startswith("torch._inductor")]
            import torch._inductor.kernel.custom_op as custom_op
            from torch._inductor.kernel.range_dispatch import config
            print(json.dumps({
                "early": early, "asked": asked, "before": before.active, "source": before.source,
                "after": torch_range_dispatch.status() == before,
                "file": custom_op.__file__, "config": config.__file__,
                "code": inspect.getsource(custom_op),
            }))
        """
        done = child(self.real(), "-c", textwrap.dedent(code))
        self.assertEqual(done.returncode, 0, done.stderr)
        seen = json.loads(done.stdout)
        self.assertEqual((seen["early"], seen["asked"]), ([], []))
        self.assertEqual((seen["before"], seen["after"]), (True, True))
        self.assertEqual(seen["file"], seen["source"])
        venv = self.real().parents[1]
        for file in (seen["file"], seen["config"]):
            self.assertTrue(Path(file).is_relative_to(venv) and "_tree" in file, file)
        self.assertEqual(seen["code"], (ROOT / KERNEL / "custom_op.py").read_text())

    def test_status(self):
        code, found = status(self.real())
        self.assertEqual((code, found["active"], found["state"]), (0, True, "active"))
        self.assertEqual(found["release"], str(torch.__version__))

    def test_switched_off(self):
        code, found = status(self.real(), TORCH_RANGE_DISPATCH="off")
        self.assertEqual((code, found["state"]), (1, "off"))
        own = Path(torch.__file__).parent / "_inductor" / "kernel" / "custom_op.py"
        self.assertEqual(Path(found["source"]).resolve(), own.resolve())

    def test_cost_of_import_torch(self):
        # Autoload is off, so that the package is loaded here, where it can be timed; again and
        # again, since what counts is its cost and not what else the machine did meanwhile.
        code = """
            import sys, time, torch
            loaded = set(sys.modules)
            times = []
            for _ in range(7):
                for name in set(sys.modules) - loaded:
                    del sys.modules[name]
                sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "TreeFinder"]
                start = time.perf_counter()
                import torch_range_dispatch
                torch_range_dispatch._autoload()
                times.append(time.perf_counter() - start)
            new = sorted(name for name in set(sys.modules) - loaded)
            print(min(times) * 1e3, ",".join(new), torch_range_dispatch.activate().state)
        """
        variables = {"TORCH_DEVICE_BACKEND_AUTOLOAD": 0}
        done = child(self.real(), "-c", textwrap.dedent(code), **variables)
        self.assertEqual(done.returncode, 0, done.stderr)
        milliseconds, new, state = done.stdout.split()
        self.assertEqual(state, "active")
        self.assertLess(float(milliseconds), 5)
        self.assertEqual(new, "torch_range_dispatch,torch_range_dispatch._overlay")


@on_one_worker
@unittest.skipUnless(HAS_OVERLAY, "there is no overlay here: the patch has landed")
class TestCommandLine(TestCase):
    def run_cli(self, *arguments, **variables):
        # -S leaves the installed packages out, and with them torch.
        path = os.pathsep.join(map(str, [OVERLAY, *variables.pop("path", ())]))
        command = ["-S", "-m", "torch_range_dispatch", *arguments]
        return child(sys.executable, *command, PYTHONPATH=path, **variables)

    def test_help_without_command(self):
        done = self.run_cli()
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("status", done.stdout)

    def test_unknown_command(self):
        done = self.run_cli("stat")
        self.assertEqual(done.returncode, 2)
        self.assertIn("status", done.stderr)

    def test_torch_is_missing(self):
        done = self.run_cli("status")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(
            done.stderr, r"\Aerror: PyTorch is not installed .* install 'torch>=.*\n\Z"
        )
        done = self.run_cli("status", "--json")
        self.assertEqual((done.returncode, json.loads(done.stdout)["state"]), (1, "no torch"))

    def test_a_folder_named_torch_is_not_torch(self):
        done = self.run_cli("status", path=[ROOT])
        self.assertEqual(done.returncode, 1)
        self.assertIn("PyTorch is not installed", done.stderr)

    def test_torch_is_broken(self):
        for fault in ("import no_such_library", "raise OSError('libgone.so:\\n cannot open')"):
            path = fake_torch()
            (path / "torch" / "__init__.py").write_text(f"{fault}\n")
            done = self.run_cli("status", path=[path])
            self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1), done.stderr)
            self.assertIn("error: PyTorch fails to import", done.stderr)

    def test_text(self):
        path = fake_torch("2.16.0")
        done = self.run_cli("status", path=[path])
        self.assertEqual((done.returncode, done.stderr), (1, ""))
        for part in ("not active", "2.16.0", str(path), sys.executable, "activate()"):
            self.assertIn(part, done.stdout)


@unittest.skipUnless(HAS_OVERLAY, "there is no overlay here: the patch has landed")
class TestDistribution(TestCase):
    """What setup.py builds."""

    def setUp(self):
        super().setUp()
        self.setup = load(ROOT / "setup.py")
        self.folder = Path(tempfile.mkdtemp(dir=scratch()))

    def contents(self, wheel):
        with zipfile.ZipFile(self.folder / wheel) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def test_wheel_contains_the_patch(self):
        files = self.contents(self.setup.build_wheel(str(self.folder)))
        inside = "torch_range_dispatch/_tree/torch/_inductor/kernel"
        self.assertIn(f"{inside}/custom_op.py", files)
        for file in (ROOT / KERNEL / "range_dispatch").rglob("*.py"):
            name = f"{inside}/{file.relative_to(ROOT / KERNEL).as_posix()}"
            self.assertEqual(files[name], file.read_bytes())
        self.assertFalse([name for name in files if "__pycache__" in name])

    def test_editable_wheel_contains_no_code(self):
        files = self.contents(self.setup.build_editable(str(self.folder)))
        self.assertFalse([name for name in files if name.endswith(".py")])
        (path,) = [name for name in files if name.endswith(".pth")]
        self.assertEqual(files[path].decode().strip(), str(OVERLAY))

    def test_wheel_from_sdist_is_the_same(self):
        archive = self.folder / self.setup.build_sdist(str(self.folder))
        shutil.unpack_archive(archive, self.folder)
        (source,) = self.folder.glob("*/setup.py")
        wheels = [
            self.contents(m.build_wheel(str(self.folder))) for m in (self.setup, load(source))
        ]
        self.assertEqual(wheels[0], wheels[1])

    def test_one_version(self):
        machinery = (ROOT / KERNEL / "range_dispatch" / "__init__.py").read_text()
        self.assertIn(f'__version__ = "{self.setup.VERSION}"\n', machinery)

    def test_what_is_required_is_what_is_supported(self):
        overlay = load(OVERLAY / "torch_range_dispatch" / "_overlay.py")
        self.assertEqual(self.setup.REQUIRES, [overlay.REQUIREMENT])


@unittest.skipUnless((ROOT / "tools" / "dev.py").is_file(), "tools/dev.py is not here")
class TestDeveloperEntryPoint(TestCase):
    """How tools/dev.py chooses where to work, and what it installs."""

    def setUp(self):
        super().setUp()
        self.dev = load(ROOT / "tools" / "dev.py")

    def choose(self, requested=None, in_venv=False, torch=None, usable=False):
        running = self.dev.Interpreter(Path("/py"), in_venv, torch, (), usable)
        chosen = self.dev.choose_environment(running, requested, Path("/repo"))
        return (chosen.venv.name if chosen.venv else "this"), chosen.release

    def test_without_environment(self):
        self.assertEqual(self.choose(), (".venv", "2.13.0"))
        self.assertEqual(self.choose("2.15.0"), (".venv-2.15.0", "2.15.0"))
        self.assertEqual(self.choose("2.13.0"), (".venv", "2.13.0"))

    def test_interpreter_that_has_torch_but_not_all(self):
        self.assertEqual(self.choose(torch="2.11.0+cu130"), (".venv", "2.13.0"))

    def test_interpreter_that_has_everything(self):
        self.assertEqual(self.choose(torch="2.11.0", usable=True), ("this", "2.11.0"))
        self.assertEqual(
            self.choose("2.15.0", torch="2.11.0", usable=True), (".venv-2.15.0", "2.15.0")
        )

    def test_active_environment(self):
        self.assertEqual(self.choose(in_venv=True), ("this", "2.13.0"))
        self.assertEqual(self.choose("2.15.0", in_venv=True), ("this", "2.15.0"))
        self.assertEqual(self.choose(in_venv=True, torch="2.11.0"), ("this", "2.11.0"))
        self.assertEqual(
            self.choose("2.13.0", in_venv=True, torch="2.13.0+cpu"), ("this", "2.13.0")
        )
        self.assertEqual(
            self.choose("2.15.0", in_venv=True, torch="2.13.0+cpu"), (".venv-2.15.0", "2.15.0")
        )

    def test_what_is_installed(self):
        commands = self.dev.install_commands
        self.assertEqual(commands([], "2.13.0"), [])
        self.assertEqual(
            commands(["pytest", "xdist"], ""), [["install", "pytest<9.2", "pytest-xdist"]]
        )
        torch_first, tools, patch = commands(self.dev.TEST_NEEDS.all(), "2.15.0")
        self.assertEqual(torch_first, ["install", "torch==2.15.0"])
        self.assertIn("expecttest", tools)
        self.assertEqual(patch, ["install", "--no-deps", "--editable", str(ROOT)])

    def test_needs_are_the_extras(self):
        extras = load(ROOT / "setup.py").EXTRAS
        for extra, needs in (("test", self.dev.TEST_NEEDS), ("lint", self.dev.LINT_NEEDS)):
            names = {self.dev.PIP_NAME.get(module, module) for module in needs.all()}
            self.assertEqual(names - set(self.dev.PATCHED_TORCH), set(extras[extra]))

    def test_nothing_is_installed_where_all_that_is_required_is_there(self):
        running = self.dev.Interpreter(Path("/no/python"), True, "2.13.0", ("xdist",), True)
        environment = self.dev.choose_environment(running, None, ROOT)
        self.dev.prepare(environment, running, self.dev.TEST_NEEDS)  # pip would not be found

    def test_a_failing_pip_says_what_to_do(self):
        lacking = Path(sys.executable)
        with self.assertRaisesRegex(self.dev.CannotPrepare, "could not install .* network"):
            self.dev.pip(lacking, ["install", "--no-index", "--quiet", "no-such-package-at-all"])

    def test_arguments(self):
        parse = self.dev.parse
        self.assertEqual(parse(["test", "-k", "x", "-x"]), ("test", None, ["-k", "x", "-x"]))
        for order in (["--torch", "2.15.0", "test", "-v"], ["test", "--torch", "2.15.0", "-v"]):
            self.assertEqual(parse(order), ("test", "2.15.0", ["-v"]))
        self.assertEqual(parse(["prepare"]), ("prepare", None, ["test"]))

    def test_pytest_arguments(self):
        arguments = self.dev.pytest_arguments
        self.assertIn("-n", arguments(["-k", "x"], parallel=True))
        for given in (["-n", "4"], ["-n0"], ["--pdb"], ["-p", "no:xdist"]):
            self.assertEqual(arguments(given, parallel=True), ["--durations=10", *given])
        self.assertNotIn("-n", arguments([], parallel=False))

    def test_a_folder_named_torch_is_not_torch(self):
        self.assertTrue(self.dev.is_missing("no_such_module"))
        folder = Path(tempfile.mkdtemp(dir=scratch()))
        (folder / "range_dispatch_folder").mkdir()
        sys.path.insert(0, str(folder))
        self.addCleanup(sys.path.remove, str(folder))
        self.assertTrue(self.dev.is_missing("range_dispatch_folder"))


if __name__ == "__main__":
    run_tests()
