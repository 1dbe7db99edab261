"""A lane: what it offers for a claim, what it learns, and when it takes no jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from sollol_broker.claim_rule import Offer, Waiting, classes_of, share_of, weigh
from sollol_broker.errors import BackendError
from sollol_worker_agent.backends import EchoBackend, ModelInfo
from sollol_worker_agent.hardware import Hardware
from sollol_worker_agent.health import HealthState
from sollol_worker_agent.lane import Lane
from sollol_worker_agent.pace import Pace

GIB = 1024**3


class Server(EchoBackend):
    """A backend whose models, and those in memory, a test chooses."""

    def __init__(self, **sizes_gib: int) -> None:
        super().__init__()
        self.sizes = sizes_gib
        self.in_memory: set[str] = set()
        self.is_down = False
        self.release: str | None = ""

    async def version(self) -> str:
        if self.release is None:
            raise BackendError("answered 404", status=404)
        return self.release

    async def models(self) -> list[ModelInfo]:
        if self.is_down:
            raise BackendError("connection refused", retryable=True)
        return [
            ModelInfo(name, size_bytes=size * GIB, context_tokens=8192) for name, size in self.sizes.items()
        ]

    async def loaded(self) -> frozenset[str]:
        return frozenset(self.in_memory)

    async def slots(self) -> int:
        return 4


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def lane_of(server: Server, *, free_mib: int = 100_000, total_mib: int = 100_000) -> tuple[Lane, Clock]:
    """A lane that has asked its server once."""
    clock = Clock()
    lane = Lane(server, clock=clock, wall_clock=clock)
    await lane.refresh()
    lane.note_hardware(Hardware((), "cpu", 8, 0.0, 0.0, total_mib, free_mib, False))
    return lane, clock


def job(seconds: float = 1.0, load_seconds: float = 0.0) -> Mapping[str, Any]:
    """Closing fields of a job of 100 + 100 tokens that took so long beside its load."""
    return {
        "load_duration": round(load_seconds * 1e9),
        "prompt_eval_count": 100,
        "prompt_eval_duration": round(seconds * 1e8),
        "eval_count": 100,
        "eval_duration": round(seconds * 9e8),
        "total_duration": round((seconds + load_seconds) * 1e9),
    }


async def test_an_offer_says_what_each_model_costs() -> None:
    server = Server(small=2, large=8)
    server.in_memory = {"small"}
    lane, _ = await lane_of(server)
    lane.busy = 1
    offer = lane.offer(most=2)
    small, large = offer.models
    assert (offer.free, offer.busy, offer.settled_ms, offer.cached) == (2, 1, 1e12, {})
    assert (small.model_key, small.load_ms, small.context_tokens) == ("small", 0.0, 8192)
    assert small.slowdown == 0.1
    assert large.output_ms > 3 * small.output_ms
    assert large.load_ms == lane.pace("large").load_ms > 8000
    assert lane.offer(most=9).free == 3


async def test_a_load_that_pushes_another_model_out_costs_its_return_too() -> None:
    server = Server(small=2, middle=4, large=8, huge=40)
    server.in_memory = {"small", "middle"}
    lane, _ = await lane_of(server, free_mib=6 * 1024)
    load = {offer.model_key: offer.load_ms for offer in lane.offer(4).models}
    alone = {name: lane.pace(name).load_ms for name in server.sizes}
    assert (load["small"], load["middle"]) == (0, 0)
    assert load["large"] == alone["large"] + alone["middle"], "the small one would not make room enough"
    assert load["huge"] == alone["huge"] + alone["middle"], "all would have to go: the costliest counts"
    lane.note_hardware(Hardware((), "cpu", 8, 0.0, 0.0, 100_000, 90_000, False))
    assert lane.offer(4).models[2].load_ms == alone["large"]


async def test_what_this_machine_has_not_the_memory_for_is_not_offered() -> None:
    server = Server(small=2, huge=40)
    server.url = "http://localhost:11434"
    lane, _ = await lane_of(server, total_mib=10_000)
    assert [offer.model_key for offer in lane.offer(4).models] == ["small"]
    assert lane.too_large == {"huge": 40 * 1024 * 12 // 10 - 10_000}
    await lane.refresh()
    assert list(lane.models) == ["small"]
    server.in_memory = {"huge"}  # so it fits after all
    await lane.refresh()
    assert list(lane.models) == ["small", "huge"]
    server.in_memory = set()
    await lane.refresh()
    lane.note_hardware(Hardware((), "cpu", 8, 0.0, 0.0, 50_000, 1_000, False))
    assert list(lane.models) == ["small", "huge"]


async def test_of_a_server_elsewhere_the_memory_is_not_known() -> None:
    server = Server(huge=40)
    server.url = "http://gpu-box:11434"
    lane, _ = await lane_of(server, total_mib=10_000)
    assert (list(lane.models), lane.too_large) == (["huge"], {})


async def test_speed_and_slowdown_are_learned_from_how_busy_the_lane_was() -> None:
    lane, clock = await lane_of(Server(m=1))
    for _ in range(12):
        for busy in (1, 3):
            lane.busy = busy
            seconds = 2.0 * (1 + 0.5 * (busy - 1))
            clock.now += seconds
            lane.learn("m", job(seconds))
    pace = lane.pace("m")
    assert pace.output_ms == pytest.approx(18, rel=0.1)
    assert pace.slowdown == pytest.approx(0.5, rel=0.1)
    assert pace.prompt_ms == pytest.approx(2, rel=0.1)
    assert lane.offer(4).models[0].slowdown == pace.slowdown
    assert lane.unwritten == {"m"}


async def test_only_a_real_loading_counts_as_one() -> None:
    server = Server(m=1)
    lane, clock = await lane_of(server)
    expected = lane.pace("m").load_ms
    clock.now += 10
    lane.learn("m", job(1, load_seconds=0.02))
    assert lane.pace("m").load_ms == expected, "that long takes a look at what is loaded"
    assert lane.loaded == {"m"}
    clock.now += 10
    lane.learn("m", job(1, load_seconds=0.5))
    assert lane.pace("m").load_ms == expected, "it was in memory: it waited for something else"
    await lane.refresh()  # unloaded
    assert lane.loaded == frozenset()
    clock.now += 10
    lane.learn("m", job(2, load_seconds=0.5))
    assert lane.pace("m").load_ms < expected / 2
    assert lane.offer(4).settled_ms == pytest.approx(2000)
    clock.now += 3
    assert lane.offer(4).settled_ms == pytest.approx(5000)


async def test_what_a_load_may_have_pushed_out_counts_as_gone_until_the_server_tells() -> None:
    server = Server(m=1, n=1)
    server.in_memory = {"m"}
    lane, clock = await lane_of(server)
    clock.now += 10
    lane.learn("n", job(1, load_seconds=0.5))
    assert (lane.loaded, lane.is_outdated) == (frozenset({"n"}), True)
    clock.now += 10
    lane.learn("m", job(1))
    assert lane.loaded == {"m", "n"}, "it was there all the time"
    clock.now += 10
    lane.learn("m", job(1, load_seconds=0.5))
    server.in_memory = {"m", "n"}
    await lane.refresh()
    assert (lane.loaded, lane.is_outdated) == (frozenset({"m", "n"}), False)


async def test_a_model_that_others_loaded_unsettles_the_lane_too() -> None:
    server = Server(m=1, n=1)
    server.in_memory = {"m"}
    lane, clock = await lane_of(server)
    clock.now += 4
    await lane.refresh()
    assert lane.offer(4).settled_ms == 1e12
    server.in_memory = {"m", "n"}
    await lane.refresh()
    clock.now += 4
    await lane.refresh()
    assert lane.offer(4).settled_ms == pytest.approx(4000)


async def test_it_remembers_as_many_conversations_as_it_has_slots() -> None:
    server = Server(m=1)
    server.in_memory = {"m"}
    lane, _ = await lane_of(server)
    for number in range(4):
        lane.remember(f"{number}", 100 * number)
    lane.remember("0", 50)
    lane.remember("", 7)
    lane.remember("new", 1)
    assert lane.offer(1).cached == {"2": 200, "3": 300, "0": 50, "new": 1}
    server.in_memory = set()
    await lane.refresh()
    assert lane.offer(1).cached == {}


async def test_a_backend_that_fails_gets_one_job_at_a_time_until_one_works() -> None:
    lane, clock = await lane_of(Server(m=1))
    broken = BackendError("answered 500", status=500, retryable=True)
    for _ in range(2):
        lane.failed("m", broken)
    lane.failed("m", BackendError("answered 400", status=400))
    assert (lane.health.state, lane.free) == (HealthState.HEALTHY, 4)
    lane.busy = 1  # a long job goes on all the while
    lane.failed("m", broken)
    assert (lane.health.state, lane.free, lane.share("m").capacity) == (HealthState.DEGRADED, 0, 0)
    assert lane.models, "its models are still there for who asks"
    await lane.refresh()
    assert (lane.health.state, lane.free, lane.share("m").capacity) == (HealthState.PROBING, 1, 1)
    lane.busy = 2
    assert lane.free == 0, "one probe is enough"
    lane.busy = 1
    lane.failed("m", broken)
    assert lane.free == 0
    await lane.refresh()
    clock.now += 1
    lane.learn("m", job())
    assert (lane.health.state, lane.free, lane.share("m").capacity) == (HealthState.HEALTHY, 3, 4)
    assert 0.3 < lane.pace("m").success_rate < 0.7


async def test_a_node_where_jobs_fail_is_dearer() -> None:
    server = Server(m=1)
    server.in_memory = {"m"}
    (lane, clock), (sound, _) = await lane_of(server), await lane_of(server)
    for turn in range(32):
        clock.now += 1
        if turn % 8 == 7:
            lane.failed("m", BackendError("broken", retryable=True))
        else:
            lane.learn("m", job())
    assert lane.health.state is HealthState.HEALTHY
    pace = lane.pace("m")
    sound.learn("m", job())
    (offer,), (usual,) = lane.offer(1).models, sound.offer(1).models
    assert pace.price == pytest.approx(1 / pace.success_rate)
    assert 1.05 < pace.price < 1.3
    assert (offer.price, usual.price) == (pace.price, 1)
    assert offer.output_ms == pytest.approx(pace.output_ms * pace.price)
    assert lane.share("m").output_us == pytest.approx(1300 * offer.output_ms, rel=0.01)  # all slots at work
    # Twenty such nodes where nothing fails have their say before it.
    equal = share_of(load_ms=0, prompt_ms=pace.prompt_ms, output_ms=pace.output_ms)
    here = Offer(0, offer.prompt_ms, offer.output_ms, backlog=0, others=classes_of([equal] * 20))
    waiting = Waiting(offer=0, position=0, prompt_tokens=100, output_tokens=100, waited_ms=0)
    bid = weigh(here, waiting)
    assert not bid.takes
    assert bid.ratio == pytest.approx(pace.price, rel=0.01)
    assert weigh(replace(here, backlog=2), waiting).takes


def test_a_model_that_always_failed_may_still_try() -> None:
    pace = Pace()
    for _ in range(100):
        pace = pace.failed()
    assert pace.price == 5


async def test_a_backend_that_was_down_is_restored_by_its_second_answer() -> None:
    server = Server(m=1)
    server.in_memory = {"m"}
    lane, _ = await lane_of(server)
    server.is_down = True
    await lane.refresh()
    assert (lane.health.state, lane.free, lane.models, lane.loaded) == (
        HealthState.DEGRADED,
        0,
        {},
        frozenset(),
    )
    assert "refused" in lane.down_because
    server.is_down = False
    await lane.refresh()
    assert (lane.health.state, lane.free, lane.down_because) == (HealthState.PROBING, 1, "")
    await lane.refresh()
    assert (lane.health.state, lane.free) == (HealthState.HEALTHY, 4)
    lane.close_for_now("connection reset")
    assert (lane.health.state, lane.free) == (HealthState.DEGRADED, 0)


async def test_the_release_is_asked_again_after_a_minute_and_after_a_silence() -> None:
    server = Server(m=1)
    server.release = "1"
    lane, clock = await lane_of(server)
    server.release = "2"
    await lane.refresh()
    assert lane.version == "1"
    clock.now += 61
    await lane.refresh()
    assert lane.version == "2"
    server.is_down = True
    await lane.refresh()
    server.is_down, server.release = False, "3"
    await lane.refresh()
    assert lane.version == "3"
    server.release = None
    clock.now += 61
    await lane.refresh()
    assert (lane.version, lane.down_because) == ("", "")


async def test_only_checks_that_were_due_make_a_backend_look_better() -> None:
    lane, clock = await lane_of(Server(m=1))
    lane.failed("m", BackendError("answered 500", status=500, retryable=True))
    assert (lane.health.failure_rate, lane.health.check_seconds) == (0.5, 5.0)
    for _ in range(8):
        clock.now += 2.5
        await lane.refresh()
    assert len(lane.health.outcomes) == 2 + 4
    assert lane.health.check_seconds == 5.0


async def test_what_was_learned_earlier_is_taken_up_once_and_overrides_nothing_newer() -> None:
    lane, clock = await lane_of(Server(m=1, n=1, o=1))
    lane.learn("n", job(5))
    fields = lane.pace("n").to_fields()
    before = lane.offer(4).models[0]
    assert set(lane.unread()) == {"m", "n", "o"}
    lane.recall("m", fields)
    lane.recall("o", {})
    lane.learn("n", job(50))
    newer = lane.pace("n")
    lane.recall("n", fields)
    assert lane.unread() == []
    assert lane.pace("n") == newer
    assert lane.pace("m").output_ms == pytest.approx(45, rel=0.1)
    assert lane.offer(4).models[0].output_ms > before.output_ms
    clock.now += 30 * 86400
    await lane.refresh()
    assert lane.offer(4).models[0].output_ms == pytest.approx(before.output_ms, rel=0.05)
