"""A job for a model that fits no node is enough: a real coordinator, three real workers, a real small model."""

from __future__ import annotations

import contextlib
import re
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from group_fleet import OPTIONS, QUESTION, RAM_MIB, Fleet, is_formable, ready, text_of
from sollol import Client
from sollol_broker.child import free_port
from sollol_broker.errors import NoNodeForModel
from sollol_broker.groups import GroupState
from waiting import wait_until


@pytest.fixture
def fleet(redis_url: str, smollm2_path: Path, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(redis_url, smollm2_path, tmp_path) as fleet:
        yield fleet
    assert not fleet.parts(), "processes of a group are left"


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url, app="tests", cache=False) as client:
        yield client


async def test_a_group_forms_answers_and_is_dissolved(fleet: Fleet, client: Client, tmp_path: Path) -> None:
    fleet.coordinator("coordinator", "--idle", "4")
    for name, ram in zip("abc", RAM_MIB, strict=True):
        fleet.worker(name, ram)
    await is_formable(client)

    group = await ready(client, fleet)
    text = text_of(client)

    assert {name for name, _ in group.parts} == {"a", "b", "c"}
    assert sum(place["layers"] for place in group.places) == 31
    planned = {place["node"]: place["mib"] for place in group.places}
    assert all(mib <= ram for mib, ram in zip((planned[n] for n in "abc"), RAM_MIB, strict=True))
    # What llama-server reported for the members' devices is what was planned, within a tenth.
    for node, _ in group.parts[1:]:
        reported = sum(mib for name, mib in group.report.items() if name.startswith(f"{node} "))
        assert planned[node] == pytest.approx(reported, rel=0.1)
    # The way to each of them was measured before its layers went there.
    assert group.links.keys() == {name for name, _ in group.parts[1:]}
    assert all(link.keys() == {"mib_per_s", "trip_ms"} for link in group.links.values())
    assert all(value > 0 for link in group.links.values() for value in link.values())
    jobs = _control_jobs(fleet.url)
    assert group.id in jobs, "the search finds nothing where there is something"
    assert QUESTION not in jobs
    assert "PRIVATE KEY" not in jobs
    # A machine that has it alone says the same.
    assert text == await _text_alone(fleet, client)
    await wait_until(lambda: not client.groups(), timeout=60, what="the idle group is dissolved")
    await wait_until(lambda: not fleet.parts(), timeout=20, what="its processes have ended")


async def test_a_member_killed_in_mid_answer_is_replaced_and_the_stream_goes_on(
    fleet: Fleet, client: Client
) -> None:
    fleet.coordinator()
    for name, ram in zip("abcd", (*RAM_MIB, 100), strict=True):
        fleet.worker(name, ram)
    await is_formable(client)
    group = await ready(client, fleet)
    whole = text_of(client)

    job = client.submit(chat=QUESTION, model="big", options=OPTIONS, stream=True)
    pieces = iter(job)
    text = str(next(pieces))
    member = next(name for name, _ in group.parts[1:])
    fleet.kill(member)
    text += "".join(pieces)

    assert text == job.result(timeout=60).text == whole
    again = await ready(client, fleet)
    assert again.id != group.id
    assert member not in {name for name, _ in again.parts}


async def test_a_head_that_is_killed_leaves_nothing_behind(fleet: Fleet, client: Client) -> None:
    fleet.coordinator()
    for name, ram in zip("abcd", (*RAM_MIB, 105), strict=True):
        fleet.worker(name, ram)
    await is_formable(client)
    group = await ready(client, fleet)
    before = {each.pid for each in fleet.parts()}

    fleet.kill(group.head)
    text = text_of(client)

    assert text
    again = await ready(client, fleet)
    assert again.head != group.head
    await wait_until(
        lambda: not before & {each.pid for each in fleet.parts()},
        timeout=30,
        what="all processes of the first group have ended",
    )


async def test_a_group_outlives_its_coordinator(fleet: Fleet, client: Client) -> None:
    for name in ("first", "second"):
        fleet.coordinator(name)
    for name, ram in zip("abc", RAM_MIB, strict=True):
        fleet.worker(name, ram)
    await is_formable(client)
    await wait_until(
        lambda: [group.state for group in client.groups()] == [GroupState.READY],
        timeout=30,
        what="the group is ready",
    )
    leads = "first" if "leads now" in fleet.log("first") else "second"
    other = "second" if leads == "first" else "first"

    fleet.kill(leads)

    await wait_until(lambda: "leads now" in fleet.log(other), timeout=20, what="the other coordinator leads")
    assert text_of(client)
    assert [group.state for group in client.groups()] == [GroupState.READY]


