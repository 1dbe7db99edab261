"""Files that were uploaded over HTTP, in parts, each with a TTL. Sealed like jobs where the fabric has payload keys."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from typing import Any

from .broker import Broker
from .codec import pack, unpack
from .errors import InvalidJob, QueueFull, SollolError
from .names import key_part

# Of one part: Redis moves it in about a millisecond, and nobody else waits longer.
PART_BYTES = 1024 * 1024
# What is not gone on with so long is thrown away.
_UPLOAD_TTL_MS = 10 * 60 * 1000
_MOST_FILES = 1000
_MOST_RECORD_BYTES = 64 * 1024
_FULL = "no file was stored: Redis has no memory left for files now"
_LATER_SECONDS = 5.0
_WHY = {
    "bytes": "the application's files would take more than it may have: delete some, or wait until they run out",
    "files": f"the application has {_MOST_FILES:,} files: delete some, or wait until they run out",
}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file's record. Times in seconds since the epoch, by Redis' clock.

    Attributes:
        app: whose it is. parts: how many it lies in. more: what whoever put it there has noted.
    """

    id: str
    app: str
    name: str = ""
    bytes: int = 0
    parts: int = 0
    created: float = 0.0
    expires: float = 0.0
    more: Mapping[str, Any] = field(default_factory=dict)


class FileStore:
    """The files of a fabric.

    Args:
        most_bytes: of one application's files together.
    """

    def __init__(self, broker: Broker, *, most_bytes: int) -> None:
        self._broker = broker
        self._most_bytes = most_bytes

    async def begin(self, app: str) -> Upload:
        """Begin to store a file of an application piece by piece."""
        seconds, _ = await self._broker.link.call("TIME")
        record = StoredFile(f"file-{secrets.token_hex(16)}", app, created=float(seconds))
        return Upload(self._broker, record, self._most_bytes)

    async def find(self, file_id: str, app: str) -> StoredFile | None:
        """A file's record; None = the application has no such file."""
        if not _is_id(file_id):
            return None
        sealed = await self._broker.link.call("HGET", self._broker.keys.file(file_id), "record")
        record = self._opened(file_id, sealed) if sealed else None
        return record if record is not None and record.app == app else None

    async def all(self, app: str) -> list[StoredFile]:
        """An application's files, the oldest first."""
        ids = await self._broker.link.call("HKEYS", self._broker.keys.files(app))
        found = await asyncio.gather(*(self.find(each.decode("ascii", "replace"), app) for each in ids))
        return sorted((each for each in found if each is not None), key=lambda each: (each.created, each.id))

    async def read(self, record: StoredFile) -> AsyncGenerator[bytes, None]:
        """A file's content, part by part.

        Raises:
            SollolError: it ran out meanwhile.
        """
        seal = self._broker.seal
        for number in range(record.parts):
            part = await self._broker.link.call("HGET", self._broker.keys.file(record.id), number)
            if part is None:
                raise SollolError(f"file {record.id} is not there any more: it ran out, or was deleted")
            yield seal.open(bytes(part), record.id, f"file:{number}", must=seal.is_on)

    async def lines(self, record: StoredFile) -> AsyncGenerator[bytes, None]:
        """A file's lines, without their ends; as `read`."""
        rest = b""
        async for part in self.read(record):
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                yield line.removesuffix(b"\r")
        if rest:
            yield rest.removesuffix(b"\r")

    async def drop(self, record: StoredFile) -> None:
        """Delete a file."""
        keys = self._broker.keys
        await self._broker.link.call("DEL", keys.file(record.id))
        await self._broker.link.call("HDEL", keys.files(record.app), record.id)

    def _opened(self, file_id: str, sealed: bytes) -> StoredFile | None:
        seal = self._broker.seal
        told = unpack(
            seal.open(bytes(sealed), file_id, "file:record", must=seal.is_on), max_bytes=_MOST_RECORD_BYTES
        )
        return StoredFile(id=file_id, **told)


class Upload:
    """A file on its way in.

    Attributes:
        record: of what has been written.
    """

    def __init__(self, broker: Broker, record: StoredFile, most_bytes: int) -> None:
        self.record = record
        self._broker = broker
        self._most_bytes = most_bytes
        self._rest = bytearray()

    @property
    def size(self) -> int:
        """The bytes that have come so far."""
        return self.record.bytes + len(self._rest)

    async def write(self, data: bytes) -> None:
        """Go on with `data`.

        Raises:
            InvalidJob: the application has no room for it. QueueFull: Redis has none now.
        """
        self._rest += data
        while len(self._rest) >= PART_BYTES:
            await self._keep(bytes(self._rest[:PART_BYTES]))

    async def close(self, name: str, ttl_seconds: float, more: Mapping[str, Any]) -> StoredFile:
        """End it; now it can be read.

        Raises:
            InvalidJob, QueueFull: as `write`.
        """
        if self._rest:
            await self._keep(bytes(self._rest))
        expires = self.record.created + ttl_seconds
        record = replace(self.record, name=name, expires=expires, more=more)
        fields = {
            each.name: getattr(record, each.name) for each in dataclass_fields(record) if each.name != "id"
        }
        sealed = self._broker.seal.close(pack(fields), record.id, "file:record")
        await self._call(record, "", b"", sealed, round(ttl_seconds * 1000))
        self.record = record
        return record

    async def _keep(self, part: bytes) -> None:
        sealed = self._broker.seal.close(part, self.record.id, f"file:{self.record.parts}")
        longer = replace(self.record, bytes=self.record.bytes + len(part), parts=self.record.parts + 1)
        await self._call(longer, self.record.parts, sealed, b"", _UPLOAD_TTL_MS)
        self.record = longer
        del self._rest[: len(part)]

    async def _call(
        self, told: StoredFile, number: int | str, part: bytes, record: bytes, ttl_ms: int
    ) -> None:
        arguments = (told.id, key_part(told.app), number, part, told.bytes, record, ttl_ms)
        command = self._broker.command("keep", *arguments, self._most_bytes, _MOST_FILES)
        reply = await self._broker.link.call(*command)
        if reply[0] != b"kept":
            why = reply[1].decode()
            raise (
                QueueFull(_FULL, retry_after=_LATER_SECONDS)
                if why == "memory"
                else InvalidJob(_WHY[why], field="file")
            )


def _is_id(text: str) -> bool:
    return len(text) <= 64 and text.isascii() and text.replace("-", "").isalnum()
