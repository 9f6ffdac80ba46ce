#!/usr/bin/env python3
"""Training: the forward and the backward graph are each dispatched for their own sizes.

The last batch of an epoch is smaller than the others, and the sequences differ in length. Run it
with ``python3 tools/dev.py python tools/examples/training_step.py``.
"""

from __future__ import annotations

from skinny import CONFIGS, fixed, skinny_mm

import torch
from torch._inductor.kernel.custom_op import custom_op_autotuning
from torch._inductor.kernel.range_dispatch.report import explain


def loss_of(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (skinny_mm(x, weight).relu() - target).square().mean()


def main(features: int = 128, steps: int = 12) -> list[float]:
    """Train for ``steps`` steps; the losses."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(features, features) / features**0.5)
    answer = torch.randn(features, features) / features**0.5
    optimizer = torch.optim.AdamW([weight], lr=0.03)
    losses = []
    with custom_op_autotuning(
        skinny_mm,
        configs=CONFIGS,
        dispatch_on={"tensor_name": "a", "dim": 0, "range_upper_bound": 256},
        split_points=[16, 64],
    ):
        compiled = torch.compile(loss_of, dynamic=True, fullgraph=True)
        for step in range(steps):
            rows = (48, 12, 200)[step % 3]  # a range each
            x = fixed(torch.randn(rows, features, requires_grad=True), 1)
            target = fixed((x @ answer).relu().detach(), 1)
            eager = torch.autograd.grad(loss_of(x, weight, target), weight)[0]
            optimizer.zero_grad()
            loss = compiled(x, weight, target)
            loss.backward()
            torch.testing.assert_close(weight.grad, eager, rtol=1e-3, atol=1e-5)
            optimizer.step()
            losses.append(loss.item())
        print(explain(compiled))
    print(f"\nloss {losses[0]:.3f} -> {losses[-1]:.3f}, gradients as in eager mode")
    return losses


if __name__ == "__main__":
    main()
