#!/usr/bin/env python3
"""The way into this repository: the tests, the demo, the linters, in an environment that fits.

    python3 tools/dev.py test [pytest arguments]     the whole suite, or what the arguments say
    python3 tools/dev.py demo [arguments]            tools/demo.py
    python3 tools/dev.py lint                        ruff check, ruff format --check, mypy
    python3 tools/dev.py status                      is the patch in effect, and from where
    python3 tools/dev.py python ARGUMENTS            the environment's interpreter
    python3 tools/dev.py prepare [COMMAND]           make the environment for a command, no more

In an active virtual environment it works there and installs only what is missing; a torch that is
there stays. Without one it makes .venv here, with PyTorch 2.13.0, and the next run uses it again.
Another release: --torch 2.15.0, or RANGE_DISPATCH_TORCH=2.15.0; each has an environment of its own.

Exit status: that of what was run; 3 where the environment could not be made.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
OVERLAY = ROOT / "tools" / "overlay"
DEFAULT_RELEASE = "2.13.0"
RELEASE_VARIABLE = "RANGE_DISPATCH_TORCH"
CANNOT_PREPARE = 3

# What pip calls a module, where that is not its name alone. With pytest 9.2, xdist up to 3.8 gives
# tests that belong on one worker to any (pytest-xdist#1386), and each does what they share anew.
PIP_NAME = {"pytest": "pytest<9.2", "xdist": "pytest-xdist"}


@dataclass(frozen=True)
class Needs:
    """The modules that a command needs.

    What is optional is installed along with the rest, but does not lead to an installation by
    itself: where all else is there, no pip has to run, and no network has to be there.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def all(self) -> tuple[str, ...]:
        return self.required + self.optional


PATCHED_TORCH = ("torch", "torch_range_dispatch")
# torch complains at import where there is no numpy, and its test classes need it.
RUN_NEEDS = Needs(PATCHED_TORCH, optional=("numpy",))
TEST_NEEDS = Needs((*PATCHED_TORCH, "pytest", "expecttest", "numpy"), optional=("xdist",))
LINT_NEEDS = Needs(("ruff", "mypy"))


class CannotPrepare(Exception):
    """The environment could not be made; the message says what to do about it."""


@dataclass(frozen=True)
class Interpreter:
    """A Python, and what it can import of what matters here."""

    python: Path
    in_venv: bool
    torch: str | None  # the installed release
    missing: tuple[str, ...]  # of the modules that the command needs or can use
    usable: bool  # nothing that the command requires is missing


@dataclass(frozen=True)
class Environment:
    """Where a command will run; ``venv`` is the folder to make or reuse, or None."""

    python: Path
    venv: Path | None
    release: str


# --- choosing: no side effects below, and tested as such ---


def choose_environment(running: Interpreter, requested: str | None, root: Path) -> Environment:
    """The environment to work in.

    An active virtual environment is the user's choice, and so is a Python that has everything
    already. A release asked for by name outranks both, unless it is the one they have.
    """
    release = requested or running.torch or DEFAULT_RELEASE
    fits = requested is None or running.torch is None or same_release(running.torch, requested)
    if fits and (running.in_venv or running.usable):
        return Environment(running.python, None, release)
    release = requested or DEFAULT_RELEASE
    venv = root / (".venv" if release == DEFAULT_RELEASE else f".venv-{release}")
    return Environment(venv / "bin" / "python", venv, release)


def same_release(installed: str, requested: str) -> bool:
    """Whether an installed version is the requested one, in whichever build.

    >>> same_release("2.13.0+cpu", "2.13.0"), same_release("2.13.1", "2.13.0")
    (True, False)
    """
    return installed == requested or installed.partition("+")[0] == requested


