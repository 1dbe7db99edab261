"""The coordinator: builds its parts, starts them in order, and takes them down in the reverse."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.core import Metric

from sollol_broker.broker import Broker
from sollol_broker.codec import unpack
from sollol_broker.errors import InvalidJob, SollolError
from sollol_broker.inbox import EntryFields, Inbox
from sollol_broker.link import LinkConfig
from sollol_broker.live_log import USUAL_SAMPLE, LiveLog
from sollol_broker.names import key_part
from sollol_broker.periodic import Periodic
from sollol_broker.prometheus import FabricFigures, LoopCollector
from sollol_broker.url import parse
from sollol_broker.version import VERSION
from sollol_broker.words import Entry

from .batch_steps import BatchSteps, RqSteps
from .control_process import ControlProcess
from .decide import Rules
from .election import Election
from .keeper import Keeper
from .metrics import Metrics
from .orderly import APP
from .queue import RqQueue
from .rescuer import Rescuer
from .rq_prefix import keep_rq_inside

log = logging.getLogger(__name__)

_INBOX_TTL_MS = 60_000
_ATTEND_SECONDS = 15.0
_MOST_WISH_BYTES = 4096


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """One coordinator.

    Attributes:
        redis_url: with its password, as given on the command line.
        lease_seconds: a leader that dies is replaced within 1.5 times that.
        log_sample: share of its info lines in the live log; None = nothing is written.
    """

    redis_url: str
    lease_seconds: float = 5.0
    rules: Rules = field(default_factory=Rules)
    log_sample: float | None = USUAL_SAMPLE
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)


class Coordinator:
    """One of several that stand for election; the leader rescues jobs, keeps groups, and moves batches on."""

    def __init__(self, config: CoordinatorConfig) -> None:
        self._config = config
        self._url = parse(config.redis_url, environ=config.environ)
        keep_rq_inside(self._url.fabric)
        host = key_part(platform.node().split(".")[0].lower() or "host")[:40]
        self.name = f"co-{host}-{secrets.token_hex(4)}"
        self.metrics = Metrics()
        self.broker = Broker(
            self._url,
            name=f"sollol-coordinator-{self.name}",
            config=LinkConfig(patience_seconds=config.lease_seconds),
        )
        self.live = LiveLog(
            self.broker,
            source="coordinator",
            process=self.name,
            node=platform.node().split(".")[0],
            sample=config.log_sample,
        )
        figures = FabricFigures(self.broker)
        # The leader's alone, so that several coordinators do not tell of the same jobs.
        self._figures = LoopCollector(lambda: self._fabric_families(figures))
        self.metrics.registry.register(self._figures)
        self.election = Election(self.broker, candidate=self.name, lease_seconds=config.lease_seconds)
        self._queue = RqQueue(self._url)
        self.keeper = Keeper(
            self.broker,
            self.name,
            lambda: self.election.term,
            self._queue,
            config.rules,
            self.metrics,
        )
        self._rescuer = Rescuer(self.broker, term=lambda: self.election.term, metrics=self.metrics)
        self._inbox = Inbox(self.broker, self.name, on_entry=self._on_entry)
        self._logs = Path(tempfile.mkdtemp(prefix="sollol-coordinator-"))
        self._forming = self._control("groups")
        self._driving = self._control("batches")
        self._steps_queue = RqSteps(self._url)
        self._steps = BatchSteps(
            self.broker,
            self._steps_queue,
            term=lambda: self.election.term,
            # Most fabrics never need it: it starts with the first batch that is left behind.
            on_work=self._driving.start,
        )
        self._attending = Periodic(self._attend, name="sign of life", seconds=_ATTEND_SECONDS)

    async def start(self) -> None:
        """Join the fabric.

        Raises:
            BrokerUnavailable: Redis cannot be reached or will not do.
        """
        await self.broker.open()
        await self._attend()
        self.live.start()
        self._inbox.start()
        self._figures.start()
        self._forming.start()
        self._attending.start()
        self.election.start()
        self._rescuer.start()
        self.keeper.start()
        self._steps.start()
        log.info("coordinator %s has joined %s", self.name, self._url)

    async def stop(self) -> None:
        """Leave: another coordinator may lead at once. Groups go on while one does."""
        self._figures.stop()
        await self._steps.stop()
        await self.keeper.stop()
        await self._rescuer.stop()
        await self.election.stop()
        await self._attending.stop()
        await asyncio.gather(self._forming.stop(), self._driving.stop())
        await self._inbox.stop()
        with contextlib.suppress(SollolError):
            await self.broker.drop_inbox(self.name)
        await self.live.stop()
        await self.broker.close()
        self._queue.close()
        self._steps_queue.close()
        for path in self._logs.iterdir():
            path.unlink(missing_ok=True)
        self._logs.rmdir()

    async def _fabric_families(self, figures: FabricFigures) -> list[Metric]:
        return await (figures.families() if self.election.term else figures.server_families())

    def _on_entry(self, entry: EntryFields) -> None:
        if entry[b"t"] != Entry.ASK.encode():
            return
        try:
            wish = unpack(entry[b"d"], max_bytes=_MOST_WISH_BYTES)
        except InvalidJob as error:
            log.warning("a wish that is not understood: %s", error)
            return
        if isinstance(wish, dict):
            self.keeper.wish(wish)

    async def _attend(self) -> None:
        fields = {"version": VERSION, "host": platform.node(), "pid": str(os.getpid())}
        if await self.broker.attend(
            self.name, APP, inbox_ttl_ms=_INBOX_TTL_MS, app_fields=fields, app_ttl_ms=2 * _INBOX_TTL_MS
        ):
            self._inbox.rewind()

    def _control(self, queue: str) -> ControlProcess:
        environment = {**self._config.environ, "SOLLOL_REDIS_URL": self._config.redis_url}
        return ControlProcess(queue, environment=environment, log_file=self._logs / f"{queue}.log")
