"""What a GGUF file says about itself, read from its header in milliseconds.

The reader of the `gguf` package takes over two seconds for a vocabulary of 49,000 tokens, because it makes
an object of each; this one steps over arrays and never touches the weights.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Scalar = str | int | float | bool

# GGUF's value types by number: struct formats; strings (8) and arrays (9) are spelled out below.
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Longer lists of numbers are a vocabulary's; those that describe the network have one entry per layer.
_MOST_LISTED = 4096
# No honest header comes near these; a damaged one must not keep us busy.
_MOST_ENTRIES = 1_000_000
_MOST_STRINGS = 10_000_000
_MOST_DIMENSIONS = 8

_POOLING_NONE, _POOLING_RANK = 0, 4
# Encoders: llama.cpp cannot generate with them.
_ENCODERS = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llama-embed",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "t5encoder",
    }
)


class BadGguf(ValueError):
    """The file is no GGUF file, or a damaged one; the text says which file and why."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: how many numbers it holds, and llama.cpp's number of their type."""

    elements: int
    kind: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of a GGUF file.

    Attributes:
        architecture: llama.cpp's name for the kind of network, e.g. "llama".
        name: the model's own name; "" when the file has none.
        context_tokens: the context it was trained with; 0 when the file does not say.
        embedding_length: the width of its vectors; 0 when the file does not say.
        pooling: how token vectors become one: 0 none, 1 mean, 2 first token, 3 last, 4 rank; None =
            the file does not say.
        tensors: by name.
        size_bytes: the size of the file.
        has_chat_template: whether it was made to chat.
        metadata: every scalar entry of the header by its GGUF name, for what is not above.
        lists: every short list of numbers, likewise.
    """

    architecture: str
    name: str
    context_tokens: int
    embedding_length: int
    pooling: int | None
    tensors: Mapping[str, GgufTensor] = field(repr=False)
    size_bytes: int
    has_chat_template: bool
    metadata: Mapping[str, Scalar] = field(repr=False)
    lists: Mapping[str, tuple[float, ...]] = field(repr=False)

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def is_encoder(self) -> bool:
        """Whether it reads all tokens at once, and so keeps no cache and cannot generate."""
        return self.architecture in _ENCODERS

    @property
    def is_embedding(self) -> bool:
        """Whether it makes vectors instead of text."""
        if self.pooling is None:
            return self.is_encoder
        return self.pooling not in (_POOLING_NONE, _POOLING_RANK)

    @property
    def is_reranker(self) -> bool:
        """Whether it says how well a text answers a query."""
        return self.pooling == _POOLING_RANK


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, version 2 or 3.

    Of a model that is split into several files only the given part is counted.

    Raises:
        OSError: the file cannot be read.
        BadGguf: it is no GGUF file, is cut off, or is of an unknown version.
    """
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise BadGguf(f"{path} is empty") from error
        with data:
            try:
                return _read(data)
            except (struct.error, OverflowError) as error:
                raise BadGguf(f"{path} is cut off: it ends within its header") from error
            except BadGguf as error:
                raise BadGguf(f"{path} {error}") from None


def _read(data: mmap.mmap) -> GgufHeader:
    if data[:4] != b"GGUF":
        raise BadGguf("is no GGUF file")
    cursor = _Cursor(data, 4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise BadGguf(f"is GGUF of version {version:#x}; versions 2 and 3 are known here")
    tensors, entries = cursor.number("Q"), cursor.number("Q")
    if max(tensors, entries) > _MOST_ENTRIES:
        raise BadGguf("is damaged: its header counts more entries than any model has")
    metadata: dict[str, Scalar] = {}
    lists: dict[str, tuple[float, ...]] = {}
    for name, value in cursor.metadata(entries):
        if isinstance(value, tuple):
            lists[name] = value
        elif value is not None:
            metadata[name] = value
    found = dict(cursor.tensor() for _ in range(tensors))
    architecture = str(metadata.get("general.architecture", ""))

    def number(key: str) -> int | None:
        value = metadata.get(f"{architecture}.{key}")
        return int(value) if isinstance(value, int) else None

    return GgufHeader(
        architecture=architecture,
        name=str(metadata.get("general.name", "")),
        context_tokens=number("context_length") or 0,
        embedding_length=number("embedding_length") or 0,
        pooling=number("pooling_type"),
        tensors=found,
        size_bytes=len(data),
        has_chat_template="tokenizer.chat_template" in metadata,
        metadata=metadata,
        lists=lists,
    )


class _Cursor:
    """A place in the file that moves forward with each read."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self._data = data
        self._position = position

    def number(self, form: str) -> int:
        return int(self._scalar(form))

    def string(self) -> str:
        length = self.number("Q")
        start = self._position
        self._skip(length)
        return self._data[start : start + length].decode(errors="replace")

    def metadata(self, entries: int) -> Iterator[tuple[str, Scalar | tuple[float, ...] | None]]:
        """All entries in order; the value of a list of strings, or of a long one, is None."""
        for _ in range(entries):
            name = self.string()
            yield name, self._value(self.number("I"))

    def tensor(self) -> tuple[str, GgufTensor]:
        """The next tensor, with its name."""
        name = self.string()
        dimensions = self.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise BadGguf(f"is damaged: a tensor with {dimensions} dimensions")
        elements, kind = math.prod(self.number("Q") for _ in range(dimensions)), self.number("I")
        self._skip(8)  # its place in the file
        return name, GgufTensor(elements, kind)

    def _value(self, kind: int) -> Scalar | tuple[float, ...] | None:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._list()
        return self._scalar(_format(kind))

    def _list(self) -> tuple[float, ...] | None:
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            self._skip_strings(count)
            return None
        form = _format(kind)
        if count <= _MOST_LISTED:
            return tuple(self._scalar(form) for _ in range(count))
        self._skip(count * struct.calcsize("<" + form))
        return None

    def _skip_strings(self, count: int) -> None:
        # The one hot loop: a vocabulary holds up to 260,000 strings.
        if count > _MOST_STRINGS:
            raise BadGguf(f"is damaged: a list of {count} strings")
        unpack, position = struct.Struct("<Q").unpack_from, self._position
        for _ in range(count):
            position += 8 + unpack(self._data, position)[0]
        self._position = position
        self._skip(0)

    def _scalar(self, form: str) -> int | float | bool:
        (value,) = struct.unpack_from("<" + form, self._data, self._position)
        self._position += struct.calcsize("<" + form)
        assert isinstance(value, int | float)  # noqa: S101  # all formats above are numbers
        return value

    def _skip(self, count: int) -> None:
        self._position += count
        if self._position > len(self._data):
            raise struct.error("past the end")


def _format(kind: int) -> str:
    try:
        return _FORMATS[kind]
    except KeyError:
        # Arrays of arrays end up here as well; llama.cpp refuses them too.
        raise BadGguf(f"is damaged: a value of the unknown type {kind}") from None
