# Owner(s): ["module: inductor"]
"""The generated dispatch: one flat chain, frees on every path, patches in their branch only."""

import re
import unittest
from types import SimpleNamespace
from unittest import mock

from range_dispatch_common import (
    define_op,
    DEVICES,
    final_code,
    force_winners,
    HAS_CPU,
    HAS_GPU,
    inductor_config,
    OP_LABEL,
    predicates,
    RangeDispatchTestCase,
    VECTOR_KERNELS,
)

import torch
from torch._dynamo.source import ConstantSource
from torch._inductor import ir
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
from torch._inductor.kernel.range_dispatch import compat
from torch._inductor.kernel.range_dispatch import ir as range_dispatch_ir
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize
from torch.testing._internal.inductor_utils import GPU_TYPE


def note_free(x, w, step):
    return torch.sin(x) * w + step


def branch_lines(code: str) -> list[str]:
    """The body of the generated call, from the first comparison with a size on."""
    lines = code[code.index("def call(") :].splitlines()
    first = next(i for i, line in enumerate(lines) if re.match(r"\s+if s\d+ <= ", line))
    last = next(i for i, line in enumerate(lines) if line.lstrip().startswith("return ("))
    return lines[first:last]


class CodegenTest(RangeDispatchTestCase):
    def make(self, *ends, patches=None):
        """An op whose winner is another implementation in every range, told apart by `step`."""
        op = define_op(
            "stepped", lambda x, w: torch.sin(x) * w, schema="(Tensor x, Tensor w) -> Tensor"
        )
        steps = range(len(ends) + 1)
        register_custom_op_autotuning(
            op,
            configs=[
                CustomOpConfig(
                    lambda x, w, step: note_free(x, w, step), patches and patches(s), step=s
                )
                for s in steps
            ],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": ends[-1] + 1},
            split_points=list(ends),
        )
        labels = {}
        for step, end in zip(steps, [*ends, ends[-1] + 1], strict=True):
            given = {"step": step, **(patches(step) or {} if patches else {})}
            labels[end] = f"<lambda>({', '.join(f'{k}={v!r}' for k, v in given.items())})"
        return op, labels

    def inputs(self, n, device="cpu"):
        return torch.randn(n, 6, device=device), torch.randn(6, device=device)

    def expected(self, ends, x, w):
        step = sum(x.shape[0] > end for end in ends)
        return torch.sin(x) * w + step

    def test_a_size_that_depends_on_data_is_not_captured(self):
        """A recording would be made for each; PyTorch's own conditional is not captured either."""
        env = ShapeEnv()
        unbacked = env.create_unbacked_symint().node.expr
        backed = env.create_symbol(7, ConstantSource("rows"), dynamic_dim=DimDynamic.DYNAMIC)
        for symbols, captured in (([backed], True), ([backed, unbacked], False)):
            node = SimpleNamespace(constant_args=symbols, branches=[])
            hazard = range_dispatch_ir.RangeDispatch._hazard(node)
            self.assertEqual(hazard is None, captured)

    def test_which_ops_the_user_has_the_graph_partitioned_at(self):
        """By the name of the op or of its overload, as where it stands outside of a branch."""
        call = object.__new__(ir.FallbackKernel)
        define_op("partitions", torch.sin, schema="(Tensor x) -> Tensor")
        name = "range_dispatch_test::partitions"
        for op, names in (
            (torch.ops.aten.mul.Tensor, ["aten::mul.Tensor"]),
            (torch.ops.range_dispatch_test.partitions.default, [name, f"{name}.default"]),
        ):
            call.op_overload = op
            for name in names:
                with inductor_config.patch(custom_should_partition_ops=["other::op", name]):
                    self.assertTrue(range_dispatch_ir._partitions(call))
            with inductor_config.patch(custom_should_partition_ops=["other::op"]):
                self.assertFalse(range_dispatch_ir._partitions(call))
        call.op_overload = None
        with inductor_config.patch(custom_should_partition_ops=["other::op"]):
            self.assertFalse(range_dispatch_ir._partitions(call))
            self.assertFalse(range_dispatch_ir._partitions(object.__new__(ir.ExternKernel)))

    @parametrize("device", DEVICES)
    def test_one_chain_in_ascending_order(self, device):
        ends = (3, 5, 9)
        op, labels = self.make(*ends)
        compiled = torch.compile(lambda x, w: op(x, w), dynamic=True, fullgraph=True)
        with force_winners(labels):
            code = final_code(compiled, *self.inputs(4, device))
        tests = [
            line.strip() for line in branch_lines(code) if re.match(r"\s*(if|elif|else)\b", line)
        ]
        size = re.match(r"if (\w+) <=", tests[0]).group(1)
        expected = [f"if {size} <= 3:", f"elif {size} <= 5:", f"elif {size} <= 9:", "else:"]
        self.assertEqual(tests, expected)
        # No function a level, and no check of sizes inside the branches.
        self.assertEqual(re.findall(r"^def \w*_(?:le|gt)_\d+\(", code, re.MULTILINE), [])
        self.assertNotIn("assert_size_stride", "\n".join(branch_lines(code)))
        for n in (2, 3, 4, 5, 6, 9, 10, 100):
            x, w = self.inputs(n, device)
            self.assertEqual(compiled(x, w), self.expected(ends, x, w))

    @unittest.skipUnless(HAS_GPU, "a device is entered")
    def test_a_branch_does_not_enter_the_device_again(self):
        op, labels = self.make(3, 5)
        compiled = torch.compile(lambda x, w: op(x, w), dynamic=True, fullgraph=True)
        with force_winners(labels):
            code = final_code(compiled, *self.inputs(4, GPU_TYPE))
        self.assertEqual(len(re.findall(r"with .*[dD]evice.*:", code)), 1)

    def test_many_branches_are_found_by_halving(self):
        ends = tuple(range(3, 15))
        op, labels = self.make(*ends)
        compiled = torch.compile(lambda x, w: op(x, w), dynamic=True, fullgraph=True)
        with force_winners(labels):
            code = final_code(compiled, *self.inputs(4))
        tests = [line.strip() for line in branch_lines(code) if re.match(r"\s*(if|elif)\b", line)]
        compared = [int(test.rstrip(":").split()[-1]) for test in tests]
        # 13 branches: first the middle (8), then a chain in each half.
        self.assertEqual(compared, [8, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14])
        for n in range(2, 17):
            x, w = self.inputs(n)
            self.assertEqual(compiled(x, w), self.expected(ends, x, w))

    def test_passes_go_over_branches_not_over_what_chooses(self):
        """Over every level of the nest they would evaluate all levels below."""
        from torch._inductor import compile_fx

        joint, post = "_recursive_joint_graph_passes", "_recursive_post_grad_passes"
        found = {joint: [], post: []}

        def number_of(graph, target):
            return len(graph.graph.find_nodes(op="call_function", target=target))

        def counting(name):
            passes = getattr(compile_fx, name)

            def count(graph, *args, **options):
                levels = number_of(graph, torch.ops.higher_order.cond)
                found[name].append((levels, number_of(graph, torch.ops.aten.sin.default)))
                return passes(graph, *args, **options)

            return mock.patch.object(compile_fx, name, count)

        op, labels = self.make(3, 5, 9)
        compiled = torch.compile(lambda x, w: op(x, w) * 2, dynamic=True, fullgraph=True)
        with force_winners(labels), counting(joint), counting(post):
            self.assertEqual(predicates(final_code(compiled, *self.inputs(4))), [3, 5, 9])
        for graphs in found.values():
            # The graph around the op, each candidate alone, and each branch.
            self.assertEqual(sum(levels for levels, _ in graphs), 0)
            self.assertGreaterEqual(sum(sines == 1 for _, sines in graphs), 4)

    def test_operands_are_freed_on_every_path(self):
        op, labels = self.make(3, 5)
        labels[6] = OP_LABEL

        def f(x, w):
            y = torch.cos(x @ x.t() @ x)  # realized, and used by the op only
            return op(y, w) @ w

        compiled = torch.compile(f, dynamic=True, fullgraph=True)
        with force_winners(labels):
            code = final_code(compiled, *self.inputs(4))
        bodies = re.split(
            r"^\s+(?:if .*|elif .*|else):$", "\n".join(branch_lines(code)), flags=re.M
        )
        bodies = bodies[1:4]
        (operand,) = set(re.findall(r"\bdel (buf\d+)\b", bodies[0]))
        for body in bodies[:2]:
            self.assertEqual(len(re.findall(rf"\bdel {operand}\b", body)), 1, body)
        last = bodies[2].split("extern_kernels")[0]
        self.assertEqual(len(re.findall(rf"\bdel {operand}\b", last)), 1, last)

    def test_an_operand_that_lives_on_is_not_freed(self):
        op, labels = self.make(3, 5)

        def f(x, w):
            y = torch.cos(x @ x.t() @ x)
            z = op(y, w)
            return z @ w, y

        compiled = torch.compile(f, dynamic=True, fullgraph=True)
        with force_winners(labels):
            for n in (2, 3, 4, 5, 6, 20):
                x, w = self.inputs(n)
                z, y = compiled(x, w)
                expected = torch.cos(x @ x.t() @ x)
                self.assertEqual(y, expected)
                self.assertEqual(z, self.expected((3, 5), expected, w) @ w)

    def test_nothing_of_a_branch_outlives_it(self):
        op, labels = self.make(3, 5)
        compiled = torch.compile(lambda x, w: op(x, w) @ w, dynamic=True, fullgraph=True)
        with force_winners(labels):
            code = final_code(compiled, *self.inputs(4))
        body = "\n".join(branch_lines(code))
        own = set(re.findall(r"^\s+(\w+_(?:le|gt)_\d+_buf\d+) = ", body, re.MULTILINE))
        deleted = {
            name for line in re.findall(r"\bdel ([\w, ]+)", body) for name in line.split(", ")
        }
        self.assertTrue(own)
        self.assertEqual(own - deleted, set())

    def test_names_are_unique_in_the_module(self):
        op, labels = self.make(3, 5)

        def f(x, w):
            # Nothing fuses with a cumulative sum, so that the dispatches stay apart.
            return op(op(x, w).cumsum(0), w).cumsum(0) + op(x, w)

        compiled = torch.compile(f, dynamic=True, fullgraph=True)
        with force_winners(labels):
            code = final_code(compiled, *self.inputs(4))
        prefixes = set(re.findall(r"\b(\w+)_le_3_buf\d", code))
        self.assertEqual(len(prefixes), 3)

    @inductor_config.patch(VECTOR_KERNELS)
    def test_config_patches_hold_in_their_branch_only(self):
        # The vector length is visible in CPU code; each branch asks for its own.
        def patches(step):
            return {1: {"cpp.simdlen": 1}}.get(step)

        op, labels = self.make(3, 5, patches=patches)
        compiled = torch.compile(lambda x, w: (op(x, w), x * 3), dynamic=True, fullgraph=True)
        with force_winners(labels):
            code = final_code(compiled, *self.inputs(4))
        kernels = re.split(r"^(cpp_\w+) = async_compile", code, flags=re.MULTILINE)
        sources = dict(zip(kernels[1::2], kernels[2::2], strict=True))
        scalar = {name for name, text in sources.items() if "at::vec::" not in text}
        calls = {
            m.group(2): m.group(1)
            for m in re.finditer(r"^\s+(cpp_\w+)\(.*?_(le_3|le_5|gt_5)_buf0", code, re.MULTILINE)
        }
        self.assertEqual(sorted(calls), ["gt_5", "le_3", "le_5"])
        self.assertEqual({branch for branch, name in calls.items() if name in scalar}, {"le_5"})


