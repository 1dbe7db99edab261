"""Malformed jobs are refused by name of the field, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from sollol import Client
from sollol_broker.errors import BrokerUnavailable, InvalidJob

HELLO = [{"role": "user", "content": "hi"}]

BAD: list[tuple[str, dict[str, Any]]] = [
    ("chat", {}),
    ("chat", {"chat": None}),
    ("chat", {"chat": "hi", "generate": "hi"}),
    ("generate", {"generate": "hi", "embed": "hi"}),
    ("chat", {"chat": 5}),
    ("chat", {"chat": b"hi"}),
    ("chat[0]", {"chat": ["hi"]}),
    ("chat[1].role", {"chat": [*HELLO, {"content": "hi"}]}),
    ("chat[0].role", {"chat": [{"role": "", "content": "hi"}]}),
    ("chat[0].content", {"chat": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
    ("chat[0].images", {"chat": [{"role": "user", "content": "hi", "images": "abc"}]}),
    ("chat[0].images[0]", {"chat": [{"role": "user", "content": "hi", "images": ["no base64!"]}]}),
    ("images[1]", {"generate": "hi", "images": [b"fine", 5]}),
    ("generate", {"generate": ["hi"]}),
    ("embed", {"embed": 5}),
    ("embed", {"embed": ["hi", 5]}),
    ("chat", {"chat": "x" * 1_048_577}),
    ("embed", {"embed": ["x" * 1000] * 1100}),
    ("model", {"chat": "hi", "model": ""}),
    ("model", {"chat": "hi", "model": None}),
    ("model", {"chat": "hi", "model": "two words"}),
    ("model", {"chat": "hi", "model": "m" * 201}),
    ("priority", {"chat": "hi", "priority": 11}),
    ("priority", {"chat": "hi", "priority": -1}),
    ("priority", {"chat": "hi", "priority": 5.0}),
    ("priority", {"chat": "hi", "priority": True}),
    ("priority", {"chat": "hi", "priority": "high"}),
    ("timeout", {"chat": "hi", "timeout": -1}),
    ("timeout", {"chat": "hi", "timeout": 0}),
    ("timeout", {"chat": "hi", "timeout": "60"}),
    ("timeout", {"chat": "hi", "timeout": float("nan")}),
    ("deadline", {"chat": "hi", "deadline": float("inf")}),
    ("deadline", {"chat": "hi", "deadline": -0.5}),
    ("result_ttl", {"chat": "hi", "result_ttl": -5}),
    ("stream", {"chat": "hi", "stream": "yes"}),
    ("session", {"chat": "hi", "session": 17}),
    ("idempotency_key", {"chat": "hi", "idempotency_key": ""}),
    ("idempotency_key", {"chat": "hi", "idempotency_key": 17}),
    ("metadata", {"chat": "hi", "metadata": "user=me"}),
    ("metadata", {"chat": "hi", "metadata": {"me": object()}}),
    ("requires", {"chat": "hi", "requires": ["eu"]}),
    ("requires.gpus", {"chat": "hi", "requires": {"gpus": 2}}),
    ("requires.vram_gb", {"chat": "hi", "requires": {"vram_gb": -8}}),
    ("trace", {"chat": "hi", "trace": "00-abc"}),
    ("traceparent", {"chat": "hi", "trace": {"tracestate": "a=b"}}),
    ("options", {"chat": "hi", "options": "fast"}),
    ("tools", {"chat": "hi", "tools": "hammer"}),
    ("messages", {"chat": "hi", "messages": HELLO}),
    ("chat", {"chat": "hi", "options": {"stop": object()}}),
    ("chat", {"chat": "hi", "options": {5: 5}}),
    ("hedge", {"chat": "hi", "hedge": "yes"}),
    ("cache", {"chat": "hi", "cache": "yes"}),
    ("prefer", {"chat": "hi", "prefer": ["n1", 2]}),
]


@pytest.fixture(scope="module")
def deaf_client() -> Iterator[Client]:
    """A client that would notice at once if it had to send something: nobody listens there."""
    with Client("redis://127.0.0.1:1/0") as client:
        yield client


@pytest.mark.parametrize(
    ("field", "arguments"), BAD, ids=[f"{at}-{field}" for at, (field, _) in enumerate(BAD)]
)
def test_a_malformed_job_names_its_field(deaf_client: Client, field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob) as refused:
        deaf_client.submit(**{"model": "tiny", **arguments})
    assert refused.value.field == field
    assert field in str(refused.value)
    assert len(str(refused.value)) < 300, "the text must not quote the job"
    assert isinstance(refused.value, ValueError)


def test_what_a_job_may_require_is_told(deaf_client: Client) -> None:
    with pytest.raises(InvalidJob, match=r"^requires.gpus: is not known; known are vram_gb, labels, node$"):
        deaf_client.submit(chat="hi", model="tiny", requires={"gpus": 2})


def test_the_deaf_client_would_have_noticed(deaf_client: Client) -> None:
    with pytest.raises(BrokerUnavailable):
        deaf_client.submit(chat="hi", model="tiny")


def test_nothing_of_it_reaches_redis(redis_url: str) -> None:
    with Client(redis_url) as client, redis.Redis.from_url(redis_url) as raw:
        for _, arguments in BAD:
            with pytest.raises(InvalidJob):
                client.submit(**{"model": "tiny", **arguments})
        assert raw.dbsize() == 0
        assert [each for each in raw.client_list() if each["name"].startswith("sollol")] == []


@pytest.mark.parametrize("app", ["", "two words", "a" * 201])
def test_the_applications_name_is_checked_when_the_client_is_made(app: str) -> None:
    with pytest.raises(InvalidJob, match="app"):
        Client("redis://127.0.0.1:1/0", app=app)
