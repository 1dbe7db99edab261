"""Reads the items of a batch from a file: .txt, .jsonl (.ndjson) or .csv. Never more than a line is held."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sollol_broker.errors import InvalidJob
from sollol_broker.words import JobKind

# Where the text of a line is looked for, if nobody says.
_FIELDS = ("text", "input", "prompt", "content")
_IDS = ("id", "custom_id")
# csv refuses longer fields by itself; documents are longer than its 128 KiB.
_MOST_CELL = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Item:
    """One item.

    Attributes:
        value: a text; of a chat also a list of messages.
        id: the caller's own name of it; None = it has none.
    """

    value: str | list[dict[str, Any]]
    id: str | int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A file with items, looked through once.

    Attributes:
        digest: SHA-256 of the file. count: its items.
    """

    path: Path
    kind: JobKind
    field: str | None
    digest: str
    count: int

    def items(self, start: int = 0) -> Iterator[Item]:
        """The items from index `start` on."""
        for index, item in enumerate(_items(self.path, self.kind, self.field)):
            if index >= start:
                yield item


def survey(path: Path, kind: JobKind, field: str | None = None) -> Source:
    """Look through a file: every line has to make sense before anything is sent.

    Args:
        field: where a line of .jsonl or .csv has its text; None = text, input, prompt or content, whichever is there.

    Raises:
        InvalidJob: the file cannot be read, or names the line at fault.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        count = sum(1 for _ in _items(path, kind, field))
    except OSError as error:
        raise InvalidJob(f"{path} cannot be read: {error.strerror}", field="input") from None
    except UnicodeDecodeError:
        raise InvalidJob(
            f"{path} is no text in UTF-8: convert it, for instance with iconv -f LATIN1 -t UTF-8",
            field="input",
        ) from None
    if not count:
        raise InvalidJob(f"{path} has no items", field="input")
    return Source(path, kind, field, digest, count)


def _items(path: Path, kind: JobKind, field: str | None) -> Iterator[Item]:
    read = _READERS.get(path.suffix.lower())
    if read is None:
        known = ", ".join(_READERS)
        raise InvalidJob(f"{path}: files that end with {known} can be read", field="input")
    # No newline is translated: csv cells may hold some, and a text may hold a lone \r.
    with path.open(encoding="utf-8-sig", newline="") as file:
        for line, value in read(file, path):
            try:
                yield _item(value, kind, field)
            except InvalidJob as error:
                raise InvalidJob(f"{path}, line {line}: {error}", field="input") from None


def _txt(file: TextIO, path: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(file, 1):
        if text := line.rstrip("\r\n"):
            yield number, text


def _jsonl(file: TextIO, path: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                told = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
                raise InvalidJob(f"{path}, line {number}: no JSON ({told})", field="input") from None


def _csv(file: TextIO, path: Path) -> Iterator[tuple[int, object]]:
    csv.field_size_limit(_MOST_CELL)
    rows = csv.DictReader(file)
    try:
        for row in rows:
            yield rows.line_num, {name: value for name, value in row.items() if name is not None}
    except csv.Error as error:
        raise InvalidJob(f"{path}, line {rows.line_num}: {error}", field="input") from None


_READERS: dict[str, Callable[[TextIO, Path], Iterator[tuple[int, object]]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".csv": _csv,
}


def _item(value: object, kind: JobKind, field: str | None) -> Item:
    if isinstance(value, dict):
        found = next((value[name] for name in _IDS if value.get(name) not in (None, "")), None)
        return Item(
            _value(_chosen(value, kind, field), kind), found if isinstance(found, str | int) else None
        )
    return Item(_value(value, kind))


def _chosen(line: dict[str, Any], kind: JobKind, field: str | None) -> object:
    usual = ("messages", *_FIELDS) if kind is JobKind.CHAT else _FIELDS
    names = usual if field is None else (field,)
    for name in names:
        if line.get(name) is not None:
            return line[name]
    raise InvalidJob(f"it has no field {' or '.join(names)}; --field names another")


def _value(value: object, kind: JobKind) -> str | list[dict[str, Any]]:
    if isinstance(value, str):
        if not value:
            raise InvalidJob("its text is empty")
        return value
    if kind is not JobKind.CHAT:
        raise InvalidJob("a text is needed")
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(each, dict) and isinstance(each.get("role"), str) for each in value)
    ):
        raise InvalidJob("a text is needed, or a list of messages with role and content")
    return value
