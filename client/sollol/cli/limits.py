"""`sollol limits`: what may be handed in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from . import output
from .options import fabric_options, open_client
from .output import Cell, Column
from .units import size

if TYPE_CHECKING:
    from sollol_broker.policy import Limits, Quota

_APPS = (
    Column("APPLICATION"),
    Column("WEIGHT", "right"),
    Column("JOBS", "right"),
    Column("PER MODEL", "right"),
    Column("REQUESTS/MIN", "right"),
    Column("TOKENS/MIN", "right"),
)
_LEGEND = "JOBS unfinished now/most at the same time · PER MODEL unfinished jobs for one model"
_POWERS = ("", "k", "m", "g")
_HINT = "`sollol limits set --max-queue N` bounds what waits, `sollol limits app NAME …` what an application may use"


def _number(ctx: click.Context, param: click.Parameter, value: str | None) -> int | float | str | None:
    """A number with a unit; "none" stays a word, for without the option there is None."""
    text = (value or "").strip().lower()
    if value is None or text == "none":
        return value if value is None else text
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmg]?)(i?b)?", text)
    if found is None:
        raise click.BadParameter(f"{value!r} is neither a number, such as 500 or 2GiB, nor none.", ctx, param)
    base = 1024 if (found[3] or "").startswith("i") else 1000
    return float(float(found[1]) * base ** _POWERS.index(found[2]))


def _whole(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    number = _number(ctx, param, value)
    if isinstance(number, str) or number is None:
        return number
    if number != int(number):
        raise click.BadParameter(f"{value!r} is not a whole number.", ctx, param)
    return int(number)


@click.group(invoke_without_command=True)
@fabric_options
@click.pass_context
def limits(ctx: click.Context, url: str, as_json: bool) -> None:
    """What may be handed in: limits of the queues, quotas of applications.

    A job beyond them is refused at once, with the time after which to try again.
    """
    if ctx.invoked_subcommand is not None:
        return
    with open_client(url) as client:
        found = client.limits()
    if as_json:
        output.print_json(found)
    else:
        _show(found)


@limits.command(name="set", short_help="Change limits of the fabric or of a model.")
@click.option("--max-queue", "max_queue_size", callback=_whole, metavar="N|none",
              help="Jobs that may wait: in all, or with --model for that one.")  # fmt: skip
@click.option("--max-bytes", "max_queue_bytes", callback=_whole, metavar="N|none",
              help="Of all unfinished jobs' bodies, such as 2GiB.")  # fmt: skip
@click.option("--hedge-from", callback=_whole, metavar="0-11|none",
              help="Jobs of this priority and above may run twice when late; 11 = never.")  # fmt: skip
@click.option("--hedge-percent", callback=_whole, metavar="N|none",
              help="By how much second copies of late jobs may add to a model's work; usually 5.")  # fmt: skip
@click.option("--model", default="", metavar="NAME", help="The model whose queue is meant.")
@fabric_options
def set_limits(url: str, as_json: bool, model: str, **given: Any) -> None:
    """Change limits of the fabric, or of one model's queue; `none` takes one away."""
    wanted = _wanted(given)
    with open_client(url) as client:
        client.set_limits(model=model, **wanted)
        found = client.limits()
    if as_json:
        output.print_json(found)
    else:
        _show(found)


@limits.command(short_help="Change what an application may use.")
@click.argument("name", metavar="NAME")
@click.option("--weight", callback=_number, metavar="N", help="Share of a busy queue; usually 1.")
@click.option(
    "--concurrency", callback=_whole, metavar="N|none", help="Jobs that wait and run at the same time."
)
@click.option("--rpm", "requests_per_minute", callback=_number, metavar="N|none",
              help="Requests per minute.")  # fmt: skip
@click.option("--tpm", "tokens_per_minute", callback=_number, metavar="N|none",
              help="Tokens per minute, of prompts and answers.")  # fmt: skip
@click.option("--max-queue", "max_queue_size", callback=_whole, metavar="N|none",
              help="Unfinished jobs for one model.")  # fmt: skip
@fabric_options
def app(url: str, as_json: bool, name: str, **given: Any) -> None:
    """Change what the application NAME may use; `none` takes a limit away."""
    wanted = _wanted(given)
    with open_client(url) as client:
        client.set_quota(name, **wanted)
        found = client.limits()
    if as_json:
        output.print_json(found)
    else:
        _show(found)


def _wanted(given: dict[str, Any]) -> dict[str, Any]:
    wanted = {name: None if value == "none" else value for name, value in given.items() if value is not None}
    if not wanted:
        raise click.UsageError("Nothing to change: name at least one limit.")
    return wanted


def _show(found: Limits) -> None:
    rows = [
        ("waiting jobs", f"{found.waiting:,}, " + _at_most(found.max_queue_size)),
    ]
    if found.max_queue_bytes is not None:
        rows.append(("bytes of jobs", f"{size(found.bytes)} of at most {size(found.max_queue_bytes)}"))
    rows += [(f"waiting for {model}", f"at most {most:,}") for model, most in found.models.items()]
    if found.hedge_from is not None:
        never = "never" if found.hedge_from > 10 else f"from priority {found.hedge_from}"
        rows.append(("late jobs run twice", never))
    if found.hedge_percent is not None:
        rows.append(("second copies", f"at most {found.hedge_percent} % of a model's work"))
    output.print_lines([(Cell(name, "dim"), value) for name, value in rows])
    if found.apps:
        output.say("")
        output.print_table(_APPS, [_quota(name, quota) for name, quota in found.apps.items()])
        output.aside(_LEGEND)
    if not found.apps and found.max_queue_size is None:
        output.aside(_HINT)


def _at_most(number: int | None) -> str:
    return "no limit" if number is None else f"at most {number:,}"


def _quota(name: str, quota: Quota) -> tuple[Cell | str, ...]:
    return (
        Cell(name, "bold"),
        f"{quota.weight:g}",
        f"{quota.unfinished:,}/{_most(quota.concurrency)}",
        _most(quota.max_queue_size),
        _most(quota.requests_per_minute),
        _most(quota.tokens_per_minute),
    )


def _most(number: float | None) -> str:
    return "-" if number is None else f"{number:,.10g}"
