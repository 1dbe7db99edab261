"""The text of a systemd unit for one of SOLLOL's processes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Kinds of processes: the program, what to call it, and whether it has to do with GPUs.
PROGRAMS = {
    "worker": "sollol-worker",
    "coordinator": "sollol-coordinator",
    "gateway": "sollol-gateway",
    "dashboard": "sollol-dashboard",
}
REPORTER = "gpu-reporter"
_WHAT = {
    "worker": "SOLLOL worker: runs jobs of the fabric on this machine's LLM servers",
    "coordinator": "SOLLOL coordinator: rescues jobs, forms groups of nodes",
    "gateway": "SOLLOL gateway: the fabric over HTTP",
    "dashboard": "SOLLOL dashboard: the monitoring page",
    REPORTER: "SOLLOL reporter: tells the fabric of this machine's hardware",
}
# Who may use GPUs, and who may read Ollama's models; a group that the system does not have would keep the unit from
# starting, so only those that exist are named.
GROUPS = ("render", "video", "ollama")
_NEEDS_GPUS = ("worker", REPORTER)
# As its exit codes say: a command line or a configuration that makes no sense does not get better by itself.
_NO_RESTART = 2
_HOMES = ("/home", "/root")

_SYSTEM = """\
DynamicUser=yes
StateDirectory={name}
CacheDirectory={name}
Environment=HOME=%S/{name} XDG_CACHE_HOME=%C/{name}
CapabilityBoundingSet=
ProtectHome=tmpfs
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictNamespaces=yes
"""
_EVERYWHERE = """\
NoNewPrivileges=yes
ProtectSystem=strict
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
UMask=0077
"""


@dataclass(frozen=True, slots=True)
class Service:
    """A process that systemd runs.

    Attributes:
        kind: one of `PROGRAMS`, or `REPORTER`.
        command: the program by its whole path, and its arguments. They are seen by everybody: no secrets.
        name: tells several of one kind apart; "" = the only one.
        environment: no secrets either.
        credentials: files that systemd reads as root and hands to the process alone, by name.
        secrets: a file of more variables (mode 600), read if it is there; "" = none.
        readable: directories below people's homes that it has to read.
        groups: of the system, that it belongs to besides.
        of_user: for systemd --user: it runs as that user, and has no user of its own.
    """

    kind: str
    command: tuple[str, ...]
    name: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    credentials: Mapping[str, Path] = field(default_factory=dict)
    secrets: str = ""
    readable: tuple[Path, ...] = ()
    groups: tuple[str, ...] = ()
    of_user: bool = False

    @property
    def unit(self) -> str:
        """Its name in systemd, such as "sollol-worker.service"."""
        return f"sollol-{self.kind}{f'-{self.name}' if self.name else ''}.service"

    def text(self) -> str:
        """The unit."""
        name = self.unit.removesuffix(".service")
        lines = [
            f"# Written by `sollol install-{'gpu-reporter' if self.kind == REPORTER else 'service'}`.",
            "[Unit]",
            f"Description={_WHAT[self.kind]}{f' ({self.name})' if self.name else ''}",
            "Wants=network-online.target",
            "After=network-online.target redis-server.service redis.service valkey-server.service ollama.service",
            "StartLimitIntervalSec=0",
            "",
            "[Service]",
            f"ExecStart={' '.join(argument(word) for word in self.command)}",
            *(f"Environment={assignment(key, value)}" for key, value in self.environment.items()),
            *(f"LoadCredential={key}:{escaped(str(path))}" for key, path in self.credentials.items()),
            *([f"EnvironmentFile=-{escaped(self.secrets)}"] if self.secrets else []),
            # A worker ends what it has started itself, and in order; SIGTERM lets running jobs end.
            "KillMode=mixed",
            "TimeoutStopSec=90",
            "Restart=on-failure",
            "RestartSec=5",
            f"RestartPreventExitStatus={_NO_RESTART}",
            *(_EVERYWHERE + ("" if self.of_user else _SYSTEM.format(name=name))).splitlines(),
            *self._more(),
            "",
            "[Install]",
            f"WantedBy={'default' if self.of_user else 'multi-user'}.target",
        ]
        return "\n".join(lines) + "\n"

    def _more(self) -> list[str]:
        if self.of_user:
            # What a user's processes keep lies below the home: models that were converted, paces, rpc caches.
            return ["ReadWritePaths=%h"]
        lines = [f"BindReadOnlyPaths={escaped(str(path))}" for path in self.readable]
        if self.kind in _NEEDS_GPUS:
            return lines + ([f"SupplementaryGroups={' '.join(self.groups)}"] if self.groups else [])
        return [*lines, "PrivateDevices=yes", "MemoryDenyWriteExecute=yes"]


def escaped(text: str) -> str:
    """Text in which systemd finds nothing to put in."""
    return text.replace("%", "%%")


def argument(word: str) -> str:
    """One word of a command line as systemd reads it back."""
    return _quoted(escaped(word).replace("$", "$$"))


def assignment(name: str, value: str) -> str:
    """A variable as systemd reads it back; "%d/" at the beginning of its value, where credentials are, stays."""
    directory = "%d/" if value.startswith("%d/") else ""
    return _quoted(f"{name}={directory}{escaped(value.removeprefix(directory))}")


def _quoted(word: str) -> str:
    if "\n" in word or "\r" in word:
        raise ValueError(f"{word!r} holds a line break")
    body = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{body}"' if not body or body != word or any(char in body for char in " \t';") else body


def below_homes(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Those that lie in people's homes, which the unit hides, each once and none inside another. Pure."""
    at_home = sorted({path for path in paths if str(path).startswith(tuple(f"{home}/" for home in _HOMES))})
    return tuple(
        path for path in at_home if not any(path != other and path.is_relative_to(other) for other in at_home)
    )
