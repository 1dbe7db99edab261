"""Programs that are run while llama.cpp is set up: found, run to their end, and told of when they fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sollol_broker.child import last_lines, without_secrets

from .errors import SetupError

# A compiler's complaint, with what led to it.
_LINES_SHOWN = 12


def find(program: str) -> str | None:
    """Where a program is: on PATH, or beside our Python, where pip puts it."""
    beside = Path(sys.executable).parent
    return shutil.which(program) or shutil.which(program, path=str(beside))


def run(
    command: Sequence[str | Path],
    *,
    log: Path,
    what: str,
    on_line: Callable[[str], None] = lambda _: None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end; gives what it said.

    Ctrl-C ends it and all that it has started.

    Args:
        log: keeps what it says. what: is said to have failed when it does. on_line: gets each line as it comes.

    Raises:
        SetupError: it failed; the text holds its last lines, and where the others are.
    """
    said: list[str] = []
    process = subprocess.Popen(  # noqa: S603  # our callers choose the program
        [str(word) for word in command],
        env={**without_secrets(), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    try:
        with process.stdout, log.open("a") as file:
            for line in process.stdout:
                file.write(line)
                said.append(line)
                on_line(line.rstrip())
        status = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if status:
        raise SetupError(
            f"{what} failed (exit status {status}). {log} ends with:\n{last_lines(log, _LINES_SHOWN)}"
        )
    return "".join(said)
