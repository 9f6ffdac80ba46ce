"""What the keys of Inductor's compile caches have of the registrations.

Without it a graph compiled for one registration is served for another, with the old
implementations in it: neither FxGraphCache nor AOTAutogradCache knows of registrations. Both
hash the config modules of custom backends, on every supported release, so ours among them carries
in whatever it is asked to.

That is, first, a hash of everything registered, of the patch's own files and of the knobs. What is
registered is described when a key is made, since it is traced after that: a helper may be defined,
or a global get another value, after an op was registered.

And second, the tuning records that decide what is generated, also as they are when a key is made,
before the compile, which may measure and write records of its own. What it writes must not change
the key, or the next process would look for another one than the code was kept under. Therefore:

- Of the folder that is named, to be shipped, those measurements count that Inductor's cache
  directory does not have as well. What is measured here goes into both; what was shipped is not
  copied out of its folder. So a shipped folder that says something else is a miss.
- Of Inductor's cache directory, which holds the compiled code too, only the number of times counts
  that it was measured anew on request. Code that was compiled while a measurement was new is kept
  beside it, and forgotten with it.
- Where nothing may be measured (``grid.pinned``) nothing is written, and all measurements count.
"""

from __future__ import annotations

import functools
import json
import sys
import uuid
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch._guards import CompileContext
from torch._inductor.codegen.common import custom_backend_codegen_configs
from torch._inductor.kernel.range_dispatch import config, grid, records, saved, signature
from torch._inductor.kernel.range_dispatch.description import describe, hash_of
from torch._inductor.kernel.range_dispatch.registration import Registration


def publish(registrations: Iterable[Registration]) -> None:
    """Make the compile caches tell these registrations from all others."""
    _published[:] = sorted(registrations, key=lambda r: str(r.op))
    _described.clear()
    config.registrations = registrations_key()
    knobs: Any = _Keyed(sys.modules[config.__name__])
    custom_backend_codegen_configs["range_dispatch"] = knobs


_published: list[Registration] = []
# The hash of them in a compilation, which asks for it several times.
_described: weakref.WeakKeyDictionary[CompileContext, str] = weakref.WeakKeyDictionary()
# Under this name nothing is found that another process compiled.
_this_process = str(uuid.uuid4())


class _Keyed:
    """The config module, as a compile cache asks for it: with the state of the records."""

    def __init__(self, knobs: Any) -> None:
        self._knobs = knobs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._knobs, name)

    def save_config_portable(self, **options: Any) -> dict[str, Any]:
        saved = dict(self._knobs.save_config_portable(**options))
        return {**saved, "registered": registrations_key(), "records": records_key()}


def registrations_key() -> str:
    """A hash of what is registered, as it is now; nothing, if nothing is: stock's cache keys."""
    if not _published:
        return ""
    compilation = CompileContext.try_get()
    if compilation is not None and compilation in _described:
        return _described[compilation]
    found = hash_of([own_source(), *map(describe, _published), saved.generation()])
    if compilation is not None:
        _described[compilation] = found
    return found


def records_key() -> str:
    """A hash of the tuning records that count for what is registered, as they are now."""
    if not config.use_records or not _published:
        return ""
    # What another process compiled was not measured anew.
    parts = [_this_process] if config.retune else []
    for registration in _published:
        folders = signature.folders(registration)
        state = records.state(registration.op.name(), folders, everything=grid.pinned())
        parts.append(json.dumps(state, sort_keys=True))
    return hash_of(parts)


@functools.cache
def own_source() -> str:
    """Hash of the patch's own files: PyTorch's key covers only the files of its wheel."""
    folder = Path(__file__).parent
    files = sorted(folder.glob("*.py"))
    files.append(folder.parent / "custom_op.py")
    return hash_of(file.name + file.read_text() for file in files if file.exists())
