"""One attempt at a job: its time, and what it leaves to the next one when it gives up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

import pytest

from sollol_broker.broker import Broker, Claimed, Lease
from sollol_broker.codec import unpack
from sollol_broker.envelope import Envelope
from sollol_broker.errors import BackendError, DeadlineExceeded
from sollol_worker_agent.backends import EchoBackend, End, Piece, Timeouts
from sollol_worker_agent.figures import Figures
from sollol_worker_agent.lane import Lane
from sollol_worker_agent.runner import Runner
from sollol_worker_agent.spans import Spans


class _Breaking(EchoBackend):
    """Says half of an answer."""

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        yield Piece("half")
        raise BackendError("broken", retryable=True)


class _Hanging(EchoBackend):
    """Says nothing."""

    async def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        await asyncio.Event().wait()
        yield End()


class _Shown:
    """Takes down what is shown."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def emit(self, lease: Lease, seq: int, data: bytes, *, seam: object) -> int:
        self.texts.append(unpack(data, max_bytes=1000)["text"])
        return 1


def _runner(backend: EchoBackend, shown: _Shown, **claimed: Any) -> Runner:
    fields = {"attempt": 1, "waited_ms": 0.0, "deadline_ms": None, "blobs": 0, "envelope": b""}
    payload = {"messages": [{"role": "user", "content": "hi"}]}
    job = Claimed(lease=Lease("j1", 7, "nonce"), **(fields | claimed))
    envelope = Envelope(kind="chat", model="echo", app="tests", payload=payload)
    return Runner(
        cast("Broker", shown),
        job,
        envelope,
        Lane(backend),
        node="n1",
        worker="n1.ab",
        timeouts=Timeouts(),
        on_lost=lambda: None,
        figures=Figures(),
        spans=Spans(job, envelope, node="n1", worker="n1.ab"),
    )


@pytest.mark.parametrize(("is_hedge", "kept"), [(False, ["half"]), (True, [])])
async def test_a_second_copy_that_fails_says_nothing_for_that_would_stop_the_first(
    is_hedge: bool, kept: list[str]
) -> None:
    shown = _Shown()
    with pytest.raises(BackendError) as broken:
        await _runner(_Breaking(), shown, is_hedge=is_hedge).run()
    assert broken.value.partial == "half"
    assert shown.texts == kept


@pytest.mark.parametrize("left_ms", [0.0, 0.2, 20.0])
async def test_a_job_at_its_deadline_ends_however_little_is_left(left_ms: float) -> None:
    async with asyncio.timeout(30):
        with pytest.raises(DeadlineExceeded):
            await _runner(_Hanging(), _Shown(), deadline_ms=left_ms).run()
