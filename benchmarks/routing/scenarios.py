"""What is played: recorded and drawn jobs on described machines, at several loads. Pure; seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.routing import mixes
from sollol.replay.cluster import PRESETS, Cluster, ModelSpec, full_load_factor
from sollol.replay.simulate import Failures
from sollol.replay.trace import Job, read_trace, stretched

_TRACES = Path(__file__).parent / "traces"
_LOADS = (0.5, 0.8, 0.95, 1.1)
_THREE = (ModelSpec("3b", 2.5, 0.4), ModelSpec("8b", 5.5, 1.0), ModelSpec("14b", 9.5, 1.75))
# A model's memory in GB and work per token, for libraries of many.
_SIZES = ((1.5, 0.25), (2.5, 0.4), (5.5, 1.0), (5.5, 1.0), (9.5, 1.75), (13.0, 2.4))


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table.

    Attributes:
        kind: "one model", "100 nodes", "several models", "nodes fail", "priorities" or "flood".
    """

    kind: str
    jobs_name: str
    cluster_name: str
    load: float
    cluster: Cluster
    jobs: Sequence[Job]
    failures: Failures | None = None


def scenarios(most: int, *, is_quick: bool) -> Iterator[Scenario]:
    """All of them, with at most so many jobs each; fewer loads and mixes for a quick look."""
    sets = _job_sets(most)
    loads = (0.8, 0.95) if is_quick else _LOADS
    for name, jobs in sets.items():
        yield from _at("one model", name, jobs, "home5", loads)
    yield from _several(sets, loads[:2] if is_quick else _LOADS[:3])
    for name in ("chat",) if is_quick else ("servegen_m_small", "chat", "reasoning"):
        yield from _at("nodes fail", name, sets[name], "lab12", (0.7,), Failures())
    for name in ("office",) if is_quick else ("office", "reasoning", "vtc_arena_clients"):
        yield from _at("priorities", name, mixes.urgency(sets[name]), "home5", (0.95,))
        yield from _flood(name, sets[name])
    if not is_quick:
        for name, jobs in _job_sets(4 * most).items():
            yield from _at("100 nodes", name, jobs, "n100", _LOADS[1:3])


def _job_sets(most: int) -> dict[str, list[Job]]:
    recorded = {path.stem: read_trace(path, most=most) for path in sorted(_TRACES.glob("*.csv"))}
    drawn = (mixes.chat, mixes.code, mixes.reasoning, mixes.office)
    return {**recorded, **{make.__name__: make(most) for make in drawn}}


def _at(
    kind: str,
    name: str,
    jobs: Sequence[Job],
    cluster_name: str,
    loads: Sequence[float],
    failures: Failures | None = None,
    models: Sequence[ModelSpec] = (),
) -> Iterator[Scenario]:
    cluster = PRESETS[cluster_name].with_models(*models) if models else PRESETS[cluster_name]
    factor = full_load_factor(cluster, jobs)
    for load in loads:
        yield Scenario(kind, name, cluster_name, load, cluster, stretched(jobs, factor / load), failures)


def _several(sets: dict[str, list[Job]], loads: Sequence[float]) -> Iterator[Scenario]:
    for name, jobs in sets.items():
        spread = mixes.spread_over(jobs, [model.name for model in _THREE])
        yield from _at("several models", f"{name}, 3", spread, "home5", loads, models=_THREE)
    rng = random.Random(5)
    library = [ModelSpec(f"m{at}", *rng.choice(_SIZES)) for at in range(24)]
    for name in ("servegen_m_small", "office", "chat"):
        spread = mixes.spread_over(sets[name], [model.name for model in library])
        yield from _at("several models", f"{name}, 24", spread, "lab12", loads, models=library)


def _flood(name: str, jobs: Sequence[Job]) -> Iterator[Scenario]:
    cluster = PRESETS["home5"]
    for load in (0.3, 0.7):  # of the others
        at_load = stretched(jobs, full_load_factor(cluster, jobs) / load)
        yield Scenario("flood", name, "home5", load, cluster, mixes.flood(at_load))
