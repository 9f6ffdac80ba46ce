"""Triton's configurations: chosen well where candidates are measured, and kept for what runs.

Inductor gives a kernel on a GPU some configurations (block sizes, warps), and its first call takes
the fastest. It launches each by itself, with events around the launch: where that takes longer
than the kernel, it is the host that is timed. Of three tunings of a split-K matmul on an H100, one
got a configuration that took 47 us at 1024 rows, the others one that took 9. So in benchmark
modules configurations are timed as candidates are, by replaying a CUDA graph.

What runs in the end, in a branch or inlined, often has kernels of the same source as the module
that was measured, but for their names and the sizes that they are hinted to be for. Those are
generated with the configuration that was found: what runs is what was measured, whatever size comes
first, and no call has to tune it. A kernel that came out otherwise, as one that reads what is
computed around the op, is tuned at its first call as ever.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import logging
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TYPE_CHECKING

import torch
from torch._inductor.codecache import code_hash, get_path
from torch._inductor.kernel.range_dispatch import records
from torch._inductor.kernel.range_dispatch.timing import replayed_milliseconds
from torch._inductor.kernel.range_dispatch.trace import first_line
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.virtualized import V


if TYPE_CHECKING:
    from torch._inductor.graph import GraphLowering


log = logging.getLogger(__name__)

# A configuration: block sizes, warps, stages, as Triton names them.
Configuration = dict[str, Any]

# What Inductor chooses among configurations for by size alone. Other kernels (templates, the
# user's, splits that cooperate) may need more than a configuration.
_HEURISTICS = {"pointwise", "reduction", "persistent_reduction"}
_GRIDS = {"Grid1D", "Grid2D", "Grid3D", "Grid2DWithYZOverflow"}

# What is left of the arguments of a heuristic.
_KEPT = ("filename", "triton_meta", "inductor_meta")

_HINTS = re.compile(r"size_hints=(\{[^{}]*\})")
_ARE_HINTS = re.compile(r"none|\w+=\d+(?: \w+=\d+)*")
# Settings of benchmark modules, and what follows from the hints.
_NO_PART = re.compile(
    r"'autotune_(?:local|remote)_cache': \w+, |(?:, )?'tiling_scores': (?:\{[^{}]*\}|None)"
)

# By a kernel's digest, then by hints.
_chosen: dict[str, dict[str, Configuration]] = {}


@contextlib.contextmanager
def timed_by_replay(device: torch.device) -> Iterator[None]:
    """Inside, kernels that choose among configurations time them by replay, and are remembered."""
    if device.type != "cuda":
        yield
        return
    from torch._inductor.runtime import triton_heuristics
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    stock, bench = triton_heuristics.benchmarker, CachingAutotuner.bench
    side = torch.cuda.Stream(device)
    tuned: dict[int, CachingAutotuner] = {}

    def bench_aside(self: CachingAutotuner, *args: Any, **kwargs: Any) -> Any:
        tuned[id(self)] = self
        # What is captured must be launched on the stream that it is captured from, and releases
        # before 2.15 look for the stream here.
        before = torch.cuda.current_stream(device)
        side.wait_stream(before)
        with torch.cuda.stream(side):
            found = bench(self, *args, **kwargs)
        before.wait_stream(side)
        return found

    triton_heuristics.benchmarker = _Replaying(stock)
    CachingAutotuner.bench = bench_aside
    try:
        yield
    finally:
        triton_heuristics.benchmarker, CachingAutotuner.bench = stock, bench
        for kernel in tuned.values():
            _remember(kernel)


class _Replaying:
    """Inductor's benchmarker, which replays what it can."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def benchmark(self, *args: Any, **kwargs: Any) -> Any:
        """As Inductor's, of a function without arguments."""
        function = kwargs.get("fn") or args[0]
        try:
            return replayed_milliseconds(function)
        except Exception as reason:
            log.debug("a configuration is not timed by replay: %s", first_line(reason))
            return self._stock.benchmark(*args, **kwargs)


