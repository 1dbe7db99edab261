"""Gives a command of click its settings from `sollol.toml` and the environment. Only command lines import this."""

from __future__ import annotations

import os
from typing import IO, Any, TypeVar

import click

from .config_file import ConfigError, ConfigFile, Value, fill, load
from .settings import BY_KEY

C = TypeVar("C", bound=click.Command)
_HELP = (
    "Settings; see `sollol config`.  [default: $SOLLOL_CONFIG, ./sollol.toml, ~/.config/sollol, /etc/sollol]"
)


class BadConfig(click.ClickException):
    """The configuration makes no sense; one line, and the exit code of a bad command line."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """One line on stderr."""
        click.echo(f"error: {self.message}", err=True)


def configured(section: str, command: C) -> C:
    """Add --config to a command, and let the options of its table come from the environment and the file, too.

    Args:
        section: the command's table in the file.
    """
    name_options(section, command)
    command.params.append(
        click.Option(
            ["--config"],
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=lambda ctx, param, value: _take(ctx, section, value),
            help=_HELP,
        )
    )
    return command


def name_options(section: str, command: click.Command) -> None:
    """Give each option of a table its name in the environment."""
    for param in command.params:
        setting = BY_KEY.get(f"{section}.{key_of(param)}")
        if setting is not None and param.envvar is None:
            param.envvar = list(setting.names)


def key_of(param: click.Parameter) -> str:
    """The name of an option in the file: that of its long flag."""
    flags = [each for each in param.opts if each.startswith("--")]
    return flags[0].removeprefix("--").replace("-", "_") if flags else ""


def apply(ctx: click.Context, given: str | None) -> ConfigFile:
    """Read the file, and let what all commands share stand in the environment until the context ends.

    Raises:
        BadConfig: the file makes no sense.
    """
    try:
        config = load(given, os.environ)
    except ConfigError as error:
        raise BadConfig(str(error)) from None
    before = dict(os.environ)
    filled = fill(config, os.environ)
    ctx.find_root().call_on_close(lambda: _undo(filled, before))
    return config


def defaults(ctx: click.Context, config: ConfigFile, section: str, command: click.Command) -> dict[str, Any]:
    """What the file says of a command's options, by their names in Python.

    Raises:
        BadConfig: an option does not take its value.
    """
    told, found = config.section(section), {}
    for param in command.params:
        key = key_of(param)
        if param.name and key in told:
            found[param.name] = _cast(ctx, param, told[key], f"{config.path}: [{section}] {key}")
    return found


def _take(ctx: click.Context, section: str, given: str | None) -> None:
    if ctx.resilient_parsing:
        return
    config = apply(ctx, given)
    ctx.default_map = {**(ctx.default_map or {}), **defaults(ctx, config, section, ctx.command)}


def _cast(ctx: click.Context, param: click.Parameter, value: Value, where: str) -> Value:
    try:
        param.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise BadConfig(f"{where}: {error.message}") from None
    return value


def _undo(filled: list[str], before: dict[str, str]) -> None:
    for name in filled:
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]
