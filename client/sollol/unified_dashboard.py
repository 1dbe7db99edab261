"""The monitoring page, under the name that programs start it by."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from sollol_broker.errors import InvalidJob, SollolError
from sollol_broker.url import DEFAULT_URL

from .pool.settings import warn_of_replaced

if TYPE_CHECKING:
    from sollol_coordinator.page.server import Page

_DEFAULT_PORT = 8080


def run_unified_dashboard(
    router: Any = None,
    ray_dashboard_port: int | None = None,
    dask_dashboard_port: int | None = None,
    dashboard_port: int | None = None,
    host: str = "127.0.0.1",
    enable_dask: bool | None = None,
    *,
    redis_url: str | None = None,
) -> None:
    """Serve the monitoring page until Ctrl-C or SIGTERM; in another thread than the main one, as long as the process.

    `sollol-dashboard` is the same as a service of its own, with a login. The page reads Redis alone, so it shows all
    of a fabric, whoever started it.

    Args:
        router: an `OllamaPool` or `HybridRouter`: its fabric is shown, a private one too. None = that of `redis_url`.
        dashboard_port: None = $SOLLOL_DASHBOARD_PORT, else 8080; 0 = a free one.
        host: where it listens. Beyond this machine everybody has to log in, with an API key (`sollol keys`).
        redis_url: the fabric's Redis; None = $SOLLOL_REDIS_URL, else redis://127.0.0.1:6379/0.
        ray_dashboard_port, dask_dashboard_port, enable_dask: of earlier releases, without a meaning.

    Raises:
        SollolError: the `coordinator` extra is missing, the port is taken, or Redis cannot be reached.
    """
    old = {
        "ray_dashboard_port": ray_dashboard_port,
        "dask_dashboard_port": dask_dashboard_port,
        "enable_dask": enable_dask,
    }
    warn_of_replaced(
        {name: value for name, value in old.items() if value is not None}, "run_unified_dashboard"
    )
    page = make_page(redis_url or _redis_of(router), host, dashboard_port)
    if threading.current_thread() is threading.main_thread():
        page.serve()
    else:
        page.start()
        threading.Event().wait()


def make_page(redis_url: str | None, host: str = "127.0.0.1", port: int | None = None) -> Page:
    """The page of a fabric, not yet started.

    Raises:
        SollolError: the `coordinator` extra is missing, or the port is none.
    """
    try:
        from sollol_coordinator.page.config import PageConfig
        from sollol_coordinator.page.server import Page
    except ModuleNotFoundError as error:
        raise SollolError(f"the page needs {error.name}: pip install 'sollol[coordinator]'") from error
    where = redis_url or os.environ.get("SOLLOL_REDIS_URL") or DEFAULT_URL
    return Page(where, PageConfig(host=host, port=dashboard_port_of(port)))


def dashboard_port_of(given: int | None) -> int:
    """A port, or what $SOLLOL_DASHBOARD_PORT says.

    Raises:
        InvalidJob: it is none.
    """
    told: Any = os.environ.get("SOLLOL_DASHBOARD_PORT") or _DEFAULT_PORT if given is None else given
    try:
        port = int(told)
    except (TypeError, ValueError):
        port = -1
    if not 0 <= port < 65536:
        raise InvalidJob(
            f"dashboard_port: a port from 0 to 65535 is needed, got {told!r}", field="dashboard_port"
        )
    return port


def wants_dashboard() -> bool:
    """Whether $SOLLOL_DASHBOARD asks for a page."""
    return os.environ.get("SOLLOL_DASHBOARD", "").strip().lower() in ("1", "true", "yes", "on")


def _redis_of(router: Any) -> str | None:
    url = getattr(router, "url", None)
    return url if isinstance(url, str) else None
