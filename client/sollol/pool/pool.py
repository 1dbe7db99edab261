"""SOLLOL's own face: one object that answers as an Ollama server does, and spreads the work over many."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import socket
import weakref
from collections.abc import Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from sollol_broker.errors import ClientClosed, InvalidJob, QueueFull, SollolError
from sollol_broker.words import JobKind
from sollol_client import Client, Job

from ..either_way import Pending, call_in_thread, has_loop, plainly_or_awaited, warn_once
from ..hedging import HedgingStrategy
from ..routing_strategy import RoutingStrategy
from . import many
from .address import DEFAULT_PORT, NodeAddress, node_addresses
from .calls import Call, ChunkStream
from .embedded import EmbeddedFabric, Fabrics
from .settings import PoolSettings, app_name_of, as_hedge, as_strategy, warn_of_replaced
from .tally import Tally

Messages = str | Sequence[Mapping[str, Any]]
Given = dict[str, Any] | Pending[dict[str, Any]] | ChunkStream

log = logging.getLogger(__name__)

_fabrics = Fabrics()
_open_pools: weakref.WeakSet[OllamaPool] = weakref.WeakSet()


class OllamaPool:
    """Several Ollama servers as one. Safe to share between threads, and between threads and coroutines.

        pool = OllamaPool.auto_configure()
        answer = pool.chat("llama3.2", [{"role": "user", "content": "Hello"}], priority=7)
        print(answer["message"]["content"], answer["_sollol_routing"]["host"])

    Every call works plainly, and awaited where an event loop runs; with `stream=True` it gives chunks, for `for` and
    `async for`. `await pool` waits until it is up; otherwise the first call does.

    With a Redis (`redis_url`, $SOLLOL_REDIS_URL) the pool is a client of that fabric and its workers answer. Without
    one it starts a private Redis and one worker per node in this process' background; pools with the same nodes share
    them, and they end with `stop()` or with the process.

    Args:
        nodes: [{"host", "port", "priority"}, …] or "host:port"; None = OLLAMA_HOST, OLLAMA_NODES and this machine's.
        enable_hedging: True, or a HedgingStrategy: a second node may start a job when the first is late.
        max_queue_size: requests of this pool under way at most; one more gets QueueFull.
        app_name: as the fabric shows this application, with dashes for spaces; None = $SOLLOL_APP_NAME, else "default".
        enable_cache, cache_max_size, cache_ttl: as for `Client`: equal requests share one answer where that is safe.
        exclude_localhost, discover_all_nodes: when `nodes` is None, see `discover_ollama_nodes`.
        redis_url: the fabric's Redis. metadata: shown beside the application's name.
        old: arguments of earlier releases without a meaning here; each warns once and names what replaces it.

    Raises:
        InvalidJob: an argument makes no sense; `field` names it.
        BrokerUnavailable: Redis cannot be reached, or none can be started here. Where an event loop runs, the first
            call raises it.
    """

    def __init__(
        self,
        nodes: Sequence[Mapping[str, Any] | str] | None = None,
        enable_intelligent_routing: bool = True,
        routing_strategy: RoutingStrategy | str = RoutingStrategy.INTELLIGENT,
        exclude_localhost: bool = False,
        discover_all_nodes: bool = False,
        app_name: str | None = None,
        *,
        enable_hedging: bool | HedgingStrategy = False,
        max_queue_size: int | None = None,
        enable_cache: bool = True,
        cache_max_size: int = 1000,
        cache_ttl: float = 3600,
        redis_url: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        **old: Any,
    ) -> None:
        warn_of_replaced(old, "OllamaPool")
        self.settings = PoolSettings(
            app_name=app_name_of(app_name or os.environ.get("SOLLOL_APP_NAME") or "default"),
            hedge=as_hedge(enable_hedging),
            max_queue_size=max_queue_size,
            routing_strategy=as_strategy(routing_strategy, intelligent=enable_intelligent_routing),
        )
        self._redis_url = redis_url or os.environ.get("SOLLOL_REDIS_URL") or ""
        self._given = None if nodes is None else node_addresses(nodes)
        self._look = {"exclude_localhost": exclude_localhost, "discover_all_nodes": discover_all_nodes}
        self._client_settings: dict[str, Any] = {
            "app": self.settings.app_name,
            "metadata": {"router": "OllamaPool", **(metadata or {})},
            "cache": enable_cache,
            "cache_max_size": cache_max_size,
            "cache_ttl": cache_ttl,
        }
        if self._redis_url and self._given:
            warn_once(
                "OllamaPool: nodes= is left out, for the fabric at SOLLOL_REDIS_URL has workers of its own: run "
                "`sollol-worker --backend URL` beside each node, or unset SOLLOL_REDIS_URL"
            )
        self._tally = Tally()
        self._fabric: EmbeddedFabric | None = None
        self._stopped = False
        self._ready = call_in_thread(self._open, "sollol-pool-start")
        _open_pools.add(self)
        if not has_loop():
            self._ready.result()

    @classmethod
    def auto_configure(
        cls, discover_all_nodes: bool = False, setup_local_gpu_monitoring: bool = False, **kwargs: Any
    ) -> Self:
        """A pool of what is found: the fabric at $SOLLOL_REDIS_URL, else the Ollama servers of OLLAMA_HOST,
        OLLAMA_NODES and this machine. Works plainly and awaited.

        Args:
            discover_all_nodes: look through this machine's networks as well.
            kwargs: as for the class.
        """
        if setup_local_gpu_monitoring:
            kwargs["setup_local_gpu_monitoring"] = True
        return cls(discover_all_nodes=discover_all_nodes, **kwargs)

    def __await__(self) -> Generator[Any, None, Self]:
        return self._up().__await__()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def stop(self) -> None:
        """Leave. With its last pool an embedded fabric ends, and leaves no process, port or file behind; calls that
        still wait get ClientClosed. It may be called again.
        """
        if self._stopped:
            return
        self._stopped = True
        with contextlib.suppress(SollolError):
            self._ready.result().close()
        if self._fabric is not None:
            _fabrics.give_back(self._fabric)

    # Asking.

    def chat(
        self, model: str, messages: Messages, stream: bool = False, priority: int = 5, **kwargs: Any
    ) -> Any:
        """Answer a conversation.

        Args:
            messages: [{"role", "content", …}, …], or a text.
            stream: give chunks as they are made: `chunk["message"]["content"]`.
            priority: 0-10, see `Priority`.
            kwargs: whatever Ollama takes (options, format, tools, think, keep_alive, …) and whatever `Client.submit`
                takes (timeout, deadline, session, requires, prefer, hedge, cache, …).

        Returns:
            Ollama's answer as a dict, and "_sollol_routing" in it; where an event loop runs, something to await
            that gives it. With `stream`, a ChunkStream.

        Raises:
            QueueFull: `max_queue_size` requests are under way. JobFailed: no answer; the subclass says why.
        """
        return self._ask(JobKind.CHAT, model, stream, chat=messages, priority=priority, **kwargs)

    def generate(
        self, model: str, prompt: str, stream: bool = False, priority: int = 5, **kwargs: Any
    ) -> Any:
        """Continue a prompt; as `chat`, the text is in `answer["response"]`."""
        return self._ask(JobKind.GENERATE, model, stream, generate=prompt, priority=priority, **kwargs)

    def embed(self, model: str, input: str | Sequence[str], priority: int = 5, **kwargs: Any) -> Any:
        """Embed a text or a list of texts; as `chat`, one vector for each is in `answer["embeddings"]`."""
        return self._ask(JobKind.EMBED, model, False, embed=input, priority=priority, **kwargs)

    async def chat_async(self, model: str, messages: Messages, priority: int = 5, **kwargs: Any) -> Any:
        """`chat` for coroutines."""
        return await self.chat(model, messages, priority=priority, **kwargs)

    async def generate_async(self, model: str, prompt: str, priority: int = 5, **kwargs: Any) -> Any:
        """`generate` for coroutines."""
        return await self.generate(model, prompt, priority=priority, **kwargs)

    async def embed_async(
        self, model: str, input: str | Sequence[str], priority: int = 5, **kwargs: Any
    ) -> Any:
        """`embed` for coroutines."""
        return await self.embed(model, input, priority=priority, **kwargs)

    def embed_batch(
        self,
        model: str,
        inputs: Sequence[str],
        max_workers: int | None = None,
        priority: int = 5,
        **kwargs: Any,
    ) -> Any:
        """Embed many texts: one answer for each, in order. They are handed in at once, and spread over all nodes.

        More than a hundred are a batch (`Client.batch`), many to a call; their answers have `model` and `embeddings`
        alone. With an argument that is not for batches (deadline, session, cache, …) each is a request of its own.

        Raises:
            JobFailed: of the first that has no answer.
        """
        old = {} if max_workers is None else {"max_workers": max_workers}
        if not kwargs.pop("use_adaptive", True):
            old["use_adaptive"] = 0
        warn_of_replaced(old, "OllamaPool.embed_batch")
        if many.fits(inputs, kwargs):
            asked = {"priority": priority, **kwargs}
            self._check_room()
            return plainly_or_awaited(
                call_in_thread(
                    lambda: many.embed_many(self._client(), self._tally, model, inputs, asked),
                    "sollol-pool-batch",
                )
            )
        calls = [self._call(embed=text, model=model, priority=priority, **kwargs) for text in inputs]
        return plainly_or_awaited(
            call_in_thread(lambda: [call.result() for call in calls], "sollol-pool-batch")
        )

    def warm_model(self, model: str, node: Mapping[str, Any] | str | None = None) -> Any:
        """Have a model in memory on the node that would take its next request; returns when it is there.

        Args:
            node: there instead: {"host", "port"}, or its name in the fabric.

        Returns:
            False where it could not be loaded; the log says why.
        """
        return plainly_or_awaited(
            call_in_thread(lambda: self._warmed([model], node)[model], "sollol-pool-warm")
        )

    def warm_models(self, models: Sequence[str], parallel: bool = True) -> Any:
        """The same for several; by model whether it is in memory. `parallel`: all at once, as nodes have room."""
        return plainly_or_awaited(
            call_in_thread(lambda: self._warmed(models, None, parallel=parallel), "sollol-pool-warm")
        )

    # Nodes.

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """[{"host", "port", "priority"}, …] of the embedded fabric's nodes; of a shared one's, {"host": name, …}."""
        client = self._client()
        if self._fabric is not None:
            return [node.as_dict() for node in self._fabric.nodes.values()]
        return [{"host": node.name, "port": 0, "priority": node.controls.priority} for node in client.nodes()]

    def add_node(
        self, host: str, port: int = DEFAULT_PORT, priority: int = 5, slots: int | None = None
    ) -> None:
        """Add an Ollama server, for all pools that share this one's embedded fabric.

        Raises:
            InvalidJob: it is no address, or the pool uses a fabric with workers of its own.
        """
        node = {"host": host, "port": port, "priority": priority, "slots": slots}
        self._own_fabric("add_node").add(NodeAddress.of(node))

    def remove_node(self, host: str, port: int = DEFAULT_PORT) -> None:
        """Take an Ollama server out; what runs there goes to others. One that is not there is no error.

        Raises:
            InvalidJob: it is no address, or the pool uses a fabric with workers of its own.
        """
        self._own_fabric("remove_node").remove(NodeAddress.of({"host": host, "port": port}))

    def count_unique_physical_hosts(self) -> int:
        """How many machines stand behind the nodes: several names or ports of one count once."""
        client = self._client()
        if self._fabric is not None:
            return len({_machine(node) for node in self._fabric.nodes.values()})
        return len({node.host or node.name for node in client.nodes()})

    def should_use_parallel_execution(self, num_tasks: int) -> bool:
        """Whether so many tasks end sooner side by side than one after the other: several, and several machines."""
        return num_tasks > 1 and self.count_unique_physical_hosts() > 1

    # Looking.

    @property
    def url(self) -> str:
        """The fabric's Redis, for `sollol nodes --redis URL` and other clients on this machine."""
        self._client()
        return self._fabric.url if self._fabric is not None else self._redis_url

    @property
    def app_name(self) -> str:
        """This application, as the fabric shows it."""
        return self.settings.app_name

    def get_stats(self) -> dict[str, Any]:
        """What this pool has asked and got, and how the nodes are.

        Returns:
            total_requests, successful_requests, failed_requests, success_rate (1.0 = none failed), avg_latency_ms
            (from call to answer); hosts: {node: {latency_ms, success_rate, requests, …}}, where a node's success_rate
            is over all applications, and http tells how many requests went over how many connections; requeued: jobs
            that were tried again; http2_enabled, nodes_configured, routing_strategy, app_name, cache.
        """
        client = self._client()
        stats, fabric = self._tally.as_dict(), client.stats()
        ours = stats.pop("hosts")
        hosts = {name: {**told, **ours.get(name, {"requests": 0})} for name, told in fabric["hosts"].items()}
        return {
            **stats,
            "hosts": {**ours, **hosts},
            # httpx cannot end one answer of a shared HTTP/2 connection, and a cancel must free the slot.
            "http2_enabled": False,
            "requeued": fabric["requeued"],
            "nodes_configured": len(hosts),
            "routing_strategy": str(self.settings.routing_strategy),
            "app_name": self.settings.app_name,
            "cache": client.get_cache_stats(),
        }

    def get_cache_stats(self) -> dict[str, Any]:
        """As `Client.get_cache_stats`: hit_rate, size, hits, misses, shared, evictions, …"""
        return self._client().get_cache_stats()

    def clear_cache(self) -> None:
        """Forget all cached answers of this application."""
        self._client().clear_cache()

    def invalidate_cache_by_model(self, model: str) -> int:
        """Forget a model's cached answers; how many there were."""
        return self._client().invalidate_cache_by_model(model)

    def export_cache(self, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """As `Client.export_cache`: the answers kept here, for `import_cache`."""
        return self._client().export_cache(path)

    def import_cache(self, data: Mapping[str, Any] | str | os.PathLike[str]) -> int:
        """As `Client.import_cache`; how many answers were taken."""
        return self._client().import_cache(data)

    # Inside.

    async def _up(self) -> Self:
        await asyncio.shield(asyncio.wrap_future(self._ready))
        return self

    def _client(self) -> Client:
        if self._stopped:
            raise ClientClosed("the pool is stopped: make a new one")
        return self._ready.result()

    def _own_fabric(self, verb: str) -> EmbeddedFabric:
        self._client()
        if self._fabric is None:
            raise InvalidJob(
                f"{verb}: the fabric has workers of its own; start or stop a sollol-worker beside the node",
                field="host",
            )
        return self._fabric

    def _open(self) -> Client:
        """Start what there is to start, and connect. In a thread of its own, for it takes a moment."""
        if self._redis_url:
            client = Client(self._redis_url, **self._client_settings)
        else:
            fabric = self._fabric = _fabrics.borrow(self._given if self._given is not None else self._found())
            try:
                fabric.start()
            except BaseException:
                self._fabric = None
                _fabrics.give_back(fabric)
                raise
            client = Client(fabric.url, **self._client_settings)
        client.stats()
        return client

    def _found(self) -> tuple[NodeAddress, ...]:
        from ..discovery import discover_ollama_nodes

        found = node_addresses(discover_ollama_nodes(**self._look))
        if found or self._look["exclude_localhost"]:
            return found
        # Ollama may be started later; until then calls say what is wrong.
        return (NodeAddress("127.0.0.1"),)

    def _warmed(
        self, models: Sequence[str], node: Mapping[str, Any] | str | None, *, parallel: bool = True
    ) -> dict[str, bool]:
        client = self._client()
        name = node if isinstance(node, str) or node is None else NodeAddress.of(node).name
        jobs = {}
        for model in models:
            jobs[model] = client.warm(model, node=name)
            if not parallel:
                jobs[model].exception()
        for model, job in jobs.items():
            if (error := job.exception()) is not None:
                log.warning("%s is not in memory: %s", model, error)
        return {model: job.exception() is None for model, job in jobs.items()}

    def _ask(self, kind: JobKind, model: str, stream: bool, **asked: Any) -> Given:
        call = self._call(model=model, stream=stream, **asked)
        return ChunkStream(call, kind, model) if stream else plainly_or_awaited(call)

    def _check_room(self) -> None:
        if self._stopped:
            raise ClientClosed("the pool is stopped: make a new one")
        most = self.settings.max_queue_size
        if most is not None and self._tally.under_way >= most:
            raise QueueFull(
                f"{most} requests of this pool are under way, as max_queue_size allows; try again"
            )

    def _call(self, **asked: Any) -> Call:
        self._check_room()

        def submit(client: Client) -> Job:
            return client.submit(**{"hedge": self.settings.hedge, **asked})

        return Call(self._ready, submit, self._tally)


def _machine(node: NodeAddress) -> str:
    """What its name means; a name that nobody knows stands for itself."""
    if node.is_here:
        return "127.0.0.1"
    with contextlib.suppress(OSError):
        return socket.gethostbyname(node.host)
    return node.host


@atexit.register
def _leave() -> None:
    """Clients before Redis, or each would wait for its last word."""
    for pool in list(_open_pools):
        if not pool._stopped and pool._ready.done() and pool._ready.exception() is None:
            with contextlib.suppress(SollolError, RuntimeError, OSError):
                pool._ready.result().close()
    _fabrics.abandon()
