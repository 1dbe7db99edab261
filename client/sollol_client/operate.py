"""What an operator asks of a client: nodes, limits, dead letters, explanations. For threads and for coroutines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from sollol_broker import controls
from sollol_broker.explain import Explanation
from sollol_broker.groups import GroupView, read_groups
from sollol_broker.log_entry import Level, LogEntry, LogFilter
from sollol_broker.log_reader import LogReader
from sollol_broker.operations import Controlled, DeadLetter
from sollol_broker.orders import ask_leader
from sollol_broker.policy import KEEP, Limit, Limits, Share, limit_changes, quota_changes

from .session import Session

T = TypeVar("T")

_BACK_IN_LINE = ("retried", "queued", "running")


class Operating:
    """The operator's verbs of the sync client."""

    def cordon(self, node: str) -> Controlled:
        """Let a node take no new jobs; what runs there ends in peace. It holds until `uncordon`."""
        return self._ask(lambda session: session.operations.control(node, controls.CORDON))

    def uncordon(self, node: str) -> Controlled:
        """Let a node take jobs again."""
        return self._ask(lambda session: session.operations.control(node, controls.UNCORDON))

    def drain(self, node: str, seconds: float | None = None) -> Controlled:
        """Empty a node: no new jobs, and what still runs after `seconds` goes to other nodes.

        Args:
            seconds: None = as its workers were started (30 by default).
        """
        return self._ask(lambda session: session.operations.control(node, controls.draining(seconds)))

    def set_node(
        self,
        node: str,
        *,
        priority: int | None = None,
        labels: Sequence[str] | None = None,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
    ) -> Controlled:
        """Set a node's preferences; they outlive its workers. None = leave as it is, [] = take away.

        Args:
            priority: 0-10, usually 5: how readily it gets jobs that other nodes could do as well.
            labels: beside those that its workers were started with.
            allow, deny: patterns of models that it may, and may not, serve, such as "llama*".

        Raises:
            InvalidJob: a value makes no sense; `field` names it.
        """
        wanted = controls.changes(priority=priority, labels=labels, allow=allow, deny=deny)
        return self._ask(lambda session: session.operations.control(node, wanted))

    def limits(self) -> Limits:
        """What the fabric takes in: limits of the queues, quotas of applications."""
        return self._ask(lambda session: session.operations.limits())

    def set_limits(
        self,
        *,
        max_queue_size: Limit = KEEP,
        max_queue_bytes: Limit = KEEP,
        hedge_from: Limit = KEEP,
        hedge_percent: Limit = KEEP,
        model: str = "",
    ) -> None:
        """Change limits; None = none. A job beyond them gets QueueFull at once.

        Args:
            max_queue_size: jobs that wait: in all, or for `model`.
            max_queue_bytes: of all unfinished jobs' bodies.
            hedge_from: jobs of this priority and above may run twice when they are late; 11 = none.
            hedge_percent: by how much second copies of late jobs may add to a model's work; None = 5, 0 = none run.
        """
        wanted = limit_changes(
            max_queue_size=max_queue_size,
            max_queue_bytes=max_queue_bytes,
            hedge_from=hedge_from,
            hedge_percent=hedge_percent,
        )
        self._ask(lambda session: session.operations.set_limits(wanted, model=model))

    def set_quota(
        self,
        app: str,
        *,
        weight: Share = KEEP,
        concurrency: Limit = KEEP,
        requests_per_minute: Share = KEEP,
        tokens_per_minute: Share = KEEP,
        max_queue_size: Limit = KEEP,
    ) -> None:
        """Change what an application may use; None = no limit. A job beyond it gets QuotaExceeded at once.

        Args:
            weight: its share of a busy queue, beside others of 1.
            concurrency: jobs that wait and run at the same time.
            max_queue_size: its unfinished jobs for one model.
        """
        wanted = quota_changes(
            weight=weight,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            max_queue_size=max_queue_size,
        )
        self._ask(lambda session: session.operations.set_quota(app, wanted))

    def groups(self) -> list[GroupView]:
        """The groups of nodes that serve one model together, the oldest first."""
        return self._ask(lambda session: read_groups(session.broker))

    def dissolve_group(self, name: str) -> bool:
        """End a group, by its id or its model; False: no coordinator is there to do it. Jobs that still need it
        have it formed again.
        """
        return self._ask(lambda session: ask_leader(session.broker, {"dissolve": name}))

    def dead(self, limit: int = 100) -> list[DeadLetter]:
        """The jobs that took too many workers down with them, the latest first. They are kept for 7 days."""
        return self._ask(lambda session: session.operations.dead(limit))

    def dead_ids(self) -> list[str]:
        """Ids of all dead letters, the oldest first."""
        return self._ask(lambda session: session.operations.dead_ids())

    def retry_dead(self, *job_ids: str) -> dict[str, bool]:
        """Put dead letters back in line, under the same ids; by id whether it waits or runs now."""
        words = self._ask(lambda session: session.operations.retry(job_ids))
        return {job_id: word in _BACK_IN_LINE for job_id, word in words.items()}

    def retry(self, *job_ids: str) -> dict[str, bool]:
        """Put jobs back in line, under the same ids, that failed on every try or are dead letters; by id whether it
        waits or runs now.

        False where the job ended otherwise, or its body is no longer there: of failed jobs the last 500 of at most
        128 KiB are kept, as long as their results.
        """
        return self.retry_dead(*job_ids)

    def set_priority(self, job_id: str, priority: int) -> bool:
        """Give a waiting job another priority, and so another place in line; False: it does not wait.

        Raises:
            InvalidJob: the priority is no whole number from 0 to 10.
        """
        return self._ask(lambda session: session.operations.set_priority(job_id, priority)) == "changed"

    def drop_dead(self, *job_ids: str) -> dict[str, bool]:
        """Forget dead letters for good; by id whether it was one."""
        words = self._ask(lambda session: session.operations.drop(job_ids))
        return {job_id: word == "dropped" for job_id, word in words.items()}

    def explain(self, job_id: str) -> Explanation:
        """What has become of a job, why, and while it waits what each node makes of it.

        Raises:
            JobLost: Redis does not know it (any more).
        """
        return self._ask(lambda session: session.explainer.explain(job_id))

    def eta(self, job_id: str) -> float | None:
        """Seconds until a waiting job should begin; None when it does not wait, or nobody serves its model."""
        return self._ask(lambda session: session.explainer.start_in(job_id))

    def logs(self, limit: int = 100, *, level: str = "info", node: str = "", app: str = "") -> list[LogEntry]:
        """The last lines of the fabric's live log, the latest at the end; no prompt and no answer is in them.

        Args:
            level: info, warning or error: that and worse. node, app: only lines about it; "" = all.

        Raises:
            InvalidJob: there is no such level.
        """
        wanted = LogFilter(Level.named(level), node, app)
        return self._ask(lambda session: LogReader(session.broker).last(limit, wanted))

    def _ask(self, question: Callable[[Session], Coroutine[Any, Any, T]]) -> T:
        raise NotImplementedError


