# Owner(s): ["module: inductor"]
"""Triton's configurations are timed by replay, and what was measured with them runs with them."""

import ast
import contextlib
import inspect
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import sympy
from range_dispatch_common import (
    config,
    define_op,
    GPU_TYPE,
    HAS_CPU,
    HAS_GPU,
    inductor_config,
    predicates,
    RangeDispatchTestCase,
    run_and_get_code,
)
from range_dispatch_no_device import kernels

import torch
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import LambdaFuture
from torch._inductor.codegen.triton import TritonScheduling
from torch._inductor.codegen.wrapper import PythonWrapperCodegen
from torch._inductor.graph import GraphLowering
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
from torch._inductor.kernel.range_dispatch import kernel_source, timing, triton_configs
from torch._inductor.kernel.range_dispatch.kernel_source import (
    offered_for,
    with_configuration,
    with_facts,
    without_masks,
)
from torch._inductor.kernel.range_dispatch.triton_configs import (
    find,
    forget,
    keep,
    Kernel,
)
from torch._inductor.runtime import triton_heuristics
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch._inductor.sizevars import SizeVarAllocator
from torch._inductor.virtualized import V
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges
from torch.utils._triton import has_triton_package


try:
    from pytest import mark

    on_one_worker = mark.xdist_group("range_dispatch_no_device")  # or each makes the process
except ImportError:

    def on_one_worker(cls):
        return cls


def kernel(
    name="triton_red_0",
    heuristic="reduction",
    hints="{'x': 64, 'r0_': 4096}",
    meta="'grid_type': 'Grid1D', ",
    more="",
):
    """A kernel's source as Inductor writes it; what is computed does not matter here."""
    return f"""
import triton
import triton.language as tl

from torch._inductor.runtime import triton_helpers, triton_heuristics

@triton_heuristics.{heuristic}(
    size_hints={hints},
    filename=__file__,
    triton_meta={{'signature': {{'out_ptr0': '*fp32'}}, 'note': "a 'quoted' (one"}},
    inductor_meta={{{meta}'kernel_name': '{name}', 'autotune_local_cache': True, 'x': 1}}{more}
)
@triton.jit
def {name}(out_ptr0, xnumel, XBLOCK : tl.constexpr):
    tl.store(out_ptr0, 1.0)
"""


def pointwise(pointers, mutated):
    """A kernel that adds two operands, given its pointers with their types and alignments."""
    given = [part.split() for part in (*pointers.split(", "), "xnumel: i32")]
    names = [name.rstrip(":") for name, *_ in given]
    signature = {name: kind for name, (_, kind, *_) in zip(names, given, strict=True)}
    aligned = {(i,): [["tt.divisibility", 16]] for i, part in enumerate(given) if len(part) == 3}
    first, second = names[0], names[1]
    written = next(name for name in names if "out_ptr" in name)
    return f"""
@triton_heuristics.pointwise(
    size_hints={{'x': 64}},
    filename=__file__,
    triton_meta={{'signature': {signature}, 'constants': {{}}, 'configs': [{aligned}]}},
    inductor_meta={{'grid_type': 'Grid1D', 'mutated_arg_names': {mutated}, 'num_load': 2}},
)
@triton.jit
def triton_poi_0({", ".join(names)}, XBLOCK : tl.constexpr):
    xoffset = tl.program_id(0) * XBLOCK
    tmp0 = tl.load({first} + (xoffset), None)
    tmp1 = tl.load({second} + (xoffset), None)
    tmp2 = tmp0 + tmp1
    tl.store({written} + (xoffset), tmp2, None)
"""


CHOSEN = {"XBLOCK": 8, "num_warps": 2, "num_stages": 1}
SOME = Kernel.of(kernel(), "triton_red_0")


def blocks_of(block):
    """A configuration."""
    return SimpleNamespace(kwargs={"XBLOCK": block}, num_warps=2, num_stages=1, maxnreg=None)


def with_a_mask():
    return kernel().replace("    tl.store", "    xmask = xindex < xnumel\n    tl.store")


def known_of(source, **numels):
    """A kernel's source with what is known of sizes, which are given as expressions of s and t."""
    symbols = {name: sympy.Symbol(name, integer=True, positive=True) for name in "st"}
    sizes = {prefix: sympy.sympify(numel, symbols) for prefix, numel in numels.items()}
    with V.set_graph_handler(SimpleNamespace(sizevars=SizeVarAllocator(ShapeEnv()))):
        return with_facts(source, sizes)


def decorator(source):
    """The keyword arguments of a kernel's heuristic, by the heuristic's name."""
    (function,) = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
    call = function.decorator_list[0]
    return call.func.attr, {k.arg: ast.unparse(k.value) for k in call.keywords}


