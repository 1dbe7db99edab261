"""The command `sollol`. This folder holds the words of the command line; what they do lies in the rooms."""

from __future__ import annotations

import sys

from ..quiet_start import dying_quietly

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    with dying_quietly():
        try:
            import click  # noqa: F401
            import rich  # noqa: F401
        except ModuleNotFoundError as error:
            if error.name not in ("click", "rich"):
                raise
            sys.stderr.write("error: the command line needs click and rich: pip install 'sollol[cli]'\n")
            raise SystemExit(1) from None
        from .app import app

    # A console that cannot show a character gets a question mark, never a crash in mid-answer.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app(prog_name="sollol")
