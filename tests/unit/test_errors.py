"""The tree of errors, and how an error crosses Redis."""

from __future__ import annotations

import concurrent.futures
import inspect
import re
from typing import Any

import pytest

from sollol_broker import errors
from sollol_broker.codec import pack, unpack
from sollol_broker.errors import SollolError, from_wire, to_wire
from sollol_broker.outcome import Routing, pack_answer, pack_error, read_outcome
from sollol_broker.words import JobState

_CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, SollolError) and kind.__module__ == errors.__name__
}

# How a job can end, with every fact set.
_ENDS: list[SollolError] = [
    errors.InvalidJob("bad", field="messages"),
    errors.NoNodeForModel("nobody", reasons={"gpu-1": "too small"}),
    errors.BackendError("broke", status=503, retryable=True, partial="Hel"),
    errors.BackendTimeout("slow", phase="first_token", partial="Hel"),
    errors.BackendTimeout("slow", phase="total"),
    errors.DeadlineExceeded("late"),
    errors.JobCancelled("stopped"),
    errors.JobDead("dead", attempts=3),
    errors.JobLost("gone"),
    errors.JobFailed("failed"),
]
_FACTS = ("field", "reasons", "status", "retryable", "partial", "phase", "attempts")


def _facts(error: SollolError) -> dict[str, Any]:
    return {name: getattr(error, name) for name in _FACTS if hasattr(error, name)}


def test_the_drawing_is_the_tree() -> None:
    drawn: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if not (found := re.match(r"^(    [ │├└─]*)([A-Z]\w+)(  .*)?$", line)):
            continue
        depth, name = len(found[1]), found[2]
        parents = [(at, parent) for at, parent in parents if at < depth]
        drawn[name] = parents[-1][1] if parents else ""
        parents.append((depth, name))
    real = {name: "" if kind is SollolError else kind.__mro__[1].__name__ for name, kind in _CLASSES.items()}
    assert drawn == real


@pytest.mark.parametrize("error", _ENDS, ids=lambda error: type(error).__name__)
def test_the_end_of_a_job_crosses_redis(error: SollolError) -> None:
    back = from_wire(unpack(pack(to_wire(error)), max_bytes=10_000))
    assert type(back) is type(error)
    assert str(back) == str(error)
    mine = _facts(error)
    assert {name: getattr(back, name) for name in mine} == mine


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"error": "NoSuchError"},
        {"error": 7, "message": None},
        {"error": "SollolError"},
        {"error": "QueueFull"},
    ],
)
def test_an_unknown_class_is_a_failed_job_with_a_text(data: dict[str, Any]) -> None:
    back = from_wire(data)
    assert type(back) is errors.JobFailed
    assert str(back)


def test_each_error_can_be_caught_as_what_it_is() -> None:
    assert issubclass(errors.InvalidJob, ValueError)
    assert issubclass(errors.BrokerUnavailable, ConnectionError)
    assert issubclass(errors.JobCancelled, concurrent.futures.CancelledError)


def test_a_job_that_used_up_its_whole_time_is_not_tried_again() -> None:
    assert not errors.BackendTimeout("slow", phase="total").retryable
    assert errors.BackendTimeout("slow", phase="connect").retryable


def test_an_answer_crosses_redis() -> None:
    routing = Routing("gpu-1", "w1", "ollama", 1, "chat", 1.5, 20.0, first_token_ms=3.0)
    outcome = read_outcome("j1", JobState.DONE, pack_answer({"text": "Hi"}, routing))
    assert outcome == {"answer": {"text": "Hi"}, "routing": routing.as_dict()}


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (JobState.CANCELLED, errors.JobCancelled),
        (JobState.EXPIRED, errors.DeadlineExceeded),
        (JobState.DEAD, errors.JobDead),
    ],
)
def test_an_end_that_says_it_all(state: JobState, kind: type[SollolError]) -> None:
    outcome = read_outcome("j1", state, b"", attempts=3)
    assert type(outcome) is kind
    assert "j1" in str(outcome)
    assert getattr(outcome, "attempts", 3) == 3


def test_a_failed_job_brings_its_error() -> None:
    outcome = read_outcome("j1", JobState.FAILED, pack_error(errors.BackendError("broke", status=500)))
    assert isinstance(outcome, errors.BackendError)
    assert outcome.status == 500


@pytest.mark.parametrize("state", [JobState.DONE, JobState.FAILED])
@pytest.mark.parametrize("data", [b"", b"\xc1", pack([1]), pack("text")])
def test_a_malformed_end_is_an_error_of_ours(state: JobState, data: bytes) -> None:
    with pytest.raises(errors.InvalidJob):
        read_outcome("j1", state, data)
