"""Tuning records: what was measured, kept in memory and as JSON, and found again.

A measurement is looked up in memory, then in the named folder (``records=`` of the registration,
or the environment variable TORCH_RANGE_DISPATCH_RECORDS), then under Inductor's cache directory;
what is found nowhere is measured, and saved in all three. What the cache directory has is copied
into the named folder, and nothing out of it. There is one file for an op and a kind of device. An
entry holds all measurements for one signature of the call, by probe and candidate, so that a
candidate or a probe that is new is all that has to be measured.

A candidate that can't be traced is not on record: the op's fake kernel, what is imported and the
graph around the call decide that as well, and to find it out again takes milliseconds.

A file is JSON and nothing else: nothing in it is executed. One that is not ours, or that a newer
version wrote, is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch._inductor.kernel.range_dispatch.choosing import Measurement


try:
    import fcntl
except ImportError:  # not a POSIX system: files are still replaced in one step
    _HAS_LOCKS = False
else:
    _HAS_LOCKS = True


log = logging.getLogger(__name__)

FORMAT = 1
WRITER = "torch._inductor.kernel.range_dispatch"
# Seconds to wait for another process that writes the same file.
_LOCK_PATIENCE = 10.0

# Measurements by probe, then by the candidate's identity.
Grid = dict[str, dict[str, Measurement]]


@dataclass(frozen=True)
class Key:
    """What the measurements of an entry have in common.

    Attributes:
        op: The op's name.
        device: The kind of device, as its maker calls it.
        signature: The call and how it is measured: whatever changes a time other than the size.
        environment: The versions that the kernels come from.
    """

    op: str
    device: str
    signature: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def file_name(self) -> str:
        """One name for the op on this kind of device.

        >>> Key("lib::op.default", "NVIDIA H100 80GB", {}, {}).file_name
        'lib_op_default.NVIDIA_H100_80GB.json'
        """
        return f"{_cleaned(self.op)}.{_cleaned(self.device)}.json"

    @property
    def digest(self) -> str:
        """The entry's name in the file."""
        text = json.dumps([self.op, self.device, self.signature, self.environment], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cleaned(text: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c == "-") else "_" for c in text)
    while "__" in kept:
        kept = kept.replace("__", "_")
    return kept.strip("_")[:100]


# By an entry's digest, and whether it was measured anew whatever the files say.
_memory: dict[tuple[str, bool], Grid] = {}
# Likewise, for what was read and not measured: the file, by probe and candidate.
_origin: dict[tuple[str, bool], dict[tuple[str, str], Path]] = {}
# What is known to be in a file already.
_in_file: dict[tuple[Path, str], Grid] = {}
_warned: set[Path] = set()


def forget() -> None:
    """Empty the memory, as in a new process; files stay as they are."""
    for kept in (_memory, _origin, _in_file, _warned):
        kept.clear()
    _contents.clear()


class Records:
    """The records of one call.

    Args:
        key: What the measurements have in common.
        folders: Where files are, in the order in which they are looked up.
        retune: Whether files are only written, and what is in memory was measured likewise.
    """

    def __init__(self, key: Key, folders: Sequence[Path], retune: bool = False) -> None:
        self._key = key
        self._paths = [folder / key.file_name for folder in folders]
        self._retune = retune
        self._grid = _memory.setdefault((key.digest, retune), {})
        self._origin = _origin.setdefault((key.digest, retune), {})
        self._unread = [] if retune else list(self._paths)

    def find(self, probe: str, candidate: str) -> Measurement | None:
        """What was measured for ``candidate`` at ``probe``; files are read when needed."""
        while True:
            known = self._grid.get(probe, {}).get(candidate)
            if known is not None or not self._read_next():
                return known

    def knows(self, candidate: str) -> bool:
        """Whether ``candidate`` was measured at any probe; files are read when needed."""
        while True:
            known = any(candidate in row for row in self._grid.values())
            if known or not self._read_next():
                return known

    def _read_next(self) -> bool:
        """Add what the next file has to what is known; False where all were read."""
        if not self._unread:
            return False
        path = self._unread.pop(0)
        grid = _in_file[path, self._key.digest] = _read_entry(path, self._key)
        for probe, row in grid.items():
            mine = self._grid.setdefault(probe, {})
            new = {c: m for c, m in row.items() if c not in mine}
            mine.update(new)
            self._origin.update({(probe, c): path for c in new})
        return True

    def add(self, probe: str, measured: Mapping[str, Measurement]) -> None:
        """Remember measurements by candidate; ``save`` writes them."""
        self._grid.setdefault(probe, {}).update(measured)
        for candidate in measured:
            self._origin.pop((probe, candidate), None)

    def save(self) -> None:
        """Write what a file does not have yet; one that can't be written is warned of once."""
        for i, path in enumerate(self._paths):
            name = (path, self._key.digest)
            grid = self._belongs_to(self._paths[i:])
            if not grid or _in_file.get(name) == grid:
                continue
            try:
                _merge_into(path, self._key, grid, self._retune)
            except OSError as error:
                _warn_once(path, f"cannot be written: {error}")
            _in_file[name] = grid

    def _belongs_to(self, paths: Sequence[Path]) -> Grid:
        """What was measured, or read from one of ``paths``: not what an earlier file has."""
        earlier = set(self._paths) - set(paths)
        rows = {
            probe: {c: m for c, m in row.items() if self._origin.get((probe, c)) not in earlier}
            for probe, row in self._grid.items()
        }
        return {probe: row for probe, row in rows.items() if row}


