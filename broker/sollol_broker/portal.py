"""An event loop in a thread of its own, and the way into it from other threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Portal:
    """Runs coroutines for threads. The thread is a daemon: a program that forgets to close still ends."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """Whether the caller is in the portal's own thread, where it must not wait."""
        return threading.current_thread() is self._thread

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for what it gives."""
        if self.is_here:
            work.close()
            raise RuntimeError(
                "a callback of a job runs in the client's own thread and must not wait for another job"
            )
        return self.start(work).result()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine; gives the future of what it gives."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call something in the loop without waiting."""
        self._loop.call_soon_threadsafe(callback)

    def close(self) -> None:
        """Stop the loop and end the thread. What still runs is cancelled, so that nobody waits for it for ever."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(_cancel_all())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


async def _cancel_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
