"""The sub-commands that look at plans and records. All of them need an active patch."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch_range_dispatch


MACHINERY = "torch._inductor.kernel.range_dispatch"
FOLDER_VARIABLE = "TORCH_RANGE_DISPATCH_RECORDS"


class Failure(Exception):
    """What ends a command: one line that says what is wrong and what to do."""


def _module(name: str) -> Any:
    """A module of the patch, or why there is none."""
    warnings.simplefilter("ignore", torch_range_dispatch.RangeDispatchWarning)
    found = torch_range_dispatch.activate() if _has_torch() else torch_range_dispatch.status()
    if not found.active:
        raise Failure(f"range dispatch is not active: {found.reason}")
    return importlib.import_module(f"{MACHINERY}.{name}")


def _has_torch() -> bool:
    try:
        import torch  # noqa: F401
    except Exception:  # whatever it is, status() says it
        return False
    return True


def _folders(given: str | None) -> list[Path]:
    """Where records are: the folder that was named, or all that a compilation here would read."""
    if given is not None:
        folder = Path(given)
        if not folder.is_dir():
            raise Failure(f"there is no folder {folder}: name one that holds records")
        return [folder]
    named = os.environ.get(FOLDER_VARIABLE)
    return [*([Path(named)] if named else []), _module("saved").cache_folder()]


def _op(wanted: str | None, known: Iterable[str], what: str) -> str | None:
    """The op that ``wanted`` names: all of its name, or the part after the namespace."""
    if wanted is None:
        return None
    names = sorted(set(known))
    spelled = wanted.removesuffix(".default")
    fitting = [n for n in names if spelled == n] or [
        n for n in names if spelled == n.partition("::")[2]
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise Failure(f"{wanted} may be {' or '.join(fitting)}: write the whole name")
    shown = f"there are {what} of {', '.join(names)}" if names else f"there are no {what} at all"
    raise Failure(
        f"there are no {what} of {wanted} ({shown}): run a program that compiles a call of it "
        "first, or name the folder with --folder"
    )


# ---------------------------------------------------------------------------------------------
# report


def run_report(args: argparse.Namespace) -> int:
    saved, report = _module("saved"), _module("report")
    found = [] if args.folder else saved.plans()
    known = {plan.op for plan in found}
    entries = list(saved.entries(_folders(args.folder)))
    op = _op(args.op, known | {entry.op for entry in entries}, "plans or records")
    plans = [plan for plan in found if op in (None, plan.op)]
    plans += [saved.plan_of(e) for e in entries if op in (None, e.op) and e.op not in known]
    if not plans:
        where = args.folder or saved.cache_folder()
        raise Failure(
            f"there are no plans and no records in {where}: run a program that registers an op "
            "and calls a compiled function with it first"
        )
    whole = report.Report(tuple(plans))
    if args.html is not None:
        _write(Path(args.html), whole.to_html())
    if args.json:
        print(whole.to_json())
    elif args.html is None:
        print(whole)
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from None
    print(f"wrote {path}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------
# records


def run_list(args: argparse.Namespace) -> int:
    entries = _entries(args.folder, args.op)
    rows = [
        {
            "op": entry.op,
            "device": entry.device,
            "release": entry.release,
            "dispatch_on": entry.dispatch_on,
            "probes": sorted(entry.probes, key=lambda probe: (len(probe), probe)),
            "times": entry.times,
            "file": str(entry.path),
        }
        for entry in entries
    ]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    header = ["op", "device", "PyTorch", "dispatched on", "probes", "times", "file"]
    table = [
        [
            row["op"],
            row["device"],
            row["release"],
            row["dispatch_on"] or "-",
            str(len(row["probes"])),
            str(row["times"]),
            row["file"],
        ]
        for row in rows
    ]
    for line in _columns([header, *table]):
        print(line)
    return 0


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]


def run_show(args: argparse.Namespace) -> int:
    saved = _module("saved")
    for entry in _entries(args.folder, args.op):
        print(saved.plan_of(entry))
        print(f"  file: {entry.path}, entry {entry.digest}")
        print(f"  call: {json.dumps(entry.signature, sort_keys=True)}")
        print(f"  environment: {json.dumps(entry.environment, sort_keys=True)}\n")
    return 0


def _entries(folder: str | None, op: str | None) -> list[Any]:
    folders = _folders(folder)
    entries = list(_module("saved").entries(folders))
    wanted = _op(op, (entry.op for entry in entries), "records")
    found = [entry for entry in entries if wanted in (None, entry.op)]
    if not found:
        shown = " and ".join(map(str, folders))
        raise Failure(
            f"there are no records in {shown}: run a program that registers an op and calls a "
            "compiled function with it first, or name another folder with --folder"
        )
    return found


def run_export(args: argparse.Namespace) -> int:
    entries = _entries(args.folder, None)
    wanted = {_op(op, (entry.op for entry in entries), "records") for op in args.op}
    current = _current_environment()

    def chosen(op: str, entry: Mapping[str, Any]) -> bool:
        return op in (wanted or {op}) and (args.all or _is_current(entry, current))

    target = Path(args.dir)
    moved = []
    for folder in reversed(_folders(args.folder)):  # the first one outranks the others
        if folder.resolve() != target.resolve():
            moved += _module_copy(folder, target, chosen)
    if not moved:
        raise Failure(
            f"nothing to export: no record was made by PyTorch {current['torch']} with this patch. "
            "--all exports those of other releases too"
        )
    _tell(moved)
    print(
        f"Commit {target} next to the model, and name it: "
        f'register_custom_op_autotuning(..., records="{target}") or {FOLDER_VARIABLE}={target}'
    )
    return 0


def _module_copy(source: Path, target: Path, wanted: Any) -> list[Any]:
    try:
        moved: list[Any] = _module("archive").copy(source, target, wanted)
    except OSError as error:
        raise Failure(f"cannot write to {target}: {error.strerror}") from None
    return moved


def run_import(args: argparse.Namespace) -> int:
    source = Path(args.dir)
    if not source.is_dir():
        raise Failure(f"there is no folder {source}: name one that 'records export' made")
    saved = _module("saved")
    moved = _module_copy(source, saved.cache_folder(), lambda op, entry: True)
    if not moved:
        raise Failure(f"there are no records in {source}: name a folder that 'records export' made")
    saved.next_generation()
    _tell(moved)
    return 0


def run_prune(args: argparse.Namespace) -> int:
    current = _current_environment()
    folder = _folders(args.folder)[-1]
    moved = _drop(folder, lambda op, entry: not _is_current(entry, current), args.dry_run)
    if not moved:
        print(f"nothing to prune: all records in {folder} are of PyTorch {current['torch']}")
        return 0
    _tell(moved, "would remove" if args.dry_run else "removed")
    return 0


def _drop(folder: Path, unwanted: Any, dry: bool = False) -> list[Any]:
    try:
        moved: list[Any] = _module("archive").drop(folder, unwanted, dry)
    except OSError as error:
        raise Failure(f"cannot write to {folder}: {error.strerror}") from None
    if moved and not dry:
        _module("saved").next_generation()
    return moved


def _tell(moved: Iterable[Any], verb: str = "wrote") -> None:
    for each in moved:
        print(f"{verb} {each.times} times of {each.op}: {each.path}")


def _current_environment() -> Mapping[str, Any]:
    signature = _module("signature")
    import torch

    environment: Mapping[str, Any] = signature.environment(torch.device("cpu"))
    return environment


def _is_current(entry: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether a compilation with the software of this environment would use ``entry``."""
    theirs = entry.get("environment", {})
    return all(theirs.get(name) == current[name] for name in ("torch", "triton", "cuda", "patch"))


