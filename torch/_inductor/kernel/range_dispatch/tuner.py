"""The grid probe x candidate: every candidate is compiled once, checked and timed at every probe.

A candidate is timed as Inductor would generate it, in a module of its own (see
``benchmark_module``). One that fails at a probe is out there, and one that does not compile or
gives another answer than the op is out everywhere.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._inductor.kernel.range_dispatch import config, progress, triton_configs, worker
from torch._inductor.kernel.range_dispatch.benchmark_module import (
    BenchmarkModule,
    compile_for_benchmark,
    generate_for_benchmark,
    Generated,
)
from torch._inductor.kernel.range_dispatch.call import BoundCall
from torch._inductor.kernel.range_dispatch.candidates import Candidate, invoke
from torch._inductor.kernel.range_dispatch.choosing import Measurement
from torch._inductor.kernel.range_dispatch.compiling import compiled_together
from torch._inductor.kernel.range_dispatch.inputs import (
    InputGenerator,
    make_inputs,
    Point,
    real_tensors,
)
from torch._inductor.kernel.range_dispatch.ranges import Range
from torch._inductor.kernel.range_dispatch.row import described, DeviceLost, Entrant, Row
from torch._inductor.kernel.range_dispatch.sizes import Known
from torch._inductor.kernel.range_dispatch.timing import free_memory, Runner
from torch._inductor.kernel.range_dispatch.verify import Check
from torch._library.utils import is_builtin
from torch._ops import OpOverload
from torch.fx import GraphModule


log = logging.getLogger(__name__)


@dataclass
class Contender:
    """A candidate, with its trace and its benchmark modules once there are any.

    Attributes:
        candidate: The candidate.
        trace: Traces it; see ``graph``.
        modules: The compiled benchmark modules. The first one nearly always serves all probes.
        broken: Why it is out everywhere: it does not compile, or gives another answer.
        branch: The merged range that its modules are generated for; None for all sizes.
        variant: What tells it, in the records, from others of the same candidate.
    """

    candidate: Candidate
    trace: Callable[[], GraphModule]
    modules: list[BenchmarkModule] = field(default_factory=list)
    broken: str | None = None
    branch: Range | None = None
    variant: str = ""

    @functools.cached_property
    def graph(self) -> GraphModule:
        """Its trace over the operands of the call, made when it is first asked for.

        Raises:
            Rejected: It cannot be traced.
        """
        return self.trace()

    def compiled(self, bench: Bench, point: Point) -> BenchmarkModule:
        """A module of it, compiled as if first called at ``point``."""
        candidate, name = self.candidate, _identifier(self.candidate.label)
        return compile_for_benchmark(self.graph, bench.call, point, candidate.config_patches, name)

    def module_at(self, point: Point) -> BenchmarkModule | None:
        """A compiled module that may run at ``point``."""
        return next((module for module in self.modules if module.serves(point)), None)


@dataclass(frozen=True)
class Bench:
    """What the contenders of one call are measured with.

    Attributes:
        call: The call.
        fakes: Its operands as fake tensors.
        generators: The user's input generators by argument name.
        cudagraphs: Whether the user asked for Inductor's timing by CUDA-graph replay.
        tolerances: The user's tolerances by dtype; None where answers are not to be compared.
    """

    call: BoundCall
    fakes: Sequence[Any]
    generators: Mapping[str, InputGenerator]
    cudagraphs: bool = False
    tolerances: Mapping[torch.dtype, float] | None = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the work is done: the first device of an operand that is not the CPU."""
        devices = [f.device for f in self.fakes if isinstance(f, torch.Tensor)]
        return next((d for d in devices if d.type != "cpu"), torch.device("cpu"))


class _NoInputs(Exception):
    """The inputs of a probe could not be made; ``args[0]`` says why."""


def measure(bench: Bench, contenders: Sequence[Contender], point: Point) -> list[Measurement]:
    """Check and time every contender at ``point``, on the same inputs, in turn.

    Returns nothing where no candidate is to blame: the inputs do not fit into memory, or there is
    no process to measure in.

    Raises:
        RuntimeError: A candidate left the device unusable.
    """
    op = bench.call.op
    _ensure_compiled(bench, contenders, point)
    log.info("%s: measuring %d candidates at size %d", op, len(contenders), point.size)
    able = [c for c in contenders if c.broken is None and c.module_at(point) is not None]
    make_row = functools.partial(_row, bench, able, point)
    try:
        with real_tensors([bench.device]):
            apart = config.measure_in_subprocess
            found = worker.measure(make_row) if apart else make_row().measure()
    except _NoInputs as no_inputs:
        why = no_inputs.args[0]
        log.warning("%s: not measured at size %d, since its inputs %s", op, point.size, why)
        free_memory(bench.device)
        return []
    except worker.NotMeasured as reason:
        torch._logging.warning_once(
            log, "%s: not measured in a subprocess, so that the op itself runs: %s", op, str(reason)
        )
        return []
    except DeviceLost as lost:
        raise RuntimeError(
            f"{op}: {able[lost.entrant].candidate.label} left the device unusable when it was "
            f"measured at size {point.size}: {lost}. It must not be registered; with "
            "TORCH_RANGE_DISPATCH_SUBPROCESS=1 it is found out in another process, and left out"
        ) from lost
    for i, contender in enumerate(able):
        if found[i].everywhere:
            contender.broken = found[i].error
        if found[i].error is not None:
            log.info("%s: %s: %s", op, contender.candidate.label, found[i].error)
    measured = {id(contender): found[i] for i, contender in enumerate(able)}
    return [measured.get(id(contender)) or _out(contender) for contender in contenders]


