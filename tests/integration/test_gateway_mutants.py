"""Each guard of the gateway is needed: with one of them off, the check for it sees something get through."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from fabric import worker
from gateway_kit import gateway
from sollol_broker import api_keys
from sollol_broker.api_keys import ApiKey, KeyRole, Verdict
from sollol_broker.key_store import KeyStore
from sollol_client import AsyncClient
from sollol_client.gateway import GatewayConfig, body, doorkeeper, gate, ollama, serving, webhook_address
from sollol_client.gateway.caller import Caller
from sollol_client.gateway.roles import role_for

CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "stream": False}
EVIL = "https://evil.com"
MOST_BYTES = 4000


@dataclass(frozen=True)
class World:
    """A gateway, secrets by name, and the id of a job of another application."""

    http: httpx.AsyncClient
    secrets: dict[str, str]
    others_job: str

    async def status(self, method: str, path: str, key: str = "app", **request: Any) -> int:
        return (await self.ask(method, path, key, **request)).status_code

    async def ask(self, method: str, path: str, key: str = "app", **request: Any) -> httpx.Response:
        shown = {"Authorization": f"Bearer {self.secrets[key]}"} if key else {}
        headers = {**shown, **request.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **request)


async def no_key(world: World) -> bool:
    return await world.status("POST", "/api/chat", "", json=CHAT) == 401


async def revoked_key(world: World) -> bool:
    return await world.status("POST", "/api/chat", "revoked", json=CHAT) == 401


async def too_small_a_role(world: World) -> bool:
    return await world.status("POST", "/api/chat", "viewer", json=CHAT) == 403


async def admin_paths(world: World) -> bool:
    paths = ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/sha256:0")
    methods = {"/api/delete": "DELETE"}
    return {await world.status(methods.get(path, "POST"), path, json={}) for path in paths} == {403}


async def foreign_host(world: World) -> bool:
    return await world.status("GET", "/api/tags", headers={"Host": "evil.com"}) == 403


async def foreign_origin(world: World) -> bool:
    answer = await world.ask("POST", "/api/chat", json=CHAT, headers={"Origin": EVIL})
    browser = await world.status("POST", "/api/chat", json=CHAT, headers={"Sec-Fetch-Site": "cross-site"})
    return (answer.status_code, browser) == (403, 403)


async def no_cors(world: World) -> bool:
    answer = await world.ask("GET", "/api/tags", headers={"Origin": EVIL})
    return "access-control-allow-origin" not in answer.headers


async def hidden_model(world: World) -> bool:
    listed = await world.ask("GET", "/v1/models")
    asked = await world.status("POST", "/api/chat", json={**CHAT, "model": "secret"})
    return "secret" not in listed.text and asked == 404


async def others_jobs(world: World) -> bool:
    seen = await world.status("GET", f"/api/jobs/{world.others_job}")
    listed = await world.ask("GET", "/api/jobs")
    return seen == 404 and world.others_job not in listed.text


async def priority_above(world: World) -> bool:
    answer = await world.ask("POST", "/api/jobs", json={"model": "echo", "chat": "hello", "priority": 9})
    job = await world.ask("GET", f"/api/jobs/{answer.json()['id']}")
    return bool(job.json()["priority"] == 4)


async def large_body(world: World) -> bool:
    large = {**CHAT, "messages": [{"role": "user", "content": "x" * MOST_BYTES}]}
    return await world.status("POST", "/api/chat", json=large) == 413


async def harmful_number(world: World) -> bool:
    return await world.status("POST", "/api/chat", json={**CHAT, "options": {"n_discard": -1}}) == 400


async def inner_webhook(world: World) -> bool:
    job = {"model": "echo", "chat": "hello", "webhook": "http://127.0.0.1:9/"}
    return await world.status("POST", "/api/jobs", json=job) == 400


CHECKS: dict[str, Callable[[World], Awaitable[bool]]] = {
    check.__name__: check
    for check in (
        *(no_key, revoked_key, too_small_a_role, admin_paths, foreign_host, foreign_origin, no_cors),
        *(hidden_model, others_jobs, priority_above, large_body, harmful_number, inner_webhook),
    )
}


def _forgiving(key: ApiKey | None, needed: KeyRole, *, now: float, **more: Any) -> Verdict:
    return api_keys.judge(replace(key, revoked=0.0) if key else None, needed, now=now, **more)


async def _endless(http: Any, most_bytes: int) -> bytes:
    return await body.read_body(http, 10**9)


# A guard that is off: where it lies, its name, what stands there instead; and the checks that must see it.
MUTANTS: dict[str, tuple[object, str, object, set[str]]] = {
    "nobody shows a key": (GatewayConfig, "needs_keys", False, {"no_key"}),
    "any key is good": (
        *(doorkeeper, "judge", lambda key, needed, *, now: Verdict(200)),
        {"no_key", "revoked_key", "too_small_a_role", "admin_paths"},
    ),
    "revoked keys are good": (doorkeeper, "judge", _forgiving, {"revoked_key"}),
    "all roles are alike": (
        *(api_keys, "_RANK", dict.fromkeys(KeyRole, 0)),
        {"too_small_a_role", "admin_paths"},
    ),
    "admin paths are for applications": (
        *(gate, "role_for", lambda path: min_role(path)),
        {"admin_paths"},
    ),
    "any host": (gate, "host_allowed", lambda hosts, config: True, {"foreign_host"}),
    "any origin": (gate, "origin_allowed", lambda *seen: True, {"foreign_origin"}),
    "CORS for everybody": (
        *(gate, "cors_headers", lambda *seen: {"Access-Control-Allow-Origin": "*"}),
        {"no_cors"},
    ),
    "all models for all keys": (Caller, "may_use", lambda self, model: True, {"hidden_model"}),
    "all jobs for all keys": (Caller, "owns", lambda self, app: True, {"others_jobs"}),
    "any priority": (Caller, "priority", lambda self, wanted: wanted, {"priority_above"}),
    "bodies without end": (ollama, "read_body", _endless, {"large_body"}),
    "any number": (serving, "check_numbers", lambda payload: None, {"harmful_number"}),
    "webhooks to anywhere": (webhook_address, "is_public", lambda address: True, {"inner_webhook"}),
}


def min_role(path: str) -> KeyRole | None:
    """For admins = for applications."""
    found = role_for(path)
    return KeyRole.APP if found is KeyRole.ADMIN else found


async def test_each_guard_is_needed(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with worker(redis_url, "echo://?models=echo,secret"), AsyncClient(redis_url, app="other") as client:
        keys = KeyStore(client.session.broker)
        app, _ = await keys.add("ours", KeyRole.APP, models=("echo",), most_priority=4)
        viewer, _ = await keys.add("looks", KeyRole.VIEWER)
        revoked, record = await keys.add("gone", KeyRole.APP)
        await keys.revoke(record.id)
        job = client.submit(chat="hello", model="secret")
        await job
        secrets = {"app": app, "viewer": viewer, "revoked": revoked}

        async def seen(names: set[str]) -> set[str]:
            async with gateway(redis_url, keys=True, max_body_bytes=MOST_BYTES) as http:
                world = World(http, secrets, job.id)
                return {name for name in names if not await CHECKS[name](world)}

        assert not await seen(set(CHECKS)), "with all guards on nothing gets through"
        unseen = {}
        for name, (place, attribute, instead, expected) in MUTANTS.items():
            with monkeypatch.context() as patch:
                patch.setattr(place, attribute, instead)
                if missed := expected - await seen(expected):
                    unseen[name] = missed
    assert not unseen, "these guards are off, and nothing is seen of it"
    assert set(CHECKS) == set().union(*(each[3] for each in MUTANTS.values()))