def install_commands(missing: Iterable[str], release: str) -> list[list[str]]:
    """The arguments of the pip calls that bring what is missing, in the order to run them in."""
    missing = list(missing)
    commands = []
    if "torch" in missing:
        commands.append(["install", f"torch=={release}"])
    tools = [m for m in missing if m not in ("torch", "torch_range_dispatch")]
    if tools:
        commands.append(["install", *(PIP_NAME.get(m, m) for m in tools)])
    if "torch_range_dispatch" in missing:
        # Without dependencies: torch is there by now, and pip must not exchange it.
        commands.append(["install", "--no-deps", "--editable", str(ROOT)])
    return commands


def pytest_arguments(given: Sequence[str], parallel: bool) -> list[str]:
    """What pytest gets: two processes unless the caller decides, and the slowest tests named."""
    arguments = ["--durations=10"]
    decided = ("-n", "--numprocesses", "--dist", "--pdb", "no:xdist")
    if parallel and not any(a.startswith(decided) or a == "-pno:xdist" for a in given):
        arguments += ["-n", "2", "--dist", "loadgroup"]
    return [*arguments, *given]


def stamp_of(release: str, needs: Iterable[str], files: Iterable[Path]) -> str:
    """What an own environment must have been made from in order to be complete."""
    state = hashlib.sha256(json.dumps([release, sorted(needs), sys.version]).encode())
    for file in files:
        state.update(file.read_bytes())
    return state.hexdigest()


# --- looking at interpreters ---


def is_missing(module: str) -> bool:
    """Whether the running Python lacks a module, or, for the overlay, the entry point of it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # no origin: just a folder of that name on the path
        return True
    if module != "torch_range_dispatch":
        return False
    points = importlib.metadata.entry_points(group="torch.backends")
    return not any(point.name == "range_dispatch" for point in points)


def inspect_running(needs: Needs) -> Interpreter:
    try:
        torch = None if is_missing("torch") else importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "unknown"  # built in place: usable, of a release that only an import would tell
    missing = tuple(module for module in needs.all() if is_missing(module))
    in_venv = sys.prefix != sys.base_prefix
    usable = not set(missing) & set(needs.required)
    return Interpreter(Path(sys.executable), in_venv, torch, missing, usable)


# --- preparing ---


def prepare(environment: Environment, running: Interpreter, needs: Needs) -> None:
    """Bring the environment to where the command can run; fast if it is there already."""
    if environment.venv is None:
        if not running.usable:
            for command in install_commands(running.missing, environment.release):
                pip(environment.python, command)
        return
    recipe = [ROOT / "pyproject.toml", ROOT / "setup.py"]
    stamp = environment.venv / "range-dispatch-stamps"
    wanted = stamp_of(environment.release, needs.all(), recipe)
    if stamp.is_file() and wanted in stamp.read_text().split():
        return
    if not environment.python.exists():
        make_venv(environment.venv)
    for command in install_commands(needs.all(), environment.release):
        pip(environment.python, command)
    with stamp.open("a") as file:
        file.write(f"{wanted}\n")


def make_venv(folder: Path) -> None:
    say(f"making the virtual environment {folder}")
    if subprocess.run([sys.executable, "-m", "venv", str(folder)], check=False).returncode:
        raise CannotPrepare(
            f"'{sys.executable} -m venv' failed (its output is above): install Python's venv "
            "module (python3-venv on Debian and Ubuntu), or activate an environment of your own"
        )


def pip(python: Path, arguments: Sequence[str]) -> None:
    """Run pip where its output can be seen."""
    say("pip " + " ".join(arguments))
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise CannotPrepare(
            f"pip could not install {arguments[-1]} (its output is above): check the network and "
            "pip's configuration, or activate a virtual environment that has PyTorch, pytest, "
            "pytest-xdist, expecttest and this patch, and run this again"
        )


def say(message: str) -> None:
    print(f"[dev] {message}", file=sys.stderr, flush=True)


# --- the commands ---


def child_environment(**extra: str) -> dict[str, str]:
    """The variables for what we run: this checkout's patch, even if another one is installed."""
    path = [str(OVERLAY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **extra}


def run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> int:
    variables = child_environment() if variables is None else variables
    try:
        return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode
    except KeyboardInterrupt:
        return 130


def run_test(python: str, arguments: Sequence[str]) -> int:
    """The suite, with compile caches of its own: a stale entry must not decide a test."""
    # Not started by mistake on a PyTorch without the patch, where most tests fail one by one.
    if run([python, "-m", "torch_range_dispatch", "status"]):
        say("the patch is not active in this environment (see above): not running the tests")
        return 1
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('xdist') is None)"
    parallel = run([python, "-c", look]) == 0
    command = [python, "-m", "pytest", *pytest_arguments(arguments, parallel)]
    with tempfile.TemporaryDirectory(
        prefix="range-dispatch-test-", ignore_cleanup_errors=True
    ) as caches:
        return run(command, child_environment(TORCHINDUCTOR_CACHE_DIR=caches))


