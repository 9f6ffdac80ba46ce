#!/usr/bin/env python3
"""Shipping a compiled model: tuned and packaged here, loaded where none of this is installed.

The package holds the dispatch as compiled C++. The process that loads it registers nothing, needs
neither this patch nor a compiler, and measures nothing. Run it with
``python3 tools/dev.py python tools/examples/exported_package.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from skinny import CONFIGS, skinny_mm

import torch
from torch._inductor.kernel.custom_op import custom_op_autotuning
from torch._inductor.kernel.range_dispatch.report import explain


LOADER = """
import sys, torch
run = torch._inductor.aoti_load_package(sys.argv[1])
weight = torch.load(sys.argv[2])
for rows in (2, 4, 5, 60):
    x = torch.randn(rows, weight.shape[0])
    torch.testing.assert_close(run(x), (x @ weight).relu(), rtol=1e-4, atol=1e-4)
assert "torch._inductor.kernel.range_dispatch" not in sys.modules
print("right at 2, 4, 5 and 60 rows")
"""


class Model(torch.nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(features, features) / features**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return skinny_mm(x, self.weight).relu()


def main(features: int = 64) -> str:
    """Package a model and load it in another process; what that process says."""
    torch.manual_seed(0)
    model = Model(features).eval()
    rows = torch.export.Dim("rows", min=2, max=64)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        package, weight = Path(folder, "model.pt2"), Path(folder, "weight.pt")
        torch.save(model.weight.detach(), weight)
        example = torch.randn(8, features)
        program = torch.export.export(model, (example,), dynamic_shapes={"x": {0: rows}})
        with custom_op_autotuning(
            skinny_mm,
            # The op's own kernel is Python, which a package cannot call: it does not compete.
            configs=CONFIGS,
            include_fallback=False,
            dispatch_on={"tensor_name": "a", "dim": 0, "range_upper_bound": 64},
            split_points=[4],
        ):
            torch._inductor.aoti_compile_and_package(program, package_path=str(package))
            print(explain(skinny_mm))
        variables = {**os.environ, "TORCH_RANGE_DISPATCH": "0"}
        done = subprocess.run(
            [sys.executable, "-c", LOADER, str(package), str(weight)],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    print(done.stdout, end="")
    return done.stdout


if __name__ == "__main__":
    main()
