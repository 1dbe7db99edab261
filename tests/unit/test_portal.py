"""A loop in a thread: whoever waits for something in it is not left waiting."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError

import pytest

from sollol_broker.portal import Portal


def test_what_still_runs_is_cancelled_at_the_end() -> None:
    portal = Portal("test")
    waits = portal.start(asyncio.sleep(3600))
    portal.close()
    with pytest.raises(CancelledError):
        waits.result(20)


def test_a_coroutine_is_run_in_the_thread() -> None:
    portal = Portal("test")
    assert portal.run(asyncio.sleep(0, "done")) == "done"
    portal.close()
    portal.close()
