"""What can be looked at, and how it is read: one method per page of the page. JSON comes out, no prompt among it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from sollol_broker.apps import AppView, read_apps
from sollol_broker.batch_record import BatchView
from sollol_broker.batch_store import BatchStore
from sollol_broker.broker import Broker
from sollol_broker.errors import InvalidJob, JobLost, SollolError
from sollol_broker.explain_reader import Explainer
from sollol_broker.facts import Facts
from sollol_broker.facts_reader import FactsReader
from sollol_broker.job_lists import JobLists, Wanted
from sollol_broker.log_entry import Level, LogFilter
from sollol_broker.overview import Machine, machines, overview
from sollol_broker.prometheus import FabricFigures
from sollol_broker.registry import JobView, NodeView, Registry, WorkerView

from .config import PageConfig
from .control_jobs_view import ControlJobs
from .log_tail import LogTail
from .pasts import Pasts
from .prompts import read_prompt

Look = Callable[[Mapping[str, str]], Awaitable[dict[str, Any]]]
_NODES_A_PAGE = 48
_JOBS_A_PAGE = 50
# The facts of one moment serve all looks for so long.
_FACTS_SECONDS = 1.5
_MOST_PARAM = 250
_MOST_BATCHES = 30
_MOST_APPS = 300
_MOST_TROUBLES = 15
_PROBE_SECONDS = 2.0


class PageLooks:
    """Reads for the hub, over one broker.

    Args:
        broker: its user needs no more rights than the role `dashboard` has.
    """

    def __init__(self, broker: Broker, config: PageConfig) -> None:
        self._broker = broker
        self._config = config
        self._registry = Registry(broker)
        self._explainer = Explainer(broker, self._registry)
        self._facts_reader = FactsReader(broker)
        self._jobs = JobLists(broker, clock=time.monotonic)
        self._control = ControlJobs(broker)
        self._batches = BatchStore(broker)
        self._log = LogTail(broker)
        self._figures = FabricFigures(broker)
        self._pasts = Pasts(broker, clock=time.monotonic)
        self._facts: tuple[float, Facts] | None = None
        # How often each is read, in seconds, and what parameters it takes.
        self._looks: dict[str, tuple[float, frozenset[str], Look]] = {
            "overview": (2.0, frozenset(), self.overview),
            "nodes": (2.0, frozenset({"q", "state", "page"}), self.nodes),
            "node": (2.0, frozenset({"name"}), self.node),
            "jobs": (2.0, frozenset({"state", "model", "app", "node", "offset"}), self.jobs),
            "job": (1.5, frozenset({"id"}), self.job),
            "groups": (3.0, frozenset(), self.groups),
            "batches": (2.0, frozenset(), self.batches),
            "apps": (5.0, frozenset(), self.apps),
            "log": (1.0, frozenset({"level", "node", "app", "q"}), self.log),
            "control": (3.0, frozenset(), self.control),
        }

    @property
    def fabric(self) -> str:
        """The fabric's name; "" = the default one."""
        return self._broker.url.fabric

    async def metrics(self) -> bytes:
        """The fabric's figures, for Prometheus."""
        return await self._figures.text()

    async def prompt(self, job_id: str) -> str:
        """What a job was asked; see `read_prompt`."""
        return await read_prompt(self._broker, job_id)

    async def broken(self) -> str:
        """Why Redis does not answer; "" = it does."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._broker.link.call("PING")
        except TimeoutError:
            return f"Redis did not answer within {_PROBE_SECONDS:g} s"
        except SollolError as error:
            return str(error)
        return ""

    def params(self, name: str, given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """Those of a look, in order, that are not empty.

        Raises:
            InvalidJob: there is no such look, or a parameter is too long.
        """
        if name not in self._looks:
            raise InvalidJob(f"there is nothing to look at under {name!r}", field="look")
        taken = {key: value for key, value in given.items() if key in self._looks[name][1] and value}
        if any(len(value) > _MOST_PARAM for value in taken.values()):
            raise InvalidJob(f"a parameter has more than {_MOST_PARAM} characters", field="look")
        return tuple(sorted(taken.items()))

    def seconds(self, name: str) -> float:
        """Between two reads of a look."""
        return self._looks[name][0]

    async def look(self, name: str, params: Mapping[str, str]) -> dict[str, Any]:
        """Read it now."""
        return await self._looks[name][2](params)

    def spent(self) -> int:
        """Commands that Redis has got over the present connection."""
        wire = self._broker.link.ready()
        return wire.replies if wire is not None else 0

    async def overview(self, params: Mapping[str, str]) -> dict[str, Any]:
        """What every machine does, what waits and why, what somebody should look at."""
        facts = await self._now()
        told = overview(facts, queue_seconds=self._config.queue_seconds)
        past, _ = await asyncio.gather(self._pasts.fabric(), self._log.read())
        return {**told, **past, "troubles": self._troubles(facts), "most_troubles": _MOST_TROUBLES}

    async def nodes(self, params: Mapping[str, str]) -> dict[str, Any]:
        """All nodes, page by page; `q`: part of a name or model, `state`."""
        facts = await self._now()
        all = machines(facts)
        words, state = params.get("q", "").lower(), params.get("state", "")
        found = [
            each
            for each in all
            if (not state or each.state == state) and (not words or _mentions(each, words))
        ]
        pages = max(1, -(-len(found) // _NODES_A_PAGE))
        page = min(pages, max(1, _whole(params.get("page", "1"), "page")))
        first = (page - 1) * _NODES_A_PAGE
        return {
            "at": facts.now,
            "nodes": [each.card() for each in found[first : first + _NODES_A_PAGE]],
            "found": len(found),
            "nodes_in_all": len(all),
            "page": page,
            "pages": pages,
        }

    async def node(self, params: Mapping[str, str]) -> dict[str, Any]:
        """One node with its workers, backends and models."""
        name, facts = params.get("name", ""), await self._now()
        machine = next((each for each in machines(facts) if each.name == name), None)
        node = next((each for each in facts.nodes if each.name == name), None)
        if machine is None:
            return {"at": facts.now, "missing": True, "name": name}
        card = machine.card()
        if node is None:
            return {"at": facts.now, **card}
        return {"at": facts.now, **card, **_more_of(node), "history": await self._pasts.node(name)}

    async def jobs(self, params: Mapping[str, str]) -> dict[str, Any]:
        """A page of jobs."""
        facts = await self._now()
        wanted = Wanted(
            state=params.get("state", ""),
            model=params.get("model", ""),
            app=params.get("app", ""),
            node=params.get("node", ""),
            offset=_whole(params.get("offset", "0"), "offset"),
            count=_JOBS_A_PAGE,
        )
        page = await self._jobs.page(wanted, [queue.model for queue in facts.queues if queue.waiting])
        return {
            "at": facts.now,
            "jobs": [_row(state, job, facts.now) for state, job in page.jobs],
            "length": page.length,
            "offset": wanted.offset,
            "next_offset": page.next_offset,
            "looked": page.looked,
            "models": sorted(queue.model for queue in facts.queues)[:500],
            "nodes": [node.name for node in facts.nodes][:500],
            "apps": list(facts.apps),
        }

    async def job(self, params: Mapping[str, str]) -> dict[str, Any]:
        """One job's whole way."""
        job_id = params.get("id", "")
        try:
            told, job = await asyncio.gather(self._explainer.explain(job_id), self._registry.job(job_id))
        except JobLost:
            told, job = None, None
        if told is None or job is None:
            return {"missing": True, "id": job_id}
        facts = await self._now()
        return {"at": facts.now, **told.as_dict(), **_row(told.state, job, facts.now)}

    async def groups(self, params: Mapping[str, str]) -> dict[str, Any]:
        """Nodes that serve a model together."""
        facts = await self._now()
        return {
            "at": facts.now,
            "leader": facts.leader,
            "groups": [asdict(group) for group in facts.groups],
            "addresses": {node.name: node.llama for node in facts.nodes if node.llama},
        }

    async def apps(self, params: Mapping[str, str]) -> dict[str, Any]:
        """The applications of the last 7 days, those that were there last."""
        facts = await self._now()
        apps, in_all = await asyncio.gather(
            read_apps(self._broker, silent=True, most=_MOST_APPS),
            self._broker.link.call("ZCARD", self._broker.keys.apps),
        )
        return {
            "at": facts.now,
            "apps": [_app(app) for app in apps],
            "apps_in_all": in_all if in_all > _MOST_APPS else len(apps),
        }

    async def batches(self, params: Mapping[str, str]) -> dict[str, Any]:
        """The latest batches, newest first."""
        facts = await self._now()
        views = await self._batches.views(_MOST_BATCHES)
        return {"at": facts.now, "batches": [_batch(view, facts.now) for view in views]}

    async def log(self, params: Mapping[str, str]) -> dict[str, Any]:
        """The last lines of the live log that are wanted, the latest first."""
        wanted = LogFilter(
            Level.named(params.get("level", "info")), params.get("node", ""), params.get("app", "")
        )
        await self._log.read()
        lines, seen = self._log.last(wanted, params.get("q", "").lower())
        nodes, apps = self._log.words()
        return {"lines": [line.as_dict() for line in lines], "seen": seen, "nodes": nodes, "apps": apps}

    async def control(self, params: Mapping[str, str]) -> dict[str, Any]:
        """The coordinator's jobs in RQ."""
        return await self._control.read()

    def _troubles(self, facts: Facts) -> list[dict[str, Any]]:
        """What went wrong in the last hour, the latest first: what processes said, and what none could say."""
        said = [line.as_dict() for line in self._log.troubles(facts.now)]
        gone = [
            {
                "id": f"gone/{each.worker}",
                "at": each.since,
                "level": "error",
                "node": each.node,
                "event": f"worker {each.worker} vanished without a word",
            }
            for each in facts.gone
        ]
        return sorted([*said, *gone], key=lambda line: -line["at"])[:_MOST_TROUBLES]

    async def _now(self) -> Facts:
        at = time.monotonic()
        if self._facts is None or at - self._facts[0] > _FACTS_SECONDS:
            self._facts = (at, await self._facts_reader.read())
        return self._facts[1]


