# Owner(s): ["module: inductor"]
"""The op's neighbours in the graph fuse with what runs in each branch, as they would without us."""

import re
import unittest
from collections.abc import Callable
from typing import Any
from unittest import mock

from range_dispatch_common import (
    config,
    DEVICES,
    final_code,
    force_winners,
    HAS_CPU,
    HAS_GPU,
    RangeDispatchTestCase,
    report,
)

import torch
from torch._higher_order_ops import effects
from torch._inductor import inductor_prims
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.kernel.custom_op import (
    CustomOpConfig,
    register_custom_op_autotuning,
    unregister_custom_op_autotuning,
)
from torch._inductor.kernel.range_dispatch import tuner
from torch._inductor.kernel.range_dispatch.choosing import Measurement
from torch._inductor.lowering import needs_realized_inputs
from torch._inductor.utils import run_and_get_code
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


WIDTH = 32
SPLIT = 8
BOUNDARIES = (2, 7, SPLIT, SPLIT + 1, 40)


def scale_low(x, w):
    return x * w + 1.0


def scale_high(x, w):
    return torch.addcmul(torch.full_like(x, 2.0), x, w)


def norm_low(x, w):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w


def norm_high(x, w):
    return x / torch.sqrt(x.square().sum(-1, keepdim=True) / x.shape[-1] + 1e-6) * w


def mm_low(x, w):
    return x @ w


def mm_high(x, w):
    return (x.unsqueeze(-1) * w).sum(1)


def pair_low(x, w):
    return x * w, x.sum(-1)


def pair_high(x, w):
    return w * x + 0.5, x.sum(-1) * 2.0


