"""Triton's configurations: chosen well where candidates are measured, and kept for what runs.

Inductor gives a kernel on a GPU some configurations (block sizes, warps), and its first call takes
the fastest. It launches each by itself, with events around the launch: where that takes longer
than the kernel, it is the host that is timed. Of three tunings of a split-K matmul on an H100, one
got a configuration that took 47 us at 1024 rows, the others one that took 9. So in benchmark
modules configurations are timed as candidates are, by replaying a CUDA graph.

A module is tuned for the sizes of its first call, among what Inductor offers for those: a kernel
for a thousand rows gets larger blocks than one for ten. The winner of a range is tuned again, for
all sizes that its range was measured at, among what is offered for any of them. One configuration
seldom suits them all: of two of an RMSNorm on an H200, one takes 2.4 us at 16 rows and the other
3.1, but at 16384 rows they take 274 and 268. Where another one than the best over all sizes saves
enough of the call, the generated code has the kernel with both, and launches the one that was the
best at the nearest size (in powers of two).

They are timed as they will be generated, without masks that their blocks do not need: of that
RMSNorm, at 1024 rows, blocks of 8192 take 17.38 us with masks and 17.57 without, and blocks of 4096
17.50 and 17.54; at 300 rows they take 4.74, 4.56, 4.50 and 4.36.

Then a configuration is timed both by itself and in the call that the kernel is part of. By itself
the difference between two is the clearer one, but the kernel reads what it has read before: behind
cuBLAS's kernel, which writes its operand, one of 1.83 us costs the call 0.6 us more than one of
1.78 (300 rows of a split-K matmul on an H200).

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
import itertools
import json
import logging
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TYPE_CHECKING

import sympy

import torch
from torch._inductor import config as inductor_config
from torch._inductor.codecache import code_hash, get_path
from torch._inductor.kernel.range_dispatch import compat, records
from torch._inductor.kernel.range_dispatch.kernel_source import (
    Configuration,
    offered_for,
    with_configuration,
    with_facts,
    without_facts,
    without_masks,
)
from torch._inductor.kernel.range_dispatch.saved import cache_folder
from torch._inductor.kernel.range_dispatch.timing import (
    aside,
    benchmarks_replayed,
    call_milliseconds,
    Runner,
)
from torch._inductor.kernel.range_dispatch.trace import first_line
from torch._inductor.virtualized import V


if TYPE_CHECKING:
    from torch._inductor.graph import GraphLowering
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from torch.fx import Node


log = logging.getLogger(__name__)

# How many elements a kernel is launched for, by dimension. The hints that it is generated with are
# such numbers, rounded up to powers of two.
Sizes = tuple[tuple[str, int], ...]

# Milliseconds of a launch.
Bench = Callable[[Any], float]

# What a kernel with another configuration has to save of a call.
_WORTH_A_KERNEL = 0.01
# Of a call: configurations that are this close are alike, and the one with the fewest threads is
# taken. By the profiler, that kernel takes up to 16% less where replays differ by less than 0.2%
# (64 and 256 rows of that matmul, with 4 warps for 512 elements, 8 for 512 or 4 for 256).
_ALIKE = 0.0025
# Of a call: what takes that much longer by itself is not timed in the call.
_CLEARLY_OUT = 0.05

_HINTS = re.compile(r"size_hints=(\{[^{}]*\})")
_ARE_SIZES = re.compile(r"none|\w+=\d+(?: \w+=\d+)*")
# Settings of benchmark modules, and what follows from the hints.
_NO_PART = re.compile(
    r"'autotune_(?:local|remote)_cache': \w+, |(?:, )?'tiling_scores': (?:\{[^{}]*\}|None)"
)

# The arguments of Inductor's kernels that say how many elements there are.
_NUMEL = re.compile(r"(?:[xyz]|r\d_)numel")
# Where a kernel's source has its pointers.
_POINTER = re.compile(r"\b(?:in_out|in|out)_ptr\d+\b")
_ACCESS = re.compile(r"\btl\.(load|store)\((\w+_ptr\d+)\b")
_SIGNATURE = re.compile(r"'signature': (\{[^{}]*\})")
_ATTRIBUTES = re.compile(r"'configs': \[(\{.*?\})\]")
_MUTATED = re.compile(r"'mutated_arg_names': \[[^\[\]]*\]")

# The attribute of a kernel that has what it chose among.
_TRIED = "range_dispatch_tried"

# By a kernel's digest, then by sizes.
_chosen: dict[str, dict[str, Configuration]] = {}


@contextlib.contextmanager
def timed_by_replay(device: torch.device, remember: bool = True) -> Iterator[None]:
    """Inside, kernels that choose among configurations time them by replay, and are remembered."""
    if device.type != "cuda":
        yield
        return
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    bench = CachingAutotuner.bench
    tuned: dict[CachingAutotuner, Sizes] = {}

    def bench_aside(self: CachingAutotuner, launcher: Any, *args: Any, **kwargs: Any) -> Any:
        tuned[self] = _sizes(self, args)
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
        for kernel, sizes in tuned.items() if remember else ():
            if len(kernel.launchers) == 1:
                _remember(kernel, {sizes: kernel.launchers[0]})


def _remember(kernel: CachingAutotuner, chosen: Mapping[Sizes, Any]) -> None:
    """Keep launchers of ``kernel``, each for the sizes that it is the best one at."""
    if not kernel.filename:
        return
    try:
        source = Path(kernel.filename).read_text()
        known = Kernel.of(source, str(kernel.inductor_meta["kernel_name"]))
        options = {sizes: _options(launcher.config) for sizes, launcher in chosen.items()}
        if all(map(_is_plain, options.values())):
            keep(known.digest, options)
    except Exception as reason:
        log.debug("the configurations of a kernel are not kept: %s", first_line(reason))


def may_choose(module: Callable[..., Any]) -> bool:
    """Whether a generated module, given its function, has kernels that may choose among any."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    scope = getattr(module, "__func__", module).__globals__
    return any(isinstance(value, CachingAutotuner) for value in scope.values())


