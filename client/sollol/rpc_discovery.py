"""Finds llama.cpp's rpc-servers: those that are named, those on this machine, and those of a network that one names.

A fabric needs none of this: its workers advertise themselves.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Sequence
from typing import Any

from sollol_broker.errors import InvalidJob
from sollol_worker_agent.rpc.wire import RpcReport, RpcState, ask

from .either_way import run_apart

DEFAULT_PORT = 50052
# A network of this size is asked within seconds; a larger one is a mistake, or a scan that its owner should run.
_MOST_ADDRESSES = 1024
_AT_ONCE = 64
_HERE = "127.0.0.1"


def check_rpc_server(host: str, port: int = DEFAULT_PORT, timeout: float = 1.0) -> bool:
    """Whether an rpc-server answers there. One that serves a llama-server already does not."""
    return ask_all([(host, port)], timeout)[0].state is RpcState.IDLE


def discover_rpc_backends(
    cidr: str | None = None,
    port: int = DEFAULT_PORT,
    timeout: float = 1.0,
    auto_resolve_docker: bool = True,
) -> list[dict[str, Any]]:
    """The rpc-servers that answer, as [{"host", "port"}, …].

    Args:
        cidr: a network to ask every address of, such as "10.0.0.0/24", at most 1,024 of them; None = no network is
            searched: only what $RPC_BACKENDS names ("HOST:PORT,…"), and this machine.
        timeout: seconds for each.
        auto_resolve_docker: of no matter: an address is where it answered.

    Raises:
        InvalidJob: the network is too large, or is none.
    """
    targets = [(host, port) for host in _addresses(cidr)] if cidr is not None else [*named(), (_HERE, port)]
    return [as_backend(report) for report in ask_all(targets, timeout) if report.state is RpcState.IDLE]


def auto_discover_rpc_backends(
    port: int = DEFAULT_PORT, auto_resolve_docker: bool = True
) -> list[dict[str, Any]]:
    """`discover_rpc_backends` without searching a network."""
    return discover_rpc_backends(port=port, auto_resolve_docker=auto_resolve_docker)


def named(text: str | None = None) -> list[tuple[str, int]]:
    """What $RPC_BACKENDS names.

    Raises:
        InvalidJob: a part of it is not HOST:PORT.
    """
    text = os.environ.get("RPC_BACKENDS", "") if text is None else text
    return [endpoint(part) for part in text.replace(",", " ").split()]


def endpoint(text: str, port: int = DEFAULT_PORT) -> tuple[str, int]:
    """ "grpc://10.0.0.5:50052", "10.0.0.5:50052" or "10.0.0.5" as host and port.

    Raises:
        InvalidJob: it is none of these.
    """
    rest = text.split("://", 1)[-1].rstrip("/")
    host, found, digits = rest.rpartition(":")
    if not found or rest.endswith("]"):
        host, digits = rest, str(port)
    if not host or not digits.isdigit() or not 0 < int(digits) < 65536:
        raise InvalidJob(f"{text!r} is not HOST:PORT, such as 10.0.0.5:{DEFAULT_PORT}")
    return host.strip("[]"), int(digits)


def as_backend(report: RpcReport) -> dict[str, Any]:
    """A server that answers as SOLLOL's functions give it."""
    return {"host": report.host, "port": report.port}


def ask_all(targets: Sequence[tuple[str, int]], timeout: float) -> list[RpcReport]:
    """Ask many at once; gives a report for each, in order."""
    return run_apart(_ask_all(list(dict.fromkeys(targets)), timeout))


async def _ask_all(targets: Sequence[tuple[str, int]], timeout: float) -> list[RpcReport]:
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(host: str, port: int) -> RpcReport:
        async with limit:
            return await ask(host, port, timeout_seconds=timeout)

    return await asyncio.gather(*(one(host, port) for host, port in targets))


def _addresses(cidr: str) -> list[str]:
    try:
        network = ipaddress.ip_network(cidr, strict=False)
    except ValueError as error:
        raise InvalidJob(f"{cidr!r} is no network, such as 10.0.0.0/24: {error}", field="cidr") from None
    if network.num_addresses > _MOST_ADDRESSES:
        raise InvalidJob(
            f"{cidr} has {network.num_addresses:,} addresses, and at most {_MOST_ADDRESSES:,} are asked: name a part",
            field="cidr",
        )
    return [str(each) for each in network.hosts()]
