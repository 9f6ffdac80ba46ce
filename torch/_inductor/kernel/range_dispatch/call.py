"""One call of a registered op in the graph being lowered, bound to the op's schema.

What an implementation is traced, measured and generated with is always the same thing: the
operands (tensors and symbolic integers, in the order in which they appear in the schema) and
the arguments around them, in which an ``Operand`` marks each operand's place. Everything that
is not an operand is a constant of the call, and is bound before tracing.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy

import torch
from torch._inductor import ir
from torch._inductor.virtualized import V
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils import _pytree as pytree
from torch.utils._ordered_set import OrderedSet


class Unsupported(Exception):
    """The call holds a construct that cannot be dispatched; the op is to be lowered normally."""


@dataclass(frozen=True)
class Operand:
    """Stands for the ``index``-th operand in the arguments of a call."""

    index: int


@dataclass(frozen=True)
class BoundCall:
    """A call of ``op``.

    Attributes:
        op: The overload that is called.
        arguments: Every argument of the schema by name, defaults filled in, with operands
            replaced by ``Operand``.
        supplied: Names of the arguments that the call gives another value than the default. (What
            comes here has defaults filled in or left out, whether the user gave them or not.)
        operands: Realized IR nodes and symbolic integer expressions.
        node: The call in the graph that is being lowered; None where it is not a node there.
        nodes: For each operand the node that it is the value of, if it is one.
    """

    op: OpOverload
    arguments: Mapping[str, Any]
    supplied: frozenset[str]
    operands: tuple[Any, ...]
    node: Node | None = None
    nodes: tuple[Node | None, ...] = ()

    def fill(self, operands: Sequence[Any]) -> dict[str, Any]:
        """The arguments, with ``operands`` (fake tensors, say) in their places."""
        return {
            name: pytree.tree_map_only(Operand, lambda o: operands[o.index], value)
            for name, value in self.arguments.items()
        }

    @property
    def has_consumers(self) -> bool:
        """Whether more is computed than the op."""
        return False

    def described(self) -> list[str]:
        """What is computed beside the op, for a key."""
        return []

    def neighbours(self) -> tuple[str, ...]:
        """What is computed beside the op, for people."""
        return ()

    def finish(self, outputs: Sequence[Any], operands: Sequence[Any]) -> Sequence[Any]:
        """What is left to be computed of the op's flat ``outputs``: here, nothing."""
        return outputs

    def results(self, outputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """What ``finish`` is expected to return, as fake tensors, given the op's own."""
        return outputs

    def operand_of(self, name: str) -> Operand | None:
        """The operand that the argument ``name`` is; None where it is anything else."""
        value = self.arguments.get(name)
        return value if isinstance(value, Operand) else None

    def holds_operand(self, name: str) -> bool:
        """Whether an operand is in the argument ``name``: alone, or in a list."""
        leaves = pytree.tree_leaves(self.arguments[name])
        return any(isinstance(leaf, Operand) for leaf in leaves)

    def names(self) -> list[str]:
        """For each operand the argument it came in, as ``x`` or, out of a list, ``xs[1]``."""
        found: dict[int, str] = {}
        for name, value in self.arguments.items():
            for path, leaf in pytree.tree_flatten_with_path(value)[0]:
                if isinstance(leaf, Operand):
                    found[leaf.index] = name + pytree.keystr(path)
        return [found[i] for i in range(len(self.operands))]


def bind(
    op: OpOverload,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    keep: bool = False,
    node: Node | None = None,
) -> BoundCall:
    """Bind what Inductor passes to a lowering to the schema of ``op``, and realize its tensors.

    Args:
        op: What is called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        keep: Whether what is given stays unrealized, and copies of it are realized.
        node: The call in the graph that is being lowered, if it is there.

    Raises:
        Unsupported: An argument is of a kind that no implementation can be traced with.
    """
    schema = op._schema.arguments
    if len(args) > len(schema):
        raise Unsupported(f"{len(args)} arguments for the {len(schema)} of the schema")
    given = dict(zip((a.name for a in schema), args, strict=False)) | dict(kwargs)
    if unknown := given.keys() - {a.name for a in schema}:
        raise Unsupported(f"arguments {sorted(unknown)} that the schema does not have")
    operands: list[Any] = []
    arguments: dict[str, Any] = {}
    supplied = set()
    for argument in schema:
        name = argument.name
        if name in given:
            arguments[name] = _replace_operands(name, given[name], operands, keep)
            if not _is_default(arguments[name], argument):
                supplied.add(name)
        elif argument.has_default_value():
            arguments[name] = argument.default_value
        else:
            raise Unsupported(f"no value for argument {name!r}")
    call = BoundCall(op, arguments, frozenset(supplied), tuple(operands))
    return replace(call, node=node, nodes=_operand_nodes(call, node))


def lowered_node(op: OpOverload) -> Node | None:
    """The call of ``op`` that is being lowered; None where that is not a node of V.graph's own."""
    node = V.graph.current_node
    found = node is not None and node.target is op and node.graph is V.graph.graph
    return node if found else None


def _operand_nodes(call: BoundCall, node: Node | None) -> tuple[Node | None, ...]:
    if node is None:
        return (None,) * len(call.operands)
    names = (a.name for a in call.op._schema.arguments)
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    found = {
        name + pytree.keystr(path): leaf
        for name, value in given.items()
        for path, leaf in pytree.tree_flatten_with_path(value)[0]
        if isinstance(leaf, Node)
    }
    return tuple(found.get(name) for name in call.names())


def _is_default(value: Any, argument: Any) -> bool:
    if not argument.has_default_value():
        return False
    default = argument.default_value
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return list(value) == list(default)
    return type(value) is type(default) and bool(value == default)


def _replace_operands(name: str, value: Any, operands: list[Any], keep: bool) -> Any:
    def replace(leaf: Any) -> Any:
        if isinstance(leaf, sympy.Integer):
            return int(leaf)
        if isinstance(leaf, ir.ShapeAsConstantBuffer):
            leaf = leaf.expr
        if is_tensor(leaf):
            operands.append(realize(leaf, keep=keep))
        elif isinstance(leaf, sympy.Expr) and leaf.is_integer:
            operands.append(leaf)
        elif isinstance(leaf, (sympy.Basic, ir.IRNode, torch.Tensor, torch.ScriptObject)):
            raise Unsupported(f"argument {name!r} is a {type(leaf).__name__}")
        else:
            return leaf
        return Operand(len(operands) - 1)

    return pytree.tree_map(
        replace, value, is_leaf=lambda v: isinstance(v, (ir.IRNode, sympy.Basic))
    )


def is_tensor(node: Any) -> bool:
    """Whether ``node`` is IR for a strided tensor (and not a generator, a script object, None)."""
    if isinstance(node, ir.TensorBox):
        return True
    return isinstance(node, (ir.StorageBox, ir.BaseView, ir.Buffer)) and not isinstance(
        node, (ir.NoneAsConstantBuffer, ir.ShapeAsConstantBuffer)
    )


def realize(node: Any, keep: bool = False) -> ir.TensorBox:
    """``node`` as a buffer or a strided view of one, its layout decided.

    A trace is made for one set of strides, so they must not change after it. An operand may come
    as unrealized pointwise IR (always on 2.11, where no layout constraint ran before). With
    ``keep`` it stays that, and a copy is realized, which leaves no kernel if nothing reads it.
    """
    if keep and (found := in_no_buffer(node)) is not None:
        loops, views = found
        node = viewed(ir.TensorBox.create(loops), views)
    realized = ir.ExternKernel.realize_input(node)
    if ir.is_storage_and_layout(realized):
        ir.as_storage_and_layout(realized, freeze=True)
    with made_from(getattr(node, "origins", ())):
        return ir.TensorBox(realized)


@contextlib.contextmanager
def made_from(origins: Iterable[Node]) -> Iterator[None]:
    """Inside, IR has these origins, which kernels are named after, and no others."""
    before = ir.IRNode._current_origins
    ir.IRNode._current_origins = OrderedSet(origins)
    try:
        yield
    finally:
        ir.IRNode._current_origins = before


def unrealized(node: Any) -> ir.Pointwise | None:
    """A copy of the loops of a tensor, or of a reshaped one, that is in no buffer yet."""
    base = node.data if isinstance(node, ir.TensorBox) else node
    while isinstance(base, (ir.View, ir.SqueezeView)):
        base = base.data
    if not (isinstance(base, ir.StorageBox) and isinstance(base.data, ir.Pointwise)):
        return None
    with made_from(node.origins):
        return ir.Pointwise(
            device=node.get_device(),
            dtype=node.get_dtype(),
            inner_fn=node.make_loader(),
            ranges=list(node.get_size()),
        )


def in_no_buffer(node: Any) -> tuple[ir.Pointwise, tuple[ir.BaseView, ...]] | None:
    """The loops of a tensor that is in no buffer yet, and the views of their result that it is.

    A reshaped result has loops of its own. One that is permuted or expanded stays a view of what
    it is made from: where that has to be in memory, it need not be written in another order.
    """
    if (loops := unrealized(node)) is not None:
        return loops, ()
    base = node.data if isinstance(node, ir.TensorBox) else node
    views: list[ir.BaseView] = []
    while isinstance(base, (ir.ExpandView, ir.PermuteView, ir.SqueezeView, ir.View)):
        views.insert(0, base)
        base = base.data
    if not (views and isinstance(base, ir.StorageBox) and isinstance(base.data, ir.Pointwise)):
        return None
    return copy.copy(base.data), tuple(views)


def viewed(box: ir.TensorBox, views: Sequence[ir.BaseView]) -> ir.TensorBox:
    """The same views of ``box``, the first of them of itself."""
    if not views:
        return box
    data = box.data
    for view in map(copy.copy, views):
        object.__setattr__(view, "data", data)
        data = view
    with made_from(data.origins):
        return ir.TensorBox(data)
