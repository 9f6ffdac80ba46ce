#!/usr/bin/env python3
"""Tune two real ops on this machine, show what was chosen and why, and check the answers.

RMSNorm over [tokens, hidden] is dispatched on its tokens; a skinny matmul [rows, k] @ [k, n] with
split-K variants on its rows. Run it with ``python3 tools/dev.py demo``.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._inductor import config as inductor_config
from torch._inductor.kernel.custom_op import (
    CustomOpConfig,
    register_custom_op_autotuning,
    unregister_custom_op_autotuning,
)
from torch._inductor.kernel.range_dispatch import report
from torch._inductor.utils import fresh_cache, run_and_get_code


EPS = 1e-6


@torch.library.custom_op("range_dispatch_demo::rms_norm", mutates_args=())
def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + EPS)
    return (x32 * scale).to(x.dtype) * weight


@rms_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def norm_by_mean(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One reduction over the row, fused with the scaling."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * weight


def norm_in_blocks(x: torch.Tensor, weight: torch.Tensor, blocks: int = 8) -> torch.Tensor:
    """Partial sums of blocks of the row first: more parallel work when there are few rows."""
    x32 = x.float()
    partial = x32.square().unflatten(-1, (blocks, -1)).sum(-1)
    scale = torch.rsqrt(partial.sum(-1, keepdim=True) / x.shape[-1] + EPS)
    return (x32 * scale).to(x.dtype) * weight


def norm_by_matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The sum of squares as a matrix-vector product."""
    x32 = x.float()
    ones = torch.ones(x.shape[-1], 1, device=x.device)
    scale = torch.rsqrt((x32.square() @ ones) / x.shape[-1] + EPS)
    return (x32 * scale).to(x.dtype) * weight


@torch.library.custom_op("range_dispatch_demo::skinny_mm", mutates_args=())
def skinny_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


