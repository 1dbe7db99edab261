"""Ctrl-C while a command is still importing its parts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def dying_quietly() -> Iterator[None]:
    """Let Ctrl-C end the process as it ends any program, instead of with a traceback out of some import.

    Where something else is done about it already (a shell's `&` has it ignored), that stays.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
