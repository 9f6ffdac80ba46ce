"""The op that the benchmarks tune: RMSNorm over [tokens, hidden], in any number of variants."""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor.kernel.custom_op import CustomOpConfig, register_custom_op_autotuning


EPS = 1e-6
MOST_VARIANTS = 8


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
    """The first ``count`` of the implementations, at most ``MOST_VARIANTS``."""
    blocks = [CustomOpConfig(norm_blocks, blocks=2**i) for i in range(1, MOST_VARIANTS)]
    return [CustomOpConfig(norm_plain), *blocks][:count]


def split_points(ranges: int, top: int) -> list[int]:
    """The points that cut the sizes up to ``top`` into ranges, each half as long as the next."""
    return sorted({max(1, top >> i) for i in range(1, ranges)})


def register(count: int, points: list[int], top: int, **options: Any) -> None:
    """Register ``count`` implementations, dispatched on the tokens where there are points."""
    if points:
        where = {"tensor_name": "x", "dim": 0, "range_upper_bound": top}
        options = {"dispatch_on": where, "split_points": points, **options}
    register_custom_op_autotuning(rms_norm, configs=variants(count), **options)


def inputs(tokens: int, hidden: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands of the op; only the tokens are to be dynamic."""
    x = torch.randn(tokens, hidden, device=device)
    weight = torch.randn(hidden, device=device)
    torch._dynamo.mark_static(x, 1)
    torch._dynamo.mark_static(weight, 0)
    return x, weight


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
