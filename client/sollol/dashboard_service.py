"""`python3 -m sollol.dashboard_service --port 8080 --redis-url URL`: the monitoring page as a service.

The same as `sollol-dashboard`, and with its options: `--redis-url` is another name of its `--redis`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

_THEIRS = "--redis-url"


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; say on stderr why it cannot, and exit with another code than 0."""
    try:
        from sollol_coordinator.page.cli import main as dashboard
    except ModuleNotFoundError as error:
        text = f"error: the page needs {error.name}: pip install 'sollol[coordinator]'"
        print(text, file=sys.stderr)  # noqa: T201  # a command's own output
        raise SystemExit(1) from None
    given = list(sys.argv[1:] if arguments is None else arguments)
    dashboard(args=[_as_ours(each) for each in given], prog_name="sollol.dashboard_service")


def _as_ours(argument: str) -> str:
    is_theirs = argument == _THEIRS or argument.startswith(f"{_THEIRS}=")
    return "--redis" + argument.removeprefix(_THEIRS) if is_theirs else argument


if __name__ == "__main__":
    main()
