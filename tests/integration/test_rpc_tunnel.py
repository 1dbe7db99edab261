"""The tunnel in front of an rpc-server: who gets through, who does not, and what is left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sollol_broker.errors import BackendError
from sollol_worker_agent.rpc.identity import Identity, new_identity
from sollol_worker_agent.rpc.relay import Passage
from sollol_worker_agent.rpc.server import RpcServer
from sollol_worker_agent.rpc.tunnel import Tunnel
from sollol_worker_agent.rpc.wire import RpcState, ask
from waiting import wait_until


@pytest.fixture
async def rpc_port(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a real rpc-server."""
    server = RpcServer(log_directory=tmp_path, caches=False)
    await server.start()
    yield server.port
    await server.stop()


@contextlib.asynccontextmanager
async def listening(data: bytes = b"") -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server on loopback that says `data` to each client and keeps what it is told."""
    told: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        told.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], told


@contextlib.asynccontextmanager
async def tunnel(
    tmp_path: Path, target: int, *, head: Identity, member: Identity, pinned: str = "", is_rpc: bool = False
) -> AsyncIterator[tuple[Tunnel, Tunnel]]:
    """Both ends: what comes into the head's one goes, encrypted, to the member's, and from there to `target`."""
    far = Tunnel(
        [Passage(("127.0.0.1", 0), ("127.0.0.1", target), True, head.certificate, is_rpc)],
        member,
        tmp_path / "far.log",
    )
    try:
        (port,) = await far.start()
        passage = Passage(("127.0.0.1", 0), ("127.0.0.1", port), False, pinned or member.certificate, is_rpc)
        near = Tunnel([passage], head, tmp_path / "near.log")
        try:
            await near.start()
            yield near, far
        finally:
            await near.stop()
    finally:
        await far.stop()


async def test_carries_both_ways(tmp_path: Path) -> None:
    head, member = new_identity("head"), new_identity("member")
    sent = bytes(range(256)) * 20_000

    async with (
        listening(b"hello") as (target, told),
        tunnel(tmp_path, target, head=head, member=member) as ends,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", ends[0].ports[0])
        assert await reader.readexactly(5) == b"hello"
        writer.write(sent)
        writer.write_eof()
        await wait_until(lambda: bool(told), timeout=10, what="the server has been told all")
        writer.close()

    assert told == [sent]


async def test_an_rpc_server_answers_through_it(tmp_path: Path, rpc_port: int) -> None:
    head, member = new_identity("head"), new_identity("member")

    async with tunnel(tmp_path, rpc_port, head=head, member=member, is_rpc=True) as ends:
        report = await ask("127.0.0.1", ends[0].ports[0], measures_bandwidth=True)

    assert report.state is RpcState.IDLE
    assert report.version is not None
    assert report.devices[0].total_mib > 0
    assert report.mib_per_s is not None


async def test_who_shows_no_certificate_gets_nothing(tmp_path: Path) -> None:
    head, member = new_identity("head"), new_identity("member")

    async with (
        listening(b"secret") as (target, _),
        tunnel(tmp_path, target, head=head, member=member) as ends,
    ):
        plain = await _said_by(ends[1].ports[0])
        stranger = await _said_through(
            tmp_path, ends[1].ports[0], new_identity("stranger"), member.certificate
        )

    assert b"secret" not in plain
    assert stranger == b""


async def test_a_member_with_another_certificate_is_not_told_anything(tmp_path: Path) -> None:
    head, member = new_identity("head"), new_identity("member")
    expected = new_identity("the real member").certificate

    async with (
        listening(b"secret") as (target, told),
        tunnel(tmp_path, target, head=head, member=member, pinned=expected) as ends,
    ):
        assert await _said_by(ends[0].ports[0]) == b""

    assert told == []


async def test_nothing_of_it_is_left(tmp_path: Path) -> None:
    head, member = new_identity("head"), new_identity("member")

    async with listening() as (target, _), tunnel(tmp_path, target, head=head, member=member) as ends:
        ports = [ends[0].ports[0], ends[1].ports[0]]

    for port in ports:
        with pytest.raises(OSError, match=r"Connect call failed|refused"):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_tunnel_that_cannot_listen_says_so(tmp_path: Path) -> None:
    identity = new_identity("head")
    passage = Passage(("192.0.2.1", 0), ("127.0.0.1", 1), True, identity.certificate)

    with pytest.raises(BackendError, match="cannot listen"):
        await Tunnel([passage], identity, tmp_path / "log").start()


async def _said_by(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"x")
    try:
        async with asyncio.timeout(30):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def _said_through(tmp_path: Path, port: int, who: Identity, pinned: str) -> bytes:
    passage = Passage(("127.0.0.1", 0), ("127.0.0.1", port), False, pinned, is_rpc=False)
    near = Tunnel([passage], who, tmp_path / "stranger.log")
    try:
        return await _said_by((await near.start())[0])
    finally:
        await near.stop()
