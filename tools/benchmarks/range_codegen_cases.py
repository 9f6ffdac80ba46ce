"""The cases of range_codegen.py: an implementation each, and how to compile it in each way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import measuring

import torch
from torch import Tensor
from torch._inductor import config as inductor_config
from torch._inductor.kernel.custom_op import custom_op_autotuning, CustomOpConfig
from torch._inductor.kernel.range_dispatch import config, report


LIBRARY = "range_dispatch_codegen"
MAX_AUTOTUNE = {"max_autotune_gemm": True, "max_autotune_gemm_backends": "ATEN,TRITON"}


@dataclass(frozen=True)
class Extent:
    """The sizes of a case in one form: of the dispatched dimension, and the others."""

    points: tuple[int, ...]
    top: int
    other: tuple[int, ...]

    def sizes(self, few: bool) -> list[int]:
        """Of every range a size inside and the last one, and if not ``few`` the first."""
        found: set[int] = set()
        start = 2  # a size of one is compiled apart
        for end in [*self.points, self.top]:
            found |= {round(math.sqrt(start * end)) | 1, end} | (set() if few else {start})
            start = end + 1
        return sorted(found)


@dataclass(frozen=True)
class Case:
    """An implementation, called with one tensor that has the size, and others.

    Attributes:
        inputs: Makes the tensors from the size and the other sizes of the extent.
        extents: For a GPU, a CPU and the smallest form.
        dim: The dimension of the first tensor that has the size.
        patches: Inductor's settings on a GPU.
        few: Whether a static compile takes so long that there should be few.
    """

    function: Callable[..., Tensor]
    inputs: Callable[..., tuple[Tensor, ...]]
    extents: Mapping[str, Extent]
    dim: int = 0
    patches: dict[str, Any] = field(default_factory=dict)
    few: bool = False


def softmax(x: Tensor) -> Tensor:
    return x.float().softmax(-1).to(x.dtype)


def rms_norm(x: Tensor) -> Tensor:
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def attention(x: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[tokens, heads, depth] to keys and values [heads, positions, depth]."""
    scores = (x.transpose(0, 1) @ k.mT).float() / math.sqrt(x.shape[-1])
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(0, 1).contiguous()


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    return torch.relu(x @ weight)


CASES = {
    "softmax": Case(
        softmax,
        lambda size, width: (torch.randn(size, width),),
        {
            "cuda": Extent((64, 1024, 16384), 65536, (4096,)),
            "cpu": Extent((16, 256), 2048, (512,)),
            "tiny": Extent((8,), 32, (16,)),
        },
    ),
    "softmax_columns": Case(
        softmax,
        lambda size, rows: (torch.randn(rows, size),),
        {
            "cuda": Extent((256, 2048, 16384), 131072, (512,)),
            "cpu": Extent((64, 1024), 16384, (64,)),
            "tiny": Extent((8,), 32, (16,)),
        },
        dim=1,
    ),
    "rms_norm": Case(
        rms_norm,
        lambda size, width: (torch.randn(size, width),),
        {
            "cuda": Extent((64, 1024, 16384), 65536, (4096,)),
            "cpu": Extent((16, 256), 2048, (512,)),
            "tiny": Extent((8,), 32, (16,)),
        },
    ),
    "attention": Case(
        attention,
        lambda size, heads, depth, positions: (
            torch.randn(size, heads, depth),
            torch.randn(heads, positions, depth),
            torch.randn(heads, positions, depth),
        ),
        {
            "cuda": Extent((16, 256, 2048), 8192, (16, 128, 4096)),
            "cpu": Extent((16, 128), 512, (4, 32, 256)),
            "tiny": Extent((8,), 32, (2, 8, 32)),
        },
    ),
    "matmul": Case(
        matmul,
        lambda size, k, n: (torch.randn(size, k) / math.sqrt(k), torch.randn(k, n)),
        {
            "cuda": Extent((256,), 8192, (4096, 4096)),
            "cpu": Extent((16, 128), 1024, (512, 512)),
            "tiny": Extent((8,), 32, (16, 16)),
        },
        patches=MAX_AUTOTUNE,
        few=True,
    ),
}


