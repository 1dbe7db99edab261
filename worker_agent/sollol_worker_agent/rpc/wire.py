"""llama.cpp's RPC protocol, as far as it tells who answers, what memory it has, and how fast the way there is.

A request is a command (one byte), the length of its payload (u64, little endian) and the payload; the reply is a
length and a payload. The handshake is the same in versions 4 to 7.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

_ALLOC_BUFFER, _BUFFER_BASE, _SET_TENSOR = 0, 3, 6
_DEVICE_MEMORY, _HELLO, _DEVICE_COUNT = 11, 14, 15
_MIB = 1024 * 1024
# No honest answer to what is asked here comes near.
_MOST_REPLY_BYTES = 1024
_MOST_DEVICES = 64
# Enough to see the pace of a link, little enough for a slow one.
_SAMPLE_BYTES = 8 * _MIB
_TYPE_F32 = 0


class RpcState(StrEnum):
    """How a server was found.

    IDLE: it answers. BUSY: it takes the connection but says nothing: it serves one client at a time, and has one.
    DOWN: nothing listens there. UNREACHABLE: no answer to the connection. FOREIGN: something else listens there.
    """

    IDLE = "idle"
    BUSY = "busy"
    DOWN = "down"
    UNREACHABLE = "unreachable"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class RpcDevice:
    """Memory of one device; of a CPU, `free_mib` is all of the machine's memory, not what is free."""

    free_mib: int
    total_mib: int


@dataclass(frozen=True, slots=True)
class RpcReport:
    """What a server said of itself.

    Attributes:
        version: of the protocol, (major, minor, patch); None when it did not answer.
        trip_ms: of one question and its answer. mib_per_s: to it; None = not measured.
        why: what went wrong, for a reader.
    """

    host: str
    port: int
    state: RpcState
    version: tuple[int, int, int] | None = None
    devices: tuple[RpcDevice, ...] = ()
    trip_ms: float = 0.0
    mib_per_s: float | None = None
    why: str = ""


async def ask(
    host: str, port: int, *, timeout_seconds: float = 2.0, measures_bandwidth: bool = False
) -> RpcReport:
    """Ask a server who it is and what it has; nothing is left there.

    Do not ask one that serves a group: it would not answer, and the question would stay in its backlog of one.

    Args:
        measures_bandwidth: send it 8 MiB as well.
    """
    try:
        async with _connected(host, port, timeout_seconds) as talk, asyncio.timeout(timeout_seconds):
            report = await _told(talk, host, port)
    except TimeoutError:
        return RpcReport(host, port, RpcState.BUSY, why="it takes connections, but does not answer")
    except _NoConnection as error:
        return RpcReport(host, port, error.state, why=str(error))
    except (asyncio.IncompleteReadError, OSError, ValueError) as error:
        return RpcReport(host, port, RpcState.FOREIGN, why=f"it does not speak ggml's RPC ({error})")
    if not measures_bandwidth or not report.devices:
        return report
    # From version 7 on a flag precedes the offset: whether the server is to keep the tensor on its disk.
    flags = (b"\0", b"") if report.version is not None and report.version[0] >= 7 else (b"", b"\0")
    pace = None
    for flag in flags:
        if pace is None:  # a server that did not understand has closed the connection, and nothing else
            pace = await _pace(host, port, 10 * timeout_seconds, flag)
    return RpcReport(
        host, port, report.state, report.version, report.devices, report.trip_ms, pace, why=report.why
    )


async def _told(talk: _Talk, host: str, port: int) -> RpcReport:
    hello = await talk.ask(_HELLO, bytes(24))
    if len(hello) < 3:
        raise ValueError("its greeting is too short")
    began = time.perf_counter()  # not before: a tunnel makes its own connection during the greeting
    count = struct.unpack("<I", await talk.ask(_DEVICE_COUNT))[0]
    trip_ms = (time.perf_counter() - began) * 1000
    if count > _MOST_DEVICES:
        raise ValueError(f"it says that it has {count} devices")
    devices = []
    for device in range(count):
        free, total = struct.unpack("<QQ", await talk.ask(_DEVICE_MEMORY, struct.pack("<I", device)))
        devices.append(RpcDevice(free // _MIB, total // _MIB))
    version = (hello[0], hello[1], hello[2])
    return RpcReport(host, port, RpcState.IDLE, version, tuple(devices), round(trip_ms, 3))


async def _pace(host: str, port: int, timeout_seconds: float, flag: bytes) -> float | None:
    """MiB per second to the server's first device; None when it will not have it."""
    try:
        async with _connected(host, port, timeout_seconds) as talk, asyncio.timeout(timeout_seconds):
            await talk.ask(_HELLO, bytes(24))
            pointer, size = struct.unpack(
                "<QQ", await talk.ask(_ALLOC_BUFFER, struct.pack("<IQ", 0, _SAMPLE_BYTES))
            )
            if size < _SAMPLE_BYTES:
                return None
            (base,) = struct.unpack("<Q", await talk.ask(_BUFFER_BASE, struct.pack("<Q", pointer)))
            began = time.perf_counter()
            offset = struct.pack("<Q", 0)
            await talk.tell(_SET_TENSOR, _tensor(pointer, base) + flag + offset + bytes(_SAMPLE_BYTES))
            await talk.ask(_DEVICE_COUNT)  # answered when all has arrived
            took = time.perf_counter() - began
            # The buffer is freed when we leave; whether freeing it is answered depends on the version.
            return round(_SAMPLE_BYTES / _MIB / took, 1)
    except (TimeoutError, _NoConnection, asyncio.IncompleteReadError, OSError, ValueError, struct.error):
        return None


def _tensor(pointer: int, base: int) -> bytes:
    """A vector of f32 that fills the sample's buffer, in the protocol's packed form."""
    count = _SAMPLE_BYTES // 4
    return b"".join(
        (
            struct.pack("<QIQ", 1, _TYPE_F32, pointer),
            struct.pack("<4I", count, 1, 1, 1),
            struct.pack("<4I", 4, _SAMPLE_BYTES, _SAMPLE_BYTES, _SAMPLE_BYTES),
            struct.pack("<I", 0),  # no operation
            bytes(64),  # its parameters
            struct.pack("<i", 0),
            bytes(80),  # sources
            struct.pack("<QQQ", 0, 0, base),
            bytes(64),  # its name
            bytes(4),
        )
    )


class _NoConnection(Exception):
    def __init__(self, state: RpcState, why: str) -> None:
        super().__init__(why)
        self.state = state


@dataclass(slots=True)
class _Talk:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def tell(self, command: int, payload: bytes) -> None:
        self.writer.write(struct.pack("<BQ", command, len(payload)))
        self.writer.write(payload)
        await self.writer.drain()

    async def ask(self, command: int, payload: bytes = b"") -> bytes:
        await self.tell(command, payload)
        (length,) = struct.unpack("<Q", await self.reader.readexactly(8))
        if length > _MOST_REPLY_BYTES:
            raise ValueError(f"it announces a reply of {length} bytes")
        return await self.reader.readexactly(length)


@contextlib.asynccontextmanager
async def _connected(host: str, port: int, timeout_seconds: float) -> AsyncIterator[_Talk]:
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        raise _NoConnection(RpcState.UNREACHABLE, "no answer to the connection") from None
    except OSError as error:
        raise _NoConnection(RpcState.DOWN, error.strerror or str(error)) from error
    try:
        yield _Talk(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await writer.wait_closed()