@skinny_mm.register_fake
def _(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def mm_plain(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


def mm_split_k(a: torch.Tensor, b: torch.Tensor, k_splits: int = 4) -> torch.Tensor:
    """``k_splits`` products over a part of k each, then their sum."""
    parts = a.unflatten(1, (k_splits, -1)).transpose(0, 1) @ b.unflatten(0, (k_splits, -1))
    return parts.float().sum(0).to(a.dtype)


def mm_as_sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply and add up: one fused reduction, no call of a library."""
    return (a.unsqueeze(2).float() * b.unsqueeze(0).float()).sum(1).to(a.dtype)


@dataclass(frozen=True)
class Case:
    """One op of the demo: what to register, and what to run it on."""

    title: str
    op: Any
    configs: list[CustomOpConfig]
    tensor_name: str
    split_points: list[int]
    upper_bound: int
    inputs: Callable[[int], tuple[torch.Tensor, ...]]


def static(tensor: torch.Tensor, *dims: int) -> torch.Tensor:
    """Sizes of weights do not change; with ``dynamic=True`` the compiler has to be told."""
    for dim in dims:
        torch._dynamo.mark_static(tensor, dim)
    return tensor


def cases(device: str) -> list[Case]:
    gpu = device != "cpu"
    dtype = torch.bfloat16 if gpu else torch.float32
    hidden, k, n = (4096, 8192, 4096) if gpu else (1024, 8192, 64)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, device=device)

    def rows(count: int, width: int) -> torch.Tensor:
        return static(tensor(count, width), 1)

    weight, b = static(tensor(hidden), 0), static(tensor(k, n) / k**0.5, 0, 1)
    return [
        Case(
            f"RMSNorm over [tokens, {hidden}]",
            rms_norm,
            [
                CustomOpConfig(norm_by_mean),
                CustomOpConfig(norm_in_blocks, blocks=8),
                CustomOpConfig(norm_by_matmul),
            ],
            "x",
            [16, 256, 2048],
            16384 if gpu else 4096,
            lambda tokens: (rows(tokens, hidden), weight),
        ),
        Case(
            f"matmul [rows, {k}] @ [{k}, {n}]",
            skinny_mm,
            [
                CustomOpConfig(mm_plain),
                CustomOpConfig(mm_split_k, k_splits=4 if gpu else 16),
                CustomOpConfig(mm_split_k, k_splits=16 if gpu else 64),
                CustomOpConfig(mm_as_sum),
            ],
            "a",
            [1, 16, 128] if gpu else [4, 64, 256],
            1024,
            lambda count: (rows(count, k), b),
        ),
    ]


def run(case: Case, device: str) -> bool:
    """Compile, show and check one case; whether all answers are right."""
    print(f"\n=== {case.title}, split points {case.split_points} ===", flush=True)
    register_custom_op_autotuning(
        case.op,
        configs=case.configs,
        dispatch_on={
            "tensor_name": case.tensor_name,
            "dim": 0,
            "range_upper_bound": case.upper_bound,
        },
        split_points=case.split_points,
    )

    def model(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return case.op(x, w)

    compiled = torch.compile(model, dynamic=True)
    example = case.inputs(case.split_points[-1] - 1)
    started = time.perf_counter()
    with Progress(started):
        _, codes = run_and_get_code(compiled, *example)
    print(f"\n{report.plans(case.op._opoverload.name())[-1]}")
    print("generated dispatch:")
    print("\n".join(f"  {line}" for line in dispatch_lines(codes[-1])) or "  none: one winner")
    right = check(case, compiled)
    unregister_custom_op_autotuning(case.op)
    return right


def dispatch_lines(code: str) -> list[str]:
    """The lines of the generated wrapper that choose a branch, and the calls in the branches."""
    body = code[code.index("def call(") :] if "def call(" in code else code
    pattern = re.compile(r"^\s*(if|elif) \w[\w *+/]* <= \d+:|^\s*else:$|_selector = ")
    nested = [line for line in code.splitlines() if pattern.search(line)]
    own = [line for line in body.splitlines() if pattern.search(line)]
    return [line.strip() for line in (nested if len(nested) > len(own) else own)]


def check(case: Case, compiled: Callable[..., torch.Tensor]) -> bool:
    """Compare with the op itself at each end, one above it, and inside; nothing may recompile."""
    ends = [*case.split_points, case.upper_bound]
    inside = [(low + high) // 2 for low, high in zip([1, *ends], ends, strict=False)]
    sizes = sorted({s for e in ends for s in (e, e + 1)} | {s for s in inside if s > 1})
    wrong = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in sizes:
            if size == 1:
                continue  # torch.compile specializes on 1: a graph of its own, checked below
            args = case.inputs(size)
            if not close(compiled(*args), case.op(*args)):
                wrong.append(size)
    args = case.inputs(1)
    if not close(compiled(*args), case.op(*args)):
        wrong.append(1)
    print(f"checked against the op at sizes {[1, *[s for s in sizes if s != 1]]}: ", end="")
    print(f"WRONG at {wrong}" if wrong else "all equal, no recompile above size 1")
    return not wrong


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    tolerance = 2e-2 if expected.dtype == torch.bfloat16 else 1e-4
    return torch.allclose(actual, expected, rtol=tolerance, atol=tolerance)


class Progress(logging.Handler):
    """Prints what the tuner decides, while it works, with the seconds since the start."""

    def __init__(self, started: float) -> None:
        super().__init__(logging.INFO)
        self.started = started
        self.loggers = [
            logging.getLogger(f"torch._inductor.kernel.{name}")
            for name in ("custom_op", "range_dispatch.tuner")
        ]

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "\n" not in message:
            print(f"  {time.perf_counter() - self.started:6.1f} s  {message}", flush=True)

    def __enter__(self) -> Progress:
        self.before = [(logger.level, logger.propagate) for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.INFO)
            logger.propagate = False
            logger.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        for logger, (level, propagate) in zip(self.loggers, self.before, strict=True):
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", help="cpu or cuda; a GPU is used by default if there is one")
    args = parser.parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = (
        torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    )
    print(f"torch {torch.__version__} on {device} ({name})")
    torch.manual_seed(0)
    with (
        tempfile.TemporaryDirectory() as folder,
        fresh_cache(dir=folder),
        inductor_config.patch(fx_graph_cache=False),
    ):
        results = [run(case, device) for case in cases(device)]
    print("\nall answers right" if all(results) else "\nWRONG ANSWERS, see above")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
