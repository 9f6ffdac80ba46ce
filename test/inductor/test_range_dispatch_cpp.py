# Owner(s): ["module: inductor"]
"""The dispatch in generated C++, for ``cpp_wrapper=True`` and in AOTInductor packages."""

import dataclasses
import itertools
import os
import re
import tempfile
import types
import zipfile
from unittest import mock

from range_dispatch_common import (
    define_op as define_named_op,
)
from range_dispatch_common import (
    DEVICES,
    final_code,
    force_winners,
    GPU_TYPE,
    HAS_CPU,
    HAS_GPU,
    inductor_config,
    OP_LABEL,
    packages_load,
    RangeDispatchTestCase,
    VECTOR_KERNELS,
)

import torch
from torch._inductor.codegen.common import (
    device_codegens,
    IndentedBuffer,
    init_backend_registration,
)
from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
from torch._inductor.kernel.range_dispatch import compat, dispatch
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


_numbers = itertools.count()

WIDTH = 6
ENDS = (4, 8, 16)
BOUNDARIES = (3, 4, 5, 8, 9, 16, 17, 50)


def define_op(name, function, **options):
    """An op of a name that was never used: one that is redefined may lose its new overload when
    the old one is collected."""
    return define_named_op(f"{name}_{next(_numbers)}", function, **options)


def blended(x, y, w):
    return torch.sin(x) @ w + y


# The answers differ, which shows what ran. Where the op ran itself, nothing is added.
def by_matmul(x, y, w):
    return torch.sin(x) @ w + y + 10.0


def without_y(x, y, w):
    return torch.cos(x) @ w + 20.0


PICKS = {4: "by_matmul", 8: OP_LABEL, 16: "without_y"}  # and the op beyond


def pick(size):
    return PICKS.get(size, OP_LABEL)


def picked(x, y, w):
    """What the dispatched op has to return."""
    rows = x.shape[0]
    if rows <= 4:
        return by_matmul(x, y, w)
    return without_y(x, y, w) if 8 < rows <= 16 else blended(x, y, w)


@dataclasses.dataclass
class Block:
    """A branch of a dispatch in C++: its test and its lines, without those of blocks inside."""

    test: str
    lines: list[str]

    @property
    def text(self):
        return "\n".join(self.lines)


def blocks(code):
    """The blocks of the outermost dispatches, in order, by their braces."""
    found = []
    depth = 0
    for line in map(str.strip, code.splitlines()):
        test = re.fullmatch(r"((?:else )?if \(\w+ <= (\d+)L\)|else) \{", line)
        if test and depth == 0:
            found.append(Block(test.group(1), []))
            depth = 1
        elif depth:
            depth += line.count("{") - line.count("}")
            if depth:
                found[-1].lines.append(line)
    return found


def entry(code):
    """The function that calls the kernels."""
    for start in ("inductor_entry_impl(", "::run_impl("):
        if start in code:
            code = code[code.index(start) :]
            return code[: re.search(r"^\} // ", code, re.MULTILINE).start()]
    raise AssertionError("no C++ entry point")


def enumerate_matches(pattern, lines):
    """The lines that a pattern matches, each with its number."""
    matches = ((i, pattern.fullmatch(line)) for i, line in enumerate(lines))
    return [(i, match) for i, match in matches if match]


