"""Who may do what with an API key: a table, and what a record and a secret are like."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.api_keys import ApiKey, KeyRole, Verdict, is_of, judge, mint, over_quota
from sollol_broker.codec import pack
from sollol_broker.errors import InvalidJob, QuotaExceeded

NOW = 1_000_000.0
SECRET, APP = mint("team-a", KeyRole.APP, now=NOW, models=["Llama*", "phi3:latest"], most_priority=6)
VIEWER, ADMIN = replace(APP, role=KeyRole.VIEWER), replace(APP, role=KeyRole.ADMIN)
DAY = 86_400.0


@pytest.mark.parametrize(
    ("key", "needed", "model", "status"),
    [
        (None, KeyRole.VIEWER, "", 401),
        (replace(APP, revoked=NOW - 1), KeyRole.VIEWER, "", 401),
        (replace(APP, expires=NOW), KeyRole.APP, "llama3", 401),
        (replace(APP, expires=NOW + 1), KeyRole.APP, "llama3", 200),
        (VIEWER, KeyRole.VIEWER, "", 200),
        (VIEWER, KeyRole.APP, "llama3", 403),
        (VIEWER, KeyRole.ADMIN, "", 403),
        (APP, KeyRole.VIEWER, "", 200),
        (APP, KeyRole.APP, "", 200),
        (APP, KeyRole.ADMIN, "", 403),
        (ADMIN, KeyRole.ADMIN, "", 200),
        (ADMIN, KeyRole.APP, "phi3", 200),
        (APP, KeyRole.APP, "llama3", 200),
        (APP, KeyRole.APP, "LLAMA3:latest", 200),
        (APP, KeyRole.APP, "phi3", 200),
        (APP, KeyRole.APP, "phi3:8b", 404),
        (APP, KeyRole.APP, "my-llama", 404),
        (APP, KeyRole.APP, "two words", 404),
        (APP, KeyRole.APP, "llama3\r\nx", 404),
        (VIEWER, KeyRole.APP, "phi4", 403),  # the role is told first: models are not to be tried
        (replace(APP, models=()), KeyRole.APP, "anything", 200),
    ],
)
def test_who_may_do_what(key: ApiKey | None, needed: KeyRole, model: str, status: int) -> None:
    verdict = judge(key, needed, now=NOW, model=model)
    assert (verdict.status, verdict.is_allowed) == (status, status == 200)
    assert bool(verdict.why) == (status != 200)
    assert verdict.app == ("team-a" if status == 200 else "")


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (5, 5), (6, 6), (7, 6), (10, 6)])
def test_a_priority_is_lowered_to_the_keys(asked: int, given: int) -> None:
    assert judge(APP, KeyRole.APP, now=NOW, priority=asked).priority == given


def test_a_model_of_others_reads_like_one_that_nobody_has() -> None:
    refused = judge(APP, KeyRole.APP, now=NOW, model="secret-model")
    assert refused == Verdict(404, "model 'secret-model' is not found")


def test_a_quota_that_is_used_up() -> None:
    verdict = over_quota(QuotaExceeded("too many", retry_after=2.5), "team-a")
    assert (verdict.status, verdict.retry_after, verdict.app) == (429, 2.5, "team-a")
    assert not verdict.is_allowed


def test_a_new_key() -> None:
    assert SECRET.startswith("sollol_")
    assert len(SECRET) == len("sollol_") + 43  # 32 bytes
    assert hashlib.sha256(SECRET.encode()).hexdigest() == APP.digest
    assert SECRET not in repr(APP)
    assert SECRET[7:].encode() not in APP.to_bytes()
    assert (APP.app, APP.models, APP.expires) == ("team-a", ("llama*", "phi3"), 0.0)
    assert mint("a", KeyRole.APP, now=NOW)[0] != mint("a", KeyRole.APP, now=NOW)[0]
    assert mint("a", KeyRole.APP, now=NOW, app="b", seconds=DAY)[1].expires == NOW + DAY


def test_a_record_is_of_its_own_secret_only() -> None:
    assert is_of(APP, SECRET)
    for other in ("", SECRET[:-1], SECRET + "x", SECRET.lower(), APP.digest, "\udcff"):
        assert not is_of(APP, other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "two words"},
        {"app": "a\nb"},
        {"models": ["a b"]},
        {"models": ["m"] * 101},
        {"most_priority": 11},
        {"seconds": 0},
        {"seconds": -1.0},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"name": "a", "role": KeyRole.APP, "now": NOW, **wrong}
    with pytest.raises(InvalidJob):
        mint(**arguments)  # type: ignore[arg-type]  # on purpose


def test_a_record_comes_back_whole() -> None:
    assert ApiKey.from_bytes(APP.to_bytes()) == APP


@given(st.one_of(st.binary(max_size=60), st.dictionaries(st.text(max_size=9), st.integers(-9, 9)).map(pack)))
def test_a_malformed_record_is_no_key(data: bytes) -> None:
    assert ApiKey.from_bytes(data) is None
