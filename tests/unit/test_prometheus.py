"""The figures for Prometheus: what they are called, that its own parser takes them, and that they are few."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client.core import Metric

from facts_kit import facts, node, queue
from metrics_kit import HARDWARE, agent, moment, point, read, told
from sollol_broker import prometheus
from sollol_broker.broker import Broker
from sollol_broker.prometheus import (
    MOST_HOSTS,
    MOST_MODELS,
    FabricFigures,
    exposition,
    fabric_families,
    job_families,
)
from sollol_broker.url import parse
from sollol_worker_agent.backends import EchoBackend
from sollol_worker_agent.metrics import WorkerMetrics

_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
# In which a sample's labels stand in what is looked at here.
_ORDER = ("host", "model", "backend", "gpu", "kind", "state", "le")


def _values(families: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[label] for label in _ORDER if label in sample.labels)): sample.value
        for family in read(exposition(families)).values()
        for sample in family.samples
    }


async def test_the_page_lists_what_there_is() -> None:
    sections = re.split(r"^##+ ", _PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    listed = {}
    for section in sections:
        rows = re.findall(
            r"^\| `(sollol_\w+)` \| (\w+) \| ([\w, ]*?) ?\| (.+?) \|$", section, flags=re.MULTILINE
        )
        if rows:
            listed[section.splitlines()[0].split(":")[0]] = {
                name: (kind, tuple(labels.split(", ")) if labels else (), text)
                for name, kind, labels, text in rows
            }
    there = await told()
    assert {
        name: {each: tuple(shape) for each, shape in told.items()} for name, told in there.items()
    } == listed


def test_counts_and_durations_of_jobs() -> None:
    values = _values(
        job_families({"gpu1": {"m": point(3, 70, errors=1), "n": point(500)}, "gpu2": {"m": point(2)}})
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
    values = _values(fabric_families(moment()))
    assert values["sollol_redis_up",] == 1
    assert (values["sollol_slots", "gpu1"], values["sollol_slots_busy", "gpu1"]) == (2, 1)
    assert values["sollol_vram_bytes", "gpu1", "used"] == 75 * 1024 * 1024
    assert values["sollol_gpu_utilisation_ratio", "gpu1", "0"] == pytest.approx(0.4)
    assert (values["sollol_queue_depth", "m"], values["sollol_queue_oldest_seconds", "m"]) == (3, 5)
    assert values["sollol_jobs_ended_total", "done"] == 7
    assert values["sollol_redis_persistent",] == 1


def test_labels_are_bounded() -> None:
    many = facts(
        nodes=tuple(node(f"n{at:04}", hardware=HARDWARE) for at in range(MOST_HOSTS + 20)),
        queues=tuple(queue(f"m{at:03}", waiting=1) for at in range(MOST_MODELS + 10)),
    )
    values = _values(fabric_families(many))
    assert sum(key[0] == "sollol_slots" for key in values) == MOST_HOSTS
    assert sum(key[0] == "sollol_queue_depth" for key in values) == MOST_MODELS + 1
    assert values["sollol_queue_depth", "other"] == 10
    assert values["sollol_nodes",] == MOST_HOSTS + 20
    # Each host has had models of its own; the busiest keep their names.
    totals = {
        f"h{at}": {f"m{at}-{of}": point(*[1.0] * (1 + (at == 7))) for of in range(40)} for at in range(50)
    }
    values = _values(job_families(totals))
    requests = {key[1:]: value for key, value in values.items() if key[0] == "sollol_requests_total"}
    assert len({model for _, model in requests}) == MOST_MODELS + 1
    assert {model for host, model in requests if host == "h7"} == {f"m7-{of}" for of in range(40)}
    assert sum(requests.values()) == 50 * 40 + 40
    assert values["sollol_ttft_seconds_count", "other"] == 50 * 40 + 40 - 80 - (MOST_MODELS - 40)


@pytest.mark.parametrize(
    "name",
    [
        'a"} 1\nsollol_evil 1 #',
        "back\\slash",
        "\\n\\",
        "<script>",
        "模型-😀",
        "a\r\u2028b",
        "{le=}",
        "n" * 200,
    ],
)
def test_a_name_cannot_break_out_of_its_label(name: str) -> None:
    values = _values(job_families({name: {name: point(1)}}))
    assert values["sollol_requests_total", name, name] == 1
    assert not any(key[0] == "sollol_evil" for key in values)


async def test_a_backends_label_shows_no_password() -> None:
    backend = EchoBackend()
    backend.url = "http://user:canary@gpu.lan:11434/?key=canary"
    text = exposition(await WorkerMetrics(agent(backend), host="", port=0).families()).decode()
    assert 'backend="echo://gpu.lan:11434"' in text
    assert "canary" not in text


async def test_a_redis_that_hangs_is_told_of_before_prometheus_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(prometheus, "_READ_SECONDS", 0.01)
    broker = Broker(parse("redis://127.0.0.1:1"), name="figures")
    monkeypatch.setattr(broker.link, "call", never)
    figures = FabricFigures(broker)
    async with asyncio.timeout(20):
        assert _values(await figures.server_families()) == {("sollol_redis_up",): 0}
        assert _values(await figures.families()) == {("sollol_redis_up",): 0}
