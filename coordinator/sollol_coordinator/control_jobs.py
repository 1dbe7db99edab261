"""What takes long is a job in RQ, where anyone can see it: these are the functions that such a job may call.

Jobs carry no secret: the URL of Redis comes from the environment of the process that runs them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from sollol_broker.broker import Broker
from sollol_broker.groups import GroupState, GroupView
from sollol_broker.model_facts import ModelFacts
from sollol_broker.url import DEFAULT_URL, BrokerUrl, parse

from .decide import Rules
from .estimate import Correction
from .forming import CannotForm, Former
from .orderly import NotLeading, Orders

QUEUE = "groups"
# A load may take 5 minutes and 20 s per GiB; RQ must not end it before the order does.
JOB_SECONDS = 7200


def form_group(
    leader: str,
    term: int,
    group: Mapping[str, Any],
    facts: str,
    rules: Mapping[str, Any],
    correction: Mapping[str, Any],
) -> dict[str, Any]:
    """Form a group; gives {"ok": true, "report": …} or {"ok": false, "why": …, "node": who is to blame}."""
    record = GroupView(
        id=str(group["id"]),
        model=str(group["model"]),
        state=GroupState.FORMING,
        head=str(group["head"]),
        parts=tuple((str(node), str(worker)) for node, worker in group["parts"]),
        since=float(group["since"]),
    )
    model = ModelFacts.from_json(facts)
    return asyncio.run(
        _form(url_of_environment(), leader, term, record, model, Rules(**rules), Correction(**correction))
    )


async def _form(
    url: BrokerUrl,
    leader: str,
    term: int,
    group: GroupView,
    facts: ModelFacts,
    rules: Rules,
    correction: Correction,
) -> dict[str, Any]:
    broker = Broker(url, name=f"sollol-former-{group.id}")
    await broker.open()
    try:
        async with Orders(broker, leader=leader, term=term) as orders:
            former = Former(broker, orders, leader, term, group, facts, rules, correction)
            try:
                ready = await former.form()
            except CannotForm as error:
                return {"ok": False, "why": str(error), "node": error.node}
            except NotLeading as error:
                return {"ok": False, "why": str(error), "node": ""}
            return {"ok": True, "report": dict(ready.report), "places": [dict(each) for each in ready.places]}
    finally:
        await broker.close()


def url_of_environment() -> BrokerUrl:
    """Where Redis is: the process that runs jobs was started with it."""
    return parse(os.environ.get("SOLLOL_REDIS_URL", DEFAULT_URL), environ=os.environ)
