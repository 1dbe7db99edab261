"""A server process of our own that never outlives us, not even when we are killed with -9.

Starting, watching and ending a process live here; what it runs, and when it is ready, does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# The guard: a sleeping shell (about 1 MB) that holds the reading end of a pipe from us. When we are gone,
# however that came about, the pipe ends: it kills the server and removes its temporary directory.
# PR_SET_PDEATHSIG would be shorter, but it fires when the starting *thread* ends (a trap for servers that
# are started from a worker thread), needs a preexec_fn, cannot remove a directory, and is Linux only.
_GUARD = 'IFS= read -r pid; read -r _; kill -9 ${pid:-no} 2>/dev/null; rm -rf -- "$@"'


def without_secrets() -> dict[str, str]:
    """Our environment without SOLLOL_…: passwords and keys are no business of a server's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SOLLOL_")}


class ChildProcess:
    """A running server process, tied to the life of this one.

    It stands in a session of its own, so that Ctrl-C reaches only us and we can end things in order.
    A copy of this process made with `os.fork` (not with `exec`) holds the server alive as well.

    Args:
        command: the program and its arguments; they are visible to every user, so no secrets.
        environment: the whole environment; None = `without_secrets`.
        stdin: what it reads first, e.g. a configuration with secrets in it.
        log: file that stdout and stderr are appended to.
        remove: directories that the guard deletes if we die without `stop`.
        keep_open: file descriptors that it inherits.

    Raises:
        OSError: the program cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        log: Path,
        remove: Sequence[Path] = (),
        keep_open: Sequence[int] = (),
    ) -> None:
        # The guard stands before the server does, so that no moment is unguarded.
        self._guard = subprocess.Popen(  # noqa: S603  # a fixed script
            ["/bin/sh", "-c", _GUARD, "sollol-guard", *map(str, remove)],
            env=without_secrets(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(  # noqa: S603  # our callers choose the program
                    [str(word) for word in command],
                    env=dict(without_secrets() if environment is None else environment),
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=tuple(keep_open),
                )
        except BaseException:
            self._release_guard()
            raise
        assert self._guard.stdin is not None  # noqa: S101  # it is a pipe
        assert self._process.stdin is not None  # noqa: S101
        self._guard.stdin.write(f"{self._process.pid}\n".encode())
        self._guard.stdin.flush()
        # It may have died already; then its end is what the caller finds next.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(stdin)
            self._process.stdin.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """None while it runs; then its exit status, negative for the signal that ended it."""
        status = self._process.poll()
        if status is not None:
            # The id is free for others now: the guard must forget it.
            self._release_guard()
        return status

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait until it ends; None when it still runs after `timeout_seconds`."""
        end = time.monotonic() + timeout_seconds
        while (status := self.poll()) is None and time.monotonic() < end:
            time.sleep(0.005)
        return status

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            self._process.send_signal(number)

    def stop(self, *, patience_seconds: float) -> int:
        """Ask it to end with SIGTERM, kill it after `patience_seconds`; returns its exit status.

        It may be called again; zero patience kills at once.
        """
        if patience_seconds > 0:
            self.send(signal.SIGTERM)
            if (status := self.wait(patience_seconds)) is not None:
                return status
        self.send(signal.SIGKILL)
        self._process.wait()
        self._release_guard()
        return self._process.returncode

    def _release_guard(self) -> None:
        self._guard.kill()
        self._guard.wait()
        if self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()


def describe_exit(status: int) -> str:
    """An exit status in words: "exit status 1", "killed by SIGKILL"."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def last_lines(log: Path, count: int = 8) -> str:
    """The end of a log file, for an error message; "" when there is none."""
    try:
        with log.open("rb") as file:
            # A few lines fit into 8 KiB; the file itself may be long.
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-count:])


def free_port() -> int:
    """A TCP port on loopback that is free now; somebody else may take it before you do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_taken(port: int) -> bool:
    """Whether somebody listens on this TCP port of loopback."""
    with socket.socket() as probe:
        # As servers do: what is left of closed connections is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False
