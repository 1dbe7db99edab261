"""A job for a model that fits no node is enough: a real coordinator, three real workers, a real small model."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from sollol import Client
from sollol_broker.errors import NoNodeForModel
from sollol_broker.groups import GroupState, GroupView
from waiting import wait_until

_OPTIONS = {"temperature": 0, "num_predict": 48}
_QUESTION = "Tell me about the sea."
# SmolLM2 with 2,048 tokens of context needs about 190 MiB; the head needs 58 MiB besides its layers.
_RAM_MIB = (105, 100, 100)


@dataclass
class Fleet:
    """A coordinator and workers as processes of their own."""

    url: str
    model: Path
    logs: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, name: str, *command: str) -> None:
        """Start one; its log lies beside the others'."""
        with (self.logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command, "--redis", self.url],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HOME": str(self.logs), "OLLAMA_MODELS": str(self.logs / "none")},
            )

    def worker(self, name: str, ram_mib: int) -> None:
        """A worker whose node has so much memory."""
        self.run(
            name,
            "sollol_worker_agent.cli",
            *("--node", name, "--model", f"big={self.model}", "--address", "127.0.0.1"),
            *("--ram", str(ram_mib), "--lease", "3"),
        )

    def coordinator(self, name: str = "coordinator", *more: str) -> None:
        self.run(
            name,
            "sollol_coordinator.cli",
            *("--metrics", "off", "--context", "2048", "--lease", "2", *more),
        )

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes.pop(name).wait(10)

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@pytest.fixture
def fleet(redis_url: str, smollm2_path: Path, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(redis_url, smollm2_path, tmp_path)
    try:
        yield fleet
    finally:
        fleet.close()
    assert not _parts(), "processes of a group are left"


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url, app="tests", cache=False) as client:
        yield client