async def test_a_coordinator_killed_while_it_forms_a_group_is_replaced(fleet: Fleet, client: Client) -> None:
    fleet.coordinator("first")
    for name, ram in zip("abc", RAM_MIB, strict=True):
        fleet.worker(name, ram)
    job = client.submit(chat=QUESTION, model="big", options=OPTIONS, wait_for_node=True)
    await wait_until(lambda: bool(client.groups()), timeout=60, what="a group is being formed")

    fleet.kill("first")
    fleet.coordinator("second")

    assert job.result(timeout=150).text
    await wait_until(
        lambda: [group.state for group in client.groups()] == [GroupState.READY],
        timeout=30,
        what="the one group is told to be ready",
    )


async def test_what_fits_nowhere_is_refused_with_reasons(fleet: Fleet, client: Client) -> None:
    fleet.coordinator()
    for name in "ab":
        fleet.worker(name, 70)

    def reasons() -> str:
        with pytest.raises(NoNodeForModel) as refused:
            client.submit(chat="x", model="big").result(timeout=60)
        return str(refused.value)

    await wait_until(lambda: "MiB short" in reasons(), timeout=60, what="the coordinator has said why")


async def test_an_operator_dissolves_a_group(fleet: Fleet, client: Client) -> None:
    fleet.coordinator()
    for name, ram in zip("abc", RAM_MIB, strict=True):
        fleet.worker(name, ram)
    await is_formable(client)
    await ready(client, fleet)

    assert client.dissolve_group("big")

    await wait_until(lambda: not fleet.parts(), timeout=30, what="the group's processes have ended")
    assert "an operator wants it so" in fleet.log("coordinator")


async def test_a_coordinator_tells_its_figures(fleet: Fleet, client: Client) -> None:
    port = free_port()
    fleet.coordinator("coordinator", "--metrics", f"127.0.0.1:{port}")
    for name in "ab":
        fleet.worker(name, 70)

    def figures() -> dict[str, float]:
        with contextlib.suppress(OSError):
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
            families = text_string_to_metric_families(text)
            return {sample.name: sample.value for family in families for sample in family.samples}
        return {}

    await wait_until(
        lambda: figures().get("sollol_nodes") == 2 and figures()["sollol_coordinator_is_leader"] == 1,
        timeout=30,
        what="the leader counts two nodes",
    )
    assert figures()["sollol_groups_formed_total"] == 0


async def test_those_who_wait_see_how_far_it_is(fleet: Fleet, client: Client) -> None:
    fleet.coordinator()
    job = client.submit(chat="x", model="big", wait_for_node=True, options={"num_predict": 1})
    for name, ram in zip("abc", RAM_MIB, strict=True):
        fleet.worker(name, ram)

    seen: set[str] = set()

    def done() -> bool:
        seen.add(job.note)
        return job.done()

    await wait_until(done, timeout=90, what="the answer")

    assert any(re.match(r"forming group g-[0-9a-f]{6}: reserving a, b, c", note) for note in seen), seen
    assert any("loading big" in note for note in seen), seen


def _control_jobs(url: str) -> str:
    """All that lies in RQ's hashes of jobs and their results; RQ compresses some of it."""
    found = []
    with redis.Redis.from_url(url) as raw:
        for key in raw.scan_iter("*:rq:job:*"):
            for value in raw.hgetall(key).values():
                with contextlib.suppress(zlib.error):
                    found.append(zlib.decompress(value).decode(errors="replace"))
                found.append(value.decode(errors="replace"))
    return "\n".join(found)


async def _text_alone(fleet: Fleet, client: Client) -> str:
    fleet.run(
        "alone",
        "sollol_worker_agent.cli",
        *("--node", "alone", "--model", f"whole={fleet.model}", "--lease", "3"),
    )

    def is_served() -> bool:
        return any(model.name == "whole" for model in client.models())

    await wait_until(is_served, timeout=60, what="a worker serves the model alone")
    return text_of(client, "whole")
