"""The ground floor: the words, the keys, the messages, the functions inside Redis, and the one door to it.

What the other rooms need of it most is handed on here; the rest lies in the modules, one idea each.
A private server for one machine is `sollol_broker.embedded.EmbeddedBroker`.
"""

from __future__ import annotations

from .broker import Broker, Claimed, ClaimRequest, Finished, LaneOffer, Lease, ModelOffer, Reaped, Submission
from .envelope import Envelope, Requires, Trace
from .errors import (
    BackendError,
    BackendTimeout,
    BrokerOutdated,
    BrokerUnavailable,
    ClientClosed,
    DeadlineExceeded,
    InvalidJob,
    JobCancelled,
    JobDead,
    JobFailed,
    JobLost,
    KeyMissing,
    NoNodeForModel,
    NotAllowed,
    QueueFull,
    QuotaExceeded,
    SollolError,
    StreamGap,
)
from .inbox import Inbox
from .keys import Keys
from .link import LinkConfig
from .names import canonical_model
from .outcome import Routing
from .registry import JobView, ModelView, NodeView, QueueView, Registry, WorkerView
from .url import DEFAULT_URL, BrokerUrl, Tls
from .url import parse as parse_url
from .version import VERSION
from .words import Entry, JobKind, JobState, Priority

__all__ = [
    "DEFAULT_URL",
    "VERSION",
    "BackendError",
    "BackendTimeout",
    "Broker",
    "BrokerOutdated",
    "BrokerUnavailable",
    "BrokerUrl",
    "ClaimRequest",
    "Claimed",
    "ClientClosed",
    "DeadlineExceeded",
    "Entry",
    "Envelope",
    "Finished",
    "Inbox",
    "InvalidJob",
    "JobCancelled",
    "JobDead",
    "JobFailed",
    "JobKind",
    "JobLost",
    "JobState",
    "JobView",
    "KeyMissing",
    "Keys",
    "LaneOffer",
    "Lease",
    "LinkConfig",
    "ModelOffer",
    "ModelView",
    "NoNodeForModel",
    "NodeView",
    "NotAllowed",
    "Priority",
    "QueueFull",
    "QueueView",
    "QuotaExceeded",
    "Reaped",
    "Registry",
    "Requires",
    "Routing",
    "SollolError",
    "StreamGap",
    "Submission",
    "Tls",
    "Trace",
    "WorkerView",
    "canonical_model",
    "parse_url",
]
