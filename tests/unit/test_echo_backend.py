"""The benchmark's backend without a model."""

from __future__ import annotations

import pytest

from sollol_broker.errors import BackendError
from sollol_worker_agent.backends import EchoBackend, End, Piece, Timeouts
from sollol_worker_agent.backends.echo import EchoSettings, parse_echo_url

T = Timeouts()


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("echo://", EchoSettings()),
        (
            "echo://?slots=2&delay_ms=5&tokens=3&token_ms=0.5&models=a,b-embed",
            EchoSettings(2, 5.0, 3, 0.5, ("a", "b-embed")),
        ),
    ],
)
def test_settings(url: str, settings: EchoSettings) -> None:
    assert parse_echo_url(url) == settings


@pytest.mark.parametrize("url", ["http://x", "echo://?slots=many", "echo://?colour=red"])
def test_a_wrong_url_is_told_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"echo:|many"):
        EchoBackend(url)


async def test_it_says_the_last_message_again() -> None:
    messages = [{"role": "user", "content": "first"}, {"role": "user", "content": "last one"}]
    piece, end = [said async for said in EchoBackend().chat("echo", {"messages": messages}, T)]
    assert piece == Piece("last one")
    assert isinstance(end, End)
    assert end.fields["done_reason"] == "stop"
    assert end.fields["eval_count"] == 1


async def test_it_speaks_in_tokens_with_pauses_between_them() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    backend = EchoBackend("echo://?tokens=3&token_ms=2&delay_ms=7", sleep=sleep)
    *pieces, _ = [said async for said in backend.generate("echo", {"prompt": "a b"}, T)]
    assert pieces == [Piece("a "), Piece("b "), Piece("a ")]
    assert slept == [0.007, 0.002, 0.002]


async def test_one_text_has_one_vector() -> None:
    backend = EchoBackend()
    one = await backend.embed("echo-embed", {"input": "a"}, T)
    two = await backend.embed("echo-embed", {"input": ["a", "b"]}, T)
    assert two.vectors[0] == one.vectors[0] != two.vectors[1]
    assert sum(value * value for value in one.vectors[0]) == pytest.approx(1.0)


async def test_what_it_tells_about_itself() -> None:
    backend = EchoBackend("echo://?slots=7")
    assert {model.name: set(model.kinds) for model in await backend.models()} == {
        "echo": {"chat", "generate"},
        "echo-embed": {"embed"},
    }
    assert await backend.loaded() == {"echo", "echo-embed"}
    assert await backend.slots() == 7


async def test_another_model_is_not_found() -> None:
    with pytest.raises(BackendError) as failed:
        await EchoBackend().embed("other", {"input": "a"}, T)
    assert (failed.value.status, failed.value.retryable) == (404, True)
