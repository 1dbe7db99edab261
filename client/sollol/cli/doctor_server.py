"""What the doctor makes of Redis itself: release, persistence, memory, functions, clock. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sollol_broker.alerts import FULL_SHARE
from sollol_broker.words import Durability

from .doctor_facts import Facts, Finding, error, note, ok, warning
from .doctor_releases import OLDEST_REDIS, server_of
from .units import count, duration, size

_NEARLY_FULL_SHARE = 0.7
# Without a limit of its own, Redis shares the machine with others.
_MACHINE_SHARE = 0.75
_CROWDED_SHARE = 0.9
# Redis' own clock decides everything; a wrong one elsewhere only makes ages and logs misleading.
CLOCK_SECONDS = 2.0
# A job costs a few round trips; above this they show beside a warm model's first token.
_LATENCY_MS = 20.0


def check_server(facts: Facts) -> Iterator[Finding]:
    """Which server it is, and whether it will do."""
    if facts.info is None:
        yield ok("redis.release", f"{facts.url} answers")
        return
    kind, text, version = server_of(facts.info)
    found = f"{kind} {text} at {facts.url}"
    if kind == "Redis" and version[:2] < OLDEST_REDIS:
        yield error("redis.release", found, "SOLLOL needs Redis 7.0 or newer, or Valkey: upgrade it")
    else:
        yield ok("redis.release", found)


def check_persistence(facts: Facts) -> Iterator[Finding]:
    """What a crash of Redis loses."""
    info = facts.info or {}
    for field, what in (
        ("aof_last_write_status", "append-only file"),
        ("rdb_last_bgsave_status", "snapshot"),
    ):
        if info.get(field, "ok") != "ok":
            yield error(
                "persistence.write",
                f"Redis could not write its {what} the last time",
                "look at the server's log: is its disk full, or read-only?",
            )
    aof = facts.setting("appendonly", "aof_enabled")
    if aof in ("yes", "1"):
        yield _append_only((facts.config or {}).get("appendfsync", ""))
    elif aof is not None:
        yield _snapshots((facts.config or {}).get("save"))


def check_replicas(facts: Facts) -> Iterator[Finding]:
    """What a failover loses, where there can be one."""
    if facts.info is None:
        return
    replicas, is_sure = facts.number("connected_slaves"), facts.durability is Durability.HA
    if not (replicas or is_sure or facts.mode in ("sentinel", "cluster")):
        return
    if not replicas and is_sure:
        yield error(
            "persistence.replicas",
            "no replica follows the primary, and durability ha waits for one: no job is accepted, no answer confirmed",
            "start two replicas, or look at why they are not connected; durability=local does without",
        )
    elif not replicas:
        yield warning(
            "persistence.replicas",
            f"no replica follows the primary: when it fails, {facts.mode} has nothing to fail over to",
            "start a replica, or look at why it is not connected",
        )
    elif is_sure and replicas == 1:
        yield warning(
            "persistence.replicas",
            "one replica: durability ha accepts nothing from a failover until the lost server is back",
            "keep two",
        )
    elif is_sure:
        yield ok(
            "persistence.replicas",
            f"{count(replicas, 'replica')}: what durability ha has accepted lies on one of them, too, and a failover "
            "to it loses none of that",
        )
    else:
        yield note(
            "persistence.replicas",
            f"{count(replicas, 'replica')}, and durability local does not wait for them: a failover can lose what the "
            "last moments brought; clients that still wait send their jobs again",
            "where nobody waits for jobs: durability=ha",
        )


def check_cut_off(facts: Facts) -> Iterator[Finding]:
    """Whether a primary that is cut off from its replicas goes on, for clients that will lose what it takes."""
    if facts.number("connected_slaves") and (facts.config or {}).get("min-replicas-to-write") == "0":
        yield note(
            "persistence.partition",
            "a primary that a network fault cuts off goes on alone, and what it takes then is lost",
            "min-replicas-to-write 1 and min-replicas-max-lag 2, on each server",
        )


def check_eviction(facts: Facts) -> Iterator[Finding]:
    """Whether Redis may throw jobs away."""
    policy = facts.setting("maxmemory-policy", "maxmemory_policy")
    limit = int(facts.setting("maxmemory", "maxmemory") or 0)
    todo = "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
    if policy is None:
        return
    if policy == "noeviction":
        yield ok("memory.eviction", "noeviction: what was accepted is never thrown away")
    elif limit:
        yield error("memory.eviction", f"{policy}: when memory runs out, Redis throws jobs away", todo)
    else:
        yield warning("memory.eviction", f"{policy}: harmless only as long as maxmemory is not set", todo)


def check_memory(facts: Facts) -> Iterator[Finding]:
    """How much room is left."""
    if facts.info is None:
        return
    used = int(facts.info.get("used_memory", 0))
    machine = int(facts.info.get("total_system_memory", 0))
    if limit := int(facts.setting("maxmemory", "maxmemory") or 0):
        yield _headroom(used, limit)
    elif machine and used > machine * _MACHINE_SHARE:
        yield warning(
            "memory.room",
            f"{size(used)} of the machine's {size(machine)} used, and no limit is set",
            "set maxmemory: then new jobs are refused before the system kills Redis",
        )
    else:
        of = f" of the machine's {size(machine)}" if machine else ""
        yield ok(
            "memory.room",
            f"{size(used)}{of} used, no limit set: nothing is refused before the machine is full",
        )


def check_clients(facts: Facts) -> Iterator[Finding]:
    """Whether Redis has turned connections away, or cut some off."""
    connected, most = facts.number("connected_clients"), facts.number("maxclients")
    cut = facts.number("evicted_clients") + facts.number("client_output_buffer_limit_disconnections")
    if most and connected > most * _CROWDED_SHARE:
        yield warning(
            "redis.clients",
            f"{connected:,} of {most:,} connections are taken",
            "raise maxclients, and the number of open files that the system allows Redis",
        )
    elif cut:
        yield note(
            "redis.clients",
            f"{count(cut, 'connection')} cut off since Redis started, as clients did not read what was sent to them",
            "look for clients that hang; a slow network may need a larger client-output-buffer-limit",
        )
    elif facts.info is not None:
        yield ok("redis.clients", f"{count(connected, 'connection')}, none cut off")


def check_functions(facts: Facts) -> Iterator[Finding]:
    """Whether the functions of this release work there."""
    functions = facts.functions
    if functions is None:
        return
    if functions.state == "unusable":
        yield error(
            "functions.usable",
            f"{functions.name} does not work: {functions.problem}",
            "first see to what is said of persistence"
            if "MISCONF" in functions.problem
            else "run this once as a user that may load functions, such as the admin of `sollol acl`",
        )
    else:
        loaded = " (loaded just now)" if functions.state == "loaded" else ""
        yield ok("functions.usable", f"{functions.name}{loaded}")
    used = {worker.functions for worker in facts.workers} | {app.functions for app in facts.apps or ()}
    unused = [name for name in functions.others if name.removeprefix("sollol_") not in used]
    if unused:
        yield note(
            "functions.others",
            f"{count(len(unused), 'library', 'libraries')} of releases that nobody here runs: {', '.join(unused)}",
            "FUNCTION DELETE NAME, once no client of that release is left",
        )


def check_clock(facts: Facts) -> Iterator[Finding]:
    """Whether this machine and Redis agree on the time."""
    ahead = facts.clock_ahead_seconds
    if ahead is None:
        return
    if abs(ahead) < CLOCK_SECONDS:
        yield ok("clock.here", f"within {duration(max(abs(ahead), 0.001))} of Redis")
        return
    direction = "ahead of" if ahead > 0 else "behind"
    yield warning(
        "clock.here",
        f"this machine is {duration(abs(ahead))} {direction} Redis: jobs run rightly, but ages mislead",
        "synchronise both machines with NTP",
    )


def check_latency(facts: Facts) -> Iterator[Finding]:
    """How far away Redis is."""
    if facts.latency_ms is None:
        return
    found = f"{facts.latency_ms:.2f} ms for a round trip to Redis"
    if facts.latency_ms < _LATENCY_MS:
        yield ok("redis.latency", found)
    else:
        yield warning(
            "redis.latency", found, "put Redis nearer, or look for what keeps it or the network busy"
        )


def _append_only(fsync: str) -> Finding:
    if fsync == "always":
        return ok(
            "persistence.mode", "append-only file, fsync always: a crash loses nothing that was confirmed"
        )
    if fsync == "no":
        return warning(
            "persistence.mode",
            "append-only file, fsync no: a power failure can lose half a minute",
            "CONFIG SET appendfsync everysec, and the same in redis.conf",
        )
    told = "fsync everysec: a crash can lose about a second; clients that still wait send their jobs again"
    return ok(
        "persistence.mode", f"append-only file, {told if fsync else 'how often it is flushed is not known'}"
    )


def _snapshots(save: str | None) -> Finding:
    numbers = [int(part) for part in (save or "").split() if part.isdigit()]
    if save is None:
        found = "no append-only file: a crash loses what came since the last snapshot, if there is one"
    elif not numbers:
        found = "nothing is written to disk: when Redis restarts, every job and answer is lost"
    else:
        found = (
            f"snapshots only: a crash can lose the jobs and answers of up to {duration(max(numbers[::2]))}"
        )
    return warning("persistence.mode", found, "CONFIG SET appendonly yes, and the same in redis.conf")


def _headroom(used: int, limit: int) -> Finding:
    found = f"{size(used)} of {size(limit)} used ({used / limit:.0%})"
    if used >= limit * FULL_SHARE:
        return error(
            "memory.room",
            f"{found}: new jobs are refused",
            "raise maxmemory, or wait until jobs are done and their answers expire",
        )
    if used >= limit * _NEARLY_FULL_SHARE:
        return warning("memory.room", f"{found}: at {FULL_SHARE:.0%} new jobs are refused", "raise maxmemory")
    return ok("memory.room", f"{found}; at {FULL_SHARE:.0%} new jobs are refused")
