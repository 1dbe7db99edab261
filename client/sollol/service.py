"""`SOLLOL`: a gateway in this process, and where there is no Redis the whole fabric behind it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import signal
import socket
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from sollol_broker.errors import SollolError
from sollol_broker.portal import Portal
from sollol_broker.version import VERSION
from sollol_client import AsyncClient, Client

from .config import SOLLOLConfig
from .pool import OllamaPool
from .pool.settings import warn_of_replaced
from .unified_dashboard import make_page

if TYPE_CHECKING:
    import uvicorn

    from sollol_coordinator.page.server import Page

log = logging.getLogger(__name__)

_STOP_SECONDS = 10
_LOOK_SECONDS = 0.01
_open: weakref.WeakSet[SOLLOL] = weakref.WeakSet()


class SOLLOL:
    """Brings a gateway up that speaks Ollama's API, with queueing, routing and failover behind it.

        sollol = SOLLOL(SOLLOLConfig.auto_discover())
        sollol.start(blocking=False)      # http://127.0.0.1:8000
        sollol.stop()

    `sollol-gateway` does the same as a service, with more processes.

    Args:
        config: None = the defaults.
        port: as `SOLLOLConfig.gateway_port`. ollama_nodes: as its `hosts`.
        old: arguments of earlier releases without a meaning here; each warns once and names what replaces it.
    """

    def __init__(
        self,
        config: SOLLOLConfig | int | None = None,
        *,
        port: int | None = None,
        ollama_nodes: Sequence[Mapping[str, Any]] | None = None,
        **old: Any,
    ) -> None:
        warn_of_replaced({name: value for name, value in old.items() if value is not None}, "SOLLOL")
        if isinstance(config, int):  # its first argument has been the port
            config, port = None, config
        config = config or SOLLOLConfig()
        if port is not None:
            config = replace(config, gateway_port=port)
        if ollama_nodes is not None:
            config = replace(config, hosts=ollama_nodes)
        self.config = config
        self._pool: OllamaPool | None = None
        self._client: Client | None = None
        self._portal: Portal | None = None
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._page: Page | None = None
        self._ended = threading.Event()
        _open.add(self)

    @property
    def is_running(self) -> bool:
        """Whether the gateway answers."""
        return self._portal is not None

    def start(self, blocking: bool = False) -> None:
        """Start the gateway; does nothing when it runs.

        Args:
            blocking: return when it has ended: by `stop` from another thread, Ctrl-C or SIGTERM.

        Raises:
            SollolError: a port is taken, the `gateway` extra is not installed, or there is no Redis.
        """
        if self._portal is None:
            self._start()
        if blocking:
            with _sigterm_ends(self._ended):
                try:
                    while not self._ended.wait(1.0):
                        pass
                except KeyboardInterrupt:
                    log.info("interrupted")
                finally:
                    self.stop()

    def stop(self) -> None:
        """End the gateway, and the fabric if it is a private one; nothing is left. It may be called again."""
        page, self._page = self._page, None
        if page is not None:
            page.stop()
        portal, self._portal = self._portal, None
        if portal is not None:
            portal.run(self._leave())
            portal.close()
        client, self._client = self._client, None
        if client is not None:
            client.close()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
        self._ended.set()

    def get_health(self) -> dict[str, Any]:
        """{"service", "version", "status"}: "healthy", "degraded" (Redis takes no jobs) or "stopped"."""
        who = {"service": "SOLLOL", "version": VERSION}
        if self._client is None:
            return {**who, "status": "stopped"}
        try:
            self._client.attend()
        except SollolError as error:
            return {**who, "status": "degraded", "reason": str(error)}
        return {**who, "status": "healthy"}

    def get_stats(self) -> dict[str, Any]:
        """What the fabric has done, as `Client.stats`: total_requests, success_rate, avg_latency_ms, hosts, …

        Raises:
            SollolError: it does not run.
        """
        if self._client is None:
            raise SollolError("SOLLOL does not run: call start() first")
        return self._client.stats()

    def get_status(self) -> dict[str, Any]:
        """Whether it runs, where it listens, and its nodes."""
        config = self.config
        return {
            **self.get_health(),
            "running": self.is_running,
            "gateway": config.url,
            "dashboard": self._page.url if self._page is not None else "",
            "ports": {"gateway": config.gateway_port, "metrics": config.metrics_port},
            "nodes": self._pool.nodes if self._pool is not None else [],
        }

    def _start(self) -> None:
        uvicorn = _uvicorn()
        self._ended.clear()
        sockets = self._sockets()
        try:
            self._pool = OllamaPool(
                None if self.config.hosts is None else list(self.config.hosts),
                app_name=self.config.app_name,
                redis_url=self.config.redis_url or None,
            )
            self._client = Client(self._pool.url, app=self._pool.app_name)
            app = self._app(self._pool.url)
            self._server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    timeout_graceful_shutdown=_STOP_SECONDS,
                )
            )
            self._portal = Portal("sollol-gateway")
            self._portal.run(self._serve(self._server, sockets))
        except BaseException:
            for each in sockets:
                each.close()
            self.stop()
            raise
        log.info("the gateway answers at %s", self.config.url)
        if self.config.dashboard:
            self._start_page(self._pool.url)

    def _start_page(self, redis_url: str) -> None:
        """The gateway does not need it: another program's page may have the port."""
        try:
            page = make_page(redis_url, port=self.config.dashboard_port)
            page.start()
        except SollolError as error:
            log.warning("no monitoring page: %s", error)
        else:
            self._page = page

    def _app(self, redis_url: str) -> Any:
        from sollol_client.gateway.app import build
        from sollol_client.gateway.config import GatewayConfig

        config = GatewayConfig(
            host=self.config.gateway_host, port=self.config.gateway_port, fabric_metrics=True
        )
        return build(config, AsyncClient(redis_url, app="gateway", metadata={"port": config.port}))

    def _sockets(self) -> list[socket.socket]:
        """The gateway's, and that for metrics; port 0 becomes the one that was free."""
        gateway = _listen(self.config.gateway_host, self.config.gateway_port)
        self.config = replace(self.config, gateway_port=gateway.getsockname()[1])
        if not self.config.metrics_port:
            return [gateway]
        try:
            return [gateway, _listen(self.config.gateway_host, self.config.metrics_port)]
        except SollolError as error:
            log.warning("/metrics is at the gateway's own port alone: %s", error)
            self.config = replace(self.config, metrics_port=0)
            return [gateway]

    async def _serve(self, server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        self._serving = asyncio.create_task(server.serve(sockets=sockets))
        while not server.started:
            if self._serving.done():
                self._serving.result()
                raise SollolError("the gateway did not start; its log says why")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _leave(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.gather(self._serving, return_exceptions=True)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise SollolError(
            f"port {port} of {host} cannot be listened on ({error}): name another, or end who has it"
        ) from error


def _uvicorn() -> Any:
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise SollolError(f"a gateway needs {error.name}: pip install 'sollol[gateway,local]'") from error
    return uvicorn


@contextmanager
def _sigterm_ends(ended: threading.Event) -> Iterator[None]:
    """In the main thread: systemd and docker stop it as Ctrl-C does, in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@atexit.register
def _leave() -> None:
    for service in list(_open):
        with contextlib.suppress(SollolError, RuntimeError, OSError):
            service.stop()
