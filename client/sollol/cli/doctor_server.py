"""What the doctor makes of Redis itself: release, access, persistence, memory, clock. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .doctor_facts import Facts, Finding, error, ok, warn
from .units import duration, size

# By kind of server, the first release of each series without the known holes of its own. The gravest,
# CVE-2025-49844, lets whoever may run a script run code on the server. Distributions go on patching
# 7.0.15 under that number.
_FLOORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "Redis": ((7, 0, 15), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}
_OLDEST_REDIS = (7, 0)
# From this share of maxmemory on the fabric refuses new jobs.
_FULL_SHARE = 0.85
_NEARLY_FULL_SHARE = 0.7
# Without a limit of its own, Redis shares the machine with others.
_MACHINE_SHARE = 0.75
# Redis' own clock decides everything; a wrong one here only makes ages and logs misleading.
_CLOCK_SECONDS = 2.0
# A job costs a few round trips; above this they show beside a warm model's first token.
_LATENCY_MS = 20.0


def check_server(facts: Facts) -> Iterator[Finding]:
    """Which server it is, whether it will do, and whether it has known holes."""
    if facts.info is None:
        yield warn(
            "redis",
            f"{facts.url} answers; its release is {facts.not_known('INFO')}",
            "let this user run INFO (ACL: +info), so that version and memory can be checked",
        )
        return
    kind, text, version = server_of(facts.info)
    found = f"{kind} {text} at {facts.url}"
    if kind == "Redis" and version[:2] < _OLDEST_REDIS:
        yield error("redis", found, "SOLLOL needs Redis 7.0 or newer, or Valkey: upgrade it")
    elif safe := safe_release(kind, version):
        yield warn("redis", f"{found} has known security holes", f"upgrade it to {kind} {safe} or newer")
    else:
        yield ok("redis", found)


def check_access(facts: Facts) -> Iterator[Finding]:
    """Whether strangers can use it."""
    if facts.is_protected:
        yield ok("access", "we log in with a password or a certificate")
    elif not facts.is_loopback:
        yield warn(
            "access",
            "it takes everybody without a password: whoever reaches it can read and change all jobs",
            "set requirepass or ACL users; give us the password in the URL or in SOLLOL_REDIS_PASSWORD",
        )
    elif _listens_openly(facts.config or {}):
        yield warn(
            "access",
            "it listens on the network and takes everybody without a password",
            "set requirepass, or bind it to 127.0.0.1",
        )
    else:
        yield ok("access", "reached without leaving this machine")


def check_persistence(facts: Facts) -> Iterator[Finding]:
    """What a crash of Redis loses."""
    info = facts.info or {}
    for field, what in (
        ("aof_last_write_status", "append-only file"),
        ("rdb_last_bgsave_status", "snapshot"),
    ):
        if info.get(field, "ok") != "ok":
            yield error(
                "persistence",
                f"Redis could not write its {what} the last time",
                "look at the server's log: is its disk full, or read-only?",
            )
            return
    aof = facts.setting("appendonly", "aof_enabled")
    if aof is None:
        yield warn(
            "persistence",
            facts.not_known("CONFIG"),
            "see to it that the server keeps an append-only file (appendonly yes)",
        )
    elif aof in ("yes", "1"):
        yield _append_only((facts.config or {}).get("appendfsync", ""))
    else:
        yield _snapshots((facts.config or {}).get("save"))


def check_eviction(facts: Facts) -> Iterator[Finding]:
    """Whether Redis may throw jobs away."""
    policy = facts.setting("maxmemory-policy", "maxmemory_policy")
    limit = int(facts.setting("maxmemory", "maxmemory") or 0)
    todo = "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
    if policy is None:
        yield warn(
            "eviction",
            facts.not_known("CONFIG"),
            "see to it that maxmemory-policy is noeviction: any other throws jobs away",
        )
    elif policy == "noeviction":
        yield ok("eviction", "noeviction: what was accepted is never thrown away")
    elif limit:
        yield error("eviction", f"{policy}: when memory runs out, Redis throws jobs away", todo)
    else:
        yield warn("eviction", f"{policy}: harmless only as long as maxmemory is not set", todo)


def check_memory(facts: Facts) -> Iterator[Finding]:
    """How much room is left."""
    if facts.info is None:
        return
    used = int(facts.info.get("used_memory", 0))
    machine = int(facts.info.get("total_system_memory", 0))
    if limit := int(facts.setting("maxmemory", "maxmemory") or 0):
        yield _headroom(used, limit)
    elif machine and used > machine * _MACHINE_SHARE:
        yield warn(
            "memory",
            f"{size(used)} of the machine's {size(machine)} used, and no limit is set",
            "set maxmemory: then new jobs are refused before the system kills Redis",
        )
    else:
        of = f" of the machine's {size(machine)}" if machine else ""
        yield ok("memory", f"{size(used)}{of} used, no limit set")


def check_functions(facts: Facts) -> Iterator[Finding]:
    """Whether the functions of this release work there."""
    functions = facts.functions
    if functions is None:
        return
    if functions.state == "unusable":
        yield error(
            "functions",
            f"{functions.name} does not work: {functions.problem}",
            "let this user run FCALL and FUNCTION, or start a worker once as a user that may",
        )
    else:
        yield ok("functions", functions.name + (" (loaded just now)" if functions.state == "loaded" else ""))


def check_clock(facts: Facts) -> Iterator[Finding]:
    """Whether this machine and Redis agree on the time."""
    ahead = facts.clock_ahead_seconds
    if ahead is None:
        return
    if abs(ahead) < _CLOCK_SECONDS:
        yield ok("clock", f"within {duration(max(abs(ahead), 0.001))} of Redis")
        return
    direction = "ahead of" if ahead > 0 else "behind"
    yield warn(
        "clock",
        f"this machine is {duration(abs(ahead))} {direction} Redis: jobs run rightly, but ages mislead",
        "synchronise both machines with NTP",
    )


def check_latency(facts: Facts) -> Iterator[Finding]:
    """How far away Redis is."""
    if facts.latency_ms is None:
        return
    found = f"{facts.latency_ms:.2f} ms for a round trip to Redis"
    if facts.latency_ms < _LATENCY_MS:
        yield ok("latency", found)
    else:
        yield warn("latency", found, "put Redis nearer, or look for what keeps it or the network busy")


def server_of(info: Mapping[str, str]) -> tuple[str, str, tuple[int, ...]]:
    """Kind of server, its version as text and as numbers. Valkey also claims to be Redis 7.2."""
    kind, field = ("Valkey", "valkey_version") if "valkey_version" in info else ("Redis", "redis_version")
    text = info.get(field, "0")
    return kind, text, tuple(int(part) for part in text.split(".") if part.isdigit())


def safe_release(kind: str, version: tuple[int, ...]) -> str:
    """The first release of this series, or of the next one, without known holes; "" = this one has none.

    1. A series with a floor: below the floor is unsafe.
    2. A series newer than all floors is safe.
    3. Any other got no fixes: the next series with a floor is named.
    """
    floors = _FLOORS[kind]
    for floor in floors:
        if version[:2] == floor[:2]:  # 1
            return "" if version >= floor else _dotted(floor)
    if version[:2] > floors[-1][:2]:  # 2
        return ""
    return _dotted(next(floor for floor in floors if floor[:2] > version[:2]))  # 3


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _append_only(fsync: str) -> Finding:
    if fsync == "always":
        return ok("persistence", "append-only file, fsync always: a crash loses nothing that was confirmed")
    if fsync == "no":
        return warn(
            "persistence",
            "append-only file, fsync no: a power failure can lose half a minute",
            "CONFIG SET appendfsync everysec, and the same in redis.conf",
        )
    told = "fsync everysec: a crash can lose about a second; clients that still wait send their jobs again"
    return ok("persistence", f"append-only file, {told if fsync else 'how often it is flushed is not known'}")


def _snapshots(save: str | None) -> Finding:
    numbers = [int(part) for part in (save or "").split() if part.isdigit()]
    if save is None:
        found = "no append-only file: a crash loses what came since the last snapshot, if there is one"
    elif not numbers:
        found = "none: when Redis restarts, every job and answer is lost"
    else:
        found = (
            f"snapshots only: a crash can lose the jobs and answers of up to {duration(max(numbers[::2]))}"
        )
    return warn("persistence", found, "CONFIG SET appendonly yes, and the same in redis.conf")


def _headroom(used: int, limit: int) -> Finding:
    found = f"{size(used)} of {size(limit)} used ({used / limit:.0%})"
    if used >= limit * _FULL_SHARE:
        return error(
            "memory",
            f"{found}: new jobs are refused",
            "raise maxmemory, or wait until jobs are done and their answers expire",
        )
    if used >= limit * _NEARLY_FULL_SHARE:
        return warn("memory", f"{found}: at {_FULL_SHARE:.0%} new jobs are refused", "raise maxmemory")
    return ok("memory", found)


def _listens_openly(config: Mapping[str, str]) -> bool:
    if config.get("port", "0") == "0" and config.get("tls-port", "0") == "0":
        return False
    hosts = [host.lstrip("-") for host in config.get("bind", "").split()] or ["*"]
    is_local = all(host == "::1" or host.startswith("127.") for host in hosts)
    return not is_local and config.get("protected-mode") == "no"
