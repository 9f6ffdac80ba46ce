# Owner(s): ["module: inductor"]
"""Folders for what tests make, until the process ends.

Not until a module is done: where tests of several modules run in turn, it is done several times.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path


def scratch_folder(name: str) -> Path:
    """A new folder whose name starts with ``range-dispatch-<name>-``."""
    folder = Path(tempfile.mkdtemp(prefix=f"range-dispatch-{name}-")).resolve()
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # and not a fork of it
        shutil.rmtree(folder, ignore_errors=True)
