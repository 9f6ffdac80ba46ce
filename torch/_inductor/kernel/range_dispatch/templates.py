"""Whether what a branch runs depends on the size that it is made for: matmuls under max-autotune.

Inductor times what it can take for a matmul, cuBLAS and templates with their blocks, at one size.
A template has fixed blocks and takes about as long for few rows as for the ones that its blocks
have, where cuBLAS has other kernels: on an H200 the best one at 256 rows of 4096 elements takes
15.4 us at 23 rows, and a compile for 23 rows gets one that takes 11.8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sympy

import torch
from torch._inductor import config as inductor_config
from torch._inductor.utils import convert_symint_to_expr
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree


_SETTINGS = ("max_autotune", "max_autotune_gemm")

_aten = torch.ops.aten
_CHOSEN = {
    _aten.mm,
    _aten.addmm,
    _aten.bmm,
    _aten.baddbmm,
    _aten._int_mm,
    _aten._scaled_mm,
    _aten._grouped_mm,
    _aten.convolution,
}


def chosen_by_size(
    graphs: Iterable[GraphModule], config_patches: Mapping[str, Any], size: sympy.Expr
) -> bool:
    """Whether Inductor chooses among templates in any of ``graphs`` by what ``size`` is.

    Args:
        graphs: Traces of what runs.
        config_patches: The settings that it is generated under, over the current ones.
        size: The size that is dispatched on.
    """
    settings = {name: getattr(inductor_config, name) for name in _SETTINGS} | dict(config_patches)
    if not any(settings[name] for name in _SETTINGS):
        return False
    symbols = size.free_symbols
    return any(_is_chosen(node, symbols) for graph in graphs for node in graph.graph.nodes)


def _is_chosen(node: Node, symbols: set[Any]) -> bool:
    if getattr(node.target, "overloadpacket", None) not in _CHOSEN:
        return False
    nodes = (
        leaf for leaf in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(leaf, Node)
    )
    values = (
        value for value in (n.meta.get("val") for n in nodes) if isinstance(value, torch.Tensor)
    )
    return any(
        convert_symint_to_expr(length).free_symbols & symbols
        for value in values
        for length in value.shape
        if isinstance(length, torch.SymInt)
    )
