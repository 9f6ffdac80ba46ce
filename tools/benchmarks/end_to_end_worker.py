"""One process of end_to_end.py: compiles and measures functions of one workload, as it is asked."""

from __future__ import annotations

import bisect
import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import measuring
from end_to_end_workloads import Choice, make_tensors, Workload, WORKLOADS
from in_turn import patched, tune_in_turn
from workers import reason, Reply, serve

import torch
import torch._functorch.config as functorch_config
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config
from torch._inductor.async_compile import CompiledTritonKernels
from torch._inductor.codecache import PyCodeCache
from torch._inductor.kernel import custom_op


Function = Callable[..., Any]

# Relative to the root mean square; what is further off computes something else.
TOLERANCES = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-3}
# What one measurement of one function may take, about, and its calls at most.
GPU_SECONDS, GPU_CALLS = 0.06, 360
CPU_SECONDS = 0.3
# Other processes may hold memory for a moment while all compile.
TRIES = 3


class Session:
    """The functions of one workload, by key, and what can be asked about them."""

    def __init__(self) -> None:
        self.functions: dict[str, Function] = {}
        self.inputs_at: tuple[int, tuple[Tensor, ...]] = (0, ())

    def handle(self, request: Reply) -> Reply:
        actions: dict[str, Callable[..., Reply]] = {
            "start": self.start,
            "build": self.build,
            "measure": self.measure,
        }
        with torch.no_grad():
            return actions[request.pop("do")](**request)

    def start(
        self,
        workload: str,
        device: str,
        form: str,
        dtype: str,
        points: list[int],
        probes: list[int],
        top: int,
    ) -> Reply:
        self.workload: Workload = WORKLOADS[workload]
        self.device, self.points, self.top = device, points, top
        self.probes = probes if patched() else []
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.dimensions = self.workload.dimensions[form]
        weights = self.workload.weights
        self.weights = make_tensors(lambda: weights(self.dimensions), device, self.dtype, 0)
        if device == "cuda":
            measuring.marker_name()  # takes a second, now in all processes at the same time
        tune_in_turn(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "tuning.lock")
        return {
            "device": measuring.device_name(device),
            "torch": torch.__version__,
            "patched": patched(),
            "choices": self.workload.choices(),
            "most_tokens": [
                min(self.workload.most_tokens(c), 1e9) for c in self.workload.choices()
            ],
        }

    def inputs(self, size: int) -> tuple[Tensor, ...]:
        if self.inputs_at[0] != size:
            self.inputs_at = (0, ())
            made, dimensions = self.workload.inputs, self.dimensions
            tensors = make_tensors(lambda: made(size, dimensions), self.device, self.dtype, 1)
            self.inputs_at = size, tensors
        return (*self.inputs_at[1], *self.weights)

    # --- building ---

    def build(self, key: str, kind: str, sizes: list[int], **details: Any) -> Reply:
        """Make a function and call it at ``sizes``, so that all it needs is compiled."""
        started, graphs = time.perf_counter(), counters["stats"]["unique_graphs"]
        plans = len(self.plans())
        for left in reversed(range(TRIES)):
            try:
                self._build(key, kind, sizes, **details)
                break
            except torch.cuda.OutOfMemoryError:
                if not left:
                    raise
            self.free_memory()
            time.sleep(2)
        self.free_memory()
        return {
            "seconds": time.perf_counter() - started,
            "graphs": counters["stats"]["unique_graphs"] - graphs,
            "plans": [str(plan) for plan in self.plans()[plans:]],
        }

    def _build(
        self, key: str, kind: str, sizes: list[int], practice: bool = False, **details: Any
    ) -> None:
        makers: dict[str, Callable[..., Function]] = {
            "static": self.static,
            "dynamic": self.dynamic,
            "tuned": self.tuned,
            "python": self.python,
            "eager": lambda: self.workload.with_ops(),
        }
        with tuning(practice) if kind == "tuned" else contextlib.nullcontext():
            function = makers[kind](**details)
            for size in sizes:
                function(*self.inputs(size))
        measuring.synchronize()
        if practice:
            # What is compiled stays on the disk, but is tuned again: others were busy meanwhile.
            PyCodeCache.cache_clear()
            CompiledTritonKernels.cache_clear()
        else:
            self.functions[key] = function

    def static(self, choice: Choice) -> Function:
        return measuring.compiled(self.workload.chosen(choice), dynamic=False)

    def dynamic(self, choice: Choice) -> Function:
        return measuring.compiled(self.workload.chosen(choice), dynamic=True)

    def tuned(self) -> Function:
        """The ops themselves, tuned by the patch, or by stock where this process has that."""
        for op in self.workload.ops.values():
            op.register(self.points, self.top, self.probes)
        return measuring.compiled(self.workload.with_ops(), dynamic=True)

    def python(self, choices: list[Choice], first: list[int]) -> Function:
        """A Python ``if`` over a function for each range, each first called at a size of its."""
        ranges = [self.dynamic(choice) for choice in choices]
        for function, size in zip(ranges, first, strict=True):
            function(*self.inputs(size))
        points = self.points

        def choose(x: Tensor, *others: Tensor) -> Any:
            return ranges[bisect.bisect_left(points, x.shape[0])](x, *others)

        return choose

    def plans(self) -> Sequence[Any]:
        if not patched():
            return ()
        from torch._inductor.kernel.range_dispatch import report

        return report.plans()

    def free_memory(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    # --- measuring ---

    def measure(self, keys: list[str], size: int, final: bool) -> Reply:
        """Times of functions at a size, the rest in ``errors``.

        On a GPU ``microseconds`` is the time of the kernels, and ``host`` that of the call. What
        is ``final`` is measured longer, and its results are checked.
        """
        inputs = self.inputs(size)
        reference = self.workload.with_ops()(*inputs) if final else None
        ready: dict[str, Callable[[], Any]] = {}
        errors: dict[str, str] = {}
        times: dict[str, Reply] = {}
        for key in keys:
            try:
                function = self.functions[key]
                result = function(*inputs)
                times[key] = {}
                if final:
                    times[key]["error"] = measuring.relative_error(result, reference)
                    times[key]["wrong"] = times[key]["error"] > TOLERANCES[self.dtype]
                del result
                ready[key] = partial(function, *inputs)
            except Exception as error:
                errors[key] = reason(error)
        del reference
        for key, found in self._times(ready, final).items():
            times[key] |= found
        self.free_memory()
        return {"times": {key: times[key] for key in ready}, "errors": errors}

    def _times(self, ready: dict[str, Callable[[], Any]], final: bool) -> dict[str, Reply]:
        if not ready:
            return {}
        share = 1.0 if final else 0.3
        if self.device != "cuda":
            found = measuring.budgeted_call_times(ready, share * CPU_SECONDS)
            return {key: asdict(time) for key, time in found.items()}
        kernels = measuring.kernel_times(ready, share * GPU_SECONDS, int(share * GPU_CALLS))
        times = {key: asdict(time) for key, time in kernels.items()}
        if final:
            slowest = max(time.microseconds for time in kernels.values())
            calls = max(3, min(20, int(GPU_SECONDS * 1e6 / slowest)))
            hosts = measuring.call_times(ready, calls=1, rounds=5, batches=calls)
            for key, host in hosts.items():
                times[key]["host"] = host.microseconds
                times[key]["launched"] = launched(ready[key])
        return times


def launched(call: Callable[[], Any]) -> list[str]:
    """The kernels of Triton's that a call launches, each with its configuration."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    found: list[str] = []
    run = CachingAutotuner.run

    def run_seen(self: CachingAutotuner, *args: Any, **kwargs: Any) -> Any:
        result = run(self, *args, **kwargs)
        name = self.inductor_meta.get("kernel_name", "")
        found.append(f"{name}: {', '.join(str(each.config) for each in self.launchers)}")
        return result

    CachingAutotuner.run = run_seen
    try:
        call()
    finally:
        CachingAutotuner.run = run
    return found


@contextlib.contextmanager
def tuning(practice: bool) -> Any:
    """Nothing comes from a compile cache but kernels; practice leaves nothing but those."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(inductor_config.patch(fx_graph_cache=False))
        stack.enter_context(functorch_config.patch(enable_autograd_cache=False))
        if practice and patched():
            from torch._inductor.kernel.range_dispatch import config

            stack.enter_context(config.patch(use_records=False))  # type: ignore[attr-defined]
        yield


def main() -> None:
    wanted = os.environ.get("TORCH_RANGE_DISPATCH") != "0"
    if patched() != wanted:
        sys.exit(f"the patch is {'not ' if wanted else ''}in effect: {custom_op.__file__}")
    # The constants of an implementation are constants for every rival, not sizes or inputs.
    torch._dynamo.config.specialize_int = True
    torch._dynamo.config.specialize_float = True
    # Triton's configurations that were chosen while all processes compiled are left to chance.
    inductor_config.autotune_local_cache = False
    serve(Session().handle)


if __name__ == "__main__":
    main()
