"""Order and admission inside Redis: fair shares, bounded head starts, limits and quotas."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fabric_kit import Fabric, fabric_at, ids
from mutants import mutant
from sollol_broker.codec import pack
from sollol_broker.library import Library


@pytest.fixture
async def fabric(redis_url: str) -> AsyncIterator[Fabric]:
    async with fabric_at(redis_url) as fabric:
        await fabric.worker("w1")
        yield fabric


async def _quota(fabric: Fabric, app: str, **quota: float) -> None:
    await fabric.call("HSET", fabric.keys.policy, f"app:{app}", pack({"name": app, **quota}))


async def test_a_flood_does_not_stand_in_the_way_of_others(fabric: Fabric) -> None:
    for number in range(20):
        await fabric.submit(f"flood{number}", app="flood")
    await fabric.claim(free=2)
    await fabric.submit("light", app="light")
    order = ids(await fabric.claim(free=18))
    assert order.index("light") <= 1


async def test_shares_follow_weights(fabric: Fabric) -> None:
    await _quota(fabric, "big", weight=3)
    for number in range(30):
        await fabric.submit(f"s{number}", app="small")
        await fabric.submit(f"b{number}", app="big")
    order = ids(await fabric.claim(free=20))
    assert sum(job_id.startswith("b") for job_id in order) == pytest.approx(15, abs=1)


_OWN_BATCH_FIRST = (
    "if priority >= 7 then return 3 end",
    "if priority >= 0 then return 1 end",
)


@pytest.mark.parametrize("functions", [None, mutant(*_OWN_BATCH_FIRST)], ids=["as it is", "without levels"])
async def test_urgent_work_goes_before_its_own_applications_batch(
    redis_url: str, functions: Library | None
) -> None:
    async with fabric_at(redis_url, functions=functions) as fabric:
        await fabric.worker("w1")
        # A batch of more than an hour.
        for number in range(20):
            await fabric.submit(f"b{number}", priority=1, prompt_chars=1_000_000)
        await fabric.submit("chat")
        await fabric.submit("urgent", priority=10)
        order = ids(await fabric.claim(free=3))
        assert (order == ["urgent", "chat", "b0"]) == (functions is None)


async def test_the_books_of_levels_close(fabric: Fabric) -> None:
    for number, priority in enumerate((1, 5, 10)):
        await fabric.submit(f"j{number}", priority=priority)
    await fabric.broker.cancel("j0")
    for claimed in await fabric.claim(free=2):
        await fabric.broker.finish(claimed.lease, b"x", used=fabric.used(output_tokens=7))
    assert await fabric.call("EXISTS", fabric.keys.fair("m")) == 0


async def test_a_job_that_took_more_than_expected_counts_for_more(fabric: Fabric) -> None:
    for number in range(6):
        await fabric.submit(f"a{number}", app="a")
    for number in range(6):
        await fabric.submit(f"b{number}", app="b")
    first = {each.lease.job_id: each for each in await fabric.claim(free=2)}
    assert set(first) == {"a0", "b0"}
    # a's took five times what was expected: its next job starts where that leaves it.
    await fabric.broker.finish(first["a0"].lease, b"x", used=fabric.used(output_tokens=500))
    await fabric.broker.finish(first["b0"].lease, b"x", used=fabric.used())
    await fabric.submit("a6", app="a")
    await fabric.submit("b6", app="b")
    a, b = [float((await fabric.job(name))["fair"].split("|")[1]) for name in ("a6", "b6")]
    assert a - b == pytest.approx(400 * 10, abs=1)


async def test_the_books_close_when_all_is_done(fabric: Fabric) -> None:
    await fabric.call("HSET", fabric.keys.policy, "max_bytes", 1_000)
    for app in ("app0", "app1"):
        await _quota(fabric, app, concurrency=9)
    for number in range(5):
        await fabric.submit(f"j{number}", app=f"app{number % 2}")
    assert await fabric.stat("bytes") == 5 * len(b"envelope of j0")
    await fabric.broker.cancel("j4")
    for claimed in await fabric.claim(free=3):
        await fabric.broker.finish(claimed.lease, b"x", used=fabric.used(output_tokens=7))
    waiting = float(await fabric.call("HGET", fabric.keys.fair("m"), "q"))
    assert waiting == pytest.approx(1_108, abs=0.01)
    claimed = await fabric.claim_one()
    await fabric.broker.release(claimed.lease)
    assert float(await fabric.call("HGET", fabric.keys.fair("m"), "q")) == pytest.approx(1_108, abs=0.01)
    claimed = await fabric.claim_one()
    await fabric.broker.finish(claimed.lease, b"x")
    assert await fabric.call("EXISTS", fabric.keys.fair("m")) == 0
    assert await fabric.stat("bytes") == 0
    for app in ("app0", "app1"):
        assert int(await fabric.call("HGET", fabric.keys.usage(app), "n")) == 0


async def test_a_job_that_comes_back_keeps_its_rank(fabric: Fabric) -> None:
    for number in range(3):
        await fabric.submit(f"j{number}")
    first = await fabric.claim_one()
    before = (await fabric.job("j0"))["rank"]
    await fabric.broker.release(first.lease)
    assert (await fabric.job("j0"))["rank"] == before
    assert ids(await fabric.claim(free=3)) == ["j0", "j1", "j2"]


async def test_answers_teach_what_to_expect(fabric: Fabric) -> None:
    await fabric.submit("j1", output_cap=0, prompt_chars=3_000, task="summarization")
    member = (await fabric.call("ZRANGE", fabric.keys.queue("m"), 0, 0))[0].decode().split("|")
    assert (member[1], member[2]) == ("758", "256")
    claimed = await fabric.claim_one()
    took = fabric.used(prompt_tokens=1_000, output_tokens=40)
    await fabric.broker.finish(claimed.lease, b"x", used=took)
    await fabric.submit("j2", output_cap=0, prompt_chars=3_000, task="summarization")
    await fabric.submit("j3", output_cap=0, prompt_chars=3_000, task="analysis")
    await fabric.submit("j4", output_cap=0, prompt_chars=3_000, task="summarization", app="another")
    members = [m.decode().split("|") for m in await fabric.call("ZRANGE", fabric.keys.queue("m"), 0, -1)]
    expected = {m[0]: (int(m[1]), int(m[2])) for m in members}
    assert expected == {"j2": (1_008, 40), "j3": (1_008, 256), "j4": (1_008, 40)}


@pytest.mark.parametrize(
    ("setting", "reason"),
    [(("max_queue:m", 2), "model"), (("max_queue", 2), "fabric"), (("max_bytes", 40), "bytes")],
)
async def test_a_queue_that_is_full(fabric: Fabric, setting: tuple[str, int], reason: str) -> None:
    await fabric.call("HSET", fabric.keys.policy, *setting)
    await fabric.submit("j1")
    await fabric.submit("j2")
    word, why, retry_ms = await fabric.submit("j3")
    assert (word, why) == ("full", reason)
    assert retry_ms > 0
    assert await fabric.state("j3") == ""
    await fabric.broker.finish((await fabric.claim_one()).lease, b"x")
    assert (await fabric.submit("j3"))[0] == "queued"


async def test_retry_after_is_when_there_will_be_room(fabric: Fabric) -> None:
    await fabric.call("HSET", fabric.keys.policy, "max_queue:m", 10)
    for number in range(10):
        await fabric.submit(f"j{number}")
    _, _, retry_ms = await fabric.submit("late")
    assert retry_ms == pytest.approx(1_108, abs=2)  # one job's time on one slot


async def test_an_app_may_have_so_many_unfinished_jobs(fabric: Fabric) -> None:
    await _quota(fabric, "tests", concurrency=2)
    await fabric.submit("j1")
    await fabric.submit("j2")
    claimed = await fabric.claim_one()
    assert (await fabric.submit("j3"))[:2] == ["full", "concurrency"]
    assert await fabric.submit("j4", app="another") == ["queued", 0]
    await fabric.broker.finish(claimed.lease, b"x")
    assert (await fabric.submit("j3"))[0] == "queued"


async def test_an_app_may_send_so_many_a_minute(fabric: Fabric) -> None:
    await _quota(fabric, "tests", rpm=3)
    assert [(await fabric.submit(f"j{n}"))[0] for n in range(4)] == ["queued"] * 3 + ["full"]
    _, why, retry_ms, *left = await fabric.submit("j4")
    assert (why, retry_ms) == ("requests", pytest.approx(20_000, abs=1_000))
    assert left[:2] == ["3", "0"]
    assert 0 < int(left[2]) <= 60_000
    assert left[3:] == ["-1", "0", "0"]


async def test_each_job_tells_what_is_left_of_the_quota(fabric: Fabric) -> None:
    await _quota(fabric, "tests", rpm=60, tpm=5000, concurrency=3, max_queue=100)
    first = await fabric.submit("j1", prompt_chars=800, output_cap=42)  # 250 tokens
    assert first[:4] == ["queued", 0, "3", "2"]
    assert first[5:7] == ["5000", "4750"]
    assert first[7] == "3000"
    assert (await fabric.submit("j2", app="another")) == ["queued", 0]
    await _quota(fabric, "tests", rpm=2, concurrency=100, tpm=False)
    second = await fabric.submit("j3")
    assert (second[2], second[5]) == ("2", "-1")
    assert second[3] in ("0", "1")  # what was used before counts by its share of a minute


async def test_an_app_may_use_so_many_tokens_a_minute(fabric: Fabric) -> None:
    await _quota(fabric, "tests", tpm=500)
    said = [(await fabric.submit(f"j{n}", prompt_chars=800, output_cap=42))[:2] for n in range(4)]  # 250 each
    assert said == [["queued", 0]] * 2 + [["full", "tokens"]] * 2


async def test_a_job_that_cannot_be_in_time_is_refused(fabric: Fabric) -> None:
    for number in range(5):
        await fabric.submit(f"r{number}")
        await fabric.broker.finish((await fabric.claim_one()).lease, b"x", used=fabric.used())
    for number in range(10):
        await fabric.submit(f"j{number}")
    word, why, retry_ms = await fabric.submit("late", deadline_ms=5_000)
    assert (word, why) == ("full", "deadline")
    assert 5_000 < retry_ms < 7_000
    assert (await fabric.submit("patient", deadline_ms=60_000))[0] == "queued"
    assert (await fabric.submit("urgent", deadline_ms=5_000, priority=10, app="light"))[0] == "queued"


async def test_a_guess_refuses_nobody(fabric: Fabric) -> None:
    for number in range(10):
        await fabric.submit(f"j{number}")
    assert (await fabric.submit("late", deadline_ms=1_000))[0] == "queued"
