"""API keys in Redis, and `sollol keys`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import redis
from click.testing import CliRunner, Result

from sollol.cli.app import app as command_line
from sollol_broker import Broker, parse_url
from sollol_broker.api_keys import KeyRole, judge
from sollol_broker.key_store import KeyStore
from sollol_broker.keys import Keys
from sollol_broker.operations import Operations


@pytest.fixture
async def broker(redis_url: str) -> AsyncIterator[Broker]:
    broker = Broker(parse_url(redis_url), name="tests")
    yield broker
    await broker.close()


@pytest.fixture
def store(broker: Broker) -> KeyStore:
    return KeyStore(broker)


async def test_a_key_is_found_by_its_secret_until_it_is_revoked(store: KeyStore) -> None:
    secret, key = await store.add("team-a", KeyRole.APP, models=["llama*"], most_priority=7)
    other, _ = await store.add("team-b", KeyRole.VIEWER)
    found, now = await store.find(secret)
    assert found == key
    assert judge(found, KeyRole.APP, now=now, model="llama3").is_allowed
    for wrong in (key.digest, secret[:-1], "", "sollol_" + "A" * 43):
        assert (await store.find(wrong))[0] is None
    assert [each.id for each in await store.revoke("team-a")] == [key.id]
    found, now = await store.find(secret)
    assert judge(found, KeyRole.VIEWER, now=now).status == 401
    assert judge((await store.find(other))[0], KeyRole.VIEWER, now=now).is_allowed
    assert await store.revoke("team-a") == []
    assert len(await store.all()) == 2


async def test_a_key_expires_by_redis_clock(store: KeyStore) -> None:
    secret, key = await store.add("a", KeyRole.APP, seconds=60)
    found, now = await store.find(secret)
    assert 0 < key.expires - now <= 60
    assert judge(found, KeyRole.APP, now=now).is_allowed
    assert judge(found, KeyRole.APP, now=now + 60).status == 401


async def test_a_record_under_anothers_digest_is_no_key(store: KeyStore, broker: Broker) -> None:
    """Who could write a record there still has no secret for it."""
    _, key = await store.add("a", KeyRole.ADMIN)
    secret, victim = await store.add("b", KeyRole.VIEWER)
    await broker.link.call("HSET", broker.keys.api_keys, victim.digest, key.to_bytes())
    assert (await store.find(secret))[0] is None


async def _keys(url: str, *arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, command_line, ["keys", *arguments, "--redis", url])


async def test_the_command(redis_url: str, store: KeyStore, broker: Broker) -> None:
    options = (
        "--model",
        "llama*",
        "--max-priority",
        "6",
        "--expires",
        "30d",
        "--rpm",
        "60",
        "--concurrency",
        "4",
    )
    made = await _keys(redis_url, "add", "team-a", *options)
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    key, now = await store.find(secret)
    assert key is not None
    assert (key.role, key.models, key.most_priority) == (KeyRole.APP, ("llama*",), 6)
    assert 29 * 86_400 < key.expires - now <= 30 * 86_400
    quota = (await Operations(broker).limits()).apps["team-a"]
    assert (quota.requests_per_minute, quota.concurrency) == (60, 4)

    listed = await _keys(redis_url, "--json")
    (row,) = json.loads(listed.stdout)
    assert (row["id"], row["name"], row["app"]) == (key.id, "team-a", "team-a")
    shown = await _keys(redis_url, "list")
    assert "llama*" in shown.stdout
    for text in (listed.output, shown.output):
        assert secret not in text
        assert key.digest not in text
    with redis.Redis.from_url(redis_url) as raw:
        stored = raw.hgetall(Keys().api_keys)
    assert secret[7:] not in str(stored)

    revoked = await _keys(redis_url, "revoke", key.id)
    assert f"{key.id} (team-a)" in revoked.stdout
    assert "revoked" in (await _keys(redis_url)).stdout
    again = await _keys(redis_url, "revoke", "team-a")
    assert again.exit_code == 2
    assert "no valid key is called" in again.output


async def test_the_command_refuses_nonsense(redis_url: str) -> None:
    for arguments in (("--expires", "soon"), ("--max-priority", "11"), ("--rpm", "0"), ("--role", "king")):
        assert (await _keys(redis_url, "add", "a", *arguments)).exit_code == 2
    assert "No API keys" in (await _keys(redis_url)).stdout
