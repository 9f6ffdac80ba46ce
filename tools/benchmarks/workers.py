"""Processes that compile at the same time and measure one after another.

A tool starts itself again as a worker. Requests and replies are lines of JSON on the worker's
standard input and output; whatever else it prints goes to its log.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


Reply = dict[str, Any]


class Lost(Exception):
    """A worker has ended, or took too long and was ended."""


class Worker:
    """One process, which does what it is asked, in order.

    Args:
        command: What to run; it must call ``serve``.
        environment: Its variables.
        log: A file for its standard error.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._received = b""
        self._lost = ""

    def ask(self, request: Reply, deadline: float = float("inf")) -> Reply:
        """Send a request and wait for the reply until ``deadline``, by ``time.monotonic()``.

        Raises:
            Lost: There is no reply. Every later request raises it as well.
        """
        if self._lost:
            raise Lost(self._lost)
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return json.loads(self._line(deadline))
        except (OSError, Lost) as error:
            self._lost = str(error) if isinstance(error, Lost) else self._how_it_ended()
            self.end()
            raise Lost(self._lost) from None

    def end(self) -> None:
        """End the process; one that has ended already is fine."""
        self._lost = self._lost or "it was ended"
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        file = self._process.stdout.fileno()
        while b"\n" not in self._received:
            left = min(deadline - time.monotonic(), 3600.0)
            if left <= 0 or not select.select([file], [], [], left)[0]:
                raise Lost("out of time")
            read = os.read(file, 1 << 16)
            if not read:
                raise Lost(self._how_it_ended())
            self._received += read
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        said = [line for line in self.log.read_text().splitlines() if line.strip()]
        return f"the process ended: {said[-1][:200] if said else 'it said nothing'}"


def serve(handle: Callable[[Reply], Reply]) -> None:
    """Answer requests until there are no more. An exception becomes the reply's ``error``."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = handle(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            reply = {"error": reason(error)}
        print(json.dumps(reply), file=replies, flush=True)


def reason(error: BaseException) -> str:
    """What happened, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


@contextlib.contextmanager
def at_the_same_time(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that wait for up to ``count`` workers at a time."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
