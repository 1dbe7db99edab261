"""Puts a unit where systemd finds it, and takes it away again; each may be done twice."""

from __future__ import annotations

import grp
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from sollol_broker.errors import SollolError

from .unit import GROUPS, Service, below_homes

_PACKAGES = ("sollol", "sollol_broker", "sollol_client", "sollol_worker_agent", "sollol_coordinator")
# Where a program comes with another one's extra.
_EXTRAS = {"sollol-dashboard": "coordinator"}
_SYSTEM = Path("/etc/systemd/system")
# As sd_booted(3) looks.
_BOOTED = Path("/run/systemd/system")


class Systemd:
    """The units of this machine, or of this user.

    Args:
        of_user: systemd --user.
        directory: where units lie; None = where systemd looks.
        say: told in a sentence what was done.
    """

    def __init__(
        self, *, of_user: bool, directory: Path | None = None, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._of_user = of_user
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        self.directory = directory or (config / "systemd/user" if of_user else _SYSTEM)
        self._say = say

    def install(self, service: Service, *, starts: bool = True) -> None:
        """Write the unit, and have it run now and after each start of the machine.

        Raises:
            SollolError: it cannot be written, or systemd refuses it.
        """
        path = self.directory / service.unit
        text = service.text()
        is_new = not path.exists()
        is_same = not is_new and path.read_text("utf-8") == text
        if not is_same:
            self._write(path, text)
        self._say(f"{path} is {'as it should be' if is_same else 'written' if is_new else 'written anew'}")
        if not self._can_start():
            self._say(
                f"systemd does not run here. Where it does: {self._command('enable', '--now', service.unit)}"
            )
            return
        if not is_same:
            self._systemctl("daemon-reload")
        if starts:
            self._systemctl("enable", service.unit)
            # `restart` starts what does not run, and gives what runs its new unit.
            self._systemctl("start" if is_same else "restart", service.unit)
            self._say(
                f"it runs, and will after a start of the machine: {self._command('status', service.unit)}"
            )
        else:
            self._say(f"start it with: {self._command('enable', '--now', service.unit)}")

    def uninstall(self, unit: str) -> None:
        """Stop it and remove the unit; nothing happens where there is none.

        Raises:
            SollolError: it cannot be removed.
        """
        path = self.directory / unit
        if not path.exists():
            self._say(f"{unit} is not installed")
            return
        if self._can_start():
            self._systemctl("disable", "--now", unit)
        try:
            path.unlink()
        except OSError as error:
            raise SollolError(f"{path} cannot be removed ({error.strerror}): run it as root") from None
        if self._can_start():
            self._systemctl("daemon-reload")
        self._say(f"{unit} is stopped and removed")

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        except OSError as error:
            raise SollolError(
                f"{path} cannot be written ({error.strerror}): run it as root, or take --user, or --dry-run and put "
                "what it prints there"
            ) from None

    def _can_start(self) -> bool:
        return _BOOTED.is_dir() and shutil.which("systemctl") is not None and self._is_usual_place()

    def _is_usual_place(self) -> bool:
        return self.directory == _SYSTEM or self._of_user

    def _command(self, *words: str) -> str:
        return " ".join(("systemctl", *(("--user",) if self._of_user else ()), *words))

    def _systemctl(self, *words: str) -> None:
        done = subprocess.run(  # noqa: S603  # our own words
            self._command(*words).split(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SollolError(f"`{self._command(*words)}` failed: {done.stderr.strip()}")


def program(name: str) -> str:
    """The whole path of one of our programs: the one beside this Python, or on PATH.

    Raises:
        SollolError: it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise SollolError(
            f"{name} is not installed here: pip install 'sollol[{name.removeprefix('sollol-')}]'"
        )
    return found


def known_groups() -> tuple[str, ...]:
    """Of the groups that give GPUs and models free, those that this system has."""
    known = {each.gr_name for each in grp.getgrall()}
    return tuple(name for name in GROUPS if name in known)


def readable(words: Sequence[str]) -> tuple[Path, ...]:
    """What a service has to read of people's homes: our Python with its packages, and files that its command names."""
    paths = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent]
    for name in _PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.origin:
            paths.append(Path(spec.origin).parent.parent)
    for word in words:
        named = Path(word.rpartition("=")[2])
        if named.is_absolute() and named.exists():
            paths.append(named if named.is_dir() else named.parent)
    return below_homes(paths)