@torch.library.custom_op("range_dispatch_test::region_scale", mutates_args=())
def scale(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * w


scale.register_fake(lambda x, w: torch.empty_like(x))
scale.register_autograd(
    lambda ctx, grad: (grad * ctx.saved_tensors[0], None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
)


@torch.library.custom_op("range_dispatch_test::region_norm", mutates_args=())
def norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return norm_low(x, w)


norm.register_fake(lambda x, w: torch.empty_like(x))


@torch.library.custom_op("range_dispatch_test::region_mm", mutates_args=())
def matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ w


matmul.register_fake(lambda x, w: x.new_empty(x.shape[0], w.shape[1]))


@torch.library.custom_op("range_dispatch_test::region_pair", mutates_args=())
def pair(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x * w, x.sum(-1)


pair.register_fake(lambda x, w: (torch.empty_like(x), x.new_empty(x.shape[0])))

OPS = {
    scale: (scale_low, scale_high),
    norm: (norm_low, norm_high),
    matmul: (mm_low, mm_high),
    pair: (pair_low, pair_high),
}


def quantised(y):
    peak = y.abs().amax(-1, keepdim=True).clamp(min=1e-6)
    return torch.round(y * (127.0 / peak)).to(torch.int8), peak / 127.0


def rotated(y):
    low, high = y.chunk(2, dim=-1)
    return torch.cat([-high, low], dim=-1)


# Each takes the op, x of shape [rows, WIDTH], w, r of x's shape and a square m.
GRAPHS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "pointwise_on_both_sides": (scale, lambda op, x, w, r, m: torch.relu(op(x * 2 + 1, w)) + 1),
    "one_consumer": (scale, lambda op, x, w, r, m: op(x, w).sigmoid()),
    "chain_of_consumers": (scale, lambda op, x, w, r, m: op(x, w).tanh().exp().neg()),
    "two_consumers": (
        scale,
        lambda op, x, w, r, m: (lambda y: (y.sin(), y.cos()))(op(x, w)),
    ),
    "consumer_with_another_input": (scale, lambda op, x, w, r, m: op(x, w) * r),
    "consumer_with_a_later_input": (
        scale,
        lambda op, x, w, r, m: (lambda y: y * torch.sigmoid(r))(op(x, w)),
    ),
    "consumer_with_a_later_matmul": (
        scale,
        lambda op, x, w, r, m: (lambda y: torch.nn.functional.silu(y) * (r @ m))(op(x, w)),
    ),
    "output_used_twice": (scale, lambda op, x, w, r, m: (lambda y: y.sin() * y)(op(x, w))),
    "result_is_an_output_too": (scale, lambda op, x, w, r, m: (lambda y: (y, y + r))(op(x, w))),
    "transposed_output": (scale, lambda op, x, w, r, m: (op(x, w) + 1).t()),
    "cast": (scale, lambda op, x, w, r, m: (op(x, w).to(torch.float64) * 0.5).to(torch.float32)),
    "view_between": (
        scale,
        lambda op, x, w, r, m: op(x, w).view(-1, 4, WIDTH // 4).transpose(1, 2) * 3,
    ),
    "view_used_inside_and_outside": (
        scale,
        lambda op, x, w, r, m: (lambda v: (v, v.sin()))((op(x, w) + 1)[:, 1:]),
    ),
    "residual": (norm, lambda op, x, w, r, m: op(x + r, w)),
    "residual_handed_on": (norm, lambda op, x, w, r, m: (lambda h: (h, op(h, w)))(x + r)),
    "residual_and_scale": (
        norm,
        lambda op, x, w, r, m: (lambda h: (op(h, w) * 0.5 + r, h.sin()))(x + r),
    ),
    "norm_and_quantisation": (norm, lambda op, x, w, r, m: quantised(op(x, w))),
    "rotation": (norm, lambda op, x, w, r, m: op(x, w) * r + rotated(op(x, w))),
    "transposed_producer": (
        scale,
        lambda op, x, w, r, m: op((x + r).view(-1, 4, 8).transpose(1, 2), w[:4]) * 2,
    ),
    "expanded_producer": (scale, lambda op, x, w, r, m: op((r[:, :1] * 2).expand_as(x), w) + x),
    "transposed_producer_of_a_matmul": (
        matmul,
        lambda op, x, w, r, m: op(x, (m * 2).t()).relu(),
    ),
    "matmul_with_epilogue": (
        matmul,
        lambda op, x, w, r, m: torch.nn.functional.silu(op(x, m) + w),
    ),
    "matmul_with_prologue": (matmul, lambda op, x, w, r, m: op(x * r + 1, m)),
    "matmul_with_both": (matmul, lambda op, x, w, r, m: op(x * r + 1, m).relu()),
    "two_outputs": (pair, lambda op, x, w, r, m: (lambda y, s: y * s[:, None] + r)(*op(x, w))),
    "two_ops_in_a_chain": (norm, lambda op, x, w, r, m: op(op(x + r, w).tanh(), w) + r),
    "maximum_and_its_place": (scale, lambda op, x, w, r, m: tuple((op(x, w) * r).max(-1))),
    "reduction_at_the_end": (scale, lambda op, x, w, r, m: (op(x, w) * r).sum(-1)),
    "norm_before_a_matmul": (matmul, lambda op, x, w, r, m: op(norm_low(x, w), m)),
    "peak_of_all_rows_before": (
        scale,
        lambda op, x, w, r, m: op(x / (x.abs().amax() + 1), w),
    ),
    "norm_on_both_sides": (
        norm,
        lambda op, x, w, r, m: norm_high(op(norm_low(x, w) * r, w), r),
    ),
    "softmax": (scale, lambda op, x, w, r, m: torch.softmax(op(x, w) + r, -1)),
    "log_softmax": (scale, lambda op, x, w, r, m: torch.log_softmax(op(x, w), -1) * r),
    "prepared_softmax": (
        scale,
        lambda op, x, w, r, m: (
            lambda v: (lambda top, total: (v - top).exp() / total)(
                *inductor_prims.prepare_softmax_online(v, -1)
            )
        )(op(x, w).view(-1, 8, 4) * 2),
    ),
}


# What is measured of these is not all that there is.
NOT_ALL_MEASURED = {
    "consumer_with_a_later_input",
    "consumer_with_a_later_matmul",
    "rotation",
    "two_ops_in_a_chain",
}


# Kernels of these differ from those of one implementation: a view is there twice, or a reduction is
# split by how many rows there are.
VIEWS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "maximum_of_all_rows_and_what_follows": (
        scale,
        lambda op, x, w, r, m: (lambda v, i: (v + 1, i))(*(op(x, w) + r).max(0)),
    ),
    "residual_and_norm_before_a_matmul": (
        matmul,
        lambda op, x, w, r, m: (lambda h: (op(norm_low(h, w), m) + h, h))(x + r),
    ),
    "layer_norm_before_a_matmul": (
        matmul,
        lambda op, x, w, r, m: op(torch.nn.functional.layer_norm(x, (WIDTH,), w), m),
    ),
    "peak_of_all_rows_before_and_outside": (
        scale,
        lambda op, x, w, r, m: (lambda peak: (op(x / peak, w), peak))(x.abs().amax() + 1),
    ),
    "variance_and_mean_are_outputs": (
        norm,
        lambda op, x, w, r, m: (lambda y: (y, *torch.var_mean(y * 2, -1)))(op(x, w)),
    ),
    "smallest_and_largest": (scale, lambda op, x, w, r, m: tuple(torch.aminmax(op(x, w), dim=-1))),
    "fraction_of_the_size_before": (scale, lambda op, x, w, r, m: op(x * (1 / x.shape[0]), w)),
    "fraction_of_the_size_behind": (
        scale,
        lambda op, x, w, r, m: (lambda s: (op(x, w) * s + r).relu())(1 / x.shape[0]),
    ),
    "view_of_the_result_read_inside_and_outside": (
        scale,
        lambda op, x, w, r, m: (lambda v: (v.relu(), v.cumsum(0)))(op(x, w).view(-1, 4, 8)),
    ),
    "view_of_an_operand_read_inside_and_outside": (
        scale,
        lambda op, x, w, r, m: (lambda h, v: (op(h, w), v.sum(-1), v.cumsum(0)))(
            *(lambda h: (h, h.view(-1, 4, 8)))(x + r)
        ),
    ),
}


@torch.library.custom_op("range_dispatch_test::region_bump", mutates_args=("x",))
def bump(x: torch.Tensor) -> None:
    x.add_(100.0)


def inputs(rows: int, device: str) -> tuple[torch.Tensor, ...]:
    """Only the rows are dynamic: weights are of one size in a model."""
    shapes = ((rows, WIDTH), (WIDTH,), (rows, WIDTH), (WIDTH, WIDTH))
    made = tuple(torch.randn(shape, device=device) for shape in shapes)
    for with_rows in (made[0], made[2]):
        torch._dynamo.mark_dynamic(with_rows, 0)
    return made


_CALL = re.compile(
    r"^\s*(?:\w+ = )?((?:cpp_fused|triton_)\w+?)(?:_\d+)?(?:\.run)?\(|^\s*(extern_kernels\.\w+)\(",
    re.MULTILINE,
)


def kernels(lines: str) -> list[str]:
    """The kernels that are called, without their numbers, and without the name of the op."""
    called = [a or b for a, b in _CALL.findall(lines)]
    return sorted(re.sub(r"_region_[a-z]+(?=_|$)", "", name) for name in called)


def without_names(code: str) -> list[str]:
    """The lines of generated code without what things are called in it.

    Nor whether a mask is said to be true, which Triton leaves out, where no block is cut off.
    """
    mask = r"(\w+)mask = (\1index < \1numel|tl\.full\(\1index\.shape, True, tl\.int1\))$"
    code = re.sub(mask, r"\1mask", code, flags=re.MULTILINE)
    code = re.sub(r"\b(?:cpp_fused|triton_[a-z]+_fused)\w*", "kernel", code)
    lines = (line.partition("#")[0].rstrip() for line in code.splitlines())
    text = "\n".join(line for line in lines if line)
    seen: dict[str, str] = {}
    text = re.sub(r"\bbuf\d+", lambda m: seen.setdefault(m.group(), f"buf_{len(seen)}"), text)
    return text.splitlines()


def bodies(code: str) -> list[str]:
    """The kernels in generated code, in no order, without the sizes that they are hinted for."""
    found = re.findall(r"(?:async_compile\.\w+\(.*?|^)\'\'\'(.*?)\'\'\'", code, re.DOTALL)
    functions = (body.rpartition("@triton.jit")[2] for body in found)
    return sorted("\n".join(without_names(function)) for function in functions)


def without_producers(names: list[str]) -> list[str]:
    """``names``, each without the ops that another one is named after.

    What a branch hands out is realized before a view of it is read. Alone it is realized by the
    view: the kernel that reads it is the same, but is named after what made it as well.
    """
    made = [name.partition("_fused_")[2] for name in names]
    shorter = []
    for i, name in enumerate(names):
        for other in made[:i] + made[i + 1 :]:
            name = name.replace(f"_fused_{other}_", "_fused_")
        shorter.append(name)
    return sorted(shorter)


def paths(code: str) -> tuple[str, str]:
    """The body of ``call`` as it runs for small and for large sizes."""
    body = code[code.index("def call(") :].partition("\nrunner = ")[0]
    low: list[str] = []
    high: list[str] = []
    targets = [low, high]
    inside = None
    for line in body.splitlines():
        indent = len(line) - len(line.lstrip())
        if inside is not None and indent <= inside and not line.strip().startswith("else:"):
            inside, targets = None, [low, high]
        if re.match(r"\s*if \w+ <= \d+:", line):
            inside, targets = indent, [low]
        elif inside == indent and line.strip().startswith("else:"):
            targets = [high]
        for target in targets:
            target.append(line)
    return "\n".join(low), "\n".join(high)


def codegen_only() -> Any:
    """Kernels of the CPU are generated and not compiled: what a graph returns means nothing."""
    return mock.patch.object(
        AsyncCompile, "cpp_pybinding", lambda self, *args, **kwargs: lambda *given: None
    )


class RegionTestCase(RangeDispatchTestCase):
    vectors = True

    def register(self, op: Any, **options: Any) -> tuple[Any, Any]:
        low, high = OPS[op]
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(low), CustomOpConfig(high)],
            dispatch_on={"tensor_name": "x", "dim": 0},
            split_points=[SPLIT],
            **options,
        )
        return low, high

    def forced(self, op: Any) -> Any:
        low, high = OPS[op]
        return force_winners(lambda n: low.__name__ if n <= SPLIT else high.__name__)


