"""Lines of OpenAI batches: what they ask of the fabric, what is wrong with them, and what is told of each."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from sollol_broker.errors import BackendError, JobCancelled
from sollol_broker.outcome import Routing
from sollol_client.answer import Answer
from sollol_client.batch_item import BatchItem
from sollol_client.gateway.openai_batch_lines import Line, LineFault, Reader, told_line
from sollol_client.gateway.openai_batch_record import OpenAIBatch, metadata_of

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
ROUTING = Routing("n", "w", "b", 1, "generation", 1.0, 2.0)


def _text(body: Any, url: str = CHAT, **more: Any) -> bytes:
    return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body, **more}).encode()


def _line(body: Any, url: str = CHAT) -> Line:
    line = Reader(url).read(_text(body, url))
    assert line is not None
    return line


def test_a_chat_is_an_item_with_options_of_its_own() -> None:
    body = {"model": "M", "messages": HELLO, "max_tokens": 7, "seed": 3, "n": 2, "priority": 9, "x": 1}
    items = _line(body).items()
    assert [item["messages"] for item in items] == [HELLO, HELLO]
    assert [item["options"] for item in items] == [
        {"num_predict": 7, "seed": 3},
        {"num_predict": 7, "seed": 4},
    ]
    assert items[0]["x"] == 1, "what is not known goes on as it is"
    assert "priority" not in items[0], "it is the batch's"


def test_completions_and_embeddings() -> None:
    (item,) = _line({"model": "m", "prompt": "hi", "max_tokens": 1}, "/v1/completions").items()
    assert item == {"prompt": "hi", "raw": True, "options": {"num_predict": 1}}
    line = _line({"model": "m", "input": ["a", "b"], "dimensions": 8}, "/v1/embeddings")
    assert (line.items(), line.size, line.shared) == (["a", "b"], 2, {"dimensions": 8})


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        (b"{secret-canary", "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b'{"x": NaN}', "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (_text({}, custom_id=None), "invalid_custom_id", "custom_id"),
        (_text({}, custom_id="x" * 600), "invalid_custom_id", "custom_id"),
        (_text({}, method="GET"), "invalid_method", "method"),
        (_text({}, url="/v1/embeddings"), "invalid_url", "url"),
        (_text([]), "invalid_request", "body"),
        (_text({"model": "m", "messages": HELLO, "stream": True}), "invalid_request", "body.stream"),
        (_text({"messages": HELLO}), "invalid_request", "body.model"),
        (_text({"model": "m", "messages": HELLO, "top_p": 7}), "invalid_request", "body.top_p"),
    ],
)
def test_a_line_at_fault(text: bytes, code: str, param: str | None) -> None:
    reader = Reader(CHAT)
    assert reader.read(b" \t") is None
    with pytest.raises(LineFault) as fault:
        reader.read(text)
    told = fault.value.as_dict()
    assert (told["code"], told["param"], told["line"]) == (code, param, 2)
    assert "canary" not in told["message"]


def test_lines_have_to_fit_each_other() -> None:
    reader = Reader("/v1/embeddings")
    first = {"model": "m:latest", "input": "x", "dimensions": 8}
    reader.read(_text(first, "/v1/embeddings"))
    reader.read(_text({**first, "model": "M"}, "/v1/embeddings", custom_id="b"))
    for body, more, code in (
        ({**first, "model": "n"}, {"custom_id": "c"}, "mismatched_model"),
        ({**first, "dimensions": 9}, {"custom_id": "d"}, "mismatched_options"),
        (first, {}, "duplicate_custom_id"),
    ):
        with pytest.raises(LineFault) as fault:
            reader.read(_text(body, "/v1/embeddings", **more))
        assert fault.value.code == code


def test_an_answer_is_told_as_it_would_have_been_at_its_endpoint() -> None:
    said = {"message": {"role": "assistant", "content": "Hi."}, "done_reason": "length", "eval_count": 2}
    items = [BatchItem(0, answer=Answer(said, ROUTING))]
    text, is_error = told_line(_line({"model": "m", "messages": HELLO}), items, "batch_x", "completed")
    told = json.loads(text)
    assert not is_error
    assert (told["custom_id"], told["error"], told["response"]["status_code"]) == ("a", None, 200)
    body = told["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["content"] == "Hi."
    assert body["choices"][0]["finish_reason"] == "length"
    line = _line({"model": "m", "input": ["x"], "encoding_format": "base64"}, "/v1/embeddings")
    vector = struct.pack("<2f", 1.5, 2.5)
    item = BatchItem(0, vector_bytes=vector, prompt_tokens=7, routing=ROUTING)
    text, _ = told_line(line, [item], "batch_x", "completed")
    body = json.loads(text)["response"]["body"]
    (data,) = body["data"]
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert base64.b64decode(data["embedding"]) == vector


def test_errors_are_told() -> None:
    line = _line({"model": "m", "messages": HELLO, "n": 2})
    good = BatchItem(0, answer=Answer({"message": {"content": ""}}, ROUTING))
    failed = BatchItem(1, error=BackendError("x", status=400, said="too long"))
    text, is_error = told_line(line, [good, failed], "batch_x", "completed")
    told = json.loads(text)
    assert is_error
    assert told["response"]["status_code"] == 400
    assert told["response"]["body"]["error"]["message"] == "too long"
    for ended in ("cancelled", "expired"):
        item = BatchItem(0, error=JobCancelled("x"))
        told = json.loads(told_line(line, [item, item], "batch_x", ended)[0])
        assert (told["response"], told["error"]["code"]) == (None, f"batch_{ended}")


def test_a_record_comes_back_as_it_was() -> None:
    record = OpenAIBatch("batch_x", "app", CHAT, "file-y", "m", 1.0, 2.0, errors=({"code": "x"},))
    record = record.came_to("in_progress", 1.5, lines=4)
    assert OpenAIBatch.from_dict({**record.as_dict(), "of a later release": 1}) == record
    told = record.as_object(is_cancelled=True)
    assert (told["status"], told["in_progress_at"], told["completed_at"]) == ("cancelling", 1, None)
    assert told["request_counts"] == {"total": 4, "completed": 0, "failed": 0}


@pytest.mark.parametrize(
    "given", [[], {"a": 1}, {"a" * 65: "x"}, {"a": "x" * 513}, dict.fromkeys("abcdefghijklmnopq", "")]
)
def test_metadata_that_openai_would_not_take(given: Any) -> None:
    with pytest.raises(ValueError, match="needed"):
        metadata_of(given)
