"""What a line of the live log is, which lines are worth one, and who wants to see which. Pure."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

from .errors import InvalidJob
from .told import plain, texts, whole

# Of one entry; a traceback or a server's page of HTML is no line.
_EVENT_CHARS = 500
_FIELD_CHARS = 200
_MOST_FIELDS = 16
# Patterns are not run over more than this: what is shown is far shorter.
_MOST_SCRUBBED = 4 * _EVENT_CHARS
_WHO = frozenset(("level", "source", "process", "node", "app"))
# A line that has been silent for so long is news, whatever its share.
_NEWS_SECONDS = 10.0
_KINDS_KEPT = 256
# What looks like a login, a key or a token. Our own texts have none; what they quote may.
_SECRETS = (
    (re.compile(r"(?<=://)[^/@\s]*@"), "***@"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]+"), r"\1 ***"),
    (
        re.compile(r"(?i)\b(password|passwd|secret|token|api[_-]?key|authorization)(\s*[=:]\s*)\S+"),
        r"\1\2***",
    ),
    (re.compile(r"\bsk-[\w-]{6,}"), "sk-***"),
)


class Level(IntEnum):
    """How bad it is; the numbers are those of `logging`."""

    INFO = 20
    WARNING = 30
    ERROR = 40

    @property
    def word(self) -> str:
        """As it lies in Redis."""
        return self.name.lower()

    @classmethod
    def of(cls, number: int) -> Level:
        """The level of a record of `logging`."""
        return cls.ERROR if number >= cls.ERROR else cls.WARNING if number >= cls.WARNING else cls.INFO

    @classmethod
    def named(cls, word: str) -> Level:
        """The level of that name.

        Raises:
            InvalidJob: there is none.
        """
        try:
            return cls[word.upper()]
        except KeyError:
            names = ", ".join(each.word for each in cls)
            raise InvalidJob(f"level: one of {names} is needed, got {word!r}", field="level") from None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Something that happened in one of the fabric's processes.

    Attributes:
        id: where it lies in the log. at: seconds since the epoch, by Redis' clock.
        source: "worker", "coordinator", "gateway" or "client". process: which one.
        node: the machine. app: the application that it is about; "" = none.
        event: what happened, in a few words. fields: facts, such as job, model and error.
        left_out: lines of this kind that were left out since the last one (info is sampled).
    """

    id: str
    at: float
    level: str
    source: str
    process: str
    node: str
    app: str
    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    left_out: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "fields": dict(self.fields)}


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which lines somebody wants: of this level and worse, about this node, this application; "" = any."""

    level: Level = Level.INFO
    node: str = ""
    app: str = ""

    def wants(self, entry: LogEntry) -> bool:
        """Whether a line is one of them."""
        return (
            Level.named(entry.level) >= self.level
            and self.node in ("", entry.node)
            and self.app in ("", entry.app)
        )


class Sampler:
    """Takes every warning and error, and of each kind of info its share, evenly; the first after a silence always.

    Args:
        share: of the info lines, from 0 to 1.
    """

    def __init__(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise InvalidJob(f"the share of info lines is from 0 to 1, got {share:g}", field="log_sample")
        self.share = share
        # By kind: the part of a line that is due, lines left out, when one was taken last.
        self._kinds: OrderedDict[str, tuple[float, int, float]] = OrderedDict()

    def takes(self, level: Level, kind: str, now: float) -> int | None:
        """How many lines of the kind were left out before this one; None: it is left out itself."""
        if level > Level.INFO:
            return 0
        if not self.share:
            return None
        due, left_out, taken_at = self._kinds.pop(kind, (1.0, 0, now))
        due = min(1.0, due + self.share)
        is_taken = due >= 1.0 - 1e-9 or now - taken_at > _NEWS_SECONDS
        self._kinds[kind] = (0.0, 0, now) if is_taken else (due, left_out + 1, taken_at)
        if len(self._kinds) > _KINDS_KEPT:
            self._kinds.popitem(last=False)
        return left_out if is_taken else None


def scrubbed(text: str) -> str:
    """Text on one line, without what looks like a login, a key or a token."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return " ".join(text.split())


def to_flat(entry: LogEntry, *, ago_ms: float) -> tuple[str | int, ...]:
    """An entry as XADD takes it; Redis says when, and `ago_ms` how long before."""
    pairs: dict[str, str | int] = {
        "level": entry.level,
        "source": entry.source,
        "process": entry.process,
        "node": entry.node,
        "app": entry.app,
        "event": scrubbed(entry.event)[:_EVENT_CHARS],
        "fields": json.dumps(dict(_short(entry.fields)), ensure_ascii=False) if entry.fields else "",
        "left_out": entry.left_out,
        "ago": round(ago_ms),
    }
    return tuple(part for name, value in pairs.items() if value for part in (name, value))


def from_flat(entry_id: bytes, flat: Iterable[bytes]) -> LogEntry:
    """An entry as it lies in Redis; anybody may have written it, so whatever is odd becomes plain text, and short."""
    pairs = {name: value[:_FIELD_CHARS] if name in _WHO else value for name, value in texts(flat).items()}
    where = entry_id.decode()
    level, found = pairs.get("level", ""), plain(pairs.get("fields"))
    return LogEntry(
        id=where,
        at=round((int(where.partition("-")[0]) - max(0, whole(pairs.get("ago")))) / 1000, 3),
        level=level if level.upper() in Level.__members__ else Level.INFO.word,
        source=pairs.get("source", ""),
        process=pairs.get("process", ""),
        node=pairs.get("node", ""),
        app=pairs.get("app", ""),
        event=pairs.get("event", "")[:_EVENT_CHARS],
        fields=dict(_short(found if isinstance(found, dict) else {})),
        left_out=max(0, whole(pairs.get("left_out"))),
    )


def _short(fields: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in list(fields.items())[:_MOST_FIELDS]:
        is_plain = isinstance(value, bool | int | float)
        yield name[:_FIELD_CHARS], value if is_plain else scrubbed(str(value)[:_MOST_SCRUBBED])[:_FIELD_CHARS]