class Prepared:
    """One case, compiled in every way for a device, in the form of its sizes that is asked for."""

    def __init__(self, device: str, form: str) -> None:
        self.device, self.form = device, form

    def prepare(self, name: str, sizes: Sequence[int] | None, seconds: float) -> dict[str, Any]:
        """Compile it; static compiles stop after ``seconds``."""
        started = time.monotonic()
        self.case = CASES[name]
        self.extent = self.case.extents[self.form]
        self.patches = self.case.patches if self.device == "cuda" else {}
        wanted = sorted(sizes or self.extent.sizes(self.case.few))
        self.static: dict[int, Any] = {}
        for size in wanted:
            if time.monotonic() - started > 0.6 * seconds:
                break
            self.static[size] = measuring.compiled(
                self.case.function, dynamic=False, options=self.patches
            )
            self.static[size](*self.inputs(size))
        compiled = [*self.static]
        self.dynamic = measuring.compiled(self.case.function, dynamic=True, options=self.patches)
        # With dynamic shapes the first call decides what the code is made for: one in the middle.
        order = [*compiled[len(compiled) // 2 :], *compiled]
        self.ours, branches = self.dispatched(name, order)
        for size in order:
            self.dynamic(*self.inputs(size))
        return {
            "device": measuring.device_name(self.device),
            "torch": torch.__version__,
            "branches": branches,
            "sizes": compiled,
            "skipped": [f"{size}: out of time" for size in wanted if size not in compiled],
            "seconds": time.monotonic() - started,
        }

    def inputs(self, size: int) -> tuple[Tensor, ...]:
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        torch.manual_seed(0)
        with torch.device(self.device):
            tensors = tuple(t.to(dtype) for t in self.case.inputs(size, *self.extent.other))
        for i, tensor in enumerate(tensors):
            for dim in range(tensor.dim()):
                if i or dim != self.case.dim:
                    torch._dynamo.mark_static(tensor, dim)
        return tensors

    def dispatched(self, name: str, sizes: Sequence[int]) -> tuple[Callable[..., Tensor], int]:
        """The implementation with a branch for each range, called at all sizes.

        There are two candidates, which compute the same, since of one nothing would be tuned.
        """
        function = self.case.function

        def same(*tensors: Tensor, number: int) -> Tensor:
            return function(*tensors)

        op = make_op(name, function)
        arguments = op._opoverload._schema.arguments
        with (
            custom_op_autotuning(
                op,
                configs=[
                    CustomOpConfig(same, config_patches=self.patches, number=i) for i in range(2)
                ],
                dispatch_on={
                    "tensor_name": arguments[0].name,
                    "dim": self.case.dim,
                    "range_upper_bound": self.extent.top,
                },
                split_points=list(self.extent.points),
                include_fallback=False,
                check=False,
            ),
            config.patch(force_no_merge=True),  # type: ignore[attr-defined]
            inductor_config.patch(fx_graph_cache=False),
        ):
            compiled = measuring.compiled(lambda *tensors: op(*tensors), dynamic=True)
            for size in sizes:
                compiled(*self.inputs(size))
        return compiled, len(report.plans()[-1].chosen)

    def measure(self, size: int) -> dict[str, Any]:
        """Microseconds and kernels of each rival at a size."""
        inputs = self.inputs(size)
        rivals = {"ours": self.ours, "dynamic": self.dynamic, "static": self.static[size]}
        calls = {name: partial(function, *inputs) for name, function in rivals.items()}
        for call in calls.values():
            call()
        if self.device == "cuda":
            times = measuring.kernel_times(calls, 0.1)
        else:
            times = measuring.budgeted_call_times(calls, 0.3)
        return {
            name: {"us": t.microseconds, "kernels": t.kernels, "spread": t.spread}
            for name, t in times.items()
        }


def make_op(name: str, function: Callable[..., Tensor]) -> Any:
    """A custom op that computes ``function``."""
    op = torch.library.custom_op(f"{LIBRARY}::{name}", function, mutates_args=())
    op.register_fake(lambda x, *others: function(x, *others))
    return op
