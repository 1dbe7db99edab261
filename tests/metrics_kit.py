"""Every family of figures that a process can tell, with a sample of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route

from facts_kit import facts, node, queue
from sollol_broker.facts import Facts, ServerFacts
from sollol_broker.prometheus import exposition, fabric_families, job_families
from sollol_broker.series import TIMES, Point
from sollol_broker.url import parse
from sollol_client.gateway.metrics import Metrics as GatewayMetrics
from sollol_coordinator.metrics import Metrics as CoordinatorMetrics
from sollol_worker_agent.agent import Agent
from sollol_worker_agent.backends import EchoBackend
from sollol_worker_agent.config import WorkerConfig
from sollol_worker_agent.metrics import WorkerMetrics

HARDWARE: dict[str, Any] = {
    **{"load_1m": 1.5, "ram_total_mib": 1000, "ram_available_mib": 600},
    **{"vram_total_mib": 100, "vram_free_mib": 25, "gpus": [{"index": 0, "utilisation_percent": 40}]},
}


class Shape(NamedTuple):
    """What a family promises: type, labels, and its text."""

    kind: str
    labels: tuple[str, ...]
    text: str


def point(*times_ms: float, errors: int = 0) -> Point:
    """Jobs that took so long, in every respect."""
    made = Point()
    for ms in times_ms:
        made.count("requests")
        made.count("tokens_out", 3)
        for name in TIMES:
            made.time(name, ms)
    made.count("requests", errors)
    made.count("errors", errors)
    return made


def moment() -> Facts:
    """A fabric with something of everything."""
    return facts(
        nodes=(node("gpu1", busy=1, hardware=HARDWARE),),
        queues=(queue("m"),),
        counters={"submitted": 9, "done": 7, "dead": 1},
        server=ServerFacts(persistent=True, used_bytes=5, most_bytes=10),
    )


def read(text: bytes) -> dict[str, Metric]:
    """What Prometheus' own parser makes of it."""
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def shapes(families: Mapping[str, Metric]) -> dict[str, Shape]:
    """By the name that a query uses."""
    found = {}
    for family in families.values():
        if family.name.endswith(
            "_created"
        ):  # when a counter began, which prometheus-client tells beside each
            continue
        labels = sorted({name for sample in family.samples for name in sample.labels} - {"le"})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = Shape(family.type, tuple(labels), family.documentation)
    return found


def agent(backend: EchoBackend | None = None) -> Agent:
    """A worker that has not joined anything."""
    return Agent(parse("redis://127.0.0.1:1"), WorkerConfig(node="n"), [backend or EchoBackend()])


def _gateway() -> bytes:
    metrics = GatewayMetrics()
    metrics.note({"route": Route("/api/chat", lambda _: None), "method": "POST"}, 200, 0.1)
    return metrics.text()


async def told() -> dict[str, dict[str, Shape]]:
    """All there is, by the sections of docs/metrics.md."""

    def of(families: Iterable[Metric]) -> dict[str, Shape]:
        return shapes(read(exposition(families)))

    worker = of(await WorkerMetrics(agent(), host="", port=0).families())
    return {
        "The fabric": of(fabric_families(moment())),
        "What jobs took": of(job_families({"gpu1": {"m": point(5)}})),
        "Gateway": shapes(read(_gateway())),
        "Coordinator": of(CoordinatorMetrics().registry.collect()),
        "Worker": {name: shape for name, shape in worker.items() if name.startswith("sollol_worker_")},
    }
