"""Builds and installs torch-range-dispatch. Use it through pip: ``pip install .`` or ``-e .``.

This file is its own build backend (PEP 517 and 660; ``pyproject.toml`` names it), on the standard
library alone. So an install needs neither network nor setuptools nor wheel, in whichever versions
a machine with a GPU happens to have, and leaves nothing behind in the checkout. There is little
to build: a wheel is a zip file with the overlay package, and inside the package the files of the
patch, under ``_tree``. An editable install is a path to ``tools/overlay``, and the overlay finds
the patch in the checkout.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parent
OVERLAY = ROOT / "tools" / "overlay"
PACKAGE = OVERLAY / "torch_range_dispatch"
LOG_NAME = OVERLAY / "range_dispatch.py"  # makes TORCH_LOGS="range_dispatch" a known name
PATCH = Path("torch", "_inductor", "kernel")

NAME = "torch-range-dispatch"
VERSION = re.findall(r'^__version__ = "(.+)"$', (PACKAGE / "__init__.py").read_text(), re.M)[0]
STEM = f"torch_range_dispatch-{VERSION}"
WHEEL = f"{STEM}-py3-none-any.whl"
DIST_INFO = f"{STEM}.dist-info"

PYTHON = ">=3.10"
REQUIRES = ["torch>=2.11,<2.16"]
EXTRAS = {
    # torch's own test classes import numpy; pytest 9.2: see PIP_NAME in tools/dev.py
    "test": ["pytest<9.2", "pytest-xdist", "expecttest", "numpy"],
    "lint": ["ruff", "mypy"],
    "plot": ["matplotlib"],
    "progress": ["tqdm"],
}
CLASSIFIERS = [
    "Intended Audience :: Developers",
    "License :: OSI Approved :: BSD License",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: Python :: 3",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
]
ENTRY_POINTS = """\
[torch.backends]
range_dispatch = torch_range_dispatch:_autoload
"""

# A fixed time, so that the same sources give the same wheel, bit by bit.
EPOCH = (2026, 1, 1, 0, 0, 0)

Settings = Mapping[str, Any] | None


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """What ``pip install .`` calls: the overlay, with the patch inside it."""
    files = {f"torch_range_dispatch/{name}": data for name, data in contents(PACKAGE)}
    files[LOG_NAME.name] = LOG_NAME.read_bytes()
    for name, data in patch_files():
        files[f"torch_range_dispatch/_tree/{name}"] = data
    return write_wheel(wheel_directory, files)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """What ``pip install -e .`` calls: a line that puts ``tools/overlay`` on ``sys.path``."""
    path_file = f"__editable__.{STEM}.pth"
    return write_wheel(wheel_directory, {path_file: f"{OVERLAY}\n".encode()})


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """The sources, from which ``build_wheel`` works as it does from a checkout."""
    files = {"PKG-INFO": metadata().encode()}
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            files[name] = (ROOT / name).read_bytes()
    for folder in ("torch", "tools", "test"):
        files.update((f"{folder}/{name}", data) for name, data in contents(ROOT / folder))
    target = Path(sdist_directory, f"{STEM}.tar.gz")
    with tarfile.open(target, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for name, data in sorted(files.items()):
            member = tarfile.TarInfo(f"{STEM}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return target.name


def patch_files() -> Iterator[tuple[str, bytes]]:
    """The files of the patch, named as in PyTorch's tree. Nothing else that lies in the folder."""
    custom_op = ROOT / PATCH / "custom_op.py"
    machinery = ROOT / PATCH / "range_dispatch"
    for needed in (custom_op, machinery / "__init__.py"):
        if not needed.is_file():
            raise SystemExit(f"error: {needed} is missing. Build from a complete checkout or sdist")
    yield (PATCH / "custom_op.py").as_posix(), custom_op.read_bytes()
    for name, data in contents(machinery):
        yield (PATCH / "range_dispatch" / name).as_posix(), data


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below ``folder``, with its path from there; no caches and no hidden files."""
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
        if file.is_file() and not hidden and file.suffix not in (".pyc", ".pyo"):
            yield inside.as_posix(), file.read_bytes()


def metadata() -> str:
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {NAME}",
        f"Version: {VERSION}",
        "Summary: Range dispatch for custom ops in PyTorch Inductor, as an overlay on PyTorch",
        "License: BSD-3-Clause",
        "License-File: LICENSE",
        f"Requires-Python: {PYTHON}",
        *(f"Classifier: {classifier}" for classifier in CLASSIFIERS),
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
    ]
    for extra, requirements in EXTRAS.items():
        lines.append(f"Provides-Extra: {extra}")
        lines += [f'Requires-Dist: {each} ; extra == "{extra}"' for each in requirements]
    readme = ROOT / "README.md"
    if readme.is_file():
        lines += ["Description-Content-Type: text/markdown", "", readme.read_text(encoding="utf-8")]
    return "\n".join(lines) + "\n"


def write_wheel(wheel_directory: str, files: Mapping[str, bytes]) -> str:
    """Write a wheel of ``files`` and the description of the distribution; return its name."""
    tag = f"Wheel-Version: 1.0\nGenerator: {NAME}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    described = {
        **files,
        f"{DIST_INFO}/METADATA": metadata().encode(),
        f"{DIST_INFO}/WHEEL": tag.encode(),
        f"{DIST_INFO}/entry_points.txt": ENTRY_POINTS.encode(),
        f"{DIST_INFO}/licenses/LICENSE": (ROOT / "LICENSE").read_bytes(),
    }
    record = f"{DIST_INFO}/RECORD"
    rows = [f"{name},{digest(data)},{len(data)}" for name, data in described.items()]
    described[record] = "\n".join([*rows, f"{record},,"]).encode() + b"\n"
    with zipfile.ZipFile(Path(wheel_directory, WHEEL), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in described.items():
            member = zipfile.ZipInfo(name, EPOCH)
            member.external_attr = 0o644 << 16
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)
    return WHEEL


def digest(data: bytes) -> str:
    """A file's hash as a wheel's RECORD spells it."""
    encoded = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return f"sha256={encoded.rstrip(b'=').decode()}"


if __name__ == "__main__":
    sys.exit("error: run 'pip install .' or 'pip install -e .' here; setup.py takes no commands")
