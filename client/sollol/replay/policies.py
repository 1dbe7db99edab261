"""The policies of a replay by name, and the settings of the fabric's own, from a file."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType

from sollol_broker.claim_rule import Weights
from sollol_broker.fair_order import SIZE_WEIGHT

from .order import ExactLengths, LineRule
from .pull import ClaimRule, FifoPull
from .push import LeastConnectionsPerSlot, RoundRobin, SollolFormula, TwoChoices
from .simulate import Policy, World

OURS, FIFO, FORMULA, CLAIRVOYANT = "ours", "fifo-pull", "sollol-formula", "clairvoyant"


class BadWeights(ValueError):
    """A file with weights that makes no sense; says what is wrong."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All numbers of the routing.

    Attributes:
        weights: of the claim rule. size_weight: of the order. head_start: factor of the priorities' head starts.
    """

    weights: Weights = field(default_factory=Weights)
    size_weight: float = SIZE_WEIGHT
    head_start: float = 1.0

    def policy(self, world: World) -> Policy:
        """The fabric's own policy with these numbers."""
        line = LineRule(size_weight=self.size_weight, head_start=self.head_start)
        return ClaimRule(world, self.weights, line=line)


# The clairvoyant knows every length, and has the shortest of the waiting jobs done first.
POLICIES: Mapping[str, Callable[[World], Policy]] = MappingProxyType(
    {
        "round-robin": RoundRobin,
        "two-choices": TwoChoices,
        "least-connections": LeastConnectionsPerSlot,
        FORMULA: SollolFormula,
        FIFO: FifoPull,
        OURS: Settings().policy,
        CLAIRVOYANT: partial(ClaimRule, make_lengths=ExactLengths, line=LineRule(shortest_first=True)),
    }
)


def read_settings(path: Path) -> Settings:
    """Read settings from a TOML or JSON file: fields of `Weights`, `size_weight`, `head_start`; the rest stays.

    Raises:
        BadWeights: the file is malformed, has a key that does not exist, or a value that is no number.
        OSError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise BadWeights(f"{path.name}: {error}") from error
    if not isinstance(found, dict):
        raise BadWeights(f"{path.name} is not a table of numbers")
    of_rule = [each.name for each in fields(Weights)]
    known = [*of_rule, "size_weight", "head_start"]
    for name, value in found.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise BadWeights(f"{path.name}: there is no {name!r}; {hint}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise BadWeights(f"{path.name}: {name} is {value!r}, not a number of 0 or more")
    for name in ("backlog", "overtaking_ms"):  # the rule divides by them
        if found.get(name) == 0:
            raise BadWeights(f"{path.name}: {name} must be above 0")
    numbers = {name: float(value) for name, value in found.items()}
    rule = {name: numbers.pop(name) for name in of_rule if name in numbers}
    return Settings(Weights(**{**asdict(Weights()), **rule}), **numbers)
