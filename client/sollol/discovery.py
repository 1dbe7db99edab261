"""Finds the Ollama servers that a pool can use. Only the standard library is needed."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Iterable, Iterator

from sollol_broker.errors import InvalidJob
from sollol_broker.listeners import own_addresses

from .docker_ip_resolver import auto_resolve_ips
from .either_way import call_in_thread
from .pool.address import NodeAddress, node_addresses

# A network is looked through at once, but not with more sockets than a process may usually open.
_AT_ONCE = 200
_MOST_READ = 64 * 1024


def discover_ollama_nodes(
    timeout: float = 0.5,
    exclude_localhost: bool = False,
    auto_resolve_docker: bool = True,
    discover_all_nodes: bool = False,
) -> list[dict[str, str]]:
    """The Ollama servers of OLLAMA_HOST, OLLAMA_NODES and this machine that answer: [{"host", "port"}, …].

    Args:
        timeout: seconds for one server to answer.
        exclude_localhost: leave those of this machine out.
        auto_resolve_docker: replace the address of a container that cannot be reached by one that can.
        discover_all_nodes: look at port 11434 of every address of this machine's private networks (/24) as well.
    """
    named = [text.strip() for text in _named() if text.strip()]
    candidates = list(_readable(["127.0.0.1", *named] if not exclude_localhost else named))
    if auto_resolve_docker:
        dicts = auto_resolve_ips(
            [{"host": each.host, "port": str(each.port)} for each in candidates], timeout
        )
        candidates = [
            _at(each, told["host"], int(told["port"])) for each, told in zip(candidates, dicts, strict=True)
        ]
    if discover_all_nodes:
        candidates += [NodeAddress(host) for host in neighbours(own_addresses())]
    if exclude_localhost:
        candidates = [each for each in candidates if not each.is_here]
    found = call_in_thread(
        lambda: asyncio.run(_who_answers(candidates, timeout)), "sollol-discovery"
    ).result()
    return [{"host": each.host, "port": str(each.port)} for each in found]


def neighbours(own: Iterable[str]) -> Iterator[str]:
    """The other addresses of the private /24 networks around `own`."""
    ours = list(own)
    networks = dict.fromkeys(ipaddress.ip_network(f"{each}/24", strict=False) for each in ours)
    for network in networks:
        if network.is_private:
            yield from (str(host) for host in network.hosts() if str(host) not in ours)


def _named() -> list[str]:
    return [os.environ.get("OLLAMA_HOST", ""), *os.environ.get("OLLAMA_NODES", "").split(",")]


def _readable(texts: Iterable[str]) -> Iterator[NodeAddress]:
    """A setting that is no address is somebody else's mistake: the others are looked at."""
    for text in texts:
        try:
            address = NodeAddress.of(text)
        except InvalidJob:
            continue
        yield _at(address, "127.0.0.1", address.port) if address.is_here else address


def _at(address: NodeAddress, host: str, port: int) -> NodeAddress:
    return NodeAddress(host, port, address.priority, address.scheme)


async def _who_answers(candidates: Iterable[NodeAddress], timeout: float) -> tuple[NodeAddress, ...]:
    turn = asyncio.Semaphore(_AT_ONCE)

    async def ask(address: NodeAddress) -> bool:
        async with turn:
            try:
                async with asyncio.timeout(timeout):
                    return await is_ollama(address)
            except (OSError, TimeoutError):
                return False

    several = node_addresses(candidates)
    answers = await asyncio.gather(*(ask(each) for each in several))
    return tuple(each for each, answered in zip(several, answers, strict=True) if answered)


async def is_ollama(address: NodeAddress) -> bool:
    """Whether an Ollama, or what speaks as one does, answers there.

    Raises:
        OSError: nobody does.
    """
    encrypted = address.scheme == "https"
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=encrypted or None)
    try:
        # 1.0: the connection closes behind the answer, which is not sent in chunks.
        writer.write(f"GET /api/version HTTP/1.0\r\nHost: {address.host}\r\n\r\n".encode())
        answer = await reader.read(_MOST_READ)
        while b"\r\n\r\n" not in answer or b"}" not in answer:
            more = await reader.read(_MOST_READ)
            if not more or len(answer) > _MOST_READ:
                break
            answer += more
    finally:
        writer.close()
    status, _, rest = answer.partition(b"\r\n")
    return b" 200" in status and b'"version"' in rest
