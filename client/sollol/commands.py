"""The commands beside `sollol`. Each room has its own; here a missing extra becomes one clear line."""

from __future__ import annotations

import sys
from importlib import import_module

from .quiet_start import dying_quietly

__all__ = ["coordinator", "dashboard", "gateway", "worker"]


def worker() -> None:
    """`sollol-worker`."""
    _run("sollol_worker_agent.cli", command="sollol-worker", extra="worker")


def gateway() -> None:
    """`sollol-gateway`."""
    _run("sollol_client.gateway.cli", command="sollol-gateway", extra="gateway")


def coordinator() -> None:
    """`sollol-coordinator`."""
    _run("sollol_coordinator.cli", command="sollol-coordinator", extra="coordinator")


def dashboard() -> None:
    """`sollol-dashboard`."""
    _run("sollol_coordinator.page.cli", command="sollol-dashboard", extra="page")


def _run(module: str, *, command: str, extra: str) -> None:
    try:
        with dying_quietly():
            main = import_module(module).main
        main()  # it imports more, when that is needed
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("sollol"):
            raise  # not an extra that is missing, but a part of ours
        sys.stderr.write(f"error: {command} needs {error.name}: pip install 'sollol[{extra}]'\n")
        raise SystemExit(1) from None
