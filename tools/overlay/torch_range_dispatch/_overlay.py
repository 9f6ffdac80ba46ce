"""Whether the patch goes in, and the import finder that puts it there.

``decide`` looks and changes nothing; ``autoload`` acts on what it found. All of this runs inside
``import torch``, so no import here may cost time: what is needed only in a rare case is imported
in that case.
"""

from __future__ import annotations

import os
import sys


TYPE_CHECKING = False  # typing's own constant would cost an import of typing
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

SWITCH = "TORCH_RANGE_DISPATCH"
ENTRY_POINT = "range_dispatch"  # in the group torch.backends
OLDEST = (2, 11)
NEWEST = (2, 15)
SUPPORTED = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
REQUIREMENT = f"torch>={OLDEST[0]}.{OLDEST[1]},<{NEWEST[0]}.{NEWEST[1] + 1}"

CUSTOM_OP = "torch._inductor.kernel.custom_op"
MACHINERY = "torch._inductor.kernel.range_dispatch"
KERNEL_FOLDER = os.path.join("_inductor", "kernel")

# What can come of it. The first two are fine, and so is OFF, which somebody asked for.
ACTIVE = "active"
LANDED = "landed"
OFF = "off"
UNSUPPORTED = "unsupported"
TOO_LATE = "too late"
BROKEN = "broken"

WARNED_ABOUT = (UNSUPPORTED, TOO_LATE, BROKEN)


class RangeDispatchWarning(UserWarning):
    """The patch is installed and stayed out, though nobody asked it to."""


class TreeFinder:
    """Answers the imports of the replaced module and of the added package, and no others.

    The modules inside the added package need no answer: Python looks for them in the package's
    own folder.
    """

    def __init__(self, kernel_folder: str) -> None:
        package = os.path.join(kernel_folder, "range_dispatch")
        self.custom_op = os.path.join(kernel_folder, "custom_op.py")
        self._places: dict[str, tuple[str, list[str] | None]] = {
            CUSTOM_OP: (self.custom_op, None),
            MACHINERY: (os.path.join(package, "__init__.py"), [package]),
        }

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        place = self._places.get(fullname)
        if place is None:
            return None
        from importlib.util import spec_from_file_location

        file, submodules = place
        return spec_from_file_location(fullname, file, submodule_search_locations=submodules)

    def complete(self) -> bool:
        return all(os.path.isfile(file) for file, _ in self._places.values())

    def __repr__(self) -> str:
        return f"<torch_range_dispatch.TreeFinder {os.path.dirname(self.custom_op)}>"


def kernel_folder() -> str:
    """The patch's ``torch/_inductor/kernel``: in the installed package, else in the repository."""
    here = os.path.dirname(os.path.abspath(__file__))
    installed = os.path.join(here, "_tree", "torch", KERNEL_FOLDER)
    if os.path.isdir(installed):
        return installed
    repository = os.path.dirname(os.path.dirname(os.path.dirname(here)))
    return os.path.join(repository, "torch", KERNEL_FOLDER)


finder = TreeFinder(kernel_folder())

# What the last attempt came to, for status(): (state, reason). None: nothing was tried.
outcome: tuple[str, str] | None = None


def release_of(torch: ModuleType | None) -> str | None:
    """The release of an imported torch; None where there is none.

    A folder named ``torch`` without an ``__init__.py``, such as this repository's, imports as an
    empty namespace package. That is no torch either.
    """
    release = getattr(torch, "__version__", None)
    return None if release is None else str(release)


def is_supported(release: str) -> bool:
    """Whether the patch knows this release; what follows the second number does not matter.

    >>> [is_supported(r) for r in ("2.11.0", "2.13.0+cpu", "2.15.1a0+git12ab", "2.10.2", "2.16.0")]
    [True, True, True, False, False]
    """
    import re

    numbers = re.match(r"\s*v?(\d+)\.(\d+)", release)
    return numbers is not None and OLDEST <= (int(numbers[1]), int(numbers[2])) <= NEWEST


def is_switched_off(environ: Mapping[str, str]) -> bool:
    return environ.get(SWITCH, "").strip().lower() in ("0", "off", "false", "no")


def has_landed(torch: ModuleType) -> bool:
    """Whether torch's own folder contains the patch already."""
    inside = os.path.join(KERNEL_FOLDER, "range_dispatch", "__init__.py")
    return any(os.path.isfile(os.path.join(folder, inside)) for folder in torch.__path__)


def is_installed() -> bool:
    return any(isinstance(entry, TreeFinder) for entry in sys.meta_path)


def same_file(left: str | None, right: str) -> bool:
    return left is not None and os.path.realpath(left) == os.path.realpath(right)


def decide(version: str) -> tuple[str, str]:
    """Whether the patch can go in now, as (state, reason). Changes nothing."""
    torch = sys.modules.get("torch")
    if is_switched_off(os.environ):
        return OFF, f"switched off by {SWITCH}={os.environ[SWITCH]}"
    release = release_of(torch)
    if torch is None or release is None:
        return BROKEN, "there is no imported torch to patch: import torch first"
    if has_landed(torch):
        return LANDED, "this torch contains range dispatch itself: the overlay is not needed"
    if not is_supported(release):
        return UNSUPPORTED, (
            f"torch-range-dispatch {version} supports PyTorch {SUPPORTED} and found {release}: it "
            f"stays out, and this PyTorch works as if it were not installed. Install "
            f"'{REQUIREMENT}' or another release of torch-range-dispatch, or uninstall it, or set "
            f"{SWITCH}=0 to be told no more"
        )
    if not finder.complete():
        return BROKEN, (
            f"torch-range-dispatch {version} is incomplete, {finder.custom_op} or the folder "
            "range_dispatch beside it is missing: it stays out. Install it again"
        )
    loaded = sys.modules.get(CUSTOM_OP)
    if loaded is not None and not same_file(getattr(loaded, "__file__", None), finder.custom_op):
        return TOO_LATE, _too_late(version, getattr(loaded, "__file__", None))
    return ACTIVE, "Inductor's custom op tuning comes from the patch"


def autoload(version: str) -> None:
    """Put the finder in place if ``decide`` says so, and warn where that is news. Never raises."""
    global outcome
    previous = outcome
    try:
        outcome = decide(version)
        if outcome[0] == ACTIVE and not is_installed():
            sys.meta_path.insert(0, finder)
    except Exception as error:
        reason = (
            f"torch-range-dispatch {version} failed to load and stays out "
            f"({type(error).__name__}: {error}). Please report this; {SWITCH}=0 silences it"
        )
        outcome = BROKEN, reason
    if outcome[0] in WARNED_ABOUT and outcome != previous:
        _warn(outcome[1])


def _warn(message: str) -> None:
    """Warn; where warnings are errors, log: an error here would break ``import torch``."""
    import warnings

    try:
        warnings.warn(message, RangeDispatchWarning, stacklevel=3)
    except RangeDispatchWarning:
        import logging

        logging.getLogger("torch_range_dispatch").warning(message)


def _too_late(version: str, file: str | None) -> str:
    message = (
        f"torch-range-dispatch {version} stays out of this process: {CUSTOM_OP} was imported from "
        f"{file} before. Import torch with entry points enabled, or call "
        "torch_range_dispatch.activate(), before anything that imports that module"
    )
    others = _other_backends()
    if others:
        message += f". Loaded at the same time, and perhaps what imported it: {', '.join(others)}"
    return message


def _other_backends() -> list[str]:
    from importlib.metadata import entry_points

    return sorted(e.name for e in entry_points(group="torch.backends") if e.name != ENTRY_POINT)