class KernelsTest(RegionTestCase):
    """Each path runs the kernels of a compile with that implementation in place of the op."""

    @parametrize("device", DEVICES)
    @parametrize("name", list(GRAPHS))
    def test_same_as_a_compile_of_one_implementation(self, name, device):
        op, graph = GRAPHS[name]
        args = inputs(20, device)
        codes = []
        with codegen_only():
            for implementation in OPS[op]:
                torch._dynamo.reset()
                alone = torch.compile(lambda *a, f=implementation: graph(f, *a), fullgraph=True)
                codes.append(final_code(alone, *args))
            torch._dynamo.reset()
            self.register(op)
            with self.forced(op):
                compiled = torch.compile(lambda *a: graph(op, *a), fullgraph=True)
                code = final_code(compiled, *args)
        for path, expected in zip(paths(code), codes, strict=True):
            body = expected[expected.index("def call(") :]
            found, wanted = kernels(path), kernels(body)
            if name == "view_used_inside_and_outside":
                found, wanted = without_producers(found), without_producers(wanted)
            self.assertEqual(found, wanted)

    @parametrize("device", DEVICES)
    @parametrize("name", list(GRAPHS))
    def test_one_winner_is_as_written_in_place(self, name, device):
        """All of the code, and what is measured of it, is what a compile of the winner gives."""
        op, graph = GRAPHS[name]
        args = inputs(20, device)
        winner, _ = self.register(op)
        measured = []

        def measure(bench, contenders, point):
            for contender in contenders:
                if contender.candidate.label == winner.__name__:
                    measured.append(bodies(tuner.generate(bench, contender, point).code))
            labels = [contender.candidate.label for contender in contenders]
            return [Measurement(name, 1.0 if name == winner.__name__ else 2.0) for name in labels]

        with codegen_only():
            alone = torch.compile(lambda *a: graph(winner, *a), fullgraph=True)
            expected = final_code(alone, *args)
            for _ in range(2):  # that the op itself was lowered before makes no difference
                torch._dynamo.reset()
                with mock.patch.object(tuner, "measure", measure), config.patch(use_records=False):
                    compiled = torch.compile(lambda *a: graph(op, *a), fullgraph=True)
                    code = final_code(compiled, *args)
                self.assertEqual(without_names(code), without_names(expected))
        if name not in NOT_ALL_MEASURED:
            self.assertIn(bodies(code), measured)

    @parametrize("device", DEVICES)
    @parametrize("name", ["residual_and_norm_before_a_matmul", "layer_norm_before_a_matmul"])
    def test_a_norm_that_cannot_move_as_a_whole_stays(self, name, device):
        """It is one kernel, and a matmul of a library reads it from memory anyway."""
        op, graph = VIEWS[name]
        args = inputs(20, device)
        with codegen_only():
            alone = torch.compile(lambda *a: graph(mm_low, *a), fullgraph=True)
            expected = final_code(alone, *args)
            torch._dynamo.reset()
            self.register(op)
            with self.forced(op):
                compiled = torch.compile(lambda *a: graph(op, *a), fullgraph=True)
                code = final_code(compiled, *args)
        low, _ = paths(code)
        self.assertEqual(kernels(low), kernels(expected[expected.index("def call(") :]))

    @parametrize("device", DEVICES)
    @parametrize(
        "name",
        [
            "pointwise_on_both_sides",
            "two_consumers",
            "consumer_with_another_input",
            "output_used_twice",
            "result_is_an_output_too",
        ],
    )
    def test_the_same_in_a_training_graph(self, name, device):
        """Forward: what the backward needs is written by the kernels that are there anyway."""
        op, graph = GRAPHS[name]

        def forward(function):
            torch._dynamo.reset()
            args = inputs(20, device)
            args[0].requires_grad_()
            _, codes = run_and_get_code(torch.compile(function, fullgraph=True), *args)
            (code,) = (code for code in codes if "tangents" not in code)
            return code

        with codegen_only():
            alone = [forward(lambda *a, f=f: graph(f, *a)) for f in OPS[op]]
            self.register(op)
            with self.forced(op):
                code = forward(lambda *a: graph(op, *a))
        for path, expected in zip(paths(code), alone, strict=True):
            found, wanted = kernels(path), kernels(expected[expected.index("def call(") :])
            self.assertEqual(len(wanted), 1)
            self.assertEqual(found, wanted)


