"""Every error that SOLLOL raises, in one tree.

    SollolError
    ├── InvalidJob               the job is malformed: nothing was sent
    ├── BrokerUnavailable        Redis cannot be reached, or cannot be used
    │   ├── BrokerOutdated       Redis answers, but is older than 7.0
    │   └── NotAllowed           Redis answers, but our user may not do this
    ├── ClientClosed             the client was closed while it waited; the job itself goes on
    ├── StreamGap                text was trimmed before it was read: `result()` has the answer whole
    ├── QueueFull                no room for the job now: try after `retry_after` seconds
    ├── QuotaExceeded            the application used up its share: try after `retry_after` seconds
    └── JobFailed                the job was accepted and ended without an answer
        ├── NoNodeForModel       no live worker could ever serve it: `reasons` per node
        ├── BackendError         the LLM server refused or broke: `status`, `partial`
        │   └── BackendTimeout   one of the four timeouts ran out: `phase`
        ├── DeadlineExceeded     the job's deadline passed before its answer
        ├── JobCancelled         somebody cancelled it
        ├── JobDead              it took too many workers down with it: `attempts`
        ├── JobLost              Redis no longer knows the job
        └── KeyMissing           it is encrypted with a key that we do not have: `key_id`

No message carries a prompt, an answer or a password.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Mapping
from typing import Any

from .quota_left import QuotaLeft


class SollolError(Exception):
    """The root of everything that SOLLOL raises on purpose."""


class InvalidJob(SollolError, ValueError):
    """The job is malformed; raised before anything is sent.

    Attributes:
        field: the argument at fault, as the caller wrote it.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class BrokerUnavailable(SollolError, ConnectionError):
    """Redis cannot be reached, or refuses to work for us.

    The message names the URL with its password masked and says what to try.

    Attributes:
        refused: the server answers, but will not have us (login, rights, version): waiting does not help.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class BrokerOutdated(BrokerUnavailable):
    """The server answers, but lacks what SOLLOL needs (Redis 7.0 or Valkey)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, refused=True)


class NotAllowed(BrokerUnavailable):
    """The user as whom we are logged in has not the right to do this; others of its commands may work."""

    def __init__(self, message: str) -> None:
        super().__init__(message, refused=True)


class ClientClosed(SollolError):
    """The client was closed while it waited; the job itself goes on: `attach(job_id)` finds it."""


class StreamGap(SollolError):
    """What follows the last piece that was read is no longer in Redis: a stream cannot go on without a gap.

    The job itself is not touched: its `result()` has the answer whole, and `attach(job_id)` without `after` reads
    from the beginning what there is.
    """


class QueueFull(SollolError):
    """The fabric has no room for the job now.

    Attributes:
        retry_after: seconds after which a new try makes sense.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QuotaExceeded(SollolError):
    """The application has used up its share.

    Attributes:
        retry_after: seconds after which a new try makes sense.
        left: what is left of its quota, if that is known.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0, left: QuotaLeft | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.left = left


class JobFailed(SollolError):
    """The job was accepted and ended without an answer."""


class NoNodeForModel(JobFailed):
    """No live worker could ever serve the job.

    Attributes:
        reasons: why each node cannot, by node name; empty when no worker lives.
    """

    def __init__(self, message: str, *, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons: dict[str, str] = dict(reasons or {})


class BackendError(JobFailed):
    """The LLM server refused the request, broke, or went away.

    Attributes:
        status: the HTTP status it answered with; None when there was no answer.
        retryable: whether another node may do better (5xx, refused connection,
            truncated stream); a 4xx is the request's own fault.
        partial: the text that had arrived before the end, if any.
        said: the server's own words, where it gave a reason.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retryable: bool = False,
        partial: str = "",
        said: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retryable = retryable
        self.partial = partial
        self.said = said


class BackendTimeout(BackendError):
    """The LLM server was too slow.

    Attributes:
        phase: which timeout ran out: "connect", "first_token", "between_tokens" or "total".
    """

    def __init__(self, message: str, *, phase: str, partial: str = "") -> None:
        # A job that used up its own total time would do so on any node.
        super().__init__(message, retryable=phase != "total", partial=partial)
        self.phase = phase


class DeadlineExceeded(JobFailed):
    """The job's deadline passed before it had an answer, or is sure to.

    Attributes:
        retry_after: seconds after which a new try makes sense; None when the job was accepted and ran out of time.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class JobCancelled(JobFailed, concurrent.futures.CancelledError):
    """The job was cancelled, here or by another process."""


class JobDead(JobFailed):
    """The job took too many workers down with it and lies in the dead letters.

    Attributes:
        attempts: how often it was started.
    """

    def __init__(self, message: str, *, attempts: int = 0) -> None:
        super().__init__(message)
        self.attempts = attempts


class JobLost(JobFailed):
    """Redis does not know the job: its result expired, or the id was never used here."""


class KeyMissing(JobFailed):
    """The job, or its answer, is encrypted with a key that this process, or the worker, does not have.

    Attributes:
        key_id: which one; eight hex digits made of the key.
    """

    def __init__(self, message: str, *, key_id: str = "") -> None:
        super().__init__(message)
        self.key_id = key_id


# How an error travels through Redis: its class by name, its text, its facts.
_BY_NAME: dict[str, type[SollolError]] = {
    kind.__name__: kind
    for kind in (
        InvalidJob,
        NoNodeForModel,
        BackendError,
        BackendTimeout,
        DeadlineExceeded,
        JobCancelled,
        JobDead,
        JobLost,
        KeyMissing,
    )
}
_FACTS = ("field", "reasons", "status", "retryable", "partial", "phase", "attempts", "key_id", "said")


def to_wire(error: SollolError) -> dict[str, Any]:
    """Describe `error` as plain data: {"error": class name, "message": text, + its facts}.

    A class that only one room knows travels as the nearest that all know.
    """
    facts = {name: getattr(error, name) for name in _FACTS if getattr(error, name, None)}
    names = [kind.__name__ for kind in type(error).__mro__]
    known = next((name for name in names if name in _BY_NAME), names[0])
    return {"error": known, "message": str(error), **facts}


def from_wire(data: Mapping[str, Any]) -> SollolError:
    """Rebuild the error that `to_wire` described; an unknown class becomes JobFailed."""
    kind = _BY_NAME.get(str(data.get("error")), JobFailed)
    message = str(data.get("message") or "the job failed and left no reason")
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    defaults: dict[str, Any] = {
        **{"field": "", "reasons": {}, "status": None, "retryable": False},
        **{"partial": "", "phase": "", "attempts": 0, "retry_after": None, "key_id": "", "said": ""},
    }
    for name, default in defaults.items():
        setattr(error, name, data.get(name, default))
    return error
