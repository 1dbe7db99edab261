"""`sollol config`: the file of settings. What may stand in it says sollol_broker/settings.py."""

from __future__ import annotations

import difflib
import os
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import click

from sollol_broker.config_file import NAME, ConfigError, ConfigFile, load
from sollol_broker.configured import BadConfig, defaults
from sollol_broker.settings import BY_KEY, PROGRAMS, SETTINGS, Setting

from . import output
from .app import CONFIG
from .config_shown import Shown, shown, template, unknown_names
from .output import Cell, Column
from .units import count

_COLUMNS = (Column("SETTING"), Column("VALUE", folds=True), Column("FROM", folds=True))
# Where the options of each table are.
COMMANDS = {
    "worker": ("sollol_worker_agent.cli", "main"),
    "gateway": ("sollol_client.gateway.cli", "main"),
    "coordinator": ("sollol_coordinator.cli", "main"),
    "dashboard": ("sollol_coordinator.page.cli", "main"),
    "up": ("sollol.cli.up", "up"),
}
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")


@click.group()
def config() -> None:
    """Show, check and begin the file of settings, sollol.toml.

    Flags win over the environment, the environment over the file, and the file over the defaults. `slots` in the
    table [worker] is $SOLLOL_WORKER_SLOTS and `sollol-worker --slots`; so for all.
    """


@config.command()
@click.argument("which", required=False, metavar="[TABLE|NAME]")
@_as_json
@click.pass_context
def show(ctx: click.Context, which: str | None, as_json: bool) -> None:
    """Each setting, its value now, and where that comes from; secrets are masked."""
    chosen = _chosen(which)
    file = _load(ctx)
    rows = [shown(each, file, os.environ) for each in chosen]
    if as_json:
        path = None if file.path is None else str(file.path)
        output.print_json({"file": path, "settings": [asdict(each) for each in rows]})
        return
    output.say(f"file: {file.path or 'none'}\n")
    output.print_table(_COLUMNS, [_row(each) for each in rows])


@config.command()
@_as_json
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:
    """Whether the file makes sense; exit code 2 when it does not."""
    file = _load(ctx)
    _try_options(ctx, file)
    warnings = [*_readable_secrets(file), *unknown_names(os.environ)]
    if as_json:
        path = None if file.path is None else str(file.path)
        output.print_json({"file": path, "settings": len(file.values), "warnings": warnings})
        return
    if file.path is None:
        output.say("There is no file: `sollol config init` begins one.")
    else:
        output.say(f"{file.path}: {count(len(file.values), 'setting')}, and all makes sense.")
    for each in warnings:
        output.aside(f"warning: {each}")


@config.command()
@click.option("--out", default=NAME, show_default=True, type=click.Path(path_type=Path), metavar="FILE",
              help='The new file; "-" = to stdout.')  # fmt: skip
def init(out: Path) -> None:
    """Begin a file with every setting in it, explained and commented out."""
    if str(out) == "-":
        click.echo(template(), nl=False)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # It may come to hold a password.
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise click.UsageError(f"{out} is there already: name a new file with --out.") from None
    except OSError as error:
        raise click.UsageError(f"{out} cannot be written: {error.strerror}.") from None
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(template())
    output.say(f"{out} is written. Next: take the # from what you want to set, then `sollol config check`.")


def _load(ctx: click.Context) -> ConfigFile:
    try:
        return load(ctx.find_root().meta[CONFIG], os.environ)
    except ConfigError as error:
        raise BadConfig(str(error)) from None


def _chosen(which: str | None) -> list[Setting]:
    found = [each for each in SETTINGS if which in (None, each.section, each.key)]
    if not found:
        near = difflib.get_close_matches(str(which), [*PROGRAMS, "redis", *BY_KEY], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise click.UsageError(f"There is no setting {which!r}.{hint}")
    return found


def _row(each: Shown) -> tuple[str | Cell, ...]:
    if each.value is None:
        return each.key, Cell(each.default, "dim"), Cell("default", "dim")
    value = " ".join(each.value) if isinstance(each.value, tuple) else str(each.value)
    return each.key, value, f"${each.source}" if each.origin == "environment" else each.source


def _try_options(ctx: click.Context, file: ConfigFile) -> None:
    """Let each command that is installed here look at its table."""
    for section, (module, attribute) in COMMANDS.items():
        if not file.section(section):
            continue
        try:
            command: click.Command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("sollol"):
                raise
            continue
        defaults(ctx, file, section, command)


def _readable_secrets(file: ConfigFile) -> list[str]:
    has_secret = any(BY_KEY[key].is_secret for key in file.values) or "@" in str(file.values.get("redis.url"))
    if file.path is None or not has_secret or not file.path.stat().st_mode & 0o077:
        return []
    return [f"{file.path} holds a secret, and others on this machine may read it: chmod 600 {file.path}"]