def _parts() -> list[psutil.Process]:
    """Processes of groups on this machine."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join(each.cmdline())
            if "--rpc 127" in words or "ggml-rpc-server" in words or "rpc.relay" in words:
                found.append(each)
    return found


async def _ready(client: Client, fleet: Fleet, count: int = 1) -> GroupView:
    def ready() -> list[GroupView]:
        return [group for group in client.groups() if group.state is GroupState.READY]

    await wait_until(lambda: len(ready()) >= count, timeout=60, what=f"a group\n{fleet.log('coordinator')}")
    return ready()[0]


async def _formable(client: Client) -> None:
    """Until the coordinator has seen the nodes, a job for the model is refused."""

    def is_taken() -> bool:
        try:
            client.submit(chat="x", model="big", options={"num_predict": 1}).result(timeout=90)
        except NoNodeForModel:
            return False
        return True

    await wait_until(is_taken, timeout=120, what="the model can be asked")


def _text_of(client: Client, model: str = "big") -> str:
    return client.submit(chat=_QUESTION, model=model, options=_OPTIONS).result(timeout=120).text


async def test_a_group_forms_answers_and_is_dissolved(fleet: Fleet, client: Client, tmp_path: Path) -> None:
    fleet.coordinator("coordinator", "--idle", "4")
    for name, ram in zip("abc", _RAM_MIB, strict=True):
        fleet.worker(name, ram)
    await _formable(client)

    group = await _ready(client, fleet)
    text = _text_of(client)

    assert {name for name, _ in group.parts} == {"a", "b", "c"}
    assert sum(place["layers"] for place in group.places) == 31
    planned = {place["node"]: place["mib"] for place in group.places}
    assert all(mib <= ram for mib, ram in zip((planned[n] for n in "abc"), _RAM_MIB, strict=True))
    # What llama-server reported for the members' devices is what was planned, within a tenth.
    for node, _ in group.parts[1:]:
        reported = sum(mib for name, mib in group.report.items() if name.startswith(f"{node} "))
        assert planned[node] == pytest.approx(reported, rel=0.1)
    # A machine that has it alone says the same.
    assert text == await _text_alone(fleet, client)
    await wait_until(lambda: not client.groups(), timeout=60, what="the idle group is dissolved")
    await wait_until(lambda: not _parts(), timeout=20, what="its processes have ended")


async def test_a_member_killed_in_mid_answer_is_replaced_and_the_stream_goes_on(
    fleet: Fleet, client: Client
) -> None:
    fleet.coordinator()
    for name, ram in zip("abcd", (*_RAM_MIB, 100), strict=True):
        fleet.worker(name, ram)
    await _formable(client)
    group = await _ready(client, fleet)
    whole = _text_of(client)

    job = client.submit(chat=_QUESTION, model="big", options=_OPTIONS, stream=True)
    pieces = iter(job)
    text = str(next(pieces))
    member = next(name for name, _ in group.parts[1:])
    fleet.kill(member)
    text += "".join(pieces)

    assert text == job.result(timeout=60).text == whole
    again = await _ready(client, fleet)
    assert again.id != group.id
    assert member not in {name for name, _ in again.parts}


async def test_a_head_that_is_killed_leaves_nothing_behind(fleet: Fleet, client: Client) -> None:
    fleet.coordinator()
    for name, ram in zip("abcd", (*_RAM_MIB, 105), strict=True):
        fleet.worker(name, ram)
    await _formable(client)
    group = await _ready(client, fleet)
    before = {each.pid for each in _parts()}

    fleet.kill(group.head)
    text = _text_of(client)

    assert text
    again = await _ready(client, fleet)
    assert again.head != group.head
    await wait_until(
        lambda: not before & {each.pid for each in _parts()},
        timeout=30,
        what="all processes of the first group have ended",
    )


async def test_a_group_outlives_its_coordinator(fleet: Fleet, client: Client) -> None:
    for name in ("first", "second"):
        fleet.coordinator(name)
    for name, ram in zip("abc", _RAM_MIB, strict=True):
        fleet.worker(name, ram)
    await _formable(client)
    await wait_until(lambda: bool(client.groups()), timeout=30, what="there is a group")
    leads = "first" if "leads now" in fleet.log("first") else "second"
    other = "second" if leads == "first" else "first"

    fleet.kill(leads)

    await wait_until(lambda: "leads now" in fleet.log(other), timeout=20, what="the other coordinator leads")
    assert _text_of(client)
    assert [group.state for group in client.groups()] == [GroupState.READY]


async def test_a_coordinator_killed_while_it_forms_a_group_is_replaced(fleet: Fleet, client: Client) -> None:
    fleet.coordinator("first")
    for name, ram in zip("abc", _RAM_MIB, strict=True):
        fleet.worker(name, ram)
    job = client.submit(chat=_QUESTION, model="big", options=_OPTIONS, wait_for_node=True)
    await wait_until(lambda: bool(client.groups()), timeout=60, what="a group is being formed")

    fleet.kill("first")
    fleet.coordinator("second")

    assert job.result(timeout=150).text
    assert len([group for group in client.groups() if group.state is GroupState.READY]) == 1


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
    for name, ram in zip("abc", _RAM_MIB, strict=True):
        fleet.worker(name, ram)
    await _formable(client)
    await _ready(client, fleet)

    assert client.dissolve_group("big")

    await wait_until(lambda: not _parts(), timeout=30, what="the group's processes have ended")
    assert "an operator wants it so" in fleet.log("coordinator")


async def test_those_who_wait_see_how_far_it_is(fleet: Fleet, client: Client) -> None:
    fleet.coordinator()
    job = client.submit(chat="x", model="big", wait_for_node=True, options={"num_predict": 1})
    for name, ram in zip("abc", _RAM_MIB, strict=True):
        fleet.worker(name, ram)

    seen: set[str] = set()

    def done() -> bool:
        seen.add(job.note)
        return job.done()

    await wait_until(done, timeout=90, what="the answer")

    assert any(re.match(r"forming group g-[0-9a-f]{6}: reserving a, b, c", note) for note in seen), seen
    assert any("loading big" in note for note in seen), seen


async def _text_alone(fleet: Fleet, client: Client) -> str:
    fleet.run(
        "alone",
        "sollol_worker_agent.cli",
        *("--node", "alone", "--model", f"whole={fleet.model}", "--lease", "3"),
    )

    def is_served() -> bool:
        return any(model.name == "whole" for model in client.models())

    await wait_until(is_served, timeout=60, what="a worker serves the model alone")
    return _text_of(client, "whole")