@dataclass(frozen=True)
class _Times:
    """Of a module that is called, with each configuration of one of its kernels.

    Attributes:
        sizes: What the kernel is launched for, as often as it is.
        milliseconds: Of the whole call, by configuration, in the order in which they were tried.
    """

    sizes: Sequence[Sizes]
    milliseconds: Sequence[float]


def choose_again(device: torch.device, calls: Sequence[Callable[[], Runner]]) -> None:
    """Have kernels take the configurations that are best over all of ``calls``, each alike.

    They choose among what is offered for the sizes of any call. Kept are those, and for single
    calls the ones with which the call is clearly faster.

    Args:
        device: Where they run.
        calls: Each prepares a call of what they are in, at another size, and returns what calls
            it; it has been called before.
    """
    launched: dict[CachingAutotuner, list[Sizes]] = {}
    for prepared in calls:
        run = prepared()
        with _runs_seen(lambda kernel, sizes, _: launched.setdefault(kernel, []).append(sizes)):
            run()
        del run  # its inputs
    for kernel, sizes in launched.items():
        _offer(kernel, sizes)
    if not any(len(_tried(kernel)) > 1 for kernel in launched):
        return
    found: dict[CachingAutotuner, list[_Times]] = {}
    for prepared in calls:
        for kernel, times in _times(device, prepared()).items():
            found.setdefault(kernel, []).append(times)
    for kernel, rows in found.items():
        tried = _tried(kernel)
        best, chosen = _chosen_in(rows, [_threads(launcher.config) for launcher in tried])
        compat.launch_with(kernel, tried[best])
        _remember(kernel, {sizes: tried[place] for sizes, place in chosen.items()})
        for place, launcher in enumerate(tried):
            shown = ", ".join(f"{row.milliseconds[place]:.3e}" for row in rows)
            won = [_name(sizes) for sizes, winner in chosen.items() if winner == place]
            name = kernel.inductor_meta["kernel_name"]
            log.debug("%s: %s ms with %s, chosen for %s", name, shown, launcher.config, won)


