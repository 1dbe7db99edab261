"""The command `sollol-gateway`."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from pathlib import Path

import click
import uvicorn
from starlette.applications import Starlette

from sollol_broker.configured import configured
from sollol_broker.errors import InvalidJob
from sollol_broker.listeners import listen
from sollol_broker.live_log import USUAL_SAMPLE, sample_of
from sollol_broker.program import log_to_stderr, one_line_errors
from sollol_broker.tracing import set_up
from sollol_broker.url import DEFAULT_URL, parse

from ..aio import AsyncClient
from .app import build
from .config import DEFAULT_PORT, GatewayConfig
from .webhook_signing import secret_bytes

log = logging.getLogger(__name__)

# How long open streams may go on after SIGTERM; their jobs go on in any case.
_GRACE_SECONDS = 10
# Workers are told by the environment: it can hold a password, and only this user reads it.
_PREFIX = "SOLLOL_GATEWAY_"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--redis", "redis_url", envvar="SOLLOL_REDIS_URL", default=DEFAULT_URL, show_default=True,
              metavar="URL", help="The fabric's Redis.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Where to listen. Anything but this machine alone asks every caller for an API key.")  # fmt: skip
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535),
              help="11434 stands in for Ollama.")  # fmt: skip
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), metavar="N",
              help="Processes.")  # fmt: skip
@click.option("--api-keys", "keys", is_flag=True, help="Ask for an API key on this machine, too.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME[:PORT]",
              help="Another name under which it is reached; may be repeated.")  # fmt: skip
@click.option("--allow-origin", "origins", multiple=True, metavar="URL",
              help="Pages of this site may call; may be repeated.")  # fmt: skip
@click.option("--max-body-mib", default=64, show_default=True, type=click.IntRange(1, 1024),
              help="Of one request.")  # fmt: skip
@click.option("--max-file-mib", default=128, show_default=True, type=click.IntRange(1, 4096),
              help="Of one uploaded file; an application has room for eight such.")  # fmt: skip
@click.option("--max-requests", default=2048, show_default=True, type=click.IntRange(1),
              help="Under way at once, per process.")  # fmt: skip
@click.option("--dashboard", default="http://127.0.0.1:8080/", show_default=True, metavar="URL",
              help="Where /api/dashboard leads.")  # fmt: skip
@click.option("--allow-webhook-host", "webhook_hosts", multiple=True, metavar="NAME",
              help="Webhooks may go there though it is not on the internet; may be repeated.")  # fmt: skip
@click.option("--webhook-secret-file", type=click.Path(), metavar="FILE",
              help="With what stands in it, webhooks are signed.")  # fmt: skip
@click.option("--max-documents", default=10_000, show_default=True, type=click.IntRange(1, 1_000_000),
              help="Of one batch.")  # fmt: skip
@click.option("--log-sample", default=str(USUAL_SAMPLE), show_default=True,
              metavar="SHARE|off",
              help="Share of the info lines that go to the live log (`sollol logs`); errors always do.")  # fmt: skip
@click.option("--fabric-metrics", is_flag=True,
              help="At /metrics tell of the whole fabric, too, as a coordinator does.")  # fmt: skip
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=0, show_default=True, metavar="PORT",
              help="Where Prometheus reads /metrics without an API key; 0 = nowhere.")  # fmt: skip
@click.option("--metrics-host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="The address for that port.")  # fmt: skip
@click.option("--insecure", is_flag=True, envvar="SOLLOL_INSECURE",
              help="Take a Redis on the network that asks for no password.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Log each request.")
def main(
    redis_url: str,
    host: str,
    port: int,
    workers: int,
    keys: bool,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    max_body_mib: int,
    max_file_mib: int,
    max_requests: int,
    dashboard: str,
    webhook_hosts: tuple[str, ...],
    webhook_secret_file: str | None,
    max_documents: int,
    log_sample: str,
    fabric_metrics: bool,
    metrics_port: int,
    metrics_host: str,
    insecure: bool,
    verbose: bool,
) -> None:
    """Serve the fabric over HTTP, with the APIs of Ollama and OpenAI.

    Applications set their base URL to it and get queueing, routing and failover. It keeps nothing: start as many as you
    like, on as many machines.
    """
    log_to_stderr(verbose=False)
    with one_line_errors():
        url = parse(redis_url, environ=os.environ)
        if not insecure:
            url.refuse_open()
        config = GatewayConfig(
            host=host,
            port=port,
            keys=keys,
            hosts=hosts,
            origins=origins,
            max_body_bytes=max_body_mib * 1024 * 1024,
            max_file_bytes=max_file_mib * 1024 * 1024,
            max_requests=max_requests,
            dashboard=dashboard,
            webhook_hosts=webhook_hosts,
            webhook_secret=_secret_in(webhook_secret_file),
            max_documents=max_documents,
            log_sample=sample_of(log_sample),
            fabric_metrics=fabric_metrics,
            metrics_host=metrics_host,
            metrics_port=metrics_port,
        )
        # uvicorn listens by itself, and would say that it cannot in the midst of its own lines.
        with listen(host, port):
            if metrics_port:
                listen(metrics_host, metrics_port, flag="--metrics-port").close()
        asyncio.run(_reach(redis_url))
    os.environ["SOLLOL_REDIS_URL"] = redis_url
    os.environ[f"{_PREFIX}CONFIG"] = config.to_json()
    with tempfile.TemporaryDirectory(prefix="sollol-gateway-") as shared:
        if workers > 1:  # they count together
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared
        _serve(config, workers, verbose=verbose)


def _secret_in(file: str | None) -> str:
    """Raises InvalidJob: it cannot be read, or will not do."""
    if file is None:
        return ""
    try:
        text = Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise InvalidJob(
            f"--webhook-secret-file: {file} cannot be read", field="webhook_secret_file"
        ) from None
    secret_bytes(text)
    return text


async def _reach(redis_url: str) -> None:
    """Raises BrokerUnavailable here, where it is one line, and not in each process."""
    async with AsyncClient(redis_url, app="gateway"):
        pass


def _serve(config: GatewayConfig, workers: int, *, verbose: bool) -> None:
    """Until a signal."""
    where = f"{config.host}:{config.port}, " + ("with API keys" if config.needs_keys else "for this machine")
    log.info("gateway on %s", where)
    uvicorn.run(
        "sollol_client.gateway.cli:worker_app",
        factory=True,
        host=config.host,
        port=config.port,
        workers=workers if workers > 1 else None,
        log_config=None,
        access_log=verbose,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )


def worker_app() -> Starlette:
    """The app of one process; of several, each is a new one and has no log yet."""
    log_to_stderr(verbose=False)
    set_up(os.environ, service="sollol-gateway")
    config = GatewayConfig.from_json(os.environ[f"{_PREFIX}CONFIG"])
    return build(config, AsyncClient(app="gateway", metadata={"port": config.port}))


configured("gateway", main)

if __name__ == "__main__":
    main()
