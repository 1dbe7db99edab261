"""One of our commands in a process with OpenTelemetry set up; at its end it writes down the spans that it made.

python traced_process.py FILE MODULE ARGUMENT...
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def main() -> None:
    """Run the command."""
    file, module, *arguments = sys.argv[1:]
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": module}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        spans = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
        Path(file).write_text(json.dumps(spans))


if __name__ == "__main__":
    main()
