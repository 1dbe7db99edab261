"""Looks through networks that somebody named for LLM servers and rpc-servers: never more at once than is told."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from sollol_broker.errors import BackendError, InvalidJob
from sollol_worker_agent.backends.discovery import LOCAL_PORTS, OurGateway, detect
from sollol_worker_agent.backends.protocol import Backend, Timeouts
from sollol_worker_agent.rpc.wire import RpcReport, RpcState
from sollol_worker_agent.rpc.wire import ask as ask_rpc

RPC_PORT = 50052
PORTS = (*LOCAL_PORTS, RPC_PORT)
# Sixteen home networks; more is a job for a network scanner, run by who owns the network.
_MOST_ADDRESSES = 4096
_MOST_PORTS = 64
# Connections begun per second. Cheap routers give up at some thousands of half-open ones.
RATE = 300.0
AT_ONCE = 64
# An open port costs several questions, and a model list may be long.
_ASK_SECONDS = 5.0
_ASKING = Timeouts(connect=1.0, first_token=2.0, between_tokens=2.0, total=3.0)

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Found:
    """A server.

    Attributes:
        kind: "ollama", "llama-server", "openai", "rpc" (a llama.cpp rpc-server), "gateway" (one of ours), "locked"
            (it asks for an API key) or "unknown".
        latency_ms: of a new connection to it.
        note: what else is to be said of it.
    """

    host: str
    port: int
    kind: str
    url: str
    version: str = ""
    models: tuple[str, ...] = ()
    latency_ms: float = 0.0
    note: str = ""

    @property
    def is_llm_server(self) -> bool:
        """Whether a worker can front it."""
        return self.kind in ("ollama", "llama-server", "openai")


def addresses(networks: Iterable[str]) -> list[str]:
    """Every address of the networks, "10.0.0.0/24" or "10.0.0.5", each once.

    Raises:
        InvalidJob: one is no network, or they are too large.
    """
    found: dict[str, None] = {}
    for text in networks:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise InvalidJob(
                f"{text!r} is no network such as 192.168.1.0/24: {error}", field="subnet"
            ) from None
        if len(found) + network.num_addresses > _MOST_ADDRESSES:
            raise InvalidJob(
                f"{text}: at most {_MOST_ADDRESSES:,} addresses are looked at; name a part of it",
                field="subnet",
            )
        found.update(dict.fromkeys(str(each) for each in network.hosts()))
    return list(found)


def ports(text: str) -> list[int]:
    """ "11434,50050-50060" as numbers.

    Raises:
        InvalidJob: it is no such list.
    """
    found: dict[int, None] = {}
    for part in text.replace(",", " ").split():
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            raise InvalidJob(f"{part!r} is neither a port nor a range such as 50050-50060", field="ports")
        low, high = int(first), int(last or first)
        if not 0 < low <= high < 65536 or len(found) + high - low >= _MOST_PORTS:
            raise InvalidJob(f"{part}: ports from 1 to 65535, at most {_MOST_PORTS} of them", field="ports")
        found.update(dict.fromkeys(range(low, high + 1)))
    if not found:
        raise InvalidJob("no port is named", field="ports")
    return list(found)


class Pace:
    """Lets so many begin per second, and so many be under way."""

    def __init__(
        self,
        *,
        rate: float = RATE,
        at_once: int = AT_ONCE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._gap = 1 / rate
        self._room = asyncio.Semaphore(at_once)
        self._clock = clock
        self._sleep = sleep
        self._next = -1.0

    async def __aenter__(self) -> None:
        await self._room.acquire()
        now = self._clock()
        at = max(self._next, now)
        self._next = at + self._gap
        try:
            if at > now:
                await self._sleep(at - now)
        except BaseException:
            self._room.release()
            raise

    async def __aexit__(self, *error: object) -> None:
        self._room.release()


async def scan(
    targets: Sequence[tuple[str, int]],
    *,
    timeout_seconds: float,
    pace: Pace,
    on_look: Callable[[], None] = lambda: None,
) -> list[Found]:
    """The servers among `targets`, in their order. No API key is shown to anybody.

    Args:
        timeout_seconds: for a connection.
        on_look: called when one has been looked at.
    """

    async def one(host: str, port: int) -> Found | None:
        async with pace:
            found = await identify(host, port, timeout_seconds)
        on_look()
        return found

    results = await asyncio.gather(*(one(host, port) for host, port in dict.fromkeys(targets)))
    return [each for each in results if each is not None]


async def identify(host: str, port: int, timeout_seconds: float) -> Found | None:
    """Ask who listens there; None = nobody.

    1. Around the usual port of rpc-servers that is asked first. One that serves somebody already keeps silent, and has
       room for one more connection, so it gets no needless ones.
    2. Whatever speaks HTTP is asked what it is.
    3. The rest may be an rpc-server on another port.
    """
    is_rpc_port = abs(port - RPC_PORT) < 100
    report = await ask_rpc(host, port, timeout_seconds=timeout_seconds) if is_rpc_port else None
    if report is not None and report.state is not RpcState.FOREIGN and report.state is not RpcState.BUSY:  # 1
        return _rpc_server(report)
    latency = await _connects(host, port, timeout_seconds)
    if latency is None:
        return _rpc_server(report) if report else None
    found = await _over_http(host, port, latency)  # 2
    if found is None and report is None:  # 3
        other = await ask_rpc(host, port, timeout_seconds=timeout_seconds)
        report = other if other.state is RpcState.IDLE else None
    return found or _rpc_server(report) or Found(host, port, "unknown", _url(host, port), latency_ms=latency)


async def _over_http(host: str, port: int, latency_ms: float) -> Found | None:
    url = _url(host, port)
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            backend = await detect(url, timeouts=_ASKING)
            try:
                return await _llm_server(host, port, backend, latency_ms)
            finally:
                await backend.close()
    except (TimeoutError, ValueError):
        return None
    except BackendError as error:
        if error.status in (401, 403):
            return Found(host, port, "locked", url, latency_ms=latency_ms, note="it asks for an API key")
        if isinstance(error, OurGateway):
            return Found(host, port, "gateway", url, latency_ms=latency_ms, note="it serves a fabric already")
        return None


async def _llm_server(host: str, port: int, backend: Backend, latency_ms: float) -> Found:
    version, note = "", ""
    models: tuple[str, ...] = ()
    with contextlib.suppress(BackendError):
        version = await backend.version()
    try:
        models = tuple(sorted(info.name for info in await backend.models()))
    except BackendError as error:
        note = f"its models cannot be listed: {error}"
    return Found(host, port, backend.kind, backend.url, version, models, latency_ms, note)


def _rpc_server(report: RpcReport | None) -> Found | None:
    if report is None or report.state not in (RpcState.IDLE, RpcState.BUSY):
        return None
    version = ".".join(map(str, report.version or ()))
    free = sum(device.free_mib for device in report.devices)
    note = f"{free:,} MiB free" if report.state is RpcState.IDLE else "busy: it serves somebody"
    url = f"grpc://{report.host}:{report.port}"
    return Found(report.host, report.port, "rpc", url, version, (), round(report.trip_ms, 2), note)


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def _connects(host: str, port: int, timeout_seconds: float) -> float | None:
    """ms that a connection took; None = there is none."""
    began = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_seconds):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return None
    took = (time.perf_counter() - began) * 1000
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return round(took, 2)