class AsyncOperating:
    """The operator's verbs of the async client; see Operating, whose verbs these are."""

    session: Session

    async def cordon(self, node: str) -> Controlled:
        """Let a node take no new jobs; what runs there ends in peace. It holds until `uncordon`."""
        return await self.session.operations.control(node, controls.CORDON)

    async def uncordon(self, node: str) -> Controlled:
        """Let a node take jobs again."""
        return await self.session.operations.control(node, controls.UNCORDON)

    async def drain(self, node: str, seconds: float | None = None) -> Controlled:
        """Empty a node: no new jobs, and what still runs after `seconds` goes to other nodes."""
        return await self.session.operations.control(node, controls.draining(seconds))

    async def set_node(
        self,
        node: str,
        *,
        priority: int | None = None,
        labels: Sequence[str] | None = None,
        allow: Sequence[str] | None = None,
        deny: Sequence[str] | None = None,
    ) -> Controlled:
        """Set a node's preferences; they outlive its workers. None = leave as it is, [] = take away."""
        wanted = controls.changes(priority=priority, labels=labels, allow=allow, deny=deny)
        return await self.session.operations.control(node, wanted)

    async def limits(self) -> Limits:
        """What the fabric takes in: limits of the queues, quotas of applications."""
        return await self.session.operations.limits()

    async def set_limits(
        self,
        *,
        max_queue_size: Limit = KEEP,
        max_queue_bytes: Limit = KEEP,
        hedge_from: Limit = KEEP,
        hedge_percent: Limit = KEEP,
        model: str = "",
    ) -> None:
        """Change limits; None = none. A job beyond them gets QueueFull at once."""
        wanted = limit_changes(
            max_queue_size=max_queue_size,
            max_queue_bytes=max_queue_bytes,
            hedge_from=hedge_from,
            hedge_percent=hedge_percent,
        )
        await self.session.operations.set_limits(wanted, model=model)

    async def set_quota(
        self,
        app: str,
        *,
        weight: Share = KEEP,
        concurrency: Limit = KEEP,
        requests_per_minute: Share = KEEP,
        tokens_per_minute: Share = KEEP,
        max_queue_size: Limit = KEEP,
    ) -> None:
        """Change what an application may use; None = no limit. A job beyond it gets QuotaExceeded at once."""
        wanted = quota_changes(
            weight=weight,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            max_queue_size=max_queue_size,
        )
        await self.session.operations.set_quota(app, wanted)

    async def groups(self) -> list[GroupView]:
        """The groups of nodes that serve one model together, the oldest first."""
        return await read_groups(self.session.broker)

    async def dissolve_group(self, name: str) -> bool:
        """End a group, by its id or its model; False: no coordinator is there to do it."""
        return await ask_leader(self.session.broker, {"dissolve": name})

    async def dead(self, limit: int = 100) -> list[DeadLetter]:
        """The jobs that took too many workers down with them, the latest first. They are kept for 7 days."""
        return await self.session.operations.dead(limit)

    async def dead_ids(self) -> list[str]:
        """Ids of all dead letters, the oldest first."""
        return await self.session.operations.dead_ids()

    async def retry_dead(self, *job_ids: str) -> dict[str, bool]:
        """Put dead letters back in line, under the same ids; by id whether it waits or runs now."""
        words = await self.session.operations.retry(job_ids)
        return {job_id: word in _BACK_IN_LINE for job_id, word in words.items()}

    async def retry(self, *job_ids: str) -> dict[str, bool]:
        """Put jobs back in line, under the same ids, that failed on every try or are dead letters; by id whether it
        waits or runs now.
        """
        return await self.retry_dead(*job_ids)

    async def set_priority(self, job_id: str, priority: int) -> bool:
        """Give a waiting job another priority, and so another place in line; False: it does not wait.

        Raises:
            InvalidJob: the priority is no whole number from 0 to 10.
        """
        return await self.session.operations.set_priority(job_id, priority) == "changed"

    async def drop_dead(self, *job_ids: str) -> dict[str, bool]:
        """Forget dead letters for good; by id whether it was one."""
        words = await self.session.operations.drop(job_ids)
        return {job_id: word == "dropped" for job_id, word in words.items()}

    async def explain(self, job_id: str) -> Explanation:
        """What has become of a job, why, and while it waits what each node makes of it.

        Raises:
            JobLost: Redis does not know it (any more).
        """
        return await self.session.explainer.explain(job_id)

    async def eta(self, job_id: str) -> float | None:
        """Seconds until a waiting job should begin; None when it does not wait, or nobody serves its model."""
        return await self.session.explainer.start_in(job_id)

    async def logs(
        self, limit: int = 100, *, level: str = "info", node: str = "", app: str = ""
    ) -> list[LogEntry]:
        """The last lines of the fabric's live log, the latest at the end; no prompt and no answer is in them."""
        return await LogReader(self.session.broker).last(limit, LogFilter(Level.named(level), node, app))

    def follow_logs(
        self, *, level: str = "info", node: str = "", app: str = "", after: str = ""
    ) -> AsyncIterator[LogEntry]:
        """The lines of the fabric's live log as they are written, without end.

        Args:
            after: id of the last line that was read: it goes on behind that. "" = from now on.
        """
        return LogReader(self.session.broker).follow(LogFilter(Level.named(level), node, app), after=after)
