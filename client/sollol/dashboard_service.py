"""`python3 -m sollol.dashboard_service --port 8080 --redis-url URL`: the monitoring page as a service."""

from __future__ import annotations

import sys

from sollol_broker.errors import SollolError

from .unified_dashboard import run_unified_dashboard


def main() -> None:
    """Say on stderr why there is none, and exit with 1."""
    try:
        run_unified_dashboard()
    except SollolError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # a command's own output
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
