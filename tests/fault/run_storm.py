"""The long storms, and the table that they print: python tests/fault/run_storm.py --help."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))  # what tests share; pytest does the same

from ledger import Fault
from storm import StormPlan, StormReport, storm

from sollol_broker.embedded import find_server

_COLUMNS = (
    *(
        "seed",
        "jobs",
        "kills",
        "stops",
        "Redis kills",
        "attempts",
        "lost",
        "doubled",
        "stale writes",
        "other",
    ),
    *("p50", "p95", "max", "max, no Redis", "s"),
)


def row(report: StormReport) -> list[str]:
    """One storm in numbers; reclaims in leases."""
    plan, ledger = report.plan, report.ledger
    shown = {Fault.LOST: 0, Fault.DOUBLED: 0, Fault.STALE: 0}
    shown = {fault: ledger.count(fault) for fault in shown}
    other = sum(ledger.count(fault) for fault in Fault if fault not in shown)
    counts = (
        plan.jobs,
        report.kills,
        report.stops,
        report.redis_kills,
        report.attempts,
        *shown.values(),
        other,
    )
    reclaims = [f"{report.reclaim(share):.2f}" for share in (0.5, 0.95, 1.0)]
    reclaims.append(f"{report.reclaim(1.0, without_redis=True):.2f}")
    name = f"{plan.seed}" if plan.fenced else f"{plan.seed}, no fence"
    return [name, *map(str, counts), *reclaims, f"{report.seconds:.0f}"]


def line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def is_kept(report: StormReport) -> bool:
    """Whether the promise was kept; without the fence it has to be broken."""
    if not report.plan.fenced:
        return report.ledger.count(Fault.DOUBLED) > 0 and report.ledger.count(Fault.STALE) > 0
    return not report.ledger.findings and sum(report.ledger.ends.values()) == report.plan.jobs


async def run(options: argparse.Namespace) -> bool:
    """Let all storms rage, one after the other; whether each kept the promise."""
    click.echo(
        f"Python {platform.python_version()}, {find_server()}, {os.cpu_count()} cores, {platform.machine()}"
    )
    click.echo(
        f"lease {options.lease:g} s; p50, p95, max: from a kill to the next claim, in leases; s = seconds in all\n"
    )
    click.echo(line(_COLUMNS))
    click.echo(line("---" for _ in _COLUMNS))
    plans = [_plan(options, seed, fenced=True) for seed in range(1, options.seeds + 1)]
    all_kept = True
    for plan in (*plans, _plan(options, 1, fenced=False)):
        report = await storm(plan)
        click.echo(line(row(report)))
        if not is_kept(report):
            all_kept = False
            click.echo(f"seed {plan.seed}: the promise was not kept\n{report.ledger}", err=True)
    return all_kept


def _plan(options: argparse.Namespace, seed: int, *, fenced: bool) -> StormPlan:
    return StormPlan(
        jobs=options.jobs,
        kills=options.faults // 2,
        stops=options.faults // 2,
        redis_kills=options.redis_kills if fenced else 0,
        cancels=options.cancels,
        lease_seconds=options.lease,
        patience_seconds=300.0,
        fenced=fenced,
        seed=seed,
    )


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Storms over worker processes and Redis; then the sum.")
    parser.add_argument("--seeds", type=int, default=10, help="storms, each with other chances")
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--faults", type=int, default=200, help="half of them kill -9, half SIGSTOP")
    parser.add_argument("--redis-kills", type=int, default=5)
    parser.add_argument("--cancels", type=int, default=50, help="jobs that are cancelled meanwhile")
    parser.add_argument("--lease", type=float, default=1.0, help="seconds")
    logging.disable()
    sys.exit(0 if asyncio.run(run(parser.parse_args())) else 1)


if __name__ == "__main__":
    main()
