"""Tuning records: what was measured, kept in memory and as JSON, and found again.

A measurement is looked up in memory, then in the named folder (``records=`` of the registration,
or the environment variable TORCH_RANGE_DISPATCH_RECORDS), then under Inductor's cache directory;
what is found nowhere is measured, and saved in all three. There is one file for an op and a kind
of device. An entry holds all measurements for one signature of the call, by probe and candidate,
so that a candidate or a probe that is new is all that has to be measured.

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
# What is known to be in a file already.
_in_file: dict[tuple[Path, str], Grid] = {}
_warned: set[Path] = set()


def forget() -> None:
    """Empty the memory, as in a new process; files stay as they are."""
    for kept in (_memory, _in_file, _warned):
        kept.clear()


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
        self._grid = _memory.setdefault((key.digest, retune), {})
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
            mine.update({c: m for c, m in row.items() if c not in mine})
        return True

    def add(self, probe: str, measured: Mapping[str, Measurement]) -> None:
        """Remember measurements by candidate; ``save`` writes them."""
        self._grid.setdefault(probe, {}).update(measured)

    def save(self) -> None:
        """Write what a file does not have yet; one that can't be written is warned of once."""
        for path in self._paths if self._grid else ():
            name = (path, self._key.digest)
            if _in_file.get(name) == self._grid:
                continue
            try:
                _merge_into(path, self._key, self._grid)
            except OSError as error:
                _warn_once(path, f"cannot be written: {error}")
            _in_file[name] = {probe: dict(row) for probe, row in self._grid.items()}


def _warn_once(path: Path, what: str) -> None:
    if path not in _warned:
        _warned.add(path)
        log.warning("tuning records %s: %s", path, what)


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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
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


def _merge_into(path: Path, key: Key, grid: Grid) -> None:
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
        content["_metadata"] = {
            "writer": WRITER,
            "format": FORMAT,
            "op": key.op,
            "device": key.device,
            **key.environment,
        }
        _replace(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _replace(path: Path, text: str) -> None:
    """Write ``text`` so that a reader sees the old file or the new one, and nothing between."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


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