def _times(device: torch.device, run: Runner) -> dict[CachingAutotuner, _Times]:
    """How long a call takes with the configurations of each kernel in it that chooses."""
    sizes: dict[CachingAutotuner, list[Sizes]] = {}
    alone: dict[CachingAutotuner, list[list[float]]] = {}

    def measure(kernel: CachingAutotuner, launched: Sizes, bench: Bench) -> None:
        tried = _tried(kernel)
        if len(tried) > 1:
            sizes.setdefault(kernel, []).append(launched)
            times = [max(bench(launcher), 1e-9) for launcher in tried]
            alone.setdefault(kernel, []).append(times)

    with timed_by_replay(device, remember=False), _runs_seen(measure):
        run()
    found = {}
    for kernel, rows in alone.items():
        by_itself = [sum(times) for times in zip(*rows, strict=True)]
        found[kernel] = _Times(sizes[kernel], _in_the_call(device, run, kernel, by_itself))
    return found


def _in_the_call(
    device: torch.device, run: Runner, kernel: CachingAutotuner, alone: Sequence[float]
) -> list[float]:
    """Milliseconds of ``run`` with each configuration of ``kernel``.

    What one takes more than the fastest is the mean of what it takes more by itself and in ``run``.

    Args:
        device: Where it runs.
        run: The call.
        kernel: One of the kernels that it launches.
        alone: Milliseconds of the kernel by itself, by configuration.
    """
    least = min(alone)
    if math.isinf(least):  # with all of them it spills
        return list(alone)
    tried = _tried(kernel)
    fastest = alone.index(least)
    # Launched with another one, a kernel that descends along coordinates would do so again.
    settled = bool(kernel.inductor_meta.get("coordinate_descent_tuning"))
    before = kernel.launchers[0]

    def timed(launcher: Any) -> float:
        compat.launch_with(kernel, launcher)
        return call_milliseconds(run, device)

    try:
        whole = timed(before if settled else tried[fastest])
        found = []
        for place, launcher in enumerate(tried):
            more = alone[place] - least
            if place != fastest and not settled and more <= _CLEARLY_OUT * whole:
                more = (more + timed(launcher) - whole) / 2
            found.append(whole + more)
        return found
    finally:
        compat.launch_with(kernel, before)


def _threads(config: Any) -> float:
    """How many threads a kernel is launched with, per element; what is reduced does not count."""
    blocks = (config.kwargs.get(name, 1) for name in ("XBLOCK", "YBLOCK", "ZBLOCK"))
    return float(config.num_warps) / math.prod(blocks)


@contextlib.contextmanager
def _runs_seen(
    see: Callable[[CachingAutotuner, Sizes, Bench], None],
) -> Iterator[None]:
    """Inside, ``see`` is called before each run of a kernel.

    It gets the kernel, the sizes, and what times a launcher with the arguments of the run.
    """
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    run = CachingAutotuner.run

    def run_seen(self: CachingAutotuner, *args: Any, **kwargs: Any) -> Any:
        given = {name: value for name, value in kwargs.items() if name != "stream"}
        see(self, _sizes(self, args), lambda launcher: self.bench(launcher, *args, **given))
        return run(self, *args, **kwargs)

    CachingAutotuner.run = run_seen
    try:
        yield
    finally:
        CachingAutotuner.run = run


def _offer(kernel: CachingAutotuner, sizes: Sequence[Sizes]) -> None:
    """Have a kernel that has run try what Inductor offers for any of ``sizes``, too.

    Each as it would be generated with that configuration alone, without masks that its blocks do
    not need: some kernels are faster without, and some are slower.
    """
    tried = vars(kernel).setdefault(_TRIED, list(kernel.launchers))
    if kernel.inductor_meta.get("coordinate_descent_tuning"):
        return  # it has a search of its own
    try:
        source = Path(kernel.filename or "").read_text()
        offered = offered_for(source, map(dict, sizes))
    except Exception as reason:
        log.debug("a kernel chooses among what it has: %s", first_line(reason))
        return
    options: list[Configuration] = []
    for config in (*(launcher.config for launcher in tried), *offered):
        if (option := _options(config)) not in options:
            options.append(option)
    sources = [with_configuration(source, option) for option in options]
    if offered and len(options) > 1:
        name = str(kernel.inductor_meta["kernel_name"])
        launchers = _launchers(name, [text for text in sources if text is not None])
        vars(kernel)[_TRIED] = launchers or tried