class CppTestCase(RangeDispatchTestCase):
    def register(self, op, *configs, ends=ENDS, **dispatch_on):
        register_custom_op_autotuning(
            op,
            configs=[c if isinstance(c, CustomOpConfig) else CustomOpConfig(c) for c in configs],
            dispatch_on={"tensor_name": "x", "dim": 0, **dispatch_on},
            split_points=list(ends),
        )

    def blended(self):
        op = define_op(
            "blended",
            blended,
            fake=lambda x, y, w: torch.empty_like(y),
            schema="(Tensor x, Tensor y, Tensor w) -> Tensor",
        )
        self.register(op, by_matmul, without_y)
        return op

    def stepped(self, ends, patches=None):
        """An op whose winner adds another number in every range."""
        op = define_op("stepped", lambda x: torch.sin(x), schema="(Tensor x) -> Tensor")

        def step(x, step):
            return torch.sin(x) + step

        patches = patches or {}
        steps = range(len(ends) + 1)
        configs = [CustomOpConfig(step, patches.get(s), step=s) for s in steps]
        self.register(op, *configs, ends=ends)

        def winner(size):
            s = sum(size > end for end in ends)
            given = {"step": s, **patches.get(s, {})}
            return f"step({', '.join(f'{k}={v!r}' for k, v in given.items())})"

        return op, winner

    def compile(self, f, winners, *args, **options):
        """Compiled for C++, and the function that was generated."""
        compiled = torch.compile(f, dynamic=True, fullgraph=True)
        with inductor_config.patch(cpp_wrapper=True, **options), force_winners(winners):
            return compiled, entry(final_code(compiled, *args))

    def branches_in(self, profile):
        """The marks of the branches that ran."""
        return [e.name for e in profile.events() if re.search(r"blended.*_(le|gt)_\d+$", e.name)]

    def assert_near(self, actual, expected):
        """Equal but for the sines and products of another device; branches are at least 1 apart."""
        self.assertEqual(actual, expected, atol=1e-3, rtol=1e-4)

    def assert_one_chain(self, code, *ends):
        expected = [f"if (s <= {ends[0]}L)", *(f"else if (s <= {end}L)" for end in ends[1:])]
        tests = [re.sub(r"\(\w+ <=", "(s <=", block.test) for block in blocks(code)]
        self.assertEqual(tests, [*expected, "else"])
        # What a conditional of stock's would have: its comment, and its copies of the operands.
        self.assertNotIn("// subgraph:", code)
        self.assertNotIn("aoti_torch_assign_tensors_out", code)