@unittest.skipUnless(HAS_GPU, "needs a GPU")
class TemplateTest(RegionTestCase):
    def test_consumers_go_into_the_template_of_a_matmul_device_cuda(self):
        """As they do without a dispatch: one kernel, of Triton's template."""
        settings = {
            "max_autotune_gemm": True,
            "max_autotune_gemm_backends": "TRITON",
            "test_configs.max_mm_configs": 1,
        }
        register_custom_op_autotuning(
            matmul,
            configs=[CustomOpConfig(mm_low, config_patches=settings), CustomOpConfig(mm_high)],
            dispatch_on={"tensor_name": "x", "dim": 0},
            split_points=[SPLIT],
        )

        def graph(f, x, w, r, m):
            return torch.relu(f(x, m) + w) * 2.0

        args = inputs(20, "cuda")
        alone = torch.compile(lambda *a: graph(mm_low, *a), fullgraph=True, options=settings)
        expected = final_code(alone, *args)
        torch._dynamo.reset()

        def measure(bench, contenders, point):
            winner = "mm_low(" if point.size <= SPLIT else "mm_high"
            labels = [contender.candidate.label for contender in contenders]
            return [Measurement(name, 1.0 if name.startswith(winner) else 2.0) for name in labels]

        with mock.patch.object(tuner, "measure", measure):
            compiled = torch.compile(lambda *a: graph(matmul, *a), fullgraph=True)
            low, _ = paths(final_code(compiled, *args))
        found = kernels(low)
        self.assertEqual(found, kernels(expected[expected.index("def call(") :]))
        self.assertRegex(found[0], "^triton_tem_fused.*relu")
        self.assertEqual(len(found), 1)
        for rows in (SPLIT, SPLIT + 1):
            args = inputs(rows, "cuda")
            torch.testing.assert_close(compiled(*args), graph(mm_low, *args), rtol=1e-2, atol=1e-2)


