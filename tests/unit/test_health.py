"""The state machine of a backend's health: a table of events, and what must hold whatever comes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.errors import BackendError, BackendTimeout, DeadlineExceeded
from sollol_worker_agent.health import Health, HealthState, is_backends_fault

HEALTHY, DEGRADED, PROBING = HealthState.HEALTHY, HealthState.DEGRADED, HealthState.PROBING


_STEPS: dict[str, Callable[[Health], Health]] = {
    "w": Health.job_worked,
    "f": Health.job_failed,
    "c": lambda health: health.check_passed(counts=False),
    "C": lambda health: health.check_passed(counts=True),
    "x": lambda health: health.check_failed(counts=False),
    "X": lambda health: health.check_failed(counts=True),
}


def after(events: str, health: Health | None = None) -> Health:
    """w: a job worked, f: it failed, c: a check passed, C: one that counts, x: it failed, X: one that counts."""
    health = health or Health()
    for event in events:
        health = _STEPS[event](health)
    return health


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ("", HEALTHY),
        ("wwcCw", HEALTHY),
        ("f", HEALTHY),
        ("ff", HEALTHY),
        ("fff", DEGRADED),
        ("w" * 40 + "fff", DEGRADED),
        ("w" * 40 + "fwfwf", HEALTHY),
        ("wfwfwf", DEGRADED),
        ("w" * 40 + "fw" * 8, DEGRADED),
        ("w" * 60 + "fw" * 7, HEALTHY),
        ("x", DEGRADED),
        ("xx", DEGRADED),
        ("xc", PROBING),
        ("xcc", HEALTHY),
        ("xcw", HEALTHY),
        ("xcf", DEGRADED),
        ("xcx", DEGRADED),
        ("xw", DEGRADED),
        ("fffw", DEGRADED),
        ("fffc", PROBING),
        ("fffccc", PROBING),
        ("fffcw", HEALTHY),
        ("fffcf", DEGRADED),
        ("fffcwf", DEGRADED),
        ("fffxcc", HEALTHY),
    ],
)
def test_states(events: str, state: HealthState) -> None:
    assert after(events).state is state


@pytest.mark.parametrize(
    ("events", "seconds"),
    [
        ("", 60),
        ("w" * 50, 60),
        ("f" + "w" * 49, 30),
        ("f" + "w" * 24, 30),
        ("f" + "w" * 19, 15),
        ("f" + "w" * 9, 15),
        ("f" + "w" * 4, 5),
        ("f", 5),
        ("x", 5),
        ("xc", 5),
        ("xcc", 60),
        ("XCC", 5),
    ],
)
def test_the_worse_it_does_the_oftener_it_is_checked(events: str, seconds: float) -> None:
    assert after(events).check_seconds == seconds


def test_only_the_last_fifty_count() -> None:
    health = after("f" * 10 + "w" * 50)
    assert health.failure_rate == 0
    assert len(health.outcomes) == 50
    assert after("c" * 100, after("ff")).failure_rate == 1.0, "checks between two due ones do not whitewash"
    assert after("C" * 8, after("ff")).failure_rate == pytest.approx(0.2)


@given(st.text("wfcCxX", max_size=80))
def test_a_backend_that_works_again_is_always_restored(events: str) -> None:
    health = after(events)
    assert after("cw", health).state is HEALTHY
    assert after("x", health).state is DEGRADED
    assert 0 <= health.failure_rate <= 1


def test_what_the_advert_has() -> None:
    assert after("fffx").as_dict() == {"state": "degraded", "failure_rate": 1.0, "check_seconds": 5.0}


@pytest.mark.parametrize(
    ("error", "blames"),
    [
        (BackendError("broken", status=500, retryable=True), True),
        (BackendError("gone", retryable=True), True),
        (BackendTimeout("silent", phase="first_token"), True),
        (BackendTimeout("too long", phase="total"), False),
        (BackendError("no such model", status=404, retryable=True), False),
        (BackendError("bad request", status=400), False),
        (BackendError("does not embed, another may", status=400, retryable=True), False),
        (DeadlineExceeded("late"), False),
    ],
)
def test_whose_fault_it_was(error: Exception, blames: bool) -> None:
    assert is_backends_fault(error) is blames