class SourceTest(RangeDispatchTestCase):
    def test_a_digest_leaves_out_what_is_no_part(self):
        """The name, the caches, and all that follows from the hints; how far they are is kept."""
        one = Kernel.of(kernel("triton_red_0"), "triton_red_0")
        self.assertEqual(one, Kernel.of(kernel("k_7"), "k_7"))
        source = kernel(
            "triton_red_0", meta="'tiling_scores': {'x': 7, 'r0_': 9}, 'grid_type': 1, "
        )
        for other in (
            source.replace("'autotune_local_cache': True", "'autotune_local_cache': False"),
            source.replace("\n", "\n    "),
        ):
            self.assertEqual(Kernel.of(source, "triton_red_0"), Kernel.of(other, "triton_red_0"))
        scored = Kernel.of(source.replace("'r0_': 9}", "'r0_': 1}"), "triton_red_0")
        self.assertEqual(Kernel.of(source, "triton_red_0"), scored)
        hinted = Kernel.of(kernel(hints="{'x': 256, 'r0_': 2048}"), "triton_red_0")
        self.assertEqual(one.digest, hinted.digest)
        self.assertEqual(hinted.distance(str(one)), 3.0)
        self.assertEqual(one.distance(str(one)), 0.0)

    def test_a_digest_tells_kernels_apart(self):
        one = Kernel.of(kernel(), "triton_red_0").digest
        for other in (
            kernel().replace("1.0", "2.0"),
            kernel(heuristic="persistent_reduction"),
            kernel(meta="'grid_type': 'Grid2D', "),
        ):
            self.assertNotEqual(one, Kernel.of(other, "triton_red_0").digest)

    def test_a_kernel_that_writes_in_place_is_the_same(self):
        """An operand that ends in a branch is written to; a benchmark module needs it again."""
        two = pointwise("in_ptr0: *fp32 16, in_ptr1: *bf16, out_ptr0: *fp32 16", [])
        one = pointwise("in_out_ptr0: *fp32 16, in_ptr0: *bf16", ["in_out_ptr0"])
        self.assertEqual(Kernel.of(one, "triton_poi_0"), Kernel.of(two, "triton_poi_0"))
        for other in (
            # Another operand is written to, another type, another alignment, another function.
            pointwise("in_ptr0: *fp32 16, in_out_ptr0: *bf16", ["in_out_ptr0"]),
            pointwise("in_out_ptr0: *fp32 16, in_ptr0: *fp32", ["in_out_ptr0"]),
            pointwise("in_out_ptr0: *fp32 16, in_ptr0: *bf16 16", ["in_out_ptr0"]),
            one.replace("tmp0 + tmp1", "tmp0 * tmp1"),
            one.replace("tl.load(in_ptr0", "tl.load(in_out_ptr0"),
        ):
            self.assertNotEqual(Kernel.of(other, "triton_poi_0"), Kernel.of(two, "triton_poi_0"))

    def test_pointers_that_are_not_only_read_and_written_count_by_name(self):
        add = pointwise("in_ptr0: *fp32, in_ptr1: *fp32, out_ptr0: *fp32", [])
        atomic = [
            source.replace("tl.store(", "tl.atomic_add(")
            for source in (add, add.replace("in_ptr", "in_out_ptr"))
        ]
        digests = {Kernel.of(source, "triton_poi_0").digest for source in (add, *atomic)}
        self.assertEqual(len(digests), 3)

    @parametrize("heuristic", ["pointwise", "reduction", "persistent_reduction"])
    def test_one_configuration(self, heuristic):
        source = kernel(heuristic=heuristic, more=",\n    min_elem_per_thread=0")
        fixed = with_configuration(source, CHOSEN)
        name, arguments = decorator(fixed)
        self.assertEqual(name, "fixed_config")
        self.assertEqual(ast.literal_eval(arguments.pop("config")), CHOSEN)
        _, before = decorator(source)
        kept = ("filename", "triton_meta", "inductor_meta")
        self.assertEqual(arguments, {name: before[name] for name in kept})
        # Nothing else changes.
        behind = source[source.index("@triton.jit") :]
        self.assertTrue(fixed.endswith(behind))
        self.assertEqual(fixed.split("@")[0].strip(), source.split("@")[0].strip())

    @parametrize(
        "other",
        [
            {"heuristic": "template"},
            {"heuristic": "cooperative_reduction"},
            {"heuristic": "split_scan"},
            {"heuristic": "fixed_config"},
            {"meta": "'grid_type': 'CooperativeReductionGrid', "},
            {"meta": "'grid_type': 'Grid1D', 'RSPLIT_SIZE': 4, "},
            {"meta": ""},
        ],
        name_fn=lambda other: re.sub(r"\W+", "_", str(other)).strip("_"),
    )
    def test_other_kernels_stay_as_they_are(self, other):
        self.assertIsNone(with_configuration(kernel(**other), CHOSEN))

    @parametrize(
        "rows, chosen, left",
        [
            ("s", {"XBLOCK": 1, "R0_BLOCK": 2048}, []),
            # Of y there may be more programs than there are blocks.
            ("s", {"XBLOCK": 1, "YBLOCK": 1, "R0_BLOCK": 2048}, []),
            ("s", {"XBLOCK": 1, "R0_BLOCK": 1024}, []),
            ("s", {"XBLOCK": 1, "R0_BLOCK": 4096}, ["r0_mask"]),
            ("s", {"XBLOCK": 2, "R0_BLOCK": 2048}, ["xmask"]),
            ("s", {"XBLOCK": 8, "R0_BLOCK": 512, "RSPLIT": 1}, ["xmask"]),
            ("s", {"num_warps": 4}, ["xmask", "r0_mask"]),
            # Parts of each row.
            ("64*s", {"XBLOCK": 32, "R0_BLOCK": 2048}, []),
            ("64*s", {"XBLOCK": 128, "R0_BLOCK": 2048}, ["xmask"]),
            ("16*s*t + 8*s", {"XBLOCK": 8, "R0_BLOCK": 2048}, []),
            ("16*s*t + 8*s", {"XBLOCK": 16, "R0_BLOCK": 2048}, ["xmask"]),
        ],
        name_fn=lambda rows, chosen, left: "_".join(re.findall(r"\w+", f"{rows} {chosen}")),
    )
    def test_masks_that_are_true_throughout(self, rows, chosen, left):
        """Of a row in each program, and of what the blocks fill, whatever the size is."""
        body = """
            r0_numel = 6144
            xmask = xindex < xnumel
            for r0_offset in tl.range(0, r0_numel, R0_BLOCK):
                r0_mask = r0_index < r0_numel
                tmp0 = tl.load(in_ptr0 + r0_index, r0_mask & xmask, other=0.0)
            ymask = yindex < ynumel
        """
        body = textwrap.indent(textwrap.dedent(body), "    ")
        body = known_of(body, x=rows, y="8192", r0_="6144")
        found = kernel_source._without_masks(body, [chosen])
        masks = re.findall(r"(\w+mask) = (\w+) < \w+numel", found)
        self.assertEqual([mask for mask, _ in masks], [*left, "ymask"])
        changed = [b for a, b in zip(body.splitlines(), found.splitlines(), strict=True) if a != b]
        for line in changed:
            self.assertRegex(line, r"^ +(x|r0_)mask = tl.full\(\1index.shape, True, tl.int1\)$")
        self.assertEqual(len(changed), 2 - len(left))

    def test_a_size_that_is_not_known_keeps_its_mask(self):
        body = "    r0_mask = r0_index < r0_numel\n"
        self.assertEqual(kernel_source._without_masks(body, [{"R0_BLOCK": 8}]), body)

    @parametrize(
        "blocks, needed",
        [([1], False), ([1, 2, 64], False), ([1, 128], True), ([None], True), ([], True)],
        name_fn=lambda blocks, needed: "_".join(map(str, blocks)) or "none",
    )
    def test_masks_that_no_configuration_needs(self, blocks, needed):
        """Of 64 parts of each row."""
        source = known_of(with_a_mask(), x="64*s")
        offered = [
            SimpleNamespace(kwargs={} if block is None else {"XBLOCK": block}) for block in blocks
        ]
        with mock.patch.object(triton_heuristics, "reduction", return_value=offered) as heuristic:
            found = without_masks(source)
        (call,) = heuristic.call_args_list
        self.assertEqual(call.kwargs["size_hints"], {"x": 64, "r0_": 4096})
        self.assertTrue(call.kwargs["return_configs"])
        expected = source.replace("xindex < xnumel", "tl.full(xindex.shape, True, tl.int1)")
        self.assertEqual(found, None if needed else expected)

    @parametrize("setting", ["coordinate_descent_tuning", "min_xblock", "min_rblock"])
    def test_masks_stay_where_blocks_are_not_those_that_are_offered(self, setting):
        source = known_of(with_a_mask(), x="64*s")
        offered = [SimpleNamespace(kwargs={"XBLOCK": 1})]
        with mock.patch.object(triton_heuristics, "reduction", return_value=offered):
            self.assertIsNotNone(without_masks(source))
            self.assertIsNone(without_masks(source.replace("'x': 1", f"'{setting}': 2")))

    def test_a_kernel_whose_configurations_are_not_to_be_had_keeps_its_masks(self):
        with mock.patch.object(triton_heuristics, "reduction", side_effect=TypeError("no")):
            self.assertIsNone(without_masks(with_a_mask()))

    def test_what_is_known_of_a_size_is_in_the_source(self):
        """Inductor makes one kernel of two that have the same source."""
        sources = {rows: known_of(with_a_mask(), x=rows) for rows in ("s", "16*s", "64*s", "48*t")}
        self.assertEqual(sources["s"], with_a_mask())
        self.assertEqual(sources["16*s"], sources["48*t"])
        self.assertEqual(len(set(sources.values())), 3)
        self.assertEqual(known_of(with_a_mask(), x="64"), with_a_mask())
        self.assertEqual(known_of(kernel(), x="64*s"), kernel())  # it has no mask
        # Nor is it another kernel than the one that was measured.
        digests = {Kernel.of(source, "triton_red_0").digest for source in sources.values()}
        self.assertEqual(len(digests), 1)

    def test_what_is_replaced_is_there(self):
        """All that is PyTorch's own and not public, on every release."""
        self.assertEqual(
            list(inspect.signature(TritonScheduling.define_kernel).parameters),
            ["self", "src_code", "node_schedule", "kernel"],
        )
        for heuristic in kernel_source._HEURISTICS:
            parameters = inspect.signature(getattr(triton_heuristics, heuristic)).parameters
            self.assertIn("return_configs", parameters)
        parameters = inspect.signature(TritonScheduling._emit_kernel_to_wrapper).parameters
        self.assertEqual(
            list(parameters)[:8],
            [
                "self",
                "wrapper",
                "kernel",
                "src_code",
                "kernel_name",
                "subs_name",
                "node_schedule",
                "kernel_path",
            ],
        )
        parameters = inspect.signature(PythonWrapperCodegen._generate_kernel_call_helper).parameters
        self.assertEqual(list(parameters)[:3], ["self", "kernel_name", "call_args"])
        self.assertIn("triton_meta", parameters)
        self.assertIn("launcher", inspect.signature(CachingAutotuner.bench).parameters)
        self.assertIs(triton_heuristics.benchmarker, timing.benchmarker)
        given = inspect.signature(timing.benchmarker.benchmark).parameters
        self.assertEqual(list(given)[:4], ["fn", "fn_args", "fn_kwargs", "device"])
        fixed = inspect.signature(triton_heuristics.fixed_config).parameters
        self.assertEqual(list(fixed), ["config", "filename", "triton_meta", "inductor_meta"])

    def test_what_is_no_kernel_stays_as_it_is(self):
        self.assertIsNone(with_configuration("x = 1\n", CHOSEN))


