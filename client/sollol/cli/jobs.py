"""`sollol jobs` shows jobs, tries them again and moves them in line; `sollol cancel` stops one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from sollol_broker.batch_record import batch_of
from sollol_broker.errors import JobLost
from sollol_broker.words import JobState

from . import output
from .options import fabric_options, open_client, priority_value
from .output import Cell, Column
from .units import count, duration

if TYPE_CHECKING:
    from sollol_broker.registry import JobView
    from sollol_client import Client

_COLUMNS = (
    Column("ID"),
    Column("STATE"),
    Column("MODEL", folds=True),
    Column("NODE"),
    Column("TRY", "right"),
    Column("WAITED", "right"),
    Column("RAN", "right"),
    Column("AGE", "right"),
)
_STYLES = {
    JobState.QUEUED: "yellow",
    JobState.RUNNING: "cyan",
    JobState.DONE: "green",
    JobState.CANCELLED: "dim",
}
_NO_JOBS = 'No jobs yet. `sollol chat "Hello"` hands one in. A job is listed for an hour after its end.'


class _JobsGroup(click.Group):
    """A group of which `sollol jobs ID` is short for `sollol jobs show ID`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """What is no subcommand is an id."""
        if args and args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_JobsGroup, invoke_without_command=True)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N",
              help="At most so many of those that run, wait and have ended.")  # fmt: skip
@fabric_options
@click.pass_context
def jobs(ctx: click.Context, url: str, as_json: bool, limit: int) -> None:
    """The jobs that run, wait, and ended last; `sollol jobs ID` tells everything known of one."""
    if ctx.invoked_subcommand is None:
        _list(url, limit, as_json=as_json)


@jobs.command()
@click.argument("job_id", metavar="ID")
@fabric_options
def show(url: str, as_json: bool, job_id: str) -> None:
    """Everything known of the job ID."""
    with open_client(url) as client:
        _show_one(client, job_id, as_json=as_json)


@jobs.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@fabric_options
def retry(url: str, as_json: bool, ids: tuple[str, ...]) -> None:
    """Put the jobs ID back in line, under the same ids: dead letters, and jobs that failed on every try.

    Of failed jobs the last 500 are kept for it, of at most 128 KiB each, as long as their results (an hour).
    """
    with open_client(url) as client:
        done = client.retry(*ids)
        states = {job_id: client.job(job_id) for job_id, is_done in done.items() if not is_done}
    if as_json:
        output.print_json(done)
    for job_id, is_done in done.items() if not as_json else ():
        if is_done:
            output.say(f"job {job_id} is back in line")
        else:
            output.complain(_not_retried(job_id, states[job_id]))
    if states:
        raise click.exceptions.Exit(1)
    if not as_json and len(done) == 1:
        output.aside(f"`sollol attach {ids[0]}` follows it")


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.argument("value", metavar="0-10|NAME", callback=priority_value)
@fabric_options
def priority(url: str, as_json: bool, job_id: str, value: int) -> None:
    """Give the waiting job ID another priority, and with it another place in line."""
    with open_client(url) as client:
        is_changed = client.set_priority(job_id, value)
        view = client.job(job_id)
        before = client.job_position(job_id)
    if view is None:
        raise _lost(job_id)
    if as_json:
        output.print_json(
            {"job": job_id, "changed": is_changed, "priority": view.priority, "position": before}
        )
    elif is_changed:
        place = "" if before is None else f", {count(before, 'job')} before it"
        output.say(f"job {job_id} has priority {value} now{place}")
    else:
        output.complain(f"job {job_id} does not wait: it is {view.state}")
    if not is_changed:
        raise click.exceptions.Exit(1)


def _not_retried(job_id: str, view: JobView | None) -> str:
    if view is None:
        return f"job {job_id} is not known here, or was a dead letter that has expired"
    if (batch := batch_of(job_id)) and view.state in (JobState.FAILED, JobState.DEAD):
        return (
            f"job {job_id} is of batch {batch}, which has taken its end: an item ends once. "
            "Give what failed to a new batch"
        )
    if view.state is JobState.FAILED:
        return (
            f"job {job_id} cannot be tried again: its request itself was refused, or what it asked is no longer kept; "
            "submit it anew"
        )
    return f"job {job_id} is {view.state}: only dead letters and failed jobs can be tried again"


