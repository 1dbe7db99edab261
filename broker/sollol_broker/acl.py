"""Who may do what in Redis: one user per role, as rules of an ACL file. Pure.

A function of the library runs with its caller's rights, so a role needs the commands inside the functions as well.
What holds it back is what it may touch: each key family is named here, and what is not named is forbidden.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .keys import Keys, old_gpu_report
from .library import source


class Role(StrEnum):
    """A part that somebody plays in a fabric."""

    ADMIN = "admin"  # everything; loads the function library
    CLIENT = "client"  # applications: submit, follow, cancel, look
    GATEWAY = "gateway"  # a client that checks API keys, too
    WORKER = "worker"  # agents: claim, answer, advertise, reap
    COORDINATOR = "coordinator"  # operators and the coordinator: steer nodes, limits, dead letters, too
    DASHBOARD = "dashboard"  # looks on; neither prompts nor answers, and changes nothing


# What client, gateway, worker, coordinator and dashboard may do with each family of keys, by its name in `Keys`:
# r = read, rw = read and write, - = nothing.
_ROLES = (Role.CLIENT, Role.GATEWAY, Role.WORKER, Role.COORDINATOR, Role.DASHBOARD)
_RIGHTS: Final = {
    # Bodies, answers, and what processes tell each other.
    ("blob", "events", "inbox", "cache", "cached"): "rw rw rw rw -",
    # Jobs, their lines and counters: any end of a job may touch them all.
    ("job", "queue", "idle", "armed", "fair", "tally", "usage", "learned"): "rw rw rw rw r",
    (
        "leases",
        "delayed",
        "deadlines",
        "dead",
        "failed",
        "ended",
        "ended_chunks",
        "hedges",
        "crashes",
    ): "rw rw rw rw r",
    ("models", "stats", "limits"): "rw rw rw rw r",
    # Batches: each end of a job may be the end of a chunk.
    ("batch", "batches"): "rw rw rw rw r",
    ("batch_in", "batch_open", "batch_out", "batch_map", "batch_done", "batch_due"): "rw rw rw rw -",
    # Submitting, and every end of a job, tell of its application.
    ("app", "apps"): "rw rw rw rw r",
    ("caches",): "rw rw - rw -",
    # What processes say of themselves; no prompt, no answer.
    ("log",): "rw rw rw rw r",
    ("worker", "node", "workers", "serves", "hosts", "shares", "classes", "late"): "r r rw rw r",
    ("series", "totals", "series_models", "series_nodes"): "r r rw rw r",
    ("pace",): "- - rw rw r",
    ("estimate",): "- - - rw r",
    ("api_keys",): "- r - - r",
    # What came over HTTP, and is seen to there.
    ("file", "files", "errand", "errands", "errands_of"): "- rw - - -",
    # What changes the models of nodes: a client that only asks models may not.
    ("call",): "- rw r rw -",
    # What operators, and the leader, have set.
    ("controls", "policy", "leader", "group", "groups", "formable"): "r r r rw r",
}
FAMILIES: Final = {
    family: dict(zip(_ROLES, rights.split(), strict=True))
    for families, rights in _RIGHTS.items()
    for family in families
}
# Spelt as Redis 7.0 knows them: a word in the file that a server does not know keeps it from starting.
_SESSION = frozenset(
    ("hello", "ping", "select", "time", "info", "wait", "acl|whoami", "client|setname", "cluster|slots")
)
_VIEWS = frozenset(
    (
        *("hget", "hmget", "hgetall", "hkeys", "hvals", "zrange", "zrangebyscore"),
        *("zcard", "zcount", "zscore", "zrank", "lrange", "llen"),
    )
)
_STREAMS = frozenset(("xread", "xrange", "xrevrange", "xtrim"))


@dataclass(frozen=True, slots=True)
class User:
    """One user of an ACL file.

    Attributes:
        rules: as ACL SETUSER takes them, without a password.
    """

    name: str
    rules: tuple[str, ...]

    def line(self, password: str) -> str:
        """Its line in the file; the password appears as its SHA-256 only."""
        return f"user {self.name} on #{hashlib.sha256(password.encode()).hexdigest()} {' '.join(self.rules)}"


# Nobody gets in without a name.
NOBODY: Final = "user default off"


def user(role: Role, fabric: str = "") -> User:
    """The user of a role; a fabric's users cannot reach another fabric's keys.

    Raises:
        InvalidJob: the fabric's name cannot be one.
    """
    keys = Keys(fabric)
    name = f"{keys.prefix.strip('{}').replace(':', '-')}-{role}"
    if role is Role.ADMIN:
        return User("sollol-admin", ("~*", "&*", "+@all"))
    rights = (f"+{each}" for each in commands(role))
    more = _for_rq(keys) if role is Role.COORDINATOR else ()
    return User(
        name, ("resetchannels", *more, *patterns(role, keys), "-@all", *rights, *_selector(role, keys))
    )


def _for_rq(keys: Keys) -> tuple[str, ...]:
    """The channel on which RQ tells its workers to stop."""
    return (f"&{keys.prefix}:rq:*",)


def _selector(role: Role, keys: Keys) -> tuple[str, ...]:
    """A second set of rights, for RQ's own keys alone: the commands that RQ needs there, or that read them."""
    if role is Role.DASHBOARD:
        return (f"(%R~{keys.prefix}:rq* -@all +@read +@transaction -@dangerous -scan -randomkey -dbsize)",)
    if role is not Role.COORDINATOR:
        return ()
    kinds = ("read", "write", "transaction", "pubsub", "connection", "blocking")
    rights = (
        " ".join(f"+@{kind}" for kind in kinds) + " -@dangerous -@scripting -scan -randomkey -dbsize +info"
    )
    return (f"(~{keys.prefix}:rq* &{keys.prefix}:rq:* -@all {rights})",)


def commands(role: Role) -> list[str]:
    """The commands that a role other than ADMIN may use."""
    if role is Role.DASHBOARD:
        # Of all streams it may touch the live log alone.
        return sorted(_SESSION | _VIEWS | (_STREAMS - {"xtrim"}))
    return sorted(_SESSION | _VIEWS | _STREAMS | {"fcall"} | inside_functions())


def inside_functions() -> set[str]:
    """The commands that the function library uses."""
    return {name.lower() for name in re.findall(r"redis\.p?call\('([A-Z]+)'", source())}


def patterns(role: Role, keys: Keys) -> list[str]:
    """The keys that a role other than ADMIN may touch, as ACL SETUSER takes them."""
    found = [] if role is Role.DASHBOARD else [f"~{keys.prefix}"]  # each FCALL names the prefix
    if role is Role.WORKER:
        found.append(f"%R~{old_gpu_report('*')}")
    for family, rights in FAMILIES.items():
        if rights[role] != "-":
            mark = "~" if rights[role] == "rw" else "%R~"
            is_one = isinstance(getattr(Keys, family), property)
            found.append(f"{mark}{keys.prefix}:{family}{'' if is_one else ':*'}")
    return found
