"""``python3 -m torch_range_dispatch``: ask about the patch, from a shell or a script.

A sub-command is a function that adds its parser to the others and names, through
``set_defaults(run=...)``, the function that carries it out and returns the exit status.
``COMMANDS`` lists them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import warnings
from typing import TYPE_CHECKING

import torch_range_dispatch
from torch_range_dispatch import _commands


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Parsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_status(parsers: Parsers) -> None:
    parser = parsers.add_parser(
        "status",
        help="is the patch in effect, from where, and if not, why",
        description="Exit status: 0 where the patch is in effect, 1 where it is not.",
        epilog="examples:\n  python3 -m torch_range_dispatch status --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_status)


def run_status(args: argparse.Namespace) -> int:
    # The answer below gives the reason; the warning that import torch gives would repeat it.
    warnings.simplefilter("ignore", torch_range_dispatch.RangeDispatchWarning)
    found = torch_range_dispatch.status()
    if args.json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    elif found.release is None:
        print(f"error: {found.reason}", file=sys.stderr)
    else:
        print(describe(found))
    return 0 if found.active else 1


def describe(found: torch_range_dispatch.Status) -> str:
    verdict = "active" if found.active else "not active"
    detail = "" if found.state == verdict else f" ({found.state})"
    lines = [
        ("range dispatch", f"{found.version}, {verdict}{detail}"),
        ("reason", found.reason),
        ("custom op from", found.source or "nowhere"),
        ("PyTorch", found.release),
        ("Python", f"{found.python} ({found.executable})"),
    ]
    return "\n".join(f"{label + ':':<16}{value}" for label, value in lines)


COMMANDS: tuple[Callable[[Parsers], None], ...] = (
    add_status,
    _commands.add_report,
    _commands.add_records,
    _commands.add_retune,
)
EXAMPLES = """examples:
  python3 -m torch_range_dispatch status
  python3 -m torch_range_dispatch report --html report.html
  python3 -m torch_range_dispatch records export model/tuning

Exit status: 0 where all went well, 1 where it did not, 2 where the command is not understood.
"""


def parser_of_commands() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m torch_range_dispatch",
        description="Range dispatch for custom ops in PyTorch Inductor.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=torch_range_dispatch.__version__)
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in COMMANDS:
        add(parsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of_commands()
    given, program = _split(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(given)
    if program:
        if getattr(args, "run", None) is not _commands.run_retune:
            parser.error("only retune takes a program after --")
        args.program = program
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except _commands.Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments before ``--``, and the program after it."""
    if "--" not in argv:
        return list(argv), []
    at = list(argv).index("--")
    return list(argv[:at]), list(argv[at + 1 :])


if __name__ == "__main__":
    sys.exit(main())