def _list(url: str, limit: int, *, as_json: bool) -> None:
    with open_client(url) as client:
        views = client.jobs(limit)
    if as_json:
        output.print_json([view.as_dict() for view in views])
    elif not views:
        output.say(_NO_JOBS)
    else:
        now = time.time()
        output.print_table(_COLUMNS, [_row(view, now) for view in views])


@click.command()
@click.argument("job_id", metavar="ID")
@fabric_options
def cancel(url: str, as_json: bool, job_id: str) -> None:
    """Stop the job ID, waiting or running. A job that has already ended stays as it is."""
    with open_client(url) as client:
        was_cancelled = client.cancel(job_id)
        view = client.job(job_id)
    if not was_cancelled and view is None:
        raise _lost(job_id)
    state = view.state if view is not None else JobState.CANCELLED
    if as_json:
        output.print_json({"job": job_id, "cancelled": was_cancelled, "state": str(state)})
    elif was_cancelled:
        output.say(f"job {job_id} is cancelled")
    else:
        output.say(f"job {job_id} had already ended: it is {state}")


def _show_one(client: Client, job_id: str, *, as_json: bool) -> None:
    view = client.job(job_id)
    if view is None:
        raise _lost(job_id)
    before = client.job_position(job_id)
    if as_json:
        output.print_json({**view.as_dict(), "position": before})
        return
    pairs = [
        ("job", view.id),
        ("state", str(view.state) + ("" if before is None else f", {count(before, 'job')} before it")),
        ("model", view.model),
        ("application", view.app),
        ("priority", str(view.priority)),
        ("node", view.node or "-"),
        ("worker", view.worker or "-"),
        ("attempt", _attempt(view)),
        ("submitted", _moment(view.submitted)),
        ("waited", _waited(view)),
        ("first token", f"after {duration(view.first_token - view.claimed)}" if view.first_token else "-"),
        ("ran", _ran(view, time.time())),
    ]
    output.print_lines([(Cell(name, "dim"), value) for name, value in pairs])
    if view.state is JobState.DONE:
        output.aside(f"`sollol attach {view.id}` shows the answer")
    elif not view.state.is_terminal:
        output.aside(
            f"`sollol attach {view.id}` follows it, `sollol explain {view.id}` says why it is where it is, "
            f"`sollol cancel {view.id}` stops it"
        )
    elif view.state is not JobState.CANCELLED:
        output.aside(f"`sollol attach {view.id}` shows the error, `sollol explain {view.id}` its way to it")


def _row(view: JobView, now: float) -> list[str | Cell]:
    return [
        view.id,
        Cell(str(view.state), _STYLES.get(view.state, "red")),
        view.model,
        view.node or "-",
        str(view.attempt) if view.attempt else "-",
        _waited(view),
        _ran(view, now),
        duration(now - view.submitted),
    ]


def _attempt(view: JobView) -> str:
    causes = [
        count(view.crashes, "worker died", "workers died") if view.crashes else "",
        count(view.errors, "backend error") if view.errors else "",
        f"handed back {count(view.releases, 'time')}" if view.releases else "",
    ]
    told = ", ".join(cause for cause in causes if cause)
    return f"{view.attempt}" + (f" ({told})" if told else "")


def _waited(view: JobView) -> str:
    if view.claimed:
        return duration(view.claimed - view.submitted)
    return duration(view.ended - view.submitted) if view.ended else "-"


def _ran(view: JobView, now: float) -> str:
    if not view.claimed or view.state is JobState.QUEUED:
        return "-"
    return duration((view.ended or now) - view.claimed)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _lost(job_id: str) -> JobLost:
    return JobLost(
        f"job {job_id} is not known here: its record expired, the id is wrong, or the fabric is another"
    )
