"""The one reader behind all browsers: who follows the same look shares a read, and all reads keep to the budget."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from sollol_broker.errors import BrokerUnavailable
from sollol_broker.portal import Portal
from sollol_coordinator.page.hub import LONGEST_SECONDS, RATE, Hub, free_again


class Looks:
    """Counts how often it is read, and what that would cost."""

    def __init__(self, seconds: float = 0.001) -> None:
        self.reads: list[tuple[str, dict[str, str]]] = []
        self.failing = False
        self._seconds = seconds

    def seconds(self, name: str) -> float:
        return self._seconds

    async def look(self, name: str, params: Mapping[str, str]) -> dict[str, Any]:
        self.reads.append((name, dict(params)))
        if self.failing:
            raise BrokerUnavailable("Redis is away")
        return {
            "number": len(self.reads),
            **({"load": float("nan"), "😀": [float("-inf")]} if name == "odd" else {}),
        }

    def spent(self) -> int:
        return len(self.reads)


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def hub(looks: Looks) -> Iterator[Hub]:
    portal = Portal("hub")
    hub = Hub(looks, portal)
    hub.start()
    yield hub
    hub.close()
    portal.close()


def test_twenty_followers_of_one_look_cost_one_read(hub: Hub) -> None:
    looks = hub.looks = Looks(seconds=600)
    all_here, seen = threading.Barrier(20), []

    def follow() -> None:
        with hub.follow("overview", ()) as following:
            all_here.wait(30)
            news = following.next(30)
            assert news is not None
            seen.append(json.loads(news[1])["number"])

    threads = [threading.Thread(target=follow) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert seen == [1] * 20
    assert len(looks.reads) == 1


def test_nobody_looks_and_nothing_is_read(looks: Looks, hub: Hub) -> None:
    with hub.follow("overview", ()) as following:
        assert following.next(20) is not None
    hub.ask("other", ())  # the reader goes on to this, and leaves the first alone
    reads = len([name for name, _ in looks.reads if name == "overview"])
    hub.ask("third", ())
    assert len([name for name, _ in looks.reads if name == "overview"]) == reads


def test_what_is_expected_is_read_before_anybody_follows_it_and_once(hub: Hub) -> None:
    looks = hub.looks = Looks(seconds=600)
    hub.expect("overview", ())
    hub.ask("other", ())  # the reader has come to this after what was expected
    assert [name for name, _ in looks.reads] == ["overview", "other"]
    hub.expect("overview", ())
    hub.ask("third", ())
    assert [name for name, _ in looks.reads] == ["overview", "other", "third"]


def test_parameters_make_another_look(hub: Hub) -> None:
    looks = hub.looks = Looks(seconds=600)
    kind, text = hub.ask("jobs", (("state", "dead"),))
    assert (kind, json.loads(text)) == ("look", {"number": 1})
    assert looks.reads[0] == ("jobs", {"state": "dead"})


def test_a_number_that_json_has_not_blinds_no_browser(hub: Hub) -> None:
    _, text = hub.ask("odd", ())
    told = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told == {"number": 1, "load": "NaN", "😀": ["-Infinity"]}


def test_who_asks_a_moment_later_gets_the_same(hub: Hub) -> None:
    slow = Looks(seconds=60)
    hub.looks = slow
    assert hub.ask("overview", ()) == hub.ask("overview", ())
    assert len(slow.reads) == 1


def test_what_was_read_before_a_change_is_no_answer_after_it(hub: Hub) -> None:
    looks = hub.looks = Looks(seconds=600)
    with hub.follow("jobs", ()) as following:
        assert following.next(20) is not None
        hub.renew()
        assert json.loads(hub.ask("jobs", ())[1]) == {"number": 2}
        assert following.next(20) is not None, "nor has who follows it to wait"
    assert len(looks.reads) == 2


def test_a_redis_that_is_away_is_told_and_comes_back(looks: Looks, hub: Hub) -> None:
    looks.failing = True
    with hub.follow("overview", ()) as following:
        news = following.next(20)
        assert news is not None
        assert (news[0], json.loads(news[1])) == ("trouble", {"error": "Redis is away", "status": 503})
        looks.failing = False
        news = following.next(20)
        assert news is not None
        assert news[0] == "look"


def test_a_page_that_stops_lets_its_followers_go() -> None:
    portal = Portal("hub")
    hub = Hub(Looks(seconds=60), portal)
    hub.start()
    with hub.follow("overview", ()) as following:
        assert following.next(20) is not None
        closing = threading.Thread(target=hub.close)
        closing.start()
        with pytest.raises(EOFError):
            following.next(20)
    closing.join(20)
    portal.close()


@pytest.mark.parametrize("cost", [1, 30, 100, 199])
def test_reads_one_after_another_keep_to_the_rate(cost: int) -> None:
    now = free_at = 0.0
    for _ in range(100):
        now = max(now, free_at)
        free_at = free_again(free_at, now, cost)
    assert 100 * cost / free_at == pytest.approx(RATE)


def test_what_is_very_large_is_still_read_now_and_then() -> None:
    assert free_again(0.0, 10.0, 100_000) == 10.0 + LONGEST_SECONDS


def test_a_redis_that_is_away_is_told_to_all_at_once(hub: Hub) -> None:
    """Where it hangs, each read takes seconds to find that out: nobody waits for his own."""
    looks = hub.looks = Looks(seconds=600)
    with hub.follow("overview", ()) as one, hub.follow("log", ()) as other:
        assert one.next(20)[0] == other.next(20)[0] == "look"  # type: ignore[index]  # there is something new
        looks.failing = True
        with hub.follow("jobs", ()) as third:
            assert third.next(20)[0] == "trouble"  # type: ignore[index]
        assert one.next(20)[0] == other.next(20)[0] == "trouble"  # type: ignore[index]


def test_who_asks_while_redis_is_away_does_not_wait(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LONGEST_SECONDS", "_ASK_SECONDS"):  # the test's machine may be slow
        monkeypatch.setattr(f"sollol_coordinator.page.hub.{name}", 3600.0)
    looks = hub.looks = Looks(seconds=0)
    looks.failing = True
    assert hub.ask("overview", ())[0] == "trouble"

    async def hang(name: str, params: Mapping[str, str]) -> dict[str, Any]:
        await asyncio.sleep(3600)
        raise AssertionError

    monkeypatch.setattr(looks, "look", hang)
    kind, text = hub.ask("jobs", ())
    assert (kind, json.loads(text)["status"]) == ("trouble", 503)


def test_a_thousand_different_views_shut_nobody_out(hub: Hub) -> None:
    hub.looks = Looks(seconds=600)
    with hub.follow("overview", ()) as following:
        for number in range(1000):
            assert hub.ask("log", (("q", str(number)),))[0] == "look"
        assert following.next(20) is not None
    assert len(hub._topics) <= 500


def test_the_first_page_is_read_in_time_however_much_else_is_looked_at() -> None:
    portal = Portal("hub")
    hub = Hub(Looks(), portal)
    for name in ("jobs", "overview", "log"):
        hub.join(name, ()).topic.read_at = 100.0
    hub._free_at = 1000.0
    assert hub._next(104.9)[0] is None
    topic, wait = hub._next(105.1)
    assert topic is not None
    assert (topic.name, wait) == ("overview", 0.0)
    portal.close()


def test_a_burst_of_views_holds_the_others_up_for_seconds_at_most() -> None:
    free_at = 0.0
    for _ in range(1000):
        free_at = free_again(free_at, 100.0, 300)
    assert free_at == 100.0 + LONGEST_SECONDS