class ChainTest(CppTestCase):
    @parametrize("device", DEVICES)
    def test_one_chain_with_outputs_declared_before_it(self, device):
        op = self.blended()

        def f(x, w):
            return op(x, torch.cos(x @ w @ w), w) @ w

        def expected(x, w):
            return picked(x, torch.cos(x @ w @ w), w) @ w

        w = torch.randn(WIDTH, WIDTH, device=device)
        compiled, code = self.compile(f, pick, torch.randn(5, WIDTH, device=device), w)
        self.assert_one_chain(code, *ENDS)
        (output,) = re.findall(r"^\s*RAIIAtenTensorHandle (buf\d+);$", code, re.MULTILINE)
        declared = code.index(f"RAIIAtenTensorHandle {output};")
        self.assertLess(declared, code.index("if ("))
        for block in blocks(code):
            (moved,) = re.findall(rf"^{output} = std::move\((\w+)\);$", block.text, re.MULTILINE)
            self.assertRegex(moved, r"blended\w*_(le|gt)_\d+_buf\d+")
            self.assertEqual(block.lines[-1], f"{output} = std::move({moved});")
        for n in BOUNDARIES:
            x = torch.randn(n, WIDTH, device=device)
            self.assert_near(compiled(x, w), expected(x, w))

        # The cosine is used by the op only: gone after its last use, which may write in its place,
        # or where it is not used.
        ends = re.compile(r"(buf\d+)\.reset\(\);|auto \w+ = std::move\((buf\d+)\);  // reuse")
        frees = []
        for block in blocks(code):
            ((free, end),) = enumerate_matches(ends, block.lines)
            operand = end.group(1) or end.group(2)
            uses = [i for i, line in enumerate(block.lines) if re.search(rf"\b{operand}\b", line)]
            self.assertEqual(uses[-1], free)
            frees.append((operand, len(uses) > 1 or end.group(2) is not None))
        self.assertEqual(frees, [(operand, used) for used in (True, True, False, True)])
        self.assertEqual(blocks(code)[2].lines[0], f"{operand}.reset();")

    @parametrize("device", DEVICES)
    def test_what_lives_on_is_not_freed_in_a_branch(self, device):
        op = self.blended()

        def f(x, w):
            y = x @ w
            return op(x, y, w), y

        w = torch.randn(WIDTH, WIDTH, device=device)
        compiled, code = self.compile(f, pick, torch.randn(5, WIDTH, device=device), w)
        for block in blocks(code):
            self.assertEqual(re.findall(r"^buf\d+\.reset", block.text, re.MULTILINE), [])
        for n in BOUNDARIES:
            x = torch.randn(n, WIDTH, device=device)
            y = x @ w
            self.assert_near(compiled(x, w), (picked(x, y, w), y))

    def test_an_operand_that_ends_is_written_in_place_of(self):
        """Each kernel writes to the memory of what ends with it, but an input of the graph."""

        def one(x, w):
            return (x.sin() * 2).cumsum(0) + w

        def two(x, w):
            return (x.sin() + 1).cumsum(0) * w

        op = define_op("ends", one, schema="(Tensor x, Tensor w) -> Tensor")
        self.register(op, one, two, ends=(4,), range_upper_bound=64)
        winner = {4: "one", 64: "two"}.__getitem__

        def product(implementation):
            return lambda x, w: implementation(x @ w, w[0])

        def given(implementation):
            return lambda x, w: implementation(x, w[0])

        w = torch.randn(WIDTH, WIDTH)
        for graph, count in ((product, 1), (given, 0)):
            compiled, code = self.compile(graph(op), winner, torch.randn(5, WIDTH), w)
            moved = [re.findall(r"std::move\((buf\d+)\);  // reuse", b.text) for b in blocks(code)]
            self.assertEqual([len(names) for names in moved], [count] * 2)
            for n, implementation in ((3, one), (8, two)):
                x = torch.randn(n, WIDTH)
                before = x.clone()
                self.assertEqual(compiled(x, w), graph(implementation)(x, w))
                self.assertEqual(x, before)

    def test_several_outputs(self):
        library = torch.library.Library("range_dispatch_cpp", "FRAGMENT")
        self.addCleanup(library._destroy)

        def parts(x):
            return x * 2, None, x.sum(1), x + 1

        library.define("parts(Tensor x) -> (Tensor, Tensor?, Tensor, Tensor)")
        library.impl("parts", parts, "CompositeExplicitAutograd")
        torch.library.register_fake("range_dispatch_cpp::parts", parts, lib=library)
        op = torch.ops.range_dispatch_cpp.parts.default

        def short(x):
            return x * 2 + 10, None, x.sum(1) + 10, x + 11

        def long(x):
            double = x + x
            return double + 20, None, double.sum(1) * 0.5 + 20, x + 21

        self.register(op, short, long, ends=(4,))

        def f(x):
            double, none, total, _ = op(x)  # the last one has no use
            return double.cumsum(0), total.cumsum(0), none is None

        compiled, code = self.compile(
            f, lambda n: "short" if n == 4 else "long", torch.randn(5, WIDTH)
        )
        outputs = re.findall(r"^\s*RAIIAtenTensorHandle (buf\d+);$", code, re.MULTILINE)
        self.assertEqual(len(outputs), 2)
        for block in blocks(code):
            moved = re.findall(r"^(buf\d+) = std::move", block.text, re.MULTILINE)
            self.assertEqual(moved, outputs)
        for n in (2, 4, 5, 30):
            x = torch.randn(n, WIDTH)
            step = 10 if n <= 4 else 20
            expected = ((x * 2 + step).cumsum(0), (x.sum(1) + step).cumsum(0), True)
            self.assert_near(compiled(x), expected)

    def test_an_op_that_is_called_through_python(self):
        # Generated code looks up Python's part of it in a variable: each branch has its own.
        op = define_op(
            "listed",
            lambda xs, w: torch.stack(xs).sum(0) @ w,
            fake=lambda xs, w: torch.empty_like(xs[0]),
            schema="(Tensor[] xs, Tensor w) -> Tensor",
        )
        wrapped = define_op(
            "wrapped",
            lambda x, w: x @ w,
            fake=lambda x, w: torch.empty_like(x),
            schema="(Tensor x, Tensor w) -> Tensor",
        )

        def repeated(x, w, times):
            return op([x] * times, w)

        configs = [CustomOpConfig(repeated, times=times) for times in (2, 3, 4)]
        self.register(wrapped, *configs, ends=(4, 8))
        winners = {4: "repeated(times=2)", 8: "repeated(times=3)"}
        w = torch.randn(WIDTH, WIDTH)
        compiled, _ = self.compile(
            lambda x, w: op([wrapped(x, w)], w),
            lambda n: winners.get(n, "repeated(times=4)"),
            torch.randn(5, WIDTH),
            w,
        )
        for n, times in ((3, 2), (4, 2), (5, 3), (8, 3), (9, 4)):
            x = torch.randn(n, WIDTH)
            self.assert_near(compiled(x, w), x @ w * times @ w)

    def test_many_branches_are_found_by_halving(self):
        ends = tuple(range(3, 15))
        op, winner = self.stepped(ends)
        compiled, code = self.compile(lambda x: op(x), winner, torch.randn(4, WIDTH))
        compared = [int(end) for end in re.findall(r"if \(\w+ <= (\d+)L\) \{", code)]
        # 13 branches: first the middle (8), then a chain in each half.
        self.assertEqual(compared, [8, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14])
        for n in range(2, 17):
            x = torch.randn(n, WIDTH)
            self.assert_near(compiled(x), torch.sin(x) + sum(n > end for end in ends))

    @parametrize("asked", [False, True])
    def test_a_profile_names_the_branch(self, asked):
        op = self.blended()
        w = torch.randn(WIDTH, WIDTH)
        options = {"cpp.enable_kernel_profile": asked}
        compiled, code = self.compile(
            lambda x, y, w: op(x, y, w),
            pick,
            torch.randn(5, WIDTH),
            torch.randn(5, WIDTH),
            w,
            **options,
        )
        marks = [re.findall(r'_mark\("(\w+)", nullptr\);$', b.text, re.M) for b in blocks(code)]
        self.assertEqual([len(found) for found in marks], [asked] * 4)
        for n, branch in ((3, "le_4"), (8, "le_8"), (16, "le_16"), (17, "gt_16")):
            x, y = torch.randn(n, WIDTH), torch.randn(n, WIDTH)
            with torch.profiler.profile() as profile:
                self.assert_near(compiled(x, y, w), picked(x, y, w))
            named = self.branches_in(profile)
            self.assertEqual([name.endswith(branch) for name in named], [True] * asked)

    def test_config_patches_hold_in_their_branch_only(self):
        # The vector length is visible in CPU code.
        op, winner = self.stepped((3, 5), patches={1: {"cpp.simdlen": 1}})
        compiled = torch.compile(lambda x: (op(x), x * 3), dynamic=True, fullgraph=True)
        settings = {"cpp_wrapper": True, **VECTOR_KERNELS}
        with inductor_config.patch(settings), force_winners(winner):
            code = final_code(compiled, torch.randn(4, WIDTH))
        kernels = re.split(r"^extern \"C\"\s+void\s+(cpp_\w+)\(", code, flags=re.MULTILINE)
        sources = dict(zip(kernels[1::2], kernels[2::2], strict=True))
        scalar = {name for name, text in sources.items() if "at::vec::" not in text}
        called = [re.findall(r"^(cpp_\w+)\(", b.text, re.MULTILINE) for b in blocks(entry(code))]
        self.assertEqual([len(names) for names in called], [1, 1, 1])
        self.assertEqual([name in scalar for (name,) in called], [False, True, False])
        for n in (3, 4, 6):
            x = torch.randn(n, WIDTH)
            self.assert_near(compiled(x), (torch.sin(x) + sum(n > e for e in (3, 5)), x * 3))

    @parametrize("device", DEVICES)
    @parametrize("cpp_wrapper", [False, True])
    def test_kernels_on_the_host_in_a_branch(self, device, cpp_wrapper):
        # The code around the dispatch is on the device, before and after it.
        op = define_op("shifted", lambda x: torch.sin(x), schema="(Tensor x) -> Tensor")

        def on_host(x):
            return torch.sin(x) + torch.arange(x.shape[1]).cos().to(x.device)

        def on_device(x):
            return torch.sin(x) + 10.0

        self.register(op, on_host, on_device, ends=(4, 8))
        winners = {4: "on_host", 8: "on_device"}
        compiled = torch.compile(lambda x, w: op(x @ w) @ w, dynamic=True, fullgraph=True)
        w = torch.randn(WIDTH, WIDTH, device=device)
        with (
            inductor_config.patch(cpp_wrapper=cpp_wrapper),
            force_winners(lambda n: winners.get(n, "on_host")),
        ):
            for n in (3, 4, 5, 8, 9):
                x = torch.randn(n, WIDTH, device=device)
                picked = on_device if 4 < n <= 8 else on_host
                self.assert_near(compiled(x, w), picked(x @ w) @ w)

    @parametrize("cpp_wrapper", [False, True])
    def test_with_planned_memory_pools(self, cpp_wrapper):
        # Operands live in a pool, whose planner has to see that they live until the dispatch.
        op = self.blended()

        def f(x, w):
            y = torch.cos(x @ w)
            z = op(y @ w, y, w)
            return (z @ w).relu() @ w

        w = torch.randn(WIDTH, WIDTH)
        compiled = torch.compile(f, dynamic=True, fullgraph=True)
        with (
            torch.no_grad(),
            inductor_config.patch(cpp_wrapper=cpp_wrapper, memory_planning=True),
            force_winners(pick),
        ):
            self.assertIn("pool0", final_code(compiled, torch.randn(5, WIDTH), w))
            for n in BOUNDARIES:
                x = torch.randn(n, WIDTH)
                y = torch.cos(x @ w)
                self.assert_near(compiled(x, w), (picked(y @ w, y, w) @ w).relu() @ w)