# ---------------------------------------------------------------------------------------------
# retune


def run_retune(args: argparse.Namespace) -> int:
    if args.program:
        return _run_anew(args.program)
    if not args.op and not args.all:
        raise Failure(
            "retune what? Name ops, or --all, or a program to run: retune -- python3 serve.py"
        )
    folders = _folders(args.folder)
    entries = list(_module("saved").entries(folders))
    known = [entry.op for entry in entries]
    wanted = {_op(op, known, "records") for op in args.op}
    moved = _drop(folders[-1], lambda op, entry: args.all or op in wanted)
    _tell(moved, "removed")
    print("The next compilation of a call measures anew.")
    left = {e.path.parent for e in entries if e.path.parent != folders[-1]}
    for folder in sorted(left):
        if any(e.path.parent == folder and (args.all or e.op in wanted) for e in entries):
            print(
                f"{folder} has records of it as well, which are looked up first: to drop them "
                f"too, add --folder {folder}"
            )
    return 0


def _run_anew(program: Sequence[str]) -> int:
    variables = {**os.environ, "TORCH_RANGE_DISPATCH_RETUNE": "1"}
    try:
        return subprocess.run(program, env=variables, check=False).returncode
    except OSError as error:
        raise Failure(f"cannot run {program[0]}: {error.strerror}") from None


