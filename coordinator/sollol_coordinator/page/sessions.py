"""Who is logged in. In memory: whoever was has to log in again after a restart."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from .config import Role

SESSION_SECONDS = 12 * 3600.0
# In all, and of one key: who logs in again and again turns nobody else out.
_MOST_SESSIONS, _MOST_EACH = 1000, 100
# Tries within a minute, from one address and from all together. A password of eight characters outlasts them by far.
_TRIES_EACH, _TRIES_ALL = 10, 60
_TRIES_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks.

    Attributes:
        name: whose key it is; or "password", or "this machine" where no login is needed.
        digest: of the API key; "" = none. until: when the session ends, by the page's own clock.
        word: of its session; "" = it has none.
        is_key: it showed its key with this very request, which no browser does unasked.
    """

    role: Role
    name: str
    digest: str = ""
    until: float = 0.0
    word: str = field(default="", repr=False)
    is_key: bool = False

    @property
    def may_operate(self) -> bool:
        """Whether it may change things."""
        return self.role is Role.OPERATOR


class Sessions:
    """Sessions by the random word in a browser's cookie.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._lock = Lock()
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()

    @staticmethod
    def word() -> str:
        """A new word for a cookie."""
        return secrets.token_urlsafe(32)

    def begin(self, role: Role, name: str, digest: str = "") -> str:
        """Let somebody in; gives the word for the cookie."""
        word = self.word()
        with self._lock:
            self._visitors[word] = Visitor(role, name, digest, self._clock() + SESSION_SECONDS, word)
            own = [each for each, who in self._visitors.items() if (who.name, who.digest) == (name, digest)]
            if len(own) > _MOST_EACH:
                del self._visitors[own[0]]
            elif len(self._visitors) > _MOST_SESSIONS:
                self._visitors.popitem(last=False)
        return word

    def visitor(self, word: str) -> Visitor | None:
        """Who has this word; None = nobody, or not any more."""
        with self._lock:
            found = self._visitors.get(word)
            if found is not None and found.until <= self._clock():
                del self._visitors[word]
                return None
            return found

    def end(self, word: str) -> None:
        """Log out."""
        with self._lock:
            self._visitors.pop(word, None)

    def token(self, word: str) -> str:
        """What forms and requests of the browser with this word must carry; no other site can know it."""
        return hmac.new(self._secret, word.encode(errors="replace"), hashlib.sha256).hexdigest()

    def is_token(self, word: str, token: str) -> bool:
        """Whether it is that, in a time that does not tell how nearly."""
        return bool(word) and hmac.compare_digest(self.token(word).encode(), token.encode(errors="replace"))


class Tries:
    """Counts failed logins; too many within a minute have to wait.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = Lock()
        self._failed: deque[tuple[float, str]] = deque()

    def wait_seconds(self, address: str) -> float:
        """How long somebody has to wait before the next try; 0 = not at all."""
        with self._lock:
            now = self._clock()
            while self._failed and self._failed[0][0] <= now - _TRIES_SECONDS:
                self._failed.popleft()
            own = [at for at, whose in self._failed if whose == address]
            if len(own) >= _TRIES_EACH:
                return own[-_TRIES_EACH] + _TRIES_SECONDS - now
            if len(self._failed) >= _TRIES_ALL:
                return self._failed[-_TRIES_ALL][0] + _TRIES_SECONDS - now
            return 0.0

    def failed(self, address: str) -> None:
        """Note a failed try."""
        with self._lock:
            self._failed.append((self._clock(), address))


def same_secret(one: str, other: str) -> bool:
    """Whether two secrets are the same, in a time that does not tell how nearly."""
    return hmac.compare_digest(
        hashlib.sha256(one.encode(errors="replace")).digest(),
        hashlib.sha256(other.encode(errors="replace")).digest(),
    )
