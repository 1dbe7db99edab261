"""The fabric in sentences: what every node does, what waits and why, what somebody should look at."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from facts_kit import NOW, facts, node, queue, running
from sollol_broker.alerts import Level, alerts
from sollol_broker.controls import Controls
from sollol_broker.facts import Facts, Gone, ServerFacts
from sollol_broker.facts_reader import server_facts
from sollol_broker.groups import GroupState, GroupView
from sollol_broker.overview import headline, machines, overview, totals, why_waits
from sollol_broker.registry import NodeView, QueueView

_GONE = Gone("gpu2.1", "gpu2", NOW - 20)
_GROUP = GroupView("g1", "big", GroupState.LOADING, "gpu1", (("gpu1", "gpu1.1"), ("gpu2", "gpu2.1")))


@pytest.mark.parametrize(
    ("machine", "more", "state", "doing"),
    [
        (node(), {}, "idle", "idle, with m in memory"),
        (node(models={"m": {"loaded": False}}), {}, "idle", "idle, 1 model on disk"),
        (node(models={}), {}, "idle", "idle, without a model"),
        (node(busy=1), {}, "busy", "answers 1 job"),
        (node(busy=2), {"running": (running(),)}, "busy", "answers 2 jobs with m"),
        (node(busy=2), {"running": (running(), running("j2", model="n"))}, "busy", "answers 2 jobs with m and n"),
        (node(busy=1, controls=Controls(cordoned=True)), {}, "cordoned",
         "takes no new jobs: an operator keeps new jobs from it; still answers 1 job"),
        (node(controls=Controls(cordoned=True, draining=True)), {}, "draining",
         "takes no new jobs: an operator empties it"),
        (node(state="draining"), {}, "draining", "takes no new jobs: its worker is stopping"),
        (node(busy=1, seen_ms_ago=11_000.0), {}, "silent", "no sign of life for 11 s"),
        (node(backends=({"kind": "ollama", "down": "refused"},)), {}, "down", "its LLM server is down: refused"),
        (node(), {"groups": (_GROUP,)}, "idle", "loads big together with 1 more node"),
    ],
)  # fmt: skip
def test_what_a_node_does(machine: NodeView, more: dict[str, Any], state: str, doing: str) -> None:
    [found] = machines(facts(nodes=(machine,), **more))
    card = found.card()
    assert (card["state"], card["doing"]) == (state, doing)


@pytest.mark.parametrize(
    ("waiting", "more", "why"),
    [
        (queue(waiting=0), {"nodes": (node(),)}, ""),
        (queue(), {}, "no worker is connected"),
        (queue("x"), {"nodes": (node(),)}, "no live node has this model"),
        (queue("x"), {"nodes": (node(backends=({"too_large": {"x": 900}, "down": ""},)),)}, "it is too large for gpu1"),
        (queue("big"), {"nodes": (node(),), "groups": (_GROUP,)},
         "a group of nodes is loading for it: it takes a moment"),
        (queue(), {"nodes": (node(controls=Controls(cordoned=True)),)}, "gpu1 takes no new jobs"),
        (queue(), {"nodes": (node(busy=2),)}, "all 2 slots of gpu1 are busy"),
        (queue(), {"nodes": (node(busy=1, slots=1),)}, "the only slot of gpu1 is busy"),
        (queue(), {"nodes": (node(), node("gpu2", busy=2))},
         "slots are free on gpu1 and gpu2: they are being taken, or left to a faster node for a moment"),
    ],
)  # fmt: skip
def test_why_jobs_wait(waiting: QueueView, more: dict[str, Any], why: str) -> None:
    assert why_waits(waiting, facts(**more)) == why


@pytest.mark.parametrize(
    ("found", "code", "level", "subject"),
    [
        (facts(gone=(_GONE,)), "worker.gone", Level.ERROR, "gpu2"),
        (facts(nodes=(node(seen_ms_ago=11_000.0),)), "worker.silent", Level.ERROR, "gpu1"),
        (facts(nodes=(node(backends=({"down": "refused"},)),)), "backend.down", Level.ERROR, "gpu1"),
        (facts(queues=(queue(workers=0),), leader="co"), "queue.unserved", Level.ERROR, "m"),
        (facts(queues=(queue(oldest_seconds=121.0),)), "queue.old", Level.WARNING, "m"),
        (facts(dead=3, dead_lately=2), "jobs.dead", Level.ERROR, ""),
        (facts(dead=3), "jobs.dead", Level.NOTE, ""),
        (facts(server=ServerFacts(persistent=False)), "redis.persistence", Level.WARNING, ""),
        (facts(server=ServerFacts(write_failed=True)), "redis.write", Level.ERROR, ""),
        (facts(server=ServerFacts(used_bytes=84, most_bytes=100)), "redis.memory", Level.WARNING, ""),
        (facts(server=ServerFacts(used_bytes=85, most_bytes=100)), "redis.memory", Level.ERROR, ""),
        (facts(groups=(GroupView("g1", "big", GroupState.BROKEN),)), "group.broken", Level.WARNING, "g1"),
    ],
)
def test_what_somebody_should_look_at(found: Facts, code: str, level: Level, subject: str) -> None:
    [alert] = alerts(found)
    assert (alert.code, alert.level, alert.subject) == (code, level, subject)
    assert alert.text
    assert alert.hint


@pytest.mark.parametrize(
    "found",
    [
        facts(nodes=(node(),), queues=(queue(),)),
        facts(nodes=(node("gpu2"),), gone=(_GONE,)),  # it is back
        facts(queues=(queue("big", workers=0),), groups=(_GROUP,), leader="co"),
        facts(server=ServerFacts(persistent=True, used_bytes=10, most_bytes=100)),
        facts(server=ServerFacts(persistent=None, used_bytes=10)),
    ],
)
def test_what_is_well_alarms_nobody(found: Facts) -> None:
    assert alerts(found) == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (facts(), "No machine is connected."),
        (facts(gone=(_GONE,)), "Every machine has vanished."),
        (facts(nodes=(node(),)), "The only node is idle; nobody waits."),
        (facts(nodes=(node(busy=1),), queues=(queue(waiting=1),)),
         "The only node answers 1 job; 1 job waits, the first for 5.0 s."),
        (facts(nodes=(node(), node("b", busy=2)), queues=(queue(),)),
         "1 of 2 nodes answers 2 jobs; 3 jobs wait, the first for 5.0 s."),
        (facts(nodes=(node(), node("b"))), "2 nodes are idle; nobody waits."),
    ],
)  # fmt: skip
def test_the_fabric_in_a_sentence(found: Facts, said: str) -> None:
    assert headline(found) == said


def test_a_node_that_vanished_comes_first_and_closed_ones_before_those_that_work() -> None:
    nodes = (node("a"), node("b", busy=1), node("c", controls=Controls(cordoned=True)))
    told = overview(facts(nodes=nodes, gone=(_GONE,)), most_nodes=3)
    assert [card["name"] for card in told["nodes"]] == ["gpu2", "c", "a"]
    assert (told["nodes_in_all"], len(told["cells"])) == (4, 4)


def test_of_a_thousand_silent_nodes_the_first_alerts_are_told_and_how_many_there_are() -> None:
    nodes = tuple(node(f"n{number}", seen_ms_ago=60_000.0) for number in range(1000))
    told = overview(facts(nodes=nodes))
    assert (len(told["alerts"]), told["alerts_in_all"]) == (30, 1000)
    assert (len(told["nodes"]), len(told["cells"])) == (24, 1000)
    assert len(json.dumps(told)) < 100_000


def test_totals_add_up() -> None:
    hardware = {"vram_total_mib": 24_000, "vram_free_mib": 4_000}
    found = totals(
        facts(
            nodes=(node(busy=1, hardware=hardware), node("gpu2", hardware=hardware)),
            queues=(queue(), queue("n", oldest_seconds=9.0)),
            counters={"done": 5, "failed": 1, "dead": 1, "submitted": 10},
        )
    )
    wanted = {"nodes": 2, "slots": 4, "busy": 1, "waiting": 6, "oldest_seconds": 9.0, "done": 5, "failed": 2}
    assert {name: found[name] for name in wanted} == wanted
    assert (found["vram_total_mib"], found["vram_free_mib"]) == (48_000, 8_000)


def test_it_is_plain_data_whatever_an_advert_holds() -> None:
    odd = node(backends=({"kind": "ollama", "down": ""},), hardware={"gpus": [{"name": "<b>"}]})
    told = json.loads(json.dumps(overview(facts(nodes=(odd,), queues=(queue(),)))))
    assert told["nodes"][0]["gpus"][0]["name"] == "<b>"


def test_what_redis_tells_of_itself() -> None:
    info = {"aof_enabled": "0", "rdb_last_bgsave_status": "err", "used_memory": "5", "maxmemory": "9"}
    assert server_facts(info) == ServerFacts("", False, True, 5, 9)
    assert server_facts({"redis_version": "7.2", "valkey_version": "8.1"}) == ServerFacts("8.1")


def test_all_who_tell_of_a_full_memory_mean_the_share_at_which_jobs_are_refused() -> None:
    root = Path(__file__).parents[2]
    (share,) = re.findall(
        r"MEMORY_SHARE = ([0-9.]+)", (root / "broker/sollol_broker/lua/_admit.lua").read_text("utf-8")
    )
    [alert] = alerts(facts(server=ServerFacts(used_bytes=90, most_bytes=100)))
    assert f"from {float(share):.0%} on new jobs are refused" in alert.text
    rules = (root / "compose/prometheus/alerts.yml").read_text("utf-8")
    assert f"from {100 * float(share):.0f} % on new jobs are refused" in rules


def test_ten_thousand_things_to_look_at_are_not_all_listed() -> None:
    told = overview(facts(queues=tuple(queue(f"m{number}", workers=0) for number in range(10_000))))
    assert (len(told["alerts"]), told["alerts_in_all"]) == (30, 10_001)  # nor does a coordinator lead
    assert len(told["queues"]) == 50
