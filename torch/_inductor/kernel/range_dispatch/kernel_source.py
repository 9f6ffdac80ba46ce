"""The source of a Triton kernel that Inductor generates, rewritten before it is compiled.

Where the number of elements is not known, each load is masked by whether its element is there. But
a block of one row always has its row, and where rows are taken apart in 64 parts there are 64 times
as many elements as rows: blocks of 2 or 32 of them are always full. What a static compile knows of
its sizes, a dynamic one often knows of its blocks. It matters most for what runs: on an H100 masks
are a tenth of the time of a softmax over 4096 columns.

Inductor makes one kernel of two that have the same source, and sizes that are not known do not
stand in it. So what is used of them is first written there, as a comment (``with_facts``): what is
left out of a kernel is decided by its source alone.
"""

from __future__ import annotations

import ast
import copy
import logging
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy

from torch._inductor.kernel.range_dispatch.trace import first_line
from torch._inductor.virtualized import V


log = logging.getLogger(__name__)

# A configuration: block sizes, warps, stages, as Triton names them.
Configuration = dict[str, Any]

# How many elements a kernel is for, by dimension.
Numels = Mapping[str, sympy.Expr]

# What Inductor chooses among configurations for by size alone. Other kernels (templates, the
# user's, splits that cooperate) may need more than a configuration.
_HEURISTICS = {"pointwise", "reduction", "persistent_reduction"}
_GRIDS = {"Grid1D", "Grid2D", "Grid3D", "Grid2DWithYZOverflow"}

# What is left of the arguments of a heuristic.
_KEPT = ("filename", "triton_meta", "inductor_meta")

# Where a kernel's source has a size, and where it says what another one is a multiple of.
_NUMEL = re.compile(r"^    (x|r\d_)numel = (\d+)$", re.MULTILINE)
_FACT = re.compile(r"^\s*# (x|r\d_)numel is a multiple of (\d+)$", re.MULTILINE)
_LARGEST_BLOCK = 4096

# Loops over a row do not get smaller blocks.
_SMALL_BLOCK = 64

# What makes blocks other than the heuristic offers, and not smaller.
_OTHER_BLOCKS = ("coordinate_descent_tuning", "min_xblock", "min_rblock")

# Where a kernel finds out which elements there are. Of y there may be more programs than blocks,
# where there are too many for one dimension of the grid.
_MASK = re.compile(r"^( +(x|r\d_)mask = )\2index < \2numel$", re.MULTILINE)


def with_facts(source: str, numels: Numels) -> str:
    """A kernel's source with what is known of sizes that have masks and do not stand in it."""
    multiples = {
        prefix: _power_of_two_in(numels[prefix])
        for _, prefix in _MASK.findall(source)
        if prefix in numels and not numels[prefix].is_Integer
    }
    facts = [f"# {p}numel is a multiple of {n}\n" for p, n in sorted(multiples.items()) if n > 1]
    return "".join([source.rstrip("\n"), "\n", *facts]) if facts else source


def without_facts(source: str) -> str:
    """What the source of a kernel was before ``with_facts``, but for how many lines end it."""
    return _FACT.sub("", source)


def _power_of_two_in(numel: sympy.Expr) -> int:
    """The largest power of two that divides a size whatever it is, up to the largest block."""
    power = 1
    while power < _LARGEST_BLOCK and V.graph.sizevars.statically_known_multiple_of(
        numel, 2 * power
    ):
        power *= 2
    return power


def with_configuration(source: str, chosen: Mapping[str, Any]) -> str | None:
    """A kernel's source with one configuration; None where it is not such a kernel."""
    found = _Heuristic.of(source)
    if found is None:
        return None
    kept = {name: ast.get_source_segment(found.source, found.given[name]) for name in _KEPT}
    arguments = [f"config={dict(chosen)!r}", *(f"{name}={text}" for name, text in kept.items())]
    lines = ["@triton_heuristics.fixed_config(", *(f"    {a}," for a in arguments), ")"]
    before, _, body = found.parts()
    return "\n".join([*before, *lines, _without_masks(body, [chosen])]) + "\n"


def without_masks(source: str) -> str | None:
    """A kernel's source without the masks that none of its configurations needs.

    None where it is not such a kernel, or needs all of its masks.
    """
    found = _Heuristic.of(source)
    if found is None or not _MASK.search(found.source):
        return None
    before, heuristic, body = found.parts()
    try:
        unmasked = _without_masks(body, found.configurations())
    except Exception as reason:
        log.debug("a kernel keeps its masks: %s", first_line(reason))
        return None
    return None if unmasked == body else "\n".join([*before, *heuristic, unmasked]) + "\n"


def _without_masks(body: str, configurations: Sequence[Mapping[str, Any]]) -> str:
    """The function of a kernel with masks that are true throughout said to be.

    As Inductor writes them where it knows the size, and Triton drops them.

    >>> print(_without_masks("    xmask = xindex < xnumel", [{"XBLOCK": 1}]))
        xmask = tl.full(xindex.shape, True, tl.int1)
    >>> print(_without_masks("    xmask = xindex < xnumel", [{"XBLOCK": 1}, {"XBLOCK": 2}]))
        xmask = xindex < xnumel
    """
    multiples = {p: int(n) for p, n in (*_NUMEL.findall(body), *_FACT.findall(body))}

    def replaced(line: re.Match[str]) -> str:
        before, prefix = line.groups()
        blocks = {configuration.get(f"{prefix.upper()}BLOCK") for configuration in configurations}
        multiple = multiples.get(prefix, 1)
        if not blocks or not all(block and multiple % block == 0 for block in blocks):
            return line.group()
        return f"{before}tl.full({prefix}index.shape, True, tl.int1)"

    return _MASK.sub(replaced, body)


