"""The kernels of several modules compiled together: by Inductor's workers, or by threads.

The workers take some seconds to start, and until then Inductor compiles Triton's kernels one after
another. In a process that tunes first thing these are the kernels of all candidates: on an H100,
3.5 of the 6.4 seconds of a first compile with 6 implementations. So what is generated before the
workers are there is kept, and compiled by threads when all of it is there; of what Triton does, the
passes of LLVM and ptxas run at the same time. The rest holds the interpreter's lock: on 16 cores
35 configurations take 2.9 s one after another, 1.5 s by 4 threads, and 1.4 s by 8 or by 14.
"""

from __future__ import annotations

import ast
import contextlib
import contextvars
import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch._inductor.async_compile import AsyncCompile, get_compile_threads
from torch._inductor.codecache import CodeCacheFuture


log = logging.getLogger(__name__)

# More gain nothing, and a kernel that is begun later may find the workers ready.
_MOST_THREADS = 8

_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def compiled_together() -> Iterator[Callable[[Callable[..., Any]], None]]:
    """Inside, a module that is compiled hands its kernels to Inductor's workers and goes on.

    Yields a function that, given a module's function, waits for that module's kernels and raises
    what went wrong with them. All are waited for at the end. Nothing is to be compiled inside once
    the first has been waited for.
    """
    owner = threading.get_ident()
    waiting: dict[int, Callable[[], None]] = {}
    kept: list[_Kept] = []

    def start() -> None:
        if kept:
            _compile_in_threads(kept)
            kept.clear()

    def finish(function: Callable[..., Any]) -> None:
        start()
        scope = getattr(function, "__func__", function).__globals__
        waiting.pop(id(scope), lambda: None)()

    with _one_at_a_time:
        wait, triton = AsyncCompile.wait, AsyncCompile.triton

        def waits_later(self: AsyncCompile, scope: dict[str, Any]) -> None:
            if threading.get_ident() != owner:
                wait(self, scope)
            else:
                waiting[id(scope)] = functools.partial(wait, self, scope)

        def keeps(self: AsyncCompile, *args: Any, **kwargs: Any) -> Any:
            compile = functools.partial(triton, self, *args, **kwargs)
            if threading.get_ident() != owner or not _workers_are_starting():
                return compile()
            kept.append(_Kept(compile))
            return kept[-1]

        AsyncCompile.wait, AsyncCompile.triton = waits_later, keeps
        try:
            yield finish
        finally:
            AsyncCompile.wait, AsyncCompile.triton = wait, triton
            start()
            # Generated modules are cached: none may stay there with its kernels half made.
            for pending in waiting.values():
                with contextlib.suppress(Exception):
                    pending()


class _Kept(CodeCacheFuture):
    """A kernel that nobody has compiled yet."""

    def __init__(self, compile: Callable[[], Any]) -> None:
        self._compile = compile
        self._compiled: Callable[..., Any] | None = None
        self.failed = False

    def start(self) -> None:
        """Compile it, or give it to the workers if they are there by now; raises nothing."""
        self.failed = False
        try:
            compiled = self._compile()
        except Exception as error:
            self.failed = True
            self._compiled = functools.partial(_raise, error)
            return
        is_future = isinstance(compiled, (Future, CodeCacheFuture))
        self._compiled = compiled.result if is_future else lambda *args, **kwargs: compiled

    def result(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled is None:
            self.start()
        assert self._compiled is not None
        return self._compiled(*args, **kwargs)


def _raise(error: Exception, *args: Any, **kwargs: Any) -> None:
    raise error


def _workers_are_starting() -> bool:
    """False where they have started, and where there are to be none."""
    return not AsyncCompile.use_process_pool() and AsyncCompile._ready_future is not None


def _compile_in_threads(kept: Sequence[_Kept]) -> None:
    count = min(len(kept), get_compile_threads(), _MOST_THREADS)
    log.debug("compiling %d kernels in %d threads", len(kept), count)
    with _parsing_in_turn(), ThreadPoolExecutor(count) as pool:
        for kernel in kept:
            pool.submit(contextvars.copy_context().run, kernel.start)
    # Whatever Triton does not do in several threads at once, it does alone.
    for kernel in kept:
        if kernel.failed:
            kernel.start()


@contextlib.contextmanager
def _parsing_in_turn() -> Iterator[None]:
    """Inside, one thread at a time is in ``ast.parse``.

    Before Python 3.12 all threads share one counter of how deep they are, and one that is
    interrupted there raises a SystemError (https://github.com/python/cpython/issues/106905).
    """
    if sys.version_info >= (3, 12):
        yield
        return
    parse, lock = ast.parse, threading.RLock()

    def parse_in_turn(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return parse(*args, **kwargs)

    ast.parse = parse_in_turn
    try:
        yield
    finally:
        ast.parse = parse
