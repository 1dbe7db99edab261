"""multipart/form-data, taken apart as it comes. Pure; a part is never held as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .refusals import Refused

_MOST_HEAD_BYTES = 8 * 1024
_BOUNDARY = re.compile(r'multipart/form-data\s*;.*?boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.I | re.S)
_NAME = re.compile(r'[;\s]name="((?:[^"\\]|\\.)*)"', re.I)
_FILE_NAME = re.compile(r'[;\s]filename="((?:[^"\\]|\\.)*)"', re.I)


@dataclass(frozen=True, slots=True)
class Part:
    """A part begins; the bytes up to the next one are its own.

    Attributes:
        file_name: None = it is a plain field.
    """

    name: str
    file_name: str | None = None


class Multipart:
    """Takes a body apart.

    Attributes:
        is_over: its last part has ended.

    Raises:
        Refused: 400, `content_type` is none of multipart/form-data with a boundary.
    """

    def __init__(self, content_type: str) -> None:
        found = _BOUNDARY.match(content_type.strip())
        if found is None:
            raise Refused(400, "a body of multipart/form-data with a boundary is needed", field="file")
        self._delimiter = b"\r\n--" + (found[1] or found[2]).encode()
        # The first delimiter may stand at the very beginning.
        self._held = bytearray(b"\r\n")
        self._where = "before"
        self.is_over = False

    def feed(self, data: bytes) -> Iterator[Part | bytes]:
        """What the next bytes of the body bring.

        Raises:
            Refused: 400, it is malformed.
        """
        self._held += data
        steps = {
            "before": self._content,
            "content": self._content,
            "between": self._between,
            "head": self._head,
        }
        while not self.is_over and (step := steps[self._where]()) is not None:
            yield from step

    def _content(self) -> list[Part | bytes] | None:
        at = self._held.find(self._delimiter)
        # The beginning of a delimiter may stand at the end.
        end = at if at >= 0 else len(self._held) - len(self._delimiter) + 1
        content = self._cut(end) if end > 0 else b""
        said: list[Part | bytes] = [content] if content and self._where == "content" else []
        if at >= 0:
            self._cut(len(self._delimiter))
            self._where = "between"
        elif not said:
            return None
        return said

    def _between(self) -> list[Part | bytes] | None:
        if self._held.startswith(b"--"):
            self.is_over = True
            return None
        at = self._held.find(b"\r\n")
        if at < 0 and len(self._held) <= _MOST_HEAD_BYTES:
            return None
        if at < 0 or self._cut(at).strip():
            raise Refused(
                400, "the multipart body is malformed: a boundary does not end its line", field="file"
            )
        self._where = "head"
        return []

    def _head(self) -> list[Part | bytes] | None:
        at = self._held.find(b"\r\n\r\n")
        if max(at, len(self._held) if at < 0 else 0) > _MOST_HEAD_BYTES:
            raise Refused(400, "the multipart body is malformed: a part's headers do not end", field="file")
        if at < 0:
            return None
        head = self._cut(at + 4).decode("utf-8", "replace")
        self._where = "content"
        return [_part_of(head)]

    def _cut(self, count: int) -> bytes:
        cut = bytes(self._held[:count])
        del self._held[:count]
        return cut


def _part_of(head: str) -> Part:
    said = next((line for line in head.split("\r\n") if line.lower().startswith("content-disposition:")), "")
    name, file_name = _NAME.search(said), _FILE_NAME.search(said)
    return Part(name[1] if name else "", file_name[1] if file_name else None)
