"""What lies in Redis, read as a whole and held against what is expected."""

from __future__ import annotations

from collections import Counter
from typing import Any

import redis
from expected import Expected, Job

from sollol_broker.keys import Keys, is_permanent

MODELS = ("m", "n")
INBOX = "client"
_KEYS = Keys()
_COUNTED = (
    *("submitted", "done", "failed", "cancelled", "expired", "dead"),
    *("requeued", "hedges", "hedges_won", "bytes"),
)


def states(raw: redis.Redis, ids: list[str]) -> dict[str, str]:
    """The state of each job."""
    with raw.pipeline(transaction=False) as pipe:
        for job_id in ids:
            pipe.hget(_KEYS.job(job_id), "state")
        return {job_id: _text(state) for job_id, state in zip(ids, pipe.execute(), strict=True)}


def check(raw: redis.Redis, expected: Expected) -> None:
    """Every promise that can be seen in Redis at any moment.

    Raises:
        AssertionError: says which is broken.
    """
    jobs = list(expected.jobs.values())
    with raw.pipeline(transaction=False) as pipe:
        pipe.keys("*")
        for name in (_KEYS.leases, _KEYS.delayed, _KEYS.hedges):
            pipe.zrange(name, 0, -1)
        pipe.hgetall(_KEYS.stats)
        pipe.hget(_KEYS.usage("quota"), "n")
        pipe.xrange(_KEYS.inbox(INBOX))
        for model in MODELS:
            pipe.zrange(_KEYS.queue(model), 0, -1)
            pipe.hgetall(_KEYS.fair(model))
            for name in (_KEYS.idle(model), _KEYS.armed(model), _KEYS.serves(model)):
                pipe.zrange(name, 0, -1)
            pipe.hkeys(_KEYS.shares(model))
        for job in jobs:
            pipe.hgetall(_KEYS.job(job.id))
            pipe.xrange(_KEYS.events(job.id))
            pipe.hexists(_KEYS.blob(job.id), "env")
        found = iter(pipe.execute())

    keys = [_text(key) for key in next(found)]
    leases, delayed, hedges = ([_text(each) for each in next(found)] for _ in range(3))
    stats, unfinished, inbox = _map(next(found)), next(found), next(found)
    _check_keys(raw, keys, expected)
    _check_sets(leases, hedges, expected)
    queued = list(delayed)
    for model in MODELS:
        queued += [_text(member).partition("|")[0] for member in next(found)]
        _check_fair(_map(next(found)), model, expected)
        for name in ("idle", "armed", "serves", "shares"):
            workers = {_text(worker) for worker in next(found)}
            assert workers <= expected.workers, f"{name}:{model} names workers that left"
            assert name in ("idle", "armed") or workers == expected.workers
    waiting = sorted(job.id for job in jobs if job.state == "queued")
    assert sorted(queued) == waiting, f"in line are {sorted(queued)}, waiting are {waiting}"
    for job in jobs:
        _check_job(job, _map(next(found)), next(found), next(found))
    _check_books(stats, unfinished, expected)
    told = Counter((entry["j"], entry["x"]) for entry in _entries(inbox) if entry["t"] == "end")
    assert told == expected.told, "the submitter was not told each end once"


def _check_keys(raw: redis.Redis, keys: list[str], expected: Expected) -> None:
    outside = [key for key in keys if not key.startswith(_KEYS.prefix + ":")]
    assert not outside, f"keys outside the fabric: {outside}"
    with raw.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.ttl(key)
        lives_on = {key for key, ttl in zip(keys, pipe.execute(), strict=True) if ttl == -1}
    alive = {name(job.id) for job in expected.unfinished() for name in (_KEYS.job, _KEYS.blob, _KEYS.events)}
    alive |= {_KEYS.cache(job.request) for job in expected.unfinished()}
    immortal = {key for key in lives_on if not is_permanent(key)} - alive
    assert not immortal, f"keys that would live for ever: {sorted(immortal)}"


def _check_sets(leases: list[str], hedges: list[str], expected: Expected) -> None:
    held = [job.id for job in expected.unfinished() if job.held_by]
    held += [f"{job.id}|h" for job in expected.unfinished() if job.second]
    assert sorted(leases) == sorted(held), f"leases are of {leases}, running are {held}"
    running = {job.id for job in expected.unfinished() if job.held_by}
    assert set(hedges) <= running, "jobs that do not run wait for a second copy"


def _check_fair(fair: dict[str, str], model: str, expected: Expected) -> None:
    mine = Counter(job.app for job in expected.unfinished() if job.model == model)
    counted = {name[2:]: int(float(value)) for name, value in fair.items() if name.startswith("n:")}
    assert counted == mine, f"the fair order of {model} counts {counted}, unfinished are {dict(mine)}"
    assert mine or not fair, f"fair:{model} outlives its last job"
    waits = any(job.state == "queued" and job.model == model for job in expected.unfinished())
    assert waits or abs(float(fair.get("q", 0))) < 1, f"nobody waits, yet {fair['q']} ms are in line"


def _check_job(job: Job, found: dict[str, str], stream: Any, has_body: Any) -> None:
    assert found.get("state") == job.state, f"{job.id} is {found.get('state')}, expected {job.state}"
    assert int(found.get("top", 0)) == job.top, (
        f"the fence of {job.id} is {found.get('top')}, expected {job.top}"
    )
    assert int(found.get("fence", 0)) == job.fence
    assert found.get("nonce", "") == job.nonce
    assert found.get("hnonce", "") == (job.second.nonce if job.second else "")
    assert bool(has_body) == (not job.is_over or job.may_be_revived), f"the body of {job.id}"
    events = []
    for entry in _entries(stream):
        parts = {"start": ("f",), "piece": ("f", "s"), "end": ("x", "f")}[entry["t"]]
        events.append((entry["t"], *(entry[part] for part in parts)))
    assert events == job.events, f"followers of {job.id} read {events}, expected {job.events}"
    assert sum(event[0] == "end" for event in events) == job.is_over


def _check_books(stats: dict[str, str], unfinished: Any, expected: Expected) -> None:
    books = Counter({name: int(stats.get(name, 0)) for name in _COUNTED})
    wanted = Counter(expected.stats)
    wanted["bytes"] = sum(job.size for job in expected.unfinished())
    assert +books == +wanted, f"the books say {dict(books)}, expected {dict(wanted)}"
    counted = sum(job.counted for job in expected.unfinished())
    assert int(unfinished or 0) == counted, f"the quota counts {unfinished}, unfinished are {counted}"


def _entries(stream: Any) -> list[dict[str, str]]:
    return [_map(fields) for _, fields in stream]


def _map(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode(errors="replace") for name, value in fields.items()}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
