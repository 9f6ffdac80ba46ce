# Owner(s): ["module: inductor"]
"""The first hour of a new user, as ``range_dispatch_newuser.md`` tells it, repeated."""

import doctest
import os
import re
import shutil
import unittest
from pathlib import Path

import test_range_dispatch_overlay as overlay
from test_range_dispatch_overlay import on_one_worker

from torch._inductor.test_case import run_tests, TestCase


TRANSCRIPT = Path(__file__).with_name("range_dispatch_newuser.md")
BLOCK = re.compile(r"^```(python|console|text output)\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUICK_START = overlay.ROOT / overlay.KERNEL / "range_dispatch" / "docs" / "quick_start.md"

# Runs the files that it is given, one after the other in one scope. What one prints, and the last
# line of the traceback if it raises, end with a line that no program prints.
RUNNER = """
import sys, traceback
scope = {"__name__": "newuser"}
sys.stderr = sys.stdout
for file in sys.argv[1:]:
    try:
        exec(compile(open(file).read(), file, "exec"), scope)
    except Exception as error:
        print(traceback.format_exception_only(error)[0].splitlines()[0])
    print("END OF BLOCK", flush=True)
"""


def sections():
    """The blocks of each section, by its heading."""
    _, *parts = re.split(r"^## (.+)$", TRANSCRIPT.read_text(), flags=re.MULTILINE)
    return {head: BLOCK.findall(body) for head, body in zip(parts[::2], parts[1::2], strict=True)}


@on_one_worker
@unittest.skipUnless(overlay.HAS_OVERLAY, "there is no overlay here: the patch has landed")
@unittest.skipUnless(overlay.CAN_INSTALL, "this interpreter lacks pip or venv")
class NewUserTest(TestCase):
    """``REAL`` sees the PyTorch of the running interpreter, and was installed into by pip."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.python = overlay.installed("newuser", see_torch=True)
        cls.folder = overlay.scratch() / "newuser-files"
        cls.folder.mkdir(exist_ok=True)

    def variables(self, **more):
        return {
            "TORCHINDUCTOR_CACHE_DIR": self.folder / "cache",
            "TORCH_RANGE_DISPATCH_ROUNDS": 1,
            "TORCH_RANGE_DISPATCH_BUDGET_MS": 0.01,
            "OMP_NUM_THREADS": 1,
            **more,
        }

    def assertPrints(self, wanted, printed, what):
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        same = doctest.OutputChecker().check_output(wanted, printed, flags)
        self.assertTrue(same, f"{what}\nprints\n{printed}\nand not\n{wanted}")

    def run_blocks(self, blocks, name, **variables):
        """Run programs in one process; what each of them prints."""
        files = []
        for i, text in enumerate(blocks, 1):
            files.append(self.folder / f"{name}_{i}.py")
            files[-1].write_text(text)
        done = overlay.child(self.python, "-c", RUNNER, *files, **self.variables(**variables))
        # What a PyTorch that was built for CUDA says where there is no GPU.
        said = re.sub(r".*No CUDA runtime is found.*\n", "", done.stdout)
        printed = said.split("END OF BLOCK\n")
        self.assertEqual(len(printed), len(blocks) + 1, f"{done.stdout}\n{done.stderr}")
        return printed

    def repeat(self, section, **variables):
        """Run the Python blocks of a section, and compare."""
        steps = []
        for kind, text in sections()[section]:
            if kind == "python":
                steps.append([text, None])
            elif kind == "text output" and steps[-1][1] is None:
                steps[-1][1] = text
            else:
                break
        printed = self.run_blocks([text for text, _ in steps], "mistake", **variables)
        for (text, wanted), found in zip(steps, printed, strict=False):
            if wanted is None:
                self.assertEqual(found, "", text)
            else:
                self.assertPrints(wanted, found, text)

    def command(self, *arguments, **variables):
        module = ("-m", "torch_range_dispatch")
        return overlay.child(self.python, *module, *arguments, **self.variables(**variables))

    def outputs(self, section):
        return [text for kind, text in sections()[section] if kind == "text output"]

    def test_install(self):
        (wanted,) = self.outputs("Install")
        done = self.command("status")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertPrints(wanted, done.stdout, "status")

    def test_quick_start(self):
        table, listed = self.outputs("Quick start")
        blocks = re.findall(r"^```python\n(.*?)^```", QUICK_START.read_text(), re.M | re.DOTALL)
        printed = self.run_blocks(blocks, "quick_start")
        self.assertEqual(set(printed[: len(blocks) - 1]), {""}, printed)
        self.assertPrints(f"{table.rstrip()} ...", printed[len(blocks) - 1], "the quick start")
        done = self.command("records", "list", "docs_quick::skinny_mm")
        self.assertPrints(listed, done.stdout, "records list")

    def test_mistakes_in_a_program(self):
        self.repeat("Mistakes in a program")

    def test_an_old_torch(self):
        (wanted,) = self.outputs("Mistake 7: an old PyTorch")
        code = "import torch; print(torch.__version__)"
        path = overlay.fake_torch("2.10.2")
        done = overlay.child(overlay.bare(), "-c", code, PYTHONPATH=path)
        self.assertPrints(wanted, done.stderr + done.stdout, code)

    def test_no_compiler(self):
        missing = {"CXX": "/no/such/g++", "PATH": "/nowhere"}
        cache = self.folder / "cache-without-compiler"
        self.repeat("Mistake 8: no compiler", TORCHINDUCTOR_CACHE_DIR=cache, **missing)

    def test_cache_and_records(self):
        section = "Mistakes 9 and 10: a cache that cannot be written, and stale records"
        cache, shipped = self.folder / "blocked-cache", self.folder / "shipped"
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        # A link to where no folder can be made: that keeps even root from writing there.
        (cache / "range_dispatch").symlink_to("/proc/no/such/folder")
        variables = {"TORCHINDUCTOR_CACHE_DIR": cache, "SHIPPED": shipped}
        # The damaged file is read where the graph is not served from a compile cache.
        uncached = {"TORCHINDUCTOR_FX_GRAPH_CACHE": 0, "TORCHINDUCTOR_AUTOGRAD_CACHE": 0}
        self.repeat(section, **variables, **uncached)
        done = self.command("records", "list", "--folder", shipped)
        self.assertPrints(self.outputs(section)[-1], done.stdout, "records list")

    def test_ten_mistakes(self):
        text = TRANSCRIPT.read_text()
        numbers = [int(n) for n in re.findall(r"^\*\*(\d+)\.", text, re.MULTILINE)]
        numbers += [int(n) for n in re.findall(r"^## Mistake (\d+):", text, re.MULTILINE)]
        self.assertEqual(sorted(numbers), [*range(1, 11)])


if __name__ == "__main__":
    if os.name == "posix":
        run_tests(needs="filelock")