class ResultsTest(RegionTestCase):
    @parametrize("device", DEVICES)
    def test_rounded_where_a_static_compile_rounds(self, device):
        """In bfloat16 what is fused is not rounded in between, as it is in eager."""
        op, graph = GRAPHS["pointwise_on_both_sides"]
        low, high = self.register(op)
        compiled = torch.compile(lambda *a: graph(op, *a), fullgraph=True)
        with self.forced(op):
            for rows, chosen in ((64, high), (SPLIT, low)):
                args = [t.to(torch.bfloat16) for t in inputs(rows, device)]
                torch._dynamo.mark_dynamic(args[0], 0)
                static = torch.compile(lambda *a, f=chosen: graph(f, *a), dynamic=False)
                fresh = [t.clone() for t in args]
                expected, eager = static(*fresh), graph(chosen, *args)
                self.assertEqual(compiled(*args), expected, rtol=0, atol=0)
                self.assertFalse(torch.equal(expected, eager))

    @parametrize("device", DEVICES)
    @parametrize("name", [*GRAPHS, *VIEWS])
    def test_every_boundary(self, name, device):
        op, graph = {**GRAPHS, **VIEWS}[name]
        low, high = self.register(op)
        compiled = torch.compile(lambda *a: graph(op, *a), fullgraph=True)
        with self.forced(op), torch._dynamo.config.patch(error_on_recompile=True):
            compiled(*inputs(20, device))
            for rows in BOUNDARIES:
                args = inputs(rows, device)
                chosen = low if rows <= SPLIT else high
                expected = graph(chosen, *args)
                self.assertEqual(compiled(*args), expected, exact_stride=True)

    def test_a_producer_keeps_its_value_when_what_it_reads_is_overwritten(self):
        """It is in a buffer then, and must not be computed anew in the branches."""
        low, high = self.register(scale)

        def graph(op, x, w):
            largest = x.max(-1, keepdim=True).values
            bump(x)
            return op(largest, w[:1]) + x

        compiled = torch.compile(lambda *a: graph(scale, *a), fullgraph=True)
        with self.forced(scale):
            for rows in (20, 5):
                x, w, *_ = inputs(rows, "cpu")
                expected = graph(low if rows <= SPLIT else high, x.clone(), w)
                self.assertEqual(compiled(x, w), expected)

    @parametrize("name", ["maximum_and_its_place", *VIEWS])
    def test_all_implementations_can_be_used(self, name):
        op, graph = (GRAPHS | VIEWS)[name]
        self.register(op)
        compiled = torch.compile(lambda *a: graph(op, *a), fullgraph=True)
        with self.forced(op):
            compiled(*inputs(20, "cpu"))
        for plan in report.plans():
            self.assertEqual(plan.rejected, ())
            self.assertEqual(len(plan.chosen), 2)

    def test_ops_in_a_chain_whose_first_ranges_start_apart(self):
        """From 2 on, as Dynamo has it, and from 0, since 1 is in the same range as 2."""
        for op, ends in ((scale, [1, 8]), (norm, [4])):
            register_custom_op_autotuning(
                op,
                configs=[CustomOpConfig(function) for function in OPS[op]],
                dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 64},
                split_points=ends,
            )

        def measured(bench, contenders, point):
            wanted = "low" if point.size <= 4 else "high"
            labels = [contender.candidate.label for contender in contenders]
            return [Measurement(label, 1.0 if wanted in label else 2.0) for label in labels]

        def graph(a, b, x, w):
            return b(a(x, w).tanh(), w)

        compiled = torch.compile(lambda x, w: graph(scale, norm, x, w), fullgraph=True)
        with mock.patch.object(tuner, "measure", measured):
            compiled(*inputs(20, "cpu")[:2])
            for rows in (2, 4, 5, 8, 9, 40):
                x, w, *_ = inputs(rows, "cpu")
                a = scale_high  # at 8 rows, where the range is measured
                b = norm_low if rows <= 4 else norm_high
                self.assertEqual(compiled(x, w), graph(a, b, x, w))

    def test_a_size_that_is_an_expression(self):
        """No operand of the branches has a symbol for a size of its own."""
        low, high = self.register(scale)
        graph = lambda op, a, w: torch.relu(op(torch.cat([a, a.sin()]), w)) + 1  # noqa: E731
        compiled = torch.compile(lambda *args: graph(scale, *args), fullgraph=True)
        with self.forced(scale), torch._dynamo.config.patch(error_on_recompile=True):
            for rows in (20, 2, 4, 5, 40):
                (a, w, *_), chosen = inputs(rows, "cpu"), low if 2 * rows <= SPLIT else high
                self.assertEqual(compiled(a, w), graph(chosen, a, w), exact_stride=True)
        (plan,) = report.plans()
        self.assertEqual(plan.rejected, ())


