"""What is left of an application's quota, as submit tells it with each job. Plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of one limit.

    Attributes:
        reset_seconds: until all of it is there again, if nothing more is taken; 0 = that depends on the jobs.
    """

    limit: int
    remaining: int
    reset_seconds: float


@dataclass(frozen=True, slots=True)
class QuotaLeft:
    """What is left of a quota; None = no such limit."""

    requests: Left | None = None
    tokens: Left | None = None


def quota_left(told: Sequence[bytes | int]) -> QuotaLeft | None:
    """From the end of submit's reply: limit, remaining, ms until whole, of requests and of tokens; None = no limits."""
    numbers = [int(each) for each in told]
    found = (
        [
            Left(limit, remaining, reset / 1000) if limit >= 0 else None
            for limit, remaining, reset in (numbers[0:3], numbers[3:6])
        ]
        if len(numbers) == 6
        else [None, None]
    )
    return QuotaLeft(*found) if any(found) else None
