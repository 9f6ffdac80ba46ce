#!/usr/bin/env python3
"""Serving: a decode loop whose batch grows, in one compiled graph.

Requests join while others are being answered, so the number of rows of every layer changes from
step to step. (Dynamo compiles a size of 1 on its own, as it always does.) Run it with
``python3 tools/dev.py python tools/examples/decode_loop.py``.
"""

from __future__ import annotations

import argparse

from skinny import CONFIGS, fixed, skinny_mm

import torch
from torch._dynamo.utils import counters
from torch._inductor.kernel.custom_op import custom_op_autotuning
from torch._inductor.kernel.range_dispatch.report import explain


class Layer(torch.nn.Module):
    """A gated feed-forward layer, the part of a decoder where the rows are few."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up = torch.nn.Parameter(torch.randn(hidden, 2 * hidden) / hidden**0.5)
        self.down = torch.nn.Parameter(torch.randn(2 * hidden, hidden) / (2 * hidden) ** 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + skinny_mm(torch.nn.functional.silu(skinny_mm(x, self.up)), self.down)


def main(hidden: int = 256, batches: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128)) -> int:
    """Decode with each of ``batches``; how many graphs were compiled for that."""
    torch.manual_seed(0)
    model = Layer(hidden)
    with (
        torch.no_grad(),
        custom_op_autotuning(
            skinny_mm,
            configs=CONFIGS,
            dispatch_on={"tensor_name": "a", "dim": 0, "range_upper_bound": 128},
            split_points=[2, 16],
        ),
    ):
        compiled = torch.compile(model, dynamic=True, fullgraph=True)
        before = counters["stats"]["unique_graphs"]
        for batch in (5, *batches):  # the first size is one of many, and not special
            tokens = fixed(torch.randn(batch, hidden), 1)
            torch.testing.assert_close(compiled(tokens), model(tokens), rtol=1e-4, atol=1e-4)
        graphs = counters["stats"]["unique_graphs"] - before
        print(explain(compiled))
    print(f"\n{len(batches) + 1} batch sizes, {graphs} graph")
    return graphs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=256)
    main(parser.parse_args().hidden)
