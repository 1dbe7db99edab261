"""Whatever lies in Redis, each page draws itself, and stays as wide as the screen."""

from __future__ import annotations

import json
from typing import Any

import redis.asyncio
from playwright.async_api import Page, expect

from sollol_broker.keys import Keys
from sollol_broker.names import key_part

_NAMES = ("__proto__", "constructor", "\u202egnp.exe", "<b>&amp;\"'", "a\x00b", "x" * 200)
# An object that no browser can make a text of.
_ODD: dict[str, Any] = {"toString": 1, "valueOf": 1}


async def _write(raw: redis.asyncio.Redis, at: int, name: str, now: float) -> None:
    keys, worker = Keys(), f"{name}.{at}"
    model = {"kinds": ["chat"], "size_bytes": 1e300, "prompt_ms": "x", "load_ms": -1, "jobs_seen": _ODD}
    backend = {
        "kind": name,
        "url": _ODD,
        "down": name if at % 2 else "",
        "loaded": [name],
        "models": {name: model},
        "health": _ODD,
    }
    gpu = {"name": name, "memory_total_mib": 10**15, "memory_used_mib": _ODD, "utilisation_percent": -5}
    hardware = {"gpus": [gpu, {"name": _ODD}, 5], "cpu_percent": 1e14, "ram_total_mib": -1, "cpu_model": _ODD}
    hashes: dict[str, dict[str, object]] = {
        keys.worker(worker): {
            "id": worker, "node": name, "state": name, "slots": "9" * 30, "busy": "-4", "seen": str(now),
            "clock": "-1e15", "labels": json.dumps([name, _ODD]), "backends": json.dumps([backend, 5]),
        },
        keys.node(name): {"host": name, "hardware": json.dumps(hardware), "llama": json.dumps({"address": _ODD})},
        keys.job(f"j{at}"): {
            "state": "running" if at % 2 else "queued", "model": name, "app": name, "node": name, "priority": "-7",
            "submitted": "-5", "claimed": "1e17", "first": "nan", "ended": "1e400", "tokens": "-5|x",
            "past": f"{name};1,{name},1,2,x", "queue": key_part(name), "why": "nan|" * 6, f"no:{name}": "x|1e300|5",
        },
        keys.app(name): {"host": name, "metadata": json.dumps({name: name, "version": _ODD, "more": _ODD})},
        keys.usage(name): {"submitted": "-5", "done": "-9", "failed": "9" * 20},
        keys.group(name): {
            "id": name, "model": name, "state": "ready", "head": name, "parts": json.dumps([[name, worker], 1]),
            "places": json.dumps([{"node": name, "mib": 1e300, "device": _ODD}, 7]), "since": "-1e300",
            "report": json.dumps({name: 5, "x": _ODD}),
        },
    }  # fmt: skip
    for key, fields in hashes.items():
        await raw.hset(key, mapping=fields)  # type: ignore[arg-type]  # texts all of them
    fields = {
        "level": "error",
        "node": name,
        "event": name * 999,
        "fields": json.dumps({name: 1, "job": _ODD}),
    }
    await raw.xadd(keys.log, fields)  # type: ignore[arg-type]
    await raw.hset(keys.models, key_part(name), name)
    member = f"j{at}|1|1|-99999999999999||0"
    for zset in (keys.leases, keys.delayed, keys.dead):
        await raw.zadd(zset, {f"j{at}": now})
    await raw.zadd(keys.queue(key_part(name)), {member: 1})
    await raw.zadd(keys.workers, {worker: now + 600_000})
    await raw.zadd(keys.apps, {name: now})
    await raw.zadd(keys.groups, {name: 1})


async def test_whatever_lies_in_redis_is_drawn(redis_url: str, tab: Page) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as raw:
        seconds, _ = await raw.time()
        for at, name in enumerate(_NAMES):
            await _write(raw, at, name, seconds * 1000.0)
        for path in (
            *("/", "/nodes", "/jobs", "/groups", "/apps", "/log", "/node?name=__proto__"),
            *("/job?id=j0", "/job?id=j1", "/job?id=__proto__"),
        ):
            await tab.goto(path)
            await expect(tab.locator(".view[data-drawn]")).to_have_count(1)
            await expect(tab.locator(".trouble")).to_be_hidden()
            said = await tab.locator("#view").inner_text()
            assert not [word for word in ("NaN", "undefined", "[object") if word in said], path
            assert await tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        await raw.flushall()
