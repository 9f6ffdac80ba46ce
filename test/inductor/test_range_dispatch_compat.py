# Owner(s): ["module: inductor"]
"""The table of differences between the releases is true here, and every entry is still needed."""

import inspect
import re
from pathlib import Path

from range_dispatch_common import HAS_CPU, HAS_GPU, RangeDispatchTestCase

import torch
from torch._inductor.kernel.range_dispatch import compat
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


# What the patch supports: a release that is dropped here makes entries of compat.py superfluous.
SUPPORTED = ((2, 11), (2, 15))
HERE = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
BY_FEATURE = {difference.feature: difference for difference in compat.DIFFERENCES}


def numbers(release):
    return tuple(map(int, release.split(".")))


class CompatTest(RangeDispatchTestCase):
    @parametrize("feature", list(BY_FEATURE), name_fn=lambda f: re.sub(r"\W+", "_", f).strip("_"))
    def test_entry_is_needed_and_true(self, feature):
        difference = BY_FEATURE[feature]
        since = numbers(difference.since)
        self.assertGreater(since, SUPPORTED[0], "every supported release has it: drop the entry")
        self.assertLessEqual(since, SUPPORTED[1], "no supported release has it")
        self.assertEqual(difference.found(), since <= HERE, f"on {torch.__version__}")

    def test_every_function_is_in_the_table(self):
        functions = {
            name
            for name, value in vars(compat).items()
            if inspect.isfunction(value)
            and value.__module__ == compat.__name__
            and not name.startswith("_")
        }
        named = {name for difference in compat.DIFFERENCES for name in difference.used_by}
        self.assertEqual(functions, named)

    def test_no_release_is_asked_for_elsewhere(self):
        folder = Path(compat.__file__).parent
        for file in [*folder.glob("*.py"), folder.parent / "custom_op.py"]:
            for line in file.read_text().splitlines():
                compares = re.search(r"__version__ *([<>]|[!=]=)|TorchVersion|version\.parse", line)
                self.assertIsNone(compares, f"{file.name}: {line}")

    def test_range_of_supported_releases(self):
        self.assertLessEqual(SUPPORTED[0], HERE)
        overlay = Path(__file__).resolve().parent.parent.parent / "tools/overlay"
        overlay = overlay / "torch_range_dispatch/_overlay.py"
        if overlay.exists():
            found = dict(
                re.findall(r"^(OLDEST|NEWEST) = \((\d+, \d+)\)", overlay.read_text(), re.M)
            )
            expected = [", ".join(map(str, release)) for release in SUPPORTED]
            self.assertEqual([found["OLDEST"], found["NEWEST"]], expected)


instantiate_parametrized_tests(CompatTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
