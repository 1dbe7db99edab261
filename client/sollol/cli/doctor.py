"""`sollol doctor`: looks at Redis and the fabric; doctor_checks.py says what it makes of it."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import click

from sollol_broker.broker import Broker
from sollol_broker.errors import SollolError
from sollol_broker.link import LinkConfig
from sollol_broker.registry import Registry
from sollol_broker.url import BrokerUrl, parse
from sollol_broker.version import VERSION

from . import output
from .doctor_checks import examine, worst
from .doctor_facts import Facts, Finding, Functions, Severity
from .options import fabric_options
from .units import count

T = TypeVar("T")

# Long enough for a slow network; a doctor that waits half a minute helps nobody.
_PATIENCE_SECONDS = 3.0
_PINGS = 10
_SETTINGS = ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy", "bind", "port", "tls-port",
             "protected-mode")  # fmt: skip
_DEAD_SHOWN = 3
_EXIT_CODES = {Severity.OK: 0, Severity.WARN: 1, Severity.ERROR: 2}
_MARKS = {Severity.OK: ("ok", "green"), Severity.WARN: ("warn", "yellow"), Severity.ERROR: ("ERROR", "red")}


@click.command()
@fabric_options
def doctor(url: str, as_json: bool) -> None:
    """Check Redis, workers and backends, and say what to do.

    It changes nothing, except that it loads SOLLOL's functions into Redis if they are missing.

    Exit codes: 0 all is well, 1 there are warnings, 2 there are errors.
    """
    findings = examine(asyncio.run(look(parse(url, environ=os.environ))))
    if as_json:
        output.print_json({"worst": worst(findings).value, "findings": [asdict(each) for each in findings]})
    else:
        _show(findings)
    raise click.exceptions.Exit(_EXIT_CODES[worst(findings)])


async def look(url: BrokerUrl) -> Facts:
    """Gather everything; what cannot be looked at is left out, with the reason."""
    known: dict[str, Any] = {
        "url": str(url),
        "is_loopback": url.is_loopback,
        "is_protected": bool(url.password or (url.tls and url.tls.cert)),
        "version": VERSION,
    }
    config = LinkConfig(connect_seconds=_PATIENCE_SECONDS, patience_seconds=_PATIENCE_SECONDS)
    broker = Broker(url, name="sollol-doctor", config=config)
    try:
        await broker.open()
        return await _Look(broker).facts(known)
    except SollolError as error:
        return Facts(**known, unreachable=str(error))
    finally:
        await broker.close()


@dataclass(slots=True)
class _Look:
    """One visit; each look on its own may fail."""

    broker: Broker
    refused: list[tuple[str, str]] = field(default_factory=list)

    async def facts(self, known: dict[str, Any]) -> Facts:
        """Everything there is to see."""
        registry = Registry(self.broker)
        latency_ms = await self._try("PING", self._latency_ms())
        workers = await self._try("workers", registry.workers())
        queues = await self._try("queues", registry.queues())
        dead, dead_ids = await self._try("dead letters", self._dead()) or (0, ())
        return Facts(
            **known,
            info=await self._try("INFO", self._info()),
            config=await self._try("CONFIG", self._config()),
            functions=await self._functions(),
            clock_ahead_seconds=await self._try("TIME", self._clock_ahead()),
            latency_ms=latency_ms,
            workers=None if workers is None else tuple(workers),
            vanished=await self._try("vanished workers", self._vanished()) or 0,
            queues=None if queues is None else tuple(queues),
            dead=dead,
            dead_ids=dead_ids,
            refused=tuple(self.refused),
        )

    async def _try(self, what: str, looking: Awaitable[T]) -> T | None:
        try:
            return await looking
        except Exception as error:  # a user without rights, a renamed command: one look less, never a crash
            self.refused.append((what, self._reason(error)))
            return None

    async def _info(self) -> dict[str, str]:
        text = (await self._call("INFO")).decode(errors="replace")
        return {
            name: value for name, found, value in (line.partition(":") for line in text.splitlines()) if found
        }

    async def _config(self) -> dict[str, str]:
        flat = [part.decode(errors="replace") for part in await self._call("CONFIG", "GET", *_SETTINGS)]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def _functions(self) -> Functions:
        name = self.broker.functions.name
        listed = await self._try("FUNCTION", self._call("FUNCTION", "LIST", "LIBRARYNAME", name))
        try:
            # Cancels a job that cannot exist: proves that the functions run, and loads them if missing.
            await self.broker.cancel("doctor")
        except Exception as error:
            return Functions(name, "unusable", self._reason(error))
        return Functions(name, "loaded" if listed == [] else "present")

    async def _clock_ahead(self) -> float:
        """Of several readings the one with the shortest round trip is the most exact."""
        readings = []
        for _ in range(5):
            sent = time.time()
            seconds, micros = await self._call("TIME")
            received = time.time()
            readings.append((received - sent, (sent + received) / 2 - int(seconds) - int(micros) / 1e6))
        return min(readings)[1]

    async def _latency_ms(self) -> float:
        took = []
        for _ in range(_PINGS):
            sent = time.perf_counter()
            await self._call("PING")
            took.append((time.perf_counter() - sent) * 1000)
        return statistics.median(took)

    async def _vanished(self) -> int:
        seconds, _ = await self._call("TIME")
        return int(await self._call("ZCOUNT", self.broker.keys.workers, "-inf", int(seconds) * 1000))

    async def _dead(self) -> tuple[int, tuple[str, ...]]:
        ids = await self._call("ZRANGE", self.broker.keys.dead, 0, _DEAD_SHOWN - 1, "REV")
        return int(await self._call("ZCARD", self.broker.keys.dead)), tuple(each.decode() for each in ids)

    def _reason(self, error: Exception) -> str:
        return " ".join(str(error).split()).removeprefix(f"Redis at {self.broker.url} ")

    async def _call(self, *command: object) -> Any:
        return await self.broker.link.call(*command)


def _show(findings: list[Finding]) -> None:
    rows: list[tuple[output.Cell | str, ...]] = []
    for finding in findings:
        word, colour = _MARKS[finding.severity]
        rows.append((output.Cell(word, colour), finding.check, finding.found))
        if finding.todo:
            rows.append(("", "", output.Cell(f"→ {finding.todo}", colour)))
    output.print_lines(rows)
    tally = {each: sum(1 for finding in findings if finding.severity is each) for each in Severity}
    if tally[Severity.ERROR] or tally[Severity.WARN]:
        output.say(f"\n{count(tally[Severity.ERROR], 'error')}, {count(tally[Severity.WARN], 'warning')}")
    else:
        output.say("\nAll is well.")
