"""The command group: knows every command by name, and imports one only when it is asked for.

So `sollol --help` is quick, and works when an extra is missing. Whatever goes wrong in a command becomes
one line and an exit code here, in one place.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

# Where the context keeps what --config names.
CONFIG = "sollol.config"
EXIT_CODES = """\
Exit codes:
  0    it worked
  1    something unexpected; SOLLOL_DEBUG=1 shows where
  2    the command line or the job makes no sense
  3    Redis cannot be reached or used
  4    no node serves the model
  5    the job, or an item of a batch, ended without an answer (failed, cancelled, dead, lost)
  6    no room for the job now: queue full, or quota used up
  7    too late: a deadline or a timeout passed
  130  interrupted by Ctrl-C
`sollol doctor` has its own: 0 all is well, 1 warnings, 2 errors."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A command: where it lives and what the overview says of it.

    Attributes:
        module: the file in this folder. attribute: the command in it.
        extra: what to install when an import of it fails.
        takes_config: whether the configuration file is read first; False where a bad one must not be in the way.
    """

    section: str
    module: str
    attribute: str
    help: str
    extra: str = "cli"
    takes_config: bool = True


ENTRIES = {
    "up": Entry("Begin", "up", "up", "Start Redis, a worker and a gateway here, until Ctrl-C.", "local"),
    "demo": Entry("Begin", "demo", "demo", "See it work from start to end, with real models.", "local"),
    "doctor": Entry("Begin", "doctor", "doctor", "Check Redis, workers and backends; say what to do."),
    "setup-llama-cpp": Entry(
        "Begin", "setup_llama_cpp", "setup_llama_cpp", "Find llama.cpp, or build it; try it out.", "worker"
    ),
    "discover": Entry(
        "Begin", "discover", "discover", "Find LLM servers on a network; front them.", "worker"
    ),
    "install-service": Entry(
        "Begin", "services", "install_service", "Have systemd run a worker, gateway, coordinator or page."
    ),
    "install-gpu-reporter": Entry(
        "Begin",
        "services",
        "install_gpu_reporter",
        "Have systemd tell the fabric of this machine's hardware.",
    ),
    "config": Entry(
        "Begin", "config", "config", "Show, check and begin the file of settings.", takes_config=False
    ),
    "completion": Entry(
        "Begin",
        "completion",
        "completion",
        "Let the shell complete commands and options.",
        takes_config=False,
    ),
    "chat": Entry("Ask", "chat", "chat", "Ask a model and watch the answer come."),
    "submit": Entry("Ask", "submit", "submit", "Hand in a job and get its id at once."),
    "batch": Entry("Ask", "batch", "batch", "Embed or answer a whole file; list, show, cancel such batches."),
    "warm": Entry("Ask", "warm", "warm", "Bring models into memory before they are asked."),
    "attach": Entry("Ask", "submit", "attach", "Follow a job that was handed in before."),
    "cancel": Entry("Ask", "jobs", "cancel", "Stop a job, waiting or running."),
    "nodes": Entry("Look", "nodes", "nodes", "The machines; cordon, drain and set them."),
    "models": Entry("Look", "models", "models", "The models, and who serves them."),
    "groups": Entry("Look", "groups", "groups", "Nodes that serve a large model together; dissolve them."),
    "queues": Entry("Look", "queues", "queues", "What waits and runs, per model."),
    "jobs": Entry("Look", "jobs", "jobs", "The latest jobs, or one of them."),
    "apps": Entry("Look", "apps", "apps", "The applications, and what became of their jobs."),
    "explain": Entry("Look", "explain", "explain", "Why a job is where it is, node by node."),
    "top": Entry("Look", "top", "top", "Watch it all: nodes, queues, speeds, what is wrong."),
    "logs": Entry("Look", "logs", "logs", "What workers, gateways and coordinators say, live."),
    "stats": Entry("Look", "stats", "stats", "Totals since the fabric began, per node too."),
    "limits": Entry("Steer", "limits", "limits", "What may be handed in: queues, quotas of applications."),
    "acl": Entry("Steer", "acl", "acl", "Write users for Redis, one per role, with few rights."),
    "bench": Entry("Steer", "bench", "bench", "Measure; record what was asked, and replay it."),
    "keys": Entry("Steer", "keys", "keys", "API keys: who may do what over HTTP."),
    "dead": Entry("Steer", "dead", "dead", "Jobs that killed their workers: list, retry, drop."),
}


class MissingExtra(click.ClickException):
    """A command needs a package that is not installed."""

    def __init__(self, command: str, package: str, extra: str) -> None:
        super().__init__(
            f"`sollol {command}` needs {package}, which is not installed: pip install 'sollol[{extra}]'"
        )

    def show(self, file: Any = None) -> None:
        """One line on stderr."""
        from .output import complain

        complain(self.message)


class LazyGroup(click.Group):
    """Imports a command when it is asked for, and turns errors into a line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of the overview."""
        return list(ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command.

        Raises:
            MissingExtra: it needs a package that is not installed.
        """
        entry = ENTRIES.get(cmd_name)
        if entry is None:
            return None
        try:
            command = getattr(import_module(f".{entry.module}", __package__), entry.attribute)
        except ModuleNotFoundError as error:
            raise _missing(error, cmd_name) from None
        assert isinstance(command, click.Command)  # noqa: S101  # the table above is ours
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, without importing a command."""
        for section in dict.fromkeys(entry.section for entry in ENTRIES.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(name, each.help) for name, each in ENTRIES.items() if each.section == section]
                )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a misspelt one gets a hint."""
        if args and not args[0].startswith("-") and args[0] not in ENTRIES:
            near = difflib.get_close_matches(args[0], ENTRIES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        name, command, rest = super().resolve_command(ctx, args)
        if (
            name
            and command
            and ENTRIES[name].takes_config
            and not ctx.resilient_parsing
            and not _wants_help(rest)
        ):
            _configure(ctx, name, command)
        return name, command, rest

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands by the table, without importing them."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=each.help)
            for name, each in ENTRIES.items()
            if name.startswith(incomplete)
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember whether JSON is wanted, before anything can go wrong, and which file of settings."""
        ctx.meta["sollol.json"] = _wants_json(args)
        ctx.meta[CONFIG], args = _config_of(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error ends it with one line and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise
        except click.ClickException as error:
            _print_json_error(ctx, {"error": type(error).__name__, "message": error.format_message()})
            raise
        except ModuleNotFoundError as error:
            if _is_debug():
                raise
            missing = _missing(error, ctx.invoked_subcommand or "")
            _print_json_error(ctx, {"error": type(missing).__name__, "message": str(missing)})
            raise missing from None
        except (Exception, KeyboardInterrupt) as error:
            if _is_debug() or getattr(error, "errno", None) == errno.EPIPE:
                raise
            ctx.exit(_complain(ctx, error))


def _complain(ctx: click.Context, error: BaseException) -> int:
    """Tell what went wrong; gives the exit code."""
    from . import failures
    from .output import complain

    _print_json_error(ctx, failures.as_dict(error))
    if isinstance(error, KeyboardInterrupt):
        click.echo(f"\n{error if str(error) else 'interrupted'}", err=True)
    else:
        complain(failures.message(error))
    return failures.exit_code(error)


def _missing(error: ModuleNotFoundError, command: str) -> Exception:
    return missing_extra(error, command, ENTRIES[command].extra) if command in ENTRIES else error


def missing_extra(error: ModuleNotFoundError, command: str, extra: str) -> Exception:
    """What to raise for a module that is not there; one of our own is a mistake of ours."""
    package = (error.name or "").partition(".")[0]
    return error if package.startswith("sollol") else MissingExtra(command, package, extra)


def _print_json_error(ctx: click.Context, error: dict[str, Any]) -> None:
    if ctx.meta.get("sollol.json"):
        from .output import print_json

        print_json(error)


def _wants_json(args: Sequence[str]) -> bool:
    own = list(args)[: list(args).index("--")] if "--" in args else args
    return "--json" in own


def _wants_help(args: Sequence[str]) -> bool:
    return any(each in ("-h", "--help") for each in args)


def _config_of(args: Sequence[str]) -> tuple[str | None, list[str]]:
    """What --config names, wherever it stands, and the arguments without it."""
    own = list(args)[: list(args).index("--")] if "--" in args else list(args)
    rest = list(args)[len(own) :]
    for index, word in enumerate(own):
        if word == "--config" and index + 1 < len(own):
            return own[index + 1], [*own[:index], *own[index + 2 :], *rest]
        if word.startswith("--config="):
            return word.partition("=")[2], [*own[:index], *own[index + 1 :], *rest]
    return None, list(args)


def _configure(ctx: click.Context, name: str, command: click.Command) -> None:
    from sollol_broker.configured import apply, defaults, name_options

    config = apply(ctx, ctx.meta[CONFIG])
    name_options(name, command)
    ctx.default_map = {name: defaults(ctx, config, name, command)}


def _is_debug() -> bool:
    return os.environ.get("SOLLOL_DEBUG", "") not in ("", "0")


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from sollol_broker.version import VERSION

        click.echo(f"sollol {VERSION}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    epilog=f"\b\n{EXIT_CODES}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
              help="Show the version and exit.")  # fmt: skip
@click.option("--config", type=click.Path(), expose_value=False, metavar="FILE",
              help="The file of settings.  [default: $SOLLOL_CONFIG, else the first that is there of ./sollol.toml, "
              "~/.config/sollol/sollol.toml, /etc/sollol/sollol.toml]")  # fmt: skip
def app() -> None:
    """Every GPU, Mac and CPU box on the network pulls the LLM jobs it does best, through one Redis.

    Each command takes --redis URL (default: $SOLLOL_REDIS_URL, else redis://127.0.0.1:6379/0) to say which
    fabric is meant, and --json where something is shown.
    """
