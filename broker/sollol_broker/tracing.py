"""Spans of OpenTelemetry: one trace for a job, through all processes that it passes. Nothing where it is not set up.

    submit (client, gateway) ─┬─ queue   from submission to claim
                              └─ claim   one attempt of a worker ── backend ── stream, from the first piece to the last

The trace travels in the envelope (`Trace`). We import nothing of OpenTelemetry unless the program has done so itself
and has set a tracer provider, or one of our commands is told by the usual OTEL_… variables to send spans somewhere.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from .version import VERSION

log = logging.getLogger(__name__)

# The names of spans that are promised (docs/metrics.md).
SUBMIT, QUEUE, CLAIM, BACKEND, STREAM = "submit", "queue", "claim", "backend", "stream"
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_MOST_CHARS = 128
_MOST_STATE_CHARS = 512
# Any of these says that somebody wants the spans.
_WANTED = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def trace_of(headers: Mapping[str, str]) -> dict[str, str] | None:
    """The trace that an HTTP request belongs to; None = to none, or its header is malformed.

    Args:
        headers: by lower-case name.
    """
    parent = headers.get("traceparent", "").strip()
    if len(parent) > _MOST_CHARS or not _TRACEPARENT.fullmatch(parent) or parent.startswith("ff"):
        return None
    state = headers.get("tracestate", "")
    return {"traceparent": parent, "tracestate": state if len(state) <= _MOST_STATE_CHARS else ""}


class Span:
    """A span of a job, or nothing where nobody traces.

    Args:
        span: OpenTelemetry's own; None = nobody traces.
    """

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def __bool__(self) -> bool:
        return self._span is not None

    def child(self, name: str, attributes: Mapping[str, Any], *, kind: str = "INTERNAL") -> Span:
        """A span inside this one, from now on."""
        api = _api() if self else None
        if api is None:
            return Span()
        return _begin(api, name, api.set_span_in_context(self._span), attributes, kind)

    def note(self, **attributes: Any) -> None:
        """Attributes that became known later."""
        if self:
            self._span.set_attributes(
                {name: value for name, value in attributes.items() if value is not None}
            )

    def end(self, error: BaseException | None = None, *, at_ns: int | None = None) -> None:
        """It is over; a second end is none. Of an error the kind is told, not the text: it may quote a prompt."""
        span, self._span = self._span, None
        if span is None:
            return
        if error is not None:
            api = _api()
            if api is not None:
                span.set_status(api.StatusCode.ERROR, type(error).__name__)
        span.end(end_time=at_ns)

    def carried(self) -> dict[str, str] | None:
        """The trace as it travels; None where nobody traces."""
        api = _api() if self else None
        if api is None:
            return None
        carrier: dict[str, str] = {}
        _propagator().inject(carrier, context=api.set_span_in_context(self._span))
        return carrier or None


def begin(
    name: str,
    trace: Mapping[str, str] | None,
    attributes: Mapping[str, Any],
    *,
    kind: str = "INTERNAL",
    began_ns: int | None = None,
) -> Span:
    """A span of a trace, or, where there is none, of what the program does now.

    Args:
        trace: as it came. kind: INTERNAL, PRODUCER, CONSUMER or CLIENT. began_ns: since 1970; None = now.
    """
    api = _api()
    if api is None:
        return Span()
    context = _propagator().extract(dict(trace)) if trace else None
    return _begin(api, name, context, attributes, kind, began_ns)


def is_traced() -> bool:
    """Whether this process makes spans."""
    return _api() is not None


def set_up(environ: Mapping[str, str], *, service: str) -> None:
    """Send this process' spans where the OTEL_… variables say; nothing when they say nothing.

    Args:
        service: the command's name, unless OTEL_SERVICE_NAME gives another.
    """
    if not any(environ.get(name) for name in _WANTED) or is_traced():
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("no spans are sent, %s is missing: pip install 'sollol[otel]'", error.name)
        return
    name = environ.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": VERSION}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    log.info("spans of %s go to OpenTelemetry", name)


def _begin(
    api: Any, name: str, context: Any, attributes: Mapping[str, Any], kind: str, began_ns: int | None = None
) -> Span:
    tracer = api.get_tracer("sollol", VERSION)
    known = {key: value for key, value in attributes.items() if value is not None}
    return Span(
        tracer.start_span(
            name,
            context=context,
            kind=api.SpanKind[kind],
            attributes=known,
            start_time=began_ns if began_ns is not None else time.time_ns(),
        )
    )


def _api() -> Any:
    """OpenTelemetry's API, if the program has set it up; it is asked for each job, so nothing is imported here."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
        return None
    return api


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()
