"""What one process keeps: the least recently used goes first, and nothing outlives its generation."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sollol_broker.errors import InvalidJob
from sollol_broker.outcome import Routing, pack_answer
from sollol_client.answer import check_answer
from sollol_client.cache import MAX_KEPT_BYTES, AnswerCache
from sollol_client.cache_face import CacheFace
from sollol_client.cache_key import CacheSettings


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def cache_of(clock: Clock | None = None, **settings: Any) -> AnswerCache:
    clock = clock or Clock()
    return AnswerCache("app", CacheSettings(**settings), clock=clock, wall=clock)


def key(cache: AnswerCache, text: str, model: str = "m") -> str:
    return cache.key_for("embed", model, {"input": text}, ())


def keep(cache: AnswerCache, text: str, data: bytes = b"data", model: str = "m") -> bool:
    return cache.keep(key(cache, text, model), model, f"job-{text}", data)


def kept(cache: AnswerCache, *texts: str, model: str = "m") -> list[str]:
    return [text for text in texts if cache.find(key(cache, text, model))]


def answer(text: str) -> bytes:
    routing = Routing("n1", "w1", "ollama", 1, "generation", 1.0, 2.0)
    return pack_answer({"message": {"role": "assistant", "content": text}}, routing)


def test_what_is_kept_is_found_and_counted() -> None:
    cache = cache_of()
    assert kept(cache, "a") == []
    assert keep(cache, "a", b"12345")
    found = cache.find(key(cache, "a"))
    assert found is not None
    assert (found.job_id, found.data, found.model) == ("job-a", b"12345", "m")
    assert kept(cache, "b") == []
    cache.count_shared()
    stats = cache.stats()
    assert (stats["hits"], stats["shared"], stats["misses"]) == (1, 1, 1)
    assert stats["hit_rate"] == pytest.approx(2 / 3)
    assert (stats["size"], stats["bytes"], stats["enabled"]) == (1, 5, True)


def test_a_new_cache_has_no_rate_yet() -> None:
    assert cache_of().stats()["hit_rate"] == 0.0


def test_the_least_recently_used_goes_first() -> None:
    cache = cache_of(max_size=2)
    keep(cache, "a")
    keep(cache, "b")
    assert kept(cache, "a") == ["a"]
    keep(cache, "c")
    assert kept(cache, "a", "b", "c") == ["a", "c"]
    assert cache.stats()["evictions"] == 1


def test_bytes_are_bounded_as_well() -> None:
    cache = cache_of(max_bytes=10)
    keep(cache, "a", b"1234")
    keep(cache, "b", b"1234")
    keep(cache, "b", b"123456")
    assert cache.stats()["bytes"] == 10
    keep(cache, "c", b"12345")
    assert kept(cache, "a", "b", "c") == ["c"]
    assert not keep(cache, "d", b"12345678901")
    assert cache.stats()["bytes"] == 5


def test_large_answers_are_left_to_redis() -> None:
    cache = cache_of()
    assert keep(cache, "a", bytes(MAX_KEPT_BYTES))
    assert not keep(cache, "b", bytes(MAX_KEPT_BYTES + 1))
    assert not keep(cache_of(max_size=0), "a")


def test_an_answer_runs_out() -> None:
    clock = Clock()
    cache = cache_of(clock, ttl_seconds=60)
    keep(cache, "a")
    clock.now += 59.9
    assert kept(cache, "a") == ["a"]
    clock.now += 0.1
    assert kept(cache, "a") == []
    assert cache.stats()["bytes"] == 0
    assert not keep(cache_of(ttl_seconds=0), "a")


def test_a_new_generation_of_a_model_drops_its_answers_alone() -> None:
    cache = cache_of()
    keep(cache, "a")
    keep(cache, "a", model="other")
    old = key(cache, "a")
    cache.note_generations({"m": 1})
    assert kept(cache, "a") == []
    assert kept(cache, "a", model="other") == ["a"]
    assert cache.stats()["size"] == 1
    assert not cache.keep(old, "m", "job", b"an answer that was asked for before")
    assert keep(cache, "a")


def test_a_new_generation_of_the_scope_drops_all_of_it() -> None:
    cache = cache_of()
    keep(cache, "a")
    cache.note_generations({"app:another": 5})
    assert kept(cache, "a") == ["a"]
    cache.note_generation("app:app", 1)
    assert cache.stats()["size"] == 0


def test_a_redis_that_forgot_its_generations_brings_nothing_old_back() -> None:
    cache = cache_of()
    cache.note_generations({"m": 1})
    keep(cache, "a")
    cache.note_generations({})
    cache.note_generations({"m": 1})
    assert kept(cache, "a") == []


def test_clear_and_forget() -> None:
    cache = cache_of()
    keep(cache, "a")
    keep(cache, "b", model="Strange Model")
    assert cache.keys_of("m") == {key(cache, "a")}
    cache.forget(key(cache, "a"))
    assert kept(cache, "a") == []
    cache.clear()
    assert (cache.stats()["size"], cache.stats()["bytes"]) == (0, 0)


def test_many_threads_leave_the_sums_right() -> None:
    cache = cache_of(max_size=20)

    def work(name: int) -> None:
        for number in range(300):
            keep(cache, str((name + number) % 40), b"12345")
            cache.find(key(cache, str(number % 40)))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = cache.stats()
    assert (stats["size"], stats["bytes"]) == (20, 100)
    assert stats["hits"] + stats["misses"] == 1200


# --- exports


class Face(CacheFace):
    def __init__(self, cache: AnswerCache) -> None:
        self.cache = cache

    def _answer_cache(self) -> AnswerCache:
        return self.cache


def test_an_export_serves_in_another_process(tmp_path: Path) -> None:
    clock = Clock()
    first, second = cache_of(clock, ttl_seconds=60), cache_of(clock)
    keep(first, "old", answer("old"))
    clock.now += 59
    keep(first, "new", answer("new"))
    second.note_generations({"m": 7})
    path = tmp_path / "answers.json"
    exported = Face(first).export_cache(path)
    assert json.loads(path.read_text()) == exported
    assert path.stat().st_mode & 0o777 == 0o600
    clock.now += 2
    assert Face(second).import_cache(path) == 1
    assert kept(second, "old", "new") == ["new"]
    found = second.find(key(second, "new"))
    assert found is not None
    assert found.data == answer("new")
    clock.now += 58
    assert kept(second, "new") == []
    assert Face(cache_of(clock)).import_cache(exported) == 0


@pytest.mark.parametrize(
    "spoil",
    [
        {"key": "short"},
        {"key": "z" * 40},
        {"key": None},
        {"model": ""},
        {"model": 5},
        {"job_id": None},
        {"expires_at": "soon"},
        {"data": "no base64!"},
        {"data": ""},
        {"data": "gA=="},  # an empty map
        {"data": "wA=="},  # nil
    ],
)
def test_an_export_with_one_bad_entry_is_refused_whole(spoil: dict[str, Any]) -> None:
    first, second = cache_of(), cache_of()
    keep(first, "a", answer("a"))
    keep(first, "b", answer("b"))
    exported = first.exported()
    exported["entries"][1].update(spoil)
    with pytest.raises(InvalidJob) as refused:
        second.take_in(exported, check_answer)
    assert len(str(refused.value)) < 200
    assert second.stats()["size"] == 0


@pytest.mark.parametrize("nonsense", [{}, {"version": 2, "entries": []}, {"version": 1, "entries": None}, []])
def test_what_is_no_export_is_refused(nonsense: Any, tmp_path: Path) -> None:
    path = tmp_path / "nonsense.json"
    path.write_text(json.dumps(nonsense))
    with pytest.raises(InvalidJob, match="import_cache"):
        Face(cache_of()).import_cache(path)
    path.write_text("{")
    with pytest.raises(InvalidJob, match="no JSON"):
        Face(cache_of()).import_cache(path)
