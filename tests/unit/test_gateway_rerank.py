"""Rankings in and out: what a body asks for, what is refused, how answers look."""

from __future__ import annotations

from typing import Any

import pytest

from sollol_broker.envelope import Envelope
from sollol_broker.errors import InvalidJob
from sollol_broker.outcome import Routing
from sollol_broker.words import JobKind
from sollol_client.answer import Answer
from sollol_client.gateway.refusals import Refused
from sollol_client.gateway.rerank import rerank_asked, rerank_reply, tei_reply
from sollol_client.request import build_request
from sollol_worker_agent.backends.openai_compatible import model_info
from sollol_worker_agent.backends.openai_wire import ranking

ROUTING = Routing("n1", "n1.a", "llama-server", 1, "reranking", queue_wait_ms=2.0, run_ms=5.0)
BODY: dict[str, Any] = {"model": "m", "query": "q", "documents": ["a", "b"]}
RESULTS = [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": -2.0}]


@pytest.mark.parametrize(
    ("more", "becomes"),
    [
        ({}, {"documents": ["a", "b"]}),
        ({"documents": [{"text": "a"}, "b"]}, {"documents": ["a", "b"]}),
        ({"documents": None, "texts": ["a", "b"], "return_text": True}, {"documents": ["a", "b"]}),
        ({"top_n": 1, "return_documents": True}, {"documents": ["a", "b"], "top_n": 1}),
        ({"truncate_prompt_tokens": 9}, {"documents": ["a", "b"], "truncate_prompt_tokens": 9}),
    ],
)
def test_what_is_asked_for(more: dict[str, Any], becomes: dict[str, Any]) -> None:
    asked = rerank_asked({**BODY, **more})
    assert (asked.kind, asked.model, asked.submit) == (JobKind.RERANK, "m", {"query": "q"})
    assert asked.payload == becomes


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"model": None}, "model"),
        ({"query": None}, "query"),
        ({"query": 1}, "query"),
        ({"documents": None}, "documents"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a", 1]}, "documents"),
        ({"documents": [{"title": "a"}]}, "documents"),
        ({"documents": None, "texts": [1]}, "texts"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": "1"}, "top_n"),
    ],
)
def test_what_makes_no_sense_is_refused(more: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as refused:
        rerank_asked({**BODY, **more})
    assert (refused.value.status, refused.value.field) == (400, field)


def test_how_an_answer_looks() -> None:
    answer = Answer({"model": "m", "results": RESULTS, "prompt_eval_count": 7}, ROUTING)
    plain = rerank_reply(BODY, ["a", "b"], answer)
    assert plain["results"] == RESULTS
    assert plain["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    shown = rerank_reply({**BODY, "return_documents": True}, ["a", "b"], answer)["results"]
    assert [each["document"] for each in shown] == [{"text": "b"}, {"text": "a"}]
    assert tei_reply({"return_text": True}, ["a", "b"], answer) == [
        {"index": 1, "score": 0.5, "text": "b"},
        {"index": 0, "score": -2.0, "text": "a"},
    ]


@pytest.mark.parametrize(
    ("answer", "most", "found"),
    [
        ({"results": RESULTS[::-1]}, None, [(1, 0.5), (0, -2.0)]),
        ({"results": RESULTS}, 1, [(1, 0.5)]),
        ({"results": RESULTS[:1]}, 1, [(1, 0.5)]),
        ([{"index": 0, "score": 1}, {"index": 1, "score": 2.5}], None, [(1, 2.5), (0, 1.0)]),
    ],
)
def test_what_servers_answer(answer: Any, most: int | None, found: list[tuple[int, float]]) -> None:
    assert ranking(answer, 2, most) == found


@pytest.mark.parametrize(
    "answer",
    [
        {"error": "Unexpected endpoint"},
        {"results": RESULTS[:1]},
        {"results": [RESULTS[0], RESULTS[0]]},
        {"results": [{"index": 2, "relevance_score": 1}, RESULTS[1]]},
        {"results": [{"index": 1, "relevance_score": None}, RESULTS[1]]},
        {"results": [{"index": 1, "relevance_score": float("nan")}, RESULTS[1]]},
        {"results": [{"index": 1}, RESULTS[1]]},
    ],
)
def test_an_answer_without_all_scores_is_none(answer: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        ranking(answer, 2, None)


def test_a_job_requires_a_worker_that_can() -> None:
    request = build_request(
        "app", "inbox", model="M:latest", rerank=("a", "b"), query="q", requires={"labels": ["eu"]}, top_n=1
    )
    assert request.requires is not None
    assert request.requires.labels == ["eu", "rerank:m"]
    assert request.submission.needs == request.requires.to_bytes()
    assert (request.submission.task, request.submission.prompt_chars) == ("reranking", 4)
    envelope = Envelope.from_bytes(request.submission.envelope)
    assert (envelope.kind, envelope.payload) == (
        "rerank",
        {"documents": ["a", "b"], "query": "q", "top_n": 1},
    )


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"rerank": []}, "rerank"),
        ({"rerank": "a"}, "rerank"),
        ({"rerank": ["a", 1]}, "rerank"),
        ({"rerank": ["a"], "query": None}, "query"),
        ({"rerank": ["a"], "documents": ["b"]}, "documents"),
        ({"chat": "a"}, "query"),
        ({"rerank": ["a"], "embed": "a"}, "embed"),
    ],
)
def test_a_job_that_makes_no_sense_names_the_argument(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        build_request("app", "inbox", model="m", **{"query": "q", **arguments})
    assert refused.value.field == field


def test_a_chat_may_bring_documents_for_servers_that_know_them() -> None:
    request = build_request("app", "inbox", model="m", chat="hello", documents=[{"title": "a"}])
    assert Envelope.from_bytes(request.submission.envelope).payload["documents"] == [{"title": "a"}]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BAAI/bge-reranker-v2-m3", "rerank"),
        ("cross-encoder/ms-marco-MiniLM-L-6-v2", "rerank"),
        ("BAAI/bge-m3", "embed"),
        ("Qwen/Qwen3-8B", "chat"),
    ],
)
def test_what_an_openai_compatible_server_s_model_is_for_is_guessed(name: str, kind: str) -> None:
    assert kind in model_info({"id": name}).kinds
