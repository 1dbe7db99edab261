"""`sollol keys`: API keys for those who reach the fabric over HTTP."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, TypeVar

import click

from sollol_broker.api_keys import ApiKey, KeyRole
from sollol_broker.broker import Broker
from sollol_broker.errors import InvalidJob
from sollol_broker.key_store import KeyStore
from sollol_broker.operations import Operations
from sollol_broker.policy import KEEP, quota_changes
from sollol_broker.url import parse

from . import output
from .options import fabric_options
from .output import Cell, Column
from .units import duration

T = TypeVar("T")

_COLUMNS = (
    Column("ID"),
    Column("NAME"),
    Column("ROLE"),
    Column("APPLICATION"),
    Column("MODELS", folds=True),
    Column("PRIORITY", "right"),
    Column("STATE"),
)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)([smhdw])", value.strip().lower())
    if found is None:
        raise click.BadParameter(f"{value!r} is no time, such as 12h, 30d or 8w.", ctx, param)
    return float(int(found[1]) * _UNITS[found[2]])


@click.group(invoke_without_command=True)
@fabric_options
@click.pass_context
def keys(ctx: click.Context, url: str, as_json: bool) -> None:
    """API keys for those who reach the fabric over HTTP: who may do what.

    Redis keeps only a hash of each. Where Redis has users (`sollol acl`), only the admin may see and change keys.
    """
    if ctx.invoked_subcommand is None:
        _list(url, as_json=as_json)


@keys.command(name="list")
@fabric_options
def list_(url: str, as_json: bool) -> None:
    """List them, by name."""
    _list(url, as_json=as_json)


@keys.command()
@click.argument("name", metavar="NAME")
@click.option("--role", type=click.Choice([each.value for each in KeyRole]), default=KeyRole.APP.value,
              show_default=True, help="viewer looks, app asks models, admin steers.")  # fmt: skip
@click.option(
    "--app", default="", metavar="NAME", help="The application its jobs belong to. Default: its name."
)
@click.option("--model", "models", multiple=True, metavar="PATTERN",
              help="It may use these models only, such as 'llama*'; may be repeated.")  # fmt: skip
@click.option("--max-priority", "most_priority", type=click.IntRange(0, 10), default=10, show_default=True,
              help="Of its jobs.")  # fmt: skip
@click.option(
    "--expires", "seconds", callback=_seconds, metavar="TIME", help="After which it is void, such as 30d."
)
@click.option(
    "--rpm", type=click.FloatRange(min=0, min_open=True), help="Requests per minute of the application."
)
@click.option(
    "--tpm", type=click.FloatRange(min=0, min_open=True), help="Tokens per minute of the application."
)
@click.option(
    "--concurrency", type=click.IntRange(min=0), help="Its jobs that wait and run at the same time."
)
@fabric_options
def add(
    url: str,
    as_json: bool,
    name: str,
    role: str,
    rpm: float | None,
    tpm: float | None,
    concurrency: int | None,
    **more: Any,
) -> None:
    """Make a key for NAME and show it, this once."""
    quota = quota_changes(
        requests_per_minute=KEEP if rpm is None else rpm,
        tokens_per_minute=KEEP if tpm is None else tpm,
        concurrency=KEEP if concurrency is None else concurrency,
    )

    async def making(broker: Broker) -> tuple[str, ApiKey]:
        secret, key = await KeyStore(broker).add(name, KeyRole(role), **more)
        if quota:
            await Operations(broker).set_quota(key.app, quota)
        return secret, key

    secret, key = _ask(url, making)
    if as_json:
        output.print_json({"key": secret, **_plain(key)})
        return
    output.say(secret)
    output.aside(f"It is shown this once. `sollol keys revoke {key.id}` makes it void.")


@keys.command()
@click.argument("name", metavar="NAME|ID")
@fabric_options
def revoke(url: str, as_json: bool, name: str) -> None:
    """Make all keys of a name, or the one with that id, void at once."""
    revoked = _ask(url, lambda broker: KeyStore(broker).revoke(name))
    if not revoked:
        raise InvalidJob(f"no valid key is called {name!r}: `sollol keys` lists them")
    if as_json:
        output.print_json([_plain(key) for key in revoked])
    else:
        output.say(f"void: {', '.join(f'{key.id} ({key.name})' for key in revoked)}")


def _ask(url: str, question: Callable[[Broker], Awaitable[T]]) -> T:
    async def asking() -> T:
        broker = Broker(parse(url, environ=os.environ), name="sollol-keys")
        try:
            await broker.open()
            return await question(broker)
        finally:
            await broker.close()

    return asyncio.run(asking())


def _list(url: str, *, as_json: bool) -> None:
    found = _ask(url, lambda broker: KeyStore(broker).all())
    if as_json:
        output.print_json([_plain(key) for key in found])
    elif found:
        output.print_table(_COLUMNS, [_row(key) for key in found])
    else:
        output.say("No API keys.")
        output.aside("`sollol keys add NAME` makes one")


def _plain(key: ApiKey) -> dict[str, Any]:
    """Without the digest, which only Redis needs."""
    return {"id": key.id, **{name: value for name, value in asdict(key).items() if name != "digest"}}


def _row(key: ApiKey) -> tuple[Cell | str, ...]:
    left = key.expires - time.time()
    state = (
        Cell("revoked", "red")
        if key.revoked
        else "valid"
        if not key.expires
        else Cell("expired", "red")
        if left <= 0
        else f"{duration(left)} left"
    )
    models = ", ".join(key.models) or "all"
    return key.id, Cell(key.name, "bold"), key.role.value, key.app, models, f"≤ {key.most_priority}", state
