"""What a branch knows about the sizes: its own range, and hints from inside it.

A branch is generated once, for all sizes of its range. Inductor chooses block sizes, templates
and loop splits by hints, which otherwise are the sizes of the graph's first call, and drops checks
that the possible range of a size makes needless. The ShapeEnv is shared with the graph around the
branch and with its guards, so it stays as it is; the branch asks through an allocator of its own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import sympy

from torch import SymInt
from torch._inductor.kernel.range_dispatch.ranges import Range
from torch._inductor.sizevars import SizeVarAllocator
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges


class SizesAsTraced:
    """For a ``GraphLowering``: sizes that a trace computes are what they were when it was made.

    Some functions that sizes are computed with, such as ``torch.sym_max``, have no lowering.
    """

    def run_node(self, n: Node) -> Any:
        value = n.meta.get("val")
        if n.op == "call_function" and isinstance(value, SymInt):
            return value.node.expr
        return super().run_node(n)  # type: ignore[misc]


@dataclass(frozen=True)
class Known:
    """What holds in a branch.

    Attributes:
        hints: A value for each size symbol.
        bounds: Bounds of the symbols that are narrower in the branch than around it.
        symbols: The symbols that the dispatched size is made of.
    """

    hints: Mapping[sympy.Symbol, int]
    bounds: Mapping[sympy.Symbol, ValueRanges[Any]]
    symbols: Set[sympy.Symbol]


def known_in(
    range: Range, size: sympy.Expr, hints: Mapping[sympy.Symbol, int], shape_env: ShapeEnv
) -> Known:
    """What holds where ``size`` is in ``range``, with ``hints`` from there.

    Bounds are known where the size is a symbol; where it is an expression, there are hints alone.
    """
    bounds = {}
    if isinstance(size, sympy.Symbol):
        around = shape_env.bound_sympy(size)
        within = ValueRanges(
            max(around.lower, sympy.Integer(range.start)),
            min(around.upper, int_oo if range.end == math.inf else sympy.Integer(range.end)),
        )
        bounds[size] = within
    return Known(hints, bounds, frozenset(size.free_symbols))


class HintsDisagree(Exception):
    """Code was chosen by the branch's hint that has to be guarded, and the guard would fail."""


class BranchSizes(SizeVarAllocator):
    """Answers for the sizes of a branch; what it answers by the branch's bounds needs no guard.

    Args:
        shape_env: Of the graph around the branch.
        known: What holds in the branch.
        first_call: The sizes that guards are evaluated at; by default those of ``shape_env``.
    """

    def __init__(
        self,
        shape_env: ShapeEnv,
        known: Known,
        first_call: Mapping[sympy.Symbol, Any] | None = None,
    ) -> None:
        super().__init__(shape_env)
        self._first_call = first_call
        self._hints = {s: sympy.Integer(value) for s, value in known.hints.items()}
        self._bounds = tuple({**shape_env.var_to_range, **known.bounds}.items())
        self._symbols = known.symbols
        self._guards = True

    def _hinted(self, expr: Any) -> Any:
        if not isinstance(expr, sympy.Basic):
            return expr
        return self.remove_precomputed_replacements(expr).xreplace(self._hints)

    def _static(self, expr: Any) -> bool | None:
        """Whether ``expr`` holds for all sizes of the branch, or for none; None: it depends."""
        expr = self.remove_precomputed_replacements(sympy.sympify(expr))
        if not expr.free_symbols & self._symbols:
            return None
        found = self.shape_env._maybe_evaluate_static(expr, var_to_range=self._bounds)
        return None if found is None or found not in (sympy.true, sympy.false) else bool(found)

    # Hints. These have other names in 2.11; what a release does not have is never called there.

    def optimization_hint(self, expr: Any, fallback: int | None = None) -> int:
        return int(super().optimization_hint(self._hinted(expr), fallback))

    def guarding_hint_or_throw(self, expr: Any) -> int:
        return int(super().guarding_hint_or_throw(self._hinted(expr)))

    def replace_backed_symbols_with_hints(self, expr: Any) -> Any:
        return super().replace_backed_symbols_with_hints(self._hinted(expr))

    def symbolic_hint(self, expr: Any, *args: Any, **kwargs: Any) -> Any:
        return super().symbolic_hint(self._hinted(expr), *args, **kwargs)

    # Facts.

    def statically_known_true(self, expr: Any) -> bool:
        return bool(self._static(expr)) or bool(super().statically_known_true(expr))

    def evaluate_expr(self, left: Any, *args: Any, **kwargs: Any) -> bool:
        known = self._static(left)
        return bool(super().evaluate_expr(left, *args, **kwargs)) if known is None else known

    def guard_or_false(self, left: Any) -> bool:
        return self._or(left, False)

    def guard_or_true(self, left: Any) -> bool:
        return self._or(left, True)

    def _or(self, expr: Any, otherwise: bool) -> bool:
        """Without a guard: the first call may not be in this branch at all."""
        known = self._static(expr)
        if known is None and sympy.sympify(expr).free_symbols & self._symbols:
            return otherwise
        ask = super().guard_or_true if otherwise else super().guard_or_false
        return bool(ask(expr)) if known is None else known

    def expect_true(self, expr: Any) -> bool:
        return bool(self._static(expr)) or bool(super().expect_true(expr))

    def check(self, expr: Any) -> None:
        """As in the base class; but code that the branch's hint led to may need what is not so."""
        if self._static(expr):
            return
        if not self._guards:
            raise HintsDisagree(str(expr))
        values = self._first_call or self.shape_env.backed_var_to_val
        plain = self.remove_precomputed_replacements(sympy.sympify(expr))
        if plain.xreplace(values) == sympy.false:
            raise HintsDisagree(str(expr))
        super().check(expr)

    @contextlib.contextmanager
    def no_guards(self) -> Iterator[None]:
        """Inside, ``check`` refuses what is not so in the whole branch."""
        self._guards = False
        try:
            yield
        finally:
            self._guards = True
