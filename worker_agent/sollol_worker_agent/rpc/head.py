"""The head of a group: llama-server with an exact split over its own devices and those of the members."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sollol_broker.errors import BackendError

from ..llama_process import LlamaServerProcess
from .identity import Identity
from .relay import Passage
from .tunnel import Tunnel
from .wire import RpcState, ask

_MIB = 1024 * 1024
# A load over a slow network, and what that takes per GiB.
_LOAD_SECONDS, _LOAD_SECONDS_PER_GIB = 300.0, 20.0
_TELL_SECONDS = 1.0
_BUFFER = re.compile(r"\S+?(?:\[[^\]]*:(\d+)\])? +(model|KV|compute|output) buffer size = +([0-9.]+) MiB")
# The log tells sizes while it loads, and from then on a few lines per request: it is cut when it has grown.
_MOST_LOG_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Member:
    """A node that lends memory.

    Attributes:
        address, port: of its tunnel; of its rpc-server if it is_local, on the head's own machine.
        certificate: that it must show. layers: for each of its devices.
        weights_bytes: that will be sent there, at most.
    """

    node: str
    address: str
    port: int
    certificate: str
    layers: tuple[int, ...]
    weights_bytes: float = 0.0
    is_local: bool = False

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Member:
        """From an order."""
        return cls(
            str(data["node"]),
            str(data["address"]),
            int(data["port"]),
            str(data["certificate"]),
            tuple(int(each) for each in data["layers"]),
            float(data.get("weights_bytes", 0.0)),
            bool(data.get("is_local", False)),
        )


@dataclass(frozen=True, slots=True)
class Split:
    """Layers by place, the output layer counted as the last one.

    Attributes:
        in_memory: the first layers, in main memory of the head.
        own: for each of the head's GPUs, by llama.cpp's name. members: in order.
    """

    in_memory: int
    own: tuple[tuple[str, int], ...]
    members: tuple[Member, ...]

    def arguments(self, ports: Sequence[int]) -> list[str]:
        """What llama-server is to be told; `ports`: the local ends of the members' tunnels.

        Devices are named one by one: a server that is not told may leave out a member that does not answer, and go
        on alone.
        """
        remote = [count for member in self.members for count in member.layers]
        names = [name for name, _ in self.own] + [f"RPC{at}" for at in range(len(remote))]
        counts = [count for _, count in self.own] + remote
        used = [(name, count) for name, count in zip(names, counts, strict=True) if count]
        endpoints = ",".join(f"127.0.0.1:{port}" for port in ports)
        return [
            *(("--rpc", endpoints) if ports else ()),
            *("--device", ",".join(name for name, _ in used) or "none"),
            *("--n-gpu-layers", str(sum(counts))),
            *("--tensor-split", ",".join(str(count) for _, count in used) or "0"),
            *("--fit", "off", "--log-verbosity", "4"),
        ]


class MemberFailed(BackendError):
    """A member is not what the head needs.

    Attributes:
        node: which one.
    """

    def __init__(self, message: str, node: str) -> None:
        super().__init__(message)
        self.node = node


class Head:
    """The llama-server of a group, and its tunnels to the members.

    Args:
        node: this one.
        progress: is told how far loading is: a share from 0 to 1, and about how many seconds are left.

    Attributes:
        links: by member, once it has started: trip_ms of a question and its answer, and mib_per_s to it where that
            could be measured. The way is the one that the layers take, through the tunnel.
    """

    def __init__(
        self,
        *,
        node: str,
        model: str,
        path: Path,
        split: Split,
        identity: Identity,
        version: tuple[int, int, int],
        logs: Path,
        slots: int,
        context_tokens: int,
        threads: int | None,
        progress: Callable[[float, float], None],
    ) -> None:
        self._node = node
        self._split = split
        self._version = version
        self._progress = progress
        self._far = [member for member in split.members if not member.is_local]
        passages = [
            Passage(("127.0.0.1", 0), (each.address, each.port), False, each.certificate)
            for each in self._far
        ]
        self._tunnel = Tunnel(passages, identity, logs / "tunnel-head.log")
        self._settings: dict[str, Any] = {
            "model_path": path,
            "alias": model,
            "log_directory": logs,
            "slots": slots,
            "context_tokens": context_tokens,
            "threads": threads,
        }
        size = path.stat().st_size
        self._start_seconds = _LOAD_SECONDS + _LOAD_SECONDS_PER_GIB * size / 1024**3
        self._server: LlamaServerProcess | None = None
        self.links: dict[str, dict[str, float]] = {}

    @property
    def url(self) -> str:
        """Where it serves."""
        assert self._server is not None  # noqa: S101  # asked after start()
        return self._server.url

    @property
    def has_tunnel(self) -> bool:
        """Whether anybody on another machine lends it memory."""
        return bool(self._far)

    @property
    def carried_bytes(self) -> int:
        """To and from the members so far."""
        return self._tunnel.carried_bytes

    @property
    def cut_off(self) -> str:
        """A member that is not there any more, for whatever reason; "" = none."""
        gone = [self._far[at].node for at in (self._tunnel.cut if self._far else ())]
        return next(iter([*gone, *(each.node for each in self._split.members if _is_gone(each))]), "")

    @property
    def is_running(self) -> bool:
        """Whether the server and its tunnel live."""
        is_tunnelled = self._tunnel.is_running or not self._far
        return self._server is not None and self._server.is_running and is_tunnelled

    async def start(self) -> dict[str, float]:
        """Connect, check and load; gives MiB by node and buffer, as llama-server reported them ("gpu-2 KV": 24.0).

        Raises:
            MemberFailed: a member does not answer or speaks another protocol.
            BackendError: the server does not load the model.
        """
        try:
            ports = await self._ports()
            for member, port in zip(self._split.members, ports, strict=True):
                await self._check(member, port)
            self._server = LlamaServerProcess(
                **self._settings, start_seconds=self._start_seconds, extra_args=self._split.arguments(ports)
            )
            telling = asyncio.create_task(self._tell())
            try:
                await self._server.start()
            finally:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
        except BaseException:
            await self.stop()
            raise
        nodes = {port: member.node for port, member in zip(ports, self._split.members, strict=True)}
        return read_buffers(self._server.log, self._node, nodes)

    async def _ports(self) -> list[int]:
        """Where each member is reached on loopback: the near end of its tunnel, or its rpc-server itself."""
        near = iter(await self._tunnel.start() if self._far else ())
        return [member.port if member.is_local else next(near) for member in self._split.members]

    async def stop(self) -> None:
        """End it at once; what it was working on is cut off."""
        if self._server is not None:
            await self._server.kill()
        await self._tunnel.stop()

    def trim_log(self) -> None:
        """Cut the log when it has grown."""
        if self._server is not None and self._server.log.stat().st_size > _MOST_LOG_BYTES:
            self._server.log.write_bytes(b"")

    async def _check(self, member: Member, port: int) -> None:
        # Before the layers are sent, for later the rpc-server listens to the head alone.
        report = await ask("127.0.0.1", port, timeout_seconds=5.0, measures_bandwidth=True)
        if report.state is not RpcState.IDLE or report.version is None:
            raise BackendError(
                f"the rpc-server of {member.node} does not answer ({report.state}: {report.why})"
            )
        major, minor, _ = report.version
        if major != self._version[0] or minor > self._version[1]:
            theirs, ours = (".".join(map(str, version)) for version in (report.version, self._version))
            raise MemberFailed(
                f"{member.node} speaks version {theirs} of the RPC protocol, and the head {ours}: "
                "install the same build of llama.cpp on both",
                member.node,
            )
        if len(report.devices) != len(member.layers):
            raise MemberFailed(
                f"{member.node} offers {len(report.devices)} devices, planned were {len(member.layers)}",
                member.node,
            )
        pace = {} if report.mib_per_s is None else {"mib_per_s": report.mib_per_s}
        self.links[member.node] = {"trip_ms": report.trip_ms, **pace}

    async def _tell(self) -> None:
        began, before = time.monotonic(), self.carried_bytes
        expected = sum(member.weights_bytes for member in self._far)
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            if expected > 0:
                share = min(0.99, (self.carried_bytes - before) / expected)
                took = time.monotonic() - began
                self._progress(share, took * (1 - share) / share if share > 0.01 else 0.0)


def _is_gone(member: Member) -> bool:
    """Whether a member on this machine has no rpc-server any more."""
    if not member.is_local:
        return False
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", member.port)) != 0


def read_buffers(log: Path, head: str, members: Mapping[int, str]) -> dict[str, float]:
    """MiB by node and kind of buffer, from a log of verbosity 4.

    Args:
        head: its node. members: their nodes, by the local port of their tunnels: each calls its devices RPC0, RPC1, ….
    """
    sizes: dict[str, float] = {}
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return sizes
    for port, kind, mib in _BUFFER.findall(text):
        name = f"{members.get(int(port), head) if port else head} {kind}"
        sizes[name] = round(sizes.get(name, 0.0) + float(mib), 2)
    return sizes
