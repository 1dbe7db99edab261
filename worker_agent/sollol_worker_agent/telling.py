"""What the live log hears of a job's end: who and how long, never what was asked or said."""

from __future__ import annotations

from sollol_broker.broker import Claimed, Used
from sollol_broker.envelope import Envelope
from sollol_broker.errors import BackendError, SollolError
from sollol_broker.live_log import LiveLog
from sollol_broker.log_entry import Level


def tell_of_answer(live: LiveLog, claimed: Claimed, envelope: Envelope, used: Used, run_ms: float) -> None:
    """One in ten of the answered jobs."""
    live.note(
        Level.INFO,
        "job answered",
        app=envelope.app,
        job=claimed.lease.job_id,
        model=envelope.model,
        attempt=claimed.attempt,
        waited_ms=round(claimed.waited_ms),
        run_ms=round(run_ms),
        prompt_tokens=max(0, used.prompt_tokens),
        output_tokens=max(0, used.output_tokens),
    )


def tell_of_failure(
    live: LiveLog, claimed: Claimed, envelope: Envelope | None, error: SollolError, word: str
) -> None:
    """Every failed attempt.

    Args:
        envelope: None where it could not be read.
        word: what became of it: "retry", "end" or "stale".
    """
    if word == "stale":
        return
    is_end = word == "end"
    facts = {} if envelope is None else {"model": envelope.model}
    # Its text is left out: a server may quote the request in it.
    if isinstance(error, BackendError) and error.status is not None:
        facts["status"] = str(error.status)
    live.note(
        Level.ERROR if is_end else Level.WARNING,
        "job failed for good" if is_end else "attempt failed, the job is tried again",
        app="" if envelope is None else envelope.app,
        job=claimed.lease.job_id,
        attempt=claimed.attempt,
        error=type(error).__name__,
        **facts,
    )
