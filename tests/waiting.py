"""How a test waits for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

# Short enough not to be felt, long enough to leave the processor to what is waited for.
_STEP_SECONDS = 0.005
# What a machine that is busy with other things may need for anything. It costs nothing when all is well.
_LEAST_SECONDS = 60.0


async def wait_until(
    condition: Callable[[], object] | Callable[[], Awaitable[object]], *, timeout: float, what: str
) -> None:
    """Return as soon as `condition` is true; it may be a plain function or a coroutine function.

    Args:
        condition: asked again and again; any true value will do.
        timeout: seconds after which to give up; a minute at the least.
        what: the thing waited for, as the end of the sentence "waited 5 s for …".

    Raises:
        AssertionError: it did not become true in time.
    """
    timeout = max(timeout, _LEAST_SECONDS)
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + timeout
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return
        if loop.time() >= give_up_at:
            raise AssertionError(f"waited {timeout:g} s for {what}, in vain")
        await asyncio.sleep(_STEP_SECONDS)
