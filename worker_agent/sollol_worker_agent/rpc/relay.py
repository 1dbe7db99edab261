"""Carries bytes between two connections, one of them encrypted with both sides' certificates.

llama.cpp's RPC has neither authentication nor encryption, and whoever reaches it can run code there. So it
listens on loopback only, and this is the one way to it. Runs in a process of its own (`tunnel.py`): a busy agent
would slow each token down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .frames import REPLY_HEAD, REQUEST_HEAD, Frames

# What has arrived, and is not yet sent on, before the sender is stopped.
_HIGH_WATER_BYTES = 4 * 1024 * 1024
_CONNECT_SECONDS = 5.0
# A peer that has gone without a word is noticed within about 9 s: its connection ends, and with it the group's
# llama-server, which would otherwise hang for a quarter of an hour.
_DEAD_PEER_MS = 8_000
_COUNT_SECONDS = 0.5
_KEEPALIVE = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
# What it prints: the ports once it listens, then how many bytes it has carried, whenever that has changed, and which
# passages (by number) were cut off by the network.
READY, CARRIED, CUT = "tunnel is ready ", "carried ", "cut "


@dataclass(frozen=True, slots=True)
class Passage:
    """One way through.

    Attributes:
        listen: (address, port); port 0 = a free one. target: (address, port).
        is_server: whether the encrypted side is the one that listens.
        is_rpc: whether llama.cpp's messages go through, each in one piece; otherwise bytes as they come.
        peer_certificate: PEM; the only one that is accepted.
    """

    listen: tuple[str, int]
    target: tuple[str, int]
    is_server: bool
    peer_certificate: str
    is_rpc: bool = True

    @property
    def frames(self) -> Frames | None:
        """For what comes in on the side that is not encrypted: requests at the head, replies at a member."""
        return Frames(REPLY_HEAD if self.is_server else REQUEST_HEAD) if self.is_rpc else None


class _Meter:
    """What has happened since the start: bytes carried, and passages that their far end closed or left silent."""

    def __init__(self) -> None:
        self.carried = 0
        self.cut: set[int] = set()


class _Side(asyncio.Protocol):
    """One of two connections that hand on to each other what they receive."""

    def __init__(
        self,
        meter: _Meter,
        on_made: Callable[[_Side], None] | None = None,
        *,
        passage: int | None = None,
        frames: Frames | None = None,
    ) -> None:
        self._passage = passage
        self._frames = frames
        self._meter = meter
        self.transport: asyncio.Transport | None = None
        self.other: _Side | None = None
        self._on_made = on_made
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # streams only
        self.transport = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        if self._on_made is not None:
            self._on_made(self)

    @property
    def is_closing(self) -> bool:
        """Whether it has been closed, by whichever end."""
        return self.transport is None or self.transport.is_closing()

    def pair(self, other: _Side) -> None:
        """From now on the other one gets what comes here; it gets first what has come so far."""
        self.other, other.other = other, self
        for side in (self, other):
            for data in side._early:
                side.data_received(data)
            side._early.clear()

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early.append(data)
        elif whole := self._frames.whole(data) if self._frames is not None else data:
            self._hand_on(whole)

    def _hand_on(self, data: bytes) -> None:
        if (
            self.other is not None
            and self.other.transport is not None
            and not self.other.transport.is_closing()
        ):
            self._meter.carried += len(data)
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        other_is_open = self.other is not None and not self.other.is_closing
        if self._passage is not None and (isinstance(error, OSError) or other_is_open):
            self._meter.cut.add(self._passage)
        if self._frames is not None and (rest := self._frames.rest()):
            self._hand_on(rest)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def open_passage(
    number: int, passage: Passage, certificate: str, key: str, meter: _Meter
) -> asyncio.Server:
    """Listen and carry; `sockets` of what is returned tells the port."""
    context = _context(passage, certificate, key)
    opening: set[asyncio.Task[None]] = set()

    def on_made(near: _Side) -> None:
        _watch(near)
        task = asyncio.ensure_future(
            _lead_on(near, number, passage, None if passage.is_server else context, meter)
        )
        opening.add(task)
        task.add_done_callback(opening.discard)

    host, port = passage.listen
    return await asyncio.get_running_loop().create_server(
        lambda: _Side(meter, on_made, frames=None if passage.is_server else passage.frames),
        host,
        port,
        ssl=context if passage.is_server else None,
        ssl_handshake_timeout=_CONNECT_SECONDS if passage.is_server else None,
    )


async def _lead_on(
    near: _Side, number: int, passage: Passage, context: ssl.SSLContext | None, meter: _Meter
) -> None:
    assert near.transport is not None  # noqa: S101  # this is called when it is made
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            hostname = "" if context else None
            _, far = await loop.create_connection(
                lambda: (
                    _Side(meter, frames=passage.frames) if passage.is_server else _Side(meter, passage=number)
                ),
                *passage.target,
                ssl=context,
                server_hostname=hostname,
            )
    except (OSError, TimeoutError):
        if not passage.is_server:
            meter.cut.add(number)
        near.transport.abort()
        return
    _watch(far)
    if near.transport.is_closing() and far.transport is not None:
        far.transport.close()
    near.pair(far)


def _watch(side: _Side) -> None:
    """Let the kernel notice a peer that is gone."""
    sock = side.transport.get_extra_info("socket") if side.transport is not None else None
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if (option := getattr(socket, name, None)) is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
        if (option := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, _DEAD_PEER_MS)


def _context(passage: Passage, certificate: str, key: str) -> ssl.SSLContext:
    """Both show a certificate, and each accepts exactly one."""
    kind = ssl.PROTOCOL_TLS_SERVER if passage.is_server else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate itself is pinned, whatever the address
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=passage.peer_certificate)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # the module reads keys from files only
        file.write(certificate + key)
        file.flush()
        context.load_cert_chain(file.name)
    return context


async def _serve(config: Mapping[str, Any]) -> None:
    servers, meter = [], _Meter()
    for number, each in enumerate(config["passages"]):
        passage = Passage(
            tuple(each["listen"]),
            tuple(each["target"]),
            each["is_server"],
            each["peer_certificate"],
            each["is_rpc"],
        )
        servers.append(await open_passage(number, passage, config["certificate"], config["key"], meter))
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    sys.stdout.write(READY + json.dumps(ports) + "\n")
    sys.stdout.flush()
    told = ""
    while True:
        await asyncio.sleep(_COUNT_SECONDS)
        new = f"{CUT}{json.dumps(sorted(meter.cut))}\n{CARRIED}{meter.carried}\n"
        if new != told and (meter.carried or meter.cut):
            told = new
            # Only the newest count matters, and nobody rotates this log.
            os.ftruncate(sys.stdout.fileno(), 0)
            sys.stdout.write(new)
            sys.stdout.flush()


def main() -> None:
    """Run with the configuration from standard input: it holds a key."""
    try:
        asyncio.run(_serve(json.load(sys.stdin)))
    except OSError as error:
        sys.exit(f"the tunnel cannot listen: {error}")


if __name__ == "__main__":
    main()
