"""How a gateway is set up. Only the command line reads the environment."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass
from typing import Any, Self

from sollol_broker.errors import InvalidJob
from sollol_broker.live_log import USUAL_SAMPLE

DEFAULT_PORT = 8000
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What a gateway lets in, and how much of it.

    Attributes:
        host, port: where it listens.
        keys: whether every caller has to show an API key; always so where others than this machine can reach it.
        hosts: names in the Host header that are let in beside the usual ones of this machine; with a port or without.
        origins: pages of other sites that may call, such as "https://chat.example.org". None are by default.
        max_body_bytes: of one request. max_file_bytes: of one uploaded file; an application may have eight times as
            much in Redis at once. max_requests: under way at the same time, per process.
        patience_seconds: for which a stream waits for its first token before it begins with notes of its place in line.
        note_seconds: between two such notes.
        dashboard: the address of the monitoring page.
        webhooks: whether jobs may name an address that is told of their end. webhook_hosts: those that may be
            called though they are not on the internet. webhook_secret: with which calls are signed; "" = they are not.
        max_documents: of one batch.
        log_sample: share of the answered requests that the live log tells of; refusals and failures always. None =
            nothing is written.
        fabric_metrics: whether /metrics tells of the whole fabric, too; one process of a fabric is enough for that.
        metrics_host, metrics_port: where /metrics is as well, without an API key and with nothing beside it; port 0 =
            nowhere.

    Raises:
        InvalidJob: a value makes no sense; `field` names it.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    keys: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_body_bytes: int = 64 * _MIB
    max_file_bytes: int = 128 * _MIB
    max_requests: int = 2048
    patience_seconds: float = 2.0
    note_seconds: float = 1.0
    dashboard: str = "http://127.0.0.1:8080/"
    webhooks: bool = True
    webhook_hosts: tuple[str, ...] = ()
    webhook_secret: str = ""
    max_documents: int = 10_000
    log_sample: float | None = USUAL_SAMPLE
    fabric_metrics: bool = False
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0

    def __post_init__(self) -> None:
        for name in (
            "max_body_bytes",
            "max_file_bytes",
            "max_documents",
            "max_requests",
            "patience_seconds",
            "note_seconds",
        ):
            if getattr(self, name) <= 0:
                raise InvalidJob(f"{name}: more than 0 is needed, got {getattr(self, name)!r}", field=name)
        if "*" in self.origins:
            raise InvalidJob("origins: name them, '*' would let every page in the world in", field="origins")

    def to_json(self) -> str:
        """For the processes that serve by it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` gave."""
        read = json.loads(text)
        fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in read.items()}
        return cls(**fields)

    @property
    def most_app_bytes(self) -> int:
        """Of one application's uploaded files together."""
        return 8 * self.max_file_bytes

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    @property
    def needs_keys(self) -> bool:
        """Whether every caller has to show an API key."""
        return self.keys or not self.is_loopback


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
