# Owner(s): ["module: inductor"]
"""A dispatch inside captured CUDA graphs, and its memory."""

import re
import unittest

from range_dispatch_common import (
    counters,
    define_op,
    final_code,
    force_winners,
    GPU_TYPE,
    HAS_GPU,
    inductor_config,
    RangeDispatchTestCase,
)

import torch
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning
from torch.testing._internal.common_utils import instantiate_parametrized_tests, parametrize


ENDS = (16, 64)


def first(x, w):
    return torch.sin(x) * w[0] + 10.0


def second(x, w):
    return torch.cos(x) * w[0] + 20.0


def third(x, w):
    return torch.tanh(x @ w) @ w.t() + 30.0


def pick(size):
    return {16: "first", 64: "second"}.get(size, "third")


def chosen(x, w):
    """What has to come out at this size: the implementations differ in their answers."""
    rows = x.shape[0]
    return (first if rows <= 16 else second if rows <= 64 else third)(x, w)


@unittest.skipUnless(HAS_GPU, "needs a GPU")
class CudaGraphsTest(RangeDispatchTestCase):
    def setUp(self):
        super().setUp()
        self.op = define_op(
            "chosen",
            chosen,
            lambda x, w: torch.empty_like(x),
            schema="(Tensor x, Tensor w) -> Tensor",
        )
        register_custom_op_autotuning(
            self.op,
            configs=[CustomOpConfig(f) for f in (first, second, third)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 256},
            split_points=list(ENDS),
        )
        self.w = torch.randn(32, 32, device=GPU_TYPE)
        torch._dynamo.mark_static(self.w)

    def rows(self, n):
        x = torch.randn(n, 32, device=GPU_TYPE)
        torch._dynamo.mark_static(x, 1)
        return x

    def expected(self, x):
        return chosen(x.relu(), self.w) * 2

    def f(self, x, w):
        return self.op(x.relu(), w) * 2

    @parametrize("graph_partition", [False, True])
    def test_each_recorded_size_replays_its_own_branch(self, graph_partition):
        compiled = torch.compile(self.f, dynamic=True, fullgraph=True, mode="reduce-overhead")
        sizes = (8, 16, 17, 64, 65, 100)
        with inductor_config.patch(graph_partition=graph_partition):
            with force_winners(pick):
                compiled(self.rows(8), self.w)
            for n in sizes * 5 + tuple(reversed(sizes)) * 3:
                torch.compiler.cudagraph_mark_step_begin()
                x = self.rows(n)
                self.assertEqual(compiled(x, self.w), self.expected(x), atol=1e-4, rtol=1e-4)
        self.assertEqual(counters["stats"]["unique_graphs"], 1)
        self.assertEqual(counters["inductor"]["cudagraph_skips"], 0)

    def test_the_dispatch_does_not_partition_the_graph(self):
        compiled = torch.compile(self.f, dynamic=True, fullgraph=True, mode="reduce-overhead")
        with inductor_config.patch(graph_partition=True), force_winners(pick):
            code = final_code(compiled, self.rows(8), self.w)
        self.assertEqual(len(re.findall(r"def partition_\d+\(", code)), 1)

    def kernels(self, function, x):
        """How many run on the device in one call."""
        function(x, self.w)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
            function(x, self.w)
            torch.cuda.synchronize()
        return len([e for e in prof.events() if e.device_type == torch.autograd.DeviceType.CUDA])

    def test_only_the_kernels_of_its_branch_run(self):
        sizes = ((8, first), (32, second), (100, third))
        alone = {}
        for n, implementation in sizes:
            torch._dynamo.reset()
            compiled = torch.compile(
                lambda x, w, run=implementation: run(x.relu(), w) * 2, dynamic=True, fullgraph=True
            )
            alone[n] = self.kernels(compiled, self.rows(n))
        torch._dynamo.reset()
        compiled = torch.compile(self.f, dynamic=True, fullgraph=True)
        with force_winners(pick):
            compiled(self.rows(8), self.w)
        self.assertEqual({n: self.kernels(compiled, self.rows(n)) for n, _ in sizes}, alone)

    @parametrize("graph_partition", [False, True])
    def test_what_cannot_be_captured_in_a_branch_is_not(self, graph_partition):
        def waits(x, w):  # asks for the value of an element
            return (x @ w).index_select(0, torch.nonzero(x[:, 0] * 0 + 1).squeeze(1))

        op = define_op(
            "captured",
            lambda x, w: x @ w,
            lambda x, w: torch.empty_like(x),
            schema="(Tensor x, Tensor w) -> Tensor",
        )

        @torch.library.custom_op(
            "range_dispatch_test::waiting", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,)
        )
        def waiting(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return waits(x, w)

        waiting.register_fake(lambda x, w: torch.empty_like(x))
        register_custom_op_autotuning(
            op,
            configs=[CustomOpConfig(lambda x, w: x @ w), CustomOpConfig(waiting)],
            dispatch_on={"tensor_name": "x", "dim": 0, "range_upper_bound": 256},
            split_points=[16],
        )
        compiled = torch.compile(
            lambda x, w: op(x.relu(), w) * 2, dynamic=True, fullgraph=True, mode="reduce-overhead"
        )
        labels = {16: "<lambda>", 256: "waiting"}
        with (
            inductor_config.patch(graph_partition=graph_partition),
            self.assertLogs("torch._inductor.kernel.range_dispatch.ir", "INFO") as logged,
        ):
            with force_winners(labels):
                compiled(self.rows(8), self.w)
            for n in (8, 16, 17, 40) * 4:
                torch.compiler.cudagraph_mark_step_begin()
                x = self.rows(n)
                self.assertEqual(compiled(x, self.w), x.relu() @ self.w * 2, atol=1e-3, rtol=1e-3)
        self.assertIn("not safe to capture", "\n".join(logged.output))

    @parametrize("residual", [False, True])
    def test_peak_memory_is_the_winners(self, residual):
        def peak(function, x):
            function(x, self.w)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            out = function(x, self.w)
            torch.cuda.synchronize()
            after = torch.cuda.max_memory_allocated() - before
            del out
            return after

        def graph(implementation):
            # The op stays between matmuls, which nothing fuses with, dispatched or alone. Two of
            # them are read for the last time in its branch, and one is to be written in place of.
            if residual:
                return lambda x, w: (implementation(x @ w, w) + x @ w.t()) @ w
            return lambda x, w: implementation(x @ w, w) @ w

        dispatched = torch.compile(graph(self.op), dynamic=True, fullgraph=True)
        with force_winners(pick):
            dispatched(self.rows(8), self.w)
        for n, implementation in ((16, first), (64, second), (4096, third)):
            x = self.rows(n)
            torch._dynamo.reset()
            alone = torch.compile(graph(implementation), dynamic=True, fullgraph=True)
            wanted = peak(alone, x)
            torch._dynamo.reset()
            dispatched = torch.compile(graph(self.op), dynamic=True, fullgraph=True)
            with force_winners(pick):
                dispatched(self.rows(8), self.w)
            self.assertLessEqual(peak(dispatched, x), wanted)


instantiate_parametrized_tests(CudaGraphsTest)

if __name__ == "__main__":
    from torch._inductor.test_case import run_tests

    if HAS_GPU:
        run_tests(needs="filelock")
