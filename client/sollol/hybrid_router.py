"""`HybridRouter`: asks for any model, and leaves to the fabric whether one node or a group of them answers.

With SOLLOL_REDIS_URL (or a pool's fabric) it is a client of that fabric, whose coordinator forms groups. Without, it
starts a fabric of its own on this machine.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sollol_broker.errors import InvalidJob, NoNodeForModel
from sollol_broker.names import canonical_model
from sollol_client import Answer, Client

from .either_way import call_in_thread, plainly_or_awaited, warn_once
from .local.fabric import LocalFabric
from .routing_dict import with_routing

log = logging.getLogger(__name__)

# The coordinator tells whether a group can be formed for a model within some seconds of its start.
_SETTLE_SECONDS = 20.0
_RETRY_SECONDS = 0.5
_APP = "hybrid-router"
_REPLACED = {
    "rpc_backends": "workers advertise themselves (sollol-worker); LlamaCppCoordinator takes rpc-servers by hand",
    "coordinator_host": "the head of a group serves on its own loopback, and answers come over Redis",
    "coordinator_port": "the head of a group takes a free port of its own loopback",
    "auto_discover_rpc": "nodes advertise themselves; $RPC_BACKENDS and discover_rpc_backends() find others",
    "auto_fallback": "a model that a node can serve alone is always served so",
    "debug_coordinator_recovery": "`sollol groups` and the coordinator's log tell of groups",
}


class HybridRouter:
    """Chats with models of any size.

        router = HybridRouter(enable_distributed=True, auto_setup_rpc=True, num_rpc_backends=3)
        answer = router.route_request(model="llama3.1:70b", messages=[{"role": "user", "content": "Hello"}])

    Args:
        ollama_pool: an `OllamaPool`; its fabric is used. None = that of $SOLLOL_REDIS_URL, or one of its own.
        enable_distributed: whether groups may be formed, in a fabric of its own.
        auto_setup_rpc: start `num_rpc_backends` workers besides, in a fabric of its own, that lend memory to groups;
            not where there are GPUs: one worker has them all, and main memory for what they cannot hold.
        memory_mib: main memory that each of these workers may use; None = an even share of what is free now.
        models_dir: GGUF files of which groups may be formed, besides those in Ollama's store.

    The other arguments are of earlier releases: they are taken, and a warning says what has their place.
    """

    def __init__(
        self,
        ollama_pool: Any = None,
        rpc_backends: Sequence[Mapping[str, Any]] | None = None,
        coordinator_host: str = "127.0.0.1",
        coordinator_port: int = 18080,
        enable_distributed: bool = True,
        auto_discover_rpc: bool = True,
        auto_setup_rpc: bool = False,
        num_rpc_backends: int = 1,
        auto_fallback: bool = True,
        debug_coordinator_recovery: bool = False,
        *,
        memory_mib: int | None = None,
        models_dir: str | Path | None = None,
    ) -> None:
        if num_rpc_backends < 1:
            raise InvalidJob(
                f"num_rpc_backends is at least 1, got {num_rpc_backends}", field="num_rpc_backends"
            )
        told = {
            "rpc_backends": bool(rpc_backends),
            "coordinator_host": coordinator_host != "127.0.0.1",
            "coordinator_port": coordinator_port != 18080,
            "auto_discover_rpc": not auto_discover_rpc,
            "auto_fallback": not auto_fallback,
            "debug_coordinator_recovery": debug_coordinator_recovery,
        }
        for name in (name for name, is_told in told.items() if is_told):
            warn_once(f"HybridRouter({name}=…) has no meaning any more: {_REPLACED[name]}")
        self._is_distributed = enable_distributed
        self._requests = self._grouped = 0
        self._settled_at = 0.0
        self._pool = ollama_pool
        self._lenders = num_rpc_backends if enable_distributed and auto_setup_rpc else 0
        self._memory_mib = memory_mib
        self._directories = [Path(models_dir)] if models_dir is not None else []
        self._fabric: LocalFabric | None = None
        self._url = os.environ.get("SOLLOL_REDIS_URL") or ""
        # In the background: the program goes on, and its first request waits.
        self._starting = call_in_thread(self._start, "sollol-hybrid-router")
        atexit.register(self.close)

    def route_request(self, model: str, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        """Chat; gives Ollama's answer with "_sollol_routing" (see `with_routing`), plainly or awaited.

        `_sollol_routing["mode"]` is "rpc" where a group of nodes answered, else "fabric".

        Args:
            kwargs: those of `Client.submit`: priority, timeout, deadline, options, format, tools, …

        Raises:
            NoNodeForModel: no node and no group can serve the model; `reasons` tells why, node by node.
            InvalidJob, QueueFull, JobFailed, BrokerUnavailable: as for `Client.submit` and `Job.result`.
        """
        if kwargs.pop("stream", False):
            raise InvalidJob(
                "route_request gives whole answers: Client.submit(chat=…, stream=True) streams",
                field="stream",
            )
        return plainly_or_awaited(
            call_in_thread(lambda: self._ask(model, messages, kwargs), "sollol-request")
        )

    def should_use_distributed(self, model: str) -> bool:
        """Whether a group would answer for the model now, since no node serves it alone."""
        if not self._is_distributed:
            return False
        client, name = self._starting.result(), canonical_model(model)
        grouped = {node for group in client.groups() if group.model == name for node, _ in group.parts}
        served = {node for view in client.models() if view.name == name for node in view.nodes}
        return not served - grouped

    def get_stats(self) -> dict[str, Any]:
        """{"total_requests", "distributed_requests", "groups": [id, …], "nodes": [name, …], "fabric": its totals}."""
        client = self._starting.result()
        return {
            "total_requests": self._requests,
            "distributed_requests": self._grouped,
            "groups": [group.id for group in client.groups()],
            "nodes": [node.name for node in client.nodes()],
            "fabric": client.stats(),
        }

    def close(self) -> None:
        """Leave; what was started for it ends. The pool is its owner's to stop."""
        atexit.unregister(self.close)
        if self._starting.exception() is None:
            self._starting.result().close()
        fabric, self._fabric = self._fabric, None
        if fabric is not None:
            fabric.stop()

    @property
    def url(self) -> str:
        """Its fabric's Redis, for other clients on this machine; waits until it is there."""
        self._starting.result()
        return self._url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> Client:
        """1. a fabric that is there, 2. the pool's, where a coordinator may be missing, 3. one of our own."""
        if os.environ.get("SOLLOL_REDIS_URL"):
            return Client(app=_APP)  # 1
        if self._lenders and _has_gpus():
            log.info("this machine's GPUs stay with one worker: no others are started beside it")
            self._lenders = 0
        url = str(self._pool.url) if self._pool is not None else None  # 2, 3
        if url is None or self._is_distributed:
            fabric = LocalFabric(
                redis_url=url,
                workers=0 if url else 1,
                lenders=self._lenders,
                coordinator=self._is_distributed,
                ram_mib=self._share(),
                directories=self._directories,
            )
            try:
                fabric.start()
            except BaseException:
                fabric.stop()
                raise
            self._fabric, url = fabric, fabric.url
            self._settled_at = time.monotonic() + _SETTLE_SECONDS
        self._url = url
        return Client(url, app=_APP)

    def _share(self) -> int | None:
        """Workers of one machine must not count its memory twice."""
        if not self._lenders:
            return None
        import psutil  # here, since a client of a fabric does without it

        free_mib = psutil.virtual_memory().available / 1024**2
        return self._memory_mib or int(free_mib / (self._lenders + 1))

    def _ask(
        self, model: str, messages: Sequence[Mapping[str, Any]], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        client = self._starting.result()
        while True:
            try:
                answer = client.submit(chat=list(messages), model=model, **kwargs).result()
                break
            except NoNodeForModel:
                if time.monotonic() > self._settled_at:
                    raise
                time.sleep(_RETRY_SECONDS)
        self._requests += 1
        is_grouped = _is_from_group(client, answer, canonical_model(model))
        self._grouped += is_grouped
        return with_routing(answer, mode="rpc" if is_grouped else "fabric")


def _has_gpus() -> bool:
    from sollol_worker_agent.hardware import (
        HardwareReader,
    )  # here, since a client of a fabric does without it

    return any(gpu.memory_total_mib for gpu in HardwareReader().read().gpus)


def _is_from_group(client: Client, answer: Answer, model: str) -> bool:
    return any(group.model == model and group.head == answer.routing.node for group in client.groups())
