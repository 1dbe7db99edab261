"""How the page is set up. Only the command line reads the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from sollol_broker.alerts import QUEUE_SECONDS
from sollol_broker.errors import InvalidJob
from sollol_broker.url import is_loopback

DEFAULT_PORT = 8080
_LEAST_PASSWORD = 8


class Role(StrEnum):
    """What a visitor may do."""

    VIEWER = "viewer"  # look
    OPERATOR = "operator"  # cancel, retry, change priorities, close and empty nodes


@dataclass(frozen=True, slots=True)
class PageConfig:
    """Where the page listens, and who gets in.

    Attributes:
        login: whether everybody has to log in; always so where others than this machine can reach it: by the address,
            by another name, or through a proxy.
        password: lets its holder in, as `password_role`, beside the fabric's API keys; "" = only those do.
        hosts: names in the Host header that are let in beside the usual ones of this machine; with a port or without.
        proxy: the address of a reverse proxy that is believed when it says that it was reached by https; "" = none.
        queue_seconds: a queue whose head has waited for longer is told of.
        most_browsers: that are kept up to date at the same time; more than that ask again by themselves.
        show_prompts: whether operators may read what jobs were asked.
        metrics_host, metrics_port: where the fabric's figures are for Prometheus, without a login; port 0 = nowhere.

    Raises:
        InvalidJob: a value makes no sense; `field` names it.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    login: bool = False
    password: str = field(default="", repr=False)
    password_role: Role = Role.OPERATOR
    hosts: tuple[str, ...] = ()
    proxy: str = ""
    queue_seconds: float = QUEUE_SECONDS
    most_browsers: int = 64
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    show_prompts: bool = False

    def __post_init__(self) -> None:
        if self.password and len(self.password) < _LEAST_PASSWORD:
            raise InvalidJob(
                f"the password is too short: {_LEAST_PASSWORD} characters at least", field="password"
            )
        if not 1 <= self.most_browsers <= 1000:
            raise InvalidJob("most_browsers: from 1 to 1000", field="most_browsers")
        if self.queue_seconds <= 0:
            raise InvalidJob("queue_seconds: more than 0 is needed", field="queue_seconds")

    @property
    def needs_login(self) -> bool:
        """Whether everybody has to log in."""
        is_ours = is_loopback(self.host.lower()) and not self.hosts and not self.proxy
        return self.login or bool(self.password) or not is_ours
