"""The model files of this machine, and what their headers say: what groups can be formed of."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sollol_broker.errors import InvalidJob
from sollol_broker.model_facts import ModelFacts
from sollol_broker.names import canonical_model

from . import ollama_store
from .gguf_facts import facts_of
from .gguf_header import BadGguf, GgufHeader, read_header

log = logging.getLogger(__name__)

# The parts of a model that is split into several files; llama-server is given the first.
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
# An advert must stay small: a facts line has about 1 kB.
_MOST_FILES = 64


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A GGUF file and what it says."""

    path: Path
    facts: ModelFacts


@dataclass(slots=True)
class ModelFiles:
    """Finds them, and remembers what it has read.

    Args:
        named: files by name, as the command line gives them. directories: where *.gguf lie, with what is below.
        stores: Ollama's; None = the usual places.
    """

    named: Mapping[str, Path] = field(default_factory=dict)
    directories: Sequence[Path] = ()
    stores: Sequence[Path] | None = None
    _read: dict[tuple[Path, int, int], ModelFacts | None] = field(default_factory=dict)

    def look(self) -> dict[str, ModelFile]:
        """All files that can be used, by the model's canonical name; blocks for some ms per new file."""
        found: dict[str, ModelFile] = {}
        for name, path in self._paths():
            if name not in found and len(found) < _MOST_FILES and (facts := self._facts(path)) is not None:
                found[name] = ModelFile(path, facts)
        return found

    def _paths(self) -> list[tuple[str, Path]]:
        paths = list(self.named.items())
        for directory in self.directories:
            for path in sorted(directory.rglob("*.gguf")):
                part = _PART.search(path.name)
                if part is None or int(part[1]) == 1:
                    paths.append((_PART.sub("", path.name).removesuffix(".gguf"), path))
        named = []
        for name, path in [*paths, *ollama_store.models(self.stores)]:
            with contextlib.suppress(InvalidJob):  # a file may be called what no model can be
                named.append((canonical_model(name), path))
        return named

    def _facts(self, path: Path) -> ModelFacts | None:
        try:
            status = path.stat()
            key = (path, status.st_mtime_ns, status.st_size)
            if key not in self._read:
                self._read[key] = facts_of(read_whole(path))
            return self._read[key]
        except OSError:
            return None
        except BadGguf as error:
            log.info("%s is not used: %s", path.name, error)
            self._read[key] = None
            return None


def read_whole(path: Path) -> GgufHeader:
    """The header, with the tensors of all parts."""
    header = read_header(path)
    part = _PART.search(path.name)
    for number in range(2, int(part[2]) + 1 if part else 0):
        more = read_header(
            path.with_name(_PART.sub(f"-{number:05}-of-{part[2] if part else ''}.gguf", path.name))
        )
        header = replace(
            header,
            tensors={**header.tensors, **more.tensors},
            size_bytes=header.size_bytes + more.size_bytes,
        )
    return header
