"""Where the items of a batch come from: lists, iterators, files; each is checked and given the form it is sent in."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sollol_broker.batch_plan import Item, Refused
from sollol_broker.errors import InvalidJob
from sollol_broker.words import JobKind

from .request import messages_of

# Taken from an iterator at once, in a thread of their own: it may block.
_TAKEN = 256
_JSON_ENDINGS = (".jsonl", ".ndjson")
_FIELD = {JobKind.CHAT: "messages", JobKind.GENERATE: "prompt", JobKind.EMBED: "input"}


class BatchSource:
    """The items of a batch, in order.

    Args:
        given: a list, an iterator, an async iterator, an open text file, or the path of a file: one item a line,
            or one JSON value a line where its name ends with .jsonl.

    Attributes:
        total: how many there are; None = nobody knows.

    Raises:
        InvalidJob: it is none of these.
    """

    def __init__(self, kind: JobKind, given: Any) -> None:
        self.kind = kind
        self.total: int | None = None
        if isinstance(given, str | bytes) or not (isinstance(given, Iterable | AsyncIterable | os.PathLike)):
            raise InvalidJob(
                f"{kind.value}: a list, an iterator or a file of items is needed, got {type(given).__name__}; one item "
                f"alone is submit({kind.value}=…)",
                field=kind.value,
            )
        if isinstance(given, Mapping):
            raise InvalidJob(f"{kind.value}: a list of items is needed, got one dict", field=kind.value)
        if isinstance(given, Sequence):
            self.total = len(given)
        if isinstance(given, os.PathLike) and not Path(given).is_file():
            raise InvalidJob(f"{kind.value}: there is no file {os.fspath(given)}", field=kind.value)
        self._given = given

    async def blocks(self, skip: int = 0) -> AsyncIterator[list[Item]]:
        """The items behind the first `skip`, some at a time."""
        given = self._given
        if isinstance(given, Sequence):
            for at in range(skip, len(given), _TAKEN):
                yield [self._item(each, at + i) for i, each in enumerate(given[at : at + _TAKEN])]
        elif isinstance(given, AsyncIterable):
            index, block = 0, list[Item]()
            async for each in given:
                if index >= skip:
                    block.append(self._item(each, index))
                index += 1
                if block:  # each may be long in coming
                    yield block
                    block = []
        else:
            lines = _iterator(given)
            index = 0
            while taken := await asyncio.to_thread(_take, lines):
                block = [self._item(each, index + i) for i, each in enumerate(taken) if index + i >= skip]
                index += len(taken)
                if block:
                    yield block

    def _item(self, given: Any, index: int) -> Item:
        try:
            return item_of(self.kind, given)
        except InvalidJob as error:
            return Refused(InvalidJob(f"item {index}: {error}", field=f"{self.kind.value}[{index}]"))


def item_of(kind: JobKind, given: Any) -> Item:
    """An item in the form it is sent in.

    A text, for chat also a list of messages; or a dict with `messages`, `prompt` or `input` and whatever differs for
    this one item (options, format, tools, …).

    Raises:
        InvalidJob: it is none of these.
    """
    name = _FIELD[kind]
    if isinstance(given, Mapping) and name in given:
        more = {key: value for key, value in given.items() if key != name}
        given = given[name]
    elif isinstance(given, Mapping) and kind is JobKind.EMBED and isinstance(given.get("text"), str):
        more, given = {}, given["text"]
    else:
        more = {}
    if kind is JobKind.CHAT:
        return {**more, "messages": messages_of(given)}
    if not isinstance(given, str):
        raise InvalidJob(f"a text, or a dict with {name!r}, is needed, got {type(given).__name__}")
    if kind is JobKind.EMBED:
        return given
    return {**more, "prompt": given}


def _lines(path: Path) -> Iterator[Any]:
    is_json = path.suffix.lower() in _JSON_ENDINGS
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.rstrip("\r\n")
            if not is_json:
                yield text
            elif text.strip():
                try:
                    yield json.loads(text)
                except ValueError:
                    raise InvalidJob(f"{path.name}: line {number} is no JSON", field="file") from None


def _iterator(given: Any) -> Iterator[Any]:
    if isinstance(given, os.PathLike):
        return _lines(Path(given))
    if isinstance(given, io.TextIOBase):
        return (line.rstrip("\r\n") for line in given)
    return iter(given)


def _take(items: Iterator[Any]) -> list[Any]:
    return list(islice(items, _TAKEN))
