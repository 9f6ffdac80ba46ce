# Owner(s): ["module: inductor"]
"""The README's code runs as it is printed."""

import re
import tempfile
from pathlib import Path

from range_dispatch_common import HAS_CPU, HAS_GPU, RangeDispatchTestCase, report


README = Path(__file__).resolve().parents[2] / "README.md"


class ReadmeTest(RangeDispatchTestCase):
    def test_python_blocks(self):
        if not README.exists():
            self.skipTest("this tree has no README of the patch: it was landed without it")
        blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
        self.assertGreaterEqual(len(blocks), 2)
        scope: dict[str, object] = {"__name__": "readme"}
        with tempfile.TemporaryDirectory() as folder:
            for i, block in enumerate(blocks):
                # In a file of its own: the compiler reads the source of what it compiles.
                path = Path(folder) / f"readme_{i}.py"
                path.write_text(block)
                exec(compile(block, str(path), "exec"), scope)
        plans = report.plans("readme::skinny_mm")
        self.assertTrue(plans)
        labels = [m.label for m in plans[0].results[0].measurements]
        self.assertEqual(labels[1:], ["split_k(k_splits=4)", "op itself"])
        self.assertEqual(plans[0].rejected, ())


if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
