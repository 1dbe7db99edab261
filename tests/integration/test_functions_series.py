"""What an advert adds to the series: sums over workers and time, once each, of few models, in chunks that run out."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping

import pytest

from fabric_kit import Fabric, fabric_at
from sollol_broker.codec import pack
from sollol_broker.names import key_part
from sollol_broker.series import CHUNK, STEPS, Gauge, Point, looked
from sollol_broker.series_reader import SeriesReader

TTL_MS = 60_000
Rows = Mapping[str, list[tuple[int, Point]]]


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        yield fabric


def _reader(fabric: Fabric) -> SeriesReader:
    return SeriesReader(fabric.broker, lag_seconds=0)


async def _tell(
    fabric: Fabric,
    worker: str,
    node: str,
    number: int,
    rows: Rows,
    gauges: dict[Gauge, float | None] | None = None,
) -> str:
    told = [
        [key_part(model), model, [[second, point.plain()] for second, point in points]]
        for model, points in rows.items()
    ]
    advertised = await fabric.broker.advertise(
        worker, node, ttl_ms=TTL_MS, worker_fields={}, node_fields={}, models={},
        counted=pack([number, looked({"busy": 1, "slots": 2} if gauges is None else gauges), *told]),
    )  # fmt: skip
    return advertised.taken


def _some(chance: random.Random) -> Point:
    point = Point()
    for _ in range(chance.randrange(1, 6)):
        point.count("requests")
        point.count("tokens_in", 300_000)
        point.time("ttft", chance.lognormvariate(3, 2))
        point.time("gap", chance.lognormvariate(1, 2))
        point.time("wait", chance.lognormvariate(5, 2))
        point.time("latency", chance.lognormvariate(8, 1))
        point.time("run", chance.lognormvariate(7, 1))
    return point


def _told_of(point: Point, *, node: bool) -> list[object]:
    """Counts and durations, as far as the series of models and of nodes have them."""
    kept = (0, 4) if node else (0, 1, 2, 3, 4)
    return [point.counts, point.sums_us, [sorted(point.times[at].items()) for at in kept]]


async def test_points_of_all_workers_and_moments_add_up(fabric: Fabric) -> None:
    chance, now = random.Random(5), int(await fabric.now_ms() / 1000)
    models = ("llama3.2", "Odd Name")
    whole, by_model, by_node = Point(), {m: Point() for m in models}, {n: Point() for n in "ab"}
    for number in range(1, 9):
        for worker in ("w1", "w2", "w3"):
            node = "a" if worker == "w1" else "b"
            rows: dict[str, list[tuple[int, Point]]] = {}
            for model in models:
                for second in chance.sample(range(now - 500, now), 3):
                    point = _some(chance)
                    rows.setdefault(model, []).append((second, point))
                    for sum_of in (whole, by_model[model], by_node[node]):
                        sum_of.add(point)
            assert await _tell(fabric, worker, node, number, rows) == str(number)
    reader = _reader(fabric)
    for step in STEPS:
        span = step.kept_seconds if step.seconds > 1 else 590
        assert _told_of((await reader.fabric(span)).whole(), node=False) == _told_of(whole, node=False)
        for node in "ab":
            read = (await reader.node(node, span)).whole()
            assert _told_of(read, node=True) == _told_of(by_node[node], node=True)
            assert read.value("slots") == (2 if node == "a" else 3.875)  # at its first advert w2 was alone
            assert [read.times[at] for at in (1, 2, 3)] == [{}, {}, {}]
        read = (await reader.model("llama3.2", span)).whole()
        assert _told_of(read, node=False) == _told_of(by_model["llama3.2"], node=False)
    assert await reader.models() == sorted(models)
    assert await reader.nodes() == ["a", "b"]
    totals = Point()
    for of_node in (await reader.totals()).values():
        for point in of_node.values():
            totals.add(point)
    assert _told_of(totals, node=False) == _told_of(whole, node=False)


async def test_an_advert_that_is_repeated_counts_once(fabric: Fabric) -> None:
    now = int(await fabric.now_ms() / 1000)
    rows = {"m": [(now, _some(random.Random(1)))]}
    for _ in range(3):
        assert await _tell(fabric, "w1", "a", 1, rows) == "1"
    once = (await _reader(fabric).fabric(600)).whole()
    assert once.counts == rows["m"][0][1].counts
    await _tell(fabric, "w1", "a", 2, rows)
    assert (await _reader(fabric).fabric(600)).whole().counts[0] == 2 * once.counts[0]


async def test_only_so_many_models_have_a_series(fabric: Fabric) -> None:
    now = int(await fabric.now_ms() / 1000)
    one = Point(counts=[1, 0, 0, 0])
    await _tell(fabric, "w1", "a", 1, {f"m{at}": [(now, one)] for at in range(70)})
    reader = _reader(fabric)
    assert len(await reader.models()) == 64
    totals = (await reader.totals())["a"]
    assert len(totals) == 65
    assert totals["other"].counts[0] == 6
    assert (await reader.fabric(600)).total("requests") == 70


async def test_a_model_that_has_been_silent_makes_room(fabric: Fabric) -> None:
    now = int(await fabric.now_ms() / 1000)
    one = Point(counts=[1, 0, 0, 0])
    await _tell(fabric, "w1", "a", 1, {f"m{at}": [(now, one)] for at in range(64)})
    await fabric.call("ZADD", fabric.keys.series_models, now - 700, "m7")
    await _tell(fabric, "w1", "a", 2, {"new": [(now, one)]})
    models = await _reader(fabric).models()
    assert "new" in models
    assert "m7" not in models
    assert len(models) == 64


async def test_however_many_models_come_and_go_their_totals_are_few(fabric: Fabric) -> None:
    """Prometheus keeps a series for each name that it is ever told."""
    now = int(await fabric.now_ms() / 1000)
    one = Point(counts=[1, 0, 0, 0])
    for number in range(1, 4):
        await _tell(fabric, "w1", "a", number, {f"m{number}-{at}": [(now, one)] for at in range(64)})
        for name in await _reader(fabric).models():
            await fabric.call("ZADD", fabric.keys.series_models, now - 700, name)
    assert (await _reader(fabric).models())[0] == "m3-0"
    totals = (await _reader(fabric).totals())["a"]
    assert len(totals) == 65
    assert (totals["m1-0"].counts[0], totals["other"].counts[0]) == (1, 128)
    await _tell(fabric, "w1", "a", 4, {name: [(now, one)] for name in ("m1-0", "m3-0")})
    totals = (await _reader(fabric).totals())["a"]
    assert (totals["m1-0"].counts[0], totals["other"].counts[0]) == (2, 129)


async def test_a_week_of_history_has_so_many_points_and_no_more(fabric: Fabric) -> None:
    """Nine days of jobs: what is older than a step is kept for is not written, and what is written runs out."""
    now = int(await fabric.now_ms() / 1000)
    one, told_of = Point(counts=[1, 0, 0, 0]), set(range(now - 9 * 86_400, now, 300))
    told_of |= {*range(now - 7 * 3600, now, 10), *range(now - 700, now)}
    rows = [(second, one) for second in sorted(told_of)]
    for number, first in enumerate(range(0, len(rows), 2_000), start=1):
        await _tell(fabric, "w1", "a", number, {"m": rows[first : first + 2_000]}, {})
    reader = _reader(fabric)
    for step in STEPS:
        most = step.kept_seconds // step.seconds
        history = await reader.model("m", step.kept_seconds)
        missing = sum(second >= history.start for second in told_of) - history.total("requests")
        assert len(history.points) == most
        assert (
            0 <= missing <= 10 * step.seconds
        )  # the oldest points may be half there: time has gone on meanwhile
        first, last = rows[0][0] // step.seconds // CHUNK, now // step.seconds // CHUNK
        chunks = [fabric.keys.series(f"m:m:{step.seconds}:{chunk}") for chunk in range(first, last + 1)]
        sizes = [await fabric.call("HLEN", key) for key in chunks]
        assert most // 2 <= sum(sizes) <= most + 1
        for key, size in zip(chunks, sizes, strict=True):
            assert not size or 0 < await fabric.call("TTL", key) <= step.kept_seconds + CHUNK * step.seconds


async def test_a_full_memory_is_told_later(fabric: Fabric) -> None:
    rows = {"m": [(int(await fabric.now_ms() / 1000), _some(random.Random(1)))]}
    await fabric.call("CONFIG", "SET", "maxmemory", 1_000_000)
    try:
        assert await _tell(fabric, "w1", "a", 1, rows) == ""
        assert (await _reader(fabric).fabric(600)).total("requests") == 0
    finally:
        await fabric.call("CONFIG", "SET", "maxmemory", 0)
    await fabric.call(
        "DEL", fabric.keys.limits
    )  # as if the quarter of a second until the next look had passed
    assert await _tell(fabric, "w1", "a", 1, rows) == "1"
    assert (await _reader(fabric).fabric(600)).total("requests") > 0


async def test_a_stamp_from_before_the_clock_stepped_back_is_left_out(fabric: Fabric) -> None:
    now = int(await fabric.now_ms() / 1000)
    one = Point(counts=[1, 0, 0, 0])
    await _tell(fabric, "w1", "a", 1, {"m": [(now + 7200, one), (now - 700, one), (now, one)]})
    reader = _reader(fabric)
    assert (await reader.model("m", 600)).total("requests") == 1
    assert (await reader.model("m", 3600)).total("requests") == 2
    assert (await reader.totals())["a"]["m"].counts[0] == 3


async def test_what_waits_is_noted_though_nobody_serves_it(fabric: Fabric) -> None:
    for number in range(3):
        await fabric.submit(f"j{number}", model="absent", without_node=True)
    await fabric.reap()
    reader = _reader(fabric)
    assert max((await reader.model("absent", 600)).values("waiting"), key=lambda n: n or 0) == 3
    assert (await reader.fabric(600)).whole().value("waiting") == 3
    await fabric.reap()  # within the same second nobody looks again
    assert (await reader.model("absent", 600)).whole().peaks[0] == 3


async def test_a_worker_that_is_gone_lends_its_node_no_slots(fabric: Fabric) -> None:
    await _tell(fabric, "w1", "a", 1, {})
    await _tell(fabric, "w2", "a", 1, {})
    node = await fabric.call("HGET", fabric.keys.node("a"), "crew")
    await fabric.call("HSET", fabric.keys.node("a"), "crew", node.replace(b"w1|1", b"w1|0"))
    await _tell(fabric, "w2", "a", 2, {})
    assert b"w1" not in await fabric.call("HGET", fabric.keys.node("a"), "crew")