def _warn_once(path: Path, what: str) -> None:
    if path not in _warned:
        _warned.add(path)
        log.warning("tuning records %s: %s", path, what)


# ---------------------------------------------------------------------------------------------
# What a compile cache is to know of the files; fingerprint.py says why.


def state(op: str, folders: Sequence[Path], everything: bool = False) -> dict[str, Any]:
    """What the files on ``op`` say that code compiled with them depends on, for all devices.

    Args:
        op: The op's name.
        folders: As for ``Records``; the last one is in Inductor's cache directory.
        everything: All measurements, as they are looked up, or those alone that the last folder
            does not have as well.
    """
    *named, last = ({path.name: path for path in _files_on(op, folder)} for folder in folders)
    own = {name: _content(path) for name, path in last.items()}
    said: dict[str, Any] = {}
    for files in named:
        for name, path in files.items():
            cells = _cells(_content(path))
            if not everything:
                known = _cells(own.get(name, {}))
                cells = {cell: value for cell, value in cells.items() if known.get(cell) != value}
            said.setdefault(name, {}).update(cells)
    if everything:
        for name, content in own.items():
            said[name] = {**_cells(content), **said.get(name, {})}
    retuned = {name: _times_retuned(content) for name, content in own.items()}
    return {
        "records": {name: cells for name, cells in said.items() if cells},
        "retuned": {name: times for name, times in retuned.items() if times},
    }


def _files_on(op: str, folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_cleaned(op)}.*.json"))


# The content of a file, by what the file system says of it.
_contents: dict[tuple[Path, int, int, int], dict[str, Any]] = {}


def _content(path: Path) -> dict[str, Any]:
    """The content of a file; empty where it is not usable, which is warned of when it is used."""
    try:
        found = path.stat()
        version = (path, found.st_mtime_ns, found.st_size, found.st_ino)
        if version not in _contents:
            _contents[version] = _read(path)
        return _contents[version]
    except (_NotUsable, OSError):
        return {}


def _cells(content: Mapping[str, Any]) -> dict[str, Any]:
    """The measurements of all entries by entry, probe and candidate."""
    cells = {}
    for digest, entry in content.get("entries", {}).items():
        probes = entry.get("probes")
        for probe, row in probes.items() if isinstance(probes, dict) else ():
            for candidate, value in row.items() if isinstance(row, dict) else ():
                cells[f"{digest} {probe} {candidate}"] = value
    return cells


def _times_retuned(content: Mapping[str, Any]) -> int:
    times = content.get("_metadata", {}).get("retuned", 0)
    return times if isinstance(times, int) else 0


# ---------------------------------------------------------------------------------------------
# Files.


class _NotUsable(Exception):
    """A file that is not read; ``ours`` says whether it may be replaced."""

    def __init__(self, why: str, ours: bool = False) -> None:
        super().__init__(why)
        self.ours = ours


