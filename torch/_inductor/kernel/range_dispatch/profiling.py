"""A profile names the branch that ran.

Generated code asks whether a profiler runs, which takes 7 ns where none does, and only then
brackets the branch with a ``record_function``. It needs nothing of this package for that.

Generated C++ has no such question to ask: libtorch's C interface can begin and end a record, which
takes 30 to 60 ns where no profiler runs, but does not tell whether one does. So it has the mark
where Inductor puts marks around C++ kernels too: under ``cpp.enable_kernel_profile``.
"""

from __future__ import annotations

from torch._inductor import config as inductor_config
from torch._inductor.codegen.common import IndentedBuffer


# What generated code needs at its top.
IMPORT = "import torch.autograd.profiler as range_dispatch_profiler"


def write_begin(code: IndentedBuffer, node: str, title: str) -> None:
    """Generate the beginning of the branch ``title`` of ``node``, a name unique in the scope."""
    record = f"range_dispatch_profiler.record_function({title!r}).__enter__()"
    code.writeline(f"{node}_mark = range_dispatch_profiler._is_profiler_enabled and {record}")


def write_end(code: IndentedBuffer, node: str) -> None:
    """Generate the end of whichever branch ran."""
    code.writeline(f"{node}_mark and {node}_mark.__exit__(None, None, None)")


def write_cpp(code: IndentedBuffer, node: str, title: str) -> None:
    """Generate the mark of a branch in C++, which ends with the block that it is in."""
    if inductor_config.cpp.enable_kernel_profile:
        code.writeline(f'RAIIAtenRecordFunctionHandle {node}_mark("{title}", nullptr);')