class BoundsTest(RegionTestCase):
    """What is in the branches, by the report, and that the results are right."""

    def inside(self, graph, **settings):
        self.register(scale)
        compiled = torch.compile(lambda *args: graph(scale, *args), fullgraph=True)
        with self.forced(scale), config.patch(**settings):
            for rows in (20, 5):
                args = inputs(rows, "cpu")[:2]
                expected = graph(scale_low if rows <= SPLIT else scale_high, *args)
                torch.manual_seed(7)
                self.assertEqual(compiled(*args), expected)
        (plan,) = report.plans()
        self.assertEqual(plan.rejected, ())
        return plan.region

    @parametrize("nodes", [0, 1, 2, 64])
    def test_a_region_is_bounded(self, nodes):
        graph = lambda op, x, w: op(x, w).sin().exp().cos()  # noqa: E731
        self.assertEqual(len(self.inside(graph, region_nodes=nodes)), min(nodes, 3))

    def test_what_is_random_stays_outside(self):
        """Each branch would draw for itself, and in another order than the rest of the graph."""

        def graph(op, x, w):
            y = op(x, w) + 1
            noise = torch.rand_like(y)
            return y + 0.0 * noise + (noise >= 0)

        region = self.inside(graph)
        self.assertFalse([name for name in region if "rand" in name])
        # What is computed from the noise may be inside and read it; in 2.11 it stays outside, too.
        self.assertTrue([name for name in region if "add" in name])

    def test_collectives_end_a_region(self):
        if not torch.distributed.is_available():
            self.skipTest("needs torch.distributed")
        from torch.testing._internal.distributed.fake_pg import FakeStore

        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
        self.addCleanup(torch.distributed.destroy_process_group)
        group = torch.distributed.group.WORLD
        functional = torch.distributed._functional_collectives

        def graph(op, x, w):
            y = op(x, w) + 1
            total = functional.all_reduce(y, "sum", group)
            return y.sin() * total

        self.assertEqual(len(self.inside(graph)), 1)

    def test_what_is_asserted_behind_the_op_is_asserted(self):
        """Of a number that is known at run time only."""
        low, high = self.register(scale)

        def graph(op, x, w, t):
            y = op(x, w) + 1
            n = t.item()
            torch._check(n >= 0)
            torch._check(n <= 4)
            return y.relu() * n + torch.ones(n).sum()

        compiled = torch.compile(lambda *a: graph(scale, *a), fullgraph=True)
        with self.forced(scale), torch._dynamo.config.patch(capture_scalar_outputs=True):
            for rows, number in ((20, 3), (5, 3), (5, 0)):
                args = (*inputs(rows, "cpu")[:2], torch.tensor(number))
                expected = graph(low if rows <= SPLIT else high, *args)
                self.assertEqual(compiled(*args), expected)
            for rows in (20, 5):
                with self.assertRaises(RuntimeError):
                    compiled(*inputs(rows, "cpu")[:2], torch.tensor(5))
        (plan,) = report.plans()
        self.assertEqual(plan.rejected, ())
        self.assertIn("relu", plan.region)

    def test_what_mutates_ends_a_region(self):
        def graph(op, x, w):
            y = op(x, w) + 1
            z = y * 2
            bump(z)
            return z * y

        self.assertEqual(len(self.inside(graph)), 2)

    def test_effects_end_a_region(self):
        """What is noted is noted once a call, between what was before and what comes behind."""
        noted = []

        @torch.library.custom_op("range_dispatch_test::region_note", mutates_args=())
        def note(x: torch.Tensor) -> torch.Tensor:
            noted.append(x.sum().item())
            return x.clone()

        note.register_fake(torch.empty_like)
        effects._register_effectful_op(note._opoverload, effects._EffectType.ORDERED)
        self.addCleanup(effects._register_effectful_op, note._opoverload, None)

        def graph(op, x, w):
            y = op(x, w) + 1
            return note(y) * y.sin()

        # One is what the report shows: eager, which is compared with, notes as well.
        self.assertEqual(len(self.inside(graph)), 1)
        self.assertEqual(len(noted), 4)
        for compiled, eager in zip(noted[1::2], noted[::2], strict=True):
            self.assertAlmostEqual(compiled, eager, places=3)

    def test_what_needs_its_input_in_memory_stays_outside(self):
        def graph(op, x, w):
            y = op(x, w).relu()
            return torch.nn.functional.max_pool2d(y[None, None], 2).exp(), y.tanh()

        region = self.inside(graph)
        self.assertEqual(
            [name for name in region if "relu" in name or "tanh" in name], ["relu", "tanh"]
        )
        self.assertFalse([name for name in region if "pool" in name or "exp" in name])

    def test_a_norm_before_the_op_is_bounded(self):
        """Without room for the sum of the rows, none of it moves."""
        low, high = self.register(scale)

        def graph(op, x, w):
            return op(norm_low(x, w), w)

        compiled = torch.compile(lambda *args: graph(scale, *args), fullgraph=True)
        for room in (2, 64):
            torch._dynamo.reset()
            report.clear()
            with self.forced(scale), config.patch(region_nodes=room):
                for rows, chosen in ((5, low), (20, high)):
                    args = inputs(rows, "cpu")[:2]
                    self.assertEqual(compiled(*args), graph(chosen, *args))
            (plan,) = report.plans()
            before = [name for name in plan.region if "mean" in name]
            self.assertEqual(len(before), int(room > 2))

    def test_ops_in_a_chain_make_one_comparison(self):
        self.register(scale)
        self.register(norm)

        def measured(bench, contenders, point):
            wanted = "low" if point.size <= SPLIT else "high"
            labels = [contender.candidate.label for contender in contenders]
            return [Measurement(label, 1.0 if wanted in label else 2.0) for label in labels]

        compiled = torch.compile(lambda x, w: norm(scale(x, w).tanh(), w), fullgraph=True)
        with mock.patch.object(tuner, "measure", measured):
            code = final_code(compiled, *inputs(20, "cpu")[:2])
        self.assertEqual(len(re.findall(rf"if s\d+ <= {SPLIT}:", code)), 1)
        self.assertEqual(len(report.plans()), 2)


