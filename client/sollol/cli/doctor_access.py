"""What the doctor makes of who can get at prompts and servers: logins, TLS, open ports, the slow log. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from sollol_broker.api_keys import KeyRole
from sollol_broker.url import is_loopback

from .doctor_facts import Facts, Finding, error, note, ok, warning
from .doctor_releases import distribution_patch, safe_release, server_of
from .units import count, duration

_LOOPBACK_ONLY = {
    "ollama": "set OLLAMA_HOST=127.0.0.1 for Ollama",
    "llama-server": "start llama-server with --host 127.0.0.1",
}
# By the program's name, and by the port where we may not see the program: what others could misuse.
_PROGRAMS = {"ollama": "Ollama", "llama-server": "llama-server", "rpc-server": "rpc-server",
             "ggml-rpc-server": "rpc-server", "redis-server": "Redis", "valkey-server": "Valkey"}  # fmt: skip
_PORTS = {11434: "Ollama", 50052: "rpc-server", 6379: "Redis"}
_RPC = "rpc-server"
_SOON_SECONDS = 7 * 86_400.0
_PAST_THE_QUEUE = ": others use it past the queue, without a login"
# The largest that the servers take as "keep none".
_OFF = re.compile(r"-1|0")


def check_login(facts: Facts) -> Iterator[Finding]:
    """Whether strangers can use Redis, or read what is said to it."""
    if not facts.is_loopback and not facts.is_encrypted:
        cross = "the password crosses" if facts.is_sealed else "prompts and the password cross"
        yield warning(
            "access.plaintext",
            f"{cross} the network unencrypted",
            "give Redis a certificate and use rediss://, or keep this network to yourself (a VPN)",
        )
    is_open = _is_open(facts)
    if is_open and is_exposed(facts):
        yield error(
            "access.open",
            "Redis takes everybody without a password: whoever reaches it reads and changes all jobs",
            "set requirepass or ACL users, and SOLLOL_REDIS_PASSWORD here; or bind it to 127.0.0.1",
        )
    elif is_open:
        yield ok("access.open", "no password, but only this machine reaches Redis")
    else:
        who = f" as {facts.access.user}" if facts.access else ""
        yield ok("access.open", f"a login is needed, we are logged in{who}")


def check_roles(facts: Facts) -> Iterator[Finding]:
    """Whether everybody may do everything."""
    if (
        facts.access is not None
        and facts.access.user == "default"
        and not _is_open(facts)
        and is_exposed(facts)
    ):
        yield note(
            "access.roles",
            "we are the default user, who may do everything in Redis",
            "where several people share it, give workers and clients users of their own: `sollol acl`",
        )


def check_api_keys(facts: Facts) -> Iterator[Finding]:
    """Whether keys for the gateway are good for too much, or soon for nothing."""
    now = facts.redis_time
    good = [key for key in facts.api_keys or () if not key.revoked and not 0 < key.expires <= now]
    for key in good:
        if 0 < key.expires <= now + _SOON_SECONDS:
            yield note(
                "access.keys",
                f"API key {key.id} of {key.name} is void in {duration(key.expires - now)}",
                "`sollol keys add` makes a new one",
            )
    endless = sorted({key.name for key in good if key.role is KeyRole.ADMIN and not key.expires})
    if endless:
        yield note(
            "access.keys",
            f"API keys of {', '.join(endless)} may do everything, and never expire",
            "one that leaks stays good: `sollol keys add --role admin --expires 30d`, then revoke the old one",
        )
    if good:
        yield ok("access.keys", f"{count(len(good), 'API key')}, only their SHA-256 in Redis")


def check_listeners(facts: Facts) -> Iterator[Finding]:
    """Whether servers on this machine, and backends on others, can be reached past the queue."""
    found = list(dict.fromkeys((*_open_here(facts), *_open_elsewhere(facts))))
    yield from found
    if not found and (facts.listeners is not None or facts.workers):
        yield ok("listeners.open", "no LLM server that we see is open to the network")


def check_remote_backends(facts: Facts) -> Iterator[Finding]:
    """Which backends workers reach over the network."""
    for worker in facts.workers:
        for backend in worker.backends:
            host = urlsplit(backend["url"]).hostname or ""
            if host and not is_loopback(host):
                yield note(
                    "backends.remote",
                    f"{worker.node} reaches {backend['kind']} over the network, at {backend['url']}",
                    "whoever else reaches it needs no queue: better run a worker beside it, and bind it to 127.0.0.1",
                )


def check_slow_log(facts: Facts) -> Iterator[Finding]:
    """Whether Redis keeps parts of prompts where they do not expire."""
    todo = (
        "CONFIG SET slowlog-max-len 0, the same in redis.conf, and SLOWLOG RESET; on Valkey 8.1 or newer also "
        "commandlog-request-larger-than -1"
    )
    config = facts.config
    if facts.is_sealed:
        yield ok("slowlog.prompts", "prompts are encrypted before Redis sees them, in its logs as well")
    elif facts.slow_calls:
        entries = count(facts.slow_calls, "entry", "entries")
        yield warning(
            "slowlog.prompts", f"the slow log holds {entries} with pieces of jobs, maybe of prompts", todo
        )
    elif config is not None:
        slow = not (config.get("slowlog-log-slower-than") == "-1" or config.get("slowlog-max-len") == "0")
        large = not _OFF.fullmatch(config.get("commandlog-request-larger-than", "-1"))
        if slow or large:
            yield note(
                "slowlog.prompts", "slow or large calls leave pieces of prompts in Redis' own log", todo
            )
        else:
            yield ok("slowlog.prompts", "no log of Redis keeps arguments")


def check_holes(facts: Facts) -> Iterator[Finding]:
    """Whether this release of Redis is known to be unsafe."""
    if facts.info is None:
        return
    kind, text, version = server_of(facts.info)
    safe = safe_release(kind, version)
    if not safe:
        return
    found = f"{kind} {text} has known holes, by which users of it can run code on its machine"
    package = distribution_patch(kind, version)
    if package is not None:
        patched = f"{package} or newer" if package else "the latest"
        yield warning(
            "redis.holes",
            f"{found}, unless it is a package that Debian or Ubuntu has patched: its number does not tell",
            f"look at `dpkg -l '*{kind.lower()}-server'`: take {patched} of your distribution, or {kind} {safe}",
        )
    elif is_exposed(facts):
        yield error("redis.holes", found, f"upgrade it to {kind} {safe} or newer")
    else:
        yield warning("redis.holes", found, f"upgrade it to {kind} {safe} or newer")


def is_exposed(facts: Facts) -> bool:
    """Whether other machines reach Redis."""
    if not facts.is_loopback:
        return True
    config = facts.config or {}
    if config.get("port", "0") == "0" and config.get("tls-port", "0") == "0":
        return False
    hosts = [host.lstrip("-") for host in config.get("bind", "").split()] or ["*"]
    # Protected mode turns strangers away as long as no password does.
    turns_away = config.get("protected-mode") != "no" and _is_open(facts)
    return not turns_away and not all(is_loopback(host) for host in hosts)


def _is_open(facts: Facts) -> bool:
    is_open = facts.access.default_is_open if facts.access else None
    return not facts.is_protected if is_open is None else is_open


def _open_here(facts: Facts) -> Iterator[Finding]:
    for listener in facts.listeners or ():
        name = _PROGRAMS.get(listener.program) or ("" if listener.program else _PORTS.get(listener.port, ""))
        if not name or is_loopback(listener.address):
            continue
        found = f"{name} on this machine listens on {_shown(listener.address, listener.port)}"
        if name == _RPC:
            yield error(
                "listeners.open",
                f"{found}: it knows no password, and whoever reaches it can run code here",
                "bind it to 127.0.0.1 (-H 127.0.0.1) and go through a tunnel",
            )
        elif todo := _LOOPBACK_ONLY.get(name.lower()):
            yield warning("listeners.open", f"{found}{_PAST_THE_QUEUE}", todo)
        else:
            yield note("listeners.open", found, "see to it that it asks for a password")


def _open_elsewhere(facts: Facts) -> Iterator[Finding]:
    for node in facts.nodes or ():
        if node.host == facts.host and facts.listeners is not None:
            continue  # seen from here already
        for backend in (backend for worker in node.workers for backend in worker.backends):
            for address in backend.get("open", ()):
                where = _shown(address, urlsplit(backend["url"]).port or 80)
                yield warning(
                    "listeners.open",
                    f"{backend['kind']} on {node.name} listens on {where}{_PAST_THE_QUEUE}",
                    _LOOPBACK_ONLY.get(backend["kind"], "bind it to 127.0.0.1 there"),
                )


def _shown(address: str, port: int) -> str:
    where = {"0.0.0.0": "all addresses", "::": "all addresses"}.get(address)  # noqa: S104  # what was found
    return f"port {port} of {where or address}"