def offered_for(source: str, sizes: Iterable[Mapping[str, int]]) -> list[Any]:
    """What Inductor lets a kernel choose among where it is made for any of ``sizes``.

    Those are numbers of elements by dimension; what is offered are each a ``triton.Config``, none
    for a kernel whose configurations do not go by size alone. A loop over a row has each of its
    configurations with half the block, too. Inductor tries that one where registers keep a device
    from being full (``CachingAutotuner._dynamic_scale_rblock``), which depends on the size; on an
    H200 an RMSNorm with blocks of 4096 takes 4.36 us at 300 rows, and 4.56 with 8192.
    """
    found = _Heuristic.of(source)
    if found is None:
        return []
    hints = [{dim: 1 << max(n - 1, 0).bit_length() for dim, n in each.items()} for each in sizes]
    different = [each for place, each in enumerate(hints) if each not in hints[:place]]
    offered = [config for each in different for config in found.offered(each)]
    halved = [_with_half_the_block(config) for config in offered] if found.may_halve() else []
    return offered + [config for config in halved if config is not None]


def _with_half_the_block(config: Any) -> Any:
    """A configuration with the largest of its blocks in a row halved; None if it is small."""
    blocks = {name: n for name, n in config.kwargs.items() if re.fullmatch(r"R\d_BLOCK", name)}
    largest = max(blocks, key=blocks.__getitem__, default="")
    if blocks.get(largest, 0) < 2 * _SMALL_BLOCK:
        return None
    other = copy.deepcopy(config)
    other.kwargs[largest] //= 2
    return other


@dataclass(frozen=True)
class _Heuristic:
    """The decorator that gives a kernel its configurations.

    Attributes:
        source: The kernel's source.
        call: The decorator in it.
        given: Its arguments.
    """

    source: str
    call: ast.Call
    given: Mapping[str | None, ast.expr]

    @staticmethod
    def of(source: str) -> _Heuristic | None:
        """That of a kernel; None where it has none, or one that does not go by size alone."""
        source = textwrap.dedent(source)
        calls = [
            decorator
            for function in ast.parse(source).body
            if isinstance(function, ast.FunctionDef)
            for decorator in function.decorator_list
            if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Attribute)
        ]
        if len(calls) != 1:
            return None
        (call,) = calls
        assert isinstance(call.func, ast.Attribute)
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        meta = _entries(given.get("inductor_meta"))
        if call.func.attr not in _HEURISTICS or meta.get("grid_type") not in _GRIDS:
            return None
        return None if "RSPLIT_SIZE" in meta else _Heuristic(source, call, given)

    def parts(self) -> tuple[list[str], list[str], str]:
        """The lines before the decorator, its own, and the rest."""
        lines, end = self.source.splitlines(), self.call.end_lineno
        start = self.call.lineno - 1
        return lines[:start], lines[start:end], "\n".join(lines[end:])

    def may_halve(self) -> bool:
        """Whether Inductor would try smaller blocks of a row than the heuristic gives."""
        assert isinstance(self.call.func, ast.Attribute)
        meta = _entries(self.given.get("inductor_meta"))
        return self.call.func.attr == "reduction" and bool(meta.get("dynamic_scale_rblock"))

    def configurations(self) -> list[Configuration]:
        """What the kernel will choose among; what it tries beside that has smaller blocks.

        Raises:
            ValueError: It may try larger blocks, too.
        """
        meta = _entries(self.given["inductor_meta"])
        if other := [name for name in _OTHER_BLOCKS if meta.get(name)]:
            raise ValueError(f"its blocks depend on {other}")
        return [dict(configuration.kwargs) for configuration in self.offered()]

    def offered(self, sizes: Mapping[str, int] | None = None) -> list[Any]:
        """What the heuristic gives for the sizes that the kernel is hinted to be for, or others.

        Raises:
            KeyError: The kernel has dimensions that ``sizes`` does not have.
        """
        from torch._inductor.runtime import hints, triton_heuristics

        keywords = [*self.call.keywords, ast.keyword("return_configs", ast.Constant(True))]
        if sizes is not None:
            own = ast.literal_eval(self.given["size_hints"])
            made_for = ast.parse(repr({dim: sizes[dim] for dim in own}), mode="eval").body
            keywords = [k for k in keywords if k.arg != "size_hints"]
            keywords.append(ast.keyword("size_hints", made_for))
        call = ast.Call(self.call.func, self.call.args, keywords)
        # What the arguments are written with, as in the kernel's own file.
        scope = {**vars(hints), "triton_heuristics": triton_heuristics, "__file__": None}
        expression = ast.fix_missing_locations(ast.Expression(call))
        found: list[Any] = eval(compile(expression, "<kernel>", "eval"), scope)
        return found


def _entries(meta: ast.expr | None) -> dict[Any, Any]:
    """The constants in a dict that is written out; None for what is no constant."""
    if not isinstance(meta, ast.Dict):
        return {}
    return {
        key.value: value.value if isinstance(value, ast.Constant) else None
        for key, value in zip(meta.keys, meta.values, strict=True)
        if isinstance(key, ast.Constant)
    }
