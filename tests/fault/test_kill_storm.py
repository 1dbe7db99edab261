"""kill -9 and SIGSTOP aimed at lease holders, kill -9 of Redis: nothing is lost, doubled, or a zombie's."""

from __future__ import annotations

from ledger import Fault
from storm import StormPlan, StormReport, storm


async def test_a_storm_of_kills_and_freezes_loses_nothing_and_doubles_nothing() -> None:
    # More than half of the jobs are left when the last fault comes: a busy machine may be slow to aim.
    plan = StormPlan(
        jobs=400, kills=25, stops=15, cancels=20, lease_seconds=2.0, job_ms=800, spread=0.4, seed=20
    )
    report = await storm(plan)
    _all_answered_once(report)
    assert report.attempts > report.plan.jobs, "no fault hit a job: the storm proved nothing"
    assert len(report.reclaims) >= report.kills / 2
    # On an idle machine 95 % are reclaimed within 1.5 leases (`make storm`); a busy one takes its time for all it does.
    assert report.reclaim(0.5) <= 1.5
    assert report.reclaim(1.0) <= 5.0


async def test_a_storm_with_5_kills_of_redis_loses_nothing_and_doubles_nothing() -> None:
    _all_answered_once(await storm(StormPlan(jobs=300, kills=10, stops=5, redis_kills=5, seed=6)))


async def test_without_the_fence_the_same_storm_is_read_of_zombies() -> None:
    report = await storm(StormPlan(jobs=200, stops=15, fenced=False, seed=20))
    assert report.ledger.count(Fault.DOUBLED) > 0, (
        "the fence is off and nobody noticed: this storm has no teeth"
    )
    assert report.ledger.count(Fault.STALE) > 0


def _all_answered_once(report: StormReport) -> None:
    plan = report.plan
    assert (report.kills, report.stops, report.redis_kills) == (plan.kills, plan.stops, plan.redis_kills)
    assert not report.ledger.findings, str(report.ledger)
    cancelled = report.ledger.ends["cancelled"]
    assert cancelled <= plan.cancels
    assert report.ledger.ends["done"] == plan.jobs - cancelled
