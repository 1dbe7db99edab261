"""The command `sollol-dashboard`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from sollol_broker.alerts import QUEUE_SECONDS
from sollol_broker.configured import configured
from sollol_broker.errors import InvalidJob
from sollol_broker.program import log_to_stderr, one_line_errors
from sollol_broker.url import DEFAULT_URL, parse

from .config import DEFAULT_PORT, PageConfig, Role
from .server import Page

_MOST_PASSWORD_BYTES = 4096


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--redis", "redis_url", envvar="SOLLOL_REDIS_URL", default=DEFAULT_URL, show_default=True,
              metavar="URL", help="The fabric's Redis.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Where to listen. Anything but this machine alone asks everybody to log in.")  # fmt: skip
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535))
@click.option("--login", is_flag=True, help="Ask for a login on this machine, too.")
@click.option("--password-file", type=click.Path(path_type=Path),
              metavar="FILE",
              help="Its first line lets in, beside the fabric's API keys (`sollol keys`).")  # fmt: skip
@click.option("--password-role", type=click.Choice([role.value for role in Role]),
              default=Role.OPERATOR.value, show_default=True,
              help="What its holder may do; API keys of role admin are operators, others viewers.")  # fmt: skip
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME[:PORT]",
              help="Another name under which it is reached; may be repeated.")  # fmt: skip
@click.option("--trusted-proxy", "proxy", default="", metavar="ADDRESS",
              help="A reverse proxy that is believed when it says https; cookies are for https then.")  # fmt: skip
@click.option("--queue-age", "queue_seconds", default=QUEUE_SECONDS, show_default=True,
              type=click.FloatRange(min=1), metavar="SECONDS",
              help="Tell of queues whose first job has waited for longer.")  # fmt: skip
@click.option("--max-browsers", "most_browsers", default=64, show_default=True, type=click.IntRange(1, 1000),
              metavar="N", help="Kept up to date at the same time; each takes a thread.")  # fmt: skip
@click.option("--show-prompts", is_flag=True,
              help="Let operators read what waiting and running jobs were asked.")  # fmt: skip
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=0, show_default=True, metavar="PORT",
              help="Where Prometheus reads the fabric's figures without a login; 0 = nowhere.")  # fmt: skip
@click.option("--metrics-host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="The address for that port.")  # fmt: skip
@click.option("--insecure", is_flag=True, envvar="SOLLOL_INSECURE",
              help="Take a Redis on the network that asks for no password.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
def main(
    redis_url: str,
    host: str,
    port: int,
    login: bool,
    password_file: Path | None,
    password_role: str,
    hosts: tuple[str, ...],
    proxy: str,
    queue_seconds: float,
    most_browsers: int,
    show_prompts: bool,
    metrics_port: int,
    metrics_host: str,
    insecure: bool,
    verbose: bool,
) -> None:
    """Show the fabric in a browser: what every machine does, what waits and why, what went wrong.

    It reads Redis and keeps nothing. Its user of Redis may be the one for the role dashboard (`sollol acl`), which may
    only look; to cancel jobs and close nodes from the page, the one for the role coordinator.
    """
    log_to_stderr(verbose=verbose, chatty=("asyncio", "waitress"))
    with one_line_errors():
        if not insecure:
            parse(redis_url, environ=os.environ).refuse_open()
        config = PageConfig(
            host=host,
            port=port,
            login=login,
            password=_password(password_file),
            password_role=Role(password_role),
            hosts=hosts,
            proxy=proxy,
            queue_seconds=queue_seconds,
            most_browsers=most_browsers,
            show_prompts=show_prompts,
            metrics_host=metrics_host,
            metrics_port=metrics_port,
        )
        Page(redis_url, config).serve()


def _password(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            first = file.read(_MOST_PASSWORD_BYTES).decode().split("\n", 1)[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidJob(
            f"--password-file {path} cannot be read: {type(error).__name__}", field="password"
        ) from None
    if not first:
        raise InvalidJob(f"--password-file {path}: its first line is empty", field="password")
    return first


configured("dashboard", main)

if __name__ == "__main__":
    main()