def _launchers(name: str, sources: Sequence[str]) -> list[Any]:
    """What launches a kernel that has one configuration, for each source that can be compiled."""
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.codecache import CodeCacheFuture

    def begun(source: str) -> Any:
        return AsyncCompile().triton(name, source)

    compiled = []
    # All are begun first: workers compile them at the same time.
    for kernel in [_or_reason(begun, source) for source in sources]:
        if isinstance(kernel, CodeCacheFuture):
            kernel = _or_reason(kernel.result)
        if isinstance(kernel, Exception):  # it needs more than the device has
            log.debug("%s does without a configuration: %s", name, first_line(kernel))
        else:
            compiled += kernel.launchers
    return compiled


def _or_reason(function: Callable[..., Any], *args: Any) -> Any:
    """What ``function`` returns, or raises."""
    try:
        return function(*args)
    except Exception as reason:
        return reason


def _chosen_in(rows: Sequence[_Times], threads: Sequence[float]) -> tuple[int, dict[Sizes, int]]:
    """The configuration that is best over all rows, and those that are chosen, by their sizes.

    Args:
        rows: The times of one kernel.
        threads: That it is launched with, by configuration.

    >>> few, many = (("x", 16),), (("x", 99),)
    >>> rows = [_Times([few], [2.4, 3.1]), _Times([many], [274.0, 268.0])]
    >>> _chosen_in(rows, [1, 1])
    (0, {(('x', 16),): 0, (('x', 99),): 1})
    >>> rows = [_Times([few], [2.4, 3.1]), _Times([many], [1006.0, 1000.0])]
    >>> _chosen_in(rows, [1, 1])
    (0, {(('x', 16),): 0, (('x', 99),): 0})
    >>> _chosen_in([_Times([few], [1000.0, 1001.0])], [2, 1])
    (1, {(('x', 16),): 1})
    """

    def least(ratios: Sequence[float]) -> int:
        """The place of the least of some ratios, given as logarithms."""
        near = min(ratios) + _ALIKE
        alike = [place for place, ratio in enumerate(ratios) if ratio <= near]
        return min(alike, key=lambda place: (threads[place], ratios[place]))

    logs = [[math.log(time) for time in row.milliseconds] for row in rows]
    best = least([sum(each) / len(rows) for each in zip(*logs, strict=True)])
    chosen: dict[Sizes, int] = {}
    for row, ratios in zip(rows, logs, strict=True):
        fastest = least(ratios)
        times = row.milliseconds
        enough = times[best] - times[fastest] > _WORTH_A_KERNEL * times[fastest]
        chosen.update(dict.fromkeys(row.sizes, fastest if enough else best))
    return best, chosen


def _tried(kernel: Any) -> list[Any]:
    tried: list[Any] = getattr(kernel, "__dict__", {}).get(_TRIED, [])
    return tried


def _sizes(kernel: CachingAutotuner, args: Sequence[Any]) -> Sizes:
    """How many elements ``kernel`` is launched for with ``args``, by dimension."""
    given = zip(kernel.triton_meta["signature"], args, strict=False)
    sizes = [(k.removesuffix("numel"), int(n)) for k, n in given if _NUMEL.fullmatch(k)]
    return tuple(sorted(sizes))


def _name(sizes: Sizes) -> str:
    return " ".join(f"{name}={number}" for name, number in sizes) or "none"


def _numbers(name: str) -> dict[str, int]:
    """Sizes from their name."""
    parts = (part.split("=") for part in name.split() if "=" in part)
    return {dim: int(number) for dim, number in parts}


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
    hints: Sizes

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
        return _name(self.hints)

    def distance(self, sizes: str) -> float:
        """From the hints to sizes of the same dimensions, in powers of two."""
        others = _numbers(sizes)
        return sum(abs(math.log2(max(n, 1) / max(others.get(k, 1), 1))) for k, n in self.hints)

    def along(self, dimension: str, sizes: str) -> int | None:
        """What ``sizes`` has for ``dimension``; None where others are not what the kernel has."""
        others = _numbers(sizes)
        for name, hint in self.hints:
            if name != dimension and 1 << max(others.get(name, hint) - 1, 0).bit_length() != hint:
                return None
        return others.get(dimension)


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


