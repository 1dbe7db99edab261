"""/v1/files: stored in parts, read again, each application's its own, with limits of room and of time."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from fabric_kit import fabric_at
from gateway_kit import gateway
from sollol_broker.api_keys import KeyRole
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.errors import QueueFull
from sollol_broker.file_store import PART_BYTES, FileStore, Upload
from sollol_broker.key_store import KeyStore
from sollol_client import AsyncClient

LINE = b'{"custom_id": "xylophone-canary"}\n'


async def upload(
    http: httpx.AsyncClient, content: bytes, name: str = "in.jsonl", **more: Any
) -> httpx.Response:
    fields = {"purpose": "batch", **more.pop("data", {})}
    return await http.post("/v1/files", data=fields, files={"file": (name, content)}, **more)


async def _keys(redis_url: str, *apps: str) -> list[dict[str, str]]:
    found = []
    async with AsyncClient(redis_url) as client:
        for app in apps:
            secret, _ = await KeyStore(client.session.broker).add(app, KeyRole.APP, app=app)
            found.append({"Authorization": f"Bearer {secret}"})
    return found


async def test_a_file_of_several_parts_comes_back_as_it_was(redis_url: str) -> None:
    content = LINE + secrets.token_bytes(2 * PART_BYTES + 17)
    async with gateway(redis_url) as one, gateway(redis_url) as two:
        told = (await upload(one, content)).json()
        assert (told["object"], told["bytes"], told["purpose"]) == ("file", len(content), "batch")
        assert (told["filename"], told["status"]) == ("in.jsonl", "processed")
        assert told["expires_at"] - told["created_at"] == 7 * 24 * 3600
        assert (await two.get(f"/v1/files/{told['id']}")).json() == told
        back = await two.get(f"/v1/files/{told['id']}/content")
        assert back.content == content
        assert (await two.delete(f"/v1/files/{told['id']}")).json()["deleted"] is True
        for path in (f"/v1/files/{told['id']}", f"/v1/files/{told['id']}/content", "/v1/files/a:b"):
            assert (await one.get(path)).status_code == 404
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter("*:file*")) == []


async def test_files_are_listed_in_pages_and_live_as_long_as_was_asked(redis_url: str) -> None:
    async with gateway(redis_url) as http:
        short = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        ids = [(await upload(http, LINE, f"{n}", data=short)).json()["id"] for n in range(3)]
        listed = (await http.get("/v1/files?order=asc")).json()
        assert {each["id"] for each in listed["data"]} == set(ids)
        assert listed["data"][0]["expires_at"] - listed["data"][0]["created_at"] == 3600
        seen, after = [], ""
        while True:
            page = (await http.get(f"/v1/files?limit=2&after={after}")).json()
            seen += [each["id"] for each in page["data"]]
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert sorted(seen) == sorted(ids)
        assert (await http.get("/v1/files?purpose=batch_output")).json()["data"] == []
        assert (await http.get("/v1/files?after=nope")).status_code == 400
        assert (await http.get("/v1/files?limit=0")).status_code == 400
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter("*:file*"):
            assert 3500 < client.ttl(key) <= 3600


async def test_what_makes_no_sense_is_refused_and_leaves_nothing(redis_url: str) -> None:
    senseless: tuple[tuple[dict[str, str], str, str], ...] = (
        ({"purpose": "fine-tune"}, "file", "purpose"),
        ({"purpose": ""}, "file", "purpose"),
        ({"expires_after[seconds]": "5"}, "file", "expires_after"),
        ({"expires_after[seconds]": "x"}, "file", "expires_after"),
        ({}, "other", "other"),
        ({"purpose": "x" * 5000}, "file", "purpose"),
    )
    async with gateway(redis_url) as http:
        for data, name, param in senseless:
            answer = await http.post(
                "/v1/files", data={"purpose": "batch", **data}, files={name: ("in.jsonl", b"x" * PART_BYTES)}
            )
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert (await http.post("/v1/files", data={"purpose": "batch"}, files={"x": b""})).status_code == 400
        broken = await http.post(
            "/v1/files", content=b"--edge\r\n", headers={"Content-Type": "multipart/form-data; boundary=edge"}
        )
        assert broken.status_code == 400
        assert (await http.post("/v1/files", json={})).status_code == 400
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter("*:file*")) == []


async def test_too_large_a_file_is_refused_and_leaves_nothing(redis_url: str) -> None:
    async with gateway(redis_url, max_file_bytes=PART_BYTES) as http:
        assert (await upload(http, b"x" * (PART_BYTES + 1))).status_code == 413
        with redis.Redis.from_url(redis_url) as client:
            assert list(client.scan_iter("*:file*")) == []
        for number in range(8):
            assert (await upload(http, b"x" * PART_BYTES, f"{number}")).status_code == 200
        over = await upload(http, b"x")
        assert over.status_code == 400
        assert "delete some" in over.json()["error"]["message"]
        assert len((await http.get("/v1/files")).json()["data"]) == 8
        elsewhere = await upload(http, LINE, headers={"X-Sollol-App": "else"})
        assert elsewhere.status_code == 200, "each application has room of its own"


async def test_one_application_does_not_see_anothers_files(redis_url: str) -> None:
    one, two = await _keys(redis_url, "one", "two")
    async with gateway(redis_url, keys=True) as http:
        assert (await upload(http, LINE)).status_code == 401
        file_id = (await upload(http, LINE, headers=one)).json()["id"]
        assert (await http.get("/v1/files", headers=two)).json()["data"] == []
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            answer = await http.request(method, f"/v1/files/{file_id}{path}", headers=two)
            assert answer.status_code == 404, (method, path)
        assert (await http.get(f"/v1/files/{file_id}/content", headers=one)).content == LINE


async def test_with_payload_keys_no_file_can_be_read_in_redis(redis_url: str, tmp_path: Path) -> None:
    def canaries() -> int:
        with redis.Redis.from_url(redis_url) as client:
            values = [client.hgetall(key) for key in client.scan_iter("*:file:*")]
        return sum(b"canary" in part for each in values for part in each.values())

    (tmp_path / "key").write_text(secrets.token_hex(32))
    async with gateway(f"{redis_url}?payload_key_file={tmp_path / 'key'}") as http:
        file_id = (await upload(http, LINE, "canary.jsonl")).json()["id"]
        assert canaries() == 0
        assert (await http.get(f"/v1/files/{file_id}/content")).content == LINE
    async with gateway(redis_url) as http:
        assert (await http.get(f"/v1/files/{file_id}")).status_code >= 400
        await upload(http, LINE, "canary.jsonl")
        assert canaries() == 2, "or the search would find nothing anywhere"


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[FileStore]:
    async with AsyncClient(redis_url) as client:
        yield FileStore(client.session.broker, most_bytes=10 * PART_BYTES)


async def _stored(upload: Upload, content: bytes) -> str:
    await upload.write(content)
    return (await upload.close("x", 60, {})).id


async def test_lines_are_whole_wherever_parts_end(store: FileStore) -> None:
    lines = [b"a" * (PART_BYTES - 3), b"bc", b"", b"d" * (PART_BYTES + 5), b"end"]
    record = await store.find(await _stored(await store.begin("a"), b"\r\n".join(lines)), "a")
    assert record is not None
    assert record.parts == 3
    assert [line async for line in store.lines(record)] == lines


async def test_a_full_redis_takes_no_file() -> None:
    with EmbeddedBroker(appendonly=False) as server:
        async with AsyncClient(server.url) as client, fabric_at(server.url) as fabric:
            store = FileStore(client.session.broker, most_bytes=10 * PART_BYTES)
            upload = await store.begin("a")
            await upload.write(LINE)
            info = (await fabric.call("INFO", "memory")).decode()
            used = int(info.partition("used_memory:")[2].split()[0])
            await fabric.call("CONFIG", "SET", "maxmemory", int(used / 0.9))
            await fabric.call("DEL", fabric.keys.limits)
            with pytest.raises(QueueFull, match="memory"):
                await upload.close("x", 60, {})
            await fabric.call("CONFIG", "SET", "maxmemory", 0)
            await fabric.call("DEL", fabric.keys.limits)
            assert (await upload.close("x", 60, {})).bytes == len(LINE)
