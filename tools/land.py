#!/usr/bin/env python3
"""Put the patch into a PyTorch tree, where it works without the overlay, and take it out again.

    python3 tools/land.py TREE               land: replace one file of PyTorch's, add the others
    python3 tools/land.py TREE --dry-run     say what would be done, change nothing
    python3 tools/land.py TREE --revert      take it out: every file is as it was before

TREE is a PyTorch checkout, or the site-packages folder of an installed PyTorch. A checkout gets the
tests too, and the change is written as a patch file for ``git am`` (--patch FILE; by default
range-dispatch.patch in the current folder, or beside the checkout where you stand inside of it).

Landing needs a PyTorch release that the patch supports, and in it the replaced file as released.
What is replaced is kept in TREE/.range-dispatch-landed until it is reverted. A landing that fails
or is interrupted is undone at once; one whose process was killed is undone by the next call.

Exit status: 0 done, or nothing to do; 1 refused or failed, the tree is as it was; 2 wrong usage;
3 failed, and could not be undone: call it again with --revert.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import email.utils
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
KERNEL = "torch/_inductor/kernel"
REPLACED = f"{KERNEL}/custom_op.py"
TESTS = "test/inductor"
STATE = ".range-dispatch-landed"
MANIFEST = "manifest.json"
PATCH_NAME = "range-dispatch.patch"

# SHA-256 of the replaced file in each release; 2.12.1 and 2.14.1 have it as 2.12.0 and 2.14.0 do,
# and a checkout of a release's tag has it as the wheels do.
STOCK = {
    "2.11": "b6ecea8b4c2a0776b73ca56e7fb3ec52ec993970bff8de425a0562d691a2a1e5",
    "2.12": "ab729f79afd713e1daab010a22361d01ab6b5409773ce6653885254f6f06210f",
    "2.13": "ab729f79afd713e1daab010a22361d01ab6b5409773ce6653885254f6f06210f",
    "2.14": "5df4124a7a889d5d4332ba2d32aec96b770e1dd1aaa4ab6c3dedde71943fdb25",
    "2.15": "a6dd1c6e9824c192c8076dfde98beb8b98819e8de85f310bf9ed9f3a6e2c3527",
}

# Tests of this repository's own tools, which PyTorch's tree does not get.
NOT_LANDED = {
    "test_range_dispatch_benchmarks.py",
    "test_range_dispatch_cli.py",
    "test_range_dispatch_docs.py",
    "test_range_dispatch_examples.py",
    "test_range_dispatch_landing.py",
    "test_range_dispatch_newuser.py",
    "test_range_dispatch_overlay.py",
}

REFUSED, CANNOT_UNDO = 1, 3

SUBJECT = "Range dispatch: the fastest implementation of a custom op at every size"
MESSAGE = """\
Tune the implementations of a custom op for each range of a size, merge neighbouring ranges with
the same winner, and dispatch between the rest in one compiled graph.

