"""Traces where nobody makes spans: they are carried on, and nothing is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sollol_broker.envelope import Envelope
from sollol_broker.tracing import Span, begin, trace_of
from sollol_client.request import build_request

_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        _PARENT.upper(),
        _PARENT[:-1],
        "ff" + _PARENT[2:],
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        _PARENT + "-" + "x" * 100,
    ],
)
def test_a_malformed_header_begins_no_trace(parent: str) -> None:
    assert trace_of({"traceparent": parent}) is None


def test_a_trace_is_read_from_headers() -> None:
    assert trace_of({"traceparent": f" {_PARENT} "}) == {"traceparent": _PARENT, "tracestate": ""}
    read = trace_of({"traceparent": _PARENT, "tracestate": "a=1"})
    assert read == {"traceparent": _PARENT, "tracestate": "a=1"}
    assert trace_of({"traceparent": _PARENT, "tracestate": "x" * 600}) == {
        "traceparent": _PARENT,
        "tracestate": "",
    }


def test_without_spans_a_trace_is_carried_as_it_came() -> None:
    trace = {"traceparent": _PARENT, "tracestate": "a=1"}
    request = build_request("tests", "", model="m", chat="hi", trace=trace)
    assert not request.span
    envelope = Envelope.from_bytes(request.submission.envelope)
    assert envelope.trace is not None
    assert envelope.trace.model_dump() == trace
    assert (
        Envelope.from_bytes(build_request("tests", "", model="m", chat="hi").submission.envelope).trace
        is None
    )


def test_a_span_of_nobody_does_nothing() -> None:
    span = begin("submit", None, {"a": 1})
    assert not span
    span.note(b=2)
    assert not span.child("x", {})
    assert span.carried() is None
    span.end(ValueError("x"))
    Span().end()


def test_nothing_of_opentelemetry_is_imported() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed: to import it is an error
from sollol_broker.tracing import begin, set_up
from sollol_client.request import build_request
begin("submit", {"traceparent": "x"}, {}).end()
build_request("tests", "", model="m", chat="hi")
set_up({"OTEL_SERVICE_NAME": "x"}, service="y")
print("nothing was missed")
set_up({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, service="y")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "nothing was missed"
    assert "pip install 'sollol[otel]'" in run.stderr