def run_demo(python: str, arguments: Sequence[str]) -> int:
    return run([python, str(ROOT / "tools" / "demo.py"), *arguments])


def run_status(python: str, arguments: Sequence[str]) -> int:
    return run([python, "-m", "torch_range_dispatch", "status", *arguments])


def run_python(python: str, arguments: Sequence[str]) -> int:
    return run([python, *arguments])


def run_lint(python: str, arguments: Sequence[str]) -> int:
    """All three, also after one has failed; ``arguments`` go to ruff check, such as --fix."""
    steps = (
        ["ruff", "check", *arguments],
        ["ruff", "format", "--check"],
        ["mypy"],
    )
    failed = []
    for step in steps:
        say(" ".join(step))
        if run([python, "-m", *step]):
            failed.append(" ".join(step[:2]))
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


@dataclass(frozen=True)
class Command:
    run: Callable[[str, Sequence[str]], int]
    needs: Needs


COMMANDS = {
    "test": Command(run_test, TEST_NEEDS),
    "demo": Command(run_demo, RUN_NEEDS),
    "lint": Command(run_lint, LINT_NEEDS),
    "status": Command(run_status, RUN_NEEDS),
    "python": Command(run_python, RUN_NEEDS),
}


def parse(argv: Sequence[str]) -> tuple[str, str | None, list[str]]:
    """The command, the release asked for, and what is left for the command itself."""
    parser = argparse.ArgumentParser(
        prog="tools/dev.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python3 tools/dev.py [--torch RELEASE] COMMAND [arguments of the command]",
    )
    parser.add_argument("--torch", metavar="RELEASE", help="the PyTorch release, such as 2.15.0")
    commands = (*COMMANDS, "prepare")
    parser.add_argument("command", choices=commands, metavar="COMMAND", help=", ".join(commands))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(argv)
    arguments: list[str] = parsed.arguments
    release = parsed.torch or os.environ.get(RELEASE_VARIABLE) or None
    if arguments[:1] == ["--torch"] and len(arguments) > 1:  # understood after the command too
        release, arguments = arguments[1], arguments[2:]
    if parsed.command == "prepare":
        arguments = arguments or ["test"]
        if len(arguments) != 1 or arguments[0] not in COMMANDS:
            parser.error(f"prepare takes one of {', '.join(COMMANDS)}, got {' '.join(arguments)}")
    return parsed.command, release, arguments


def main(argv: Sequence[str] | None = None) -> int:
    command, requested, arguments = parse(sys.argv[1:] if argv is None else argv)
    needs = COMMANDS[arguments[0] if command == "prepare" else command].needs
    running = inspect_running(needs)
    environment = choose_environment(running, requested, ROOT)
    try:
        prepare(environment, running, needs)
    except CannotPrepare as error:
        say(f"error: {error}")
        return CANNOT_PREPARE
    except KeyboardInterrupt:
        return 130
    if command == "prepare":
        say(f"ready: {environment.python}")
        return 0
    return COMMANDS[command].run(str(environment.python), arguments)


if __name__ == "__main__":
    sys.exit(main())