torch/_inductor/kernel/custom_op.py is replaced and keeps its public API. The machinery is added
beside it, in torch/_inductor/kernel/range_dispatch. Models that register nothing are compiled as
before.
"""


class Refused(Exception):
    """The landing cannot be done; the message says why and what to do. Nothing was changed."""


class CannotUndo(Exception):
    """Something failed, and then its undoing did too."""


@dataclass(frozen=True)
class Tree:
    """A PyTorch tree: its root folder, its release, and whether it is a git checkout."""

    root: Path
    release: str
    is_checkout: bool


@dataclass(frozen=True)
class File:
    """A file of the landing, by its path in the tree; hashes are None where there is no file.

    The tree and the folder STATE each hold one version of it. Landing and reverting exchange them.
    """

    path: str
    ours: str | None
    stock: str | None


@dataclass
class Landing:
    """What STATE/MANIFEST holds, in JSON.

    Attributes:
        version: the patch's
        release: the PyTorch release that it went into
        complete: False while files are being exchanged
        files: all that is exchanged, the replaced one last
        folders: what did not exist before, deepest first
    """

    version: str
    release: str
    complete: bool = False
    files: list[File] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


# --- looking: nothing below changes anything ---


def find_tree(target: Path) -> Tree:
    """The PyTorch tree at ``target``, or Refused with what should be given instead."""
    what = "a PyTorch checkout or the site-packages folder of an installed PyTorch"
    root = target.resolve()
    if not root.is_dir():
        raise Refused(f"{target} is not a folder: give {what}")
    if root == ROOT:
        raise Refused(f"{target} is the patch's own repository: give {what}")
    if not (root / REPLACED).is_file():
        if (root.parent / REPLACED).is_file():
            raise Refused(f"{target} is inside of PyTorch's tree: give {root.parent}")
        raise Refused(f"{target} has no {REPLACED}: give {what}")
    release = _release(root)
    if release is None:
        raise Refused(f"{target} has neither version.txt nor torch/version.py: give {what}")
    return Tree(root, release, (root / ".git").exists() and (root / "version.txt").is_file())


def _release(root: Path) -> str | None:
    with contextlib.suppress(OSError):
        return (root / "version.txt").read_text().strip()
    with contextlib.suppress(OSError):
        found = re.search(
            r"^__version__\s*=\s*['\"](.+?)['\"]", (root / "torch/version.py").read_text(), re.M
        )
        return found[1] if found else None
    return None


def series_of(release: str) -> str:
    """The first two numbers of a release, which is what the patch cares about.

    >>> series_of("2.13.0+cpu"), series_of("2.15.1a0+git12ab"), series_of("main")
    ('2.13', '2.15', 'main')
    """
    numbers = re.match(r"v?(\d+\.\d+)(?!\d)", release)
    return numbers[1] if numbers else release


def check_release(tree: Tree) -> None:
    """Raise Refused unless the patch supports the tree's release, and its file is as released."""
    known = STOCK.get(series_of(tree.release))
    if known is None:
        oldest, *_, newest = STOCK
        raise Refused(
            f"{tree.root} is PyTorch {tree.release}, and the patch supports {oldest} to {newest}: "
            "give a tree of a supported release"
        )
    found = hash_of(tree.root / REPLACED)
    if found != known:
        raise Refused(
            f"{tree.root / REPLACED} is not that of PyTorch {tree.release} (SHA-256 {found}, "
            f"expected {known}): restore the released file, then land"
        )


def patch_files(with_tests: bool) -> Iterator[tuple[str, Path]]:
    """The files to land, by their path in the tree; the replaced one comes last."""
    for file in sorted((ROOT / KERNEL / "range_dispatch").rglob("*")):
        inside = file.relative_to(ROOT)
        if file.is_file() and not any(p == "__pycache__" or p[0] == "." for p in inside.parts):
            yield inside.as_posix(), file
    if with_tests:
        for file in sorted((ROOT / TESTS).glob("*range_dispatch*.py")):
            if file.name not in NOT_LANDED:
                yield f"{TESTS}/{file.name}", file
    yield REPLACED, ROOT / REPLACED


def plan(tree: Tree) -> Landing:
    """What landing would do, or Refused where it cannot be done."""
    check_release(tree)
    landing = Landing(_version(), tree.release)
    for path, source in patch_files(tree.is_checkout):
        stock = hash_of(tree.root / path)
        if stock is not None and path != REPLACED:
            raise Refused(
                f"{tree.root / path} exists, and the patch would add it: move it away, or revert "
                "whatever has put the patch there"
            )
        landing.files.append(File(path, hash_of(source), stock))
    # Bytecode of the stock file: Python may be told not to look whether the source has changed.
    for file in bytecode_of(tree.root / REPLACED):
        path = file.relative_to(tree.root).as_posix()
        landing.files.insert(0, File(path, None, hash_of(file)))
    landing.folders = _new_folders(tree.root, [file.path for file in landing.files])
    for folder in {_existing(tree.root / file.path) for file in landing.files} | {tree.root}:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise Refused(f"{folder} cannot be written to: run this as a user who may")
    return landing


def _version() -> str:
    text = (ROOT / KERNEL / "range_dispatch" / "__init__.py").read_text()
    return re.findall(r'^__version__ = "(.+)"$', text, re.M)[0]


def _existing(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.is_dir())


def _new_folders(root: Path, paths: Iterable[str]) -> list[str]:
    """The folders of ``paths`` that do not exist, with those of their bytecode, deepest first."""
    folders = {folder for path in paths for folder in Path(path).parents}
    folders |= {Path(path).parent / "__pycache__" for path in paths}
    new = [folder.as_posix() for folder in folders if not (root / folder).is_dir()]
    return sorted(new, key=lambda folder: (-folder.count("/"), folder))


