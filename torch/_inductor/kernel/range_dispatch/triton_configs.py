"""Triton's configurations: chosen well where candidates are measured, and kept for what runs.

Inductor gives a kernel on a GPU some configurations (block sizes, warps), and its first call takes
the fastest. It launches each by itself, with events around the launch: where that takes longer
than the kernel, it is the host that is timed. Of three tunings of a split-K matmul on an H100, one
got a configuration that took 47 us at 1024 rows, the others one that took 9. So in benchmark
modules configurations are timed as candidates are, by replaying a CUDA graph.

A module is tuned for the sizes of its first call. The winner of a range is tuned again, for all
sizes that its range was measured at: of two configurations of an RMSNorm on an H100, one takes 3.0
us at 17 rows and the other 2.3, and a measurement at 16384 rows does not tell them apart.

What runs in the end, in a branch or inlined, often has kernels of the same source as the module
that was measured, but for their names, the sizes that they are hinted to be for, and whether they
write in place of an operand. Those are generated with the configuration that was found: what runs
is what was measured, whatever size comes first, and no call has to tune it. A kernel that came out
otherwise, as one that reads what is computed around the op, is tuned at its first call as ever.
Masks that no configuration in question needs are left out (``kernel_source``).
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
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TYPE_CHECKING

import torch
from torch._inductor.codecache import code_hash, get_path
from torch._inductor.kernel.range_dispatch import compat, records
from torch._inductor.kernel.range_dispatch.kernel_source import (
    Configuration,
    with_configuration,
    with_facts,
    without_facts,
    without_masks,
)
from torch._inductor.kernel.range_dispatch.saved import cache_folder
from torch._inductor.kernel.range_dispatch.timing import aside, benchmarks_replayed
from torch._inductor.kernel.range_dispatch.trace import first_line
from torch._inductor.virtualized import V


if TYPE_CHECKING:
    from torch._inductor.graph import GraphLowering
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from torch.fx import Node


log = logging.getLogger(__name__)

# About how many elements a kernel is for, by dimension: powers of two.
Hints = tuple[tuple[str, int], ...]

_HINTS = re.compile(r"size_hints=(\{[^{}]*\})")
_ARE_HINTS = re.compile(r"none|\w+=\d+(?: \w+=\d+)*")
# Settings of benchmark modules, and what follows from the hints.
_NO_PART = re.compile(
    r"'autotune_(?:local|remote)_cache': \w+, |(?:, )?'tiling_scores': (?:\{[^{}]*\}|None)"
)

# Where a kernel's source has its pointers.
_POINTER = re.compile(r"\b(?:in_out|in|out)_ptr\d+\b")
_ACCESS = re.compile(r"\btl\.(load|store)\((\w+_ptr\d+)\b")
_SIGNATURE = re.compile(r"'signature': (\{[^{}]*\})")
_ATTRIBUTES = re.compile(r"'configs': \[(\{.*?\})\]")
_MUTATED = re.compile(r"'mutated_arg_names': \[[^\[\]]*\]")

# The attribute of a kernel that has what it chose among.
_TRIED = "range_dispatch_tried"

# By a kernel's digest, then by hints.
_chosen: dict[str, dict[str, Configuration]] = {}


@contextlib.contextmanager
def timed_by_replay(device: torch.device, remember: bool = True) -> Iterator[None]:
    """Inside, kernels that choose among configurations time them by replay, and are remembered."""
    if device.type != "cuda":
        yield
        return
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    bench = CachingAutotuner.bench
    tuned: dict[int, CachingAutotuner] = {}

    def bench_aside(self: CachingAutotuner, launcher: Any, *args: Any, **kwargs: Any) -> Any:
        tuned[id(self)] = self
        tried = vars(self).setdefault(_TRIED, [])
        if launcher not in tried:
            tried.append(launcher)
        with aside(device):
            return bench(self, launcher, *args, **kwargs)

    CachingAutotuner.bench = bench_aside
    try:
        with benchmarks_replayed():
            yield
    finally:
        CachingAutotuner.bench = bench
        for kernel in tuned.values() if remember else ():
            _remember(kernel)


def _remember(kernel: CachingAutotuner, hints: Iterable[Hints] = (), own: bool = True) -> None:
    """Keep the configuration that ``kernel`` was left with.

    Args:
        kernel: The kernel, as Inductor calls it.
        hints: Sizes that it is kept for.
        own: Whether it is also kept for those that the kernel was made for.
    """
    if len(kernel.launchers) != 1 or not kernel.filename:
        return
    try:
        source = Path(kernel.filename).read_text()
        known = Kernel.of(source, str(kernel.inductor_meta["kernel_name"]))
        chosen = _options(kernel.launchers[0].config)
        if _is_plain(chosen):
            for sizes in dict.fromkeys([*([known.hints] if own else ()), *hints]):
                keep(Kernel(known.digest, sizes), chosen)
    except Exception as reason:
        log.debug("the configuration of a kernel is not kept: %s", first_line(reason))


def has_chosen(module: Callable[..., Any]) -> bool:
    """Whether the kernels of a generated module, given its function, chose among any."""
    scope = getattr(module, "__func__", module).__globals__
    return any(len(_tried(value)) > 1 for value in scope.values())


def choose_again(device: torch.device, calls: Iterable[Callable[[], Any]], own: bool) -> None:
    """Have kernels take the configurations that are best over all of ``calls``, each alike.

    Args:
        device: Where they run.
        calls: Each calls what they are in, at other sizes; it has been called before.
        own: Whether what is found is also for code that is made for the sizes of the first call.
    """
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    run = CachingAutotuner.run
    logarithms: dict[CachingAutotuner, list[list[float]]] = {}
    sizes: dict[CachingAutotuner, list[Hints]] = {}

    def run_each(self: CachingAutotuner, *args: Any, **kwargs: Any) -> Any:
        tried = _tried(self)
        if len(tried) > 1:
            given = {name: value for name, value in kwargs.items() if name != "stream"}
            row = [self.bench(launcher, *args, **given) for launcher in tried]
            logarithms.setdefault(self, []).append([math.log(max(ms, 1e-9)) for ms in row])
            sizes.setdefault(self, []).append(_sizes(self, args))
        return run(self, *args, **kwargs)

    with timed_by_replay(device, remember=False):
        CachingAutotuner.run = run_each
        try:
            for call in calls:
                call()
                del call  # with its inputs, before there are others
        finally:
            CachingAutotuner.run = run
    for kernel, rows in logarithms.items():
        totals = list(map(sum, zip(*rows, strict=True)))
        compat.launch_with(kernel, _tried(kernel)[totals.index(min(totals))])
        _remember(kernel, sizes[kernel], own)


def _tried(kernel: Any) -> list[Any]:
    tried: list[Any] = getattr(kernel, "__dict__", {}).get(_TRIED, [])
    return tried


def _sizes(kernel: CachingAutotuner, args: Sequence[Any]) -> Hints:
    """What the hints of ``kernel`` would be if it were made for this call."""
    found = [
        (name.removesuffix("numel"), 1 << max(int(value) - 1, 0).bit_length())
        for name, value in zip(kernel.triton_meta["signature"], args, strict=False)
        if name.endswith("numel")
    ]
    return tuple(sorted(found))


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
        hints: What it is made for.
    """

    digest: str
    hints: Hints

    @staticmethod
    def of(source: str, name: str) -> Kernel:
        """The kernel ``name`` that is generated as ``source``.

        >>> one = Kernel.of("@red(size_hints={'x': 8})\\ndef red_0(x):", "red_0")
        >>> other = Kernel.of("@red(size_hints={'x': 64})\\ndef red_7(x):", "red_7")
        >>> one.digest == other.digest, one.hints, other.distance(str(one))
        (True, (('x', 8),), 3.0)
        """
        text = textwrap.dedent(without_facts(source).replace(name, "KERNEL")).strip()
        found = _HINTS.search(text)
        hints = ast.literal_eval(found.group(1)) if found is not None else {}
        text = _by_role(_NO_PART.sub("", _HINTS.sub("", text, count=1)))
        digest = hashlib.sha256(text.encode()).hexdigest()
        return Kernel(digest, tuple((str(k), int(v)) for k, v in sorted(hints.items())))

    def __str__(self) -> str:
        """The hints, as a name."""
        return " ".join(f"{name}={number}" for name, number in self.hints) or "none"

    def distance(self, hints: str) -> float:
        """From the hints to others of the same dimensions, in powers of two."""
        others = dict(part.split("=") for part in hints.split() if "=" in part)
        return sum(abs(math.log2(max(n, 1) / max(int(others.get(k, 1)), 1))) for k, n in self.hints)


