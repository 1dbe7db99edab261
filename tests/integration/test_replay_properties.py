"""What holds for the pure rules on whole clusters, in virtual time: nobody starves behind a flood of urgent jobs."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.replay.cluster import Cluster, NodeSpec
from sollol.replay.order import LineRule
from sollol.replay.pull import ClaimRule
from sollol.replay.simulate import replay
from sollol.replay.trace import Job
from sollol_broker.claim_rule import classes_of, share_of
from sollol_broker.fair_order import head_start_ms

# What is expected of a first answer as well, so that every prediction is right.
_PROMPT, _OUTPUT = 100, 256
_NODES = st.lists(
    st.builds(
        NodeSpec,
        name=st.just("node"),
        prefill=st.just(1_000.0),
        decode=st.sampled_from([20.0, 60.0, 100.0]),
        slots=st.integers(1, 4),
        slowdown=st.sampled_from([0.0, 0.3]),
        memory_gb=st.just(24.0),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(_NODES, st.integers(1, 9), st.integers(1, 3))
def test_a_flood_of_urgent_jobs_delays_one_by_its_bound_at_most(
    nodes: list[NodeSpec], priority: int, apps: int
) -> None:
    _assert_it_gets_its_turn(nodes, priority, apps, LineRule())


def test_priorities_that_are_bands_are_noticed() -> None:
    node = NodeSpec("node", 1_000.0, 60.0, 2, 0.3, 24.0)
    with pytest.raises(AssertionError, match="starves"):
        _assert_it_gets_its_turn([node], 4, 1, LineRule(head_start=1_000.0))


def _assert_it_gets_its_turn(nodes: list[NodeSpec], priority: int, apps: int, line: LineRule) -> None:
    """Urgent jobs come faster than they can be served; one that is not urgent comes among them."""
    shares = [
        share_of(
            load_ms=0,
            prompt_ms=1_000 / node.prefill,
            output_ms=1_000 / node.decode,
            slowdown=node.slowdown,
            slots=node.slots,
        )
        for node in nodes
    ]
    classes = classes_of(shares)
    costs_ms = [each.prompt_ms * _PROMPT + each.output_ms * _OUTPUT for each in classes]
    cost_ms = min(costs_ms)
    speed = sum(each.capacity * cost_ms / own_ms for each, own_ms in zip(classes, costs_ms, strict=True))
    # Its head start's worth of work, and some turns of each application; what runs already; and what the queue's sum
    # of weights did not yet have in it.
    slots = sum(node.slots for node in nodes)
    bound = head_start_ms(priority) / cost_ms * speed * (apps + 1) / apps + 4 * (apps + 1) + slots
    gap_s = cost_ms / 1_000 / speed / 2
    count = 20 * apps + 2 * round(bound)
    flood = [Job(gap_s * at, _PROMPT, _OUTPUT, f"app{at % apps}", priority=10) for at in range(count)]
    came = 10 * apps
    patient = Job(flood[came].arrival_s, _PROMPT, _OUTPUT, "patient", priority=priority)
    jobs = [*flood[: came + 1], patient, *flood[came + 1 :]]
    run = replay(Cluster(tuple(nodes)), jobs, "ours", partial(ClaimRule, line=line))
    starts = [job.arrival_s + waited for job, waited in zip(jobs, run.waited_s, strict=True)]
    before = sum(start < starts[came + 1] for start in starts[came + 2 :])
    assert before <= bound, (
        f"a job of priority {priority} starves: {before} newer ones went first, not {bound:.0f}"
    )
