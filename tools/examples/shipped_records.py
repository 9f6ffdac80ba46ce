#!/usr/bin/env python3
"""Shipping tuning records: measured once here, looked up on every other machine of the kind.

A folder of JSON files goes into the repository of the model. Where its records fit (the same op,
kind of device and PyTorch release) nothing is measured, and what runs is what was tested. Run it
with ``python3 tools/dev.py python tools/examples/shipped_records.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from skinny import CONFIGS, fixed, skinny_mm

import torch
from torch._inductor.kernel.custom_op import custom_op_autotuning
from torch._inductor.kernel.range_dispatch import records
from torch._inductor.kernel.range_dispatch.plan import Plan
from torch._inductor.kernel.range_dispatch.report import explain
from torch._inductor.utils import fresh_cache


def compile_on_a_machine(shipped: Path) -> Plan:
    """Compile where Inductor's cache is empty, as on a machine that has never seen the model."""
    records.forget()
    torch._dynamo.reset()
    with (
        fresh_cache(),
        torch.no_grad(),
        custom_op_autotuning(
            skinny_mm,
            configs=CONFIGS,
            dispatch_on={"tensor_name": "a", "dim": 0, "range_upper_bound": 64},
            split_points=[4],
            records=shipped,
        ),
    ):
        compiled = torch.compile(lambda a, b: skinny_mm(a, b).relu(), dynamic=True)
        b = fixed(torch.randn(128, 64), 0, 1)
        for rows in (3, 40):
            a = fixed(torch.randn(rows, 128), 1)
            torch.testing.assert_close(compiled(a, b), (a @ b).relu(), rtol=1e-4, atol=1e-4)
        return explain(compiled)[-1]


def main() -> tuple[Plan, Plan]:
    """Tune on one machine and compile on another; both plans."""
    with tempfile.TemporaryDirectory() as folder:
        shipped = Path(folder, "model", "tuning")
        first = compile_on_a_machine(shipped)
        files = ", ".join(file.name for file in shipped.glob("*.json"))
        second = compile_on_a_machine(shipped)
    print(f"{first}\n\nshipped: {files}\n\n{second}")
    return first, second


if __name__ == "__main__":
    main()
