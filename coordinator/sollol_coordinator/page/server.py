"""The page as a service: a broker in a background loop, the hub over it, and waitress in front."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import waitress.server  # type: ignore[import-untyped]  # it ships no types
import waitress.wasyncore  # type: ignore[import-untyped]

from sollol_broker.broker import Broker
from sollol_broker.key_store import KeyStore
from sollol_broker.link import LinkConfig
from sollol_broker.listeners import listen
from sollol_broker.portal import Portal
from sollol_broker.url import parse

from .actions import Actions
from .app import build
from .config import PageConfig
from .guests import Guests
from .hub import Hub
from .looks import PageLooks
from .metrics_port import open_metrics
from .rq_pages import may_mount

log = logging.getLogger(__name__)

# Threads beside those of the streams, for pages, assets and actions.
_MORE_THREADS = 8
_MOST_CONNECTIONS = 1000
# A connection on which nobody asks anything is closed: with so many of them nobody else would get in.
_IDLE_SECONDS = 30
# A browser that takes in nothing for so long, or has lost power, is disconnected: its stream takes one of few places.
_UNREAD_MS = 30_000


class Page:
    """Serves the page until it is stopped.

        page = Page("redis://127.0.0.1:6379/0", PageConfig(port=0))
        page.start()            # in the background; `serve` does it in the foreground
        page.url                # http://127.0.0.1:34567/
        page.stop()

    Args:
        redis_url: as given on the command line.
        environ: where the password of Redis may come from.
        patience_seconds: for which a read is tried again over a lost connection before browsers are told.
    """

    def __init__(
        self,
        redis_url: str,
        config: PageConfig | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        patience_seconds: float = 4.0,
    ) -> None:
        self.config = config or PageConfig()
        self._broker = Broker(
            parse(redis_url, environ=os.environ if environ is None else environ),
            name="sollol-dashboard",
            config=LinkConfig(patience_seconds=patience_seconds),
        )
        self._portal: Portal | None = None
        self._hub: Hub | None = None
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self._close_metrics: Callable[[], None] | None = None
        self.port = self.config.port

    @property
    def url(self) -> str:
        """Where it is, for a browser on this machine."""
        host = self.config.host
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # nothing is bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def open(self, *, is_alone: bool = False) -> None:
        """Take the port and reach Redis; requests wait until it is served.

        Args:
            is_alone: whether the process is there for the page. RQ's own dashboard is in it only then: RQ is set up
                once for a whole process, and another's is not to be touched.

        Raises:
            SollolError: the port is taken, or Redis cannot be reached.
        """
        listener = self._listen()
        try:
            self._portal = Portal("sollol-dashboard")
            self._portal.run(self._broker.open())
            looks = PageLooks(self._broker, self.config)
            self._hub = Hub(looks, self._portal)
            app = build(
                self.config,
                looks=looks,
                hub=self._hub,
                actions=Actions(self._broker),
                guests=Guests(self.config, KeyStore(self._broker), self._run),
                run=self._run,
                rq_url=self._broker.url if is_alone and may_mount() else None,
            )
            self._hub.start()
            if self.config.metrics_port:
                where = (self.config.metrics_host, self.config.metrics_port)
                self._close_metrics = open_metrics(self._broker, self._portal, *where)
            trusted = {
                "trusted_proxy": self.config.proxy,
                "trusted_proxy_headers": {"x-forwarded-proto", "x-forwarded-for"},
            }
            self._server = waitress.server.create_server(
                app,
                sockets=[listener],
                threads=self.config.most_browsers + _MORE_THREADS,
                connection_limit=_MOST_CONNECTIONS,
                channel_timeout=_IDLE_SECONDS,
                cleanup_interval=_IDLE_SECONDS // 3,
                asyncore_use_poll=True,
                ident=None,
                clear_untrusted_proxy_headers=True,
                **(trusted if self.config.proxy else {}),
            )
        except BaseException:
            listener.close()
            self.stop()
            raise
        log.info(
            "the page is at %s, %s",
            self.url,
            "with a login" if self.config.needs_login else "for this machine",
        )

    def start(self) -> None:
        """Serve in the background.

        Raises:
            SollolError: as `open`.
        """
        self.open()
        self._thread = threading.Thread(target=self._server.run, name="sollol-dashboard-http", daemon=True)
        self._thread.start()

    def serve(self) -> None:
        """Serve until SIGTERM, Ctrl-C, or `stop` from another thread. From the main thread only.

        Raises:
            SollolError: as `open`.
        """
        self.open(is_alone=True)
        try:
            with _signals_end(self._hub.let_go if self._hub is not None else lambda: None):
                self._server.run()
        except KeyboardInterrupt:
            log.info("interrupted")
        finally:
            self.stop()

    def stop(self) -> None:
        """Let all browsers go and end; it may be called again."""
        close_metrics, self._close_metrics = self._close_metrics, None
        if close_metrics is not None:
            close_metrics()
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.close()
        server, self._server = self._server, None
        if server is not None:
            server.task_dispatcher.shutdown(timeout=5)
            close = functools.partial(waitress.wasyncore.close_all, server._map, ignore_all=True)
            thread, self._thread = self._thread, None
            if thread is None:
                close()
            else:
                # In its own thread: what it polls stays open until it has polled. Locked, or another pull of the
                # trigger might close it before this one.
                with server.trigger.lock:
                    server.trigger.thunks.append(close)
                    server.trigger.pull_trigger()
                thread.join(timeout=5)
        portal, self._portal = self._portal, None
        if portal is not None:
            portal.run(self._broker.close())
            portal.close()

    def _run(self, work: Awaitable[Any]) -> Any:
        assert self._portal is not None  # noqa: S101  # it is opened first
        return self._portal.run(work)  # type: ignore[arg-type]  # all of ours are coroutines

    def _listen(self) -> socket.socket:
        listener = listen(self.config.host, self.config.port)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux; connections inherit it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
        self.port = listener.getsockname()[1]
        return listener


@contextlib.contextmanager
def _signals_end(let_go: Callable[[], None]) -> Iterator[None]:
    """systemd and docker stop it as Ctrl-C does. Browsers are let go first: the server waits for their threads."""

    def end(number: int, frame: FrameType | None) -> None:
        let_go()
        raise KeyboardInterrupt

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
