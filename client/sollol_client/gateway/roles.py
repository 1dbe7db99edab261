"""What a caller has to be to use a path. Pure; a path that is not named here is for applications."""

from __future__ import annotations

from sollol_broker.api_keys import KeyRole

# Tell nothing but that we are here.
_OPEN = frozenset({"/", "/api/version", "/api/health", "/livez", "/readyz", "/openapi.json"})
_LOOK = frozenset(
    {"/api/tags", "/api/ps", "/api/show", "/api/status", "/api/stats", "/api/dashboard", "/metrics"}
)
# What changes the models of nodes.
_STEER = ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs")


def role_for(path: str) -> KeyRole | None:
    """The least role; None = anybody may."""
    if path in _OPEN:
        return None
    if path.startswith(_STEER):
        return KeyRole.ADMIN
    if path in _LOOK or path.startswith("/v1/models"):
        return KeyRole.VIEWER
    return KeyRole.APP