def _row(state: str, job: JobView, now: float) -> dict[str, Any]:
    """A job in a list: its record, and how long each part of its way took."""
    told = job.as_dict()
    ended = job.ended or now
    # One that was handed back waits again.
    has_begun = job.attempt and job.claimed >= job.submitted and job.state.value != "queued"
    waited_until = job.claimed if has_begun else ended
    ran = max(0.0, ended - job.claimed) if job.attempt and job.state.value != "queued" else 0.0
    begun = job.first_token >= job.claimed > 0
    return {
        **told,
        "list": state,
        "waited_seconds": round(max(0.0, waited_until - job.submitted), 3),
        "ran_seconds": round(ran, 3),
        "first_token_seconds": round(job.first_token - job.submitted, 3) if begun else None,
    }


def _app(app: AppView) -> dict[str, Any]:
    return {**asdict(app), "own_version": app.own_version, "error_rate": app.error_rate}


def _batch(view: BatchView, now: float) -> dict[str, Any]:
    """A batch, how fast it goes and what is left."""
    seconds = (view.ended_at or now) - view.started_at if view.started_at else 0.0
    rate = view.done / seconds if seconds > 0 else 0.0
    is_open = view.ended_at is None and view.total is not None
    left = (view.total or 0) - view.done
    return {
        "id": view.id,
        "state": view.state.value,
        "kind": view.kind.value,
        "model": view.model,
        "app": view.app,
        "priority": view.priority,
        "total": view.total,
        "fed": view.fed,
        "completed": view.completed,
        "failed": view.failed,
        "percent": view.percent,
        "created_at": view.created_at,
        "seconds": round(seconds, 3),
        "rate": round(rate, 3),
        "left_seconds": round(left / rate, 1) if is_open and rate > 0 else None,
        "why": view.why,
        "is_driven": bool(view.driver),
    }