def keep(digest: str, chosen: Mapping[Sizes, Configuration]) -> None:
    """Remember configurations of a kernel by sizes, here and for other processes."""
    known = {**_known(digest), **{_name(sizes): found for sizes, found in chosen.items()}}
    _chosen[digest] = known
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        text = json.dumps(known, sort_keys=True, indent=1) + "\n"
        records.replace_file(_folder() / f"{digest}.json", text)
    except OSError as reason:
        log.debug("the configurations of a kernel are not written: %s", reason)


def find(kernel: Kernel) -> Configuration | None:
    """What is remembered of the kernel, with its hints or else with the sizes nearest to them."""
    known = _known(kernel.digest)
    nearest = min(known, key=lambda sizes: (kernel.distance(sizes), sizes), default=None)
    return None if nearest is None else known[nearest]


# Configurations, each with the number of elements up to which it is the one; the last has none.
Steps = list[tuple[int | None, Configuration]]


def find_steps(kernel: Kernel, dimension: str, numel: sympy.Expr) -> Steps:
    """What is remembered of a kernel whose elements along ``dimension`` are ``numel``.

    Each number of elements has the configuration of the nearest one that is remembered; numbers
    that ``numel`` can't have where the kernel runs are left out.
    """
    known = _known(kernel.digest)
    places = {kernel.along(dimension, sizes): found for sizes, found in known.items()}
    numbers = sorted(n for n in places if n is not None and n > 0)
    steps: Steps = []
    for n, following in itertools.zip_longest(numbers, numbers[1:]):
        limit = None if following is None else math.isqrt(n * following)
        if limit is not None and V.graph.sizevars.statically_known_true(sympy.Gt(numel, limit)):
            continue
        if steps and steps[-1][1] == places[n]:
            steps.pop()
        if limit is None or V.graph.sizevars.statically_known_true(sympy.Le(numel, limit)):
            return [*steps, (None, places[n])]
        steps.append((limit, places[n]))
    return steps


