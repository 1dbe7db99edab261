"""The words that lie in Redis: states, priorities, and what an entry of a stream can be."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final


class JobState(StrEnum):
    """Where a job is in its life.

    QUEUED ──claim──▶ RUNNING ──finish──▶ DONE
      ▲  │               │ ├────fail─────▶ FAILED | (QUEUED again, elsewhere)
      │  └──cancel────┐  │ └───reap──────▶ DEAD   | (QUEUED again, same rank)
      │     deadline  ▼  ▼
      └───────────  CANCELLED | EXPIRED
    """

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has its one and only end."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class BatchState(StrEnum):
    """Where a batch is in its life.

    PENDING ──first chunk──▶ RUNNING ──last item──▶ COMPLETED, or FAILED without a single answer
       └────────────────────────┴──────────────────▶ CANCELLED | FAILED
    """

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more becomes of it."""
        return self not in (BatchState.PENDING, BatchState.RUNNING)


class Priority(IntEnum):
    """How soon a job should be served; any int from 0 to 10 will do."""

    CRITICAL = 10
    URGENT = 9
    HIGH = 7
    NORMAL = 5
    LOW = 3
    BATCH = 1


class Durability(StrEnum):
    """When a job counts as submitted, answered or cancelled.

    LOCAL: when Redis says so. What it may lose then is up to its `appendfsync`; whoever waits sends its job again.
    HA: when a replica has it as well (WAIT): no failover to that replica loses it.
    """

    LOCAL = "local"
    HA = "ha"


class JobKind(StrEnum):
    """What is asked of the model. RERANK: how well texts answer a query. WARM: nothing, it shall only be in memory."""

    CHAT = "chat"
    GENERATE = "generate"
    EMBED = "embed"
    RERANK = "rerank"
    WARM = "warm"


class Entry(StrEnum):
    """What an entry of an events stream or an inbox says (its field `t`).

    In an inbox the entries of a job also say whose they are (`j`), and their id in that job's events (`e`).
    """

    START = "start"  # a worker began: f = fence, n = node, w = worker
    PIECE = "piece"  # new text: f = fence, s = sequence number, d = data
    END = "end"  # the one terminal entry: x = state, f = fence, d = data
    BELL = "bell"  # to a worker: look at the queue of model m
    CANCEL = "cancel"  # to a worker: stop job j of fence f
    CONTROL = "control"  # to a worker: an operator has changed something, advertise now
    NOTE = "note"  # to those who wait: x = what is being done meanwhile
    ORDER = "order"  # to a worker, for a group: o = its id, d = data
    REPLY = "reply"  # to whoever gave order, or call, o: k = progress, done or failed, d = data
    CALL = "call"  # to a worker: an admin asks about models: o = the call's id
    ASK = "ask"  # to the leader: a wish, d = data
    HELLO = "hello"  # an inbox came into being


TERMINAL: Final = tuple(state for state in JobState if state.is_terminal)