def _remember(kernel: Any) -> None:
    """Keep the configuration that ``kernel`` was left with."""
    if len(kernel.launchers) != 1 or not kernel.filename:
        return
    try:
        source = Path(kernel.filename).read_text()
        name = str(kernel.inductor_meta["kernel_name"])
        chosen = _options(kernel.launchers[0].config)
        if _is_plain(chosen):
            keep(Kernel.of(source, name), chosen)
    except Exception as reason:
        log.debug("the configuration of a kernel is not kept: %s", first_line(reason))


def _options(config: Any) -> Configuration:
    """A ``triton.Config`` as the arguments that make it."""
    names = ("num_warps", "num_stages", "num_ctas", "maxnreg")
    options = {name: getattr(config, name, None) for name in names}
    return {**config.kwargs, **{k: v for k, v in options.items() if v is not None}}


@dataclass(frozen=True)
class Kernel:
    """What tells a kernel from others.

    Attributes:
        digest: Of its source, without its name and what follows from the hints.
        hints: About how many elements it is for, by dimension.
    """

    digest: str
    hints: tuple[tuple[str, int], ...]

    @staticmethod
    def of(source: str, name: str) -> Kernel:
        """The kernel ``name`` that is generated as ``source``.

        >>> one = Kernel.of("@red(size_hints={'x': 8})\\ndef red_0(x):", "red_0")
        >>> other = Kernel.of("@red(size_hints={'x': 64})\\ndef red_7(x):", "red_7")
        >>> one.digest == other.digest, one.hints, other.distance(str(one))
        (True, (('x', 8),), 3.0)
        """
        text = textwrap.dedent(source.replace(name, "KERNEL")).strip()
        found = _HINTS.search(text)
        hints = ast.literal_eval(found.group(1)) if found is not None else {}
        text = _NO_PART.sub("", _HINTS.sub("", text, count=1))
        digest = hashlib.sha256(text.encode()).hexdigest()
        return Kernel(digest, tuple((str(k), int(v)) for k, v in sorted(hints.items())))

    def __str__(self) -> str:
        """The hints, as a name."""
        return " ".join(f"{name}={number}" for name, number in self.hints) or "none"

    def distance(self, hints: str) -> float:
        """From the hints to others of the same dimensions, in powers of two."""
        others = dict(part.split("=") for part in hints.split() if "=" in part)
        return sum(abs(math.log2(max(n, 1) / max(int(others.get(k, 1)), 1))) for k, n in self.hints)


def keep(kernel: Kernel, chosen: Configuration) -> None:
    """Remember ``chosen``, here and for other processes."""
    known = {**_known(kernel.digest), str(kernel): chosen}
    _chosen[kernel.digest] = known
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        text = json.dumps(known, sort_keys=True, indent=1) + "\n"
        records.replace_file(_folder() / f"{kernel.digest}.json", text)
    except OSError as reason:
        log.debug("the configuration of a kernel is not written: %s", reason)


def find(kernel: Kernel) -> Configuration | None:
    """What is remembered of the kernel, with its hints or else with those nearest to them."""
    known = _known(kernel.digest)
    nearest = min(known, key=lambda hints: (kernel.distance(hints), hints), default=None)
    return None if nearest is None else known[nearest]


