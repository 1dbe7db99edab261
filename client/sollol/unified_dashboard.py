"""The monitoring page, under the name that programs start it by."""

from __future__ import annotations

from typing import Any, NoReturn

from sollol_broker.errors import SollolError


def run_unified_dashboard(router: Any = None, dashboard_port: int = 8080, **other: Any) -> NoReturn:
    """Not there yet.

    Raises:
        SollolError: always: this release has no page; the text says what shows the same.
    """
    raise SollolError(
        "this release has no monitoring page, it comes with a later one; until then `sollol nodes`, `sollol queues`, "
        "`sollol jobs` and `sollol stats` show the fabric, and the gateway has /metrics for Prometheus"
    )
