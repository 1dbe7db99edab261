"""`sollol doctor`: looks (doctor_look.py), judges (doctor_checks.py), and tells."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict

import click

from sollol_broker.url import parse

from . import output
from .app import missing_extra
from .doctor_checks import examine, worst
from .doctor_look import look
from .doctor_show import EXIT_CODES, show
from .options import fabric_options


class _Doctor(click.Group):
    """Brings `rpc` along, which needs more packages, only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["rpc"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "rpc":
            return None
        try:
            from .doctor_rpc import rpc
        except ModuleNotFoundError as error:
            raise missing_extra(error, "doctor rpc", "worker") from None
        return rpc


@click.group(cls=_Doctor, invoke_without_command=True)
@fabric_options
@click.pass_context
def doctor(ctx: click.Context, url: str, as_json: bool) -> None:
    """Check Redis, workers and backends, and say what to do.

    It changes nothing, except that it loads SOLLOL's functions into Redis if they are missing. Each finding has
    an id that stays the same between releases; docs/doctor.md explains them all.

    Exit codes: 0 all is well, perhaps with notes, 1 there are warnings, 2 there are errors.
    """
    if ctx.invoked_subcommand is not None:
        return
    findings = examine(asyncio.run(look(parse(url, environ=os.environ))))
    if as_json:
        output.print_json({"worst": worst(findings), "findings": [asdict(each) for each in findings]})
    else:
        show(findings)
    raise click.exceptions.Exit(EXIT_CODES[worst(findings)])
