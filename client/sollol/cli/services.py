"""`sollol install-service` and `sollol install-gpu-reporter`."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from urllib.parse import quote

import click

from sollol_broker.errors import BrokerUnavailable
from sollol_broker.url import DEFAULT_URL, parse

from ..services.install import Systemd, known_groups, program, readable
from ..services.unit import PROGRAMS, REPORTER, Service
from . import output

_SECRETS = "/etc/sollol/{name}.env"


def _common(command: click.Command) -> click.Command:
    """Options of both commands."""
    given = (
        click.Option(["--password-file"], type=click.Path(path_type=Path), metavar="FILE",
                     help="Holds the password of Redis. systemd reads it as root and hands it to the service alone: "
                     "mode 600 is right."),
        click.Option(["--name"], default="", metavar="NAME", help="Tells several of one kind apart."),
        click.Option(["--insecure"], is_flag=True, help="Take a Redis on the network that asks for no password."),
        click.Option(["--user", "of_user"], is_flag=True, help="For this user alone (systemd --user)."),
        click.Option(["--no-start"], is_flag=True, help="Only write the unit."),
        click.Option(["--dry-run"], is_flag=True, help="Only print the unit."),
        click.Option(["--uninstall"], is_flag=True, help="Stop the service and remove its unit."),
    )  # fmt: skip
    command.params.extend(given)
    return command


@click.command(short_help="Have systemd run a worker, gateway, coordinator or page.")
@click.argument("kind", type=click.Choice(list(PROGRAMS)))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS]...")
@click.option("--redis", "url", metavar="URL", envvar="SOLLOL_REDIS_URL", default=DEFAULT_URL,
              help=f"The fabric's Redis.  [default: $SOLLOL_REDIS_URL, else {DEFAULT_URL}]")  # fmt: skip
@click.pass_context
def install_service(
    ctx: click.Context,
    kind: str,
    arguments: tuple[str, ...],
    url: str,
    password_file: Path | None,
    name: str,
    insecure: bool,
    of_user: bool,
    no_start: bool,
    dry_run: bool,
    uninstall: bool,
) -> None:
    """Have systemd run one of SOLLOL's processes, now and after each start of the machine.

    It runs as a user of its own, without rights, on a read-only system, with the settings file that this command
    reads, if any. What stands behind -- goes to it:

    \b
    sollol install-service worker --redis redis://HOST:6379/0 --password-file /etc/sollol/redis-password
    sollol install-service gateway -- --host 0.0.0.0 --port 11434

    More variables, secrets among them, may stand in /etc/sollol/sollol-KIND.env (mode 600). Doing it again writes
    what has changed and nothing else.
    """
    words = (program(PROGRAMS[kind]), *arguments) if not uninstall else ()
    _do(kind, words, url, password_file, name, insecure=insecure, of_user=of_user, starts=not no_start,
        dry_run=dry_run, uninstall=uninstall, takes_url=_is_named(ctx))  # fmt: skip


@click.command(short_help="Have systemd tell the fabric of this machine's hardware.")
@click.option("--redis-host", required=True, metavar="HOST", help="Where the fabric's Redis is.")
@click.option("--port", default=6379, show_default=True, type=click.IntRange(1, 65535))
@click.option("--username", default="", metavar="NAME", help="The user of Redis, where it has users.")
@click.option("--tls", is_flag=True, help="Speak TLS to it.")
@click.option(
    "--node", default="", metavar="NAME", help="This machine's name in the fabric.  [default: host name]"
)
def install_gpu_reporter(
    redis_host: str,
    port: int,
    username: str,
    tls: bool,
    node: str,
    password_file: Path | None,
    name: str,
    insecure: bool,
    of_user: bool,
    no_start: bool,
    dry_run: bool,
    uninstall: bool,
) -> None:
    """For a machine that runs no worker: tell the fabric of its GPUs, memory and load.

    A worker elsewhere that fronts its LLM server (`sollol discover --adopt`) learns from it what the machine has.
    The service is `sollol-worker --report-only`; it takes no jobs and opens no port.
    """
    host = f"[{redis_host}]" if ":" in redis_host else redis_host
    login = f"{quote(username, safe='')}@" if username else ""
    url = f"{'rediss' if tls else 'redis'}://{login}{host}:{port}/0"
    words = () if uninstall else (
        program(PROGRAMS["worker"]), "--report-only", *(("--node", node) if node else ())
    )  # fmt: skip
    _do(REPORTER, words, url, password_file, name, insecure=insecure, of_user=of_user, starts=not no_start,
        dry_run=dry_run, uninstall=uninstall, takes_url=True)  # fmt: skip


def _do(
    kind: str,
    words: tuple[str, ...],
    url: str,
    password_file: Path | None,
    name: str,
    *,
    insecure: bool,
    of_user: bool,
    starts: bool,
    dry_run: bool,
    uninstall: bool,
    takes_url: bool,
) -> None:
    if not re.fullmatch(r"[a-zA-Z0-9_-]{0,64}", name):
        raise click.UsageError("--name: letters, digits, - and _ are allowed.")
    systemd = Systemd(of_user=of_user, say=output.say)
    service = Service(kind, words, name, of_user=of_user)
    if uninstall:
        systemd.uninstall(service.unit)
        return
    credentials, environment = _told(url, password_file, insecure=insecure, takes_url=takes_url)
    service = Service(
        kind,
        words,
        name,
        environment=environment,
        credentials=credentials,
        secrets=_SECRETS.format(name=service.unit.removesuffix(".service")) if not of_user else "",
        readable=() if of_user else readable(words),
        groups=known_groups(),
        of_user=of_user,
    )
    if dry_run:
        click.echo(service.text(), nl=False)
    else:
        if settings := credentials.get("sollol.toml"):
            output.say(f"its settings are those of {settings}")
        systemd.install(service, starts=starts)


def _told(
    url: str, password_file: Path | None, *, insecure: bool, takes_url: bool
) -> tuple[dict[str, Path], dict[str, str]]:
    """Files and variables of the service. Secrets are files only.

    Raises:
        UsageError: one would have to stand in the unit, or is missing.
    """
    credentials: dict[str, Path] = {}
    environment = {"SOLLOL_INSECURE": "1"} if insecure else {}
    place = parse(url)
    if place.password or place.sentinel_password:
        raise click.UsageError(
            "The URL holds a password, and everybody may read a unit: give it with --password-file instead."
        )
    if takes_url:
        environment["SOLLOL_REDIS_URL"] = url
    files = {
        "redis-password": ("SOLLOL_REDIS_PASSWORD_FILE", password_file),
        "payload-key": ("SOLLOL_PAYLOAD_KEY_FILE", None),
        "sollol.toml": ("SOLLOL_CONFIG", None),
    }
    for credential, (variable, given) in files.items():
        path = given or (Path(os.environ[variable]) if os.environ.get(variable) else None)
        if path is None or str(path) == os.devnull:
            continue
        _look_at(path, is_secret=credential != "sollol.toml")
        credentials[credential] = path.absolute()
        environment[variable] = f"%d/{credential}"
    if os.environ.get("SOLLOL_REDIS_PASSWORD") and "redis-password" not in credentials:
        raise click.UsageError(
            "SOLLOL_REDIS_PASSWORD is set here, but a service needs a file: write it to one (mode 600) and give it "
            "with --password-file."
        )
    if takes_url and not insecure and "redis-password" not in credentials:
        try:
            place.refuse_open()
        except BrokerUnavailable as error:
            raise click.UsageError(f"{error} (--password-file FILE)") from None
    return credentials, environment


def _look_at(path: Path, *, is_secret: bool) -> None:
    try:
        mode = path.stat().st_mode
    except PermissionError:  # root's; systemd will read it
        return
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}.") from None
    if is_secret and stat.S_IMODE(mode) & 0o077:
        output.aside(f"warning: others on this machine may read {path}: chmod 600 {path}")


def _is_named(ctx: click.Context) -> bool:
    """Whether the URL is told here, and not by the file of settings, which the service reads itself."""
    from sollol_broker.config_file import load

    if ctx.get_parameter_source("url") is click.core.ParameterSource.COMMANDLINE:
        return True
    return "redis.url" not in load(None, os.environ).values


_common(install_service)
_common(install_gpu_reporter)
