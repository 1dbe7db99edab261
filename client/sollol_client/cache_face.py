"""What both clients offer of the answers that their process keeps."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sollol_broker.errors import InvalidJob

from .answer import check_answer
from .cache import AnswerCache


class CacheFace(ABC):
    """Looks at, saves and loads the answers kept here."""

    @abstractmethod
    def _answer_cache(self) -> AnswerCache:
        """The answers that this client keeps."""

    def get_cache_stats(self) -> dict[str, Any]:
        """What the cache did for this client.

        Returns:
            hits: answered from this process. shared: from Redis, by an equal request's job. misses: neither.
            hit_rate: (hits + shared) / all three. size, bytes: of the answers kept here. evictions: dropped for
            want of room. enabled, scope, max_size, max_bytes, ttl_seconds: as set.
        """
        return self._answer_cache().stats()

    def export_cache(self, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """The answers kept in this process as plain data, for `import_cache` elsewhere.

        It holds answers as they are, and no prompts.

        Args:
            path: a file to write it to, as JSON, that only its owner may read; None = none.
        """
        exported = self._answer_cache().exported()
        if path is not None:
            with open(path, "w", encoding="utf-8", opener=_private) as file:
                json.dump(exported, file)
        return exported

    def import_cache(self, data: Mapping[str, Any] | str | os.PathLike[str]) -> int:
        """Keep the answers of an export, or of a file with one; how many were taken.

        They serve requests of the same scope: with cache_scope="app" only those of the application of that name.
        What has run out since is left out.

        Raises:
            InvalidJob: it is no export of this release; nothing was taken.
            OSError: the file cannot be read.
        """
        exported = data if isinstance(data, Mapping) else _read(Path(data))
        return self._answer_cache().take_in(exported, check_answer)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError:
        raise InvalidJob(f"import_cache: {path.name} holds no JSON", field="data") from None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
