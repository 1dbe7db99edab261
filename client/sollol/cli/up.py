"""`sollol up`: a fabric on this machine, in the foreground, until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from types import FrameType

import click
from rich.console import Console

from sollol_broker.listeners import own_addresses
from sollol_broker.url import parse
from sollol_client import Client
from sollol_worker_agent.backends import find_local

from ..local import ALL_MINILM, SMOLLM2, all_minilm, cache_directory, smollm2
from ..local.announced import HOW_TO_JOIN, announced, lan_password, password_path
from ..local.fabric import LocalFabric, free_port

_CHECK_SECONDS = 1.0
_DEFAULT_PORT = 6379
_GATEWAY_PORT = 8000
_DASHBOARD_PORT = 8080
# What an extra brings, by its name.
_PACKAGES = {"gateway": ("starlette", "uvicorn", "prometheus_client"), "page": ("flask", "waitress")}


@click.command()
@click.option("--redis", "redis_url", envvar="SOLLOL_REDIS_URL", metavar="URL",
              help="Use this Redis instead of a private one.")  # fmt: skip
@click.option("--port", default=_DEFAULT_PORT, show_default=True, type=click.IntRange(1, 65535),
              help="Port of the private Redis on 127.0.0.1; a free one is taken when it is in use.")  # fmt: skip
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(min=1), help="Worker agents to start."
)
@click.option("--model", "models", multiple=True, metavar="[NAME=]FILE.gguf",
              help="Serve this model file; may be repeated. Default: the LLM servers found on this machine, "
              "else two small models.")  # fmt: skip
@click.option("--gateway-port", default=_GATEWAY_PORT, show_default=True, type=click.IntRange(0, 65535),
              help="Port of the gateway on 127.0.0.1; a free one when it is in use; 0 = no gateway.")  # fmt: skip
@click.option("--dashboard-port", default=_DASHBOARD_PORT, show_default=True, type=click.IntRange(0, 65535),
              help="Port of the monitoring page on 127.0.0.1; a free one when it is in use; 0 = no page.")  # fmt: skip
@click.option("--announce", is_flag=True,
              help="Let workers of the local network join with `sollol-worker --find` (mDNS): the private Redis "
              "listens there, too, and asks for a password.")  # fmt: skip
def up(
    redis_url: str | None,
    port: int,
    workers: int,
    models: tuple[str, ...],
    gateway_port: int,
    dashboard_port: int,
    announce: bool,
) -> None:
    """Start a private Redis, a worker, a gateway and the monitoring page here, and keep them running until Ctrl-C."""
    console = Console(highlight=False, stderr=True)
    # SIGTERM (systemd, docker stop) ends it as Ctrl-C does: in order.
    signal.signal(signal.SIGTERM, _interrupt)
    if not models:
        models = _default_models(console)
    is_open = announce and not redis_url
    fabric = LocalFabric(
        redis_url=redis_url,
        password=lan_password() if is_open else None,
        listen=own_addresses() if is_open else (),
        directory=None if redis_url else cache_directory() / "redis",
        port=None if redis_url else free_port(port),
        workers=workers,
        models=tuple(_named(model) for model in models),
        gateway_port=free_port(gateway_port) if gateway_port and _has(console, "gateway") else None,
        dashboard_port=free_port(dashboard_port) if dashboard_port and _has(console, "page") else None,
        progress=lambda said: console.print(f"[dim]…[/] {said}"),
    )
    try:
        with fabric:
            is_default = not redis_url and fabric.url.endswith(f"127.0.0.1:{_DEFAULT_PORT}/0")
            with announced(fabric.url) if announce else nullcontext():
                _summary(console, fabric, is_default=is_default, is_open=is_open)
                if is_open:
                    console.print(HOW_TO_JOIN.format(path=password_path()), markup=False, soft_wrap=True)
                console.print("Ctrl-C stops everything.")
                while True:
                    time.sleep(_CHECK_SECONDS)
                    fabric.check()
    except KeyboardInterrupt:
        console.print("stopped: nothing is left running")


def _has(console: Console, extra: str) -> bool:
    if all(find_spec(package) for package in _PACKAGES[extra]):
        return True
    console.print(f"no {extra}, since it is not installed: pip install 'sollol\\[{extra}]'")
    return False


def _default_models(console: Console) -> tuple[str, ...]:
    found = asyncio.run(_local_servers())
    if found:
        console.print(f"found {', '.join(found)} on this machine")
        return ()
    console.print("no Ollama, llama-server or OpenAI-compatible server found here: serving two small models")
    return (f"{SMOLLM2}={smollm2()}", f"{ALL_MINILM}={all_minilm(cache_directory())}")


async def _local_servers() -> list[str]:
    backends = await find_local(
        ollama_host=os.environ.get("OLLAMA_HOST"), ollama_nodes=os.environ.get("OLLAMA_NODES")
    )
    for backend in backends:
        await backend.close()
    return [f"{backend.kind} at {backend.url}" for backend in backends]


def _named(model: str) -> str:
    _, found, path = model.rpartition("=")
    return model if found else f"{os.path.basename(path).removesuffix('.gguf').lower()}={path}"


def _summary(console: Console, fabric: LocalFabric, *, is_default: bool, is_open: bool) -> None:
    with Client(fabric.url, app="sollol-up") as client:
        served = client.models()
        nodes = client.nodes()
    console.print("\n[bold green]The fabric is up.[/]")
    console.print(f"  Redis    {parse(fabric.url)}")
    for node in nodes:
        for worker in node.workers:
            console.print(f"  worker   {worker.id} on node {node.name}, {worker.slots} slots")
    for model in served:
        console.print(f"  model    {model.name} ({', '.join(model.kinds)})")
    if fabric.gateway_url:
        console.print(f"  gateway  {fabric.gateway_url} (the APIs of Ollama, OpenAI and Anthropic)")
    if fabric.dashboard_url:
        console.print(f"  page     {fabric.dashboard_url} (in a browser: what every machine does)")
    console.print(f"  logs     {fabric.logs}\n")
    url = parse(fabric.url)
    shown = replace(url, username=None, password=None)
    setting = "" if is_default else f"export SOLLOL_REDIS_URL={shown}\n  "
    if is_open:
        setting += f"export SOLLOL_REDIS_PASSWORD_FILE={password_path()}\n  "
    console.print(f'Try in another terminal:\n  {setting}sollol chat "Hello"\n  sollol nodes\n')


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
