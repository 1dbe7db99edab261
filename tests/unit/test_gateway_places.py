"""A stream that is gone on with: what was cut off comes, and nothing twice, whatever the API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from sollol_broker.errors import InvalidJob
from sollol_broker.outcome import Routing
from sollol_client.answer import Answer, Delta
from sollol_client.gateway.anthropic_wire import MessageEvents
from sollol_client.gateway.framing import Framing
from sollol_client.gateway.openai_translate import chat_talk
from sollol_client.gateway.openai_wire import Completions
from sollol_client.gateway.places import MOST_PLACES, placed, places_of
from sollol_client.gateway.responses_wire import ResponseEvents

HELLO = [{"role": "user", "content": "hello"}]
ROUTING = Routing("n1", "n1.a", "ollama", 1, "generation", queue_wait_ms=2.0, run_ms=5.0)
ANSWER = Answer({"message": {"content": "ab"}, "done_reason": "stop", "eval_count": 2}, ROUTING)
CALL = {"id": "c1", "function": {"name": "f", "arguments": {"x": 1}}}
PIECES = [
    Delta.of({"thinking": "hm"}, "7-0"),
    Delta.of({"thinking": "!", "text": "a"}, "7-1"),
    Delta.of({"text": "b"}, "10-0"),
    Delta.of({"tool_calls": [CALL]}, "10-2"),
]
FRAMINGS: dict[str, Callable[[], Framing]] = {
    "chat": lambda: Completions(chat_talk({"model": "m", "messages": HELLO}), "job1").choice(0),
    "responses": lambda: ResponseEvents({"model": "m"}, "job1"),
    "messages": lambda: MessageEvents("m", "job1"),
}


@dataclass
class Stream:
    """As much of a Running as places look at."""

    after: str = ""
    is_detached: bool = True
    id: str = "job1"


def framed(framing: Framing, stream: Any) -> Framing:
    [made] = placed([framing], [stream])
    return made


def last_id(events: bytes) -> str:
    [found] = [line for line in events.decode().splitlines() if line.startswith("id: ")]
    assert found in events.decode().rstrip("\n").rpartition("\n\n")[2], "the last event has it"
    return found.removeprefix("id: ")


@pytest.mark.parametrize("api", FRAMINGS)
def test_the_rest_of_a_stream_is_what_was_cut_off(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    whole = framed(FRAMINGS[api](), Stream())
    parts = [whole.piece(piece) for piece in PIECES]
    end = whole.end(ANSWER)
    for seen in range(len(PIECES)):
        job_id, after = places_of(last_id(parts[seen]), 0)
        assert (job_id, after) == ("job1", PIECES[seen].entry_id)
        rest = framed(FRAMINGS[api](), Stream(after))
        assert [rest.piece(piece) for piece in PIECES] == [b""] * (seen + 1) + parts[seen + 1 :]
        assert rest.end(ANSWER) == end


@pytest.mark.parametrize("api", FRAMINGS)
def test_a_caller_that_cannot_come_back_gets_no_places(api: str) -> None:
    framing = FRAMINGS[api]()
    assert framed(framing, Stream(is_detached=False)) is framing


def test_an_event_of_several_choices_names_the_places_of_all() -> None:
    talk = chat_talk({"model": "m", "messages": HELLO, "n": 2, "stream": True})
    completions = Completions(talk, "a")
    streams: list[Any] = [Stream(id="a"), Stream(id="b", after="7-1")]
    first, second = placed([completions.choice(0), completions.choice(1)], streams)
    assert last_id(first.piece(PIECES[0])) == "a/7-0,b/7-1"
    assert not second.piece(PIECES[1])
    place = last_id(second.piece(PIECES[2]))
    assert [places_of(place, number) for number in (0, 1)] == [("a", "7-0"), ("b", "10-0")]


def test_too_many_choices_name_no_places() -> None:
    many = MOST_PLACES + 1
    completions = Completions(chat_talk({"model": "m", "messages": HELLO, "n": many}), "a")
    streams: list[Any] = [Stream() for _ in range(many)]
    first = placed([completions.choice(index) for index in range(many)], streams)[0]
    assert b"id: " not in first.piece(PIECES[0])


@pytest.mark.parametrize(
    "last", ["", "job1", "job1/", "/7-0", "job1/x", "job1/7-0/8-0", ",job1/7-0", "a/1-0," * 9]
)
def test_what_names_no_place_is_refused(last: str) -> None:
    with pytest.raises(InvalidJob, match="JOB/ENTRY"):
        places_of(last, 0)
    with pytest.raises(InvalidJob, match="JOB/ENTRY"):
        places_of("job1/7-0", 1)
