"""How a program logs, and how it ends when it cannot go on. Only command lines import this."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from .errors import BrokerUnavailable, SollolError

log = logging.getLogger(__name__)

_UNAVAILABLE, _MISUSED = 3, 2


def log_to_stderr(*, verbose: bool, chatty: tuple[str, ...] = ()) -> None:
    """Write what happens to stderr, all of it if `verbose`; of `chatty` modules only warnings."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(message)s",
        stream=sys.stderr,
    )
    for name in chatty:
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What goes wrong inside ends the program with one line, and with 3 where Redis is out of reach, else 2."""
    try:
        yield
    except (SollolError, ValueError) as error:
        log.debug("where it happened", exc_info=True)
        click.echo(f"error: {error}", err=True)
        raise SystemExit(_UNAVAILABLE if isinstance(error, BrokerUnavailable) else _MISUSED) from None
