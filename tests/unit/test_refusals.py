"""What a server's refusal says, and who may do better."""

from __future__ import annotations

import json

import pytest

from sollol_worker_agent.backends.refusals import is_retryable, text_of


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
