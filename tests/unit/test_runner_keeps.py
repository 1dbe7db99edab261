"""What an attempt that gives up leaves to the next one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

import pytest

from sollol_broker.broker import Broker, Claimed, Lease
from sollol_broker.codec import unpack
from sollol_broker.envelope import Envelope
from sollol_broker.errors import BackendError
from sollol_worker_agent.backends import EchoBackend, End, Piece, Timeouts
from sollol_worker_agent.lane import Lane
from sollol_worker_agent.runner import Runner


class _Breaking(EchoBackend):
    """Says half of an answer."""

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        yield Piece("half")
        raise BackendError("broken", retryable=True)


class _Shown:
    """Takes down what is shown."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def emit(self, lease: Lease, seq: int, data: bytes, *, seam: object) -> int:
        self.texts.append(unpack(data, max_bytes=1000)["text"])
        return 1


@pytest.mark.parametrize(("is_hedge", "kept"), [(False, ["half"]), (True, [])])
async def test_a_second_copy_that_fails_says_nothing_for_that_would_stop_the_first(
    is_hedge: bool, kept: list[str]
) -> None:
    shown = _Shown()
    claimed = Claimed(Lease("j1", 7, "nonce"), 1, 0.0, None, 0, b"", is_hedge=is_hedge)
    payload = {"messages": [{"role": "user", "content": "hi"}]}
    envelope = Envelope(kind="chat", model="echo", app="tests", payload=payload)
    runner = Runner(
        cast("Broker", shown),
        claimed,
        envelope,
        Lane(_Breaking()),
        node="n1",
        worker="n1.ab",
        timeouts=Timeouts(),
        on_lost=lambda: None,
    )
    with pytest.raises(BackendError) as broken:
        await runner.run()
    assert broken.value.partial == "half"
    assert shown.texts == kept
