"""A replay in virtual time: the rule of the broker against plain policies, on recorded requests."""

from __future__ import annotations

import statistics
from pathlib import Path

from sollol.replay.cluster import PRESETS, full_load_factor
from sollol.replay.pull import ClaimRule, FifoPull
from sollol.replay.push import LeastConnectionsPerSlot, SollolFormula
from sollol.replay.simulate import replay
from sollol.replay.trace import read_trace, stretched

_TRACE = Path(__file__).parents[2] / "benchmarks" / "routing" / "traces" / "vtc_arena_clients.csv"


def test_on_recorded_requests_the_claim_rule_beats_the_plain_policies() -> None:
    cluster, jobs = PRESETS["home5"], read_trace(_TRACE, most=500)
    scaled = stretched(jobs, full_load_factor(cluster, jobs) / 0.95)
    policies = (ClaimRule, FifoPull, SollolFormula, LeastConnectionsPerSlot)
    runs = {policy: replay(cluster, scaled, policy.__name__, policy) for policy in policies}
    means = {policy: statistics.mean(run.end_s) for policy, run in runs.items()}
    assert all(len(run.end_s) == len(jobs) for run in runs.values())
    assert all(
        0 < first <= end for run in runs.values() for first, end in zip(run.first_s, run.end_s, strict=True)
    )
    assert means[ClaimRule] < min(means[policy] for policy in policies[1:])


def test_a_replay_is_repeatable() -> None:
    cluster, jobs = PRESETS["home5"], read_trace(_TRACE, most=200)
    first, again = (replay(cluster, jobs, "ours", ClaimRule) for _ in range(2))
    assert list(first.end_s) == list(again.end_s)
