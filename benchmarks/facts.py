"""The machine that a run was made on; figures without it mean nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from sollol_broker.embedded import find_server


def machine_facts() -> dict[str, str]:
    """Cores, load, and the versions that matter."""
    server = find_server()
    return {
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.2f}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "server": f"{server.kind} {'.'.join(map(str, server.version))}, unix socket, appendfsync everysec",
        **{name: _version(name) for name in ("redis", "hiredis", "huey", "dramatiq")},
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
