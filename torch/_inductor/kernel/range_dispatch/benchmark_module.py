"""A candidate compiled for measuring, apart from the graph that is being lowered.

Generating a kernel asks questions about sizes (does the index fit into 32 bits? is the reduction
long?), and an answer that is not static becomes a guard. In the user's graph such a guard would
mean a recompile that nobody needs, so a benchmark module gets a shape environment of its own,
with symbols of its own. What was assumed there is kept: the module serves every probe at which
the assumptions hold, and another one is made for the others.

A branch of a dispatch is generated for its own range (``sizes``), and so is a module that is given
what holds there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy

import torch
from torch._dynamo.source import ConstantSource
from torch._inductor import config as inductor_config
from torch._inductor import ir
from torch._inductor.codecache import PyCodeCache
from torch._inductor.kernel.range_dispatch import compat
from torch._inductor.kernel.range_dispatch.call import BoundCall
from torch._inductor.kernel.range_dispatch.inputs import hinted_point, Point, symbols_of
from torch._inductor.kernel.range_dispatch.sizes import (
    BranchSizes,
    HintsDisagree,
    Known,
    SizesAsTraced,
)
from torch._inductor.kernel.range_dispatch.timing import templates_replayed
from torch._inductor.kernel.range_dispatch.triton_configs import sizes_noted
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.fx.node import map_arg
from torch.fx.passes.fake_tensor_prop import FakeTensorProp


# Inductor's autotuning caches know a kernel by its name: what is found here would be used for some
# of the final kernels, and the other way round. See ``triton_configs`` for what is kept.
_SETTINGS = {
    "autotune_local_cache": False,
    "autotune_remote_cache": False,
    "benchmark_fusion": False,
    "cpp_wrapper": False,
    "graph_partition": False,
}


@dataclass(frozen=True)
class ModuleFile:
    """Where the generated code of a benchmark module is; another process can load it.

    Attributes:
        key: What PyTorch's code cache calls it.
        path: The file.
        constants: What its code refers to beside its arguments.
        symbols: As in ``BenchmarkModule``.
    """

    key: str
    path: str
    constants: Mapping[str, Any]
    symbols: tuple[sympy.Symbol, ...]

    def load(self) -> BenchmarkModule:
        module = PyCodeCache.load_by_key_path(self.key, self.path, attrs=dict(self.constants))
        return BenchmarkModule(module.call, self.symbols, (), self)


@dataclass(frozen=True)
class BenchmarkModule:
    """A compiled candidate.

    Attributes:
        function: Takes a list of the symbols' values, then the operands.
        symbols: The size symbols of the call, in the order of those values.
        assumptions: What was assumed of them.
        file: Where its code is.
        code: What of its code decides how fast it is.
    """

    function: Callable[[list[Any]], Any]
    symbols: tuple[sympy.Symbol, ...]
    assumptions: tuple[sympy.Basic, ...]
    file: ModuleFile
    code: str = ""

    def serves(self, point: Point) -> bool:
        """Whether the module may run at ``point``."""
        values = {s: sympy.Integer(v) for s, v in point.values.items()}
        return all(a.xreplace(values) == sympy.true for a in self.assumptions)

    def __call__(self, point: Point, operands: Sequence[Any]) -> Any:
        return self.function([*(point.values[s] for s in self.symbols), *operands])


@dataclass(frozen=True)
class Generated:
    """A benchmark module whose kernels are not compiled yet.

    Attributes:
        code: As in ``BenchmarkModule``.
        compile: Compiles and loads it.
    """

    code: str
    compile: Callable[[], BenchmarkModule]


@dataclass(frozen=True)
class Stage:
    """One of several modules that run in turn.

    Attributes:
        module: The module, or the file to load it from.
        takes: Places of its operands among the values so far; its outputs come after those.
    """

    module: BenchmarkModule | ModuleFile
    takes: tuple[int, ...]

    def loaded(self) -> BenchmarkModule:
        return self.module if isinstance(self.module, BenchmarkModule) else self.module.load()


@dataclass(frozen=True)
class StagedFiles(ModuleFile):
    """Where the code of a ``StagedModule`` is."""

    stages: tuple[Stage, ...]
    gives: tuple[int, ...]

    def load(self) -> BenchmarkModule:
        stages = [replace(stage, module=stage.loaded()) for stage in self.stages]
        return StagedModule.of(stages, self.gives)


@dataclass(frozen=True, kw_only=True)
class StagedModule(BenchmarkModule):
    """Modules that run one after the other; what one leaves in memory, a later one reads.

    Attributes:
        stages: The modules.
        gives: Places of the outputs among all values, of which the first are the operands.
    """

    stages: tuple[Stage, ...]
    gives: tuple[int, ...]

    @staticmethod
    def of(stages: Sequence[Stage], gives: Sequence[int]) -> StagedModule:
        modules = [stage.loaded() for stage in stages]
        of_files = [replace(s, module=m.file) for s, m in zip(stages, modules, strict=True)]
        last = modules[-1]
        return StagedModule(
            function=last.function,
            symbols=last.symbols,
            assumptions=tuple(a for module in modules for a in module.assumptions),
            file=StagedFiles(**vars(last.file), stages=tuple(of_files), gives=tuple(gives)),
            stages=tuple(stages),
            gives=tuple(gives),
        )

    def __call__(self, point: Point, operands: Sequence[Any]) -> Any:
        values = list(operands)
        for stage in self.stages:
            values += stage.loaded()(point, [values[i] for i in stage.takes])
        return [values[i] for i in self.gives]


def compile_for_benchmark(
    graph: GraphModule,
    call: BoundCall,
    point: Point,
    config_patches: Mapping[str, Any],
    name: str,
    strided: bool = False,
) -> BenchmarkModule:
    """Compile what ``generate_for_benchmark`` makes of these arguments."""
    generated = generate_for_benchmark(graph, call, point, config_patches, name, strided=strided)
    return generated.compile()


def generate_for_benchmark(
    graph: GraphModule,
    call: BoundCall,
    point: Point,
    config_patches: Mapping[str, Any],
    name: str,
    known: Known | None = None,
    strided: bool = False,
) -> Generated:
    """Generate the trace of a candidate with symbolic sizes, as if first called at ``point``.

    Args:
        graph: From the operands of ``call`` to a tuple of tensors.
        call: The call that is tuned.
        point: The sizes that questions without a static answer are answered for.
        config_patches: Inductor settings of the candidate.
        name: For the generated code.
        known: What holds in the branch that the code is for, in the symbols of the call; None for
            code that is for no branch.
        strided: Whether its outputs have the strides that they were traced with.
    """
    # Not there yet when Inductor imports this module.
    from torch._inductor.graph import GraphLowering

    class Lowering(SizesAsTraced, GraphLowering):
        pass

    world = _World(call, point)
    # V.graph and V.fake_mode are those of the user's graph until here.
    outer = V.graph
    settings = {**_SETTINGS, **config_patches}
    with V.set_fake_mode(world.mode):
        own = with_values(graph, world.mode, world.operands)
        if strided:
            _keep_strides(own.graph.output_node())
        lowering = Lowering(
            own,
            example_inputs=list(world.operands),
            shape_env=world.env,
            is_inference=outer.is_inference,
            is_backward=outer.is_backward,
            name=f"benchmark_{name}",
        )
        # In a backward graph, the inputs at these places may be overwritten; ours are shared.
        lowering.bw_donated_idxs = None
        if known is not None:
            lowering.sizevars = world.sizes(known)
        for symbol in world.symbols.values():
            lowering.graph_inputs[symbol.name] = symbol
            lowering.graph_input_names.append(symbol.name)
        with (
            V.set_graph_handler(lowering),
            inductor_config.patch(settings),
            _sums_of_a_branch(known),
            templates_replayed(),
            sizes_noted(),
        ):
            lowering.run(*world.operands)
            generated = lowering.codegen()
    code = _code_that_counts(generated[0].value)

    def compiled() -> BenchmarkModule:
        lowering.codegen = lambda: generated
        with (
            V.set_fake_mode(world.mode),
            V.set_graph_handler(lowering),
            inductor_config.patch(settings),
        ):
            module = lowering.compile_to_module()
        symbols = tuple(world.symbols)
        # What compile_to_module gives the module that it loads, on every release.
        constants = {
            **lowering.constants,
            **lowering.torchbind_constants,
            **lowering.opaque_value_type_classes,
        }
        file = ModuleFile(module.key, module.__file__, constants, symbols)
        return BenchmarkModule(module.call, symbols, world.assumptions(), file, code)

    return Generated(code, compiled)


def _sums_of_a_branch(known: Known | None) -> contextlib.AbstractContextManager[None]:
    """As when a branch is generated."""
    if known is None:
        return contextlib.nullcontext()
    return compat.sums_without_guards(HintsDisagree)


def _code_that_counts(source: str) -> str:
    """``source`` without comments, and without what would call it by itself, at example sizes."""
    harness = re.search(r"^def (?:get_args|benchmark_compiled_module)\b", source, re.MULTILINE)
    code = source[: harness.start()] if harness is not None else source
    return re.sub(r"^\s*# .*\n", "", code, flags=re.MULTILINE)


class _World:
    """A shape environment with a symbol for each of the call's, and the operands in it."""

    def __init__(self, call: BoundCall, point: Point) -> None:
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env, allow_non_fake_inputs=True)
        outer = V.graph.sizevars.shape_env.var_to_range
        self.symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        for symbol in symbols_of(call):
            own = self.env.create_symbol(
                point.values[symbol],
                ConstantSource(f"range_dispatch_{symbol.name}"),
                dynamic_dim=DimDynamic.DYNAMIC,
                do_not_specialize_zero_one=True,
            )
            bounds = outer.get(symbol)
            if bounds is not None and point.values[symbol] in bounds:
                self.env.var_to_range[own] = bounds
            self.symbols[symbol] = own
        self.call = call
        self.point = point
        with self.mode:
            self.operands = tuple(self._operand(operand) for operand in call.operands)

    def _operand(self, operand: Any) -> Any:
        if not isinstance(operand, ir.IRNode):
            return self._size(operand)
        return torch.empty_strided(
            [self._size(size) for size in operand.get_size()],
            [self._size(stride) for stride in operand.get_layout().stride],
            dtype=operand.get_dtype(),
            device=operand.get_device(),
        )

    def _size(self, expr: Any) -> int | torch.SymInt:
        expr = sympy.sympify(expr)
        if expr.is_Integer:
            return int(expr)
        own = expr.xreplace(self.symbols)
        return self.env.create_symintnode(own, hint=self.point.evaluate(expr))

    def sizes(self, known: Known) -> BranchSizes:
        """The sizes of a branch, ``known`` in the symbols of the call."""
        own = self.symbols
        first_call = hinted_point(self.call, sympy.S.Zero).values
        return BranchSizes(
            self.env,
            Known(
                hints={own[s]: value for s, value in known.hints.items() if s in own},
                bounds={own[s]: bounds for s, bounds in known.bounds.items() if s in own},
                symbols={own[s] for s in known.symbols if s in own},
            ),
            first_call={own[s]: sympy.Integer(value) for s, value in first_call.items()},
        )

    def assumptions(self) -> tuple[sympy.Basic, ...]:
        """The guards that came up, in the symbols of the call."""
        back = {own: symbol for symbol, own in self.symbols.items()}
        return tuple(guard.expr.xreplace(back) for guard in self.env.guards)


def _keep_strides(output: Node) -> None:
    """Say to Inductor what a compile of a user's graph does of what that returns."""
    (results,) = output.args
    output.meta["user_visible_output_idxs"] = list(range(len(results)))
    output.meta["original_output_strides"] = [node.meta["val"].stride() for node in results]


def with_values(graph: GraphModule, mode: FakeTensorMode, operands: Sequence[Any]) -> GraphModule:
    """``graph`` with the fake values of ``operands`` on its nodes; the original keeps its own."""
    copied = Graph()
    copied.output(copied.graph_copy(graph.graph, {}))
    own = GraphModule(graph, copied)
    FakeTensorProp(own, mode).propagate_dont_convert_inputs(*operands)
    for node in copied.nodes:
        # What a layout constraint compares the operands of an opaque op with.
        if "eager_input_vals" in node.meta:
            values = map_arg((node.args, node.kwargs), lambda used: used.meta["val"])
            node.meta["eager_input_vals"] = values
    return own
