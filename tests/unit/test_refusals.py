"""What a server's refusal says, and who may do better."""

from __future__ import annotations

import json

import pytest

from sollol_worker_agent.backends.refusals import is_retryable, meant, most_tokens, text_of


@pytest.mark.parametrize(
    ("status", "text", "retryable"),
    [
        (400, "messages is required", False),
        (401, "invalid key", True),
        (404, "model 'nope' not found", True),
        (404, "The model `nope` does not exist.", True),
        (404, "404 page not found", False),
        (408, "", True),
        (413, "too large", False),
        (422, "bad field", False),
        (429, "slow down", True),
        (500, "llama-server process has terminated", True),
        (500, 'option "temperature" must be of type float32', False),
        (500, 'invalid format: "xml"; expected "json"', False),
        (500, "input (3002 tokens) is too large to process", False),
        (501, "This server does not support embeddings", True),
        (503, "server busy", True),
    ],
)
def test_who_may_do_better(status: int, text: str, retryable: bool) -> None:
    assert is_retryable(status, text) is retryable


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (500, "input (3002 tokens) is too large to process. increase the physical batch size", 400),
        (500, "image input is not supported - hint: if this is unexpected, …", 400),
        (500, 'option "temperature" must be of type float32', 500),
        (500, "out of memory", 500),
        (503, "input is not supported", 503),
    ],
)
def test_what_is_the_requests_fault_is_told_so(status: int, text: str, told: int) -> None:
    assert meant(status, text) == told


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("input (3002 tokens) is too large to process. increase the … (current batch size: 512)", 512),
        ("request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it", 4096),
        ("image input is not supported", None),
    ],
)
def test_limits_are_read_from_the_refusal(text: str, most: int | None) -> None:
    assert most_tokens(text) == most


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":"model is required"}', "model is required"),
        (b'{"error":{"code":400,"message":"too long","type":"x"}}', "too long"),
        (b'{"object":"error","message":"no","code":400}', "no"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"loc":["body","n"],"msg":"not an int","input":"secret"}]}', "body.n: not an int"),
        (b"404 page not found", "404 page not found"),
        (b"<html>\n<b>oops</b></html>", "<html> <b>oops</b></html>"),
        (b"{}", "no reason given"),
        (b"", ""),
    ],
)
def test_the_servers_words(body: bytes, text: str) -> None:
    assert text_of(body, {}) == text


def test_a_long_text_is_cut() -> None:
    assert len(text_of(b"x" * 5000, {})) == 300


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "my secret diary"},
        {"messages": [{"role": "user", "content": "my secret diary"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "my secret diary"}]}]},
        {"input": ["other", "my secret diary"]},
        {"system": "first line\nmy secret diary"},
    ],
)
def test_a_prompt_never_comes_back_in_an_error(request_: dict[str, object]) -> None:
    body = json.dumps({"error": "cannot parse 'my secret diary' here"}).encode()
    assert text_of(body, request_) == "cannot parse '[…]' here"