class TuningExamplesTest(RangeDispatchTestCase):
    """Triton kernels for C++ are tuned on examples of their arguments, kept by name."""

    @parametrize("newest", [False, True])
    def test_a_branch_makes_its_own(self, newest):
        def example(name):
            return types.SimpleNamespace(name=name, last_kernel="k") if newest else (name, "k")

        calls = IndentedBuffer()
        wrapper = types.SimpleNamespace(kernel_autotune_calls=calls)
        kept = {"arg1_1": example("arg1_1"), "workspace_0": example("workspace_0")}
        if newest:
            wrapper.kernel_autotune_example_arg_cache = kept
            wrapper.kernel_autotune_storage_cache = {"arg1_1": example("_autotune_storage_0")}
        else:
            wrapper.kernel_autotune_example_args = kept
        with compat.tuning_examples_of_its_own(wrapper):
            self.assertEqual(kept, {})
            kept["buf3"] = example("buf3")
        self.assertEqual(kept, {})
        storage = "_autotune_storage_0, " if newest else ""
        self.assertEqual(calls.getvalue().split("\n")[:2], [f"del {storage}arg1_1", "del buf3"])

    def test_none_are_kept(self):
        with compat.tuning_examples_of_its_own(types.SimpleNamespace()):
            pass


class SizesTest(CppTestCase):
    @parametrize("device", DEVICES)
    def test_an_expression_and_an_unbacked_size(self, device):
        op, winner = self.stepped((5, 9))

        def f(x):
            positive = x[(x[:, 0] > 0).nonzero().squeeze(1)]
            return op(torch.cat([x, x[:1], x])), op(positive)

        def expected(x):
            n, kept = 2 * x.shape[0] + 1, x[x[:, 0] > 0]
            double = torch.sin(torch.cat([x, x[:1], x]))
            steps = sum(n > end for end in (5, 9)), sum(kept.shape[0] > end for end in (5, 9))
            return double + steps[0], torch.sin(kept) + steps[1]

        def rows(n, kept):
            x = torch.randn(n, WIDTH, device=device)
            x[:, 0] = torch.where(torch.arange(n, device=device) < kept, 1.0, -1.0)
            return x

        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            compiled, code = self.compile(f, winner, rows(12, 3))
            for n, kept in ((2, 0), (2, 1), (3, 2), (4, 4), (5, 5), (9, 6), (20, 9), (20, 20)):
                x = rows(n, kept)
                self.assert_near(compiled(x), expected(x))
        # The expression is computed once, before the chain that compares it.
        (size,) = re.findall(r"int64_t (buf\d+_size) = [^;]*2L?\*[^;]*;", code)
        self.assertEqual(len(re.findall(rf"if \({size} <= ", code)), 2)
        self.assertEqual(len(re.findall(r"if \(u\d+ <= ", code)), 2)

    @parametrize("device", DEVICES)
    def test_products_of_sizes(self, device):
        # A Triton kernel takes them as arguments, which are computed where the first one runs.
        op = define_op(
            "turned",
            lambda x: x.transpose(1, 2).flatten(1),
            fake=lambda x: x.new_empty(x.shape[0], x.shape[1] * x.shape[2]),
            schema="(Tensor x) -> Tensor",
        )

        def turned(x, step):
            return x.transpose(1, 2).flatten(1) + step

        configs = [CustomOpConfig(turned, step=step) for step in (1, 2, 3)]
        self.register(op, *configs, ends=(4, 8))

        def f(x):
            y = op(x) * x.flatten(1)
            return y + x.transpose(1, 2).flatten(1)

        x = torch.randn(5, 7, 9, device=device)
        compiled, _ = self.compile(
            f, lambda n: f"turned(step={sum(n > end for end in (4, 8)) + 1})", x
        )
        for n, step in ((3, 1), (4, 1), (5, 2), (8, 2), (9, 3)):
            x = torch.randn(n, 7, 9, device=device)
            turned_x = x.transpose(1, 2).flatten(1)
            self.assert_near(compiled(x), (turned_x + step) * x.flatten(1) + turned_x)