def _known(digest: str) -> dict[str, Configuration]:
    """Configurations by hints; a file that does not have them is passed over."""
    if digest not in _chosen:
        try:
            read = json.loads((_folder() / f"{digest}.json").read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(read, dict) or not all(
            _ARE_HINTS.fullmatch(hints) and _is_plain(chosen) for hints, chosen in read.items()
        ):
            return {}
        _chosen[digest] = read
    return _chosen[digest]


def forget() -> None:
    """Empty the memory, as in a new process; files stay as they are."""
    _chosen.clear()


def _folder() -> Path:
    return Path(cache_dir()) / "range_dispatch" / "configurations"


def _is_plain(value: Any) -> bool:
    """Whether it is a configuration, and can be written into generated code as it is."""
    return (
        isinstance(value, dict)
        and "num_warps" in value
        and all(isinstance(k, str) and k.isidentifier() for k in value)
        and all(isinstance(v, int) for v in value.values())
    )


def generate_as_measured(graph: GraphLowering, operations: Iterable[Any]) -> None:
    """Have the kernels that compute any of these in ``graph`` generated as they were measured."""
    names = {operation.get_operation_name() for operation in operations}
    known: set[str] | None = vars(graph).get("range_dispatch_measured")
    if known is not None:
        known |= names
        return
    vars(graph)["range_dispatch_measured"] = names
    generate = graph.codegen

    def generate_them(*args: Any, **kwargs: Any) -> Any:
        with as_measured(names):
            return generate(*args, **kwargs)

    graph.codegen = generate_them


@contextlib.contextmanager
def as_measured(only: Set[str] | None = None) -> Iterator[None]:
    """Inside, kernels are generated with the configurations that their sources are known with.

    The C++ wrapper, which tunes kernels in ways of its own, gets them as ever.

    Args:
        only: Names of operations; kernels that compute none of them are left as they are. With
            what fuses with them, kernels are those that were measured if their sources say so.
    """
    from torch._inductor.codegen.triton import TritonScheduling

    emit: Callable[..., Any] = TritonScheduling._emit_kernel_to_wrapper

    def emit_fixed(
        self: Any,
        wrapper: Any,
        kernel: Any,
        source: str,
        name: str,
        function: str,
        nodes: Sequence[Any],
        path: str,
        *others: Any,
    ) -> None:
        python = not getattr(V.graph, "cpp_wrapper", False)
        measured = python and (only is None or not only.isdisjoint(_operations(nodes)))
        chosen = find(Kernel.of(source, name)) if measured else None
        fixed = None if chosen is None else with_configuration(source, chosen)
        if fixed is not None:
            source, path = fixed, get_path(code_hash(fixed.strip()), "py")[2]
        emit(self, wrapper, kernel, source, name, function, nodes, path, *others)

    TritonScheduling._emit_kernel_to_wrapper = emit_fixed
    try:
        yield
    finally:
        TritonScheduling._emit_kernel_to_wrapper = emit


def _operations(nodes: Sequence[Any]) -> set[str]:
    """What a kernel computes. Between the scheduler's nodes stand marks of where loops end."""
    found = (getattr(node, "node", None) for node in nodes)
    return {node.get_operation_name() for node in found if node is not None}


def with_configuration(source: str, chosen: Mapping[str, Any]) -> str | None:
    """A kernel's source with one configuration; None where it is not such a kernel."""
    source = textwrap.dedent(source)
    tree = ast.parse(source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    heuristics = [
        decorator
        for function in functions
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Attribute)
    ]
    if len(heuristics) != 1:
        return None
    (found,) = heuristics
    assert isinstance(found.func, ast.Attribute)
    given = {keyword.arg: keyword.value for keyword in found.keywords}
    meta = given.get("inductor_meta")
    if found.func.attr not in _HEURISTICS or meta is None or _grid(meta) not in _GRIDS:
        return None
    kept = {name: ast.get_source_segment(source, given[name]) for name in _KEPT}
    arguments = [f"config={dict(chosen)!r}", *(f"{name}={text}" for name, text in kept.items())]
    lines = ["@triton_heuristics.fixed_config(", *(f"    {a}," for a in arguments), ")"]
    before = source.splitlines()
    assert found.end_lineno is not None
    after = [*before[: found.lineno - 1], *lines, *before[found.end_lineno :]]
    return "\n".join(after) + "\n"


def _grid(meta: ast.expr) -> str | None:
    """The kind of grid that a kernel is launched on; None where it is split in other ways."""
    if not isinstance(meta, ast.Dict):
        return None
    entries = {
        key.value: value
        for key, value in zip(meta.keys, meta.values, strict=True)
        if isinstance(key, ast.Constant)
    }
    grid = entries.get("grid_type")
    if "RSPLIT_SIZE" in entries or not isinstance(grid, ast.Constant):
        return None
    return str(grid.value)