class KeptTest(RangeDispatchTestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name) / "new"
        patch = mock.patch.object(triton_configs, "_folder", lambda: self.folder)
        patch.start()
        self.addCleanup(patch.stop)
        self.addCleanup(forget)
        forget()

    def test_another_process_finds_it(self):
        self.assertIsNone(find(SOME))
        keep(SOME.digest, {SOME.hints: CHOSEN})
        self.assertEqual(find(SOME), CHOSEN)
        forget()
        self.assertEqual(find(SOME), CHOSEN)

    def test_the_last_one_counts(self):
        keep(SOME.digest, {SOME.hints: CHOSEN})
        keep(SOME.digest, {SOME.hints: {**CHOSEN, "XBLOCK": 16}})
        forget()
        self.assertEqual(find(SOME)["XBLOCK"], 16)

    def test_the_nearest_sizes_count(self):
        keep("a", {(("x", rows),): {**CHOSEN, "XBLOCK": rows} for rows in (16, 256, 4096)})
        for rows, nearest in ((1, 16), (16, 16), (100, 256), (2000, 4096), (1 << 20, 4096)):
            self.assertEqual(find(Kernel("a", (("x", rows),)))["XBLOCK"], nearest)
        self.assertIsNone(find(Kernel("b", (("x", 16),))))

    @parametrize(
        "what",
        {
            "empty": "",
            "cut_off": "{",
            "a_list": "[1]",
            "no_configuration": '{"x=1": []}',
            "no_warps": '{"x=1": {}}',
            "text": '{"x=1": {"num_warps": "4"}}',
            "code": '{"x=1": {"num_warps": 4, "x), __import__(\'os\').abort(": 1}}',
            "nested": '{"x=1": {"num_warps": {"a": 1}}}',
            "no_sizes": '{"x=one": {"num_warps": 4}}',
        }.items(),
        name_fn=lambda what: what[0],
    )
    def test_a_file_that_has_none_is_passed_over(self, what):
        _, text = what
        self.folder.mkdir()
        path = self.folder / f"{SOME.digest}.json"
        path.write_text(text)
        self.assertIsNone(find(SOME))
        keep(SOME.digest, {SOME.hints: CHOSEN})
        self.assertEqual(json.loads(path.read_text()), {"r0_=4096 x=64": CHOSEN})

    def test_a_folder_that_cannot_be_written(self):
        with mock.patch.object(Path, "mkdir", side_effect=PermissionError("read-only")):
            keep(SOME.digest, {SOME.hints: CHOSEN})
        self.assertEqual(find(SOME), CHOSEN)

    def tuned(self, filename="kernel.py"):
        """What Inductor has for a kernel that has been tuned."""
        path = self.folder.parent / filename
        path.write_text(kernel())
        return SimpleNamespace(
            filename=str(path),
            inductor_meta={"kernel_name": "triton_red_0"},
            launchers=[SimpleNamespace(config=blocks_of(8))],
        )

    def test_a_tuned_kernel_is_remembered(self):
        tuned = self.tuned()
        triton_configs._remember(tuned, {SOME.hints: tuned.launchers[0]})
        self.assertEqual(find(Kernel.of(kernel("other"), "other")), CHOSEN)

    def test_a_kernel_whose_source_is_gone_is_not(self):
        lost = self.tuned()
        Path(lost.filename).unlink()
        triton_configs._remember(lost, {SOME.hints: lost.launchers[0]})
        self.assertIsNone(find(Kernel.of(kernel("other"), "other")))

    def several(self, times, tried=None, in_calls=None):
        """A kernel that chose the first of some configurations, with times by rows.

        Those in ``tried``, where it is given, are the ones that it chose among. In a call it takes
        as long as by itself, or what ``in_calls`` says.
        """
        tuned = self.tuned()

        class Chosen(CachingAutotuner):
            def __init__(self):
                vars(self).update(vars(tuned))
                self.triton_meta = {"signature": {"out": "*fp32", "xnumel": "i32", "XBLOCK": ""}}
                others = [blocks_of(block) for block in (times if tried is None else tried)]
                launchers = [SimpleNamespace(config=other) for other in others]
                self.launchers = launchers[:1]
                if len(launchers) > 1:
                    vars(self)[triton_configs._TRIED] = launchers

            def bench(self, launcher, *args, **kwargs):
                if kwargs:
                    raise AssertionError(f"launched with {kwargs}")
                return times[launcher.config.kwargs["XBLOCK"]][args[1]]

            def in_a_call(self, rows):
                (launcher,) = self.launchers
                return (in_calls or times)[launcher.config.kwargs["XBLOCK"]][rows]

        return Chosen()

    def choose_again(self, kernel, rows, timed=None):
        """Call it with some numbers of rows; those that it ran with, but for calls that are timed.

        Each kernel is added to ``timed`` with its block, and the rows, when it runs in such a call.
        """
        ran, spent = [], []

        def run(kernel, out, n, stream):
            ran.append(n)
            if timing_calls:
                spent.append(kernel.in_a_call(n))
                if timed is not None:
                    timed.append((kernel, kernel.launchers[0].config.kwargs["XBLOCK"], n))

        def time(call, device):
            self.assertEqual(device, torch.device("cpu"))
            before = len(ran), len(spent)
            timing_calls.append(True)
            call()
            timing_calls.pop()
            del ran[before[0] :]
            return sum(spent[before[1] :])

        timing_calls = []
        with (
            mock.patch.object(CachingAutotuner, "run", run),
            mock.patch.object(triton_configs, "call_milliseconds", time),
        ):
            stub = CachingAutotuner.run
            calls = [lambda n=n: lambda: kernel.run("out", n, stream=7) for n in rows]
            triton_configs.choose_again(torch.device("cpu"), calls)
            self.assertIs(CachingAutotuner.run, stub)
        return ran

    def kept(self):
        """The block that is kept for each size of the kernel."""
        found = json.loads((self.folder / f"{SOME.digest}.json").read_text())
        return {sizes: chosen["XBLOCK"] for sizes, chosen in found.items()}

    def test_the_best_over_all_sizes(self):
        """Each size counts alike: not the one that takes longest."""
        times = {1: {16: 1.5, 100: 1.2, 4096: 2.0}, 8: {16: 1.0, 100: 1.0, 4096: 2.5}}
        kernel = self.several(times)
        self.assertEqual(self.choose_again(kernel, (16, 100, 4096)), 2 * [16, 100, 4096])
        self.assertEqual([found.config.kwargs for found in kernel.launchers], [{"XBLOCK": 8}])
        # Where another one saves enough of the call, it is kept for that size.
        self.assertEqual(self.kept(), {"x=16": 8, "x=100": 8, "x=4096": 1})

    @parametrize("saved, worth", [(0.005, False), (0.02, True)])
    def test_another_one_where_it_saves_enough(self, saved, worth):
        kernel = self.several({1: {16: 1.0, 4096: 10.0}, 8: {16: 1.3, 4096: 10.0 * (1 - saved)}})
        self.choose_again(kernel, (16, 4096))
        self.assertEqual(self.kept(), {"x=16": 1, "x=4096": 8 if worth else 1})

    def test_it_is_the_call_that_has_to_be_faster(self):
        """A tenth of a kernel that is a hundredth of the call is nothing to speak of."""
        short = self.several({1: {16: 1.0, 4096: 1.0}, 8: {16: 1.3, 4096: 0.9}})
        long = self.several({1: {16: 9.0, 4096: 100.0}, 8: {16: 9.9, 4096: 110.0}})

        class Both:
            def run(self, *args, stream):
                for kernel in (short, long):
                    kernel.run(*args, stream=stream)

        self.choose_again(Both(), (16, 4096))
        self.assertEqual(short.launchers[0].config.kwargs, {"XBLOCK": 1})
        self.assertEqual(self.kept(), {"x=16": 1, "x=4096": 1})

    @parametrize("in_call", [12.27, 12.91])
    def test_what_is_slower_in_the_call_only(self, in_call):
        """As it may be where it reads what another kernel has just written."""
        alone = {1: {300: 1.79}, 8: {300: 1.75}}
        kernel = self.several(alone, in_calls={1: {300: 12.27}, 8: {300: in_call}})
        timed = []
        self.choose_again(kernel, [300], timed)
        self.assertEqual(timed, [(kernel, 8, 300), (kernel, 1, 300)])
        best = 8 if in_call == 12.27 else 1
        self.assertEqual(self.kept(), {"x=300": best})
        self.assertEqual([found.config.kwargs for found in kernel.launchers], [{"XBLOCK": best}])

    def test_what_is_clearly_slower_is_not_timed_in_the_call(self):
        alone = {1: {300: 1.7}, 8: {300: 2.8}, 64: {300: 2.2}, 512: {300: float("inf")}}
        calls = {1: {300: 20.0}, 8: {300: 9.0}, 64: {300: 19.0}}
        kernel = self.several(alone, in_calls=calls)
        timed = []
        self.choose_again(kernel, [300], timed)
        self.assertEqual([block for _, block, _ in timed], [1, 64])
        self.assertEqual(self.kept(), {"x=300": 64})

    @parametrize("slower, best", [(1.002, 8), (1.004, 1)])
    def test_of_those_that_are_alike_the_one_with_the_fewest_threads(self, slower, best):
        kernel = self.several({1: {16: 1.0, 64: 2.0}, 8: {16: slower, 64: 2.0 * slower}})
        self.choose_again(kernel, [16, 64])
        self.assertEqual(self.kept(), {"x=16": best, "x=64": best})

    def test_each_kernel_in_a_call_is_timed_by_turns(self):
        """While the others are launched as they were."""
        one = self.several({1: {16: 1.0}, 8: {16: 1.03}})
        other = self.several({64: {16: 1.0}, 512: {16: 0.97}})

        class Both:
            def run(self, *args, stream):
                for kernel in (one, other, one):
                    kernel.run(*args, stream=stream)

        timed = []
        self.choose_again(Both(), [16], timed)
        self.assertEqual([block for k, block, _ in timed if k is one], [1, 1, 8, 8, 1, 1, 1, 1])
        self.assertEqual([block for k, block, _ in timed if k is other], [64, 64, 512, 64])
        self.assertEqual(one.launchers[0].config.kwargs, {"XBLOCK": 1})
        self.assertEqual(other.launchers[0].config.kwargs, {"XBLOCK": 512})

    def test_what_descends_along_coordinates_does_so_once(self):
        """Launched with another configuration it would begin again, whenever it is timed."""
        kernel = self.several({1: {16: 1.04}, 8: {16: 1.0}}, in_calls={1: {16: 10.0}})
        kernel.inductor_meta = {**kernel.inductor_meta, "coordinate_descent_tuning": True}
        timed = []
        self.choose_again(kernel, [16], timed)
        self.assertEqual(timed, [(kernel, 1, 16)])
        self.assertEqual(kernel.launchers[0].config.kwargs, {"XBLOCK": 8})

    def test_a_call_that_fails_leaves_kernels_as_they_were(self):
        kernel = self.several({1: {16: 1.04}, 8: {16: 1.0}}, in_calls={8: {}})
        with self.assertRaises(KeyError):
            self.choose_again(kernel, [16])
        self.assertEqual(kernel.launchers[0].config.kwargs, {"XBLOCK": 1})

    def test_one_size_of_its_own(self):
        times = {1: {16: 1.5, 4096: 2.0}, 8: {16: 1.0, 4096: 2.5}}
        for rows, best in ((16, 8), (4096, 1)):
            self.choose_again(self.several(times), [rows])
            self.assertEqual(find(Kernel(SOME.digest, (("x", rows),)))["XBLOCK"], best)

    def test_what_spills_everywhere_is_not_chosen(self):
        times = {1: {16: float("inf")}, 8: {16: 1.0}}
        kernel = self.several(times)
        self.choose_again(kernel, [16])
        self.assertEqual(kernel.launchers[0].config.kwargs, {"XBLOCK": 8})

    def test_what_spills_with_all_of_them(self):
        kernel = self.several({1: {16: float("inf")}, 8: {16: float("inf")}})
        timed = []
        self.choose_again(kernel, [16], timed)
        self.assertEqual((timed, len(kernel.launchers)), ([], 1))

    def test_a_kernel_that_did_not_choose_is_only_run(self):
        kernel = self.several({1: {}})
        self.assertEqual(self.choose_again(kernel, [16]), [16])
        self.assertFalse(self.folder.exists())

    @parametrize("tried", [[32], [32, 64]])
    def test_what_is_offered_for_any_of_the_sizes_is_tried(self, tried):
        """A kernel made for many rows is offered small blocks for few, and none twice."""
        times = {
            1: {16: 1.0, 4096: 9.0},
            32: {16: 2.0, 4096: 3.0},
            64: {16: 3.0, 4096: 2.0},
        }
        for by_rows in times.values():
            by_rows[4000] = by_rows[4096]
        tuned = self.several(times, tried)
        Path(tuned.filename).write_text(kernel(hints="{'x': 4096}"))
        offered = {16: [1, 32], 4096: [32, 64, 128]}
        compiled = []

        def reduction(size_hints, return_configs, **others):
            return [blocks_of(block) for block in offered[size_hints["x"]]]

        def triton(self, name, source):
            _, arguments = decorator(source)
            block = ast.literal_eval(arguments["config"])["XBLOCK"]
            compiled.append((name, block))
            if block == 128:
                raise RuntimeError("out of shared memory")
            made = SimpleNamespace(launchers=[SimpleNamespace(config=blocks_of(block))])
            return LambdaFuture(lambda: made) if block == 1 else made

        with (
            mock.patch.object(triton_heuristics, "reduction", reduction),
            mock.patch.object(AsyncCompile, "triton", triton),
        ):
            self.choose_again(tuned, (16, 16, 4000, 4096))
        blocks = [*tried, *(block for block in (1, 32, 64, 128) if block not in tried)]
        self.assertEqual(compiled, [("triton_red_0", block) for block in blocks])
        kept = json.loads((self.folder / f"{SOME.digest}.json").read_text())
        self.assertEqual(
            {k: v["XBLOCK"] for k, v in kept.items()}, {"x=16": 1, "x=4000": 64, "x=4096": 64}
        )

    @unittest.skipUnless(has_triton_package(), "configurations are Triton's")
    def test_what_is_offered_depends_on_the_sizes(self):
        """By Inductor's own rules: so there is something to offer."""
        source = pointwise("in_ptr0: *fp32, in_ptr1: *fp32, out_ptr0: *fp32", [])
        device = "DeviceProperties(type='cuda', index=0, multi_processor_count=132, cc=90, "
        device += "warp_size=32)"
        source = source.replace("'constants'", f"'device': {device}, 'constants'")
        offered = [
            [tuple(c.kwargs.values()) for c in offered_for(source, [{"x": n} for n in sizes])]
            for sizes in ([200], [1 << 20], [200, 1 << 20, 1000 * 1000])
        ]
        few, many, both = offered
        self.assertNotEqual(few, many)
        self.assertEqual(both, few + many)
        self.assertEqual(offered_for("def f(): pass", [{"x": 1}]), [])

    @parametrize(
        "numel, least, most, expected",
        [
            ("s", 1, None, [(63, 16), (1024, 256), (None, 4096)]),
            ("4*s", 1, None, [(63, 16), (1024, 256), (None, 4096)]),
            # What cannot be where the kernel runs is left out.
            ("s", 1, 63, [(None, 16)]),
            ("s", 1, 64, [(63, 16), (None, 256)]),
            ("4*s", 1, 15, [(None, 16)]),
            ("s", 64, 1024, [(None, 256)]),
            ("s", 64, None, [(1024, 256), (None, 4096)]),
            ("s", 1025, None, [(None, 4096)]),
        ],
        name_fn=lambda numel, least, most, expected: f"{numel[0]}_{least}_{most}",
    )
    def test_configurations_by_the_number_of_elements(self, numel, least, most, expected):
        """The nearest one, in powers of two, and as few as there have to be."""
        for rows in (16, 256, 4096):
            keep("a", {(("r0_", 100), ("x", rows)): {**CHOSEN, "XBLOCK": rows}})
        keep("a", {(("r0_", 100), ("x", 250)): {**CHOSEN, "XBLOCK": 256}})
        keep("a", {(("r0_", 9), ("x", 64)): CHOSEN})  # of rows of another length
        env = ShapeEnv()
        symbol = sympy.Symbol("s", integer=True, positive=True)
        env.var_to_range[symbol] = ValueRanges(least, int_oo if most is None else most)
        numel = sympy.sympify(numel, {"s": symbol})
        kernel = Kernel("a", (("r0_", 128), ("x", 64)))
        with V.set_graph_handler(SimpleNamespace(sizevars=SizeVarAllocator(env))):
            steps = triton_configs.find_steps(kernel, "x", numel)
        self.assertEqual([(limit, chosen["XBLOCK"]) for limit, chosen in steps], expected)

    def test_which_modules_may_choose(self):
        for kernel in (None, self.several({1: {}})):
            scope = {"kernel": kernel, "other": 1}
            exec("def call(args): pass", scope)
            self.assertEqual(triton_configs.may_choose(scope["call"]), kernel is not None)

    @parametrize("at_compile_time", [False, True])
    def test_what_decides_which_variant_is_launched(self, at_compile_time):
        by_size = triton_configs._BySize("x", [(8, "k"), (64, "k_c1"), (None, "k")])
        wrapper = SimpleNamespace(prepare_triton_kernel_call=lambda args: [f"<{a}>" for a in args])
        meta = {"signature": {"in_ptr0": "*fp32", "xnumel": "i32", "XBLOCK": "constexpr"}}
        chain = "(k if <n> <= 8 else k_c1 if <n> <= 64 else k)"
        expected = "k" if at_compile_time else chain
        with inductor_config.patch({"triton.autotune_at_compile_time": at_compile_time}):
            self.assertEqual(by_size.expression(wrapper, ["a", "n"], meta), expected)
            # Where it is not known, the first one is; each of them computes the same.
            self.assertEqual(by_size.expression(wrapper, ["a"], meta), "k")
            self.assertEqual(by_size.expression(wrapper, ["a", "n"], {}), "k")

    def emitted(self, source, name, nodes=(), only=None):
        """Source and path of a kernel that is emitted while a branch is generated."""
        found = []

        def emit(self, wrapper, kernel, source, name, function, nodes, path, metadata):
            found.append((source, path, metadata))

        with mock.patch.object(TritonScheduling, "_emit_kernel_to_wrapper", emit):
            with triton_configs.as_measured(only):
                TritonScheduling._emit_kernel_to_wrapper(
                    None, None, None, source, name, name, nodes, "/the/path.py", "metadata"
                )
            self.assertIs(TritonScheduling._emit_kernel_to_wrapper, emit)
        return found[0]

    @parametrize("measured", [False, True])
    def test_a_kernel_without_masks_does_not_serve_another_size(self, measured):
        """Of 64 s rows and of 16 s, which may be hinted to be as many: Inductor takes a kernel that
        has the same source for the same."""
        known, defined = {}, []

        def define(self, source, nodes, kernel):
            defined.append(known.setdefault(source, f"kernel_{len(known)}"))
            return defined[-1]

        nodes = [SimpleNamespace(node=SimpleNamespace(origins={"op"}))]
        graph = SimpleNamespace(sizevars=SizeVarAllocator(ShapeEnv()))
        rows = sympy.Symbol("s", integer=True, positive=True)
        with (
            mock.patch.object(TritonScheduling, "define_kernel", define),
            V.set_graph_handler(graph),
            triton_configs.as_measured({"op" if measured else "another"}),
        ):
            for multiple in (64, 16, 64):
                trees = [SimpleNamespace(prefix="x", numel=multiple * rows)]
                kernel = SimpleNamespace(range_trees=trees)
                name = TritonScheduling.define_kernel(None, with_a_mask(), nodes, kernel)
                self.assertEqual(name, defined[-1])
            self.assertEqual(
                TritonScheduling.define_kernel(None, "several in one", nodes, object()),
                f"kernel_{len(known) - 1}",
            )
        same = ["kernel_0", "kernel_0", "kernel_0", "kernel_1"]
        self.assertEqual(
            defined, ["kernel_0", "kernel_1", "kernel_0", "kernel_2"] if measured else same
        )

    def test_a_branch_gets_what_was_measured(self):
        measured = Kernel.of(kernel("measured"), "measured")
        keep(measured.digest, {measured.hints: CHOSEN})
        source, path, metadata = self.emitted(kernel("final_3"), "final_3")
        self.assertEqual(source, with_configuration(kernel("final_3"), CHOSEN))
        self.assertNotEqual(path, "/the/path.py")
        self.assertEqual(metadata, "metadata")

    def test_a_branch_without_measurements_is_tuned_as_ever(self):
        source = kernel("final_3")
        self.assertEqual(self.emitted(source, "final_3"), (source, "/the/path.py", "metadata"))

    def test_the_c_wrapper_tunes_as_ever(self):
        keep(SOME.digest, {SOME.hints: CHOSEN})
        for cpp in (False, True):
            with V.set_graph_handler(SimpleNamespace(cpp_wrapper=cpp)):
                source, _, _ = self.emitted(kernel(), "triton_red_0")
            self.assertEqual(source == kernel(), cpp)

    def test_around_an_inlined_winner_kernels_are_tuned_as_ever(self):
        keep(SOME.digest, {SOME.hints: CHOSEN})
        nodes = [
            SimpleNamespace(node=SimpleNamespace(origins={"op1"})),
            object(),  # where a loop ends
            SimpleNamespace(node=SimpleNamespace(origins={"op2", "op4"})),
        ]
        for only, fixed in ((set(), False), ({"op3"}, False), ({"op1", "op3"}, True)):
            source, _, _ = self.emitted(kernel(), "triton_red_0", nodes, only)
            self.assertEqual(source != kernel(), fixed)

    def test_an_inlined_winner_is_generated_as_measured(self):
        """Whatever computes something that was inlined, of all winners of a graph."""
        keep(SOME.digest, {SOME.hints: CHOSEN})
        sources = []

        def emit(self, wrapper, kernel, source, name, function, nodes, path):
            sources.append(source)

        class Graph:
            def codegen(self, name):
                node = SimpleNamespace(node=SimpleNamespace(origins={name, "another"}))
                TritonScheduling._emit_kernel_to_wrapper(
                    None, None, None, kernel(), "triton_red_0", "triton_red_0", [node], "path"
                )

        graph = Graph()
        for name in ("op1", "op2"):
            triton_configs.generate_as_measured(graph, [name])
        with mock.patch.object(TritonScheduling, "_emit_kernel_to_wrapper", emit):
            for name in ("op0", "op1", "op2"):
                graph.codegen(name)
        self.assertEqual([source != kernel() for source in sources], [False, True, True])


