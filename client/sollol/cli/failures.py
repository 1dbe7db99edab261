"""How a command ends when it does not end well: its exit code and its words. Pure."""

from __future__ import annotations

from typing import Any

from sollol_broker.errors import (
    BackendTimeout,
    BrokerUnavailable,
    DeadlineExceeded,
    InvalidJob,
    JobFailed,
    NoNodeForModel,
    QueueFull,
    QuotaExceeded,
    SollolError,
    to_wire,
)

INTERRUPTED = 130

# What each code means stands in app.py, for the overview. The first kind that fits decides, so a kind stands
# above the one that it belongs to.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (InvalidJob, 2),
    (BrokerUnavailable, 3),
    (NoNodeForModel, 4),
    (DeadlineExceeded, 7),
    (BackendTimeout, 7),
    (JobFailed, 5),
    (QueueFull, 6),
    (QuotaExceeded, 6),
    (KeyboardInterrupt, INTERRUPTED),
)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a job was waited for; the job goes on."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(
            f"interrupted, but job {job_id} goes on:\n"
            f"  sollol attach {job_id}   to see its answer\n"
            f"  sollol jobs {job_id}     to see its state\n"
            f"  sollol cancel {job_id}   to stop it"
        )


class BatchInterrupted(KeyboardInterrupt):
    """Ctrl-C while a batch was written into a file."""

    def __init__(self, batch_id: str, written: int, total: int) -> None:
        self.job_id = batch_id
        super().__init__(
            f"interrupted: {written:,} of {total:,} items are written; the same command goes on with the rest\n"
            f"  sollol batch show {batch_id}     to see how it stands\n"
            f"  sollol batch cancel {batch_id}   to give it up"
        )


def exit_code(error: BaseException) -> int:
    """The exit code for an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), 1)


def message(error: BaseException) -> str:
    """What to tell, on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, SollolError):
        return text
    if isinstance(error, KeyboardInterrupt):
        return text or "interrupted"
    return f"unexpected {type(error).__name__}: {text or 'no reason given'} (SOLLOL_DEBUG=1 shows where)"


def as_dict(error: BaseException) -> dict[str, Any]:
    """The same as plain data: {"error": class, "message": text, + the error's facts}."""
    if isinstance(error, SollolError):
        return {**to_wire(error), "message": message(error)}
    facts = {"job": error.job_id} if isinstance(error, Interrupted | BatchInterrupted) else {}
    name = "Interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
    return {"error": name, "message": message(error), **facts}
