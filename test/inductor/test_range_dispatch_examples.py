# Owner(s): ["module: inductor"]
"""The examples of tools/examples run, and show what they are there to show."""

import contextlib
import importlib
import io
import sys
import unittest
from pathlib import Path

from range_dispatch_common import config, HAS_CPU, HAS_GPU, RangeDispatchTestCase
from range_dispatch_recording import quick_measuring

from torch._inductor.test_case import run_tests


EXAMPLES = Path(__file__).resolve().parents[2] / "tools" / "examples"


@unittest.skipUnless(EXAMPLES.is_dir(), "the patch was landed without its tools")
class ExamplesTest(RangeDispatchTestCase):
    def setUp(self):
        super().setUp()
        sys.path.insert(0, str(EXAMPLES))
        self.addCleanup(sys.path.remove, str(EXAMPLES))
        self.enterContext(quick_measuring())

    def run_example(self, name, *arguments):
        """What ``main`` of the example returns, and what it prints."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            result = importlib.import_module(name).main(*arguments)
        return result, out.getvalue()

    def test_decode_loop(self):
        graphs, out = self.run_example("decode_loop", 32, (2, 16, 17, 128))
        self.assertEqual(graphs, 1)
        self.assertEqual(out.count("range_dispatch_examples::skinny_mm on a.shape[0] = "), 2)

    def test_training_step(self):
        losses, out = self.run_example("training_step", 32)
        self.assertLess(sum(losses[-3:]), sum(losses[:3]))
        self.assertIn("in the backward graph", out)

    def test_exported_package(self):
        said, out = self.run_example("exported_package", 16)
        self.assertEqual(said, "right at 2, 4, 5 and 60 rows\n")
        self.assertIn("range_dispatch_examples::skinny_mm on a.shape[0]", out)

    def test_shipped_records(self):
        with config.patch(use_records=True):
            (first, second), _ = self.run_example("shipped_records")
        self.assertEqual((first.origin, second.origin), ("measured", "recorded"))
        self.assertEqual(first.chosen, second.chosen)

    def test_all_are_covered(self):
        names = {path.stem for path in EXAMPLES.glob("*.py")} - {"skinny"}
        tests = {name.removeprefix("test_") for name in dir(self) if name.startswith("test_")}
        self.assertEqual(names - tests, set())


if __name__ == "__main__":
    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
