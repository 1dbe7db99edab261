"""The users that `sollol acl` writes: what each may do and may not, on Valkey and on Redis 7."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import redis
from click.testing import CliRunner
from redis.backoff import NoBackoff
from redis.retry import Retry

from fabric import CHAT_MODEL, EMBED_MODEL, let_tokens_flow, worker
from fabric_kit import fabric_at
from gateway_kit import gateway, run_batches
from redis_7 import redis_7_on_path
from rq_page_kit import page_process, put_control_jobs
from sollol import AsyncClient
from sollol.cli.app import app as command_line
from sollol_broker import Broker, BrokerUnavailable, Keys, NoNodeForModel, NotAllowed, Registry, parse_url
from sollol_broker.acl import Role, commands
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.leader import elect, write_group
from sollol_broker.library import library
from sollol_broker.operations import Operations
from sollol_worker_agent.doubles import OllamaDouble
from waiting import wait_until

_FABRIC = "cell-2"
F = Keys(_FABRIC).prefix


def _connection(socket: str, username: str | None = None, password: str | None = None) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=socket,
        username=username,
        password=password,
        driver_info=None,
        retry=Retry(NoBackoff(), 0),
    )


@dataclass(frozen=True)
class Locked:
    """A server with the users of `sollol acl`, and nobody else."""

    socket: str
    passwords: dict[str, str]

    def url(self, role: Role) -> str:
        name = "sollol-admin" if role is Role.ADMIN else f"sollol-{_FABRIC}-{role}"
        return f"unix://{name}:{self.passwords[role]}@{self.socket}?fabric={_FABRIC}"

    def raw(self, role: Role) -> redis.Redis:
        name = "sollol-admin" if role is Role.ADMIN else f"sollol-{_FABRIC}-{role}"
        password = self.passwords[role]
        return _connection(self.socket, username=name, password=password)


@pytest.fixture(scope="module", params=["valkey", "redis"])
def locked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    """The file as the command writes it, loaded by the server; the library loaded by the admin."""
    folder = tmp_path_factory.mktemp("acl")
    file, kept = folder / "users.acl", folder / "loaded.acl"
    made = CliRunner().invoke(command_line, ["acl", "--fabric", _FABRIC, "--out", str(file), "--json"])
    assert made.exit_code == 0, made.output
    passwords = {each["role"]: each["password"] for each in json.loads(made.stdout)["users"]}
    kept.touch()
    with (
        redis_7_on_path(folder),
        EmbeddedBroker(server=request.param, appendonly=False, config={"aclfile": str(kept)}) as server,
    ):
        # Loaded only now, as the embedded broker itself looks in without a login while it starts.
        kept.write_text(file.read_text())
        with redis.Redis.from_url(server.url) as anybody:
            anybody.execute_command("ACL", "LOAD")
        locked = Locked(unquote(urlsplit(server.url).path), passwords)
        with locked.raw(Role.ADMIN) as admin:
            admin.function_load(library().code, replace=True)
        yield locked


def test_nobody_gets_in_without_a_name(locked: Locked) -> None:
    with _connection(locked.socket) as anybody:
        with pytest.raises(redis.AuthenticationError):
            anybody.ping()
        with pytest.raises(redis.AuthenticationError):
            anybody.execute_command("HELLO", "3")


_FCALL = ("FCALL", library().function("submit").decode(), "1", F)
# Another fabric, another program's keys, the whole server; @ = our prefix.
_FORBIDDEN = """HSET {sollol}:job:j1 a b | HSET {sollol:cell-22}:job:j1 a b | HSET rq:job:1 a b | HGETALL @:secret
    GET other | KEYS * | SCAN 0 | RANDOMKEY | DBSIZE | FLUSHALL | FLUSHDB | SAVE | SHUTDOWN | MONITOR
    EVAL return 0 | EVALSHA abc 0 | SCRIPT LOAD return | FUNCTION LOAD x | FUNCTION FLUSH | FUNCTION DELETE x
    FUNCTION DUMP | RESTORE @:job:x 0 x | DUMP @:job:x | MIGRATE h 1 @:job:x 0 1 | COPY @:job:a @:job:b
    RENAME @:job:a @:job:b | PFADD @:job:x a | SORT @:ended | OBJECT FREQ @:job:x | BZPOPMIN @:queue:m 1
    CLIENT KILL ID 1 | CLIENT LIST | CONFIG GET * | CONFIG SET a b | ACL LIST | ACL SETUSER me | DEBUG SLEEP 0
    MODULE LIST | REPLICAOF no one | SLOWLOG GET | SUBSCRIBE a | PUBLISH a b"""
# Who may: client, gateway, worker, coordinator, dashboard.
_TABLE: list[tuple[str, tuple[str, ...]]] = [
    ("cgwk-", _FCALL),
    ("-----", ("FCALL", library().function("submit").decode(), "1", "{sollol}")),
    ("cgwk-", ("HSET", f"{F}:job:j1", "a", "b")),
    ("cgwkd", ("HMGET", f"{F}:job:j1", "state")),
    ("cgwk-", ("HGET", f"{F}:blob:j1", "env")),
    ("cgwk-", ("XRANGE", f"{F}:events:j1", "-", "+")),
    ("cgwk-", ("XREAD", "BLOCK", "1", "STREAMS", f"{F}:inbox:c1", "0")),
    ("cgwkd", ("HGETALL", f"{F}:worker:w1")),
    ("--wk-", ("HSET", f"{F}:worker:w1", "node", "mine")),
    ("--wk-", ("HSET", f"{F}:pace:n1:m", "a", "b")),
    ("cgwkd", ("HGETALL", f"{F}:policy")),
    ("---k-", ("HSET", f"{F}:policy", "max_queue", "0")),
    ("---k-", ("HSET", f"{F}:controls", "n1", "x")),
    ("cg-k-", ("HINCRBY", f"{F}:caches", "m", "1")),
    ("-g--d", ("HGET", f"{F}:api_keys", "digest")),
    ("-----", ("HSET", f"{F}:api_keys", "digest", "record")),
    ("-g-k-", ("SET", f"{F}:call:c1", "x")),
    ("-gwk-", ("GET", f"{F}:call:c1")),
    ("cgwkd", ("XREAD", "BLOCK", "1", "STREAMS", f"{F}:log", "0")),
    ("cgwkd", ("XREVRANGE", f"{F}:log", "+", "-")),
    ("cgwk-", ("XADD", f"{F}:log", "MAXLEN", "~", "10000", "*", "level", "info")),
    ("-g---", ("HGET", f"{F}:file:x", "record")),
    ("-g---", ("HSETNX", f"{F}:errand:x", "end", "r")),
    ("-g---", ("ZADD", f"{F}:errands", "XX", "GT", "1", "x")),
    ("-g---", ("ZREMRANGEBYSCORE", f"{F}:errands_of:a", "-inf", "1")),
    ("---kd", ("SMEMBERS", f"{F}:rq:queues")),
    ("---kd", ("HMGET", f"{F}:rq:job:1", "status")),
    ("---kd", ("HGETALL", f"{F}:rq:job:1")),
    ("---k-", ("DEL", f"{F}:rq:job:1")),
    ("---k-", ("HSET", f"{F}:rq:job:1", "status", "queued")),
    ("cgwkd", ("INFO", "memory")),
    ("cgwkd", ("CLIENT", "SETNAME", "me")),
    *(("-----", tuple(command.strip().replace("@", F).split())) for command in re.split(r"[|\n]", _FORBIDDEN)),
]  # fmt: skip


@pytest.mark.parametrize(("allowed", "command"), _TABLE, ids=[" ".join(c)[:40] for _, c in _TABLE])
def test_who_may_do_what(locked: Locked, allowed: str, command: tuple[str, ...]) -> None:
    letters = {
        Role.CLIENT: "c",
        Role.GATEWAY: "g",
        Role.WORKER: "w",
        Role.COORDINATOR: "k",
        Role.DASHBOARD: "d",
    }
    with locked.raw(Role.ADMIN) as admin:
        said = {
            role: admin.execute_command("ACL", "DRYRUN", f"sollol-{_FABRIC}-{role}", *command)
            for role in letters
        }
    may = "".join(letter if said[role] in (b"OK", "OK") else "-" for role, letter in letters.items())
    assert may == allowed, said


def test_no_role_has_a_dangerous_command(locked: Locked) -> None:
    with locked.raw(Role.ADMIN) as admin:
        for category in ("dangerous", "admin", "scripting", "pubsub", "keyspace", "blocking"):
            words = {word.decode().lower() for word in admin.execute_command("ACL", "CAT", category)}
            for role in set(Role) - {Role.ADMIN}:
                given = words & set(commands(role))
                # INFO for the memory guard; DEL and its like reach the role's own keys only.
                harmless = {"info", "fcall", "del", "exists", "persist", "pexpire", "pttl", "wait", "xread"}
                assert given - harmless <= {"select", "client|setname"}, (role, category, given)


# --- each role at work


@pytest.fixture
async def at_work(locked: Locked) -> AsyncIterator[Locked]:
    """An empty server; at the end its log of refused commands must be empty, too."""
    with locked.raw(Role.ADMIN) as admin:
        admin.flushall()
        admin.execute_command("ACL", "LOG", "RESET")
        yield locked
        refused = [
            {"user": row["username"], "what": row["object"], "where": row["context"]}
            for row in admin.acl_log()
        ]
        assert refused == []


async def test_every_role_does_its_work(at_work: Locked) -> None:
    url = at_work.url
    async with OllamaDouble([CHAT_MODEL, EMBED_MODEL], parallel=2) as ollama:
        async with (
            worker(url(Role.WORKER), ollama.url, node="n1"),
            worker(url(Role.WORKER), ollama.url, node="n2"),
            AsyncClient(url(Role.CLIENT), app="acl") as client,
        ):
            await _a_clients_day(client, ollama)
            await _an_operators_day(url(Role.COORDINATOR))
            async with gateway(url(Role.GATEWAY)) as http:
                assert await run_batches(http, "hi", chat="tiny", embed="tiny-embed")
            await _look(url(Role.DASHBOARD))
            await _look(url(Role.CLIENT))
        async with AsyncClient(url(Role.CLIENT), app="acl") as client:
            late = client.submit(chat="hi", model="tiny", wait_for_node=True, deadline=0.1)
            with pytest.raises(Exception, match="deadline"):
                await late


async def _a_clients_day(client: AsyncClient, ollama: OllamaDouble) -> None:
    await client.submit(chat="hi", model="tiny")
    assert "".join([piece async for piece in client.submit(generate="hi", model="tiny", stream=True)])
    vectors = client.submit(embed=["a", "b"], model="tiny-embed", hedge=True)
    assert len((await vectors).embeddings) == 2
    assert (await client.submit(embed=["a", "b"], model="tiny-embed")).routing.cached
    picture = client.submit(chat=[{"role": "user", "content": "?", "images": [b"\x89PNG"]}], model="tiny")
    await picture
    assert await client.attach(picture.id)
    ollama.tokens_may_flow.clear()
    running = client.submit(chat="long", model="tiny", stream=True)
    waiting = [client.submit(chat="next", model="tiny", hedge=True) for _ in range(6)]
    await let_tokens_flow(ollama, ollama.seen.tokens + 1)
    for job in (running, *waiting):
        await client.explain(job.id)
        await job.cancel()
    ollama.tokens_may_flow.set()
    await client.invalidate_cache_by_model("tiny-embed")
    await client.clear_cache()


async def _an_operators_day(url: str) -> None:
    async with AsyncClient(url, app="operator") as operator:
        await operator.cordon("n1")
        await operator.set_node("n1", priority=7, labels=["big"])
        await operator.uncordon("n1")
        await operator.drain("n2", 0)
        await operator.set_limits(max_queue_size=100, max_queue_bytes=10**9)
        await operator.set_quota("acl", concurrency=50, requests_per_minute=1000)

        async def is_answered() -> bool:
            try:
                return bool((await operator.submit(chat="hi", model="tiny")).text)
            except NoNodeForModel:  # n1 serves again once its worker has heard of it
                return False

        await wait_until(is_answered, timeout=15, what="n1 to serve again")
        assert (await operator.limits()).apps
        assert await operator.dead() == []
        await operator.drop_dead("nosuchjob")


async def test_coordinators_elect_and_write_down_groups(at_work: Locked) -> None:
    broker = Broker(parse_url(at_work.url(Role.COORDINATOR)), name="tests")
    leading = await elect(broker, "c1", 5_000, patience_seconds=5)
    assert leading.term > 0
    assert await write_group(broker, "c1", leading.term, "g1", ttl_ms=5_000, fields={"state": "forming"})
    await elect(broker, "c1", 0, patience_seconds=5)
    await broker.close()
    client = Broker(parse_url(at_work.url(Role.CLIENT)), name="tests")
    with pytest.raises(BrokerUnavailable, match="role is too small"):
        await elect(client, "c2", 5_000, patience_seconds=5)
    await client.close()
    with at_work.raw(Role.ADMIN) as admin:
        admin.execute_command("ACL", "LOG", "RESET")  # that one


async def _look(url: str) -> None:
    broker = Broker(parse_url(url), name="look")
    try:
        await broker.open()
        registry = Registry(broker)
        assert len(await registry.nodes()) == 2
        assert await registry.models()
        assert await registry.queues()
        assert any(job.state == "done" for job in await registry.jobs())
        assert (await registry.stats())["total_requests"] > 5
    finally:
        await broker.close()


async def test_dead_workers_are_reaped_and_dead_letters_retried(at_work: Locked) -> None:
    boss = Broker(parse_url(at_work.url(Role.COORDINATOR)), name="boss")
    letters = Operations(boss)
    async with fabric_at(at_work.url(Role.WORKER)) as fabric:
        await fabric.worker("w1")
        await fabric.submit("j1", hedge=1)
        for _ in range(3):
            await fabric.claim_one()
            await fabric.expire_lease("j1")
            await fabric.reap()
        assert await fabric.state("j1") == "dead"
        assert [each.id for each in await letters.dead()] == ["j1"]
        assert await letters.retry(["j1"]) == {"j1": "retried"}
        claimed = await fabric.claim_one()
        await fabric.broker.renew([claimed.lease], 60_000, patience_seconds=1)
        await fabric.broker.release(claimed.lease)
        lease = (await fabric.claim_one()).lease
        assert await fabric.broker.fail(lease, b"x", retry=True, most_errors=3, backoff_ms=1) == "retry"
        await fabric.broker.leave("w1")
    await boss.close()


# --- what is refused is told


def test_a_coordinator_runs_its_control_jobs(locked: Locked, tmp_path: Path) -> None:
    """RQ needs commands of its own; they reach RQ's keys and no others."""
    log, url = tmp_path / "log", locked.url(Role.COORDINATOR)
    with log.open("wb") as output:
        coordinator = subprocess.Popen(
            [sys.executable, "-m", "sollol_coordinator.cli", "--redis", url, "--metrics", "off"],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PUT_A_CONTROL_JOB, url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        coordinator.terminate()
        coordinator.wait(20)

    assert "JSONDecodeError" in done.stdout, done.stdout + done.stderr + log.read_text()
    assert "NOPERM" not in log.read_text()
    with pytest.raises(redis.exceptions.NoPermissionError):
        locked.raw(Role.COORDINATOR).rpush(f"{F}:controls", "x")
    with pytest.raises(redis.exceptions.NoPermissionError):
        locked.raw(Role.COORDINATOR).eval("return 1", 0)


_PUT_A_CONTROL_JOB = """
import asyncio, sys
from sollol_broker.groups import GroupState, GroupView
from sollol_broker.url import parse
from sollol_coordinator.decide import Rules
from sollol_coordinator.estimate import NO_CORRECTION
from sollol_coordinator.rq_prefix import keep_rq_inside

class NoFacts:
    def to_json(self):
        return "no JSON"

async def main():
    url = parse(sys.argv[1])
    keep_rq_inside(url.fabric)
    from sollol_coordinator.queue import RqQueue
    queue = RqQueue(url)
    group = GroupView("g-1", "big", GroupState.FORMING, "n1", (("n1", "w1"),))
    job = await queue.put("nobody", 1, group, NoFacts(), Rules(), NO_CORRECTION)
    while (outcome := await queue.outcome(job)) is None:
        await asyncio.sleep(0.1)
    print(outcome.why)

asyncio.run(main())
"""


async def test_rqs_dashboard_shows_to_who_looks_on_and_tells_who_wants_more(
    locked: Locked, tmp_path: Path
) -> None:
    put_control_jobs(locked.url(Role.COORDINATOR), tmp_path / "touched")
    async with page_process(tmp_path / "page.log", locked.url(Role.DASHBOARD)) as (http, _):
        for path in (
            "",
            "0/data/queues.json",
            "0/data/workers.json",
            "0/data/job/failed.json",
            "0/view/jobs",
        ):
            assert (await http.get(f"/rq/{path}")).status_code == 200, path
        token = next(cookie.value for cookie in http.cookies.jar if cookie.name == "_csrf_token")
        answer = await http.post("/rq/job/one/delete", headers={"X-CSRFToken": token or ""})
        assert (answer.status_code, "give it the one for role coordinator" in answer.text) == (403, True)


async def test_a_role_that_is_too_small_is_told(locked: Locked) -> None:
    async with AsyncClient(locked.url(Role.CLIENT), app="acl") as client:
        with pytest.raises(
            BrokerUnavailable, match=r"user sollol-cell-2-client do control .*role is too small"
        ) as caught:
            await client.cordon("n1")
        assert caught.value.refused
    broker = Broker(parse_url(locked.url(Role.DASHBOARD)), name="tests")
    with pytest.raises(BrokerUnavailable, match=r"dashboard do cancel .*role is too small"):
        await broker.cancel("j1")
    await broker.close()


async def test_who_may_only_look_on_does_so_with_the_usual_client_and_commands(locked: Locked) -> None:
    async with AsyncClient(locked.url(Role.DASHBOARD), app="acl") as client:
        assert await client.nodes() == []
        with pytest.raises(NotAllowed, match=r"do attend .*role is too small"):
            await client.submit(chat="hi", model="m")
        with pytest.raises(NotAllowed, match=r"do attend .*role is too small"):
            await client.attach("j1")
    said = await asyncio.to_thread(
        CliRunner().invoke, command_line, ["nodes", "--redis", locked.url(Role.DASHBOARD)]
    )
    assert said.exit_code == 0


async def test_who_may_not_even_look_on_is_told_and_nothing_else(locked: Locked) -> None:
    with locked.raw(Role.ADMIN) as admin:
        admin.execute_command("ACL", "SETUSER", "tight", "on", ">pw", f"~{F}*", "+ping", "+info", "+time")
    arguments = [sys.executable, "-m", "sollol.cli", "nodes", "--redis", f"unix://tight:pw@{locked.socket}"]
    process = await asyncio.create_subprocess_exec(*arguments, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode == 3
    (line,) = said.decode().splitlines()
    assert "its role is too small" in line


async def test_the_doctor_of_who_looks_on_judges_what_it_sees(locked: Locked) -> None:
    arguments = ["doctor", "--json", "--redis", locked.url(Role.DASHBOARD)]
    said = await asyncio.to_thread(CliRunner().invoke, command_line, arguments)
    found = {each["id"]: each for each in json.loads(said.output)["findings"]}
    assert "functions.usable" not in found
    assert "CONFIG" in found["doctor.blind"]["found"]
    assert "FCALL" in found["doctor.blind"]["found"]
    assert found["access.open"]["severity"] == "ok"


async def test_only_the_admin_loads_the_functions(locked: Locked) -> None:
    with locked.raw(Role.ADMIN) as admin:
        admin.execute_command("FUNCTION", "FLUSH")
    broker = Broker(parse_url(locked.url(Role.CLIENT)), name="tests")
    with pytest.raises(BrokerUnavailable, match=r"run `sollol doctor` once as .* sollol-admin"):
        await broker.cancel("j1")
    doctor = ["doctor", "--redis", locked.url(Role.ADMIN)]
    said = await asyncio.to_thread(CliRunner().invoke, command_line, doctor)
    assert library().name in said.output
    assert await broker.cancel("nosuchjob") == "unknown"
    await broker.close()


@pytest.mark.parametrize("role", [Role.CLIENT, Role.GATEWAY, Role.WORKER, Role.COORDINATOR, Role.DASHBOARD])
async def test_the_doctor_says_what_it_may_not_see(locked: Locked, role: Role) -> None:
    doctor = ["doctor", "--json", "--redis", locked.url(role)]
    said = await asyncio.to_thread(CliRunner().invoke, command_line, doctor)
    findings = {each["id"]: each for each in json.loads(said.stdout)["findings"]}
    assert "CONFIG" in findings["doctor.blind"]["found"]
    assert f"sollol-{_FABRIC}-{role}" in findings["access.open"]["found"]
    assert ("functions.usable" in findings) == (role is not Role.DASHBOARD)
    assert {name for name, each in findings.items() if each["severity"] == "error"} == {"workers.connected"}
    assert locked.passwords[role] not in said.output


async def test_a_user_that_may_not_even_give_its_name(locked: Locked) -> None:
    with locked.raw(Role.ADMIN) as admin:
        admin.execute_command("ACL", "SETUSER", "tight", "on", ">pw", f"~{F}*", "+ping")
    broker = Broker(parse_url(f"unix://tight:pw@{locked.socket}"), name="tests")
    await broker.open()
    assert await broker.link.call("PING") == b"PONG"
    await broker.close()
