"""Processes of a benchmark that compile at the same time, but measure one after the other."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch._inductor.kernel import custom_op


def tune_in_turn(lock: Path) -> None:
    """Have one process at a time measure what to run, while the others compile.

    Stock's way of it and the patch's. Two processes that measure at once choose by chance: a loss
    over a large vocabulary got kernels that took 14 us in one run, and 18 us in the next.
    """
    from torch._inductor.codegen.triton import TritonScheduling
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from torch._inductor.select_algorithm import AlgorithmSelectorCache

    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.open("a")
    depth = 0

    @contextlib.contextmanager
    def alone() -> Iterator[None]:
        nonlocal depth
        if not depth:
            fcntl.flock(file, fcntl.LOCK_EX)
        depth += 1
        try:
            yield
        finally:
            depth -= 1
            if not depth:
                fcntl.flock(file, fcntl.LOCK_UN)

    def in_turn(owner: Any, name: str) -> None:
        measure = getattr(owner, name)

        def measure_alone(*args: Any, **kwargs: Any) -> Any:
            with alone():
                return measure(*args, **kwargs)

        of_class = isinstance(vars(owner).get(name), (classmethod, staticmethod))
        setattr(owner, name, staticmethod(measure_alone) if of_class else measure_alone)

    in_turn(CachingAutotuner, "benchmark_all_configs")
    for name in ("benchmark_in_current_process", "benchmark_in_sub_process"):
        in_turn(AlgorithmSelectorCache, name)
    in_turn(TritonScheduling, "benchmark_codegened_module")
    if patched():
        from torch._inductor.kernel.range_dispatch import tuner
        from torch._inductor.kernel.range_dispatch.row import Row

        in_turn(Row, "measure")
        in_turn(tuner, "choose_configurations")


def patched() -> bool:
    """Whether this process has the patch, not stock."""
    return hasattr(custom_op, "unregister_custom_op_autotuning")