def bytecode_of(source: Path) -> list[Path]:
    return sorted((source.parent / "__pycache__").glob(f"{source.stem}.*.py[co]"))


def hash_of(file: Path) -> str | None:
    """SHA-256 of a file's content; None where there is no file."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def stored_in(tree: Tree) -> Landing | None:
    """The landing in the tree, complete or not; None where there is none."""
    manifest = tree.root / STATE / MANIFEST
    if not manifest.exists():
        return None
    try:
        stored = json.loads(manifest.read_text())
        stored["files"] = [File(**file) for file in stored["files"]]
        return Landing(**stored)
    except (ValueError, TypeError, KeyError) as error:
        raise Refused(
            f"{manifest} cannot be read ({_reason(error)}): restore it from a copy, or install "
            f"PyTorch anew and delete {manifest.parent}"
        ) from error


# --- exchanging: each step leaves a state that the next call understands ---


class Exchange:
    """The files of a landing, in the tree and in STATE."""

    def __init__(self, tree: Tree, landing: Landing) -> None:
        self.tree = tree.root
        self.state = tree.root / STATE
        self.landing = landing

    def place(self, landed: bool) -> None:
        """Bring every file to the side where it belongs; those that are there stay."""
        for file in self.landing.files if landed else reversed(self.landing.files):
            if self._is_landed(file) != landed:
                self._swap(file)

    def _is_landed(self, file: File) -> bool:
        """Whether the tree has our version: STATE tells, since users do not edit there."""
        kept, halfway = self._kept(file), self._halfway(file)
        if halfway.exists() and not kept.exists():
            os.replace(halfway, kept)
        halfway.unlink(missing_ok=True)
        return hash_of(kept) == file.stock

    def _swap(self, file: File) -> None:
        """Exchange the two versions; the place in the tree is never empty if both exist."""
        place, kept, halfway = self.tree / file.path, self._kept(file), self._halfway(file)
        if not kept.exists():
            if place.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                os.replace(place, kept)
            return
        if place.exists():
            _duplicate(place, halfway)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(kept, place)
        if halfway.exists():
            os.replace(halfway, kept)

    def _kept(self, file: File) -> Path:
        return self.state / "files" / file.path

    def _halfway(self, file: File) -> Path:
        return self.state / "halfway" / file.path.replace("/", "@")

    def stage(self) -> None:
        """Write our versions into STATE."""
        (self.state / "halfway").mkdir(parents=True)
        (self.state / ".gitignore").write_text("*\n")
        for file in self.landing.files:
            if file.ours is not None:
                kept = self._kept(file)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file.path, kept)
                if hash_of(kept) != file.ours:
                    raise Refused(f"{ROOT / file.path} changed while it was copied: land again")

    def begin(self) -> None:
        """Note that files are about to be exchanged."""
        self._write_manifest(complete=False)

    def end(self) -> None:
        """Note that the landing is complete."""
        self._write_manifest(complete=True)

    def _write_manifest(self, complete: bool) -> None:
        self.landing.complete = complete
        new = self.state / f"{MANIFEST}.new"
        new.write_text(json.dumps(asdict(self.landing), indent=1) + "\n")
        os.replace(new, self.state / MANIFEST)

    def clean(self) -> None:
        """Remove STATE, and what Python and we have made in the tree; our files are out of it."""
        for file in self.landing.files:
            if file.ours is not None and file.stock is None:
                for compiled in bytecode_of(self.tree / file.path):
                    compiled.unlink(missing_ok=True)
        for folder in map(self.tree.joinpath, self.landing.folders):
            if folder.is_dir() and not any(folder.iterdir()):  # else someone else's files are in it
                folder.rmdir()
        shutil.rmtree(self.state)


def _duplicate(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


# --- the commands ---


def land(tree: Tree) -> Landing:
    """Land the patch, or raise with the tree as it was."""
    landing = plan(tree)
    exchange = Exchange(tree, landing)
    with _undone_on_error(lambda: _abandon(exchange)):
        exchange.stage()
        exchange.begin()
        _complete(exchange)
    return landing


def _abandon(exchange: Exchange) -> None:
    if (exchange.state / MANIFEST).exists():
        exchange.place(landed=False)
        exchange.clean()
    elif exchange.state.exists():
        shutil.rmtree(exchange.state)


def revert(tree: Tree, landing: Landing) -> None:
    """Take the patch out, or raise with the tree as it was."""
    _refuse_changed(tree, landing)
    exchange = Exchange(tree, landing)
    with _undone_on_error(lambda: _complete(exchange)):
        exchange.begin()
        for compiled in bytecode_of(tree.root / REPLACED):
            compiled.unlink(missing_ok=True)
        exchange.place(landed=False)
    try:
        exchange.clean()
    except OSError as error:
        raise CannotUndo(f"reverted, but {exchange.state} is left: {_reason(error)}") from error


def _complete(exchange: Exchange) -> None:
    exchange.place(landed=True)
    exchange.end()


def _refuse_changed(tree: Tree, landing: Landing) -> None:
    """Refuse to lose what was edited in the tree after the landing.

    A file that is gone, or the stock one again, was reverted by other means: by git, or by an
    installation over it. If that brought another release, its file stays.
    """
    for file in [file for file in landing.files if file.ours is not None]:
        found = hash_of(tree.root / file.path)
        if file.path == REPLACED and found in STOCK.values() and found != file.stock:
            landing.files = [f for f in landing.files if f.stock is None]
        elif found not in (None, file.ours, file.stock):
            raise Refused(
                f"{tree.root / file.path} was changed after the landing: move your version away, "
                "then revert"
            )


@contextlib.contextmanager
def _undone_on_error(undo: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        try:
            undo()
        except BaseException as second:
            raise CannotUndo(f"{_reason(error)}, and undoing it: {_reason(second)}") from error
        raise


def recover(tree: Tree) -> Landing | None:
    """The landing in the tree, after undoing one that a killed process left unfinished."""
    landing = stored_in(tree)
    if landing is None:
        shutil.rmtree(tree.root / STATE, ignore_errors=True)  # of one that had not begun
    if landing is None or landing.complete:
        return landing
    exchange = Exchange(tree, landing)
    exchange.place(landed=False)
    exchange.clean()
    say(f"undid an unfinished landing in {tree.root}")
    return None


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One landing at a time in a tree; the lock leaves no file behind."""
    handle = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another landing is at work in {root}: wait for it to end") from None
        yield
    finally:
        os.close(handle)


