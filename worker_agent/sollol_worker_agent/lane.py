"""A lane: one LLM server with its models, its slots, and what runs on it now."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from sollol_broker.broker import LaneOffer, ModelOffer
from sollol_broker.claim_rule import Share, share_of
from sollol_broker.errors import BackendError
from sollol_broker.listeners import open_to
from sollol_broker.names import canonical_model, key_part

from .backends.protocol import Backend, ModelInfo
from .hardware import Hardware
from .health import Health, HealthState, is_backends_fault
from .occupancy import Occupancy
from .pace import Pace
from .priors import prior
from .residence import Residence, reload_ms, short_mib

log = logging.getLogger(__name__)

# A slot of llama.cpp keeps the prompt of the last request only, and more is not worth telling.
_MOST_REMEMBERED = 16
_THIS_MACHINE = frozenset({"127.0.0.1", "::1", "localhost"})
# Where jobs end faster than this, a sample of them is enough to learn from.
_LEARN_EVERY_SECONDS = 0.01
# After it was upgraded or rebound faster than anybody noticed that it was down, the advert is wrong that long.
_LOOK_CLOSER_SECONDS = 60.0


class Lane:
    """One backend's share of the worker.

    Args:
        fixed_slots: jobs at once, whatever the backend says; None = as it says.
        is_here: whether the hardware that is noted is that of the backend's machine; None = by its URL.
        clock: monotonic seconds. wall_clock: seconds since 1970; what is learned ages by it.

    Attributes:
        version: the backend's release; "" when it does not say. open_to: addresses of this machine, other than
            loopback, on which it listens.
        slots: jobs at once; 0 until the backend has told.
        models: what it serves, by canonical name; empty while it is down.
        too_large: models that it has and this machine has not the memory for: how many MiB too little.
        health: whether it gets jobs.
        is_outdated: a model was loaded since the backend was asked what it has; it should be asked again.
        lent_to: the group that has this machine meanwhile; "" = none. Nothing new starts here then.
        unwritten: models about which something was learned since that was last written down.
    """

    def __init__(
        self,
        backend: Backend,
        fixed_slots: int | None = None,
        *,
        is_here: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.backend = backend
        self.fixed_slots = fixed_slots
        self.version = ""
        self.open_to: tuple[str, ...] = ()
        self.slots = 0
        self.models: dict[str, ModelInfo] = {}
        self.too_large: dict[str, int] = {}
        self._told: dict[str, ModelInfo] = {}
        self._is_here = urlsplit(backend.url).hostname in _THIS_MACHINE if is_here is None else is_here
        self.down_because = ""
        self.health = Health()
        self.is_outdated = False
        self.lent_to = ""
        self.unwritten: set[str] = set()
        self._clock = clock
        self._wall_clock = wall_clock
        self._occupancy = Occupancy(clock())
        self._hardware: Hardware | None = None
        self._pace: dict[str, Pace] = {}
        # By name and size.
        self._priors: dict[tuple[str, int], Pace] = {}
        self._read: set[str] = set()
        self._offers: tuple[ModelOffer, ...] | None = None
        self._cached: OrderedDict[str, int] = OrderedDict()
        self._residence = Residence()
        self._counted_at = -math.inf
        self._looked_closer_at = -math.inf
        self._learned_at = -math.inf
        # Jobs that ran when the probing began: they are no probes.
        self._before_probing = 0

    @property
    def loaded(self) -> frozenset[str]:
        """Canonical names of the models in memory."""
        return self._residence.loaded

    @property
    def busy(self) -> int:
        """Jobs that run here."""
        return self._occupancy.busy

    @busy.setter
    def busy(self, jobs: int) -> None:
        self._occupancy.change(jobs, self._clock())
        self._before_probing = min(self._before_probing, jobs)

    @property
    def free(self) -> int:
        """Jobs it could start now."""
        if not self.models or self.lent_to or self.health.state is HealthState.DEGRADED:
            return 0
        free = max(0, self.slots - self.busy)
        if self.health.state is HealthState.PROBING:
            return min(free, 1 if self.busy <= self._before_probing else 0)
        return free

    def offer(self, most: int) -> LaneOffer:
        """What to claim for: at most `most` jobs."""
        if self._offers is None:
            self._offers = tuple(self._model_offer(name) for name in self.models)
        return LaneOffer(
            min(self.free, most),
            self._offers,
            busy=self.busy,
            settled_ms=self._residence.settled_ms(self._clock()),
            cached=dict(self._cached),
        )

    def share(self, model: str) -> Share:
        """What the lane adds to the fabric's view of a model; no capacity while it gets no jobs."""
        pace = self.pace(model)
        info = self.models.get(model)
        slots = self.slots if info and not self.lent_to else 0
        if self.health.state is not HealthState.HEALTHY:
            slots = min(slots, 1 if self.health.state is HealthState.PROBING else 0)
        return share_of(
            load_ms=self._load_ms(model) * pace.price,
            prompt_ms=pace.prompt_ms * pace.price,
            output_ms=pace.output_ms * pace.price,
            slowdown=pace.slowdown,
            slots=slots,
            context_tokens=info.context_tokens if info else 0,
        )

    def pace(self, model: str) -> Pace:
        """What the model costs here."""
        return self._pace.get(model) or self._prior(model)

    def learn(
        self,
        model: str,
        fields: Mapping[str, Any],
        *,
        busy: float | None = None,
        predicted_ms: float = 0.0,
        actual_ms: float = 0.0,
        cached_tokens: float = 0.0,
    ) -> None:
        """Count a job in that has just been answered.

        Args:
            fields: the backend's closing fields.
            busy: slots at work while it ran, its own included; None = as the lane saw it.
            predicted_ms, actual_ms: how long the claim took it to last, and how long it did; 0 = not known.
            cached_tokens: of its prompt, as far as the backend still knew it.
        """
        now = self._clock()
        self._became(self.health.job_worked())
        took = (_duration_ms(fields, "total_duration") or actual_ms) / 1000
        load_ms = _duration_ms(fields, "load_duration")
        was_known = model in self.loaded
        was_loading = self._residence.ran(model, load_ms, began=now - took, now=now)
        self.is_outdated = self.is_outdated or was_loading
        if was_known and not was_loading and now - self._learned_at < _LEARN_EVERY_SECONDS:
            return
        self._learned_at = now
        pace = self.pace(model).aged(self._wall_clock())
        if was_loading:
            pace = pace.load_seen(load_ms)
        self._pace[model] = pace.after(
            fields,
            busy=self._occupancy.mean(now - took, now) if busy is None else busy,
            predicted_ms=predicted_ms,
            actual_ms=actual_ms,
            cached_tokens=cached_tokens,
        )
        self._learned(model)

    def failed(self, model: str, error: Exception) -> None:
        """Count a job in that was not answered; only what its backend is to blame for matters."""
        if is_backends_fault(error):
            self._pace[model] = self.pace(model).aged(self._wall_clock()).failed()
            self._became(self.health.job_failed())
            self._learned(model)

    def remember(self, affinity: str, tokens: int) -> None:
        """The backend now holds so many tokens of the conversation `affinity` ("" = of none)."""
        if not affinity:
            return
        self._cached[affinity] = tokens
        self._cached.move_to_end(affinity)
        while len(self._cached) > min(max(self.slots, 1), _MOST_REMEMBERED):
            self._cached.popitem(last=False)

    def holds(self, affinity: str) -> int:
        """Tokens of that conversation which the backend still has; see `remember`."""
        return self._cached.get(affinity, 0)

    def unread(self) -> list[str]:
        """Models of which nobody has looked up yet what was learned earlier."""
        return [model for model in self.models if model not in self._read]

    def recall(self, model: str, fields: Mapping[str, str]) -> None:
        """What was learned earlier, as `Pace.to_fields` wrote it; empty = nothing."""
        self._read.add(model)
        if fields and model not in self._pace:
            pace = Pace.from_fields(fields, self._prior(model).expected)
            self._pace[model] = pace.aged(self._wall_clock())
            self._offers = None

    def note_hardware(self, hardware: Hardware) -> None:
        """What the machine is and has left, for models that have not run yet or do not fit beside the others."""
        if self._hardware is None or _chips(self._hardware) != _chips(hardware):
            self._priors.clear()
        self._hardware = hardware
        self._sort_out()

    async def refresh(self) -> None:
        """Ask the backend again what it has; a backend that does not answer has nothing."""
        self.is_outdated = False
        try:
            models = {canonical_model(info.name): info for info in await self.backend.models()}
            loaded = frozenset(canonical_model(name) for name in await self.backend.loaded())
            slots = self.fixed_slots or await self.backend.slots() or 1
        except BackendError as error:
            if not self.down_because:
                log.warning("backend %s is down: %s", self.backend.url, error)
            self._told, self.down_because = {}, str(error)
            self._sort_out()
            self._residence.told(frozenset(), self._clock())
            self._cached.clear()
            self._looked_closer_at = -math.inf
            self._became(self.health.check_failed(counts=self._counts()))
            return
        if self.down_because:
            log.info("backend %s is back", self.backend.url)
        if self._residence.told(loaded, self._clock()):
            self._cached.clear()  # a prompt goes with its model
        self._told, self.slots, self.down_because = models, slots, ""
        self._sort_out()
        self._became(self.health.check_passed(counts=self._counts()))
        await self._look_closer()
        now = self._wall_clock()
        self._pace = {model: pace.aged(now) for model, pace in self._pace.items()}

    def _sort_out(self) -> None:
        """Leave out what cannot be loaded here, as far as that is known: not of a server elsewhere."""
        short = {
            name: short_mib(info.size_bytes, self._hardware)
            for name, info in self._told.items()
            if self._is_here and name not in self.loaded
        }
        self.too_large = {name: mib for name, mib in short.items() if mib}
        self.models = {name: info for name, info in self._told.items() if name not in self.too_large}
        self._offers = None

    async def _look_closer(self) -> None:
        """What seldom changes and costs more to ask: the release, and who can reach the backend."""
        if self._clock() - self._looked_closer_at < _LOOK_CLOSER_SECONDS:
            return
        self._looked_closer_at = self._clock()
        try:
            self.version = await self.backend.version()
        except BackendError:
            self.version = ""
        self.open_to = await asyncio.to_thread(open_to, self.backend.url)

    def close_for_now(self, why: str) -> None:
        """Take no more jobs until a refresh says that the backend lives."""
        self._told, self.down_because = {}, why
        self._sort_out()
        self._became(self.health.check_failed(counts=False))

    def _became(self, health: Health) -> None:
        if health.state is not self.health.state:
            log.info("backend %s is %s now", self.backend.url, health.state.value)
            self._before_probing = self.busy
        self.health = health

    def _counts(self) -> bool:
        """Whether a check is due: others change the state, but not the failure rate."""
        now = self._clock()
        if now - self._counted_at < self.health.check_seconds:
            return False
        self._counted_at = now
        return True

    def _learned(self, model: str) -> None:
        self.unwritten.add(model)
        self._offers = None

    def _prior(self, model: str) -> Pace:
        size = self._size(model)
        if (model, size) not in self._priors:
            self._priors[model, size] = prior(self._hardware, size, model)
        return self._priors[model, size]

    def _model_offer(self, name: str) -> ModelOffer:
        pace = self.pace(name)
        return ModelOffer(
            key_part(name),
            self._load_ms(name) * pace.price,
            pace.prompt_ms * pace.price,
            pace.output_ms * pace.price,
            slowdown=pace.slowdown,
            context_tokens=self.models[name].context_tokens,
            price=pace.price,
        )

    def _load_ms(self, model: str) -> float:
        """Until it could start: 0 in memory; else its loading, and one reloading of what must make room."""
        if model in self.loaded:
            return 0.0
        others = {name: (self._size(name), self.pace(name).load_ms) for name in self.loaded}
        return self.pace(model).load_ms + reload_ms(self._size(model), others, self._hardware)

    def _size(self, model: str) -> int:
        info = self.models.get(model)
        return info.size_bytes if info else 0


def _duration_ms(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    return max(0.0, value / 1e6) if isinstance(value, int | float) else 0.0


def _chips(hardware: Hardware) -> tuple[object, ...]:
    return (hardware.cpu_count, *((gpu.name, gpu.memory_total_mib) for gpu in hardware.gpus))
