#!/usr/bin/env python3
"""The suite in other ways than one after the other: landed, file by file, in parts, shuffled.

    python3 tools/dev.py python tools/suite.py landed [pytest arguments]
    python3 tools/dev.py python tools/suite.py files [FILE ...]
    python3 tools/dev.py python tools/suite.py shards N [pytest arguments]
    python3 tools/dev.py python tools/suite.py shuffled N [pytest arguments]
    python3 tools/suite.py try RELEASE [pytest arguments]

landed      in a copy of the environment's PyTorch, landed there, without the overlay
files       each file as PyTorch's CI runs it: python test/inductor/test_X.py
shards      in N parts, one process after the other
shuffled    N times in random order; --seed with the number of a failed one gives its order again
try         on a release newer than the supported ones: installs it, says what has changed there,
            lands the patch in a copy of it all the same, and runs the suite

Exit status: 0 where all tests pass, 1 otherwise.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import land


ROOT = land.ROOT
TESTS = ROOT / land.TESTS
ORDER, SHARD = "RANGE_DISPATCH_ORDER", "RANGE_DISPATCH_SHARD"


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """As a plugin of pytest (-p suite): the order, or the part, that the environment asks for."""
    if os.environ.get(ORDER):
        random.Random(int(os.environ[ORDER])).shuffle(items)
    if os.environ.get(SHARD):
        index, count = map(int, os.environ[SHARD].split("/"))
        items[:] = items[index::count]


def pytest(arguments: Sequence[str], variables: dict[str, str], folder: Path = ROOT) -> int:
    """Run pytest in a process of its own, on two workers unless the arguments say something."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "suite", "--show-capture=no"]
    told = any(a.startswith(("-n", "--numprocesses", "-pno:xdist")) for a in arguments)
    if importlib.util.find_spec("xdist") and not told:
        command += ["-n", "2", "--dist", "loadgroup"]
    environ = {**os.environ, **variables}
    path = [*environ.get("PYTHONPATH", "").split(os.pathsep), str(ROOT / "tools")]
    with tempfile.TemporaryDirectory(prefix="suite-", ignore_cleanup_errors=True) as cache:
        environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        done = subprocess.run([*command, *arguments], cwd=folder, env=environ, check=False)
    return done.returncode


def in_turn(steps: Iterator[tuple[str, int]]) -> int:
    """Go through the steps, and say at the end which of them failed."""
    failed = []
    started = time.monotonic()
    for label, status in steps:
        print(f"[suite] {label}: {'passed' if status in (0, 5) else 'FAILED'}", flush=True)
        if status not in (0, 5):  # 5: pytest found no test in this part
            failed.append(label)
    took = f"{time.monotonic() - started:.0f} s"
    print(f"[suite] {took}, failed: {', '.join(failed) or 'nothing'}", flush=True)
    return 1 if failed else 0


def run_files(names: Sequence[str]) -> int:
    chosen = [Path(name).resolve() for name in names] or sorted(TESTS.glob("test_*.py"))

    def steps() -> Iterator[tuple[str, int]]:
        for file in chosen:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
                done = subprocess.run(
                    [sys.executable, str(file)],
                    cwd=ROOT,
                    env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
                    check=False,
                )
            yield f"python {file.relative_to(ROOT)}", done.returncode

    return in_turn(steps())


def run_shards(count: int, arguments: Sequence[str]) -> int:
    return in_turn(
        (f"part {i + 1} of {count}", pytest(arguments, {SHARD: f"{i}/{count}"}))
        for i in range(count)
    )


def run_shuffled(count: int, seed: int | None, arguments: Sequence[str]) -> int:
    first = random.randrange(10**6) if seed is None else seed
    return in_turn(
        (f"--seed {first + i}", pytest(arguments, {ORDER: str(first + i)})) for i in range(count)
    )


# --- in a landed PyTorch ---


def installed() -> Path:
    """The folder of the PyTorch that this interpreter would import."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit("error: this Python has no PyTorch: run this through tools/dev.py python")
    return Path(spec.origin).resolve().parent


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def landed_copy(any_release: bool) -> Iterator[Path]:
    """A copy of the installed PyTorch, by hard links, with the patch and its tests in it.

    Its files are never written to: landing replaces a file by another one.
    """
    torch = installed()
    place = torch.parent.parent if os.access(torch.parent.parent, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="landed-", dir=place) as name:
        folder = Path(name)
        shutil.copytree(torch, folder / "torch", copy_function=_link, symlinks=True)
        if any_release:
            tree = land.find_tree(folder)
            stock = land.hash_of(folder / land.REPLACED)
            assert stock is not None
            known = [series for series, digest in land.STOCK.items() if digest == stock]
            known = known or ["no supported release"]
            print(f"[suite] {land.REPLACED} is that of {', '.join(known)}", flush=True)
            land.STOCK[land.series_of(tree.release)] = stock
        if land.main([str(folder)]):
            sys.exit(1)
        for path, source in land.patch_files(with_tests=True):
            if path.startswith(land.TESTS):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, folder / path)
        yield folder
        if land.main([str(folder), "--revert"]):
            sys.exit(1)


def run_landed(arguments: Sequence[str], any_release: bool = False) -> int:
    with landed_copy(any_release) as folder:
        alone = {"PYTHONPATH": str(folder), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        if any_release:
            report_changes(folder, alone)
        given = list(arguments)
        if not any(a.endswith(".py") or "::" in a for a in given):
            given.append(land.TESTS)
        return pytest(given, alone, folder)


LOOK = """
import torch
from torch._inductor.kernel import custom_op
from torch._inductor.kernel.range_dispatch import compat
print(f"the patch is imported from {custom_op.__file__}")
for difference in compat.DIFFERENCES:
    if not difference.found():
        print(f"gone: {difference.feature} (here since {difference.since}), which "
              f"{', '.join(difference.used_by)} relied on")
names = %r
print("names of stock's module that the patch lacks:",
      [name for name in names if not hasattr(custom_op, name)])
"""


def report_changes(folder: Path, variables: dict[str, str]) -> None:
    """Say what a release has that the supported ones did not have, and the other way around."""
    stock = (folder / land.STATE / "files" / land.REPLACED).read_bytes()
    public = [
        node.name
        for node in ast.parse(stock).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    subprocess.run(
        [sys.executable, "-c", LOOK % (public,)], env={**os.environ, **variables}, check=False
    )


def run_try(release: str, arguments: Sequence[str]) -> int:
    dev = [sys.executable, str(ROOT / "tools" / "dev.py"), "--torch", release]
    if subprocess.run([*dev, "prepare", "test"], check=False).returncode:
        return 1
    command = [*dev, "python", str(Path(__file__).resolve()), "landed", "--any-release"]
    return subprocess.run([*command, *arguments], check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("landed").add_argument("--any-release", action="store_true")
    commands.add_parser("files").add_argument("names", nargs="*")
    commands.add_parser("shards").add_argument("count", type=int)
    shuffled = commands.add_parser("shuffled")
    shuffled.add_argument("count", type=int)
    shuffled.add_argument("--seed", type=int)
    commands.add_parser("try").add_argument("release")
    given, rest = parser.parse_known_args()
    if given.command == "landed":
        return run_landed(rest, given.any_release)
    if given.command == "files":
        return run_files(given.names)
    if given.command == "shards":
        return run_shards(given.count, rest)
    if given.command == "shuffled":
        return run_shuffled(given.count, given.seed, rest)
    return run_try(given.release, rest)


if __name__ == "__main__":
    sys.exit(main())
