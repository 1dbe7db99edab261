"""The one reader behind all browsers: whoever looks at the same thing is told by the same read of Redis.

A topic is a look with its parameters. It is read again every few seconds while somebody follows it, its text is made
once, and all followers get that text. However many browsers are open, all reads together stay below RATE commands a
second; only what is so large that one look costs more is read every LONGEST_SECONDS nevertheless.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import Condition
from typing import Any, Protocol

from sollol_broker.errors import BrokerUnavailable, InvalidJob, SollolError
from sollol_broker.portal import Portal

log = logging.getLogger(__name__)

RATE = 40.0
LONGEST_SECONDS = 5.0
# The look that has to tell of a dead worker within 15 s, whatever else is looked at.
_FIRST = "overview"
# A topic without followers is kept for those who ask again and again.
_KEPT_SECONDS = 30.0
_MOST_TOPICS = 500
_ASK_SECONDS = 10.0

Params = tuple[tuple[str, str], ...]


class Looks(Protocol):
    """What can be looked at."""

    def seconds(self, name: str) -> float:
        """Between two reads of a look."""

    async def look(self, name: str, params: Mapping[str, str]) -> dict[str, Any]:
        """Read it now."""

    def spent(self) -> int:
        """Commands that Redis has got so far."""


class TooMany(SollolError):
    """More is looked at than the page keeps up to date."""


@dataclass(slots=True)
class Topic:
    """A look that somebody follows; guarded by the hub's condition.

    Attributes:
        text: the last answer as JSON; error: why there is no newer one. version: counts both.
        used_at: when somebody asked last. due: when it is read again. is_expected: somebody is about to follow it.
    """

    name: str
    params: Params
    text: bytes = b""
    error: bytes = b""
    version: int = 0
    followers: int = 0
    used_at: float = 0.0
    begun_at: float = 0.0
    read_at: float = 0.0
    due: float = 0.0
    is_expected: bool = False

    def tell(self, text: bytes, error: bytes) -> None:
        """Take in what came of a read."""
        if text != self.text or error != self.error:
            self.text, self.error = text or self.text, error
            self.version += 1


@dataclass(slots=True)
class Following:
    """One browser's place at a topic."""

    topic: Topic
    hub: Hub
    seen: int = 0

    def next(self, seconds: float) -> tuple[str, bytes] | None:
        """What is new: ("look", JSON) or ("trouble", JSON); None = nothing for so long.

        Raises:
            EOFError: the page is being stopped.
        """
        with self.hub.changed:
            self.hub.changed.wait_for(
                lambda: self.hub.is_closed or self.topic.version > self.seen, timeout=seconds
            )
            if self.hub.is_closed:
                raise EOFError
            if self.topic.version == self.seen:
                return None
            self.seen = self.topic.version
            return ("trouble", self.topic.error) if self.topic.error else ("look", self.topic.text)


