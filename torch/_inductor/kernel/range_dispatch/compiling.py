"""The kernels of several modules compiled together, in Inductor's worker processes.

The workers take some seconds to start, and until then Inductor compiles Triton's kernels itself,
one after another. A process that tunes first thing would do so for all candidates: on an H100 that
was 3.5 of the 6.4 seconds of a first compile with 6 implementations. So what is generated while
the workers start is kept, and given to them when they are there.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import CodeCacheFuture


log = logging.getLogger(__name__)

# What compiling a kernel takes without the workers. To wait for them as long as doing without them
# would take is at most twice as long as what is best, whenever they come.
_SECONDS_A_KERNEL = 0.2

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
            _wait_for_workers(len(kept) * _SECONDS_A_KERNEL)
        while kept:
            kept.pop(0).start()

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
    """A kernel that nobody compiles yet."""

    def __init__(self, compile: Callable[[], Any]) -> None:
        self._compile = compile
        self._compiled: Callable[..., Any] | None = None

    def start(self) -> None:
        """Give it to the workers, or compile it where there are none; raises nothing."""
        try:
            compiled = self._compile()
        except Exception as error:
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


def _wait_for_workers(seconds: float) -> None:
    log.debug("waiting for Inductor's workers, for %.1f s at most", seconds)
    with contextlib.suppress(Exception):  # without them it takes longer, and that is all
        AsyncCompile.wait_pool_ready(timeout=seconds)
