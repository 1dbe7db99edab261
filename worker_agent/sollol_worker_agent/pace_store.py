"""Keeps in Redis what this node has learned about its models, so that it outlives the worker.

What is lost when a worker dies is the learning since its last advert. A Redis that is away costs nothing more:
it is asked once, and again with the next advert.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from sollol_broker.broker import Broker
from sollol_broker.errors import SollolError
from sollol_broker.names import key_part

from .lane import Lane

log = logging.getLogger(__name__)

_KEPT_MS = 30 * 86_400_000
# The advert itself is patient; nobody should wait for these figures.
_PATIENCE_SECONDS = 0.5


class PaceStore:
    """Reads the pace of models that are new on a lane, and writes what has changed."""

    def __init__(self, broker: Broker, node: str) -> None:
        self._broker = broker
        self._node = node

    async def read(self, lanes: Sequence[Lane]) -> None:
        """Tell each lane what was learned earlier about the models that it has not asked for yet."""
        wanted = [(lane, model) for lane in lanes for model in lane.unread()]
        if not wanted:
            return
        try:
            replies = await asyncio.gather(*(self._call("HGETALL", self._key(model)) for _, model in wanted))
        except SollolError as error:
            log.debug("learned paces could not be read: %s", error)
            return
        for (lane, model), flat in zip(wanted, replies, strict=True):
            texts = [part.decode(errors="replace") for part in flat]
            lane.recall(model, dict(zip(texts[::2], texts[1::2], strict=True)))

    async def write(self, lanes: Sequence[Lane]) -> None:
        """Write what has been learned since the last time."""
        changed = [(lane, model) for lane in lanes for model in lane.unwritten]
        if not changed:
            return
        calls = []
        for lane, model in changed:
            fields = [part for pair in lane.pace(model).to_fields().items() for part in pair]
            calls += [
                self._call("HSET", self._key(model), *fields),
                self._call("PEXPIRE", self._key(model), _KEPT_MS),
            ]
            lane.unwritten.discard(model)
        try:
            await asyncio.gather(*calls)
        except SollolError as error:
            log.debug("learned paces could not be written: %s", error)
            for lane, model in changed:
                lane.unwritten.add(model)

    def _key(self, model: str) -> str:
        return self._broker.keys.pace(self._node, key_part(model))

    async def _call(self, *command: object) -> list[bytes]:
        reply = await self._broker.link.call(*command, patience_seconds=_PATIENCE_SECONDS)
        return reply if isinstance(reply, list) else []
