"""Groups of nodes that serve one model together, as their records in Redis tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .broker import Broker
from .told import like, number, plain, text, texts, whole

_LINKS = {"": {"trip_ms": 0, "mib_per_s": 0}}
_PLACE = {"node": "", "device": "", "layers": 0, "mib": 0}


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
        links: from the head to each other node, by its name, as measured just before its layers were sent: trip_ms of a
            question and its answer, mib_per_s where that could be measured.
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
    links: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
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
            "links": json.dumps({node: dict(each) for node, each in self.links.items()}),
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
            tuple((part[0], part[1]) for part in like([[""]], plain(fields.get("parts"))) if len(part) == 2),
            tuple(like([_PLACE], plain(fields.get("places")))),
            like({"": 0}, plain(fields.get("report"))) or {},
            like(_LINKS, plain(fields.get("links"))) or {},
            fields.get("progress", ""),
            fields.get("why", ""),
            number(fields.get("since")),
            whole(fields.get("term")),
        )


async def read_groups(broker: Broker) -> list[GroupView]:
    """All groups that have a record, the oldest first."""
    ids = await broker.link.call("ZRANGE", broker.keys.groups, 0, -1)
    rows = await asyncio.gather(*(broker.link.call("HGETALL", broker.keys.group(text(each))) for each in ids))
    found = []
    for row in rows:
        fields = texts(row)
        if fields.get("id") and fields.get("model") and fields.get("state") in list(GroupState):
            found.append(GroupView.from_fields(fields))
    return sorted(found, key=lambda each: (each.since, each.id))
