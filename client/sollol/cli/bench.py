"""`sollol bench`: `run` measures a fabric (bench_run.py), `record` writes down what was asked, `replay` plays it again.

A replay needs no fabric: it runs the rule itself in virtual time, on machines that a file describes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sollol_broker.words import JobState

from . import output
from .app import missing_extra
from .options import fabric_options, open_client
from .output import Cell, Column
from .units import count

if TYPE_CHECKING:
    from sollol.replay.summary import Group, Summary
    from sollol_broker.registry import JobView

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
# A fabric keeps the last 1,000 jobs that ended; this often is enough for 200 a second.
_LOOK_SECONDS = 5.0
_KEPT = 1000
_MOST_APPS = 20
_SPREADS = tuple(Column(name, "right") for name in ("MEAN", "P95", "P99", "FIRST TOKEN", "P95", "P99"))


class _Bench(click.Group):
    """Brings `run` along, which needs more packages, only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "run"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "run":
            return super().get_command(ctx, cmd_name)
        try:
            from .bench_run import run
        except ModuleNotFoundError as error:
            raise missing_extra(error, "bench run", "worker") from None
        return run


@click.group(cls=_Bench)
def bench() -> None:
    """Measure a fabric beside its LLM servers; record what it was asked, and replay that with other weights."""


@bench.command(short_help="Play a log of jobs again, in virtual time.")
@click.argument("log", type=_FILE)
@click.option("--cluster", "described", default="home5", show_default=True, metavar="NAME|FILE",
              help="The machines: home5, gpu3, lab12, n100, or a TOML or JSON file.")  # fmt: skip
@click.option("--weights", "weights_file", type=_FILE, metavar="FILE",
              help="Weights to try beside those in use, TOML or JSON: backlog = 4, size_weight = 0 …")  # fmt: skip
@click.option("--policy", "names", multiple=True, metavar="NAME",
              help="Only this one; may be repeated.  [default: all]")  # fmt: skip
@click.option("--load", type=click.FloatRange(min=0, min_open=True), metavar="SHARE",
              help="Stretch the log until the machines are so busy; 0.8 = 80 %.  [default: as recorded]")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N jobs.")