def _by_role(source: str) -> str:
    """A kernel's source with its pointers named after what is done with them.

    What runs may write in place of an operand that ends there, and has one pointer for both. A
    benchmark module, which needs its inputs again, has two. It is the same kernel all the same.

    >>> two = "@triton.jit\\ndef k(in_ptr0, out_ptr0):\\n t = tl.load(in_ptr0)\\n"
    >>> two += " tl.store(out_ptr0, t)"
    >>> one = two.replace("in_ptr0, out_ptr0):", "in_out_ptr0):")
    >>> one = one.replace("(in_ptr0)", "(in_out_ptr0)").replace("(out_ptr0,", "(in_out_ptr0,")
    >>> _by_role(one) == _by_role(two)
    True
    """
    head, jit, function = source.partition("@triton.jit\n")
    _, _, body = function.partition("\n")
    roles: dict[tuple[str, str], str] = {}

    def role(access: re.Match[str]) -> str:
        kind, name = access.groups()
        count = sum(kind == known for known, _ in roles)
        if ("store", name) in roles and ("load", name) not in roles:
            kind = "store"  # it reads what it has written
        return f"tl.{access.group(1)}({roles.setdefault((kind, name), f'{kind}_{count}')}"

    body = _ACCESS.sub(role, body)
    if not jit or _POINTER.search(body):
        return source  # it does something else with them
    try:
        given = _arguments(head)
    except (ValueError, SyntaxError, TypeError, IndexError):
        return source
    facts = [f"{role}: {given.get(name)}" for (_, name), role in roles.items()]
    facts += [f"{name}: {fact}" for name, fact in given.items() if not _POINTER.fullmatch(name)]
    for part in (_SIGNATURE, _ATTRIBUTES, _MUTATED):
        head = part.sub("", head)
    return "\n".join([head, *facts, body])


