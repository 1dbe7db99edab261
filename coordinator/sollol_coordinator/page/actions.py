"""What an operator can do from the page; each verb says in a sentence what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar

from sollol_broker import controls
from sollol_broker.broker import Broker
from sollol_broker.errors import InvalidJob, NotAllowed, SollolError
from sollol_broker.operations import Operations
from sollol_broker.orders import ask_leader

Verb = Callable[[Mapping[str, str]], Awaitable[str]]
_BACK_IN_LINE = ("retried", "queued", "running")


class Actions:
    """An operator's verbs, over a broker whose user may do them (role `coordinator`)."""

    VERBS: ClassVar[tuple[str, ...]] = (
        "cancel",
        "priority",
        "retry",
        "drop",
        "cordon",
        "uncordon",
        "drain",
        "dissolve",
    )

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._operations = Operations(broker)

    async def do(self, verb: str, given: Mapping[str, str]) -> str:
        """Do it; what came of it.

        Raises:
            SollolError: it cannot be done; the text says why.
        """
        if verb not in self.VERBS:
            raise InvalidJob(f"there is no such action: {verb!r}", field="verb")
        act: Verb = getattr(self, verb)
        try:
            return await act(given)
        except NotAllowed:
            user = self._broker.url.username or "default"
            raise NotAllowed(
                f"this page may only look: its user of Redis, {user}, has no right to change anything. Start it with "
                "the user for the role coordinator (`sollol acl`) to operate from here"
            ) from None

    async def cancel(self, given: Mapping[str, str]) -> str:
        """End a job unanswered."""
        job_id = _needed(given, "job")
        state = await self._broker.cancel(job_id)
        if state == "unknown":
            raise InvalidJob(f"job {job_id} is not known here (any more)", field="job")
        return "cancelled" if state == "cancelled" else f"it was {state} already"

    async def priority(self, given: Mapping[str, str]) -> str:
        """Give a waiting job another place in line."""
        job_id, text = _needed(given, "job"), _needed(given, "priority")
        priority = int(text) if text.isascii() and text.isdigit() and len(text) < 3 else -1
        word = await self._operations.set_priority(job_id, priority)
        if word != "changed":
            raise InvalidJob(f"only jobs that wait can be moved in line; this one is {word}", field="job")
        return f"priority {priority} from now on"

    async def retry(self, given: Mapping[str, str]) -> str:
        """Put a dead letter, or a job that failed, back in line."""
        job_id = _needed(given, "job")
        word = (await self._operations.retry([job_id]))[job_id]
        if word == "batch":
            raise InvalidJob(
                "it is of a batch, which has taken its end: give what failed to a new batch", field="job"
            )
        if word not in _BACK_IN_LINE:
            raise InvalidJob(
                f"it cannot be tried again: it is {word}, and what it asked is no longer kept", field="job"
            )
        return "back in line"

    async def drop(self, given: Mapping[str, str]) -> str:
        """Forget a dead letter."""
        job_id = _needed(given, "job")
        word = (await self._operations.drop([job_id]))[job_id]
        if word != "dropped":
            raise InvalidJob(f"it is no dead letter: it is {word}", field="job")
        return "dropped"

    async def cordon(self, given: Mapping[str, str]) -> str:
        """Keep new jobs from a node."""
        return await self._control(given, controls.CORDON, "takes no new jobs")

    async def uncordon(self, given: Mapping[str, str]) -> str:
        """Let a node take jobs again."""
        return await self._control(given, controls.UNCORDON, "takes jobs again")

    async def drain(self, given: Mapping[str, str]) -> str:
        """Empty a node."""
        return await self._control(given, controls.draining(None), "is being emptied")

    async def dissolve(self, given: Mapping[str, str]) -> str:
        """End a group of nodes."""
        group = _needed(given, "group")
        if not await ask_leader(self._broker, {"dissolve": group}):
            raise SollolError("no coordinator leads, so nobody can dissolve it: start sollol-coordinator")
        return "it will be dissolved in a moment"

    async def _control(self, given: Mapping[str, str], changes: Mapping[str, Any], said: str) -> str:
        node = _needed(given, "node")
        controlled = await self._operations.control(node, changes)
        return (
            f"{node} {said}" if controlled.workers else f"{node} {said}, once a worker of that name is there"
        )


def _needed(given: Mapping[str, str], name: str) -> str:
    value = given.get(name, "").strip()
    if not value or len(value) > 250:
        raise InvalidJob(f"{name}: which one?", field=name)
    return value
