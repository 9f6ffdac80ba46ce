# Owner(s): ["module: inductor"]
"""What the tests of range dispatch share: registrations undone, winners forced, graphs read."""

import contextlib
import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock


# The tests compile many small kernels that are alike: they share one cache folder in a process.
os.environ.setdefault("INDUCTOR_TEST_DISABLE_FRESH_CACHE", "1")

import torch
import torch._functorch.config as functorch_config
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config
from torch._inductor.kernel import custom_op
from torch._inductor.kernel.range_dispatch import config, report, tuner
from torch._inductor.kernel.range_dispatch.candidates import OP_LABEL
from torch._inductor.kernel.range_dispatch.choosing import Measurement
from torch._inductor.test_case import TestCase
from torch._inductor.utils import run_and_get_code
from torch.testing._internal.inductor_utils import GPU_TYPE, HAS_CPU, HAS_GPU


SCALAR_KERNELS = {"cpp.simdlen": 1}
VECTOR_KERNELS = {"cpp.simdlen": None}  # as Inductor has it
DEVICES = (["cpu"] if HAS_CPU else []) + ([GPU_TYPE] if HAS_GPU else [])


def stock_custom_op() -> Path:
    """What the patch replaces: in the installed PyTorch, or what a landing there has kept."""
    site, path = Path(torch.__file__).resolve().parents[1], "torch/_inductor/kernel/custom_op.py"
    kept = site / ".range-dispatch-landed" / "files" / path
    return kept if kept.exists() else site / path


class RangeDispatchTestCase(TestCase):
    """Starts without registrations, plans and counters; every registration is undone after.

    Kernels for the CPU have no vector instructions unless ``vectors`` says so: g++ needs a third
    of the time for them, which is most of the time that the tests take.
    """

    vectors = False

    def setUp(self) -> None:
        super().setUp()
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        if not self.vectors:
            stack.enter_context(inductor_config.patch(SCALAR_KERNELS))
        # Code of one test must not be served to another whose faked timings differ.
        stack.enter_context(inductor_config.patch(fx_graph_cache=False))
        stack.enter_context(functorch_config.patch(enable_autograd_cache=False))
        stack.enter_context(config.patch(use_records=False, remeasure_margin=0.0))
        torch._dynamo.reset()
        counters.clear()
        report.clear()
        torch.manual_seed(0)

    def tearDown(self) -> None:
        for op in list(custom_op._registrations):
            custom_op.unregister_custom_op_autotuning(op)
        torch._dynamo.reset()
        super().tearDown()

    def check(self, compiled: Callable[..., Any], eager: Callable[..., Any], *args: Any) -> None:
        """Compiled and eager agree on ``args``, in values, dtypes, shapes and strides."""
        self.assertEqual(compiled(*args), eager(*args), exact_stride=True)


# Once an op is collected as garbage, PyTorch forgets the op that has its name by then.
_defined: list[Any] = []


def define_op(
    name: str,
    function: Callable[..., Any],
    fake: Callable[..., Any] | None = None,
    **options: Any,
) -> Any:
    """A custom op ``range_dispatch_test::<name>``; the fake kernel runs ``function`` by default."""
    op = torch.library.custom_op(
        f"range_dispatch_test::{name}", function, mutates_args=(), **options
    )
    op.register_fake(fake or function)
    _defined.append(op)
    return op


@contextlib.contextmanager
def force_winners(choice: Mapping[int, str] | Callable[[int], str]) -> Iterator[list[int]]:
    """Fake the timings: at a probe of size ``n`` the candidate ``choice(n)`` is the fastest.

    ``choice`` may be a dict from a range's probe to the label. Yields the probes that were asked
    for, in order. Candidates of other labels take twice the time, and so does the winner with
    fewer neighbours in its branch, which is not noted.
    """
    pick = choice if callable(choice) else choice.__getitem__
    probes: list[int] = []

    def fake(bench: Any, contenders: Any, point: Any) -> list[Measurement]:
        winner = pick(point.size)
        labels = [c.candidate.label for c in contenders]
        if not any(c.variant for c in contenders):
            probes.append(point.size)
        if winner not in labels:
            raise AssertionError(f"no candidate {winner!r} among {labels}")
        return [Measurement(label, 1.0 if label == winner else 2.0) for label in labels]

    with mock.patch.object(tuner, "measure", fake):
        yield probes


_PLAIN_PACKAGE = """
import sys, tempfile, torch, torch._inductor
class Plain(torch.nn.Module):
    def forward(self, x):
        return x + 1
x = torch.randn(4, 4, device=sys.argv[1])
with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
    program = torch.export.export(Plain(), (x,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=folder + "/plain.pt2")
    torch._inductor.aoti_load_package(path)(x)
"""


@functools.cache
def packages_load(device: str) -> bool:
    """Whether this machine loads a package without any custom op: some crash, with a GPU."""
    if device == "cpu":
        return True
    done = subprocess.run([sys.executable, "-c", _PLAIN_PACKAGE, device], capture_output=True)
    return done.returncode == 0


def final_code(compiled: Callable[..., Any], *args: Any) -> str:
    """The generated code of the user's graph (the last one; benchmark modules come before)."""
    _, codes = run_and_get_code(compiled, *args)
    return codes[-1]


def predicates(code: str) -> list[int]:
    """The ends that the generated code compares with, ascending.

    That is ``if s <= end`` or, where 2.15 generates a conditional, ``selector = int(s <= end)``.
    """
    found = re.findall(
        r"^\s*(?:(?:\} )?(?:if|elif|else if) \(?|\w+_selector = int\()"
        r"[\w ()+*/-]+? ?<= ?(\d+)L?\)?",
        code,
        re.MULTILINE,
    )
    return sorted({int(end) for end in found})


__all__ = [
    "config",
    "counters",
    "custom_op",
    "define_op",
    "DEVICES",
    "final_code",
    "force_winners",
    "functools",
    "GPU_TYPE",
    "HAS_CPU",
    "HAS_GPU",
    "inductor_config",
    "OP_LABEL",
    "packages_load",
    "predicates",
    "RangeDispatchTestCase",
    "report",
    "SCALAR_KERNELS",
    "stock_custom_op",
    "VECTOR_KERNELS",
]
