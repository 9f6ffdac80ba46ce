"""What is in effect in this process, found out by looking where Python would look.

The overlay knows what it meant to do. Whether that holds is another question: another finder may
stand before ours, or the module may have been imported already. So the answer comes from the
imported module, or else from asking the finders in the order in which an import would.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from torch_range_dispatch import _overlay


if TYPE_CHECKING:
    from types import ModuleType

AUTOLOAD_SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"

# States that only a look at the process can tell, beside those of _overlay.
MISSING = "no torch"
NOT_LOADED = "not loaded"
DISPLACED = "displaced"


@dataclass(frozen=True)
class Status:
    """Whether range dispatch is in effect, and where it comes from.

    Attributes:
        release: the PyTorch release, such as ``"2.13.0+cpu"``; None where there is none
        active: Inductor uses range dispatch, be it through the overlay or because it has landed
        state: one word or two for ``reason``, for programs to test
        source: the file that ``torch._inductor.kernel.custom_op`` comes, or would come, from
        reason: a sentence: why it is active, or why not and what to do
        version: the version of the patch
        python: the version of the interpreter
        executable: the interpreter
    """

    release: str | None
    active: bool
    state: str
    source: str | None
    reason: str
    version: str
    python: str
    executable: str


def status(version: str) -> Status:
    release, failure = _import_torch()
    torch = sys.modules.get("torch")
    if torch is None or release is None:
        state, source, reason = MISSING, None, failure
    else:
        source = locate(_overlay.CUSTOM_OP, torch)
        state, reason = _judge(torch, source)
    return Status(
        release=release,
        active=state in (_overlay.ACTIVE, _overlay.LANDED),
        state=state,
        source=source,
        reason=reason,
        version=version,
        python=platform.python_version(),
        executable=sys.executable,
    )


def locate(name: str, torch: ModuleType) -> str | None:
    """The file of a module of ``torch._inductor.kernel``, without importing anything of Inductor.

    ``importlib.util.find_spec`` would import the parents of ``name``. The finders do not need
    them, only the folders that the parent would search, which follow from torch's own.
    """
    loaded = sys.modules.get(name)
    if loaded is not None:
        return getattr(loaded, "__file__", None)
    folders = [os.path.join(folder, _overlay.KERNEL_FOLDER) for folder in torch.__path__]
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)  # finders of the old kind have none
        spec = find_spec and find_spec(name, folders)
        if spec:
            return spec.origin
    return None


def _import_torch() -> tuple[str | None, str]:
    """The release of torch, or None and the reason why it cannot be used."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            return None, f"PyTorch fails to import: {error}. Repair it, then try again"
    except Exception as error:  # a missing shared library is an OSError, for instance
        first_line = str(error).partition("\n")[0]
        return None, f"PyTorch fails to import: {first_line}. Repair it, then try again"
    else:
        release = _overlay.release_of(torch)
        if release is not None:
            return release, ""
    return None, (
        f"PyTorch is not installed for {sys.executable}: install '{_overlay.REQUIREMENT}', or run "
        "this with the Python that has it"
    )


def _judge(torch: ModuleType, source: str | None) -> tuple[str, str]:
    """State and reason, given where the replaced module comes from."""
    ours = _overlay.finder.custom_op
    machinery = locate(_overlay.MACHINERY, torch)
    beside = source and os.path.join(os.path.dirname(source), "range_dispatch", "__init__.py")
    whole = bool(beside) and _overlay.same_file(machinery, str(beside))
    if whole and _overlay.same_file(source, ours):
        return _overlay.ACTIVE, "Inductor's custom op tuning comes from the patch"
    if whole and _overlay.has_landed(torch):
        return _overlay.LANDED, "this torch contains range dispatch itself"
    attempt = _overlay.outcome
    if attempt is None:
        return NOT_LOADED, _why_not_loaded()
    if attempt[0] not in (_overlay.ACTIVE, _overlay.LANDED):
        return attempt
    return DISPLACED, (
        f"the patch was put in place, and yet {_overlay.CUSTOM_OP} comes from {source} and "
        f"{_overlay.MACHINERY} from {machinery}: another import finder stands before it, or the "
        "modules were exchanged afterwards. sys.meta_path and sys.modules show which"
    )


def _why_not_loaded() -> str:
    remedy = "import torch_range_dispatch; torch_range_dispatch.activate() puts the patch in place"
    if os.environ.get(AUTOLOAD_SWITCH, "1") != "1":
        value = os.environ[AUTOLOAD_SWITCH]
        return f"{AUTOLOAD_SWITCH}={value} keeps torch from loading any entry point; {remedy}"
    if not any(e.name == _overlay.ENTRY_POINT for e in entry_points(group="torch.backends")):
        return (
            "torch_range_dispatch can be imported but is not installed, so torch does not know "
            f"it: pip install it; or {remedy}"
        )
    return f"torch did not load the entry point torch.backends:{_overlay.ENTRY_POINT}; {remedy}"