def doubled(x, w):
    """Between x and what is returned is something that no kernel fuses with."""
    return (x.sin() * 2).cumsum(0) + w


def shifted(x, w):
    return (x.sin() + 1).cumsum(0) * w


def as_complex_and_back(y):
    """The same memory, in a buffer of its own to the scheduler."""
    return torch.view_as_real(torch.view_as_complex(y.unflatten(1, (3, 2)))).flatten(1)


class InPlaceTest(RangeDispatchTestCase):
    """Operands that end in a branch are written in place of, as in a graph of the winner alone."""

    def setUp(self):
        super().setUp()
        self.op = define_op(
            "ends",
            doubled,
            lambda x, w: torch.empty_like(x),
            schema="(Tensor x, Tensor w) -> Tensor",
        )
        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(doubled), CustomOpConfig(shifted)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 64},
            split_points=[8],
        )
        self.winners = force_winners({8: "doubled", 64: "shifted"})

    def inputs(self, rows, device="cpu"):
        return torch.randn(rows, 6, device=device), torch.randn(6, 6, device=device)

    def paths(self, code):
        """What runs on each path of the generated call."""
        call = code[code.index("def call(") :]
        before, small, rest = re.split(r"^ +(?:if s\d+ <= .*|else):$", call, flags=re.MULTILINE)
        large, end, after = rest.partition("_mark and ")
        self.assertTrue(end)
        return [before + small + after, before + large + after]

    def allocations(self, code):
        return len(re.findall(r" = empty_strided\w*\(", code))

    def taken_over(self, code):
        """Outer buffers whose memory a branch writes its own results to."""
        return re.findall(r"_(?:le|gt)_\d+_buf\d+ = (buf\d+); del \1  # reuse", code)

    def check_both(self, compiled, graph, device="cpu"):
        for rows, implementation in ((5, doubled), (20, shifted)):
            x, w = self.inputs(rows, device)
            given = x.clone()
            self.assertEqual(compiled(x, w), graph(implementation)(x, w))
            self.assertEqual(x, given)

    @parametrize("device", DEVICES)
    def test_as_many_allocations_as_the_winner_alone(self, device):
        def graph(implementation):
            return lambda x, w: implementation(x @ w, w[0]) @ w

        x, w = self.inputs(5, device)
        compiled = torch.compile(graph(self.op), dynamic=True, fullgraph=True)
        with self.winners:
            paths = self.paths(final_code(compiled, x, w))
        self.check_both(compiled, graph, device)
        torch._dynamo.reset()
        for path, implementation in zip(paths, (doubled, shifted), strict=True):
            self.assertEqual(len(self.taken_over(path)), 1)
            alone = torch.compile(graph(implementation), dynamic=True, fullgraph=True)
            self.assertEqual(self.allocations(path), self.allocations(final_code(alone, x, w)))

    @parametrize(
        "graph",
        {
            "an_input": lambda op: lambda x, w: op(x, w[0]),
            "used_later": lambda op: lambda x, w: (lambda y: op(y, w[0]) + y.cumsum(1))(x @ w),
            "an_output": lambda op: lambda x, w: (lambda y: (op(y, w[0]), y))(x @ w),
            "joined": lambda op: lambda x, w: op(torch.cat([x @ w, x @ w.t()], 1), w[0, 0]),
            "shared": lambda op: lambda x, w: (lambda y: op(y, as_complex_and_back(y)))(x @ w),
        }.items(),
        name_fn=lambda graph: graph[0],
    )
    def test_what_is_needed_elsewhere_is_not_written_to(self, graph):
        _, graph = graph
        compiled = torch.compile(graph(self.op), dynamic=True, fullgraph=True)
        with self.winners:
            code = final_code(compiled, *self.inputs(5))
        self.assertEqual(predicates(code), [8])
        self.assertEqual(self.taken_over(code), [])
        self.check_both(compiled, graph)

    def test_memory_written_on_another_stream_is_not_written_to(self):
        """What reads it there may not be done."""
        compiled = torch.compile(lambda x, w: self.op(x @ w, w[0]), dynamic=True, fullgraph=True)
        with (
            self.winners,
            mock.patch.object(compat, "on_another_stream", return_value=True) as asked,
        ):
            code = final_code(compiled, *self.inputs(5))
        self.assertEqual(self.taken_over(code), [])
        self.assertEqual({call.args[0] for call in asked.call_args_list}, {"buf0"})


instantiate_parametrized_tests(CodegenTest)
instantiate_parametrized_tests(InPlaceTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests(needs="filelock")
