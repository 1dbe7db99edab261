"""A lane: one LLM server with its models, its slots, and what runs on it now."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from sollol_broker.broker import LaneOffer, ModelOffer
from sollol_broker.errors import BackendError
from sollol_broker.names import canonical_model, key_part

from .backends.protocol import Backend, ModelInfo
from .pace import Pace

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Lane:
    """One backend's share of the worker.

    Attributes:
        slots: jobs at once; 0 until the backend has told.
        models: what it serves, by canonical name; empty while it is down.
        loaded: canonical names of the models in memory.
    """

    backend: Backend
    fixed_slots: int | None = None
    slots: int = 0
    busy: int = 0
    models: dict[str, ModelInfo] = field(default_factory=dict)
    loaded: frozenset[str] = frozenset()
    down_because: str = ""
    _pace: dict[str, Pace] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """Jobs it could start now."""
        return max(0, self.slots - self.busy) if self.models else 0

    def offer(self, most: int) -> LaneOffer:
        """What to claim for: at most `most` jobs."""
        return LaneOffer(min(self.free, most), tuple(self._model_offer(name) for name in self.models))

    def pace(self, model: str) -> Pace:
        """What the model costs here."""
        info = self.models.get(model)
        return self._pace.get(model) or Pace.prior(info.size_bytes if info else 0)

    def learn(self, model: str, fields: dict[str, object]) -> None:
        """Count a finished job in."""
        self._pace[model] = self.pace(model).after(fields)

    async def refresh(self) -> None:
        """Ask the backend again what it has; a backend that does not answer has nothing."""
        try:
            models = {canonical_model(info.name): info for info in await self.backend.models()}
            loaded = frozenset(canonical_model(name) for name in await self.backend.loaded())
            slots = self.fixed_slots or await self.backend.slots() or 1
        except BackendError as error:
            if not self.down_because:
                log.warning("backend %s is down: %s", self.backend.url, error)
            self.models, self.loaded, self.down_because = {}, frozenset(), str(error)
            return
        if self.down_because:
            log.info("backend %s is back", self.backend.url)
        self.models, self.loaded, self.slots, self.down_because = models, loaded, slots, ""

    def close_for_now(self, why: str) -> None:
        """Take no more jobs until the next refresh says that the backend lives."""
        self.models, self.down_because = {}, why

    def _model_offer(self, name: str) -> ModelOffer:
        pace = self.pace(name)
        load_ms = 0.0 if name in self.loaded else pace.load_ms
        return ModelOffer(key_part(name), load_ms, pace.prompt_ms, pace.output_ms)