@click.option("--failures", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Each machine dies once in so long, and is away for 2 minutes.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def replay(
    log: Path,
    described: str,
    weights_file: Path | None,
    names: tuple[str, ...],
    load: float | None,
    limit: int | None,
    failures: float | None,
    as_json: bool,
) -> None:
    """Play LOG again on described machines, in virtual time, and compare policies.

    LOG is what `sollol bench record` or `sollol jobs --json` wrote, or CSV with a header:
    arrival_s,prompt_tokens,output_tokens and, if known, app,model,priority. Times are in seconds.
    """
    from sollol.replay.cluster import BadCluster, full_load_factor, load_cluster
    from sollol.replay.policies import POLICIES, BadWeights, read_settings
    from sollol.replay.simulate import Failures
    from sollol.replay.simulate import replay as play
    from sollol.replay.summary import summarise
    from sollol.replay.trace import BadTrace, read_trace, stretched

    policies = dict(POLICIES)
    if unknown := [name for name in names if name not in policies]:
        raise click.UsageError(f"There is no policy {unknown[0]!r}, only {', '.join(policies)}.")
    wanted = list(names or policies)
    try:
        cluster, jobs = load_cluster(described), read_trace(log, most=limit or 0)
        if weights_file is not None:
            policies[f"ours, {weights_file.name}"] = read_settings(weights_file).policy
            wanted.append(f"ours, {weights_file.name}")
        if load is not None:
            jobs = stretched(jobs, full_load_factor(cluster, jobs) / load)
        dying = None if failures is None else Failures(mean_up_s=failures)
        found = [summarise(play(cluster, jobs, name, policies[name], dying)) for name in wanted]
    except (BadTrace, BadCluster, BadWeights) as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        output.print_json(
            {"jobs": len(jobs), "cluster": described, "policies": [asdict(each) for each in found]}
        )
    else:
        _show(found)


@bench.command(short_help="Write down what was asked, for a replay.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@fabric_options
def record(url: str, as_json: bool, file: Path, follow: bool) -> None:
    """Add the fabric's answered jobs to FILE, one line of JSON each: times, lengths, names, no text.

    A fabric remembers its last 1,000 jobs for an hour; with --follow nothing is missed. What FILE already
    has is left out.
    """
    known = _known(file)
    written = 0
    with open_client(url) as client:
        while True:
            views = [view for view in client.jobs(_KEPT) if _is_answered(view)]
            new = sorted((view for view in views if view.id not in known), key=lambda view: view.submitted)
            with file.open("a", encoding="utf-8") as lines:
                lines.writelines(json.dumps(_line(view)) + "\n" for view in new)
            known |= {view.id for view in new}
            written += len(new)
            if not follow:
                break
            time.sleep(_LOOK_SECONDS)
    if as_json:
        output.print_json({"file": str(file), "written": written, "jobs": len(known)})
    else:
        output.say(f"{count(written, 'job')} added to {file}, which has {count(len(known), 'job')} now")
        if known:
            output.aside(f"`sollol bench replay {file}` plays them again")


def _known(file: Path) -> set[str]:
    if not file.exists():
        return set()
    try:
        return {json.loads(line)["id"] for line in file.read_text("utf-8").splitlines() if line.strip()}
    except (ValueError, KeyError, TypeError):
        raise click.UsageError(f"{file} was not written by this command: name another file") from None


def _is_answered(view: JobView) -> bool:
    return view.state is JobState.DONE and view.prompt_tokens + view.output_tokens > 0


def _line(view: JobView) -> dict[str, Any]:
    """What a replay reads, and what really happened, to compare."""
    return {
        "arrival_s": view.submitted,
        "prompt_tokens": view.prompt_tokens,
        "output_tokens": view.output_tokens,
        "app": view.app,
        "model": view.model,
        "priority": view.priority,
        "id": view.id,
        "node": view.node,
        "waited_s": round(view.claimed - view.submitted, 3),
        "ran_s": round(view.ended - view.claimed, 3),
    }


def _show(found: list[Summary]) -> None:
    output.print_table(
        (Column("POLICY"), *_SPREADS, Column("SWAPS", "right")),
        [(Cell(each.policy, "bold"), *_spreads(each.all), f"{each.swaps:,}") for each in found],
    )
    first = found[0]
    if len(first.by_priority) > 1:
        _compare("PRIORITY", found, list(first.by_priority), lambda each: each.by_priority)
    if len(first.by_app) > 1:
        _compare("APP", found, list(first.by_app)[:_MOST_APPS], lambda each: each.by_app)
    output.aside(
        "seconds of virtual time from arrival to the end, and to the first token; groups: mean / p95 to the end"
    )


def _compare(title: str, found: list[Summary], names: list[Any], groups: Callable[[Summary], Any]) -> None:
    """One row for each group: mean / p95 of the time to the end, under each policy."""
    output.say("")
    output.print_table(
        (Column(title), Column("JOBS", "right"), *(Column(each.policy, "right") for each in found)),
        [
            (
                Cell(str(name), "bold"),
                f"{groups(found[0])[name].jobs:,}",
                *(f"{_s(groups(each)[name].end.mean)} / {_s(groups(each)[name].end.p95)}" for each in found),
            )
            for name in names
        ],
    )


def _spreads(group: Group) -> tuple[str, ...]:
    return tuple(
        _s(value) for spread in (group.end, group.first) for value in (spread.mean, spread.p95, spread.p99)
    )


def _s(seconds: float) -> str:
    return f"{seconds:,.1f}" if seconds >= 10 else f"{seconds:.2f}"
