"""The command `sollol-worker`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from sollol_broker.announce import ANY, find
from sollol_broker.configured import configured
from sollol_broker.errors import BackendError, BrokerUnavailable
from sollol_broker.live_log import USUAL_SAMPLE, sample_of
from sollol_broker.program import log_to_stderr, one_line_errors
from sollol_broker.tracing import set_up
from sollol_broker.url import DEFAULT_URL, BrokerUrl, parse

from .agent import Agent
from .backends import connect
from .backends.protocol import Backend
from .config import WorkerConfig
from .finder import Finder
from .hardware import HardwareReader
from .hardware.limits import Limits
from .metrics import WorkerMetrics
from .model_files import ModelFiles
from .own_servers import OwnModel, OwnServers, too_large
from .reporter import Reporter
from .rpc.desk import GroupSettings

log = logging.getLogger(__name__)
T = TypeVar("T")

# Long enough for a machine that has just got its network; systemd starts us again after that.
_FIND_SECONDS = 30.0
_STRENGTH = (
    click.core.ParameterSource.COMMANDLINE,
    click.core.ParameterSource.ENVIRONMENT,  # what a file says for all commands comes this way, too
    click.core.ParameterSource.DEFAULT_MAP,
    click.core.ParameterSource.DEFAULT,
)
_NO_BACKEND = (
    "found no LLM server on this machine: start Ollama or llama-server, name one with --backend URL, or give a model "
    "file with --model FILE.gguf; looking again every 15 s"
)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    url: BrokerUrl
    config: WorkerConfig
    backends: tuple[str, ...]
    models: tuple[OwnModel, ...]
    api_key: str | None
    directories: tuple[Path, ...]
    searches: bool
    address: str
    limits: Limits
    only_reports: bool
    metrics: tuple[str, int] | None = None


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--redis", "redis_url", envvar="SOLLOL_REDIS_URL", default=DEFAULT_URL, show_default=True,
              metavar="URL",
              help="The fabric's Redis: redis://, rediss://, unix://, redis+sentinel:// or "
              "redis+cluster://.")  # fmt: skip
@click.option("--find", "find_fabric", is_flag=False, flag_value=ANY, default="", metavar="[FABRIC]",
              help="Look for a fabric that is announced on this network (mDNS), instead of --redis.")  # fmt: skip
@click.option("--backend", "backends", multiple=True, metavar="URL",
              help="An LLM server to front; may be repeated. Default: look for Ollama, llama-server and "
              "OpenAI-compatible servers here. A prefix ollama+, llama+ or openai+ says which it is.")  # fmt: skip
@click.option("--model", "models", multiple=True, metavar="[NAME=]FILE.gguf",
              help="Start a llama-server of our own for this file; may be repeated.")  # fmt: skip
@click.option("--models-dir", "directories", multiple=True, metavar="DIR",
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="GGUF files of which a group of nodes may be formed when they are too large for one; may be "
              "repeated. Ollama's store is looked through anyway.")  # fmt: skip
@click.option("--no-search", is_flag=True,
              help="Without --backend and --model: serve nothing, and only take part in groups of nodes.")  # fmt: skip
@click.option("--report-only", is_flag=True,
              help="Take no jobs: only tell the fabric of this machine's hardware, for a worker elsewhere that fronts "
              "its LLM server.")  # fmt: skip
@click.option("--ram", "ram_mib", type=click.IntRange(min=0), metavar="MIB",
              help="Main memory that models may use at most.")  # fmt: skip
@click.option("--vram", "vram_mib", type=click.IntRange(min=0), metavar="MIB",
              help="Memory of the GPUs that models may use at most.")  # fmt: skip
@click.option("--address", default="", metavar="IP", show_default="the one from which Redis is reached",
              help="Where other nodes of a group reach this one; nothing listens there otherwise.")  # fmt: skip
@click.option("--node", default=platform.node().split(".")[0] or "node", show_default="host name", metavar="NAME",
              help="This machine's name in the fabric.")  # fmt: skip
@click.option("--elsewhere", default="", metavar="HOST",
              help="The backends stand on another machine, this one: nothing is said of our own hardware.")  # fmt: skip
@click.option("--slots", type=click.IntRange(min=1), metavar="N",
              help="Jobs at once. Default: as many as the backends have.")  # fmt: skip
@click.option(
    "--label", "labels", multiple=True, metavar="WORD", help="A word that jobs may require; may be repeated."
)
@click.option("--lease", "lease_seconds", type=click.FloatRange(min=0.5), default=10.0, show_default=True,
              metavar="SECONDS", help="Without a sign of life for so long, our jobs go to others.")  # fmt: skip
@click.option("--drain", "drain_seconds", type=click.FloatRange(min=0), default=30.0, show_default=True,
              metavar="SECONDS",
              help="On SIGTERM, time for running jobs to end before they are handed back.")  # fmt: skip
@click.option("--log-sample", default=str(USUAL_SAMPLE), show_default=True,
              metavar="SHARE|off",
              help="Share of the info lines that go to the live log (`sollol logs`); errors always do.")  # fmt: skip
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=0, show_default=True, metavar="PORT",
              help="Where Prometheus reads what this worker counts, at /metrics; 0 = nowhere.")  # fmt: skip
@click.option("--metrics-host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="The address for that port.")  # fmt: skip
@click.option("--insecure", is_flag=True, envvar="SOLLOL_INSECURE",
              help="Take a Redis on the network that asks for no password.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Say more.")
def main(
    redis_url: str,
    find_fabric: str,
    backends: tuple[str, ...],
    models: tuple[str, ...],
    directories: tuple[Path, ...],
    no_search: bool,
    report_only: bool,
    ram_mib: int | None,
    vram_mib: int | None,
    address: str,
    node: str,
    elsewhere: str,
    slots: int | None,
    labels: tuple[str, ...],
    lease_seconds: float,
    drain_seconds: float,
    log_sample: str,
    metrics_port: int,
    metrics_host: str,
    insecure: bool,
    verbose: bool,
) -> None:
    """Join a SOLLOL fabric: pull jobs from Redis and run them on this machine's LLM servers.

    Only Redis has to be known; the worker connects outward, and opens no port unless it joins a group.
    SIGTERM or Ctrl-C drains: it claims nothing more, lets running jobs end, and hands back what is
    left. A second signal hands back at once.

    The password of Redis may come from SOLLOL_REDIS_PASSWORD, SOLLOL_REDIS_PASSWORD_FILE or the URL's
    ?password_file=PATH instead of the URL. SOLLOL_BACKEND_API_KEY is sent to the backends.
    """
    log_to_stderr(verbose=verbose, chatty=("httpx", "httpcore", "asyncio"))
    set_up(os.environ, service="sollol-worker")
    with one_line_errors():
        if find_fabric and _is_to_find():
            redis_url = asyncio.run(_announced(find_fabric))
        url = parse(redis_url, environ=os.environ)
        if not insecure:
            url.refuse_open()
        options = Options(
            url=url,
            config=WorkerConfig(
                node=node,
                slots=slots,
                labels=labels,
                lease_seconds=lease_seconds,
                drain_seconds=drain_seconds,
                log_sample=sample_of(log_sample),
                elsewhere=elsewhere,
            ),
            backends=backends,
            models=tuple(OwnModel.parse(each, slots=slots) for each in models),
            api_key=os.environ.get("SOLLOL_BACKEND_API_KEY"),
            directories=directories,
            searches=not (backends or models or no_search),
            address=address,
            limits=Limits(vram_mib=vram_mib, ram_mib=ram_mib),
            only_reports=report_only,
            metrics=(metrics_host, metrics_port) if metrics_port else None,
        )
        asyncio.run(_run(options))


async def _run(options: Options) -> None:
    stopping = _Stop()
    hardware = HardwareReader(limits=options.limits)
    if options.only_reports:
        await _report(options, hardware, stopping)
        return
    large = too_large(options.models, await asyncio.to_thread(hardware.read))
    for model in large:
        log.info("%s is too large for this machine: a group of nodes may serve it", model.shown_name)
    servers = OwnServers([model for model in options.models if model not in large])
    groups = GroupSettings(
        files=ModelFiles({model.shown_name: model.path for model in options.models}, options.directories),
        address=options.address,
        on_reserve=servers.pause,
        on_end=servers.resume,
    )
    try:
        backends: list[Backend] = list(await stopping.unless(servers.start()))
        for url in options.backends:
            backends.append(await _named(url, options.api_key))
        agent = Agent(options.url, options.config, backends, hardware=hardware, groups=groups)
        agent.live.capture()
        finder = None
        if options.searches:
            finder = Finder(
                agent.add_backend,
                ollama_host=os.environ.get("OLLAMA_HOST"),
                ollama_nodes=os.environ.get("OLLAMA_NODES"),
            )
            if not await finder.look():
                log.warning(_NO_BACKEND)
        metrics = _metrics(agent, options.metrics)
        await agent.start()
        if finder is not None:
            finder.start()
        try:
            await stopping.first.wait()
            log.info("draining: running jobs may end within %.0f s", options.config.drain_seconds)
        finally:
            if metrics is not None:
                await asyncio.to_thread(metrics.stop)
            if finder is not None:
                await finder.stop()
            leaving = asyncio.create_task(agent.stop())
            hurrying = asyncio.create_task(stopping.second.wait())
            await asyncio.wait({leaving, hurrying}, return_when=asyncio.FIRST_COMPLETED)
            if not leaving.done():
                agent.hurry()
            await leaving
            hurrying.cancel()
    except _Stopped:
        pass
    finally:
        await servers.stop()


async def _report(options: Options, hardware: HardwareReader, stopping: _Stop) -> None:
    if options.backends or options.models or options.config.elsewhere:
        raise ValueError(
            "--report-only takes no jobs, so --backend, --model and --elsewhere have no meaning with it"
        )
    reporter = Reporter(options.url, options.config, hardware=hardware)
    try:
        await stopping.unless(reporter.start())
        await stopping.first.wait()
    except _Stopped:
        pass
    finally:
        await reporter.stop()


def _is_to_find() -> bool:
    """Whether --find counts beside --redis: what is said at the stronger place does, then what is said of this alone.

    Raises:
        ValueError: both are typed.
    """
    context = click.get_current_context()
    find_at, redis_at = (
        _STRENGTH.index(context.get_parameter_source(name)) for name in ("find_fabric", "redis_url")
    )
    if find_at == redis_at == 0:
        raise ValueError("--find and --redis both say where Redis is: give one")
    return find_at <= redis_at


async def _announced(fabric: str) -> str:
    """The URL of a fabric that is announced here; raises BrokerUnavailable."""
    log.info("listening for a fabric that is announced on this network")
    found = await find(fabric, seconds=_FIND_SECONDS, only_tls=bool(os.environ.get("SOLLOL_REDIS_CA")))
    log.info("found fabric %s at %s", found.fabric, found.url)
    has_password = any(os.environ.get(f"SOLLOL_REDIS_{each}") for each in ("PASSWORD", "PASSWORD_FILE"))
    if "password" in found.needs and not has_password:
        raise BrokerUnavailable(
            f"the fabric at {found.url} asks for a password: give it in SOLLOL_REDIS_PASSWORD or "
            "SOLLOL_REDIS_PASSWORD_FILE (and its user, if it has users, in SOLLOL_REDIS_USERNAME)",
            refused=True,
        )
    if has_password and not found.has_tls:
        log.warning(
            "the password goes unencrypted to whoever announced %s: use this on networks you trust", found.url
        )
    return found.url


def _metrics(agent: Agent, where: tuple[str, int] | None) -> WorkerMetrics | None:
    if where is None:
        return None
    metrics = WorkerMetrics(agent, host=where[0], port=where[1])
    metrics.start()
    return metrics


async def _named(url: str, api_key: str | None) -> Backend:
    try:
        return await connect(url, api_key)
    except BackendError as error:
        raise BackendError(f"--backend {url}: {error}") from error


class _Stopped(Exception):
    """A signal came before there was anything to drain."""


class _Stop:
    """SIGTERM and SIGINT: the first asks to drain, the second to hurry."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows has no such handlers
                loop.add_signal_handler(number, self._signalled)

    async def unless(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work`, but give it up at the first signal."""
        task, signalled = asyncio.ensure_future(work), asyncio.ensure_future(self.first.wait())
        await asyncio.wait({task, signalled}, return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise _Stopped

    def _signalled(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


configured("worker", main)

if __name__ == "__main__":
    main()
