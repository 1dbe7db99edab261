"""A worker as a process of its own, for tests that kill it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sollol_broker.errors import BrokerUnavailable
from sollol_broker.library import Library, build, library, source
from sollol_broker.url import parse
from sollol_worker_agent.agent import Agent
from sollol_worker_agent.backends import EchoBackend, End, Piece, Timeouts, connect
from sollol_worker_agent.config import WorkerConfig

POISON = "poison"


def unfenced_library() -> Library:
    """The function library with its fence off: the mutant that a fault test must catch."""
    mutant = source().replace("local FENCED = true", "local FENCED = false")
    assert mutant != source()
    return build(mutant)


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How the workers of a test are made.

    Attributes:
        backend: a URL; "deadly+echo://…" = an echo that kills its worker when it is asked POISON.
        fenced: False = with the function library whose fence is off.
        most_crashes: more than any storm has: what a storm kills is no poison.
    """

    url: str
    backend: str
    lease_seconds: float = 1.0
    fenced: bool = True
    most_crashes: int = 50
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def functions(self) -> Library:
        """The function library that the workers load."""
        return library() if self.fenced else unfenced_library()


class DeadlyEcho(EchoBackend):
    """kill -9 to its own worker, as one job too many for the memory does."""

    def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Answer, or die."""
        if request["messages"][-1]["content"] == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().chat(model, request, timeouts)


def run(plan: WorkerPlan, node: str, log: Path | None = None) -> None:
    """Work until killed."""
    if log is None:
        logging.disable()  # faults by the hundred: each worker would tell of each
    else:
        logging.basicConfig(filename=log, level=logging.INFO, format="%(asctime)s %(process)d %(message)s")
    with contextlib.suppress(BrokerUnavailable):  # it came up while Redis was down: the group starts another
        asyncio.run(_work(plan, node))


async def _work(plan: WorkerPlan, node: str) -> None:
    config = WorkerConfig(
        node=node,
        lease_seconds=plan.lease_seconds,
        reap_seconds=plan.lease_seconds / 4,
        advertise_seconds=1.0,
        poll_seconds=0.5,
        most_crashes=plan.most_crashes,
        **plan.more,
    )
    url = plan.backend.removeprefix("deadly+")
    backend = await connect(url) if url == plan.backend else DeadlyEcho(url)
    agent = Agent(parse(plan.url), config, [backend], functions=plan.functions)
    await agent.start()
    await asyncio.Event().wait()
