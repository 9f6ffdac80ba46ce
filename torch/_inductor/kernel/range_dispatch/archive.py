"""Records moved between folders, and thrown away: what the command line does with them.

Works on whole entries of files, as they are; nothing is measured or interpreted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch._inductor.kernel.range_dispatch import records


log = logging.getLogger(__name__)

Content = dict[str, Any]
# Whether an entry is meant, given its op and itself.
Choice = Callable[[str, Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Moved:
    """What happened to one file: how many entries and how many times in them."""

    path: Path
    op: str
    entries: int
    times: int


def files(folder: Path) -> Iterator[tuple[Path, Content]]:
    """The files of records in ``folder``; what is not one is passed over, and logged."""
    for path in sorted(folder.glob("*.json")):
        try:
            yield path, records._read(path)
        except (records._NotUsable, OSError) as error:
            log.info("tuning records %s: passed over: %s", path, error)


def copy(source: Path, target: Path, wanted: Choice) -> list[Moved]:
    """Add to the files of ``target`` the entries of those of ``source`` that are ``wanted``.

    A time that both have comes from ``source``.

    Raises:
        OSError: ``target`` cannot be written.
    """
    moved = []
    for path, content, taken in _chosen(source, wanted):
        file = target / path.name
        target.mkdir(parents=True, exist_ok=True)
        with records._locked(file):
            merged = _existing(file)
            for digest, entry in taken.items():
                merged["entries"][digest] = _merged(merged["entries"].get(digest), entry)
            merged["_metadata"] = _about(content, merged)
            records.replace_file(file, _text(merged))
        _forget_lock(file)
        moved.append(_moved(file, content, taken))
    return moved


def drop(folder: Path, unwanted: Choice, dry: bool) -> list[Moved]:
    """Take the entries that are ``unwanted`` out of the files of ``folder``.

    A file that has no entry left is removed. With ``dry`` nothing is changed, and what would be is
    returned.

    Raises:
        OSError: ``folder`` cannot be written.
    """
    moved = []
    for path, content, out in _chosen(folder, unwanted):
        if dry:
            moved.append(_moved(path, content, out))
        elif taken := _drop_from(path, unwanted):
            moved.append(taken)
    return moved


def _drop_from(path: Path, unwanted: Choice) -> Moved | None:
    """Take entries out of a file, as it is once nobody else can write it."""
    with records._locked(path):
        try:
            content = records._read(path)
        except (records._NotUsable, FileNotFoundError):
            return None  # someone else has been faster
        op = _op(content)
        out = {d: e for d, e in content["entries"].items() if unwanted(op, e)}
        kept = {d: e for d, e in content["entries"].items() if d not in out}
        if out and kept:
            records.replace_file(path, _text({**content, "entries": kept}))
        elif out:
            path.unlink()
    _forget_lock(path)
    return _moved(path, content, out) if out else None


def _op(content: Content) -> str:
    return str(content["_metadata"].get("op"))


def _chosen(folder: Path, choice: Choice) -> Iterator[tuple[Path, Content, Content]]:
    """The files of ``folder`` that have entries of the choice, with those entries."""
    for path, content in files(folder):
        op = _op(content)
        if entries := {d: e for d, e in content["entries"].items() if choice(op, e)}:
            yield path, content, entries


def _moved(path: Path, content: Content, entries: Content) -> Moved:
    return Moved(path, _op(content), len(entries), sum(map(_times, entries.values())))


def _existing(path: Path) -> Content:
    try:
        return records._read(path)
    except (FileNotFoundError, records._NotUsable):
        return {"entries": {}}


def _merged(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    probes = {probe: dict(row) for probe, row in (old or {}).get("probes", {}).items()}
    for probe, row in new.get("probes", {}).items():
        probes.setdefault(probe, {}).update(row)
    return {**new, "probes": probes}


def _about(new: Content, old: Content) -> dict[str, Any]:
    """``new``'s metadata; how often a file was retuned is a matter of that file alone."""
    about = {k: v for k, v in new["_metadata"].items() if k != "retuned"}
    retuned = old.get("_metadata", {}).get("retuned")
    return about if retuned is None else {**about, "retuned": retuned}


def _times(entry: Mapping[str, Any]) -> int:
    return sum(len(row) for row in entry.get("probes", {}).values())


def _text(content: Content) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _forget_lock(path: Path) -> None:
    """Leave no lock file behind where nobody measures: the folder is to be committed."""
    path.with_name(f".{path.name}.lock").unlink(missing_ok=True)
