"""The leader's loop: looks at the fabric once a second, decides, and sees to it."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sollol_broker.broker import Broker
from sollol_broker.groups import GroupState, GroupView
from sollol_broker.leader import write_group
from sollol_broker.orders import set_formable
from sollol_broker.periodic import Periodic
from sollol_broker.registry import Registry

from .corrections import learned, read_correction, write_correction
from .decide import (
    Dissolve,
    Form,
    Formable,
    Memory,
    Rules,
    after_failure,
    after_success,
    decide,
    next_memory,
    with_cut,
    with_faults,
)
from .estimate import NO_CORRECTION
from .fabric import FabricView, look
from .forming import FORMABLE_TTL_MS, GROUP_TTL_MS, end_parts
from .metrics import Metrics
from .orderly import NotLeading, Orders
from .plan import Group
from .queue import FormingQueue

log = logging.getLogger(__name__)

_TURN_SECONDS = 1.0
# Records outlive a few missed renewals, and a change of leaders.
_RENEW_SECONDS = 8.0


@dataclass(slots=True)
class _Forming:
    job: str
    group: GroupView
    form: Form
    began: float


@dataclass(slots=True)
class Keeper:
    """Keeps groups as they should be, while this process leads.

    Args:
        term: of this process now; 0 = it does not lead.
        clock: monotonic seconds.
    """

    broker: Broker
    leader: str
    term: Callable[[], int]
    queue: FormingQueue
    rules: Rules
    metrics: Metrics
    clock: Callable[[], float] = time.monotonic
    _memory: Memory = field(default_factory=Memory)
    _forming: _Forming | None = None
    _led: int = 0
    _renewed_at: float = 0.0
    _wishes: set[str] = field(default_factory=set)
    _names: frozenset[str] = frozenset()
    _turns: Periodic | None = None

    def start(self) -> None:
        """Begin."""
        self._turns = Periodic(
            self._watched_turn, name="leader", seconds=_TURN_SECONDS, jitter=0.1, at_once=True
        )
        self._turns.start()

    async def stop(self) -> None:
        """Stop; groups go on until their records run out, or another leader looks after them."""
        if self._turns is not None:
            await self._turns.stop()

    def wish(self, data: Mapping[str, Any]) -> None:
        """An operator asks for something: {"dissolve": id or model of a group}."""
        if isinstance(name := data.get("dissolve"), str):
            self._wishes.add(name)

    async def _watched_turn(self) -> None:
        try:
            await self._turn()
        except NotLeading as error:
            log.info("%s", error)
        except Exception:
            self.metrics.turn_errors.inc()
            raise

    async def _turn(self) -> None:
        term = self.term()
        self.metrics.is_leader.set(bool(term))
        if not term:
            self._led, self._forming = 0, None
            return
        if term != self._led:
            log.info("this coordinator leads now")
            self._led, self._forming, self._memory = term, None, Memory()
        await self._look_after_forming()
        view = await look(self.broker, Registry(self.broker))
        self._note(view)
        await self._recall(view)
        now = self.clock()
        self._memory = next_memory(view, self._memory, now)
        forming = self._forming.group.id if self._forming is not None else ""
        actions = decide(view, self._memory, self.rules, now, tuple(self._wishes), forming)
        self._wishes.clear()
        for action in actions:
            if isinstance(action, Dissolve):
                await self._dissolve(action, term)
            elif isinstance(action, Formable):
                await self._say_formable(action, term)
            else:
                await self._form(action, term, view)
        await self._renew(view, {a.group.id for a in actions if isinstance(a, Dissolve)}, term)

    def _note(self, view: FabricView) -> None:
        """Tell of nodes that came and went."""
        names = frozenset(view.nodes)
        for name in sorted(names - self._names):
            log.info("node %s is there", name)
        for name in sorted(self._names - names):
            log.warning("node %s is gone", name)
        self._names = names

    async def _recall(self, view: FabricView) -> None:
        """What earlier loads have taught of models that are new to this leader."""
        known = self._memory.corrections
        new = {model for node in view.nodes.values() for model in node.files} - known.keys()
        if new:
            read = {model: await read_correction(self.broker, model) for model in sorted(new)}
            self._memory = replace(self._memory, corrections={**known, **read})

    async def _form(self, form: Form, term: int, view: FabricView) -> None:
        plan = form.plan
        names = (plan.head, *plan.members) if isinstance(plan, Group) else (plan.node,)
        group = GroupView(
            id=f"g-{secrets.token_hex(3)}",
            model=form.model,
            state=GroupState.FORMING,
            head=names[0],
            parts=tuple((name, view.nodes[name].worker) for name in names),
            since=await self._seconds(),
        )
        await self._write(group, term)
        correction = self._memory.corrections.get(form.model, NO_CORRECTION)
        job = await self.queue.put(self.leader, term, group, form.facts, self.rules, correction)
        self._forming = _Forming(job, group, form, self.clock())
        log.info("group %s for %s: to be formed on %s", group.id, form.model, ", ".join(names))

    async def _look_after_forming(self) -> None:
        """See whether the group that is being formed has become one."""
        if self._forming is None:
            return
        outcome = await self.queue.outcome(self._forming.job)
        if outcome is None:
            return
        forming, self._forming = self._forming, None
        model = forming.form.model
        if outcome.result is not None and outcome.result.get("ok"):
            took = self.clock() - forming.began
            self.metrics.formed.inc()
            self.metrics.forming_seconds.observe(took)
            self._memory = after_success(self._memory, model)
            log.info("group %s for %s is ready after %.1f s", forming.group.id, model, took)
            await self._learn(forming.form, outcome.result)
            return
        self.metrics.failed.inc()
        result = outcome.result or {}
        why = result.get("why", f"the job that formed it died: {outcome.why}")
        log.warning("group %s for %s was not formed: %s", forming.group.id, model, why)
        self._memory = after_failure(self._memory, model, self.clock())
        node, head = str(result.get("node", "")), forming.group.head
        if node and node != head:
            # Either of the two may be at fault: they are not put together again for a while.
            self._memory = with_cut(self._memory, head, node, self.clock())
        elif node:
            self._memory = with_faults(self._memory, (node,), self.clock())

    async def _learn(self, form: Form, result: Mapping[str, Any]) -> None:
        correction = learned(form.facts, self.rules.load, result)
        if correction != NO_CORRECTION:
            await write_correction(self.broker, form.model, correction)
            corrections = {**self._memory.corrections, form.model: correction}
            self._memory = replace(self._memory, corrections=corrections)

    async def _dissolve(self, action: Dissolve, term: int) -> None:
        group = action.group
        log.info("group %s for %s is dissolved: %s", group.id, group.model, action.why)
        self.metrics.dissolved.inc()
        self._memory = with_faults(self._memory, action.lost, self.clock())
        if action.cut is not None:
            self._memory = with_cut(self._memory, *action.cut, self.clock())
        # First the record, so that nobody counts on it; its parts end by themselves if they do not hear us.
        await self._write(replace(group, state=GroupState.BROKEN, why=action.why), term, ttl_ms=5_000)
        async with Orders(self.broker, leader=self.leader, term=term) as orders:
            await end_parts(orders, group)

    async def _say_formable(self, action: Formable, term: int) -> None:
        await set_formable(
            self.broker,
            self.leader,
            term,
            action.model,
            ttl_ms=FORMABLE_TTL_MS,
            ok=action.ok,
            reasons=action.reasons,
        )

    async def _renew(self, view: FabricView, ended: set[str], term: int) -> None:
        now = self.clock()
        if now - self._renewed_at < _RENEW_SECONDS:
            return
        self._renewed_at = now
        for group in view.groups:
            if group.id not in ended and group.state is GroupState.READY:
                await self._write(group, term)

    async def _write(self, group: GroupView, term: int, *, ttl_ms: int = GROUP_TTL_MS) -> None:
        if not await write_group(
            self.broker, self.leader, term, group.id, ttl_ms=ttl_ms, fields=group.to_fields()
        ):
            raise NotLeading("another coordinator leads now")

    async def _seconds(self) -> float:
        seconds, micros = await self.broker.link.call("TIME")
        return int(seconds) + int(micros) / 1e6