def _known(digest: str) -> dict[str, Configuration]:
    """Configurations by sizes; a file that does not have them is passed over."""
    if digest not in _chosen:
        try:
            read = json.loads((_folder() / f"{digest}.json").read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(read, dict) or not all(
            _ARE_SIZES.fullmatch(sizes) and _is_plain(chosen) for sizes, chosen in read.items()
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
def sizes_noted(of: Callable[[Sequence[Any]], bool] = lambda nodes: True) -> Iterator[None]:
    """Inside, the source of a kernel says what is known of its sizes (``kernel_source``).

    Args:
        of: Whether it does, for the nodes of the scheduler's that a kernel computes.
    """
    from torch._inductor.codegen.triton import TritonScheduling

    define: Callable[..., Any] = TritonScheduling.define_kernel

    def define_with_facts(self: Any, source: str, nodes: Sequence[Any], kernel: Any) -> Any:
        if of(nodes):
            source = with_facts(source, _numels(kernel))
        return define(self, source, nodes, kernel)

    TritonScheduling.define_kernel = define_with_facts
    try:
        yield
    finally:
        TritonScheduling.define_kernel = define


@contextlib.contextmanager
def as_measured(only: Set[Node] | None = None) -> Iterator[None]:
    """Inside, kernels are generated with the configurations that their sources are known with.

    The C++ wrapper, which tunes kernels in ways of its own, gets them as ever.

    Args:
        only: Nodes of graphs; kernels that compute none of them are left as they are. With what
            fuses with them, kernels are those that were measured if their sources say so.
    """
    from torch._inductor.codegen.triton import TritonScheduling
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen

    emit: Callable[..., Any] = TritonScheduling._emit_kernel_to_wrapper
    write: Callable[..., Any] = PythonWrapperCodegen._generate_kernel_call_helper
    # What is launched in place of a kernel.
    launched: dict[str, _BySize] = {}

    def is_measured(nodes: Sequence[Any]) -> bool:
        python = not getattr(V.graph, "cpp_wrapper", False)
        return python and (only is None or not only.isdisjoint(_origins(nodes)))

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
        sources: dict[str, str] = {}
        if is_measured(nodes):
            sources, by_size = _variants(source, name, _numels(kernel))
            if by_size is not None:
                launched[name] = by_size
        for variant, text in (sources or {name: source}).items():
            called = variant if function == name else function
            at = get_path(code_hash(text.strip()), "py")[2] if sources else path
            emit(self, wrapper, kernel, text, variant, called, nodes, at, *others)

    def write_by_size(self: Any, name: str, args: Sequence[Any], **options: Any) -> Any:
        if name in launched:
            name = launched[name].expression(self, args, options.get("triton_meta") or {})
        return write(self, name, args, **options)

    TritonScheduling._emit_kernel_to_wrapper = emit_fixed
    PythonWrapperCodegen._generate_kernel_call_helper = write_by_size
    try:
        with sizes_noted(is_measured):
            yield
    finally:
        TritonScheduling._emit_kernel_to_wrapper = emit
        PythonWrapperCodegen._generate_kernel_call_helper = write


@dataclass(frozen=True)
class _BySize:
    """A kernel in several variants, of which the number of elements decides.

    Attributes:
        dimension: Of the elements.
        names: Of the variants, each with the number up to which it is launched.
    """

    dimension: str
    names: Sequence[tuple[int | None, str]]

    def expression(self, wrapper: Any, args: Sequence[Any], meta: Mapping[str, Any]) -> str:
        """The variant for a call with ``args``, as an expression in generated code."""
        signature = meta.get("signature", {})
        names = [name for name, kind in signature.items() if kind != "constexpr"]
        numel = f"{self.dimension}numel"
        if (
            numel not in names
            or len(names) != len(args)
            or inductor_config.triton.autotune_at_compile_time
        ):
            return self.names[0][1]
        (number,) = wrapper.prepare_triton_kernel_call([args[names.index(numel)]])
        *others, (_, last) = self.names
        chain = "".join(f"{name} if {number} <= {limit} else " for limit, name in others)
        return f"({chain}{last})"


def _variants(
    source: str, name: str, numels: Mapping[str, sympy.Expr]
) -> tuple[dict[str, str], _BySize | None]:
    """The sources that a kernel is generated as, by name: none where it stays as it is.

    Several where other sizes have other configurations, with what says which one is launched.
    """
    dimension, steps = _steps(Kernel.of(source, name), numels)
    if not steps:
        unmasked = without_masks(source)
        return ({} if unmasked is None else {name: unmasked}), None
    sources: dict[str, str] = {}
    variants: dict[str, str] = {}
    names: list[tuple[int | None, str]] = []
    for limit, chosen in steps:
        key = json.dumps(chosen, sort_keys=True)
        if key not in variants:
            variants[key] = name if not variants else f"{name}_c{len(variants)}"
            text = with_configuration(source, chosen)
            if text is None:
                return {}, None
            sources[variants[key]] = text.replace(name, variants[key])
        names.append((limit, variants[key]))
    return sources, (_BySize(dimension, names) if len(sources) > 1 else None)


def _steps(kernel: Kernel, numels: Mapping[str, sympy.Expr]) -> tuple[str, Steps]:
    """The configurations of a kernel, and the dimension that decides which one is launched."""
    dynamic = [dim for dim, numel in numels.items() if not numel.is_Integer]
    if len(dynamic) == 1:
        (dimension,) = dynamic
        if steps := find_steps(kernel, dimension, numels[dimension]):
            return dimension, steps
    found = find(kernel)
    return "", ([] if found is None else [(None, found)])


def _numels(kernel: Any) -> dict[str, sympy.Expr]:
    """How many elements a kernel that is generated is for, by dimension.

    Several kernels in one have none.
    """
    return {tree.prefix: tree.numel for tree in getattr(kernel, "range_trees", ())}


def _origins(nodes: Sequence[Any]) -> set[Node]:
    """What a kernel computes. Between the scheduler's nodes stand marks of where loops end."""
    found = (getattr(node, "node", None) for node in nodes)
    return {origin for node in found if node is not None for origin in node.origins}