class NestingTest(CppTestCase):
    def test_two_dispatches_in_a_graph(self):
        op = self.blended()

        def f(x, w):
            # Nothing fuses with a cumulative sum: the two stay apart.
            return op(op(x, x * 2, w).cumsum(0), x, w)

        w = torch.randn(WIDTH, WIDTH)
        compiled, code = self.compile(f, pick, torch.randn(5, WIDTH), w)
        chains = [block.test.startswith("if") for block in blocks(code)]
        self.assertEqual(chains, [True, False, False, False] * 2)
        self.assertEqual(len(set(re.findall(r"\b(\w+)_le_4_buf0\b", code))), 2)
        for n in BOUNDARIES:
            x = torch.randn(n, WIDTH)
            self.assert_near(compiled(x, w), picked(picked(x, x * 2, w).cumsum(0), x, w))

    def test_a_dispatch_in_a_branch_of_another(self):
        inner = self.blended()
        outer = define_op(
            "outer",
            lambda x, w: torch.sin(x @ w),
            fake=lambda x, w: torch.empty_like(x),
            schema="(Tensor x, Tensor w) -> Tensor",
        )

        def by_inner(x, w):
            return inner(x, torch.tanh(x), w)

        self.register(outer, by_inner, ends=(20,))

        def f(x, w):
            return outer(torch.cos(x) @ w, w) * 2

        def expected(x, w):
            x = torch.cos(x) @ w
            if x.shape[0] > 20:
                return torch.sin(x @ w) * 2
            return picked(x, torch.tanh(x), w) * 2

        w = torch.randn(WIDTH, WIDTH)
        winners = {20: "by_inner"}
        compiled, code = self.compile(
            f, lambda n: winners.get(n, pick(n)), torch.randn(5, WIDTH), w
        )
        self.assertEqual([block.test[:4] for block in blocks(code)], ["if (", "else"])
        within, without = blocks(code)
        tests = re.findall(r"^(?:else )?if \(\w+ <= (\d+)L\)", within.text, re.MULTILINE)
        self.assertEqual(tests, ["4", "8", "16"])
        self.assertNotIn("if (", without.text)
        # What ends with the outer dispatch ends in each branch of the inner one.
        ends = re.findall(r"^(buf\d+)\.reset|std::move\((buf\d+)\);  // reuse", within.text, re.M)
        self.assertEqual(len(ends), 4)
        self.assertEqual(len({"".join(names) for names in ends}), 1)
        for n in (*BOUNDARIES, 20, 21):
            x = torch.randn(n, WIDTH)
            self.assert_near(compiled(x, w), expected(x, w))

    def test_in_a_conditional(self):
        op = self.blended()

        def f(x, w, flag):
            y = torch.cond(
                flag,
                lambda x, w: op(x, x * 2, w) + 1,
                lambda x, w: op(x + 1, x, w),
                (x, w),
            )
            return op(y, x, w)

        def expected(x, w, flag):
            y = picked(x, x * 2, w) + 1 if flag else picked(x + 1, x, w)
            return picked(y, x, w)

        w = torch.randn(WIDTH, WIDTH)
        flags = torch.tensor(True), torch.tensor(False)
        compiled, code = self.compile(f, pick, torch.randn(5, WIDTH), w, flags[0])
        self.assertEqual(len(re.findall(r"else if \(\w+ <= 16L\) \{", code)), 3)
        for n in BOUNDARIES:
            for flag in flags:
                x = torch.randn(n, WIDTH)
                self.assert_near(compiled(x, w, flag), expected(x, w, flag))

    @parametrize("cpp_wrapper", [False, True])
    def test_conditionals_in_the_branches(self, cpp_wrapper):
        # Each branch reads the flag for itself: what one declares, the next one does not see.
        op = define_op(
            "flagged",
            lambda x, flag: torch.where(flag, x.sin(), x.cos()),
            fake=lambda x, flag: torch.empty_like(x),
            schema="(Tensor x, Tensor flag) -> Tensor",
        )

        def adding(x, flag, step):
            def true(x):
                return (x.sin() + step,)

            def false(x):
                return (x.cos() + step,)

            return torch.ops.higher_order.cond(flag, true, false, (x,))[0]

        configs = [CustomOpConfig(adding, step=step) for step in (10.0, 20.0)]
        self.register(op, *configs, ends=(4, 8))
        compiled = torch.compile(lambda x, flag: op(x, flag), dynamic=True, fullgraph=True)
        winners = {4: "adding(step=10.0)", 8: "adding(step=20.0)"}
        with (
            inductor_config.patch(cpp_wrapper=cpp_wrapper),
            force_winners(lambda n: winners.get(n, OP_LABEL)),
        ):
            for n in (3, 4, 5, 8, 9):
                for flag in (True, False):
                    x = torch.randn(n, WIDTH)
                    step = 10 if n <= 4 else 20 if n <= 8 else 0
                    expected = (x.sin() if flag else x.cos()) + step
                    self.assert_near(compiled(x, torch.tensor(flag)), expected)


