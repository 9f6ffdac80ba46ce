"""Puts range dispatch beside an installed PyTorch, without touching a file of it.

PyTorch calls ``_autoload`` at the end of ``import torch`` (entry point group ``torch.backends``).
It installs an import finder, so that ``torch._inductor.kernel.custom_op`` and the package
``torch._inductor.kernel.range_dispatch`` come from this patch. ``TORCH_RANGE_DISPATCH=0`` keeps
it out; ``python3 -m torch_range_dispatch status`` says what is in effect.

This module is on the path of every ``import torch``: it imports nothing but ``_overlay``, which
needs only what the interpreter has loaded already. Everything else is loaded when it is asked for.
"""

from __future__ import annotations

from torch_range_dispatch import _overlay


TYPE_CHECKING = False  # typing's own constant would cost an import of typing
if TYPE_CHECKING:
    from torch_range_dispatch._status import Status

__version__ = "0.1.0"
__all__ = ["RangeDispatchWarning", "Status", "activate", "status"]

RangeDispatchWarning = _overlay.RangeDispatchWarning


def _autoload() -> None:
    """What PyTorch calls at the end of ``import torch``, which an exception here would break."""
    _overlay.autoload(__version__)


def activate() -> Status:
    """Put the patch in place, as ``import torch`` does where entry points are loaded.

    Only needed where they are not: with ``TORCH_DEVICE_BACKEND_AUTOLOAD=0``, or with this package
    on ``sys.path`` without having been installed. Has to run before anything imports
    ``torch._inductor.kernel.custom_op``. Calling it again changes nothing.

    Returns:
        What is in effect afterwards; ``reason`` says why where the patch stayed out.

    Raises:
        ImportError: PyTorch cannot be imported.
    """
    import torch  # noqa: F401  (loads the entry point too, where that is allowed)

    _autoload()
    return status()


def status() -> Status:
    """Whether Inductor uses this patch in this process, from which file, and if not, why.

    Imports torch where that has not happened yet, since only then the answer is known; imports
    nothing of Inductor. Raises nothing: a PyTorch that is missing or broken is a reason as well.
    """
    from torch_range_dispatch import _status

    return _status.status(__version__)


def __getattr__(name: str) -> object:
    if name == "Status":
        from torch_range_dispatch._status import Status

        return Status
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