@dataclass(slots=True)
class Hub:
    """Reads what is followed.

    Args:
        portal: in whose loop the reads run.
    """

    looks: Looks
    portal: Portal
    changed: Condition = field(default_factory=Condition)
    is_closed: bool = False
    _topics: dict[tuple[str, Params], Topic] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _free_at: float = 0.0
    _away_until: float = 0.0
    _renewed_at: float = 0.0
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self.portal.run(self._start())

    def let_go(self) -> None:
        """Let all followers go, so that whoever serves them can end."""
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()

    def close(self) -> None:
        """Let all followers go, and stop."""
        self.let_go()
        self.portal.run(self._stop())

    def expect(self, name: str, params: Params) -> None:
        """Somebody is about to follow a look: it is read while their browser still fetches the scripts.

        Raises:
            TooMany
        """
        now = time.monotonic()
        with self.changed:
            topic = self._topic(name, params, now)
            topic.used_at, topic.is_expected = now, _is_long_ago(topic, now)
        self.portal.soon(self._wake.set)

    def join(self, name: str, params: Params) -> Following:
        """Follow a look until `leave`: what is known comes at once, then all that is new.

        Raises:
            TooMany
        """
        with self.changed:
            topic = self._topic(name, params, time.monotonic())
            topic.followers += 1
        self.portal.soon(self._wake.set)
        return Following(topic, self)

    def leave(self, following: Following) -> None:
        """Follow it no longer."""
        with self.changed:
            following.topic.followers -= 1
            following.topic.used_at = time.monotonic()

    @contextlib.contextmanager
    def follow(self, name: str, params: Params) -> Iterator[Following]:
        """Follow a look for a while; see `join`."""
        following = self.join(name, params)
        try:
            yield following
        finally:
            self.leave(following)

    def renew(self) -> None:
        """Somebody has changed something: what was read before is no answer any more, and is read anew at once."""
        with self.changed:
            self._renewed_at = time.monotonic()
            for topic in self._topics.values():
                topic.due = min(topic.due, self._renewed_at)
        self.portal.soon(self._wake.set)

    def ask(self, name: str, params: Params) -> tuple[str, bytes]:
        """Look once; what was read a moment ago will do.

        Raises:
            TooMany, EOFError
        """
        with self.follow(name, params) as following, self.changed:
            topic, asked = following.topic, time.monotonic()
            old = asked - 2 * self.looks.seconds(name)

            def is_new() -> bool:
                return topic.read_at > old and topic.begun_at >= self._renewed_at

            # Where Redis is known to be away, nobody waits until that is found out again.
            self.changed.wait_for(
                lambda: self.is_closed or is_new() or time.monotonic() < self._away_until,
                timeout=_ASK_SECONDS,
            )
            if self.is_closed:
                raise EOFError
            if not is_new():
                return "trouble", topic.error or _words("Redis takes long to answer")
            return ("trouble", topic.error) if topic.error else ("look", topic.text)

    def _topic(self, name: str, params: Params, now: float) -> Topic:
        topic = self._topics.get((name, params))
        if topic is None:
            self._forget(now)
            if len(self._topics) >= _MOST_TOPICS:
                raise TooMany("too many different views are open: close some")
            topic = self._topics[name, params] = Topic(name, params, due=now)
        return topic

    def _forget(self, now: float) -> None:
        """Drop what nobody follows: what is old, and where there are too many, what was asked for the longest ago."""
        idle = (each for each in self._topics.values() if not each.followers)
        for topic in sorted(idle, key=lambda each: each.used_at):
            if now - topic.used_at > _KEPT_SECONDS or len(self._topics) >= _MOST_TOPICS:
                del self._topics[topic.name, topic.params]

    async def _start(self) -> None:
        self._task = asyncio.create_task(self._loop())

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _loop(self) -> None:
        while not self.is_closed:
            topic, wait = self._next(time.monotonic())
            if topic is not None:
                await self._read(topic)
                continue
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    def _next(self, now: float) -> tuple[Topic | None, float]:
        """The topic to be read now, or how long to wait.

        1. One that has never been read, or not for long: somebody waits for it. The one that has waited longest.
        2. Else the one that is due first, once the reads before it are paid for.
        """
        with self.changed:
            followed = [each for each in self._topics.values() if each.followers or each.is_expected]
            self._forget(now)
        if not followed:
            return None, _KEPT_SECONDS
        urgent = [each for each in followed if _is_long_ago(each, now)]
        if urgent:  # 1
            return min(urgent, key=lambda topic: topic.due), 0.0
        first = min(followed, key=lambda topic: topic.due)  # 2
        at = max(first.due, self._free_at)
        return (first, 0.0) if at <= now else (None, at - now)

    async def _read(self, topic: Topic) -> None:
        before, began = self.looks.spent(), time.monotonic()
        text, error, pause, is_away = b"", b"", self.looks.seconds(topic.name), False
        try:
            text = _json(await self.looks.look(topic.name, dict(topic.params)))
        except InvalidJob as failure:
            error = _words(str(failure), 400)
        except BrokerUnavailable as failure:
            error, is_away = _words(str(failure)), not failure.refused
        except SollolError as failure:
            error = _words(str(failure))
        except Exception:
            log.exception("look %s: a mistake of ours", topic.name)
            error, pause = _words("the page made a mistake; its log tells more"), LONGEST_SECONDS
        now = time.monotonic()
        cost = self.looks.spent() - before
        self._free_at = free_again(self._free_at, began, cost)
        with self.changed:
            self._away_until = now + LONGEST_SECONDS if is_away else 0.0
            # A Redis that is away is so for all: each would find out by itself, one after the other.
            for each in self._topics.values() if is_away else (topic,):
                each.tell(text, error)
            topic.begun_at, topic.read_at, topic.is_expected = began, now, False
            topic.due = now + pause if began >= self._renewed_at else now
            self.changed.notify_all()


def _is_long_ago(topic: Topic, now: float) -> bool:
    """Whether it has never been read, or not for so long that nobody should be shown it."""
    longest = LONGEST_SECONDS if topic.name == _FIRST else 3 * LONGEST_SECONDS
    return not topic.read_at or now - topic.read_at > longest


def free_again(free_at: float, began: float, cost: int) -> float:
    """When the next read may begin, after one of so many commands."""
    return min(max(free_at, began) + cost / RATE, began + LONGEST_SECONDS)


def _words(text: str, status: int = 503) -> bytes:
    return _json({"error": text, "status": status})


def _json(value: Any) -> bytes:
    try:
        text = _dumped(value)
    except ValueError:  # a number that JSON has not, such as NaN: no browser would read any of it
        text = _dumped(json.loads(json.dumps(value, default=str), parse_constant=lambda name: name))
    return text.encode(errors="replace")


def _dumped(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str)
