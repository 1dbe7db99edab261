"""Where an Ollama server of a pool listens, in all the spellings that are in use. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sollol_broker.errors import InvalidJob
from sollol_broker.names import check_name

DEFAULT_PORT = 11434
USUAL_PRIORITY = 5
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # noqa: S104 - read, not bound to


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """One server.

    Attributes:
        priority: 0-10, usually 5: how readily it gets jobs that other nodes could do as well.
        slots: requests that it works on at once (OLLAMA_NUM_PARALLEL); None = as it says, and Ollama says nothing: 1.
    """

    host: str
    port: int = DEFAULT_PORT
    priority: int = USUAL_PRIORITY
    scheme: str = "http"
    slots: int | None = None

    @property
    def name(self) -> str:
        """What it is called in the fabric and in statistics: "gpu-1:11434"."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, by its name alone."""
        return self.host.lower() in _THIS_MACHINE or self.host.startswith("127.")

    def as_dict(self) -> dict[str, Any]:
        """As `nodes=` takes it."""
        found = {"host": self.host, "port": self.port, "priority": self.priority}
        return found if self.slots is None else {**found, "slots": self.slots}

    @classmethod
    def of(cls, given: Any) -> NodeAddress:
        """From {"host", "port", "priority", "slots"}, {"url"}, "host", "host:port" or a URL.

        Raises:
            InvalidJob: it is none of them.
        """
        if isinstance(given, NodeAddress):
            return given
        if isinstance(given, str):
            return cls._read(given, None, USUAL_PRIORITY, None)
        if not isinstance(given, Mapping) or not (given.get("host") or given.get("url")):
            raise InvalidJob(
                f"nodes: a node is {{'host': …, 'port': …}} or 'host:port', got {given!r}", field="nodes"
            )
        where = str(given.get("url") or given["host"])
        priority = given.get("priority", USUAL_PRIORITY)
        return cls._read(where, given.get("port"), priority, given.get("slots"))

    @classmethod
    def _read(cls, where: str, port: Any, priority: Any, slots: Any) -> NodeAddress:
        # A bare IPv6 address has colons of its own.
        text = f"[{where}]" if where.count(":") > 1 and "://" not in where and "[" not in where else where
        parts = urlsplit(text if "://" in text else f"http://{text}")
        try:
            number = int(port) if port not in (None, "") else parts.port
        except (TypeError, ValueError):
            raise InvalidJob(
                f"nodes: the port of {where} is no number from 1 to 65535", field="nodes"
            ) from None
        if number is None:
            number = 443 if parts.scheme == "https" else DEFAULT_PORT
        if not parts.hostname or parts.scheme not in ("http", "https") or not 0 < number < 65536:
            raise InvalidJob(f"nodes: {where!r} is no address such as gpu-1 or 10.0.0.5:11434", field="nodes")
        if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 10:
            raise InvalidJob(f"nodes: the priority of {where} is 0 to 10, got {priority!r}", field="nodes")
        if slots is not None and (isinstance(slots, bool) or not isinstance(slots, int) or slots < 1):
            raise InvalidJob(f"nodes: the slots of {where} are 1 or more, got {slots!r}", field="nodes")
        return cls(check_name(parts.hostname, "nodes"), number, priority, parts.scheme, slots)


def node_addresses(given: Iterable[Any]) -> tuple[NodeAddress, ...]:
    """All of them, each once; the first mention counts.

    Raises:
        InvalidJob: one is no address, or it is not a list.
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise InvalidJob(f"nodes: a list is needed, got {type(given).__name__}", field="nodes")
    found: dict[str, NodeAddress] = {}
    for each in map(NodeAddress.of, given):
        found.setdefault(each.name, each)
    return tuple(found.values())
