"""`sollol dead`: the dead letters, jobs that took too many workers down with them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from sollol_broker.batch_record import batch_of

from . import output
from .options import fabric_options, open_client
from .output import Column
from .units import count, duration

if TYPE_CHECKING:
    from sollol_broker.operations import DeadLetter
    from sollol_client import Client

_COLUMNS = (
    Column("ID"),
    Column("MODEL", folds=True),
    Column("APPLICATION"),
    Column("TRIES", "right"),
    Column("DIED WITH IT", folds=True),
    Column("AGO", "right"),
)
_NONE = "No dead letters: no job has taken too many workers down with it."
_IDS = click.argument("ids", metavar="[ID]...", nargs=-1)


@click.group(invoke_without_command=True)
@fabric_options
@click.pass_context
def dead(ctx: click.Context, url: str, as_json: bool) -> None:
    """Dead letters: jobs that took too many workers down with them. They are kept for 7 days.

    Before you retry one, look at those workers' logs: a prompt that fits no memory kills the next one, too.
    """
    if ctx.invoked_subcommand is None:
        _list(url, 20, as_json=as_json)


@dead.command(name="list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N",
              help="At most so many, the latest first.")  # fmt: skip
@fabric_options
def list_(url: str, as_json: bool, limit: int) -> None:
    """List them, the latest first."""
    _list(url, limit, as_json=as_json)


@dead.command()
@_IDS
@click.option("--all", "all_", is_flag=True, help="All of them.")
@fabric_options
def retry(url: str, as_json: bool, ids: tuple[str, ...], all_: bool) -> None:
    """Put the jobs ID back in line, under the same ids."""
    with open_client(url) as client:
        done = client.retry_dead(*_wanted(client, ids, all_=all_))
    _report(done, "back in line", as_json=as_json)
    if not as_json and len(done) == 1 and all(done.values()):
        output.aside(f"`sollol attach {next(iter(done))}` follows it")


@dead.command()
@_IDS
@click.option("--all", "all_", is_flag=True, help="All of them.")
@fabric_options
def drop(url: str, as_json: bool, ids: tuple[str, ...], all_: bool) -> None:
    """Forget the jobs ID for good."""
    with open_client(url) as client:
        done = client.drop_dead(*_wanted(client, ids, all_=all_))
    _report(done, "forgotten", as_json=as_json)


def _list(url: str, limit: int, *, as_json: bool) -> None:
    with open_client(url) as client:
        letters = client.dead(limit)
        all_ = len(client.dead_ids())
    if as_json:
        output.print_json(letters)
    elif not letters:
        output.say(_NONE)
    else:
        now = time.time()
        output.print_table(_COLUMNS, [_row(letter, now) for letter in letters])
        more = f"; {all_ - len(letters):,} more with --limit" if all_ > len(letters) else ""
        output.aside(f"`sollol explain ID` tells the story, `sollol dead retry ID` tries again{more}")


def _row(letter: DeadLetter, now: float) -> tuple[str, ...]:
    lost = [each.node for each in letter.attempts if each.how == "crash"]
    return (
        letter.id,
        letter.model,
        letter.app,
        str(len(letter.attempts) or letter.crashes),
        ", ".join(dict.fromkeys(lost)) or "-",
        duration(now - letter.died),
    )


def _wanted(client: Client, ids: tuple[str, ...], *, all_: bool) -> tuple[str, ...]:
    if bool(ids) == all_:
        raise click.UsageError(
            "Name the jobs' ids, or --all." if not ids else "Name ids, or --all, not both."
        )
    return tuple(client.dead_ids()) if all_ else ids


def _report(done: dict[str, bool], what: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json(done)
        return
    good = [job_id for job_id, is_done in done.items() if is_done]
    if len(good) == 1:
        output.say(f"job {good[0]} is {what}")
    elif good or not done:
        output.say(f"{count(len(good), 'job')} {what}" if good else "no dead letters")
    for job_id, is_done in done.items():
        if not is_done:
            of_batch = ", or its batch has taken its end" if batch_of(job_id) else ""
            output.complain(f"job {job_id} is no dead letter, or its record has expired{of_batch}")
    if not all(done.values()):
        raise click.exceptions.Exit(1)
