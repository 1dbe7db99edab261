"""`sollol doctor rpc`: asks rpc-servers, or looks at the nodes of the fabric; loads nothing."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict

import click

from sollol_broker.broker import Broker
from sollol_broker.errors import InvalidJob, SollolError
from sollol_broker.link import LinkConfig
from sollol_broker.names import canonical_model
from sollol_broker.registry import Registry
from sollol_broker.url import BrokerUrl, parse
from sollol_coordinator.decide import Rules
from sollol_coordinator.fabric import FabricView
from sollol_coordinator.fabric import look as look_at_fabric
from sollol_worker_agent.rpc.machine import find_build
from sollol_worker_agent.rpc.wire import RpcReport, ask

from ..llama_cpp.model_file import find_model_file, read_facts
from . import output
from .doctor_checks import worst
from .doctor_rpc_checks import Asked, RpcFacts, examine, plan_as_data
from .doctor_show import EXIT_CODES, show
from .options import fabric_options

_PATIENCE_SECONDS = 3.0


@click.command()
@click.argument("endpoints", metavar="[HOST:PORT]…", nargs=-1)
@click.option("--model", metavar="NAME|FILE.gguf",
              help="Tell how its layers would be split, and the MiB on each device.")  # fmt: skip
@click.option("--context", type=click.IntRange(min=256), default=4096, show_default=True, metavar="TOKENS",
              help="Of the model, for the split.")  # fmt: skip
@click.option("--slots", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Requests at once, for the split.")  # fmt: skip
@fabric_options
def rpc(
    url: str, as_json: bool, endpoints: tuple[str, ...], model: str | None, context: int, slots: int
) -> None:
    """Look at rpc-servers of llama.cpp, or at what groups the nodes of the fabric could form.

    With HOST:PORT each server is asked: protocol, devices, memory, round trip, and the pace at which it takes 8 MiB.
    Without, the nodes tell what they advertise. Nothing is loaded, and nothing is left there. A server that has a
    client does not answer, and is told as busy.

    Exit codes as for `sollol doctor`.
    """
    targets = [_endpoint(each) for each in endpoints]
    facts = asyncio.run(_look(parse(url, environ=os.environ), targets, model, Rules(0.0, context, slots)))
    findings = examine(facts)
    if as_json:
        output.print_json(
            {
                "worst": worst(findings),
                "findings": [asdict(each) for each in findings],
                "endpoints": [asdict(each) for each in facts.reports],
                "split": plan_as_data(facts),
            }
        )
    else:
        show(findings)
    raise click.exceptions.Exit(EXIT_CODES[worst(findings)])


async def _look(url: BrokerUrl, targets: list[tuple[str, int]], model: str | None, rules: Rules) -> RpcFacts:
    if targets:
        # One after the other: they share the network that is measured.
        reports = [await _asked(host, port) for host, port in targets]
        own = (await find_build()).rpc_version
        asked = await asyncio.to_thread(_find, model, None)
        return RpcFacts(rules, tuple(reports), own, asked=asked)
    config = LinkConfig(connect_seconds=_PATIENCE_SECONDS, patience_seconds=_PATIENCE_SECONDS)
    broker = Broker(url, name="sollol-doctor", config=config)
    try:
        await broker.open()
        view = await look_at_fabric(broker, Registry(broker))
    except SollolError as error:
        return RpcFacts(rules, unreachable=str(error))
    finally:
        await broker.close()
    return RpcFacts(rules, view=view, asked=await asyncio.to_thread(_find, model, view))


async def _asked(host: str, port: int) -> RpcReport:
    return await ask(host, port, measures_bandwidth=True)


def _find(model: str | None, view: FabricView | None) -> Asked | None:
    """1. a file of some node, 2. a path or a model of Ollama's store here."""
    if model is None:
        return None
    try:
        name = canonical_model(model)
    except InvalidJob:
        name = model
    for node in view.nodes.values() if view is not None else ():
        if name in node.files:
            return Asked(name, node.files[name], node.name)  # 1
    path = find_model_file(model)
    return Asked(model, read_facts(path), str(path)) if path is not None else Asked(model)  # 2


def _endpoint(text: str) -> tuple[str, int]:
    host, _, port = text.removeprefix("grpc://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise click.BadParameter(f"{text!r} is not HOST:PORT, such as 127.0.0.1:50052.")
    return host.strip("[]"), int(port)
