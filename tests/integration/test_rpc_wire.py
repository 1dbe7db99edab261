"""What an rpc-server says of itself, asked of a real one, and of what is none."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from sollol_broker.child import free_port
from sollol_worker_agent.llama_binaries import find_llama_server, find_rpc_server
from sollol_worker_agent.rpc.server import RpcServer
from sollol_worker_agent.rpc.wire import RpcState, ask


async def test_an_idle_server_tells_version_memory_and_pace(tmp_path: Path) -> None:
    server = RpcServer(log_directory=tmp_path, caches=False)
    told = await server.start()
    try:
        report = await ask("127.0.0.1", server.port, measures_bandwidth=True)
        again = await ask("127.0.0.1", server.port)
    finally:
        await server.stop()

    assert report.state is again.state is RpcState.IDLE
    assert told.version == report.version
    assert report.version is not None
    assert report.version[0] >= 4
    assert [device.total_mib > 100 for device in report.devices] == [True]
    assert report.trip_ms > 0
    assert report.mib_per_s is not None
    assert report.mib_per_s > 1


async def test_a_server_that_has_a_client_is_busy(tmp_path: Path) -> None:
    server = RpcServer(log_directory=tmp_path, caches=False)
    await server.start()
    _, holder = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        report = await ask("127.0.0.1", server.port, timeout_seconds=0.5)
    finally:
        holder.close()
        await server.stop()

    assert report.state is RpcState.BUSY


async def test_where_nothing_listens() -> None:
    report = await ask("127.0.0.1", free_port())

    assert report.state is RpcState.DOWN
    assert "refused" in report.why or "Connect call failed" in report.why


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\xff" * 64])
async def test_another_kind_of_server(says: bytes) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(says)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        report = await ask("127.0.0.1", server.sockets[0].getsockname()[1])

    assert report.state is RpcState.FOREIGN
    assert "RPC" in report.why


async def test_many_start_at_once_on_a_new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would make the directory for large tensors, and end if another one had just done so."""
    monkeypatch.setenv("HOME", str(tmp_path))
    servers = [RpcServer(log_directory=tmp_path / str(at)) for at in range(6)]
    try:
        reports = await asyncio.gather(*(server.start() for server in servers))
    finally:
        await asyncio.gather(*(server.stop() for server in servers))

    assert {report.state for report in reports} == {RpcState.IDLE}
    assert (tmp_path / ".cache/llama.cpp/rpc").is_dir()


async def test_where_nothing_can_be_kept_it_starts_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "file"))
    server = RpcServer(log_directory=tmp_path)
    try:
        assert (await server.start()).state is RpcState.IDLE
    finally:
        await server.stop()


async def test_a_stopped_server_is_gone(tmp_path: Path) -> None:
    server = RpcServer(log_directory=tmp_path, caches=False)
    await server.start()
    await server.stop()

    assert not server.is_running
    assert (await ask("127.0.0.1", server.port)).state is RpcState.DOWN


async def test_a_server_that_died_is_noticed(tmp_path: Path) -> None:
    server = RpcServer(log_directory=tmp_path, caches=False)
    await server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    try:
        assert "SIGKILL" in await asyncio.wait_for(server.wait_dead(), 10)
    finally:
        await server.stop()


def test_both_programs_are_of_one_build() -> None:
    build = find_llama_server().build()

    assert build
    assert find_rpc_server().path.exists()