class ReplayedTest(RangeDispatchTestCase):
    """Which of Inductor's benchmarks are replayed; there is nothing here to replay them on."""

    def setUp(self):
        super().setUp()
        replaced = {
            "replayed_milliseconds": mock.Mock(side_effect=lambda run: 1000.0 + run()),
            "aside": mock.MagicMock(),
            "_can_be_captured_here": mock.Mock(return_value=True),
        }
        for name, value in replaced.items():
            setattr(self, name, value)
            patch = mock.patch.object(timing, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        stock = mock.patch.object(type(timing.benchmarker), "benchmark", return_value=5.0)
        self.stock = stock.start()
        self.addCleanup(stock.stop)

    def benchmark(self, *args, **options):
        return timing.benchmarker.benchmark(lambda *args, **kwargs: 7.0, *args, **options)

    def test_what_can_be_is(self):
        with timing.benchmarks_replayed():
            for device in ("cuda", torch.device("cuda", 1)):
                self.assertEqual(self.benchmark(device=device), 1007.0)
                self.assertEqual(self.benchmark((), {}, device), 1007.0)
            with timing.benchmarks_replayed():
                self.assertEqual(self.benchmark((torch.ones(1),), {}, device="cuda"), 1007.0)
            self.assertEqual(self.benchmark((1,), {"x": 2}, device="cuda", rep=40), 1007.0)
        self.assertNotIn("benchmark", vars(timing.benchmarker))
        self.assertEqual(self.benchmark(device="cuda"), 5.0)

    def test_of_what_is_given_if_no_device_is_said(self):
        there = mock.Mock(spec=torch.Tensor, is_cuda=True)
        with timing.benchmarks_replayed():
            self.assertEqual(self.benchmark((there,), {}), 1007.0)
            self.assertEqual(self.benchmark(([torch.ones(1), there],), {}), 1007.0)
            self.assertEqual(self.benchmark((), {"out": there}), 1007.0)

    def test_on_a_cpu_nothing_is(self):
        """A captured graph of it would be empty, and take no time."""
        with timing.benchmarks_replayed():
            self.assertEqual(self.benchmark((torch.ones(1),), {}), 5.0)
            self.assertEqual(self.benchmark(([torch.ones(1)],), {}), 5.0)
            self.assertEqual(self.benchmark((), {"out": torch.ones(1)}), 5.0)
            self.assertEqual(self.benchmark(device="cpu"), 5.0)
            self.assertEqual(self.benchmark(), 5.0)
        self.replayed_milliseconds.assert_not_called()

    def test_what_cannot_be_is_timed_as_ever(self):
        with timing.benchmarks_replayed():
            self._can_be_captured_here.return_value = False
            self.assertEqual(self.benchmark(device="cuda"), 5.0)
            self.replayed_milliseconds.assert_not_called()
            self._can_be_captured_here.return_value = True
            self.replayed_milliseconds.side_effect = RuntimeError("not captured")
            self.assertEqual(self.benchmark((1,), {"x": 2}, device="cuda", rep=40), 5.0)
        self.replayed_milliseconds.assert_called_once()
        (function, args, kwargs), options = self.stock.call_args
        self.assertEqual((function(), args, kwargs), (7.0, (1,), {"x": 2}))
        self.assertEqual(options, {"device": "cuda", "rep": 40})

    @parametrize("captured", [True, False])
    def test_a_call_that_cannot_be_is_timed_by_events(self, captured):
        device = torch.device("cuda")
        if not captured:
            self.replayed_milliseconds.side_effect = RuntimeError("it waits for the device")
        with mock.patch.object(timing, "make_timer") as make_timer:
            make_timer.return_value.time.return_value = 3.0
            found = timing.call_milliseconds(lambda: 7.0, device)
        self.aside.assert_called_once_with(device)
        self.assertEqual(found, 1007.0 if captured else 3.0)
        self.assertEqual(make_timer.called, not captured)

    @parametrize(
        "settings, there",
        [
            ({}, True),
            ({"max_autotune": True}, True),
            ({"max_autotune_gemm": True}, True),
            ({"benchmark_fusion": True}, True),
            ({"max_autotune": True}, False),
        ],
        name_fn=lambda settings, there: "_".join([*settings, str(there)]),
    )
    def test_where_inductor_chooses(self, settings, there):
        cuda = mock.patch.multiple(
            torch.cuda, is_initialized=lambda: there, is_current_stream_capturing=lambda: False
        )
        off = dict.fromkeys(("max_autotune", "max_autotune_gemm", "benchmark_fusion"), False)
        with cuda, inductor_config.patch({**off, **settings}), timing.templates_replayed():
            self.assertEqual("benchmark" in vars(timing.benchmarker), bool(settings) and there)
            self.assertEqual(self.aside.called, bool(settings) and there)


# Answers requests, a line of JSON each, with generated code.
NO_DEVICE = """
import contextlib
import itertools
import json
import re
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import range_dispatch_no_device
import torch
from range_dispatch_common import config, define_op, force_winners
from torch._inductor import async_compile, config as inductor_config
from torch._inductor.graph import GraphLowering
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
from torch._inductor.kernel.range_dispatch import triton_configs
from torch._inductor.kernel.range_dispatch.triton_configs import keep, Kernel
from torch._inductor.runtime import triton_helpers, triton_heuristics

range_dispatch_no_device.pretend()
config.use_records, config.remeasure_margin = False, 0.0
numbers = itertools.count()


def short(x, w):
    return (x.float() * w + 1.0).to(x.dtype)


def long(x, w):
    return (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True)) * w).to(x.dtype)


def parts(x, w):
    return (x.unflatten(-1, (8, -1)).sum(-1, keepdim=True) + x.unflatten(-1, (8, -1))).flatten(1)


def down(x, w):
    return (x.float() * w).sum(0).to(x.dtype)


def down_more(x, w):
    return (x.float() * w).sum(0).to(x.dtype) + 1


def centred(x, w):  # in several kernels
    y = x.float() - x.float().mean(0)
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True)) * w).to(x.dtype)


def whole(x, w):
    return (x.float() * w).sum().to(x.dtype)


def whole_more(x, w):
    return (x.float() * w).sum().to(x.dtype) + 1


FAKES = {
    "down": lambda x, w: x.new_empty(x.shape[1]),
    "whole": lambda x, w: x.new_empty(()),
}


GRAPHS = {
    "op": lambda op, x, w: op(x, w),
    "neighbours": lambda op, x, w: torch.relu(op(x * 2, w)),
    "others": lambda op, x, w: (torch.relu(op(x * 2, w)), w.exp()),
    "matmuls": lambda op, x, m, w: op(x @ m, w) @ m,
}
SHAPES = [(32, 8192), (8192,)]


def registered(configs, fake=None):
    # An op that has one winner up to 64 rows and another one beyond.
    name = f"no_device_{next(numbers)}"
    op = define_op(name, lambda x, w: x * w, fake, schema="(Tensor x, Tensor w) -> Tensor")
    register_custom_op_autotuning(
        op,
        configs=configs,
        dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 4096},
        split_points=[64],
    )
    return op


def generator(winners, graph, patches):
    long_patched = CustomOpConfig(long, config_patches=patches)
    op = registered([CustomOpConfig(short), long_patched, CustomOpConfig(parts)])
    shapes = [SHAPES[0], (8192, 8192), SHAPES[1]] if graph == "matmuls" else SHAPES

    def generated():
        with force_winners(lambda n: winners[n > 64]), torch.no_grad():
            return range_dispatch_no_device.generated(
                lambda *operands: GRAPHS[graph](op, *operands), shapes, torch.bfloat16
            )

    return generated


def with_masks(generated):
    with mock.patch.object(triton_configs, "without_masks", lambda source: None):
        return generated()


def with_masks_and_without(winners, graph, patches, *chosen):
    generated = generator(winners, graph, patches)
    masked, before = with_masks(generated), generated()
    for name, source in range_dispatch_no_device.kernels(masked).items():
        known = Kernel.of(source, name)
        # As of a module that was made for other sizes.
        hints = tuple((dim, 4 * elements) for dim, elements in known.hints)
        keep(known.digest, {hints: chosen["R0_BLOCK" in source]})
    return [masked, before, generated()]


def in_place(chosen):
    with torch.no_grad():
        # As a benchmark module has them, whose inputs are needed again.
        for implementation in (short, long):
            code = range_dispatch_no_device.generated(implementation, SHAPES, torch.bfloat16)
            for name, source in range_dispatch_no_device.kernels(code).items():
                known = Kernel.of(source, name)
                keep(known.digest, {known.hints: chosen})
    return generator(["short", "long"], "matmuls", {})()


def by_size(winners, *chosen):
    # Each configuration is the best one for some rows.
    generated = generator(winners, "op", {})
    for name, source in range_dispatch_no_device.kernels(with_masks(generated)).items():
        known = Kernel.of(source, name)
        for rows, best in chosen:
            sizes = {"x": rows, "r0_": 8192} if "R0_BLOCK" in source else {"x": 8192 * rows}
            keep(known.digest, {tuple(sorted(sizes.items())): best})
    return generated()


def two_branches(low, high, rows, columns):
    implementations = [globals()[name] for name in (low, high)]
    op = registered([CustomOpConfig(function) for function in implementations], FAKES.get(low))
    with force_winners(lambda n: low if n <= 64 else high), torch.no_grad():
        return range_dispatch_no_device.generated(
            lambda x, w: op(x, w), [(rows, columns), (columns,)], torch.bfloat16
        )


def on_a_stream(winners):
    # The op and what consumes it are on one; what is around them is on the default one.
    op = registered([CustomOpConfig(globals()[name]) for name in {"short": 0, "centred": 0}])

    def run(self, *args):
        for node in self.module.graph.nodes if self.name == "no_device" else ():
            if any(name in str(node.target) for name in ("no_device_", "relu")):
                node.meta["custom"] = {"stream": 3}
        return GraphLowering.run(self, *args)

    class Lowering(GraphLowering):
        pass

    Lowering.run = run
    with (
        force_winners(lambda n: winners[n > 64]),
        torch.no_grad(),
        mock.patch.object(range_dispatch_no_device, "GraphLowering", Lowering),
    ):
        return range_dispatch_no_device.generated(
            lambda x, w: (torch.relu(op(x * 2, w)), x.cumsum(0)), SHAPES, torch.bfloat16
        )


def offered(function, *sizes):
    # The configurations that a kernel was compiled with, before and after others are offered, and
    # the masks that are left in it.
    function = globals()[function]
    with triton_configs.sizes_noted():
        code = range_dispatch_no_device.generated(function, [(8, 8192), (8192,)], torch.bfloat16)
    ((name, source),) = range_dispatch_no_device.kernels(code).items()
    compiled, masks = [], []

    def launcher(result):  # there is no device to load it on
        compiled.append(result.config.kwargs)
        return SimpleNamespace(config=result.config)

    def loaded(name, source):
        masks.append(re.findall(r"(\\w+mask) = \\w+ < ", source))
        return load(name, source)

    load = async_compile._load_triton_kernel_from_source
    results = [triton_heuristics.TritonCompileResult, triton_heuristics.StaticTritonCompileResult]
    with contextlib.ExitStack() as stack:
        patch = mock.patch.object
        stack.enter_context(patch(triton_helpers, "set_driver_to_gpu", lambda: None))
        stack.enter_context(patch(async_compile, "_load_triton_kernel_from_source", loaded))
        stack.enter_context(inductor_config.patch(compile_threads=1))
        for result in results:
            stack.enter_context(patch(result, "make_launcher", launcher))
        kernel = loaded(name, source)
        kernel._precompile_worker()
        kernel.launchers = [each.make_launcher() for each in kernel.compile_results]
        before = list(compiled)
        triton_configs._offer(kernel, [tuple(each.items()) for each in sizes])
    tried = [launcher.config.kwargs for launcher in triton_configs._tried(kernel)]
    return [before, compiled[len(before) :], tried, masks]


for line in sys.stdin:
    function, *given = json.loads(line)
    triton_configs.forget()
    with tempfile.TemporaryDirectory() as folder:
        triton_configs._folder = lambda: Path(folder)
        try:
            answer = [globals()[function](*given), None]
        except Exception:
            answer = [None, traceback.format_exc()]
    print("answer", json.dumps(answer), flush=True)
"""


@unittest.skipUnless(has_triton_package(), "needs Triton")
@on_one_worker
class NoDeviceTest(RangeDispatchTestCase):
    """What is generated for a GPU; there need not be one. One process generates it all."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.errors = (Path(folder.name) / "errors").open("w+")
        cls.addClassCleanup(cls.errors.close)
        cls.process = subprocess.Popen(
            [sys.executable, "-c", NO_DEVICE],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder.name},
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=cls.errors,
            text=True,
        )
        cls.addClassCleanup(cls.process.wait)
        cls.addClassCleanup(cls.process.stdin.close)

    def generated(self, *request):
        """What the function that is named in a request returns."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            word, _, answer = line.partition(" ")
            if word == "answer":
                found, error = json.loads(answer)
                self.assertIsNone(error, error)
                return found
        self.errors.seek(0)
        self.fail(self.errors.read())

    def of_graph(self, *given):
        """The code as Inductor writes it, before configurations are known, and after."""
        return self.generated("with_masks_and_without", *given)

    def test_what_is_offered_for_other_sizes_is_compiled(self):
        """Each as it will be generated."""
        sizes = [{"x": n} for n in (200, 1 << 22, 1 << 22)]
        before, compiled, tried, masks = self.generated("offered", "short", *sizes)
        self.assertGreater(len(before), 0)
        self.assertGreater(len(tried), 1)
        self.assertEqual(tried, compiled)
        self.assertEqual(tried[: len(before)], before)
        own, blocks = ([kwargs["XBLOCK"] for kwargs in each] for each in (before, tried))
        self.assertLess(min(blocks), min(own))
        self.assertGreater(max(blocks), max(own))
        self.assertEqual(len(masks), 1 + len(tried))

    @unittest.skipUnless(hasattr(GraphLowering, "_get_node_stream"), "graphs have no streams")
    @parametrize("inlined", [False, True])
    def test_kernels_run_on_the_stream_of_the_op(self, inlined):
        code = self.generated("on_a_stream", ["centred" if inlined else "short", "centred"])
        body = code[code.index("def call(") :].partition("runner = ")[0]
        launched: dict[str, list[str]] = {}
        stream = (0, "")
        for line in body.splitlines():
            indent = len(line) - len(line.lstrip())
            if entered := re.match(r" *with (\w+):", line):
                self.assertFalse(indent > stream[0] > 0, "it enters a stream in another one")
                stream = (indent, entered.group(1))
            if kernel := re.match(r" *(triton_\w+)\.run\(.*, stream=(\w+)\)", line):
                self.assertGreater(indent, stream[0])
                launched.setdefault(stream[1], []).append(kernel.group(1))
                own = "raw_stream" if stream[1] == "stream1" else "raw_stream0"
                self.assertEqual(kernel.group(2), own)
            if "raw_stream0 = " in line:
                self.assertEqual(stream[1], "default_stream")
        self.assertEqual(list(launched), ["default_stream", "stream1"], body)
        # What is around the op has no name in this graph.
        around = {
            where: [bool(re.fullmatch(r"triton_[a-z]+_fused_\d+", name)) for name in names]
            for where, names in launched.items()
        }
        self.assertTrue(all(around["default_stream"]), body)
        self.assertFalse(any(around["stream1"]), body)
        self.assertGreater(len(around["stream1"]), 1)

    def test_a_loop_over_rows_is_offered_half_the_block(self):
        """And is tried without masks, of which none of its blocks of a row needs one."""
        sizes = [{"x": n, "r0_": 8192} for n in (16, 16384)]
        before, compiled, tried, masks = self.generated("offered", "long", *sizes)
        self.assertEqual(tried, compiled)
        blocks = {kwargs["R0_BLOCK"] for kwargs in tried}
        self.assertGreater(len(blocks), 1)
        self.assertIn(max(blocks) // 2, blocks)
        self.assertGreater(len(blocks), len(before))
        self.assertEqual(masks[0], ["xmask", "r0_mask", "r0_mask"])
        self.assertEqual(masks[1:], [[]] * len(tried))

    @parametrize("inlined", [False, True])
    def test_each_size_gets_what_is_best_there(self, inlined):
        """The kernel in several variants, and the number of elements decides."""
        chosen = [
            {"XBLOCK": 1, "R0_BLOCK": block, "num_warps": 8, "num_stages": 1}
            for block in (1024, 2048)
        ]
        rows = (16, 64, 256, 1024, 4096)
        bests = [chosen[i] for i in (0, 1, 0, 0, 1)]
        winners = ["long" if inlined else "short", "long"]
        code = self.generated("by_size", winners, *zip(rows, bests, strict=True))
        found = kernels(code)
        names = [name for name, source in found.items() if "r0_index" in source]
        self.assertEqual(names[1:], [f"{names[0]}_c1"])
        blocks = {}
        for name in names:
            self.assertIn(f"def {name}(", found[name])
            self.assertIn(f"'kernel_name': '{name}'", found[name])
            _, arguments = decorator(found[name])
            self.assertIn(configuration := ast.literal_eval(arguments["config"]), chosen)
            blocks[name] = configuration["R0_BLOCK"]
        ((expression, arguments),) = re.findall(rf"\(({names[0]}\b.*)\)\.run\((.*)\)", code)
        # What decides is what the kernel is launched for.
        number = re.search(r" if (\w+) <= ", expression).group(1)
        self.assertIn(f"{number}, 8192, stream=", arguments)
        for n in (1, 8, 31, 32, 33, 64, 127, 128, 129, 300, 2047, 2048, 2049, 4096, 10**6):
            if inlined or n > 64:
                nearest = min(rows, key=lambda r: (abs(math.log2(n / r)), r))
                launched = eval(expression, {number: n, **{name: name for name in names}})
                self.assertEqual(blocks[launched], bests[rows.index(nearest)]["R0_BLOCK"], n)

    def branches(self, *given):
        """The sources of the kernels of each branch, whatever size comes first."""
        found = []
        for rows in (32, 3000):
            code = self.generated("two_branches", *given[:2], rows, *given[2:])
            self.assertEqual(predicates(code), [64])
            low, high = code[code.index("    if ") :].split("else:")
            sources = kernels(code)
            launched = [re.findall(r"^\s+(\w+)\.run\(", part, re.MULTILINE) for part in (low, high)]
            found.append([[sources[name] for name in names] for names in launched])
        self.assertEqual(found[0], found[1])
        return found[0]

    def test_hints_are_those_of_each_branch(self):
        ((low,), (high,)) = self.branches("short", "long", 8192)
        self.assertIn("size_hints={'x': 524288},", low)
        self.assertIn("size_hints={'x': 4096, 'r0_': 8192},", high)

    def test_reductions_are_persistent_where_the_range_is_small(self):
        """Of all elements, which are 1024 at most in the small sizes."""
        ((low,), high) = self.branches("whole", "whole_more", 16)
        self.assertEqual(decorator(low)[0], "persistent_reduction")
        self.assertEqual(decorator(high[0])[0], "reduction")

    def test_reductions_are_split_where_the_range_is_large(self):
        low, high = self.branches("down", "down_more", 16)
        self.assertEqual((len(low), len(high)), (1, 2))

    def test_indices_are_wide_where_the_range_is_large(self):
        """Where the small sizes have 2**26 elements at most, and the others 2**32."""
        ((low,), (high,)) = self.branches("short", "long", 1 << 20)
        self.assertIn("'xnumel': 'i32'", low)
        self.assertNotIn("tl.int64", low)
        self.assertIn("tl.int64", high)

    def test_kernels_that_write_in_place_get_what_was_measured(self):
        code = self.generated("in_place", CHOSEN)
        self.assertEqual(predicates(code), [64])
        found = kernels(code).values()
        self.assertEqual(len(found), 2)
        for source in found:
            self.assertIn("tl.store(in_out_ptr0", source)
            name, arguments = decorator(source)
            self.assertEqual(name, "fixed_config")
            self.assertEqual(ast.literal_eval(arguments["config"]), CHOSEN)

    @parametrize("graph", ["op", "neighbours"])
    @parametrize("inlined", [None, "short", "long"])
    def test_kernels_get_what_was_measured(self, inlined, graph):
        winners = ["short", "long"] if inlined is None else [inlined] * 2
        looped = {"XBLOCK": 1, "R0_BLOCK": 1024, "num_warps": 8, "num_stages": 1}
        masked, before, after = self.of_graph(winners, graph, {}, CHOSEN, looped)
        self.assertEqual(predicates(before), [] if inlined else [64])
        self.assertNotIn("fixed_config", before)
        found = [decorator(source) for source in kernels(after).values()]
        self.assertEqual({name for name, _ in found}, {"fixed_config"})
        configurations = [ast.literal_eval(arguments["config"]) for _, arguments in found]
        expected = {"short": [CHOSEN], "long": [looped], None: [CHOSEN, looped]}
        self.assertEqual(configurations, expected[inlined])
        # Nothing else is generated otherwise, but for masks that are not needed: of each row of the
        # reduction, and of the parts of a row, of which each is gone through twice. Of the elements
        # of all rows Inductor itself knows that they fill the blocks.
        masks = self.full("x", "r0_", "r0_")
        for code in (before, after):
            self.assertEqual(self.changed(masked, code), [] if inlined == "short" else masks)

    def full(self, *dims):
        """Masks, each with what it is replaced by."""
        return [
            (f"{d}mask = {d}index < {d}numel", f"{d}mask = tl.full({d}index.shape, True, tl.int1)")
            for d in dims
        ]

    def changed(self, *codes):
        """Lines that differ, but for how kernels are configured and called."""
        heuristic = re.compile(r"@triton_heuristics\.\w+\(.*?\n\)\n|# kernel path[^\n]*", re.DOTALL)
        one, other = (
            [line.strip() for line in heuristic.sub("", code).splitlines() if line.strip()]
            for code in codes
        )
        return [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]

    @parametrize("inlined", [False, True])
    def test_masks_of_the_parts_of_rows_are_left_out(self, inlined):
        """They are 8 for each row, and a block has 1, 2 or 8 of them, whichever is chosen."""
        winners = ["parts" if inlined else "short", "parts"]
        masked, before, after = self.of_graph(winners, "op", {}, CHOSEN, CHOSEN)
        for code in (before, after):
            self.assertEqual(self.changed(masked, code), self.full("x"))

    @parametrize("inlined", [False, True])
    def test_settings_of_a_winner_hold_for_its_kernels_only(self, inlined):
        setting = "coordinate_descent_tuning"
        patched = f"long({setting}=True)"
        winners = [patched if inlined else "short", patched]
        _, code, _ = self.of_graph(winners, "others", {setting: True}, CHOSEN, CHOSEN)
        self.assertEqual(predicates(code), [] if inlined else [64])
        sources = set(kernels(code).values())
        found = {source for source in sources if f"'{setting}': True" in source}
        self.assertEqual(found, {source for source in sources if "R0_BLOCK" in source})
        self.assertEqual(len(sources - found), 1 if inlined else 2)


@unittest.skipUnless(HAS_GPU, "needs a GPU")
class DeviceTest(RangeDispatchTestCase):
    def setUp(self):
        super().setUp()
        self.addCleanup(forget)
        self.op = define_op("configured", lambda x: x * 2.0 + 1.0, schema="(Tensor x) -> Tensor")
        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(lambda x: x * 2.0 + 1.0)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 4096},
            split_points=[64],
        )

    @parametrize("inlined", [False, True])
    def test_what_was_measured_runs_device_cuda(self, inlined):
        from torch._inductor.runtime.benchmarking import Benchmarker

        tuned = []
        tune = CachingAutotuner.autotune_to_one_config

        def autotune(self, *args, **kwargs):
            tune(self, *args, **kwargs)
            tuned.append(self.launchers[0].config)

        kept = []
        keep_all = triton_configs.keep

        def keeping(digest, chosen):
            keep_all(digest, chosen)
            kept.extend(chosen.values())

        offered = []
        launchers_of = triton_configs._launchers

        def launchers(name, sources):
            found = launchers_of(name, sources)
            self.assertEqual(len(found), len(sources))
            offered.extend(found)
            return found

        in_calls = []

        def timed(run, device):
            in_calls.append(timing.call_milliseconds(run, device))
            return in_calls[-1]

        by_events = mock.Mock(side_effect=timing.make_timer)
        compiled = torch.compile(self.op, dynamic=True)
        x = torch.randn(32, 1024, device=GPU_TYPE)
        with (
            config.patch(force_no_merge=not inlined, force_decomposition=True),
            inductor_config.patch(autotune_local_cache=False),
            mock.patch.object(CachingAutotuner, "autotune_to_one_config", autotune),
            mock.patch.object(triton_configs, "keep", keeping),
            mock.patch.object(triton_configs, "_launchers", launchers),
            mock.patch.object(triton_configs, "call_milliseconds", timed),
            mock.patch.object(timing, "make_timer", by_events),
        ):
            # In benchmark modules nothing is timed by launching it.
            with mock.patch.object(
                Benchmarker, "benchmark", side_effect=AssertionError("timed by launching")
            ):
                _, codes = run_and_get_code(compiled, x)
            measured = list(tuned)
            self.assertTrue(measured)
            # What is offered for few rows, or for many, was not where the module was made for.
            self.assertTrue(offered)
            self.assertTrue(in_calls)
            self.assertTrue(all(0 < milliseconds < 5 for milliseconds in in_calls), in_calls)
            by_events.assert_not_called()
            fixed = re.findall(r"fixed_config\(\n\s*config=(\{.*?\}),", codes[-1])
            self.assertTrue(fixed, codes[-1])
            for found in fixed:
                self.assertIn(ast.literal_eval(found), kept)
            self.assertEqual(bool(predicates(codes[-1])), not inlined)
            # What ran had nothing to tune.
            self.assertEqual(len(tuned), len(measured))
            for rows in (2, 63, 64, 65, 4096):
                x = torch.randn(rows, 1024, device=GPU_TYPE)
                self.check(compiled, lambda x: x * 2.0 + 1.0, x)
            self.assertEqual(len(tuned), len(measured))

    @parametrize("dispatched", [False, True])
    def test_templates_are_timed_by_replay_device_cuda(self, dispatched):
        """Of matmuls in benchmark modules and in branches, and whether they fuse."""
        from torch._inductor.runtime.benchmarking import Benchmarker

        settings = {
            "max_autotune_gemm": True,
            "max_autotune_gemm_backends": "ATEN,TRITON",
            "test_configs.max_mm_configs": 3,
        }
        op = define_op("chosen_mm", torch.mm, schema="(Tensor x, Tensor w) -> Tensor")
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(torch.mm, config_patches=settings)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 512},
            split_points=[64],
            include_fallback=False,
        )
        replayed = []
        replay = timing.replayed_milliseconds

        def counted(run):
            replayed.append(replay(run))
            return replayed[-1]

        launched = mock.patch.object(
            Benchmarker, "benchmark", side_effect=AssertionError("timed by launching")
        )
        compiled = torch.compile(lambda x, w: torch.relu(op(x, w)), dynamic=True)
        w = torch.randn(256, 256, device=GPU_TYPE, dtype=torch.bfloat16)
        torch._dynamo.mark_static(w)
        with (
            config.patch(force_no_merge=dispatched, force_decomposition=True),
            inductor_config.patch(autotune_local_cache=False, fx_graph_cache=False),
            mock.patch.object(timing, "replayed_milliseconds", counted),
            # What is inlined, Inductor may fuse with what is around it.
            launched if dispatched else contextlib.nullcontext(),
        ):
            for rows in (32, 64, 65, 500):
                x = torch.randn(rows, 256, device=GPU_TYPE, dtype=torch.bfloat16)
                found, expected = compiled(x, w), torch.relu(x.float() @ w.float())
                torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=0.2)
        self.assertGreater(len(replayed), 2)
        self.assertTrue(all(0 < milliseconds < 5 for milliseconds in replayed), replayed)

    def test_a_kernel_that_cannot_be_captured_is_timed_as_ever_device_cuda(self):
        def refuse(*args):
            raise RuntimeError("not captured")

        timed = []
        bench = CachingAutotuner.bench

        def counted(self, *args, **kwargs):
            timed.append(bench(self, *args, **kwargs))
            return timed[-1]

        with (
            config.patch(force_decomposition=True),
            mock.patch.object(timing, "replayed_milliseconds", refuse),
            mock.patch.object(CachingAutotuner, "bench", counted),
        ):
            x = torch.randn(32, 1024, device=GPU_TYPE)
            self.check(torch.compile(self.op, dynamic=True), lambda x: x * 2.0 + 1.0, x)
        self.assertTrue(timed)
        self.assertTrue(all(0 < time < 10 for time in timed), timed)


instantiate_parametrized_tests(SourceTest)
instantiate_parametrized_tests(KeptTest)
instantiate_parametrized_tests(NoDeviceTest)
instantiate_parametrized_tests(ReplayedTest)
instantiate_parametrized_tests(DeviceTest)


if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests()
