"""`sollol discover`: finds servers on a network that one names, and lets workers here front them."""

from __future__ import annotations

import asyncio
import platform
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict
from types import FrameType

import click

from sollol_broker.announce import Announcement, listen
from sollol_broker.errors import SollolError
from sollol_broker.listeners import own_addresses

from ..adopt import Adopted, Workers, plan
from ..docker_engine import published
from ..docker_ip_resolver import docker_hosts, get_deployment_context, resolve_docker_ip_with_alternatives
from ..scan import AT_ONCE, PORTS, RATE, Found, Pace, addresses, ports, scan
from . import output
from .options import fabric_options, open_client
from .output import Cell, Column
from .units import count

_COLUMNS = (
    Column("ADDRESS"),
    Column("SERVER"),
    Column("VERSION"),
    Column("LATENCY", "right"),
    Column("MODELS", folds=True),
)
_NAMES = {"rpc": "rpc-server", "gateway": "SOLLOL gateway", "locked": "locked"}
_STYLES = {"locked": "yellow", "gateway": "dim"}
_CHECK_SECONDS = 1.0
_LISTEN_SECONDS = 3.0


@click.command()
@click.option("--subnet", "subnets", multiple=True, metavar="CIDR",
              help="What to look through, such as 192.168.1.0/24, or one address; may be repeated.")  # fmt: skip
@click.option("--docker", "of_docker", is_flag=True, help="Look at the containers of this machine's Docker.")
@click.option("--fabrics", is_flag=True,
              help="Only listen for fabrics that are announced on this network (mDNS).")  # fmt: skip
@click.option("--ports", "port_list", metavar="LIST", default=",".join(map(str, PORTS)), show_default=True,
              help="Ports to try; ranges such as 50050-50060 as well.")  # fmt: skip
@click.option("--timeout", default=0.5, show_default=True, type=click.FloatRange(0.01, 30), metavar="SECONDS",
              help="For a connection.")  # fmt: skip
@click.option("--rate", default=RATE, show_default=True, type=click.FloatRange(1, 2000), metavar="N",
              help="Connections begun per second.")  # fmt: skip
@click.option("--concurrency", default=AT_ONCE, show_default=True, type=click.IntRange(1, 512), metavar="N",
              help="Connections tried at once.")  # fmt: skip
@click.option("--adopt", is_flag=True,
              help="Front what was found: one worker here for each host, until Ctrl-C.")  # fmt: skip
@fabric_options
def discover(
    url: str,
    as_json: bool,
    subnets: tuple[str, ...],
    of_docker: bool,
    fabrics: bool,
    port_list: str,
    timeout: float,
    rate: float,
    concurrency: int,
    adopt: bool,
) -> None:
    """Find Ollama, llama-server, OpenAI-compatible and llama.cpp rpc-servers on a network that you name.

    Nothing is looked through that is not named, and no API key is shown to anybody. With --adopt, workers on this
    machine front the LLM servers that no worker fronts yet; each host is a node of its own, named by its address.
    """
    if fabrics:
        _show_fabrics(asyncio.run(listen(_LISTEN_SECONDS)), as_json=as_json)
        return
    if not (subnets or of_docker):
        near = " ".join(f"--subnet {each.rpartition('.')[0]}.0/24" for each in own_addresses())
        hint = f", such as {near}" if near else ""
        raise click.UsageError(f"Say what to look through: --subnet CIDR{hint}, --docker, or --fabrics.")
    wanted = ports(port_list)
    targets = [(host, port) for host in addresses(subnets) for port in wanted]
    targets += _containers(wanted, timeout) if of_docker else []
    if not as_json:
        output.aside(f"looking at {count(len(targets), 'port')}, at most {rate:g} a second")
    found = asyncio.run(scan(targets, timeout_seconds=timeout, pace=Pace(rate=rate, at_once=concurrency)))
    known = [each for each in found if each.kind != "unknown"]
    if not adopt:
        _show(found, known, as_json=as_json)
        return
    with open_client(url) as client:
        nodes = client.nodes()
    start, served = plan(known, nodes, own=own_addresses(), own_host=platform.node())
    if as_json:
        output.print_json(
            {
                "found": [asdict(each) for each in known],
                "served": served,
                "adopted": [asdict(a) for a in start],
            }
        )
    else:
        _show(found, known, as_json=False)
        for where, node in served.items():
            output.say(f"{where} is served already, by node {node}")
    _front(url, start, quiet=as_json)


def _show_fabrics(heard: Sequence[Announcement], *, as_json: bool) -> None:
    if as_json:
        output.print_json([asdict(each) for each in heard])
    elif not heard:
        output.say(
            "No fabric is announced here: `sollol-coordinator --announce` or `sollol up --announce` does so."
        )
    else:
        rows = [(each.fabric, each.url, ", ".join(each.needs) or "nothing") for each in heard]
        output.print_table((Column("FABRIC"), Column("REDIS"), Column("NEEDS")), rows)


def _containers(wanted: Sequence[int], timeout: float) -> list[tuple[str, int]]:
    """Where the containers' ports are reached from here: as themselves, as published, or at the host of ours."""
    context = get_deployment_context()
    told = published()
    if told is None and not context["is_docker"]:
        raise SollolError(
            "there is no Docker here that we may ask: does it run, and may this user read /var/run/docker.sock?"
        )
    if told is None:
        return [(host, port) for host in docker_hosts(context) for port in wanted]
    targets = []
    for each in told:
        if each.port in wanted:
            targets += resolve_docker_ip_with_alternatives(
                each.address, each.port, timeout, deployment_context=context
            )[:1]
    return targets


def _show(found: Sequence[Found], known: Sequence[Found], *, as_json: bool) -> None:
    if as_json:
        output.print_json([asdict(each) for each in known])
        return
    if known:
        output.print_table(_COLUMNS, [_row(each) for each in known])
    else:
        output.say("No server was found.")
    if others := len(found) - len(known):
        output.aside(f"{count(others, 'other server')} there: none of these kinds")
    if any(each.kind == "rpc" for each in known):
        output.aside(
            "rpc-servers are no nodes: run sollol-worker on their machines, which starts fresh ones for each group"
        )


def _row(each: Found) -> tuple[str | Cell, ...]:
    name = Cell(_NAMES.get(each.kind, each.kind), _STYLES.get(each.kind, ""))
    said = ", ".join(each.models) or each.note or "none"
    return f"{each.host}:{each.port}", name, each.version or "-", f"{each.latency_ms:.1f} ms", said


def _front(url: str, start: Sequence[Adopted], *, quiet: bool) -> None:
    if not start:
        if not quiet:
            output.say("Nothing is left to front.")
        return
    signal.signal(signal.SIGTERM, _interrupt)
    workers = Workers(url, start)
    try:
        if not quiet:
            for each in start:
                output.say(f"node {each.node} fronts {', '.join(each.backends)}")
            output.say("Ctrl-C ends these workers. To keep them:")
            for each in start:
                name = each.node.replace(".", "-").replace(":", "-")
                output.say(f"  sollol install-service worker --name {name} -- {shlex.join(each.arguments)}")
        while True:
            time.sleep(_CHECK_SECONDS)
            workers.check()
    except KeyboardInterrupt:
        if not quiet:
            output.aside("draining")
    finally:
        workers.stop()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