def _arguments(head: str) -> dict[str, str]:
    """The arguments of a kernel: their types, and what else is known of them."""
    signature, attributes = _SIGNATURE.search(head), _ATTRIBUTES.search(head)
    types = ast.literal_eval(signature.group(1)) if signature is not None else {}
    known = ast.literal_eval(attributes.group(1)) if attributes is not None else {}
    names = list(types)
    more = {names[place]: fact for (place,), fact in known.items()}
    return {name: f"{kind} {more.get(name, '')}" for name, kind in types.items()}


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
    return cache_folder() / "configurations"


def _is_plain(value: Any) -> bool:
    """Whether it is a configuration, and can be written into generated code as it is."""
    return (
        isinstance(value, dict)
        and "num_warps" in value
        and all(isinstance(k, str) and k.isidentifier() for k in value)
        and all(isinstance(v, int) for v in value.values())
    )


def generate_as_measured(graph: GraphLowering, nodes: Iterable[Node]) -> None:
    """Have the kernels that compute any of these in ``graph`` generated as they were measured."""
    known: set[Node] | None = vars(graph).get("range_dispatch_measured")
    if known is not None:
        known.update(nodes)
        return
    measured = vars(graph)["range_dispatch_measured"] = set(nodes)
    generate = graph.codegen

    def generate_them(*args: Any, **kwargs: Any) -> Any:
        with as_measured(measured):
            return generate(*args, **kwargs)

    graph.codegen = generate_them


@contextlib.contextmanager
def as_measured(only: Set[Node] | None = None) -> Iterator[None]:
    """Inside, kernels are generated with the configurations that their sources are known with.

    The C++ wrapper, which tunes kernels in ways of its own, gets them as ever.

    Args:
        only: Nodes of graphs; kernels that compute none of them are left as they are. With what
            fuses with them, kernels are those that were measured if their sources say so.
    """
    from torch._inductor.codegen.triton import TritonScheduling

    define: Callable[..., Any] = TritonScheduling.define_kernel
    emit: Callable[..., Any] = TritonScheduling._emit_kernel_to_wrapper

    def is_measured(nodes: Sequence[Any]) -> bool:
        python = not getattr(V.graph, "cpp_wrapper", False)
        return python and (only is None or not only.isdisjoint(_origins(nodes)))

    def define_with_facts(self: Any, source: str, nodes: Sequence[Any], kernel: Any) -> Any:
        if is_measured(nodes):
            # Several kernels in one have none.
            trees = getattr(kernel, "range_trees", ())
            source = with_facts(source, {tree.prefix: tree.numel for tree in trees})
        return define(self, source, nodes, kernel)

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
        rewritten = None
        if is_measured(nodes):
            chosen = find(Kernel.of(source, name))
            rewritten = (
                without_masks(source) if chosen is None else with_configuration(source, chosen)
            )
        if rewritten is not None:
            source, path = rewritten, get_path(code_hash(rewritten.strip()), "py")[2]
        emit(self, wrapper, kernel, source, name, function, nodes, path, *others)

    TritonScheduling.define_kernel = define_with_facts
    TritonScheduling._emit_kernel_to_wrapper = emit_fixed
    try:
        yield
    finally:
        TritonScheduling.define_kernel = define
        TritonScheduling._emit_kernel_to_wrapper = emit


def _origins(nodes: Sequence[Any]) -> set[Node]:
    """What a kernel computes. Between the scheduler's nodes stand marks of where loops end."""
    found = (getattr(node, "node", None) for node in nodes)
    return {origin for node in found if node is not None for origin in node.origins}
