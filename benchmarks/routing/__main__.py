"""`python -m benchmarks.routing`: mean and tail of each policy on the traces and four generated mixes, home cluster."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.routing import mixes
from sollol.replay.cluster import PRESETS, full_load_factor
from sollol.replay.order import ExactLengths, LineRule
from sollol.replay.pull import ClaimRule, FifoPull
from sollol.replay.push import LeastConnectionsPerSlot, RoundRobin, SollolFormula, TwoChoices
from sollol.replay.simulate import Policy, World, replay
from sollol.replay.trace import Job, read_trace, stretched

_TRACES = Path(__file__).parent / "traces"
_POLICIES: dict[str, Callable[[World], Policy]] = {
    "round-robin": RoundRobin,
    "two choices": TwoChoices,
    "connections/slot": LeastConnectionsPerSlot,
    "SOLLOL 0.9": SollolFormula,
    "FIFO pull": FifoPull,
    "SOLLOL": ClaimRule,
    "clairvoyant": partial(ClaimRule, make_lengths=ExactLengths, line=LineRule(shortest_first=True)),
}


def main(jobs_each: int, loads: Sequence[float]) -> None:
    """Print the table: times in s, and each policy's mean as a multiple of ours."""
    cluster = PRESETS["home5"]
    print(f"{'jobs':20} load  {'policy':17} mean      p95      p99  first token  x ours")
    for name, jobs in _scenarios(jobs_each):
        for load in loads:
            scaled = stretched(jobs, full_load_factor(cluster, jobs) / load)
            runs = {policy: replay(cluster, scaled, policy, make) for policy, make in _POLICIES.items()}
            ours = statistics.mean(runs["SOLLOL"].end_s)
            for policy, run in sorted(runs.items(), key=lambda each: -statistics.mean(each[1].end_s)):
                mean, ends = statistics.mean(run.end_s), sorted(run.end_s)
                tail = " ".join(f"{ends[int(share * len(ends))]:8.1f}" for share in (0.95, 0.99))
                first = statistics.mean(run.first_s)
                print(
                    f"{name:20} {load:4.2f}  {policy:17}{mean:8.1f} {tail} {first:12.1f} {mean / ours:7.2f}"
                )


def _scenarios(most: int) -> list[tuple[str, Sequence[Job]]]:
    recorded = [(path.stem, read_trace(path, most=most)) for path in sorted(_TRACES.glob("*.csv"))]
    made = (mixes.chat, mixes.code, mixes.reasoning, mixes.office)
    return [*recorded, *((make.__name__, make(most)) for make in made)]


if __name__ == "__main__":
    if "--quick" in sys.argv:
        main(800, (0.8, 0.95))
    else:
        main(2_500, (0.5, 0.8, 0.95, 1.1))