def choose_configurations(bench: Bench, module: BenchmarkModule, points: Sequence[Point]) -> None:
    """Tune the kernels of a module that has been measured again, for all of ``points``.

    What is found is kept for what is generated in the end, see ``triton_configs``; in a process of
    its own a module is tuned once.
    """
    device = bench.device
    if device.type != "cuda" or config.measure_in_subprocess:
        return
    if not triton_configs.may_choose(module.function):
        return

    def call_at(point: Point) -> Runner:
        inputs = make_inputs(bench.call, point, bench.generators)
        return functools.partial(module, point, inputs)

    try:
        with real_tensors([device]):
            triton_configs.choose_again(device, [functools.partial(call_at, p) for p in points])
    except Exception as reason:
        log.debug("%s: kernels stay as they were tuned", bench.call.op, exc_info=reason)
        free_memory(device)


def _row(bench: Bench, contenders: Sequence[Contender], point: Point) -> Row:
    progress.phase("inputs", f"at {point.size}")
    try:
        inputs = make_inputs(bench.call, point, bench.generators)
    except (RuntimeError, MemoryError) as error:
        raise _NoInputs(f"could not be made: {described(error)}") from error
    progress.phase("measure", f"at {point.size}")
    check = Check(bench.call, inputs, bench.tolerances)
    entrants = [_entrant(contender, bench.call, inputs, point) for contender in contenders]
    return Row(bench.device, bench.cudagraphs, point, entrants, inputs, check)


def _entrant(contender: Contender, call: BoundCall, inputs: Sequence[Any], point: Point) -> Entrant:
    module = contender.module_at(point)
    assert module is not None
    candidate = contender.candidate
    alone = functools.partial(invoke, candidate, call, inputs) if call.has_consumers else None
    ops = custom_ops_in(contender.graph)
    return Entrant(candidate.label, module, candidate.is_op, ops, alone)


def _out(contender: Contender) -> Measurement:
    """Of a contender that can't run at any probe, or has no module for this one."""
    everywhere = contender.broken is not None
    why = contender.broken or "it has no benchmark module"
    return Measurement(contender.candidate.label, math.inf, 0.0, why, everywhere)


def _ensure_compiled(bench: Bench, contenders: Sequence[Contender], point: Point) -> None:
    """Compile what has no module for ``point`` yet: all kernels at once, then wait for them."""

    def give_up(contender: Contender, error: Exception) -> None:
        contender.broken = f"it does not compile: {described(error)}"
        log.info("%s: %s: %s", bench.call.op, contender.candidate.label, contender.broken)
        log.debug("benchmark module of %s", contender.candidate.label, exc_info=error)

    missing = [c for c in contenders if c.broken is None and c.module_at(point) is None]
    with compiled_together() as finish:
        for contender in missing:
            log.info("%s: compiling %s", bench.call.op, contender.candidate.label)
            progress.phase("compile", contender.candidate.label)
            try:
                contender.modules.append(_compile(bench, contender, point))
            except Exception as error:
                give_up(contender, error)
        for contender in missing:
            try:
                if contender.broken is None:
                    finish(contender.modules[-1].function)
            except Exception as error:
                give_up(contender, error)


def _compile(bench: Bench, contender: Contender, point: Point) -> BenchmarkModule:
    return contender.compiled(bench, point)


def generate(
    bench: Bench, contender: Contender, point: Point, known: Known | None = None
) -> Generated:
    """The code of a benchmark module, for a branch in which something is ``known``."""
    patches, name = contender.candidate.config_patches, _identifier(contender.candidate.label)
    return generate_for_benchmark(contender.graph, bench.call, point, patches, name, known)


def _identifier(label: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in label)


def custom_ops_in(graph: GraphModule) -> tuple[str, ...]:
    """Names of the operators in ``graph`` that are not PyTorch's own, as ``ns.name.overload``."""
    targets = {
        node.target
        for level in graph.modules()
        if isinstance(level, GraphModule)
        for node in level.graph.nodes
        if node.op == "call_function" and isinstance(node.target, OpOverload)
    }
    return tuple(sorted(str(target) for target in targets if not is_builtin(target)))