class PackageTest(CppTestCase):
    class Module(torch.nn.Module):
        def __init__(self, op, device):
            super().__init__()
            self.op = op
            self.w = torch.nn.Parameter(torch.randn(WIDTH, WIDTH, device=device))
            self.register_buffer("shift", torch.randn(WIDTH, device=device))

        def forward(self, x):
            y = self.op(x + self.shift, torch.cos(x @ self.w), self.w)
            return self.op(y.cumsum(0), y * 2, self.w) @ self.w

    @parametrize("device", DEVICES)
    def test_a_package_has_one_chain_for_each_dispatch(self, device):
        module = self.Module(self.blended(), device).eval()
        reference = self.Module(picked, device).eval()
        reference.load_state_dict(module.state_dict())
        rows = torch.export.Dim("rows", min=2, max=4096)
        example = torch.randn(20, WIDTH, device=device)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            program = torch.export.export(module, (example,), dynamic_shapes={"x": {0: rows}})
            marked = inductor_config.patch({"cpp.enable_kernel_profile": True})
            with force_winners(pick), marked:
                path = torch._inductor.aoti_compile_and_package(
                    program, package_path=os.path.join(folder, "model.pt2")
                )
            with zipfile.ZipFile(path) as package:
                (source,) = [name for name in package.namelist() if name.endswith("wrapper.cpp")]
                code = entry(package.read(source).decode())
            chains = [block.test.startswith("if") for block in blocks(code)]
            self.assertEqual(chains, [True, False, False, False] * 2)
            self.assertNotIn("// subgraph:", code)
            # Parameters belong to the model, no branch may free them.
            for name in re.findall(r"auto&? (\w+) = constants_->at", code):
                self.assertNotIn(f"{name}.reset", code)
            # What can be said without running it is said on every machine.
            if not packages_load(device):
                self.skipTest("no package can be loaded on this machine, dispatched or not")
            loaded = torch._inductor.aoti_load_package(path)
            for n in BOUNDARIES:
                x = torch.randn(n, WIDTH, device=device)
                with torch.profiler.profile() as profile:
                    result = loaded(x)
                self.assert_near(result, reference(x))
                branch = next((f"le_{end}" for end in ENDS if n <= end), f"gt_{ENDS[-1]}")
                marks = [mark.endswith(branch) for mark in self.branches_in(profile)]
                self.assertEqual(marks, [True, True])


