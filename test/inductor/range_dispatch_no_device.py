# Owner(s): ["module: inductor"]
"""Generates code for a GPU on a machine without one: nothing is compiled, nothing runs.

Most of what is generated for a GPU is generated without asking the device anything but its
properties. ``pretend`` answers those, in this process and for good, so a test that needs it starts
a process of its own.
"""

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch._dynamo import device_interface
from torch._dynamo.source import ConstantSource
from torch._inductor import config as inductor_config
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _triton


PROPERTIES = SimpleNamespace(
    name="NVIDIA H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 << 30,
    gcnArchName="",
    L2_cache_size=50 << 20,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
)


def pretend() -> None:
    """Answer, from here on, as if there were an H100."""

    def always(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": PROPERTIES,
        "synchronize": None,
    }
    interface = device_interface.CudaInterface
    more = {
        "get_compute_capability": 90,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
        "is_bf16_supported": True,
        "set_device": None,
        "exchange_device": 0,
        "maybe_exchange_device": 0,
    }
    for name, value in (answers | more).items():
        setattr(interface, name, staticmethod(always(value)))
    interface.Worker.get_device_properties = staticmethod(always(PROPERTIES))
    interface.Worker.current_device = staticmethod(always(0))
    more = {
        "get_device_capability": (9, 0),
        "get_device_name": PROPERTIES.name,
        "_lazy_init": None,
    }
    for name, value in (answers | more).items():
        setattr(torch.cuda, name, always(value))
    _triton.has_triton.cache_clear()  # it may have been asked before
    if hasattr(fake_tensor, "init_gpu_context"):
        fake_tensor.init_gpu_context = always(None)
    if _triton.has_triton_package():
        import triton
        from triton.backends.compiler import GPUTarget

        driver = SimpleNamespace(
            get_current_target=always(GPUTarget("cuda", 90, 32)),
            get_current_device=always(0),
            is_active=always(True),
        )
        triton.runtime.driver.set_active(driver)


def generated(
    function: Callable[..., Any], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> str:
    """Inductor's code for a graph whose operands' first size, as the first one's, is dynamic."""
    from torch._inductor.decomposition import decompositions

    rows = shapes[0][0]
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    symbol = env.create_symbol(rows, ConstantSource("rows"), dynamic_dim=DimDynamic.DYNAMIC)
    size = env.create_symintnode(symbol, hint=rows)
    with mode:
        operands = [
            torch.empty((size, *shape[1:]) if shape[0] == rows else shape, device="cuda").to(dtype)
            for shape in shapes
        ]
        graph = make_fx(function, tracing_mode="symbolic", decomposition_table=decompositions)(
            *operands
        )
    with V.set_fake_mode(mode):
        lowering = GraphLowering(
            graph, example_inputs=operands, shape_env=env, is_inference=True, name="no_device"
        )
        lowering.graph_inputs[symbol.name] = symbol
        lowering.graph_input_names.append(symbol.name)
        with (
            V.set_graph_handler(lowering),
            V.set_debug_handler(DebugContext()),
            inductor_config.patch(compile_threads=1),
        ):
            lowering.run(*operands)
            return str(lowering.codegen()[0].value)


def kernels(code: str) -> dict[str, str]:
    """The sources of the Triton kernels in generated code, by name."""
    return dict(re.findall(r"(\w+) = async_compile\.triton\('\w+', '''(.*?)'''", code, re.DOTALL))
