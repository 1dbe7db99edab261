"""Limits, quotas, nodes and dead letters as an operator types them, against a real Redis and a worker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fabric import town, until
from fabric_kit import Fabric, fabric_at
from sollol import Client, InvalidJob, QueueFull, QuotaExceeded
from sollol.cli.app import app
from sollol_broker.policy import Limits, Quota


def run(url: str, *args: str) -> Result:
    return CliRunner().invoke(app, list(args), env={"SOLLOL_REDIS_URL": url})


def shown(url: str, *args: str) -> Any:
    result = run(url, *args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# --- limits


def test_limits_are_set_shown_and_taken_away(redis_url: str) -> None:
    said = run(redis_url, "limits")
    assert said.exit_code == 0
    assert said.stdout.split() == ["waiting", "jobs", "0,", "no", "limit"]
    assert "sollol limits set --max-queue N" in said.stderr
    run(redis_url, "limits", "set", "--max-queue", "500", "--max-bytes", "2GiB", "--hedge-from", "11")
    run(redis_url, "limits", "set", "--hedge-percent", "20")
    run(redis_url, "limits", "set", "--model", "Tiny:latest", "--max-queue", "1k")
    found = shown(redis_url, "limits", "app", "web", "--weight", "2.5", "--rpm", "60", "--concurrency", "3")
    assert found == {
        "max_queue_size": 500,
        "max_queue_bytes": 2 * 1024**3,
        "hedge_from": 11,
        "hedge_percent": 20,
        "models": {"tiny": 1000},
        "apps": {
            "web": {
                "weight": 2.5,
                "concurrency": 3,
                "requests_per_minute": 60,
                "tokens_per_minute": None,
                "max_queue_size": None,
                "unfinished": 0,
            }
        },
        "waiting": 0,
        "bytes": 0,
    }
    table = run(redis_url, "limits").stdout
    for words in (
        "0, at most 500",
        "0 B of at most 2.0 GiB",
        "waiting for tiny",
        "at most 1,000",
        "never",
        "20 %",
    ):
        assert words in table
    assert ["web", "2.5", "0/3", "-", "60", "-"] in [line.split() for line in table.splitlines()]

    run(redis_url, "limits", "set", "--max-queue", "none", "--max-bytes", "none", "--hedge-from", "none")
    run(redis_url, "limits", "set", "--hedge-percent", "none")
    run(redis_url, "limits", "set", "--model", "tiny", "--max-queue", "none")
    run(redis_url, "limits", "app", "web", "--weight", "none", "--rpm", "none")
    with Client(redis_url) as client:
        assert client.limits() == Limits(apps={"web": Quota(concurrency=3)})
        client.set_quota("web", concurrency=None)
        assert client.limits() == Limits()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["limits", "set"], "Nothing to change"),
        (["limits", "set", "--max-queue", "many"], "'many' is neither a number"),
        (["limits", "set", "--max-queue", "1.5"], "is not a whole number"),
        (["limits", "set", "--hedge-from", "12"], "from 0 to 10, or 11 for none"),
        (["limits", "set", "--model", "m", "--max-bytes", "1"], "a model has a limit of waiting jobs only"),
        (["limits", "app", "web", "--weight", "0"], "weight: 0.0 is too small"),
        (["limits", "app", "web", "--rpm", "0"], "would never let a job in"),
        (["limits", "app", "two words", "--rpm", "1"], "spaces"),
        (["nodes", "set", "n1"], "Nothing to set"),
        (["nodes", "set", "n1", "--priority", "11"], "--priority"),
        (["nodes", "set", "n1", "--label", "two words"], "labels: spaces"),
        (["nodes", "drain", "n1", "--seconds", "-1"], "--seconds"),
        (["nodes", "cordn", "n1"], "cordn"),
        (["dead", "retry"], "--all"),
        (["dead", "drop", "x", "--all"], "not both"),
    ],
)
def test_what_makes_no_sense_changes_nothing(redis_url: str, args: list[str], said: str) -> None:
    result = run(redis_url, *args)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert shown(redis_url, "limits") == shown(redis_url, "limits", "--json")
    with Client(redis_url) as client:
        assert client.limits() == Limits()


def test_python_refuses_what_is_no_limit(redis_url: str) -> None:
    with Client(redis_url) as client:
        for wrong in (-1, 1.5, True, "5", float("nan")):
            with pytest.raises(InvalidJob) as caught:
                client.set_limits(max_queue_size=wrong)  # type: ignore[arg-type]  # what a caller may do all the same
            assert caught.value.field == "max_queue_size"


def test_a_job_beyond_a_limit_is_refused_until_there_is_none(redis_url: str) -> None:
    with town(redis_url, parallel=1) as there, Client(redis_url, app="web") as client:
        there.hold()
        running = client.submit(chat="a", model="tiny")
        until(lambda: there.asked == 1, "the first one at the backend")
        client.set_limits(max_queue_size=1)
        waiting = client.submit(chat="b", model="tiny")
        until(lambda: waiting.position() == 0, "the second one in line")
        with pytest.raises(QueueFull):
            client.submit(chat="c", model="tiny").result(20)
        assert client.limits().waiting == 1
        client.set_limits(max_queue_size=None)
        client.set_quota("web", concurrency=0)
        with pytest.raises(QuotaExceeded):
            client.submit(chat="c", model="tiny").result(20)
        client.set_quota("web", concurrency=None)
        there.go()
        assert client.submit(chat="c", model="tiny").result(20).text
        assert running.result(20).text
        assert waiting.result(20).text


# --- nodes


def test_a_node_is_closed_and_opened(redis_url: str) -> None:
    with town(redis_url, node="n1"):
        said = run(redis_url, "nodes", "cordon", "n1")
        assert said.stdout == "n1: takes no new jobs; what runs there goes on\n"
        assert "sollol nodes uncordon n1" in said.stderr
        until(
            lambda: shown(redis_url, "nodes")[0]["workers"][0]["state"] == "cordoned", "the worker's advert"
        )
        assert "cordoned" in run(redis_url, "nodes").stdout
        assert run(redis_url, "nodes", "drain", "n1", "--seconds", "5").exit_code == 0
        assert "drained" in run(redis_url, "nodes").stdout
        assert run(redis_url, "nodes", "uncordon", "n1").stdout == "n1: takes jobs again\n"
        until(lambda: " up " in run(redis_url, "nodes").stdout, "the node is up again")

        args = ("--priority", "8", "--label", "eu", "--label", "big", "--allow", "tiny*", "--deny", "*-embed")
        said = run(redis_url, "nodes", "set", "n1", *args)
        assert said.stdout == "n1: priority 8 · labels eu, big · only tiny* · never *-embed\n"
        assert "n1: priority 8" in run(redis_url, "nodes").stderr
        done = shown(redis_url, "nodes", "set", "n1", "--label", "", "--allow", "", "--deny", "")
        assert (done["controls"]["priority"], done["controls"]["labels"], done["workers"]) == (8, [], 1)
        said = run(redis_url, "nodes", "set", "n1", "--priority", "5")
        assert said.stdout == "n1: nothing is set for it any more\n"


def test_a_node_that_is_not_there_may_be_a_slip(redis_url: str) -> None:
    with town(redis_url, node="n1"):
        said = run(redis_url, "nodes", "cordon", "m1")
        assert said.exit_code == 0
        assert "no worker of it is connected now: this holds once one comes (connected: n1)" in said.stderr


def test_the_groups_options_hold_for_their_subcommands(redis_url: str) -> None:
    for args in (
        ("nodes", "--redis", redis_url, "--json", "cordon", "n1"),
        ("dead", "--redis", redis_url, "--json", "list"),
    ):
        result = CliRunner().invoke(app, list(args), env={"SOLLOL_REDIS_URL": "redis://127.0.0.1:1/0"})
        assert result.exit_code == 0, result.output
        json.loads(result.stdout)


# --- dead letters


async def _kill(fabric: Fabric, job_id: str) -> None:
    await fabric.submit(job_id, without_node=True)
    for name in ("w1", "w2", "w3"):
        await fabric.worker(name)
        await fabric.claim_one(name)
        await fabric.expire_lease(job_id)
        await fabric.call("DEL", fabric.keys.crashes)  # or so many deaths would be a storm
        await fabric.reap()
        await fabric.broker.leave(name)


async def test_dead_letters_are_listed_retried_and_dropped(redis_url: str) -> None:
    assert run(redis_url, "dead").stdout.startswith("No dead letters")
    async with fabric_at(redis_url) as fabric:
        for job_id in ("j1", "j2", "j3"):
            await _kill(fabric, job_id)
        listed = run(redis_url, "dead", "list", "--limit", "2")
        rows = [line.split() for line in listed.stdout.splitlines()]
        assert rows[1][:7] == ["j3", "m", "tests", "3", "node-of-w1,", "node-of-w2,", "node-of-w3"]
        assert "1 more with --limit" in listed.stderr
        assert [letter["id"] for letter in shown(redis_url, "dead")] == ["j3", "j2", "j1"]

        assert run(redis_url, "dead", "retry", "j1").stdout == "job j1 is back in line\n"
        assert await fabric.queue() == ["j1"]
        assert "an operator put it back in line" in run(redis_url, "explain", "j1").stdout
        wrong = run(redis_url, "dead", "drop", "nobody", "j2")
        assert (wrong.exit_code, wrong.stdout) == (1, "job j2 is forgotten\n")
        assert "job nobody is no dead letter" in wrong.stderr
        assert shown(redis_url, "dead", "retry", "--all") == {"j3": True}
        assert run(redis_url, "dead", "retry", "--all").stdout == "no dead letters\n"
        assert await fabric.queue() == ["j1", "j3"]
