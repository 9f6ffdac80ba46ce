"""The ops that the benchmarks tune, each in any number of variants.

RMSNorm over [tokens, hidden] stays fused with its neighbours; its variants are close. A skinny
matmul [rows, depth] @ [depth, columns] has variants that are good at a few rows only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning


EPS = 1e-6
MOST_VARIANTS = 8

Operands = tuple[torch.Tensor, torch.Tensor]


@torch.library.custom_op("range_dispatch_benchmark::rms_norm", mutates_args=())
def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * weight


@rms_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def norm_plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One reduction over the row, fused with the scaling."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * weight


def norm_blocks(x: torch.Tensor, weight: torch.Tensor, blocks: int = 2) -> torch.Tensor:
    """Means of blocks of the row first: more parallel work when there are few rows."""
    x32 = x.float()
    partial = x32.square().unflatten(-1, (blocks, -1)).mean(-1)
    scale = torch.rsqrt(partial.mean(-1, keepdim=True) + EPS)
    return (x32 * scale).to(x.dtype) * weight


def variants(count: int) -> list[CustomOpConfig]:
    """The first ``count`` of the implementations of RMSNorm, at most ``MOST_VARIANTS``."""
    blocks = [CustomOpConfig(norm_blocks, blocks=2**i) for i in range(1, MOST_VARIANTS)]
    return [CustomOpConfig(norm_plain), *blocks][:count]


@torch.library.custom_op("range_dispatch_benchmark::skinny_mm", mutates_args=())
def skinny_mm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


@skinny_mm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


def mm_split_k(x: torch.Tensor, weight: torch.Tensor, splits: int) -> torch.Tensor:
    """The products of parts of the depth side by side, then their sum."""
    parts = x.unflatten(1, (splits, -1)).transpose(0, 1) @ weight.unflatten(0, (splits, -1))
    return parts.sum(0)


def mm_as_sum(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A pointwise product and its sum: no matmul, good at one or two rows."""
    return (x.unsqueeze(-1) * weight.unsqueeze(0)).sum(1)


def mm_variants(count: int) -> list[CustomOpConfig]:
    splits = [CustomOpConfig(mm_split_k, splits=2**i) for i in range(2, MOST_VARIANTS)]
    return [CustomOpConfig(torch.mm), CustomOpConfig(mm_as_sum), *splits][:count]


def split_points(ranges: int, top: int) -> list[int]:
    """The points that cut the sizes up to ``top`` into ranges, each half as long as the next."""
    return sorted({max(1, top >> i) for i in range(1, ranges)})


@dataclass(frozen=True)
class Op:
    """An op, its implementations and its operands.

    Attributes:
        call: The op.
        variants: The first so many of its implementations.
        top: The size of the last range's probe.
        top_on_cpu: The same on a CPU.
        depth: The size of what is reduced.
        columns: Columns of the second operand; None where it has none.
    """

    call: Any
    variants: Callable[[int], list[CustomOpConfig]]
    top: int
    top_on_cpu: int
    depth: int
    columns: int | None = None

    def register(self, count: int, points: list[int], top: int, **options: Any) -> None:
        """Register ``count`` implementations, dispatched on the rows where there are points."""
        if points:
            where = {"tensor_name": "x", "dim": 0, "range_upper_bound": top}
            options = {"dispatch_on": where, "split_points": points, **options}
        register_custom_op_autotuning(self.call, configs=self.variants(count), **options)

    def inputs(self, rows: int, device: str, small: bool = False) -> Operands:
        """Operands; only the rows are to be dynamic. Small ones have a quarter of the depth.

        Of bfloat16 on a GPU, and of float32 on a CPU.
        """
        depth = self.depth // 4 if small else self.depth
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        x = torch.randn(rows, depth, device=device, dtype=dtype)
        shape = (depth,) if self.columns is None else (depth, self.columns)
        weight = torch.randn(shape, device=device, dtype=dtype)
        torch._dynamo.mark_static(x, 1)
        torch._dynamo.mark_static(weight)
        return x, weight


OPS = {
    "rms_norm": Op(rms_norm, variants, 16384, 1024, 4096),
    "skinny_mm": Op(skinny_mm, mm_variants, 1024, 256, 8192, 64),
}


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