class TuningTest(RegionTestCase):
    @parametrize("device", DEVICES)
    @parametrize("used_outside", [False, True])
    def test_a_benchmark_writes_what_the_branches_hand_out(self, device, used_outside):
        self.register(scale)
        outputs = []

        def graph(a, w):
            total = a + a.sin()
            result = torch.relu(scale(total, w))
            return (result, total) if used_outside else (result,)

        def compiled(graph, *args, **kwargs):
            outputs.append(len(graph.graph.output_node().args[0]))
            return compile_for_benchmark(graph, *args, **kwargs)

        compile_for_benchmark = tuner.compile_for_benchmark
        a, w, *_ = inputs(20, device)
        with mock.patch.object(tuner, "compile_for_benchmark", compiled):
            found = torch.compile(graph, fullgraph=True)(a, w)
        self.assertEqual(found[0], graph(a, w)[0])
        self.assertEqual(set(outputs), {1 + used_outside})

    @parametrize("device", DEVICES)
    def test_what_is_lowered_early_is_measured_where_it_will_be_computed(self, device):
        """A gate behind the op is computed in the branches, and so in a benchmark as well."""
        self.register(scale)
        measured = []

        def graph(a, w):
            return a + scale(a, w) * (a * 2).sigmoid()

        def stored(a, w):
            gate = (a * 2).sigmoid()
            return a + scale(a, w) * gate, gate

        def compiled(graph, *args, **kwargs):
            targets = {node.target for node in graph.graph.nodes}
            outputs = len(graph.graph.output_node().args[0])
            measured.append((torch.ops.aten.sigmoid.default in targets, outputs))
            return compile_for_benchmark(graph, *args, **kwargs)

        compile_for_benchmark = tuner.compile_for_benchmark
        a, w, *_ = inputs(20, device)
        for function, outputs in ((graph, 1), (stored, 2)):
            measured.clear()
            with mock.patch.object(tuner, "compile_for_benchmark", compiled):
                found = torch.compile(function, fullgraph=True)(a, w)
            self.assertEqual(found, function(a, w))
            self.assertEqual(set(measured), {(True, outputs)})

    def test_no_operand_is_realized_for_what_was_measured_before(self):
        """Inductor hints so once it has made a call of an op, as in the module of the op itself."""
        before = set(needs_realized_inputs)
        overloads = {scale._opoverload, norm._opoverload}
        self.register(scale)
        self.register(norm)
        x, w, *_ = inputs(20, "cpu")
        torch.compile(lambda x, w: scale(norm(x, w) + 1, w) * 2, fullgraph=True)(x, w)
        self.assertEqual(len(report.plans()), 2)
        self.assertFalse(overloads & set(needs_realized_inputs))
        for op in (scale, norm):
            unregister_custom_op_autotuning(op)
        self.assertEqual(set(needs_realized_inputs) | overloads, before | overloads)
        self.assertTrue(overloads <= set(needs_realized_inputs))


instantiate_parametrized_tests(BoundsTest)
instantiate_parametrized_tests(TuningTest)
instantiate_parametrized_tests(KernelsTest)
instantiate_parametrized_tests(ResultsTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_CPU or HAS_GPU:
        run_tests()
