"""Who asks, and what that one may do."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from sollol_broker.api_keys import ApiKey, KeyRole

# Whose jobs they are when nobody says.
DEFAULT_APP = "gateway"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        key: what it showed; None = none is needed here, and it may do everything.
    """

    key: ApiKey | None = None

    @property
    def role(self) -> KeyRole:
        """What it may do."""
        return self.key.role if self.key is not None else KeyRole.ADMIN

    def may_use(self, model: str) -> bool:
        """Whether it may use, and see, a model."""
        return self.key is None or self.key.may_use(model)

    def app(self, wanted: str | None) -> str:
        """Whose jobs its jobs are: a key decides, else the caller's word."""
        return self.key.app if self.key is not None else wanted or DEFAULT_APP

    def owns(self, app: str) -> bool:
        """Whether an application's jobs are its own."""
        return self.role is KeyRole.ADMIN or (self.key is not None and self.key.app == app)

    def priority(self, wanted: int) -> int:
        """What it gets of the priority that it wants."""
        return wanted if self.key is None else min(wanted, self.key.most_priority)


ANYBODY = Caller()


def caller_of(http: HTTPConnection) -> Caller:
    """Who sent a request, as the guards found out."""
    found = getattr(http.state, "caller", ANYBODY)
    return found if isinstance(found, Caller) else ANYBODY
