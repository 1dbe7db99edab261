"""Whether a lane's backend can be trusted with jobs: a pure state machine, without clock or network.

          it is down, or jobs fail
healthy ────────────────────────────► degraded: claims nothing, is checked often
   ▲                                   │    ▲
   │ a job works; after a backend      │    │ the next job or check fails
   │ that was down, a second check     ▼    │
   └───────────────────────────────── probing: one job at a time
                            a check succeeds
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from sollol_broker.errors import BackendError

from .backends.protocol import TextLost

# Jobs and counted checks that the failure rate looks back on.
_WINDOW = 50
_HIGHEST_RATE = 0.15
# Failure rate below which a backend is checked after so many seconds.
_CHECK_SECONDS = ((0.01, 60.0), (0.05, 30.0), (_HIGHEST_RATE, 15.0))
_SHORTEST_CHECK_SECONDS = 5.0
# So many failures in a row, or a rate of the highest class made up of as many, and jobs go elsewhere. Fewer
# happen to any server once in a while.
_MOST_FAILURES = 3
# The request cannot be served there, or its model is gone: another node may do better, this one is well.
_NOT_ITS_FAULT = frozenset({400, 404})


class HealthState(StrEnum):
    """As the advert has it."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    PROBING = "probing"


@dataclass(frozen=True, slots=True)
class Health:
    """What is known about a backend; each event gives a new one.

    Attributes:
        outcomes: of the last jobs and counted checks, oldest first; True = it worked.
        was_down: what made it ill was that it did not answer at all.
    """

    state: HealthState = HealthState.HEALTHY
    outcomes: tuple[bool, ...] = ()
    was_down: bool = False

    @property
    def failure_rate(self) -> float:
        """Of the last jobs and checks, 0 to 1."""
        return self.outcomes.count(False) / len(self.outcomes) if self.outcomes else 0.0

    @property
    def check_seconds(self) -> float:
        """How long after one check the next is due: 60, 30, 15 or 5 s; 5 s unless it is healthy."""
        if self.state is not HealthState.HEALTHY:
            return _SHORTEST_CHECK_SECONDS
        rate = self.failure_rate
        return next((seconds for below, seconds in _CHECK_SECONDS if rate < below), _SHORTEST_CHECK_SECONDS)

    def job_worked(self) -> Health:
        """A job was answered. Whatever it was before, the backend is healthy, unless it went down since."""
        if self.state is HealthState.HEALTHY and len(self.outcomes) == _WINDOW and all(self.outcomes):
            return self
        noted = self._noted(True)
        if self.state is HealthState.DEGRADED:
            return noted  # a job from before; the backend has to pass a check first
        return replace(noted, state=HealthState.HEALTHY, was_down=False)

    def job_failed(self) -> Health:
        """A job was not answered, and that was the backend's fault.

        1. While it is probed, one failure is enough.
        2. Otherwise several, if they came in a row or make up a rate of the highest class.
        """
        noted = self._noted(False)
        if noted.state is HealthState.PROBING:  # 1
            return replace(noted, state=HealthState.DEGRADED)
        is_much = noted.failure_rate >= _HIGHEST_RATE or not any(noted.outcomes[-_MOST_FAILURES:])
        if is_much and noted.outcomes.count(False) >= _MOST_FAILURES:  # 2
            return replace(noted, state=HealthState.DEGRADED)
        return noted

    def check_passed(self, *, counts: bool) -> Health:
        """The backend answered when it was asked what it has.

        Args:
            counts: whether this goes into the failure rate. Only checks that were due do, or a lane without
                jobs would look spotless in no time.
        """
        noted = self._noted(True) if counts else self
        if noted.state is HealthState.DEGRADED:
            return replace(noted, state=HealthState.PROBING)
        if noted.state is HealthState.PROBING and noted.was_down:
            return replace(noted, state=HealthState.HEALTHY, was_down=False)
        return noted

    def check_failed(self, *, counts: bool) -> Health:
        """The backend did not answer."""
        noted = self._noted(False) if counts else self
        return replace(noted, state=HealthState.DEGRADED, was_down=True)

    def as_dict(self) -> dict[str, object]:
        """For the advert."""
        return {
            "state": self.state.value,
            "failure_rate": round(self.failure_rate, 4),
            "check_seconds": self.check_seconds,
        }

    def _noted(self, worked: bool) -> Health:
        return replace(self, outcomes=(*self.outcomes, worked)[-_WINDOW:])


def is_backends_fault(error: Exception) -> bool:
    """Whether a failed job says something about its backend.

    Not what the job itself brought about, not its own total timeout, not a model that was removed or does not do such
    jobs, and not that it cannot go on with what another has begun.
    """
    if isinstance(error, TextLost):
        return False
    return isinstance(error, BackendError) and error.retryable and error.status not in _NOT_ITS_FAULT