# ---------------------------------------------------------------------------------------------
# Parsers.


def add_report(parsers: Any) -> None:
    parser = _add(
        parsers,
        "report",
        "what was measured and chosen, from what earlier processes left on disk",
        run_report,
        """
  python3 -m torch_range_dispatch report
  python3 -m torch_range_dispatch report my_lib::my_op --html plan.html
  python3 -m torch_range_dispatch report my_op --json | jq '.plans[0].chosen'
""",
    )
    parser.add_argument("op", nargs="?", metavar="OP", help="one op alone")
    parser.add_argument("--html", metavar="FILE", help="write a page with charts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_folder(parser)


def add_records(parsers: Any) -> None:
    parser = _add(
        parsers,
        "records",
        "list, show, ship and throw away what was measured",
        None,
        """
  python3 -m torch_range_dispatch records list
  python3 -m torch_range_dispatch records show my_lib::my_op
  python3 -m torch_range_dispatch records export model/tuning
  python3 -m torch_range_dispatch records import model/tuning
  python3 -m torch_range_dispatch records prune --dry-run
""",
    )

    def run_help(args: argparse.Namespace) -> int:
        parser.print_help()
        return 2

    parser.set_defaults(run=run_help)
    below = parser.add_subparsers(title="commands", metavar="COMMAND")

    listing = _add(below, "list", "one line for each kind of call", run_list)
    listing.add_argument("op", nargs="?", metavar="OP", help="one op alone")
    listing.add_argument("--json", action="store_true", help="print a JSON list")
    _add_folder(listing)

    show = _add(below, "show", "all times, with what they depend on", run_show)
    show.add_argument("op", nargs="?", metavar="OP", help="one op alone")
    _add_folder(show)

    export = _add(
        below,
        "export",
        "copy records into a folder to commit next to a model",
        run_export,
        """
  python3 -m torch_range_dispatch records export model/tuning
  python3 -m torch_range_dispatch records export model/tuning my_lib::my_op
""",
    )
    export.add_argument("dir", metavar="DIR", help="the folder; it is made, or added to")
    export.add_argument("op", nargs="*", metavar="OP", help="these ops alone")
    export.add_argument("--all", action="store_true", help="of other PyTorch releases too")
    _add_folder(export)

    importing = _add(below, "import", "copy a folder's records into Inductor's cache", run_import)
    importing.add_argument("dir", metavar="DIR", help="a folder that 'records export' made")

    prune = _add(below, "prune", "remove records of other PyTorch releases", run_prune)
    prune.add_argument("--dry-run", action="store_true", help="say what would be removed")
    _add_folder(prune)


def add_retune(parsers: Any) -> None:
    parser = _add(
        parsers,
        "retune",
        "have ops measured anew",
        run_retune,
        """
  python3 -m torch_range_dispatch retune my_lib::my_op     at the next compilation
  python3 -m torch_range_dispatch retune --all
  python3 -m torch_range_dispatch retune -- python3 serve.py    while this runs
""",
    )
    parser.add_argument("op", nargs="*", metavar="OP", help="the ops")
    parser.add_argument("--all", action="store_true", help="all ops")
    parser.set_defaults(program=[])
    _add_folder(parser)


def _add(
    parsers: Any, name: str, summary: str, run: Any, examples: str = ""
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:{examples}".rstrip() if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder",
        metavar="DIR",
        help=f"where the records are; by default ${FOLDER_VARIABLE} and Inductor's cache directory",
    )
