"""Which model is in memory, and who waits: the part of Ollama that queues. No HTTP here."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

# Options that belong to the load; another value means another load.
_LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")


class Refused(Exception):
    """The server answers with this status and text instead of working."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class DoubleModel:
    """A model that the double has installed.

    Attributes:
        name: with or without its tag; no tag is ":latest".
        capabilities: Ollama's words; ("embedding",) makes a model that only embeds.
        answer: what it says, a token per word.
        thinking: what it thinks before; only with the capability "thinking".
        open_ended: its template writes no end mark behind the last message, so that a chat which ends with the
            assistant's words is gone on with. Otherwise such a chat is answered from the beginning.
        load_seconds: how long a load takes.
        token_seconds: how long a token takes.
        size_bytes: its weights.
        context_tokens: the most context it was trained for.
    """

    name: str
    capabilities: tuple[str, ...] = ("completion",)
    answer: str = "the quick brown fox jumps over the lazy dog"
    thinking: str = ""
    open_ended: bool = False
    load_seconds: float = 0.0
    token_seconds: float = 0.0
    size_bytes: int = 1_000_000
    context_tokens: int = 4096

    @property
    def full_name(self) -> str:
        """The name with its tag."""
        return self.name if ":" in self.name else f"{self.name}:latest"

    @property
    def digest(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(self.full_name.encode()).hexdigest()

    @property
    def only_embeds(self) -> bool:
        """Whether it cannot generate."""
        return "completion" not in self.capabilities


@dataclass(slots=True)
class Runner:
    """A model in memory."""

    model: DoubleModel
    load_key: tuple[Any, ...]
    context_tokens: int
    slots: asyncio.Semaphore
    users: int = 0
    keep_alive: float = 300.0
    expires_at: float = 0.0
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class Scheduler:
    """Loads one model at a time, and lets the requests of a loaded model wait for its slots without limit.

    Attributes:
        parallel: slots per loaded model (embedding models have one).
        max_loaded: how many models fit.
        max_queue: how many requests may wait for a load; the next is refused with 503.
        default_context: num_ctx of requests that do not say.
        loads_may_finish: clear it to hold every load until it is set again.
        refuse_loads: the text of the 500 that every load ends with; None lets them succeed.
        loads, unloads: names of models, in the order in which it happened.
        waiting_for_slot, waiting_for_load: how many requests do so now.
    """

    parallel: int = 1
    max_loaded: int = 3
    max_queue: int = 512
    default_context: int = 4096
    runners: dict[str, Runner] = field(default_factory=dict)
    loads_may_finish: asyncio.Event = field(default_factory=asyncio.Event)
    refuse_loads: str | None = None
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    waiting_for_slot: int = 0
    waiting_for_load: int = 0
    _load_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @asynccontextmanager
    async def runner(
        self, model: DoubleModel, options: Mapping[str, Any], keep_alive: float
    ) -> AsyncIterator[Runner]:
        """The model's runner, loaded; its keep-alive begins when the last user leaves.

        Raises:
            Refused: 503 when too many wait for a load, 500 when the load fails.
        """
        runner = await self._loaded(model, options)
        runner.keep_alive = keep_alive
        try:
            yield runner
        finally:
            runner.users -= 1
            if runner.users == 0:
                self._start_timer(runner)
            await self._tell()

    @asynccontextmanager
    async def slot(self, runner: Runner) -> AsyncIterator[None]:
        """One of the runner's slots, however long that takes."""
        self.waiting_for_slot += 1
        try:
            await runner.slots.acquire()
        finally:
            self.waiting_for_slot -= 1
        try:
            yield
        finally:
            runner.slots.release()

    async def expire(self, model: DoubleModel) -> None:
        """Unload a model; one that works does so when it is done."""
        runner = self.runners.get(model.full_name)
        if runner is not None:
            runner.keep_alive = 0.0
            if runner.users == 0:
                self._unload(runner)
        await self._tell()

    def now(self) -> float:
        """The clock that `expires_at` is read from."""
        return asyncio.get_running_loop().time()

    def stop(self) -> None:
        """Forget all timers."""
        for runner in self.runners.values():
            if runner.timer is not None:
                runner.timer.cancel()

    async def _loaded(self, model: DoubleModel, options: Mapping[str, Any]) -> Runner:
        key = tuple(options.get(name) for name in _LOAD_OPTIONS)
        runner = self.runners.get(model.full_name)
        if runner is not None and runner.load_key == key:
            return self._use(runner)
        if self.waiting_for_load >= self.max_queue:
            raise Refused(503, "server busy, please try again.  maximum pending requests exceeded")
        self.waiting_for_load += 1
        try:
            await self._load_lock.acquire()
        finally:
            self.waiting_for_load -= 1
        try:
            runner = self.runners.get(model.full_name)
            if runner is None or runner.load_key != key:
                await self._make_room(model)
                runner = await self._load(model, key, options)
            return self._use(runner)
        finally:
            self._load_lock.release()

    async def _make_room(self, model: DoubleModel) -> None:
        while True:
            own = self.runners.get(model.full_name)
            if own is None and len(self.runners) < self.max_loaded:
                return
            idle = [runner for runner in self.runners.values() if runner.users == 0]
            victim = own if own is not None else min(idle, key=_shortest_first, default=None)
            if victim is not None and victim.users == 0:
                self._unload(victim)
                continue
            async with self._changed:
                await self._changed.wait()

    async def _load(self, model: DoubleModel, key: tuple[Any, ...], options: Mapping[str, Any]) -> Runner:
        await asyncio.sleep(model.load_seconds)
        await self.loads_may_finish.wait()
        if self.refuse_loads is not None:
            raise Refused(500, self.refuse_loads)
        slots = 1 if model.only_embeds else self.parallel
        asked = int(options.get("num_ctx") or self.default_context)
        runner = Runner(model, key, min(asked, model.context_tokens), asyncio.Semaphore(slots))
        self.runners[model.full_name] = runner
        self.loads.append(model.full_name)
        return runner

    def _use(self, runner: Runner) -> Runner:
        runner.users += 1
        if runner.timer is not None:
            runner.timer.cancel()
            runner.timer = None
        return runner

    def _start_timer(self, runner: Runner) -> None:
        if runner.keep_alive == 0:
            self._unload(runner)
        elif runner.keep_alive > 0:
            runner.expires_at = self.now() + runner.keep_alive
            loop = asyncio.get_running_loop()
            runner.timer = loop.call_later(runner.keep_alive, self._unload, runner)

    def _unload(self, runner: Runner) -> None:
        if runner.timer is not None:
            runner.timer.cancel()
        if self.runners.get(runner.model.full_name) is runner:
            del self.runners[runner.model.full_name]
            self.unloads.append(runner.model.full_name)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _shortest_first(runner: Runner) -> float:
    # Negative keeps for ever, so it goes last.
    return runner.keep_alive if runner.keep_alive >= 0 else float("inf")
