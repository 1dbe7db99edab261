"""API keys: what each lets its holder do, and what to answer to a request that shows one. Pure.

A key is 32 random bytes; only its SHA-256 is kept. It cannot be guessed, so a slow hash would only slow us.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from .codec import pack, unpack
from .errors import InvalidJob, QuotaExceeded
from .names import canonical_model, check_name
from .words import Priority

# So that scanners of leaked secrets know one when they see it.
_PREFIX = "sollol_"
_MOST_BYTES = 64 * 1024
_MOST_PATTERNS = 100
_ID_DIGITS = 12


class KeyRole(StrEnum):
    """How much a key's holder may do; each role includes those before it."""

    VIEWER = "viewer"  # see nodes, queues, jobs and counters
    APP = "app"  # ask models
    ADMIN = "admin"  # steer nodes, limits, models and keys


_RANK = {role: rank for rank, role in enumerate(KeyRole)}


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What lies in Redis of a key. Times are in seconds since the epoch, by Redis' clock.

    Attributes:
        digest: SHA-256 of the key, hex. name: says whose it is; several may have the same.
        app: the application that its jobs belong to, and whose quota they use.
        models: patterns of the models that it may use, such as "llama*"; none = all.
        most_priority: of its jobs. expires, revoked: 0 = not.
    """

    digest: str
    name: str
    role: KeyRole
    app: str
    models: tuple[str, ...] = ()
    most_priority: int = 10
    created: float = 0.0
    expires: float = 0.0
    revoked: float = 0.0

    @property
    def id(self) -> str:
        """Names the key in lists; tells nothing of it."""
        return self.digest[:_ID_DIGITS]

    def may_use(self, model: str) -> bool:
        """Whether its holder may use, and see, a model."""
        if not self.models:
            return True
        try:
            name = canonical_model(model)
        except InvalidJob:
            return False
        return any(fnmatchcase(name, pattern) for pattern in self.models)

    def to_bytes(self) -> bytes:
        """As it lies in Redis."""
        return pack({**asdict(self), "models": list(self.models), "role": self.role.value})

    @classmethod
    def from_bytes(cls, data: bytes) -> ApiKey | None:
        """Read it; None = there is none, or what is there is malformed."""
        try:
            fields: dict[str, Any] = unpack(data, max_bytes=_MOST_BYTES) if data else {}
            return cls(**{**fields, "models": tuple(fields["models"]), "role": KeyRole(fields["role"])})
        except (InvalidJob, TypeError, ValueError, KeyError):
            return None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a request.

    Attributes:
        status: 200 = let it in; else the HTTP status to refuse it with: 401, 403, 404 or 429.
        why: for the caller; never tells of what others have.
        app, priority: what its jobs run as.
        retry_after: seconds; with 429.
    """

    status: int
    why: str = ""
    app: str = ""
    priority: int = Priority.NORMAL
    retry_after: float = 0.0

    @property
    def is_allowed(self) -> bool:
        """Whether to let it in."""
        return self.status == 200


def judge(
    key: ApiKey | None, needed: KeyRole, *, now: float, model: str = "", priority: int = Priority.NORMAL
) -> Verdict:
    """Whether a key is good for a request; before anything else of it is looked at.

    1. No key, a wrong one, one that has expired or was revoked: 401.
    2. The role is too small: 403.
    3. The model is none of its: 404, the same as for one that nobody has.
    4. A priority above the key's is lowered to it.

    Args:
        key: as found by what was shown; None = nothing was shown, or nothing found.
        now: by Redis' clock.
        model: "" = the request names none.
    """
    if key is None:  # 1
        return Verdict(401, "an API key is needed, and none that is known was given")
    if key.revoked:
        return Verdict(401, f"API key {key.id} was revoked")
    if key.expires and key.expires <= now:
        return Verdict(401, f"API key {key.id} has expired")
    if _RANK[key.role] < _RANK[needed]:  # 2
        return Verdict(403, f"API key {key.id} is for role {key.role.value}, this needs {needed.value}")
    if model and not key.may_use(model):  # 3
        return Verdict(404, f"model {model!r} is not found")
    return Verdict(200, app=key.app, priority=min(priority, key.most_priority))  # 4


def over_quota(error: QuotaExceeded, app: str) -> Verdict:
    """What becomes of a request whose job Redis has refused for its application's quota."""
    return Verdict(429, str(error), app=app, retry_after=error.retry_after)


def digest_of(secret: str) -> str:
    """Under which a key is kept."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def is_of(key: ApiKey, secret: str) -> bool:
    """Whether a record is that of the key shown, in a time that does not tell how nearly."""
    return hmac.compare_digest(key.digest, digest_of(secret))


def mint(
    name: str,
    role: KeyRole,
    *,
    now: float,
    app: str = "",
    models: Sequence[str] = (),
    most_priority: int = 10,
    seconds: float | None = None,
) -> tuple[str, ApiKey]:
    """A new key, and its record.

    Args:
        app: "" = the name.
        seconds: until it expires; None = never.

    Raises:
        InvalidJob: a value makes no sense; `field` names it.
    """
    if not isinstance(most_priority, int) or not 0 <= most_priority <= 10:
        raise InvalidJob(f"priority: a whole number from 0 to 10, got {most_priority!r}", field="priority")
    if seconds is not None and not 0 < seconds < 1e10:
        raise InvalidJob(f"seconds: more than 0 are needed, got {seconds!r}", field="seconds")
    if len(models) > _MOST_PATTERNS:
        raise InvalidJob(f"models: at most {_MOST_PATTERNS} patterns", field="models")
    patterns = tuple(check_name(each, "models").lower().removesuffix(":latest") for each in models)
    secret = _PREFIX + secrets.token_urlsafe(32)
    record = ApiKey(
        digest=digest_of(secret),
        name=check_name(name, "name"),
        role=role,
        app=check_name(app or name, "app"),
        models=patterns,
        most_priority=most_priority,
        created=now,
        expires=now + seconds if seconds is not None else 0.0,
    )
    return secret, record