def _more_of(node: NodeView) -> dict[str, Any]:
    controls = node.controls
    return {
        "controls": {
            "state": controls.state,
            "priority": controls.priority,
            "labels": list(controls.labels),
            "allow": list(controls.allow),
            "deny": list(controls.deny),
            "drain_seconds": controls.drain_seconds,
        },
        "finished": {str(state): count for state, count in node.finished.items()},
        "busy_seconds": node.busy_seconds,
        "agents": [_agent(worker) for worker in node.workers],
        "lends": node.llama,
    }


def _agent(worker: WorkerView) -> dict[str, Any]:
    return {
        "id": worker.id,
        "state": worker.state,
        "version": worker.version,
        "slots": worker.slots,
        "busy": worker.busy,
        "seen_seconds": round(worker.seen_ms_ago / 1000, 1),
        "clock_ahead_seconds": worker.clock_ahead_seconds,
        "backends": list(worker.backends),
        "models": [
            {
                "name": name,
                "loaded": told.get("loaded", False),
                "kinds": told.get("kinds", []),
                "size_bytes": told.get("size_bytes", 0),
                "context_tokens": told.get("context_tokens", 0),
                "prompt_ms": told.get("prompt_ms"),
                "output_ms": told.get("output_ms"),
                "load_ms": told.get("load_ms"),
                "success_rate": told.get("success_rate"),
                "jobs_seen": told.get("jobs_seen", 0),
            }
            for name, told in sorted(
                worker.models.items(), key=lambda each: (not each[1].get("loaded"), each[0])
            )
        ][:200],
    }


def _mentions(machine: Machine, words: str) -> bool:
    return words in machine.name.lower() or any(words in model.lower() for model in machine.models)


def _whole(text: str, field: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise InvalidJob(f"{field}: a whole number is needed, got {text[:20]!r}", field=field)
