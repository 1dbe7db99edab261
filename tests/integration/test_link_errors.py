"""What the link makes of a server that is away, hangs, is too old, refuses, or breaks off in mid-sentence."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis.exceptions import DataError

from sollol_broker import Broker, BrokerOutdated, BrokerUnavailable, LinkConfig, QueueFull, parse_url

_QUICK = LinkConfig(connect_seconds=0.5, patience_seconds=2.0, stall_seconds=1.0)
_HANG_UP = b""

Answer = Callable[[list[bytes]], Awaitable[bytes] | bytes]


@dataclass
class FakeServer:
    """Speaks just enough RESP: `answer` makes the reply to each command, b"" hangs up instead."""

    path: Path
    answer: Answer
    commands: list[list[bytes]] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"unix://me:hunter2@{self.path}"

    def count(self, name: bytes) -> int:
        return sum(command[0] == name for command in self.commands)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                command = await _read_command(reader)
                self.commands.append(command)
                answer = self.answer(command)
                reply = answer if isinstance(answer, bytes) else await answer
                if reply == _HANG_UP:
                    break
                writer.write(reply)
                await writer.drain()


async def _read_command(reader: asyncio.StreamReader) -> list[bytes]:
    count = int((await reader.readuntil(b"\r\n"))[1:])
    parts = []
    for _ in range(count):
        size = int((await reader.readuntil(b"\r\n"))[1:])
        parts.append((await reader.readexactly(size + 2))[:-2])
    return parts


@asynccontextmanager
async def _fake(path: Path, answer: Answer) -> AsyncIterator[FakeServer]:
    fake = FakeServer(path, answer)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(fake.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(lambda _: writer.close())
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_unix_server(accept, path)
    try:
        yield fake
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)  # for the transports that are closing


@asynccontextmanager
async def _broker(url: str, config: LinkConfig = _QUICK) -> AsyncIterator[Broker]:
    broker = Broker(parse_url(url), name="tests", config=config)
    try:
        yield broker
    finally:
        await broker.close()


def _bulk(text: str) -> bytes:
    return f"${len(text)}\r\n{text}\r\n".encode()


def _fine(command: list[bytes]) -> bytes:
    """A healthy server, as far as this file needs one."""
    match command[0]:
        case b"AUTH" | b"CLIENT" | b"SELECT":
            return b"+OK\r\n"
        case b"INFO":
            return _bulk("redis_version:7.2.4\r\n")
        case b"PING":
            return b"+PONG\r\n"
        case b"FUNCTION":
            return _bulk("sollol")
        case _:
            return b"-ERR unknown command\r\n"


def _first(replies: list[bytes], to: bytes = b"PING") -> Answer:
    """These replies to the first commands called `to`, healthy ones after that."""
    left = list(replies)

    def answer(command: list[bytes]) -> bytes:
        return left.pop(0) if left and command[0] == to else _fine(command)

    return answer


async def _hang(_command: list[bytes]) -> bytes:
    await asyncio.Event().wait()
    return b""


# --- no server, or one that will not do


@pytest.mark.parametrize(
    "url",
    [
        "redis://me:hunter2@127.0.0.1:1/0",
        "rediss://me:hunter2@127.0.0.1:1/0",
        "unix://me:hunter2@/nowhere/redis.sock",
        "redis+sentinel://me:hunter2@127.0.0.1:1/main",
        "redis+cluster://me:hunter2@127.0.0.1:1",
        "redis://me:hunter2@no-such-host.invalid",
    ],
)
async def test_no_server_is_told_at_once_with_a_hint(url: str) -> None:
    began = time.monotonic()
    async with _broker(url) as broker:
        with pytest.raises(BrokerUnavailable, match=r"cannot reach Redis at .* is it running") as caught:
            await broker.open()
    assert time.monotonic() - began < 10
    assert str(parse_url(url)) in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_call_gives_up_when_its_patience_is_over() -> None:
    async with _broker("unix:///nowhere/redis.sock") as broker:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="cannot reach Redis"):
            await broker.link.call("PING", patience_seconds=0.3)
        assert time.monotonic() - began < 10


async def test_a_server_that_never_answers_is_left_within_the_timeout(tmp_path: Path) -> None:
    async with _fake(tmp_path / "s", _hang) as fake, _broker(fake.url) as broker:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=r"did not answer within 0\.5 s") as caught:
            await broker.open()
        assert time.monotonic() - began < 10
        assert "hunter2" not in str(caught.value)


async def test_a_server_that_falls_silent_is_left_after_the_stall_time(tmp_path: Path) -> None:
    def answer(command: list[bytes]) -> Awaitable[bytes] | bytes:
        return _hang(command) if command[0] == b"PING" else _fine(command)

    async with _fake(tmp_path / "s", answer) as fake, _broker(fake.url) as broker:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="lost Redis"):
            await broker.link.call("PING", patience_seconds=0.0)
        waited = time.monotonic() - began
        assert _QUICK.stall_seconds <= waited < 10


@pytest.mark.parametrize(
    ("version", "outdated"), [("6.2.0", True), ("5.0", True), ("7.0.0", False), ("10.1", False)]
)
async def test_a_server_that_is_too_old(tmp_path: Path, version: str, outdated: bool) -> None:
    answer = _first([_bulk(f"# Server\r\nredis_version:{version}\r\n")], to=b"INFO")
    async with _fake(tmp_path / "s", answer) as fake, _broker(fake.url) as broker:
        if not outdated:
            await broker.open()
            return
        with pytest.raises(BrokerOutdated, match=rf"version {version}.*7\.0 or newer, or Valkey"):
            await broker.open()


async def test_a_server_that_knows_no_functions(tmp_path: Path) -> None:
    def answer(command: list[bytes]) -> bytes:
        match command[0]:
            case b"FCALL":
                return b"-ERR Function not found\r\n"
            case b"FUNCTION":
                return b"-ERR unknown command 'FUNCTION'\r\n"
            case _:
                return _fine(command)

    async with _fake(tmp_path / "s", answer) as fake, _broker(fake.url) as broker:
        with pytest.raises(BrokerOutdated, match="knows no functions"):
            await broker.cancel("j1")


# --- refusals


@pytest.mark.parametrize(
    ("to", "reply"),
    [
        (b"AUTH", b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"),
        (b"CLIENT", b"-NOAUTH Authentication required.\r\n"),
    ],
    ids=["wrong password", "no password"],
)
async def test_a_refused_login_is_told_and_not_repeated(tmp_path: Path, to: bytes, reply: bytes) -> None:
    answer = _first([reply] * 9, to=to)
    async with _fake(tmp_path / "s", answer) as fake, _broker(fake.url) as broker:
        with pytest.raises(BrokerUnavailable, match="refused the login") as caught:
            await broker.link.call("PING")
        assert fake.connections == 1
        assert "hunter2" not in str(caught.value)
        assert "me:***@" in str(caught.value)


async def test_a_command_that_our_user_may_not_use(tmp_path: Path) -> None:
    answer = _first([b"-NOPERM User me has no permissions to run the 'ping' command\r\n"])
    async with _fake(tmp_path / "s", answer) as fake, _broker(fake.url) as broker:
        with pytest.raises(BrokerUnavailable, match=r"does not let user me do PING .*role is too small"):
            await broker.link.call("PING")
        assert fake.count(b"PING") == 1


async def test_functions_that_our_user_may_not_load(tmp_path: Path) -> None:
    def answer(command: list[bytes]) -> bytes:
        match command[0]:
            case b"FCALL":
                return b"-ERR Function not found\r\n"
            case b"FUNCTION":
                return b"-NOPERM User me has no permissions to run the 'function|load' command\r\n"
            case _:
                return _fine(command)

    async with _fake(tmp_path / "s", answer) as fake, _broker(fake.url) as broker:
        with pytest.raises(BrokerUnavailable, match="this user may not load them") as caught:
            await broker.cancel("j1")
        assert broker.functions.name in str(caught.value)
        assert fake.count(b"FUNCTION") == 1


async def test_a_full_memory_is_told_and_not_repeated(tmp_path: Path) -> None:
    answer = _first([b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"])
    async with _fake(tmp_path / "s", answer) as fake, _broker(fake.url) as broker:
        with pytest.raises(QueueFull) as caught:
            await broker.link.call("PING")
        assert caught.value.retry_after == 5.0
        assert fake.count(b"PING") == 1


async def test_mistakes_of_ours_are_not_repeated(tmp_path: Path) -> None:
    async with _fake(tmp_path / "s", _fine) as fake, _broker(fake.url) as broker:
        with pytest.raises(BrokerUnavailable, match="unknown command"):
            await broker.link.call("NOSUCHCOMMAND")
        with pytest.raises(DataError):
            await broker.link.call("PING", object())
        assert fake.count(b"NOSUCHCOMMAND") == 1
        assert await broker.link.call("PING") == b"PONG"


# --- what passes


@pytest.mark.parametrize(
    "reply",
    [
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-MOVED 866 127.0.0.1:7001\r\n",
        b"-CLUSTERDOWN The cluster is down\r\n",
        b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
        b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
        b"-BUSY Redis is busy running a script.\r\n",
        b"-MISCONF Errors writing to the AOF file: No space left on device\r\n",
        b"-NOREPLICAS Not enough good replicas to write.\r\n",
        b"-UNBLOCKED force unblock from blocking operation, instance state changed\r\n",
        _HANG_UP,
    ],
    ids=lambda reply: reply[1:].split(b" ")[0].decode() or "a lost reply",
)
async def test_what_passes_is_waited_out(tmp_path: Path, reply: bytes) -> None:
    async with _fake(tmp_path / "s", _first([reply, reply])) as fake, _broker(fake.url) as broker:
        assert await broker.link.call("PING") == b"PONG"
        assert fake.count(b"PING") == 3
        assert fake.connections == 3  # the primary may be elsewhere by now


async def test_what_does_not_pass_is_told_in_the_end(tmp_path: Path) -> None:
    answer = _first([b"-READONLY You can't write against a read only replica.\r\n"] * 99)
    async with _fake(tmp_path / "s", answer) as fake, _broker(fake.url) as broker:
        with pytest.raises(BrokerUnavailable, match="cannot work now") as caught:
            await broker.link.call("PING", patience_seconds=0.3)
        assert "hunter2" not in str(caught.value)


async def test_a_full_disk_is_told_with_what_to_do(tmp_path: Path) -> None:
    answer = _first([b"-MISCONF Errors writing to the AOF file: No space left on device\r\n"] * 99)
    async with _fake(tmp_path / "s", answer) as fake, _broker(fake.url) as broker:
        with pytest.raises(
            BrokerUnavailable, match="No space left on device; it takes no writes until its disk"
        ):
            await broker.link.call("PING", patience_seconds=0.3)


async def test_a_connection_lost_while_the_functions_are_loaded(tmp_path: Path) -> None:
    loaded = False
    loads = [
        _HANG_UP,
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-ERR Library already exists\r\n",
    ]

    def answer(command: list[bytes]) -> bytes:
        nonlocal loaded
        match command[0]:
            case b"FCALL":
                return b"+unknown\r\n" if loaded else b"-ERR Function not found\r\n"
            case b"FUNCTION":
                loaded = len(loads) == 1
                return loads.pop(0)
            case _:
                return _fine(command)

    async with _fake(tmp_path / "s", answer) as fake, _broker(fake.url) as broker:
        assert await broker.cancel("j1") == "unknown"
        assert loads == []


@pytest.mark.parametrize("in_one", [False, True])
async def test_all_who_wait_are_served_again_after_a_lost_connection(tmp_path: Path, in_one: bool) -> None:
    seen: set[bytes] = set()

    def answer(command: list[bytes]) -> bytes:
        if command[0] != b"ECHO":
            return _fine(command)
        if command[1] == b"50" and b"50" not in seen:
            seen.add(b"50")
            return _HANG_UP
        return _bulk(command[1].decode())

    async with _fake(tmp_path / "s", answer) as fake, _broker(fake.url) as broker:
        if in_one:
            await broker.link.call("PING")
            replies = await broker.link.calls([("ECHO", number) for number in range(100)])
        else:
            replies = await asyncio.gather(*(broker.link.call("ECHO", number) for number in range(100)))
        assert replies == [str(number).encode() for number in range(100)]
        assert fake.connections == 2


async def test_a_cancelled_call_leaves_the_line_in_order(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(command: list[bytes]) -> bytes:
        if command[0] != b"ECHO":
            return _fine(command)
        await gate.wait()
        return _bulk(command[1].decode())

    async with _fake(tmp_path / "s", slow) as fake, _broker(fake.url) as broker:
        await broker.open()
        tasks = [asyncio.create_task(broker.link.call("ECHO", number)) for number in range(10)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks[::2], return_exceptions=True)
        gate.set()
        assert await asyncio.gather(*tasks[1::2]) == [b"1", b"3", b"5", b"7", b"9"]


async def test_opening_is_shared_by_all_who_call_at_once(tmp_path: Path) -> None:
    async with _fake(tmp_path / "s", _fine) as fake, _broker(fake.url) as broker:
        await asyncio.gather(*(broker.link.call("PING") for _ in range(50)))
        assert fake.connections == 1
