# Owner(s): ["module: inductor"]
"""What the README and the documentation print is what comes out."""

import contextlib
import doctest
import io
import json
import logging
import re
import sys
import tempfile
from pathlib import Path

from range_dispatch_common import config, HAS_CPU, HAS_GPU, RangeDispatchTestCase, report
from range_dispatch_recording import quick_measuring

import torch
from torch._inductor.kernel import range_dispatch
from torch._inductor.kernel.range_dispatch import records
from torch._inductor.kernel.range_dispatch.plan import Plan
from torch._inductor.test_case import run_tests
from torch._inductor.utils import fresh_cache
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


README = Path(__file__).resolve().parents[2] / "README.md"
DOCS = Path(range_dispatch.__file__).parent / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(python|text output|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Printed(logging.Handler):
    """Takes what a block prints, and the messages of the warnings that it logs."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.stream = io.StringIO()

    def emit(self, record):
        self.stream.write(f"{record.getMessage()}\n")

    def take(self):
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return text


class DocsTestCase(RangeDispatchTestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.enterContext(quick_measuring())
        torch._logging.warning_once.cache_clear()

    def run_page(self, path):
        """Run the Python blocks of a page, and compare what they print; how many there are."""
        scope: dict[str, object] = {"__name__": path.stem}
        printed = Printed()
        logger = logging.getLogger("torch._inductor.kernel")
        logger.addHandler(printed)
        self.addCleanup(logger.removeHandler, printed)
        count, output, where = 0, "", ""
        for kind, text in BLOCK.findall(path.read_text()):
            if kind == "python":
                count += 1
                where = f"{path.name}, block {count}"
                # In a file of its own: the compiler reads the source of what it compiles.
                file = Path(self.folder) / f"{path.stem}_{count}.py"
                file.write_text(text)
                printed.take()
                with contextlib.redirect_stdout(printed.stream):
                    exec(compile(text, str(file), "exec"), scope)
                output = printed.take()
            elif kind == "text output":
                flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
                same = doctest.OutputChecker().check_output(text, output, flags)
                self.assertTrue(same, f"{where} prints\n{output}\nand not\n{text}")
        return count


class PagesTest(DocsTestCase):
    @parametrize("name", PAGES)
    def test_page(self, name):
        with fresh_cache(), config.patch(use_records=True):
            records.forget()
            self.addCleanup(records.forget)
            count = self.run_page(DOCS / f"{name}.md")
        self.assertEqual(count == 0, name == "index")

    def test_index_names_every_page(self):
        linked = re.findall(r"\]\((\w+)\.md\)", (DOCS / "index.md").read_text())
        self.assertEqual(sorted(linked), sorted({*PAGES} - {"index"}))

    def test_links(self):
        for path in [*DOCS.glob("*.md"), *([README] if README.exists() else [])]:
            for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", path.read_text()):
                if "://" not in target:
                    self.assertTrue((path.parent / target).exists(), f"{path.name}: {target}")

    def test_nothing_is_said_twice(self):
        for path in [*DOCS.glob("*.md"), *([README] if README.exists() else [])]:
            text = path.read_text()
            headings = re.findall(r"^#+ .*", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
            long = [part for part in text.split("\n\n") if part.count("\n") >= 2]
            for parts in (headings, long):
                self.assertEqual(sorted(parts), sorted({*parts}), path.name)

    def test_commands_are_understood(self):
        """Each command of the pages names sub-commands and options that there are."""
        overlay = README.parent / "tools" / "overlay"
        if not overlay.is_dir():
            self.skipTest("the patch was landed without its command line")
        sys.path.insert(0, str(overlay))
        self.addCleanup(sys.path.remove, str(overlay))
        from torch_range_dispatch.__main__ import _split, parser_of_commands

        found = 0
        for path in [*DOCS.glob("*.md"), README]:
            command = r"^\s*python3 -m torch_range_dispatch (.*)$"
            for line in re.findall(command, path.read_text(), re.MULTILINE):
                words = line.partition("#")[0].split()
                parser_of_commands().parse_args(_split(words)[0])
                found += 1
        self.assertGreater(found, 10)

    def test_json_keys_are_described(self):
        text = (DOCS / "report.md").read_text()
        plan = json.loads((DOCS / "headline.json").read_text())
        for key in (*plan, *plan["ranges"][0], *plan["ranges"][0]["measurements"][0]):
            self.assertIn(f"`{key}`", text)

    def test_knobs_that_are_named_exist(self):
        source = "\n".join(p.read_text() for p in DOCS.parent.glob("*.py"))
        for path in DOCS.glob("*.md"):
            for name in set(re.findall(r"TORCH_RANGE_DISPATCH_\w+", path.read_text())):
                self.assertIn(name, source)

    def test_picture_is_what_the_numbers_say(self):
        plan = Plan.from_json((DOCS / "headline.json").read_text())
        self.assertEqual((DOCS / "headline.svg").read_text(), plan.to_svg())


class ReadmeTest(DocsTestCase):
    def test_python_blocks(self):
        if not README.exists():
            self.skipTest("this tree has no README of the patch: it was landed without it")
        self.assertGreaterEqual(self.run_page(README), 2)
        plans = report.plans("readme::skinny_mm")
        self.assertTrue(plans)
        labels = [m.label for m in plans[0].results[0].measurements]
        self.assertEqual(labels[1:], ["split_k(k_splits=4)", "op itself"])
        self.assertEqual(plans[0].rejected, ())

    def test_opens_with_what_a_reader_needs(self):
        if not README.exists():
            self.skipTest("this tree has no README of the patch: it was landed without it")
        opening = README.read_text()[:3500]
        self.assertIn("headline.svg", opening)
        self.assertIn("tools/dev.py demo", opening)
        self.assertIn("tools/dev.py test", opening)
        example = re.search(r"```python\n(.*?)```", opening, re.DOTALL)[1]
        self.assertLessEqual(len([line for line in example.splitlines() if line.strip()]), 30)


instantiate_parametrized_tests(PagesTest)


if __name__ == "__main__":
    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
