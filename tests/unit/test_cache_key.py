"""Which requests share an answer: the same question asked in another way, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.errors import InvalidJob
from sollol_client.cache import AnswerCache
from sollol_client.cache_key import CacheSettings, cache_key, is_cacheable, scope_field
from sollol_client.request import build_request

COLD = {"temperature": 0}
CHAT: dict[str, Any] = {
    "model": "m",
    "chat": [{"role": "user", "content": "hi", "images": [b"a picture"]}],
    "options": {"temperature": 0, "seed": 1},
}


def key_of(app: str = "app", scope: str = "app", **changed: Any) -> str:
    cache = AnswerCache(app, CacheSettings(scope=scope))
    return build_request(app, "inbox", answer_cache=cache, **{**CHAT, **changed}).submission.cache_key


@pytest.mark.parametrize(
    ("kind", "payload", "shares"),
    [
        ("embed", {"input": "a"}, True),
        ("chat", {"options": {"temperature": 0}}, True),
        ("generate", {"options": {"temperature": 0.0}}, True),
        ("rerank", {}, True),
        ("chat", {}, False),
        ("chat", {"options": {}}, False),
        ("chat", {"options": {"temperature": 0.1}}, False),
        ("chat", {"options": {"temperature": False}}, False),
        ("chat", {"options": {"temperature": "0"}}, False),
        ("chat", {"options": {"seed": 1}}, False),
    ],
)
def test_only_what_is_answered_alike_each_time_is_shared_unasked(
    kind: str, payload: dict[str, Any], shares: bool
) -> None:
    assert is_cacheable(kind, payload, None, enabled=True) is shares
    assert not is_cacheable(kind, payload, None, enabled=False)
    for enabled in (True, False):
        assert is_cacheable(kind, payload, True, enabled=enabled)
        assert not is_cacheable(kind, payload, False, enabled=enabled)


@pytest.mark.parametrize(
    "changed",
    [
        {"options": {"seed": 1, "temperature": 0}},
        {"keep_alive": "10m"},
        {"metadata": {"user": "me"}},
        {"session": "s"},
        {"stream": True},
        {"priority": 9},
        {"deadline": 5},
        {"timeout": 5},
        {"model": "M:latest"},
        {"idempotency_key": "a", "cache": True},
        {"chat": [{"images": ["YSBwaWN0dXJl"], "content": "hi", "role": "user"}]},
    ],
)
def test_the_same_question_has_the_same_key(changed: dict[str, Any]) -> None:
    assert key_of(**changed) == key_of() != ""


def test_every_other_question_has_a_key_of_its_own() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    others: list[dict[str, Any]] = [
        {},
        {"model": "m2"},
        {"chat": "hi"},
        {"chat": "Hi"},
        {"chat": [{"role": "user", "content": "hi", "images": [b"another"]}]},
        {"chat": None, "generate": "hi"},
        {"chat": None, "embed": "hi"},
        {"chat": None, "embed": ["hi"]},
        {"options": {"temperature": 0}},
        {"options": {"temperature": 0, "seed": 2}},
        {"tools": [tool]},
        {"format": "json"},
        {"think": True},
        {"app": "another"},
        {"scope": "shared"},
        {"requires": {"labels": ["eu"]}},
        {"requires": {"labels": ["us"]}},
    ]
    keys = [key_of(**changed) for changed in others]
    assert len(set(keys)) == len(keys)
    assert all(keys)


def test_apps_share_only_where_both_say_so() -> None:
    assert key_of(app="a", scope="shared") == key_of(app="b", scope="shared")
    assert key_of(app="a") != key_of(app="b")
    assert scope_field("a", "app") != scope_field("b", "app")
    assert scope_field("a", "shared") == scope_field("b", "shared")


def test_a_job_with_an_id_of_its_own_shares_only_when_asked() -> None:
    assert key_of(idempotency_key="a") == ""
    assert key_of(cache=False) == ""
    assert key_of(options={}) == ""
    assert key_of(options={}, cache=True) != ""


def test_the_key_tells_nothing_of_the_question() -> None:
    key = key_of(chat="a secret")
    digits, _, generation = key.partition(".")
    assert len(digits) == 40
    assert int(digits, 16) >= 0
    assert generation == "0.0"


_FIELDS = st.dictionaries(st.sampled_from("abcdef"), st.integers(-9, 9), max_size=4)


@given(st.dictionaries(st.sampled_from("abcdef"), _FIELDS, max_size=4))
def test_the_order_of_fields_does_not_matter(fields: dict[str, Any]) -> None:
    def turned(value: Any) -> Any:
        return {k: turned(v) for k, v in reversed(value.items())} if isinstance(value, dict) else value

    keys = {cache_key("a", "chat", "m", each, (), "app") for each in (fields, turned(fields))}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("cache", {"enabled": 1}),
        ("cache_scope", {"scope": "world"}),
        ("cache_max_size", {"max_size": -1}),
        ("cache_max_bytes", {"max_bytes": "64M"}),
        ("cache_ttl_seconds", {"ttl_seconds": float("nan")}),
    ],
)
def test_settings_that_make_no_sense_are_named(field: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob) as refused:
        CacheSettings(**settings)
    assert refused.value.field == field
