"""Workers on this machine for LLM servers that have none beside them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sollol_broker.child import ChildProcess, describe_exit, last_lines
from sollol_broker.errors import SollolError
from sollol_broker.registry import NodeView
from sollol_broker.url import is_loopback

from .scan import Found

_PREFIXES = {"ollama": "ollama+", "llama-server": "llama+", "openai": "openai+"}
_DRAIN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Adopted:
    """A host whose servers get a worker here.

    Attributes:
        node: its name in the fabric. elsewhere: the host; "" = this machine.
        backends: as `sollol-worker --backend` takes them.
    """

    node: str
    elsewhere: str
    backends: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """For `sollol-worker`."""
        words = ["--node", self.node, *(["--elsewhere", self.elsewhere] if self.elsewhere else [])]
        return [*words, *(word for url in self.backends for word in ("--backend", url))]


def plan(
    found: Iterable[Found], nodes: Sequence[NodeView], *, own: Collection[str], own_host: str
) -> tuple[list[Adopted], dict[str, str]]:
    """Who gets a worker, and by which node the others are served already, by their URLs. Pure.

    One worker, and one node, for each host: named as the reporter on it names it, else by its address. What a live
    worker fronts is left to it, so a second time nothing is done.

    Args:
        own: addresses of this machine. own_host: its name.
    """
    served: dict[str, str] = {}
    hosts: dict[str, list[str]] = {}
    for each in found:
        if not each.is_llm_server:
            continue
        is_own = each.host in own or is_loopback(each.host)
        if node := _who_fronts(each, nodes, is_own=is_own, own_host=own_host):
            served[each.url] = node
        else:
            hosts.setdefault("" if is_own else each.host, []).append(_PREFIXES[each.kind] + each.url)
    names = {"": own_host.split(".")[0] or "node"}
    names |= {address: node.name for node in nodes if node.is_watched for address in node.addresses}
    return [Adopted(names.get(host, host), host, tuple(urls)) for host, urls in hosts.items()], served


def _who_fronts(found: Found, nodes: Sequence[NodeView], *, is_own: bool, own_host: str) -> str:
    for node in nodes:
        for worker in node.workers:
            for backend in worker.backends:
                parts = urlsplit(str(backend.get("url", "")))
                if parts.port != found.port or parts.hostname is None:
                    continue
                # A worker beside its server knows it by loopback, and tells where else that listens.
                is_here = is_own and node.host == own_host
                is_same = is_here if is_loopback(parts.hostname) else parts.hostname == found.host
                opened = backend.get("open", ())
                is_open = found.host in opened or (
                    found.host in node.addresses and ("0.0.0.0" in opened or "::" in opened)  # noqa: S104
                )
                if is_same or is_open:
                    return node.name
    return ""


class Workers:
    """Worker processes that run until `stop`; they do not outlive us.

    No API key of ours goes along: whoever listens on a network must not get it by being found.
    """

    def __init__(self, url: str, adopted: Sequence[Adopted]) -> None:
        self._logs = Path(tempfile.mkdtemp(prefix="sollol-adopt-"))
        environ = {**os.environ, "SOLLOL_REDIS_URL": url}
        environ.pop("SOLLOL_BACKEND_API_KEY", None)
        self._running = {
            each.node: ChildProcess(
                [sys.executable, "-m", "sollol_worker_agent.cli", *each.arguments],
                environment=environ,
                log=self._log(each.node),
            )
            for each in adopted
        }

    def check(self) -> None:
        """Look whether all of them still live.

        Raises:
            SollolError: one has ended; its log's last lines are in the text.
        """
        for node, process in self._running.items():
            if (status := process.poll()) is not None:
                said = " | ".join(last_lines(self._log(node), 3).splitlines())
                raise SollolError(
                    f"the worker of {node} ended ({describe_exit(status)}); it said last: {said}"
                )

    def stop(self) -> None:
        """Let them drain, and end them."""
        for process in self._running.values():
            process.send(signal.SIGTERM)
        end = time.monotonic() + _DRAIN_SECONDS
        for process in self._running.values():
            process.stop(patience_seconds=max(0.1, end - time.monotonic()))
        shutil.rmtree(self._logs, ignore_errors=True)

    def _log(self, node: str) -> Path:
        return self._logs / f"{node.replace(':', '-').replace('/', '-')}.log"
