"""The leader's end of RQ: puts a control job in, and asks what has become of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sollol_broker.groups import GroupView
from sollol_broker.model_facts import ModelFacts
from sollol_broker.url import BrokerUrl

from .decide import Rules
from .estimate import Correction


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a job that forms a group; `result` as `form_group` gives it, None = it died of `why`."""

    result: Mapping[str, Any] | None
    why: str = ""


class FormingQueue(Protocol):
    """Where the leader puts the forming of groups."""

    async def put(
        self,
        leader: str,
        term: int,
        group: GroupView,
        facts: ModelFacts,
        rules: Rules,
        correction: Correction,
    ) -> str:
        """Queue it; gives the job's id."""

    async def outcome(self, job_id: str) -> Outcome | None:
        """None while it waits or runs."""


class RqQueue:
    """The one in Redis, visible in RQ's own dashboard."""

    def __init__(self, url: BrokerUrl) -> None:
        # Here and not above: RQ reads its prefix from the environment when it is imported.
        from .control_jobs import QUEUE, form_group
        from .safe_jobs import allowing, safe_queue
        from .sync_redis import connect

        self._connection = connect(url)
        self._jobs = allowing([form_group])
        self._function = form_group
        self._queue = safe_queue(QUEUE, self._connection, self._jobs, fabric=url.fabric)

    async def put(
        self,
        leader: str,
        term: int,
        group: GroupView,
        facts: ModelFacts,
        rules: Rules,
        correction: Correction,
    ) -> str:
        """See FormingQueue."""
        from .control_jobs import JOB_SECONDS

        record = {
            "id": group.id,
            "model": group.model,
            "head": group.head,
            "parts": [list(part) for part in group.parts],
            "since": group.since,
        }
        job = await asyncio.to_thread(
            self._queue.enqueue,
            self._function,
            args=(leader, term, record, facts.to_json(), asdict(rules), asdict(correction)),
            job_timeout=JOB_SECONDS,
            description=f"form group {group.id} for {group.model} on {', '.join(name for name, _ in group.parts)}",
        )
        return str(job.id)

    async def outcome(self, job_id: str) -> Outcome | None:
        """See FormingQueue."""
        return await asyncio.to_thread(self._outcome, job_id)

    def _outcome(self, job_id: str) -> Outcome | None:
        job = self._jobs.fetch(job_id, connection=self._connection)
        status = job.get_status()
        if status is None or status.value in ("failed", "stopped", "canceled"):
            latest = job.latest_result()
            said = (latest.exc_string or "").strip().splitlines() if latest is not None else []
            return Outcome(None, said[-1] if said else f"it is {status.value if status else 'gone'}")
        if status.value == "finished":
            result = job.return_value()
            return Outcome(result if isinstance(result, dict) else None)
        return None

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()
