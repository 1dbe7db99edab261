"""The job as it travels: what is let in, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.codec import pack, unpack
from sollol_broker.envelope import MAX_ENVELOPE_BYTES, Envelope, Requires, Trace, checked
from sollol_broker.errors import InvalidJob
from sollol_broker.words import JobKind

_FIELDS: dict[str, Any] = {
    "kind": "chat",
    "model": "llama3.2",
    "app": "my-app",
    "payload": {"messages": [{"role": "user", "content": "Hello"}]},
}


def _envelope(**more: Any) -> Envelope:
    return checked(Envelope, {**_FIELDS, **more})


@given(
    st.sampled_from(JobKind),
    st.integers(0, 10),
    st.booleans(),
    st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.integers(0, 100) | st.none(), max_size=4),
    st.none() | st.floats(0.001, 1e6),
    st.none() | st.text(max_size=50),
)
def test_an_envelope_comes_out_as_it_went_in(
    kind: JobKind,
    priority: int,
    stream: bool,
    payload: dict[str, Any],
    timeout: float | None,
    session: str | None,
) -> None:
    envelope = _envelope(
        kind=str(kind),
        priority=priority,
        stream=stream,
        payload=payload,
        timeout_seconds=timeout,
        session=session,
    )
    assert Envelope.from_bytes(envelope.to_bytes()) == envelope
    assert envelope.job_kind is kind


def test_the_trace_travels_along() -> None:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1"}
    envelope = Envelope.from_bytes(_envelope(trace=trace).to_bytes())
    assert envelope.trace == Trace(**trace)
    assert Envelope.from_bytes(_envelope().to_bytes()).trace is None


def test_defaults_are_not_sent() -> None:
    assert set(unpack(_envelope().to_bytes(), max_bytes=MAX_ENVELOPE_BYTES)) == set(_FIELDS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "hunter2"),
        ("model", 7),
        ("model", ""),
        ("model", "hunter2" * 100),
        ("app", None),
        ("priority", 11),
        ("priority", -1),
        ("priority", "hunter2"),
        ("priority", True),
        ("stream", "hunter2"),
        ("payload", "hunter2"),
        ("timeout_seconds", 0),
        ("timeout_seconds", float("inf")),
        ("timeout_seconds", float("nan")),
        ("timeout_seconds", "hunter2"),
        ("session", "hunter2" * 100),
        ("metadata", ["hunter2"]),
        ("v", 2),
        ("unknown_field", "hunter2"),
    ],
)
def test_a_wrong_field_is_named_and_its_value_is_not(field: str, value: Any) -> None:
    with pytest.raises(InvalidJob) as caught:
        _envelope(**{field: value})
    assert caught.value.field == field
    assert field in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("field", ["kind", "model", "app", "payload"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        checked(Envelope, {name: value for name, value in _FIELDS.items() if name != field})
    assert caught.value.field == field


def test_a_nested_field_is_named_with_its_path() -> None:
    with pytest.raises(InvalidJob, match=r"trace\.traceparent"):
        _envelope(trace={"traceparent": "x" * 200})
    with pytest.raises(InvalidJob, match=r"trace\.extra"):
        _envelope(trace={"traceparent": "x", "extra": 1})


def test_a_job_over_the_limit_is_told_the_limit() -> None:
    with pytest.raises(InvalidJob, match=r"1,048,576 \(1 MiB\)") as caught:
        _envelope(payload={"prompt": "x" * MAX_ENVELOPE_BYTES}).to_bytes()
    assert caught.value.field == "payload"
    assert (
        len(_envelope(payload={"prompt": "x" * (MAX_ENVELOPE_BYTES - 200)}).to_bytes()) <= MAX_ENVELOPE_BYTES
    )


@pytest.mark.parametrize(
    "payload",
    [{"options": {1: 2}}, {"x": object()}, {"input": [0] * 100_001}],
    ids=["a key that is no text", "an object", "a list beyond the limits"],
)
def test_what_a_worker_could_not_read_is_refused_by_the_sender(payload: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        _envelope(payload=payload).to_bytes()


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", pack([1]), pack("text"), pack(None), pack({**_FIELDS, "v": 2}), pack({**_FIELDS, "x": 1})],
    ids=["nothing", "garbage", "a list", "text", "null", "a later version", "unknown field"],
)
def test_bytes_that_are_no_envelope_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidJob):
        Envelope.from_bytes(data)


def test_a_large_message_is_refused_unread() -> None:
    with pytest.raises(InvalidJob, match="the limit is 1048576"):
        Envelope.from_bytes(b"\xc6" + b"\0" * MAX_ENVELOPE_BYTES)


@pytest.mark.parametrize(
    ("fields", "wire"),
    [
        ({}, None),
        ({"vram_gb": 8}, {"vram_mib": 8192}),
        ({"vram_gb": 0.5, "labels": ["eu"]}, {"vram_mib": 512, "labels": ["eu"]}),
        ({"node": "gpu-1"}, {"node": "gpu-1"}),
        ({"vram_gb": 0, "labels": [], "node": ""}, None),
    ],
)
def test_requirements_on_the_wire(fields: dict[str, Any], wire: dict[str, Any] | None) -> None:
    data = checked(Requires, fields).to_bytes()
    assert data == b"" if wire is None else unpack(data, max_bytes=1000) == wire


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"vram_gb": -1}, "vram_gb"),
        ({"vram_gb": float("inf")}, "vram_gb"),
        ({"labels": "eu"}, "labels"),
        ({"labels": [1]}, "labels.0"),
        ({"gpu": 1}, "gpu"),
    ],
)
def test_wrong_requirements_are_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        checked(Requires, fields)
    assert caught.value.field == field
