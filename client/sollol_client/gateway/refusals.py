"""What an error means over HTTP: the status, the words, and when to come back. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sollol_broker.errors import (
    BackendError,
    BackendTimeout,
    BrokerUnavailable,
    ClientClosed,
    DeadlineExceeded,
    InvalidJob,
    JobCancelled,
    JobLost,
    NoNodeForModel,
    QueueFull,
    QuotaExceeded,
    SollolError,
)
from sollol_broker.quota_left import QuotaLeft


class Refused(SollolError):
    """A request that is turned down before it becomes a job.

    Attributes:
        status: for HTTP. field: the part of the request at fault. retry_after: seconds; 0 = it does not help.
    """

    def __init__(self, status: int, message: str, *, field: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.field = field
        self.retry_after = retry_after


class UnknownModel(Refused):
    """No node has the model, or the caller may not know that one does."""

    def __init__(self, model: str) -> None:
        super().__init__(404, f"model '{model}' not found", field="model")
        self.model = model


@dataclass(frozen=True, slots=True)
class Refusal:
    """What to answer.

    Attributes:
        text: in the words of the LLM server, where it was the one to refuse.
        retry_after: seconds; 0 = no use to say.
        code: names the kind of error for programs.
    """

    status: int
    text: str
    retry_after: float = 0.0
    code: str = ""
    field: str = ""

    def headers(self) -> dict[str, str]:
        """Retry-After, in whole seconds, where it helps."""
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))} if self.retry_after else {}


def refusal_of(error: SollolError) -> Refusal:
    """What an error means to an HTTP client; the first kind that fits decides."""
    text = " ".join(str(error).split()) if not isinstance(error, Refused) else str(error)
    retry_after = float(getattr(error, "retry_after", None) or 0.0)
    status, code = _status(error)
    if isinstance(error, BackendError) and error.said:
        text = error.said
    return Refusal(status, text, retry_after, code, field=str(getattr(error, "field", "") or ""))


def quota_headers(left: QuotaLeft | None, retry_after: float = 0.0) -> dict[str, str]:
    """What is left of an application's quota: OpenAI's headers, and the usual ones for the nearest limit.

    Args:
        retry_after: seconds after which a refused request may be tried again; 0 = it was not.
    """
    known = {"requests": left.requests, "tokens": left.tokens} if left is not None else {}
    limits = {name: limit for name, limit in known.items() if limit is not None}
    if not limits:
        return {}
    found = {}
    for name, limit in limits.items():
        found[f"X-RateLimit-Limit-{name.title()}"] = str(limit.limit)
        found[f"X-RateLimit-Remaining-{name.title()}"] = str(max(0, limit.remaining))
        found[f"X-RateLimit-Reset-{name.title()}"] = f"{limit.reset_seconds:.3f}s"
    nearest = min(limits.values(), key=lambda limit: limit.remaining / max(1, limit.limit))
    reset = math.ceil(max(retry_after, nearest.reset_seconds if not retry_after else 0.0))
    found["RateLimit-Limit"] = str(nearest.limit)
    found["RateLimit-Remaining"] = "0" if retry_after else str(max(0, nearest.remaining))
    found["RateLimit-Reset"] = str(reset)
    return found


def _status(error: SollolError) -> tuple[int, str]:
    if isinstance(error, Refused):
        return error.status, "model_not_found" if isinstance(error, UnknownModel) else ""
    if isinstance(error, BackendTimeout):
        return 504, "timeout"
    if isinstance(error, BackendError):
        # What a backend says of its own key or load is not the caller's fault.
        status = error.status or 502
        return (502 if status in (401, 403, 407) or status < 400 else status), "backend_error"
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            return status, code
    return 500, "job_failed"


_KINDS: tuple[tuple[type[SollolError], int, str], ...] = (
    (InvalidJob, 400, "invalid_request"),
    (NoNodeForModel, 503, "no_node"),
    (QueueFull, 503, "queue_full"),
    (QuotaExceeded, 429, "rate_limit_exceeded"),
    (DeadlineExceeded, 504, "deadline_exceeded"),
    (JobCancelled, 499, "cancelled"),
    (JobLost, 404, "job_not_found"),
    (BrokerUnavailable, 503, "unavailable"),
    (ClientClosed, 503, "unavailable"),
)
