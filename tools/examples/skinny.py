"""The op that the examples share: a product with few rows, and what can compute it."""

from __future__ import annotations

import torch
from torch._inductor.kernel.custom_op import CustomOpConfig


@torch.library.custom_op("range_dispatch_examples::skinny_mm", mutates_args=())
def skinny_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``[rows, k] @ [k, n]``, where only the rows change from call to call."""
    return a @ b


@skinny_mm.register_fake
def _(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(
    ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = ctx.saved_tensors
    return skinny_mm(grad, b.t()), a.t() @ grad


skinny_mm.register_autograd(_backward, setup_context=_keep)


def plain(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The library's product, where Inductor can fuse what follows into it."""
    return torch.mm(a, b)


def split_k(a: torch.Tensor, b: torch.Tensor, k_splits: int) -> torch.Tensor:
    """``k_splits`` products over a part of k each, then their sum."""
    parts = a.unflatten(1, (k_splits, -1)).transpose(0, 1) @ b.unflatten(0, (k_splits, -1))
    return parts.sum(0)


def as_sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply and add up: one fused reduction, without a call of a library."""
    return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)


CONFIGS = [CustomOpConfig(plain), CustomOpConfig(split_k, k_splits=4), CustomOpConfig(as_sum)]


def fixed(tensor: torch.Tensor, *dims: int) -> torch.Tensor:
    """``tensor``, whose ``dims`` the compiler may take for constants although all else changes."""
    for dim in dims:
        torch._dynamo.mark_static(tensor, dim)
    return tensor
