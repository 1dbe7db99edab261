"""Groups of nodes that serve one model together, as their records in Redis tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .broker import Broker


class GroupState(StrEnum):
    """Where a group is in its life.

    FORMING ──▶ LOADING ──▶ READY ──▶ (gone)
       └───────────┴──────────┴──▶ BROKEN
    """

    FORMING = "forming"
    LOADING = "loading"
    READY = "ready"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class GroupView:
    """A group.

    Attributes:
        head: the node that runs llama-server. parts: every node with its worker, the head first.
        places: layers and MiB by device, as planned. report: MiB by device and kind, as llama-server logged.
        progress: what is being done, for a reader. why: what went wrong.
        since: seconds since 1970, by Redis' clock. term: of the leader that wrote it last.
    """

    id: str
    model: str
    state: GroupState
    head: str = ""
    parts: tuple[tuple[str, str], ...] = ()
    places: tuple[Mapping[str, Any], ...] = ()
    report: Mapping[str, float] = field(default_factory=dict)
    progress: str = ""
    why: str = ""
    since: float = 0.0
    term: int = 0

    def to_fields(self) -> dict[str, str]:
        """As `write_group` wants them."""
        return {
            "id": self.id,
            "model": self.model,
            "state": self.state.value,
            "head": self.head,
            "parts": json.dumps(self.parts),
            "places": json.dumps([dict(each) for each in self.places]),
            "report": json.dumps(dict(self.report)),
            "progress": self.progress,
            "why": self.why,
            "since": f"{self.since:.3f}",
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> GroupView:
        """From Redis.

        Raises:
            ValueError, KeyError: the record is damaged.
        """
        return cls(
            fields["id"],
            fields["model"],
            GroupState(fields["state"]),
            fields.get("head", ""),
            tuple((str(node), str(worker)) for node, worker in json.loads(fields.get("parts", "[]"))),
            tuple(json.loads(fields.get("places", "[]"))),
            json.loads(fields.get("report", "{}")),
            fields.get("progress", ""),
            fields.get("why", ""),
            float(fields.get("since", 0)),
            int(fields.get("term", 0)),
        )


async def read_groups(broker: Broker) -> list[GroupView]:
    """All groups that have a record, the oldest first."""
    ids = await broker.link.call("ZRANGE", broker.keys.groups, 0, -1)
    rows = await asyncio.gather(
        *(broker.link.call("HGETALL", broker.keys.group(each.decode())) for each in ids)
    )
    found = []
    for row in rows:
        fields = {k.decode(): v.decode() for k, v in zip(row[::2], row[1::2], strict=True)}
        if fields.get("id") and fields.get("state") in list(GroupState):
            found.append(GroupView.from_fields(fields))
    return sorted(found, key=lambda each: (each.since, each.id))