# --- the patch file ---


def format_patch(tree: Tree, landing: Landing) -> bytes:
    """The landing as a mail that ``git am`` takes, against the tree before the landing."""
    diffs = []
    for file in sorted(landing.files, key=lambda f: f.path):
        if file.ours is None:
            continue
        stock = b""
        if file.stock is not None:
            kept = tree.root / STATE / "files" / file.path
            stock = (kept if kept.exists() else tree.root / file.path).read_bytes()
        diffs.append(_diff(file, stock, (ROOT / file.path).read_bytes()))
    head = (
        f"From {'0' * 40} Mon Sep 17 00:00:00 2001\n"
        "From: The range dispatch authors <range-dispatch@localhost>\n"
        f"Date: {email.utils.formatdate(localtime=True)}\n"
        f"Subject: [PATCH] {SUBJECT}\n"
        "MIME-Version: 1.0\n"
        "Content-Type: text/plain; charset=UTF-8\n"
        "Content-Transfer-Encoding: 8bit\n"
        f"\n{MESSAGE}---\n"
    )
    return head.encode() + b"".join(diffs) + f"-- \n{landing.version}\n".encode()


def _diff(file: File, stock: bytes, ours: bytes) -> bytes:
    path = file.path
    lines = [f"diff --git a/{path} b/{path}"]
    if file.stock is None:
        lines += ["new file mode 100644", f"index {'0' * 40}..{_blob(ours)}"]
    else:
        lines += [f"index {_blob(stock)}..{_blob(ours)} 100644"]
    old, new = _lines(stock), _lines(ours)
    source = "/dev/null" if file.stock is None else f"a/{path}"
    hunks = difflib.unified_diff(old, new, source, f"b/{path}", lineterm="")
    return "\n".join([*lines, *(line.removesuffix("\n") for line in hunks), ""]).encode()


def _lines(content: bytes) -> list[str]:
    lines = re.findall(r"[^\n]*\n|[^\n]+", content.decode())
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n\\ No newline at end of file"
    return lines


