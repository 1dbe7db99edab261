"""The command `sollol-coordinator`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import click

from sollol_broker.announce import Announcer
from sollol_broker.configured import configured
from sollol_broker.live_log import USUAL_SAMPLE, sample_of
from sollol_broker.program import log_to_stderr, one_line_errors
from sollol_broker.prometheus import serve
from sollol_broker.url import DEFAULT_URL, parse

from .decide import Rules
from .service import Coordinator, CoordinatorConfig


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--redis", "redis_url", envvar="SOLLOL_REDIS_URL", default=DEFAULT_URL, show_default=True,
              metavar="URL", help="The fabric's Redis, as for sollol-worker.")  # fmt: skip
@click.option("--lease", "lease_seconds", type=click.FloatRange(min=0.5), default=5.0, show_default=True,
              metavar="SECONDS",
              help="A leader without a sign of life for so long is replaced.")  # fmt: skip
@click.option("--idle", "idle_seconds", type=click.FloatRange(min=1), default=600.0, show_default=True,
              metavar="SECONDS", help="A group that nobody uses for so long is dissolved.")  # fmt: skip
@click.option("--context", "context_tokens", type=click.IntRange(min=256), default=4096, show_default=True,
              metavar="TOKENS", help="Context of each slot of a group.")  # fmt: skip
@click.option("--slots", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Jobs at once on a group.")  # fmt: skip
@click.option("--metrics", "metrics_address", default="127.0.0.1:9090", show_default=True,
              metavar="HOST:PORT", help="Where Prometheus reads; \"off\" for nowhere.")  # fmt: skip
@click.option("--log-sample", default=str(USUAL_SAMPLE), show_default=True,
              metavar="SHARE|off",
              help="Share of the info lines that go to the live log (`sollol logs`); errors always do.")  # fmt: skip
@click.option("--announce", is_flag=True,
              help="Tell the local network where Redis is (mDNS), for `sollol-worker --find`.")  # fmt: skip
@click.option("--insecure", is_flag=True, envvar="SOLLOL_INSECURE",
              help="Take a Redis on the network that asks for no password.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
def main(
    redis_url: str,
    lease_seconds: float,
    idle_seconds: float,
    context_tokens: int,
    slots: int,
    metrics_address: str,
    announce: bool,
    log_sample: str,
    insecure: bool,
    verbose: bool,
) -> None:
    """Look after a SOLLOL fabric: rescue jobs of dead workers, and form groups of nodes for large models.

    A job for a model that fits no node is enough: its file must lie on one of them (in Ollama's store, or
    in a --models-dir of its worker), and enough of them must have llama.cpp with RPC. Several coordinators
    may run; one leads. Small models need none.

    The password of Redis may come from SOLLOL_REDIS_PASSWORD, SOLLOL_REDIS_PASSWORD_FILE or the URL's
    ?password_file=PATH instead of the URL.
    """
    log_to_stderr(verbose=verbose, chatty=("asyncio", "rq"))
    rules = Rules(idle_seconds=idle_seconds, context_tokens=context_tokens, slots=slots)
    with one_line_errors():
        url = parse(redis_url, environ=os.environ)
        if not insecure:
            url.refuse_open()
        announcer = Announcer(url) if announce else None
        coordinator = Coordinator(
            CoordinatorConfig(redis_url, lease_seconds, rules, log_sample=sample_of(log_sample))
        )
        coordinator.live.capture()
        _show_metrics(coordinator, metrics_address)
        asyncio.run(_run(coordinator, announcer))


async def _run(coordinator: Coordinator, announcer: Announcer | None) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows has no such handlers
            loop.add_signal_handler(number, stopped.set)
    await coordinator.start()
    try:
        async with announcer or contextlib.nullcontext():
            await stopped.wait()
    finally:
        await coordinator.stop()


def _show_metrics(coordinator: Coordinator, address: str) -> None:
    if address == "off":
        return
    host, found, port = address.rpartition(":")
    if not found or not port.isdigit():
        raise ValueError(f"--metrics {address}: give HOST:PORT, such as 127.0.0.1:9090, or off")
    serve(coordinator.metrics.registry, host.strip("[]"), int(port), flag="--metrics")


configured("coordinator", main)

if __name__ == "__main__":
    main()
