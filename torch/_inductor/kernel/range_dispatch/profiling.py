"""A profile names the branch that ran.

Generated code asks whether a profiler runs, which takes 7 ns where none does, and only then
brackets the branch with a ``record_function``. It needs nothing of this package for that.
"""

from __future__ import annotations

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