def _blob(content: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _patch_place(tree: Tree, asked: Path | None) -> Path:
    """Where the patch file goes: never into the tree, which reverting leaves as it was."""
    here = Path.cwd().resolve()
    inside = here == tree.root or tree.root in here.parents
    place = (asked or (tree.root.parent if inside else here) / PATCH_NAME).resolve()
    if tree.root in place.parents:
        raise Refused(f"--patch {place} is inside of {tree.root}: give a place outside of it")
    if not place.parent.is_dir():
        raise Refused(f"--patch {place}: there is no such folder: give one that exists")
    return place


def _write_patch(tree: Tree, landing: Landing, place: Path) -> None:
    new = place.with_name(place.name + ".new")
    try:
        new.write_bytes(format_patch(tree, landing))
        os.replace(new, place)
    finally:
        new.unlink(missing_ok=True)


# --- the command line ---


def say(message: str) -> None:
    print(f"[land] {message}", file=sys.stderr, flush=True)


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return " ".join(text.split())


def run(tree: Tree, arguments: argparse.Namespace) -> None:
    if arguments.dry_run:
        _dry_run(tree, arguments)
        return
    with _locked(tree.root):
        landing = recover(tree)
        if arguments.revert:
            if landing is None:
                print(f"{tree.root}: nothing has landed here, nothing to revert")
                return
            revert(tree, landing)
            print(f"{tree.root}: reverted; every file is as it was before the landing")
            return
        if landing is not None:
            _already(tree, landing)
            return
        place = _patch_place(tree, arguments.patch) if tree.is_checkout else None
        landing = land(tree)
        if place is not None:
            with _undone_on_error(lambda: revert(tree, landing)):
                _write_patch(tree, landing, place)
    added = sum(file.ours is not None and file.stock is None for file in landing.files)
    print(
        f"{tree.root}: landed range dispatch {landing.version} in PyTorch {tree.release}: replaced "
        f"{REPLACED}, added {added} files"
    )
    if place is not None:
        print(f"{place}: the same as a patch, for 'git am' in a checkout without it")


def _already(tree: Tree, landing: Landing) -> None:
    wanted = {path: hash_of(source) for path, source in patch_files(tree.is_checkout)}
    landed = {file.path: file.ours for file in landing.files if file.ours is not None}
    if wanted != landed or any(hash_of(tree.root / path) != landed[path] for path in landed):
        raise Refused(
            f"{tree.root} has another version of the patch ({landing.version}): --revert, then land"
        )
    print(f"{tree.root}: this version of the patch has landed here already")


def _dry_run(tree: Tree, arguments: argparse.Namespace) -> None:
    landing = stored_in(tree)
    if landing is not None and not landing.complete:
        print(f"would undo an unfinished landing in {tree.root}")
        return
    if arguments.revert:
        if landing is None:
            print(f"{tree.root}: nothing has landed here, nothing to revert")
            return
        _refuse_changed(tree, landing)
        for file in landing.files:
            if file.ours is not None:
                print(f"would {'restore' if file.stock else 'delete'} {file.path}")
        return
    if landing is not None:
        _already(tree, landing)
        return
    for file in plan(tree).files:
        if file.ours is not None:
            print(f"would {'replace' if file.stock else 'add'} {file.path}")
    if tree.is_checkout:
        print(f"would write {_patch_place(tree, arguments.patch)}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/land.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python3 tools/land.py TREE [--dry-run] [--revert] [--patch FILE]",
    )
    parser.add_argument("tree", type=Path, metavar="TREE", help="the PyTorch tree")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--revert", action="store_true", help="take the patch out again")
    parser.add_argument("--patch", type=Path, metavar="FILE", help="where the patch file goes")
    arguments = parser.parse_args(argv)
    try:
        tree = find_tree(arguments.tree)
        run(tree, arguments)
    except CannotUndo as error:
        print(
            f"error: {error}: repair that, then 'tools/land.py {arguments.tree} --revert'",
            file=sys.stderr,
        )
        return CANNOT_UNDO
    except (Refused, OSError) as error:
        hint = "" if isinstance(error, Refused) else ": the tree is as it was, try again"
        print(f"error: {_reason(error)}{hint}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("error: interrupted: the tree is as it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # A polite kill undoes what was begun, as an interrupt does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: terminated: the tree is as it was"))
    sys.exit(main())
