"""`python -m benchmarks.routing [--quick]`: policies on recorded and drawn jobs, in virtual time; the aims first."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from benchmarks.routing.aims import Row, aims, geometric, mean, p95
from benchmarks.routing.scenarios import Scenario, scenarios
from sollol.replay.policies import FIFO, OURS, POLICIES
from sollol.replay.simulate import replay
from sollol.replay.summary import Group, Summary, summarise

# Fewer jobs than this have no p95 worth the name.
_LEAST_JOBS = 20


def main(*, is_quick: bool) -> None:
    """Play all scenarios in two processes, and print what was got."""
    found = list(scenarios(600 if is_quick else 2_500, is_quick=is_quick))
    with ProcessPoolExecutor(max_workers=2) as pool:
        rows = list(pool.map(play, found))
    _print_aims(rows)
    _print_means(rows)
    _print_groups(rows)
    _print_all(rows)


def play(scenario: Scenario) -> Row:
    """One scenario under all policies."""
    go = partial(replay, scenario.cluster)
    runs = {
        name: summarise(go(scenario.jobs, name, make, scenario.failures)) for name, make in POLICIES.items()
    }
    alone = {}
    if scenario.kind == "flood":
        apps = [name for name, group in runs[OURS].by_app.items() if group.jobs >= _LEAST_JOBS]
        for app in apps:
            if app != "flood":
                own = [job for job in scenario.jobs if job.app == app]
                alone[app] = summarise(go(own, OURS, POLICIES[OURS])).all.end.p95
    return Row(scenario.kind, scenario.jobs_name, scenario.cluster_name, scenario.load, runs, alone)


def _print_aims(rows: Sequence[Row]) -> None:
    print(f"{'aim (ours / the other; geometric mean)':62} at most    got")
    for aim in aims(rows):
        print(f"{aim.what:62}{aim.wanted:8.2f}{aim.got:7.2f}  {'' if aim.is_reached else 'missed'}".rstrip())


def _print_means(rows: Sequence[Row]) -> None:
    print("\nmean, p95, p99 to the end, and mean to the first token, as multiples of ours (geometric means)")
    for kind in dict.fromkeys(row.kind for row in rows):
        for load in sorted({row.load for row in rows if row.kind == kind}):
            print(f"{kind}, {load:.0%} load")
            some = [row for row in rows if (row.kind, row.load) == (kind, load)]
            for name in POLICIES:
                parts = [
                    geometric(figure(row.runs[name]) / figure(row.runs[OURS]) for row in some)
                    for figure in (mean, p95, lambda run: run.all.end.p99, lambda run: run.all.first.mean)
                ]
                swaps = sum(row.runs[name].swaps for row in some)
                print(f"  {name:18}" + "".join(f"{part:9.2f}" for part in parts) + f"{swaps:8,} swaps")


def _print_groups(rows: Sequence[Row]) -> None:
    for row in rows:
        if row.kind == "priorities":
            print(f"\n{row.jobs}, {row.load:.0%} load: mean / p95 to the first token, by priority")
            for name, run in row.runs.items():
                shown = (
                    f"{key}: {each.first.mean:7.1f} /{each.first.p95:8.1f}"
                    for key, each in run.by_priority.items()
                )
                print(f"  {name:18} " + "   ".join(shown))
        if row.kind == "flood":
            print(
                f"\n{row.jobs} at {row.load:.0%} load beside a flood: p95 of each application (times that alone)"
            )
            for name, run in row.runs.items():
                print(
                    f"  {name:18} " + "  ".join(_app(run.by_app[app], p, app) for app, p in row.alone.items())
                )


def _app(group: Group, alone: float, app: str) -> str:
    return f"{app} {group.end.p95:.1f} ({group.end.p95 / alone:.1f})"


def _print_all(rows: Sequence[Row]) -> None:
    print("\nall rows, in s, those first where we are worst against FIFO pull")
    print(
        f"{'jobs':38} load  {'policy':18}    mean      p95      p99 | first token      p95      p99   swaps"
    )
    for row in sorted(rows, key=lambda row: -row.times(FIFO, mean)):
        title = f"{row.kind}: {row.jobs}, {row.cluster}"
        for name, run in row.runs.items():
            print(f"{title:38} {row.load:4.2f}  {name:18}{_line(run)}")


def _line(run: Summary) -> str:
    end, start = run.all.end, run.all.first
    return (
        f"{end.mean:8.1f} {end.p95:8.1f} {end.p99:8.1f} | {start.mean:11.1f} {start.p95:8.1f} {start.p99:8.1f}"
        f" {run.swaps:7,}"
    )


if __name__ == "__main__":
    main(is_quick="--quick" in sys.argv)
