"""The comparison of routing policies: what it plays, and how it sums up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from benchmarks.routing.__main__ import play
from benchmarks.routing.aims import Row, aims, geometric
from benchmarks.routing.scenarios import scenarios

from sollol.replay.policies import CLAIRVOYANT, FIFO, FORMULA, OURS, POLICIES
from sollol.replay.summary import Group, Spread, Summary


def _run(policy: str, mean: float, first: float, p95: float, app_p95: float = 0.0) -> Summary:
    group = Group(100, Spread(first, 0, 0), Spread(mean, p95, 0))
    app = replace(group, end=Spread(0, app_p95, 0))
    return Summary(policy, group, {5: group}, {"me": app}, 0, 0.5, 0.0, 0)


def _row(load: float, ours: Summary, kind: str = "one model") -> Row:
    others = [_run(FORMULA, 10, 5, 40), _run(FIFO, 10, 5, 40), _run(CLAIRVOYANT, 5, 5, 40)]
    return Row(kind, "x", "home5", load, {OURS: ours, **{run.policy: run for run in others}}, {"me": 10})


def test_aims_are_geometric_means_and_the_worst_comes_first() -> None:
    rows = [_row(0.8, _run(OURS, 5, 1, 40)), _row(0.8, _run(OURS, 8, 4, 50))]
    found = {aim.what: aim for aim in aims(rows)}
    of_mean = found["one model, 80% load: mean / sollol-formula"]
    assert of_mean.got == pytest.approx((0.5 * 0.8) ** 0.5)
    assert of_mean.is_reached
    tail = found["one model, 80% load: p95 / fifo-pull"]
    assert tail.got == pytest.approx(geometric((1, 1.25)))
    assert not tail.is_reached
    gaps = [aim.got / aim.wanted for aim in aims(rows)]
    assert gaps == sorted(gaps, reverse=True)


def test_the_flood_is_judged_by_the_application_that_suffers_most() -> None:
    (aim,) = aims(
        [_row(0.3, _run(OURS, 1, 1, 1, app_p95=25), "flood"), _row(0.3, _run(OURS, 1, 1, 1, 5), "flood")]
    )
    assert (aim.got, aim.is_reached) == (2.5, False)


def test_all_kinds_of_scenarios_are_played() -> None:
    kinds = Counter(each.kind for each in scenarios(40, is_quick=False))
    assert kinds.keys() == {
        "one model", "several models", "nodes fail", "priorities", "flood", "100 nodes",
    }  # fmt: skip
    assert kinds["one model"] == 7 * 4
    some = next(each for each in scenarios(120, is_quick=True) if each.kind == "flood")
    row = play(some)
    assert row.runs.keys() == POLICIES.keys()
    assert "flood" in row.runs[OURS].by_app
    assert "flood" not in row.alone
    assert row.worst_app > 1
