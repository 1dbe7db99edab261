"""Calls that work plainly and awaited, as SOLLOL's names have always been used.

answer = router.route_request(…)          # in a program without an event loop
answer = await router.route_request(…)    # in a coroutine
"""

from __future__ import annotations

import asyncio
import functools
import threading
import warnings
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Pending(Generic[T]):
    """What a call gives inside a running event loop: await it; or use it as what it will be, which waits.

    Waiting plainly keeps the loop from doing anything else meanwhile; notebooks live with that.
    """

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self._future).__await__()

    def result(self, timeout: float | None = None) -> T:
        """Wait for it."""
        return self._future.result(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._future.result(), name)

    def __getitem__(self, key: Any) -> Any:
        return self._value[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._value)

    def __len__(self) -> int:
        return len(self._value)

    def __contains__(self, key: object) -> bool:
        return key in self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return repr(self._value) if self._future.done() else "<not there yet: await it>"

    @property
    def _value(self) -> Any:
        return self._future.result()


def plainly_or_awaited(future: Future[T]) -> T | Pending[T]:
    """What `future` gives; where an event loop runs, something that can be awaited as well."""
    return Pending(future) if has_loop() else future.result()


def has_loop() -> bool:
    """Whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@functools.cache
def warn_once(text: str) -> None:
    """Say once per process that an argument or a setting has no meaning here, and what took its place."""
    warnings.warn(text, DeprecationWarning, stacklevel=4)


def call_in_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Run something that blocks in a thread of its own, which does not keep the program from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end for a function that is not one, even where an event loop runs already."""
    return call_in_thread(lambda: asyncio.run(work), "sollol-call").result()
