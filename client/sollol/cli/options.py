"""Options that several commands share, and the client that they name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sollol_broker.url import DEFAULT_URL
from sollol_broker.words import Priority

if TYPE_CHECKING:
    from sollol_client import Client

F = TypeVar("F", bound=Callable[..., Any])

# As the fabric shows this command among its applications.
APP = "sollol-cli"


@contextmanager
def open_client(url: str) -> Iterator[Client]:
    """A client of the fabric at `url`."""
    from sollol_client import Client

    with Client(url, app=APP) as client:
        yield client


def fabric_options(command: F) -> F:
    """--redis and --json."""
    redis = click.option(
        "--redis",
        "url",
        metavar="URL",
        envvar="SOLLOL_REDIS_URL",
        callback=_from_group,
        default=DEFAULT_URL,
        help=f"The fabric's Redis.  [default: $SOLLOL_REDIS_URL, else {DEFAULT_URL}]",
    )
    as_json = click.option(
        "--json", "as_json", is_flag=True, callback=_from_group, help="Print JSON and nothing else."
    )
    return redis(as_json(command))


def job_options(command: F) -> F:
    """--priority, --option, --timeout and --deadline."""
    seconds = click.FloatRange(min=0, min_open=True)
    options = (
        click.option(
            "--priority",
            callback=priority_value,
            default="normal",
            show_default=True,
            metavar="0-10|NAME",
            help=f"How soon: {', '.join(f'{each.name.lower()}={each.value}' for each in Priority)}.",
        ),
        click.option(
            "--option",
            "options",
            callback=options_value,
            multiple=True,
            metavar="KEY=VALUE",
            help="For the model, with Ollama's names: temperature=0, num_predict=64. May be repeated.",
        ),
        click.option("--timeout", type=seconds, metavar="SECONDS", help="How long the backend may take."),
        click.option(
            "--deadline",
            type=seconds,
            metavar="SECONDS",
            help="From now; after that the answer is worthless.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _from_group(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """What stands before the name of a subcommand holds for the subcommand, unless that has its own."""
    name, typed = param.name or "", click.core.ParameterSource.COMMANDLINE
    group = ctx.parent
    if (
        group is None
        or ctx.get_parameter_source(name) is typed
        or group.get_parameter_source(name) is not typed
    ):
        return value
    return group.params.get(name, value)


def priority_value(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """A priority by its number or its name."""
    text = value.strip()
    if text.upper() in Priority.__members__:
        return int(Priority[text.upper()])
    if text.isascii() and text.isdigit() and int(text) <= 10:
        return int(text)
    names = ", ".join(each.name.lower() for each in Priority)
    raise click.BadParameter(f"{text!r} is neither a number from 0 to 10 nor one of {names}.", ctx, param)


def options_value(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE pairs; a value that is JSON counts as that, any other is text."""
    options: dict[str, Any] = {}
    for value in values:
        key, found, text = value.partition("=")
        if not found or not key:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE, such as temperature=0.", ctx, param)
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return options
