"""The figures for Prometheus: what they are called, that its own parser takes them, and that they are few."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route

from facts_kit import facts, node, queue
from sollol_broker.facts import ServerFacts
from sollol_broker.prometheus import MOST_HOSTS, MOST_MODELS, exposition, fabric_families, job_families
from sollol_broker.series import Point
from sollol_broker.url import parse
from sollol_client.gateway.metrics import Metrics as GatewayMetrics
from sollol_coordinator.metrics import Metrics as CoordinatorMetrics
from sollol_worker_agent.agent import Agent
from sollol_worker_agent.backends import EchoBackend
from sollol_worker_agent.config import WorkerConfig
from sollol_worker_agent.metrics import WorkerMetrics

_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
# In which a sample's labels stand in what is looked at here.
_ORDER = ("host", "model", "backend", "gpu", "kind", "state", "le")
_HARDWARE = {
    **{"load_1m": 1.5, "ram_total_mib": 1000, "ram_available_mib": 600},
    **{"vram_total_mib": 100, "vram_free_mib": 25, "gpus": [{"index": 0, "utilisation_percent": 40}]},
}


def _point(*times_ms: float, errors: int = 0) -> Point:
    point = Point()
    for ms in times_ms:
        point.count("requests")
        point.count("tokens_out", 3)
        for name in ("ttft", "gap", "wait", "latency", "run"):
            point.time(name, ms)
    point.count("requests", errors)
    point.count("errors", errors)
    return point


def _fabric() -> Iterable[Metric]:
    return fabric_families(
        facts(
            nodes=(node("gpu1", busy=1, hardware=_HARDWARE),),
            queues=(queue("m"),),
            counters={"submitted": 9, "done": 7, "dead": 1},
            server=ServerFacts(persistent=True, used_bytes=5, most_bytes=10),
        )
    )


def _read(text: bytes) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def _values(families: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[label] for label in _ORDER if label in sample.labels)): sample.value
        for family in _read(exposition(families)).values()
        for sample in family.samples
    }


def _shape(families: Mapping[str, Metric]) -> dict[str, tuple[str, str, str]]:
    """Type, labels and text of each family, by the name that a query uses."""
    found = {}
    for family in families.values():
        if family.name.endswith(
            "_created"
        ):  # when a counter began, which prometheus-client tells beside each
            continue
        labels = sorted({name for sample in family.samples for name in sample.labels} - {"le"})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, ", ".join(labels), family.documentation)
    return found


def _gateway() -> GatewayMetrics:
    metrics = GatewayMetrics()
    metrics.note({"route": Route("/api/chat", lambda _: None), "method": "POST"}, 200, 0.1)
    return metrics


def _told() -> dict[str, dict[str, tuple[str, str, str]]]:
    """What each section of the page has to list."""
    jobs = _shape(_read(exposition(job_families({"gpu1": {"m": _point(5)}}))))
    coordinator = CoordinatorMetrics()
    return {
        "The fabric": _shape(_read(exposition(_fabric()))),
        "What jobs took": jobs,
        "Gateway": _shape(_read(_gateway().text())),
        "Coordinator": _shape(_read(exposition(coordinator.registry.collect()))),
    }


async def _of_worker() -> dict[str, tuple[str, str, str]]:
    agent = Agent(parse("redis://127.0.0.1:1"), WorkerConfig(node="n"), [EchoBackend()])
    families = _shape(_read(exposition(await WorkerMetrics(agent, host="", port=0).families())))
    return {name: told for name, told in families.items() if name.startswith("sollol_worker_")}


async def test_the_page_lists_what_there_is() -> None:
    sections = re.split(r"^### ", _PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    listed = {
        section.split(":")[0].splitlines()[0]: {
            name: (kind, labels, text)
            for name, kind, labels, text in re.findall(
                r"^\| `(\w+)` \| (\w+) \| ([\w, ]*?) ?\| (.+?) \|$", section, flags=re.MULTILINE
            )
        }
        for section in sections
    }
    assert listed == {**_told(), "Worker": await _of_worker()}


def test_counts_and_durations_of_jobs() -> None:
    values = _values(
        job_families({"gpu1": {"m": _point(3, 70, errors=1), "n": _point(500)}, "gpu2": {"m": _point(2)}})
    )
    assert values["sollol_requests_total", "gpu1", "m"] == 3
    assert values["sollol_errors_total", "gpu1", "m"] == 1
    assert values["sollol_output_tokens_total", "gpu1", "m"] == 6
    assert values["sollol_success_rate", "gpu1"] == pytest.approx(3 / 4)
    assert values["sollol_success_rate", "gpu2"] == 1
    assert values["sollol_latency_seconds_count", "gpu1"] == 3
    assert values["sollol_latency_seconds_sum", "gpu1"] == pytest.approx(0.573)
    assert values["sollol_ttft_seconds_count", "m"] == 3
    buckets = {
        float(key[-1]): value
        for key, value in values.items()
        if key[:2] == ("sollol_ttft_seconds_bucket", "m")
    }
    assert [buckets[edge] for edge in (0.004, 0.064, 0.128, float("inf"))] == [2, 2, 3, 3]
    assert sorted(buckets.values()) == [buckets[edge] for edge in sorted(buckets)]


def test_the_fabric_at_one_moment() -> None:
    values = _values(_fabric())
    assert values["sollol_redis_up",] == 1
    assert (values["sollol_slots", "gpu1"], values["sollol_slots_busy", "gpu1"]) == (2, 1)
    assert values["sollol_vram_bytes", "gpu1", "used"] == 75 * 1024 * 1024
    assert values["sollol_gpu_utilisation_ratio", "gpu1", "0"] == pytest.approx(0.4)
    assert (values["sollol_queue_depth", "m"], values["sollol_queue_oldest_seconds", "m"]) == (3, 5)
    assert values["sollol_jobs_ended_total", "done"] == 7
    assert values["sollol_redis_persistent",] == 1


def test_labels_are_bounded() -> None:
    many = facts(
        nodes=tuple(node(f"n{at:04}", hardware=_HARDWARE) for at in range(MOST_HOSTS + 20)),
        queues=tuple(queue(f"m{at:03}", waiting=1) for at in range(MOST_MODELS + 10)),
    )
    values = _values(fabric_families(many))
    assert sum(key[0] == "sollol_slots" for key in values) == MOST_HOSTS
    assert sum(key[0] == "sollol_queue_depth" for key in values) == MOST_MODELS + 1
    assert values["sollol_queue_depth", "other"] == 10
    assert values["sollol_nodes",] == MOST_HOSTS + 20


@pytest.mark.parametrize("name", ['a"} 1\nsollol_evil 1 #', "back\\slash", "<script>"])
def test_a_name_cannot_break_out_of_its_label(name: str) -> None:
    values = _values(job_families({name: {name: _point(1)}}))
    assert values["sollol_requests_total", name, name] == 1
    assert not any(key[0] == "sollol_evil" for key in values)


async def test_a_backends_label_shows_no_password() -> None:
    backend = EchoBackend()
    backend.url = "http://user:canary@gpu.lan:11434/?key=canary"
    agent = Agent(parse("redis://127.0.0.1:1"), WorkerConfig(node="n"), [backend])
    text = exposition(await WorkerMetrics(agent, host="", port=0).families()).decode()
    assert 'backend="echo://gpu.lan:11434"' in text
    assert "canary" not in text