class OtherWrappersTest(CppTestCase):
    def test_a_derived_wrapper_gets_torch_cond(self):
        class Derived(CppWrapperCpu):
            pass

        op = self.blended()
        init_backend_registration()
        cpu = dataclasses.replace(device_codegens["cpu"], cpp_wrapper_codegen=Derived)
        w = torch.randn(WIDTH, WIDTH)
        with (
            mock.patch.dict(device_codegens, cpu=cpu),
            self.assertLogs(dispatch.log, "DEBUG") as logs,
        ):
            compiled, code = self.compile(lambda x, w: op(x, x, w), pick, torch.randn(5, WIDTH), w)
        self.assertIn("torch.cond is lowered", "\n".join(logs.output))
        self.assertIn("// subgraph:", code)
        for n in BOUNDARIES:
            x = torch.randn(n, WIDTH)
            self.assert_near(compiled(x, w), picked(x, x, w))

    def test_the_wrapper_for_fx_gets_torch_cond(self):
        """It has kernels of Triton's alone, so on a CPU it gets no further than to be lowered."""
        op, lowered = self.blended(), []
        lower = dispatch._inline_conditional

        def spy(*args):
            lowered.append(lower(*args))
            return lowered[-1]

        fx = inductor_config.patch(fx_wrapper=True, cpp_wrapper=False)
        with (
            fx,
            mock.patch.object(dispatch, "_inline_conditional", spy),
            force_winners(pick),
            self.assertRaisesRegex(Exception, "FX conversion only supports Triton"),
        ):
            x, w = torch.randn(5, WIDTH), torch.randn(WIDTH, WIDTH)
            torch.compile(lambda x, w: op(x, x, w), dynamic=True)(x, w)
        self.assertEqual(len(lowered), 1)

    def test_where_kernels_are_tuned_by_running_the_graph(self):
        # The graph would run at one size, and the other branches' kernels would stay untuned.
        package = types.SimpleNamespace(aot_mode=True, device_types={GPU_TYPE or "cuda"})
        with inductor_config.patch({"triton.autotune_at_compile_time": False}):
            self.assertTrue(compat.tunes_by_running(package))
            package.device_types = {"cpu"}
            self.assertFalse(compat.tunes_by_running(package))
        with inductor_config.patch({"triton.autotune_at_compile_time": True}):
            package.device_types = {GPU_TYPE or "cuda"}
            self.assertFalse(compat.tunes_by_running(package))


instantiate_parametrized_tests(ChainTest)
instantiate_parametrized_tests(TuningExamplesTest)
instantiate_parametrized_tests(SizesTest)
instantiate_parametrized_tests(NestingTest)
instantiate_parametrized_tests(PackageTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
