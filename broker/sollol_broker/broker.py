"""The one door to Redis: each verb of the function library as a typed method.

Everything is narrowed to the house's own types here; nothing above knows redis-py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from redis.exceptions import RedisError, ResponseError

from .claim_rule import Share
from .claims import Claimed as Claimed
from .claims import ClaimRequest as ClaimRequest
from .claims import Claims as Claims
from .claims import Finished as Finished
from .claims import LaneOffer as LaneOffer
from .claims import Lease as Lease
from .claims import ModelOffer as ModelOffer
from .claims import Used as Used
from .claims import read_claims
from .codec import pack
from .errors import BrokerOutdated, BrokerUnavailable
from .keys import Keys
from .library import Library, library
from .link import Link, LinkConfig
from .names import key_part
from .outcome import Seam
from .seal import Seal, is_sealed
from .submission import Submission as Submission
from .url import BrokerUrl
from .wire import Reply, Wire
from .words import Durability, Entry, JobState

_RETRY_SECONDS = 0.2
# Redis 7.0 brought functions.
_OLDEST_REDIS = 7
# Entries of a stream that are read at once.
_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Advertised:
    """What an advert brings back.

    Attributes:
        new_inbox: the inbox had to be made: what was sent to it before is lost.
        controls: what an operator has set for the node, msgpack; empty = nothing.
        now_ms: Redis' time. taken: the number of the counts that have been taken last; "" = none.
    """

    new_inbox: bool
    controls: bytes = b""
    now_ms: float = 0.0
    taken: str = ""


@dataclass(frozen=True, slots=True)
class Reaped:
    """How many jobs a reap gave back, declared dead, and ended at their deadline."""

    given_back: int
    dead: int
    expired: int


class Broker:
    """A fabric's Redis.

    Args:
        url: where it is; `url.fabric` names the fabric.
        name: of this process, shown by CLIENT LIST.
        functions: another function library than this release's (for tests).

    Attributes:
        link: for everything. sure_link: for what has to be safe before it counts, see `Durability`; often the same.
    """

    def __init__(
        self, url: BrokerUrl, *, name: str, config: LinkConfig | None = None, functions: Library | None = None
    ) -> None:
        self.url = url
        self.keys = Keys(url.fabric)
        self.functions = functions or library()
        self.seal = Seal(url.payload_keys)
        self._name = name
        self._config = config or LinkConfig()
        self._loading = asyncio.Lock()
        self._loads = 0
        self.link = self._new_link(self._config)
        # Of its own, since no piece of text should wait behind a replica.
        is_local = url.durability is Durability.LOCAL
        self.sure_link = self.link if is_local else self._new_link(self._config, url.durability)

    def _new_link(self, config: LinkConfig, durability: Durability | None = None) -> Link:
        return Link(
            self.url,
            slot_key=self.keys.prefix,
            name=self._name,
            config=config,
            durability=durability,
            on_missing_function=self._load_functions,
        )

    def blocking_link(self) -> Link:
        """A second connection for blocking reads; the caller closes it."""
        return self._new_link(self._config)

    async def _opened(self, link: Link) -> Wire:
        """The connection; during a failover it is worth another try."""
        give_up_at = time.monotonic() + self._config.connect_seconds
        while True:
            try:
                return await link.open()
            except BrokerUnavailable as error:
                left = give_up_at - time.monotonic()
                if error.refused or left <= 0 or self.url.mode not in ("sentinel", "cluster"):
                    raise
                await asyncio.sleep(min(_RETRY_SECONDS, left))

    async def open(self) -> None:
        """Connect, and check that the server will do.

        Raises:
            BrokerUnavailable, BrokerOutdated
        """
        wire = await self._opened(self.link)
        await self._opened(self.sure_link)
        try:
            info = await wire.send("INFO", "server")
        except ResponseError:
            return  # a role without INFO: the functions themselves will tell
        except (RedisError, OSError):
            return
        version = _version(info)
        if version and version[0] < _OLDEST_REDIS:
            await self.close()
            raise BrokerOutdated(
                f"Redis at {self.url} is version {'.'.join(map(str, version))}; "
                "SOLLOL needs Redis 7.0 or newer, or Valkey"
            )

    async def close(self) -> None:
        """Disconnect."""
        await self.link.close()
        await self.sure_link.close()

    async def _load_functions(self, link: Link) -> None:
        loads = self._loads
        async with self._loading:
            if self._loads == loads:  # else another caller has loaded them meanwhile
                await self._load_functions_now(link)
                self._loads += 1

    async def _load_functions_now(self, link: Link) -> None:
        wire = await link.open()
        try:
            await wire.send("FUNCTION", "LOAD", self.functions.code)
        except ResponseError as error:
            text = str(error)
            if "already exists" in text:
                return
            if "NOPERM" in text or "no permissions" in text:
                raise BrokerUnavailable(
                    f"Redis at {self.url} lacks the functions of this release ({self.functions.name}) "
                    "and this user may not load them: run `sollol doctor` once as a user that may, such as "
                    "sollol-admin of `sollol acl`; each new release needs that again",
                    refused=True,
                ) from None
            if "unknown command" in text.lower():
                raise BrokerOutdated(
                    f"Redis at {self.url} knows no functions; SOLLOL needs Redis 7.0 or newer, or Valkey"
                ) from None
            raise

    def command(self, verb: str, *arguments: object) -> tuple[object, ...]:
        """A call of the library as a raw command, for callers that pipeline by themselves."""
        return ("FCALL", self.functions.function(verb), 1, self.keys.prefix, *arguments)

    async def _call(self, verb: str, *arguments: object, patience_seconds: float | None = None) -> Reply:
        return await self.link.call(*self.command(verb, *arguments), patience_seconds=patience_seconds)

    async def submit(self, submission: Submission) -> Reply:
        """Put a job in; the raw reply of submit.lua. Safe to repeat."""
        return await self.sure_link.call(*self.submit_command(submission))

    def submit_command(self, submission: Submission) -> tuple[object, ...]:
        """The same as a raw command, for callers that pipeline by themselves."""
        seal, job_id = self.seal, submission.job_id
        if seal.is_on:
            submission = replace(
                submission,
                envelope=seal.close(submission.envelope, job_id, "envelope"),
                blobs=tuple(seal.close(blob, job_id, f"blob:{i}") for i, blob in enumerate(submission.blobs)),
                affinity=seal.blind(submission.affinity),
                cache_key=seal.blind(submission.cache_key),
            )
        return self.command("submit", *submission.arguments())

    async def claim(self, request: ClaimRequest) -> Claims | None:
        """Take the jobs that suit best; none: the worker now waits in line. None: advertise first."""
        return read_claims(await self._call("claim", *request.arguments()))

    async def finish(
        self, lease: Lease, answer: bytes, then: ClaimRequest | None = None, *, used: Used | None = None
    ) -> Finished:
        """Give the answer and, with `then`, claim the next jobs in the same call."""
        took = used or Used()
        command = self.command(
            "finish",
            *lease.arguments(),
            self._closed(lease, answer, "end"),
            took.prompt_tokens,
            took.output_tokens,
            round(took.run_ms, 3),
            *(then.arguments() if then else ()),
        )
        reply = await self.sure_link.call(*command)
        return Finished(reply[0] == 1, read_claims(reply[1]) if then else Claims())

    async def part(self, lease: Lease, items: int) -> bool:
        """Say that the answer to come is for the first items of a batch's chunk; False: the job is no longer ours."""
        return bool(await self._call("part", *lease.arguments(), items) == 1)

    async def emit(self, lease: Lease, seq: int, piece: bytes, *, seam: Seam | None = None) -> int:
        """Show a piece: 1 shown, 0 the job is no longer ours, -n not shown, since Redis has lost piece n before it.

        Args:
            seam: with the first piece of an attempt that goes on with what earlier ones have said.
        """
        noted = () if seam is None else (seam.offset, seam.how)
        sealed = self._closed(lease, piece, _piece(lease.fence, seq))
        return int(await self._call("emit", *lease.arguments(), seq, sealed, *noted))

    async def fail(
        self,
        lease: Lease,
        error: bytes,
        *,
        retry: bool,
        most_errors: int,
        backoff_ms: int,
        only_elsewhere: bool = False,
    ) -> str:
        """Report that the attempt failed: "retry", "end", or "stale" when the job is no longer ours.

        Args:
            only_elsewhere: this node can never do it, so it is tried again only where another serves the model.
        """
        sealed = self._closed(lease, error, "end")
        how = 0 if not retry else 2 if only_elsewhere else 1
        reply = await self._call("fail", *lease.arguments(), sealed, how, most_errors, backoff_ms)
        return str(_text(reply))

    async def release(self, lease: Lease) -> bool:
        """Hand a job back; False: it was no longer ours."""
        return bool(await self._call("release", *lease.arguments()) == 1)

    async def renew(self, leases: Sequence[Lease], lease_ms: int, *, patience_seconds: float) -> list[str]:
        """Keep the leases; gives the ids of the jobs that are no longer ours."""
        flat = [part for lease in leases for part in lease.arguments()]
        return [
            _text(each)
            for each in await self._call("renew", lease_ms, *flat, patience_seconds=patience_seconds)
        ]

    async def cancel(self, job_id: str) -> str:
        """End a job unanswered: "cancelled", the state it had ended in before, or "unknown"."""
        return _text(await self.sure_link.call(*self.command("cancel", job_id)))

    async def reap(self, *, most: int = 100, most_crashes: int = 3) -> Reaped:
        """Give back what dead workers held, and end what is past its deadline."""
        reply = await self._call("reap", most, most_crashes)
        return Reaped(*(int(each) for each in reply))

    async def advertise(
        self,
        worker: str,
        node: str,
        *,
        ttl_ms: int,
        worker_fields: Mapping[str, str],
        node_fields: Mapping[str, str],
        models: Mapping[str, Share],
        counted: bytes = b"",
    ) -> Advertised:
        """Say that a worker lives and which models it serves: canonical names, with what it adds to each.

        Args:
            counted: what has happened since the last advert, msgpack as _series.lua wants it; b"" = it does not count.
        """
        named = [part for model, share in models.items() for part in (key_part(model), model, str(share))]
        told = {"durability": str(self.url.durability), **worker_fields}
        fields = (pack(told), pack(dict(node_fields)))
        reply = await self._call("advertise", worker, node, ttl_ms, key_part(node), *fields, counted, *named)
        return Advertised(reply[0] == 2, bytes(reply[1]), float(reply[2]), _text(reply[3]))

    async def attend(
        self, inbox: str, app: str, *, inbox_ttl_ms: int, app_fields: Mapping[str, str], app_ttl_ms: int
    ) -> bool:
        """Say that a client lives; its inbox takes entries from now on.

        Returns:
            Whether its inbox had to be made: what was sent to it before is lost.
        """
        ours = {
            "functions": self.functions.version,
            "durability": str(self.url.durability),
            "inbox": inbox,
        }
        fields = pack({**ours, **app_fields})
        reply = await self._call("attend", inbox, inbox_ttl_ms, app, key_part(app), fields, app_ttl_ms)
        return bool(reply == 2)

    async def depart(self, inbox: str, app: str, *, after_ms: int = 0) -> None:
        """Let an application be forgotten, soon or at once, if this client was the last to tell of it.

        Args:
            after_ms: in which another client of the application may tell of it again.
        """
        key = self.keys.app(app)
        with contextlib.suppress(BrokerUnavailable, asyncio.TimeoutError):
            if await self.link.call("HGET", key, "inbox", patience_seconds=1.0) == inbox.encode():
                await self.link.call("PEXPIRE", key, after_ms, patience_seconds=1.0)

    async def leave(self, worker: str) -> None:
        """Take a worker out; nothing is sent its way any more."""
        await self._call("leave", worker, patience_seconds=2.0)

    async def blobs(self, lease: Lease, count: int) -> list[bytes]:
        """The large inputs of a job, in order.

        Raises:
            KeyMissing, InvalidJob: one cannot be opened.
        """
        reply = await self.link.call("HMGET", self.keys.blob(lease.job_id), *range(count))
        blobs = [bytes(each) for each in reply if each is not None]
        if not lease.key_id:
            return blobs
        return [self.seal.open(blob, lease.job_id, f"blob:{i}", must=True) for i, blob in enumerate(blobs)]

    def envelope(self, claimed: Claimed) -> bytes:
        """The envelope of a claimed job, readable.

        Raises:
            KeyMissing, InvalidJob: it cannot be opened.
        """
        return self.seal.open(claimed.envelope, claimed.lease.job_id, "envelope")

    def readable(self, job_id: str, entry: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
        """An entry of a job's events, or of an inbox, with its text readable.

        Raises:
            KeyMissing, InvalidJob: it cannot be opened; or we have keys, and it is not sealed.
        """
        data = entry.get(b"d", b"")
        if not data or not (self.seal.is_on or is_sealed(data)):
            return entry
        if entry[b"t"] == Entry.PIECE.encode():
            what, must = _piece(int(entry[b"f"]), int(entry[b"s"])), self.seal.is_on
        else:  # a worker without keys can still say that it has failed
            what, must = "end", self.seal.is_on and entry[b"x"] == JobState.DONE.encode()
        return {**entry, b"d": self.seal.open(data, job_id, what, must=must)}

    async def pieces(self, lease: Lease) -> list[Mapping[bytes, bytes]]:
        """All pieces that lie in a job's events, in order, whichever attempt said them.

        Raises:
            KeyMissing, InvalidJob: one cannot be opened.
        """
        job_id = lease.job_id
        found: list[Mapping[bytes, bytes]] = []
        start = "-"
        while rows := await self.link.call("XRANGE", self.keys.events(job_id), start, "+", "COUNT", _ROWS):
            found += [dict(zip(flat[::2], flat[1::2], strict=True)) for _, flat in rows]
            start = f"({_text(rows[-1][0])}"
        pieces = [entry for entry in found if entry[b"t"] == Entry.PIECE.encode()]
        return [self.readable(job_id, entry) for entry in pieces] if lease.key_id else pieces

    async def drop_inbox(self, who: str) -> None:
        """Take an inbox away when its owner goes."""
        with contextlib.suppress(BrokerUnavailable, asyncio.TimeoutError):
            await self.link.call("DEL", self.keys.inbox(who), patience_seconds=1.0)

    def _closed(self, lease: Lease, data: bytes, what: str) -> bytes:
        return self.seal.close(data, lease.job_id, what, key_id=lease.key_id) if lease.key_id else data


def _piece(fence: int, seq: int) -> str:
    return f"piece:{fence}:{seq}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _version(info: bytes) -> tuple[int, ...]:
    fields = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    digits = fields.get("redis_version", "").split(".")
    return tuple(int(each) for each in digits if each.isdigit())