def _read_entry(path: Path, key: Key) -> Grid:
    """The entry for ``key``; empty where there is none, or the file is not usable."""
    try:
        entry = _read(path)["entries"].get(key.digest)
        return {} if entry is None else _grid_from_json(entry)
    except FileNotFoundError:
        return {}
    except (_NotUsable, OSError) as error:
        _warn_once(path, f"ignored: {error}")
        return {}


def _read(path: Path) -> dict[str, Any]:
    """The content of a file of ours, with every entry a dict.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        _NotUsable: It is corrupt, of another writer, or of a newer format.
    """
    raw = path.read_bytes()
    try:
        content = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        # Only the beginning tells whose a truncated file was.
        ours = WRITER.encode() in raw[:1000]
        raise _NotUsable(f"it is not JSON ({error})", ours) from None
    metadata = content.get("_metadata") if isinstance(content, dict) else None
    if not isinstance(metadata, dict) or metadata.get("writer") != WRITER:
        raise _NotUsable("it is not a file of tuning records")
    if metadata.get("format") != FORMAT:
        shown = metadata.get("format")
        raise _NotUsable(f"its format is {shown!r}, this version writes {FORMAT}")
    entries = content.get("entries")
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise _NotUsable("its entries are not objects", ours=True)
    return content


def _grid_from_json(entry: Mapping[str, Any]) -> Grid:
    try:
        return {
            str(probe): {str(c): _measurement(value) for c, value in row.items()}
            for probe, row in entry["probes"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _NotUsable(f"an entry is malformed ({error!r})", ours=True) from None


def _measurement(value: Mapping[str, Any]) -> Measurement:
    error, milliseconds = value.get("error"), value["milliseconds"]
    if error is not None:
        return Measurement(
            str(value["label"]), math.inf, 0.0, str(error), value["everywhere"] is True
        )
    milliseconds, spread = float(milliseconds), float(value["spread"])
    if not (math.isfinite(milliseconds) and milliseconds >= 0 and spread >= 0):
        raise ValueError(f"a time of {milliseconds}")
    method = str(value.get("method", ""))
    return Measurement(str(value["label"]), milliseconds, spread, method=method)


def _to_json(measurement: Measurement) -> dict[str, Any]:
    if measurement.error is not None:
        return {
            "label": measurement.label,
            "milliseconds": None,
            "error": measurement.error,
            "everywhere": measurement.everywhere,
        }
    timed = {
        "label": measurement.label,
        "milliseconds": measurement.milliseconds,
        "spread": measurement.spread,
    }
    return {**timed, "method": measurement.method} if measurement.method else timed


def _merge_into(path: Path, key: Key, grid: Grid, retuned: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        try:
            content = _read(path)
        except FileNotFoundError:
            content = {"entries": {}}
        except _NotUsable as reason:
            if not reason.ours:
                _warn_once(path, f"ignored and left as it is: {reason}")
                return
            content = {"entries": {}}
        entry = content["entries"].get(key.digest, {})
        try:
            known = _grid_from_json(entry) if entry else {}
        except _NotUsable:
            known = {}
        for probe, row in grid.items():
            known.setdefault(probe, {}).update(row)
        content["entries"][key.digest] = {
            "signature": key.signature,
            "environment": key.environment,
            "probes": {
                probe: {c: _to_json(m) for c, m in row.items()} for probe, row in known.items()
            },
        }
        times = _times_retuned(content) + retuned
        content["_metadata"] = {
            "writer": WRITER,
            "format": FORMAT,
            "op": key.op,
            "device": key.device,
            **key.environment,
            **({"retuned": times} if times else {}),
        }
        replace_file(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def replace_file(path: Path, text: str) -> None:
    """Write ``text`` so that a reader sees the old file or the new one, and nothing between."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        _make_readable(Path(name))
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _make_readable(path: Path) -> None:
    """Give a file, which is private while it is written, the rights that new files get."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, so that of two writers none loses what the other one adds.

    Where a lock can't be had in time, the file is written without one: it stays whole.
    """
    if not _HAS_LOCKS:
        yield
        return
    with open(path.with_name(f".{path.name}.lock"), "a") as lock:
        _patiently(lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB))
        yield


def _patiently(acquire: Callable[[], None]) -> None:
    give_up = time.monotonic() + _LOCK_PATIENCE
    while time.monotonic() < give_up:
        try:
            return acquire()
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:  # a file system without locks
            return
