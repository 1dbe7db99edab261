"""What a refusal by submit means to the caller."""

from __future__ import annotations

from sollol_broker.errors import DeadlineExceeded, QueueFull, QuotaExceeded, SollolError
from sollol_broker.quota_left import QuotaLeft


def refusal(
    reason: str, retry_after: float, *, model: str, app: str, left: QuotaLeft | None = None
) -> SollolError:
    """The error for one of submit's reasons (`_admit.lua`); retry_after in seconds, left: of the quota."""
    again = f"try again in {retry_after:.3g} s"
    quotas = {
        "concurrency": f"{app} has as many unfinished jobs as it may: wait until one has ended",
        "app_queue": f"{app} has as many jobs in line for {model} as it may: {again}",
        "requests": f"{app} has used up its requests per minute: {again}",
        "tokens": f"{app} has used up its tokens per minute: {again}",
    }
    if reason in quotas:
        text = f"{quotas[reason]}; `sollol limits` shows the quota"
        return QuotaExceeded(text, retry_after=retry_after, left=left)
    if reason == "deadline":
        return DeadlineExceeded(
            f"the jobs before it in line for {model} take {retry_after:.3g} s longer than its deadline allows: "
            "allow more time, raise its priority, or add nodes",
            retry_after=retry_after,
        )
    full = {
        "memory": "Redis has too little memory left for new jobs: wait until some are done, or raise maxmemory",
        "model": f"the queue of {model} is as long as it may be (max_queue_size): {again}",
        "fabric": f"as many jobs wait in the fabric as may (max_queue_size): {again}",
        "bytes": f"the waiting jobs hold as many bytes as they may (max_queue_bytes): {again}",
    }
    return QueueFull(full.get(reason, f"the fabric takes no jobs now: {again}"), retry_after=retry_after)
