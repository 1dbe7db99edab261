"""The models that a stand-in for Ollama holds, and the calls that change them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sollol_worker_agent.doubles.ollama_scheduler import DoubleModel, Refused

_BYTES = 1_000_000


class Library:
    """What is installed, and what could be.

    Args:
        models: by full name in lower case; changed in place.

    Attributes:
        registry: names that can be pulled.
        asked: path and body of each call, in order of arrival.
    """

    def __init__(self, models: dict[str, DoubleModel]) -> None:
        self._models = models
        self.registry: set[str] = set()
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def call(self, path: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """Carry a call out; the lines of its answer, none for those that answer with nothing.

        Raises:
            Refused: as Ollama would.
        """
        self.asked.append((path, asked))
        name = str(asked.get("model") or asked.get("name") or "")
        if path == "/api/copy":
            self._copy(str(asked.get("source") or ""), str(asked.get("destination") or ""))
            return []
        if not name:
            raise Refused(400, "model is required")
        if path == "/api/delete":
            if self._models.pop(_full(name), None) is None:
                raise Refused(404, f"model '{name}' not found")
            return []
        lines = {"/api/pull": self._pull, "/api/push": self._push, "/api/create": self._create}[path](
            name, asked
        )
        if asked.get("stream") is not False:
            return lines
        if "error" in lines[-1]:
            raise Refused(500, lines[-1]["error"])
        return lines[-1:]

    def _pull(self, name: str, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        if name not in self.registry:
            return [{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}]
        self._models[_full(name)] = DoubleModel(name)
        layer = {"status": "pulling 0123456789ab", "digest": "sha256:0123456789ab", "total": _BYTES}
        return [
            {"status": "pulling manifest"},
            layer,
            {**layer, "completed": _BYTES // 2},
            {**layer, "completed": _BYTES},
            {"status": "verifying sha256 digest"},
            {"status": "writing manifest"},
            {"status": "success"},
        ]

    def _push(self, name: str, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        if _full(name) not in self._models:
            return [{"status": "retrieving manifest"}, {"error": f"open {name}: no such file or directory"}]
        return [{"status": "retrieving manifest"}, {"status": "success"}]

    def _create(self, name: str, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not asked.get("from"):
            raise Refused(400, "neither 'from' or 'files' was specified")
        self._copy(str(asked["from"]), name)
        return [{"status": "writing manifest"}, {"status": "success"}]

    def _copy(self, source: str, destination: str) -> None:
        model = self._models.get(_full(source))
        if model is None:
            raise Refused(404, f'model "{source}" not found')
        self._models[_full(destination)] = replace(model, name=destination)


def _full(name: str) -> str:
    return (name if ":" in name else f"{name}:latest").lower()
