"""SOLLOL itself: the sync Client, and a worker agent in front of a backend."""

from __future__ import annotations

import asyncio
import re
import signal
from dataclasses import replace

import redis

from sollol_broker.keys import Keys
from sollol_broker.library import Library, build, library, source
from sollol_broker.url import parse
from sollol_client import Client
from sollol_worker_agent.agent import Agent
from sollol_worker_agent.backends import connect as connect_backend
from sollol_worker_agent.config import WorkerConfig

from ..worker import READY

MODEL = "echo"
# A worker's last argument.
WITHOUT_NOTES = "without-notes"
WITHOUT_ALL = "unobserved"
BACKEND = "echo://?slots=64&models=echo"
_WAIT_SECONDS = 60.0


class Fabric:
    """The sending side."""

    def __init__(self, url: str) -> None:
        self.client = Client(url, app="bench", cache=False)
        self._redis = redis.Redis.from_url(url)
        self._keys = Keys("")
        self.client.stats()  # connected from here on, as the others are

    def ask(self, text: str) -> None:
        """See Contender."""
        self.client.submit(chat=text, model=MODEL).result(_WAIT_SECONDS)

    def send(self, count: int) -> None:
        """See Contender."""
        for _ in range(count):
            self.client.submit(chat="hi", model=MODEL, wait_for_node=True)

    def accepted(self) -> int:
        """See Contender."""
        return self._counter("submitted")

    def done(self) -> int:
        """See Contender."""
        return self._counter("done")

    def close(self) -> None:
        """See Contender. Jobs go on; nobody reads their answers."""
        self.client.close()

    def _counter(self, name: str) -> int:
        return int(self._redis.hget(self._keys.stats, name) or 0)


def connect(url: str) -> Fabric:
    """See ContenderModule."""
    return Fabric(url)


def serve(url: str, backends: str = BACKEND, without: str = "", slots: str = "") -> None:
    """See ContenderModule. Backends are parted by blanks.

    With WITHOUT_NOTES, claims leave no reasons for `explain`. With WITHOUT_ALL nothing is counted for the history and
    nothing is written to the live log, either.
    """
    changes: list[tuple[str, str]] = []
    if without:
        changes += [
            (r"local function note_refusal\(.*\)\n", r"\g<0>  if true then return end\n"),
            (r"    local why = string\.format\(.*\n.*\n", "    local why\n"),
            (r"(ms\(own\)), 'why', why\)", r"\1)"),
        ]
    config = WorkerConfig(node="bench", slots=int(slots) if slots else None)
    if without == WITHOUT_ALL:
        changes.append((r"function look_at_queues\(.*\)\n", r"\g<0>  if true then return end\n"))
        config = replace(config, counts=False, log_sample=None)
    functions = _changed(*changes) if changes else library()
    asyncio.run(_serve(url, backends.split(), functions, config))


def _changed(*changes: tuple[str, str]) -> Library:
    code = source()
    for pattern, instead in changes:
        code, found = re.subn(pattern, instead, code)
        if found != 1:
            raise RuntimeError(f"the Lua files have {found} places like {pattern}")
    return build(code)


async def _serve(url: str, backends: list[str], functions: Library, config: WorkerConfig) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    connected = [await connect_backend(each) for each in backends]
    agent = Agent(parse(url), config, connected, functions=functions)
    await agent.start()
    print(READY, flush=True)
    await stop.wait()
    await agent.stop(drain_seconds=1.0)
