"""`sollol bench run`: your fabric beside the same LLM servers without it."""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from typing import Any
from urllib.parse import urlsplit

import click

from sollol.speed import Way, compare, direct_client, directly, servers_of, through_fabric
from sollol_broker.url import is_loopback
from sollol_broker.version import VERSION
from sollol_broker.views import NodeView
from sollol_client import AsyncClient

from . import output
from .options import APP, fabric_options
from .output import Cell, Column

_COLUMNS = tuple(
    Column(name, "right") for name in ("ANSWERS", "/S", "TOKENS/S", "FIRST", "P95", "WHOLE", "P95", "FAILED")
)


@click.command(short_help="Measure your fabric beside its LLM servers without it.")
@click.option("-m", "--model", required=True, help="A chat model of the fabric.")
@click.option("-n", "--requests", "requests", type=click.IntRange(1, 100_000), default=20, show_default=True,
              metavar="N", help="Each way.")  # fmt: skip
@click.option("-c", "--at-once", type=click.IntRange(1, 1000), default=4, show_default=True, metavar="N",
              help="So many are under way at a time.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(1, 100_000), default=64, show_default=True, metavar="N",
              help="The longest answer.")  # fmt: skip
@click.option("--direct", "urls", multiple=True, metavar="URL",
              help="An LLM server to ask without the fabric; may be repeated.  [default: the fabric's own, as far as "
                   "they are on this machine or listen on the network]")  # fmt: skip
@fabric_options
def run(
    url: str, as_json: bool, model: str, requests: int, at_once: int, tokens: int, urls: tuple[str, ...]
) -> None:
    """Ask a model through the fabric, then its LLM servers directly, one after the other in turn.

    All ways get the same number of requests, in the same run; so look at the ratios: a loaded machine lies.
    """
    for each in urls:
        if urlsplit(each).scheme not in ("http", "https") or not urlsplit(each).hostname:
            raise click.UsageError(f"--direct {each!r}: a URL is needed, e.g. http://127.0.0.1:11434")
    told = asyncio.run(_measure(url, model, requests, at_once, tokens, urls))
    if as_json:
        output.print_json(told)
    else:
        _show(told)


async def _measure(
    url: str, model: str, requests: int, at_once: int, tokens: int, urls: tuple[str, ...]
) -> dict[str, Any]:
    async with AsyncClient(url, app=APP, cache=False) as client, direct_client() as http:
        nodes = await client.nodes()
        servers = await servers_of(urls or _addresses(nodes), model)
        if urls and len(servers) < len(set(urls)):
            missing = sorted(
                set(urls) - {each.url for each in servers} - {f"{each.url}/" for each in servers}
            )
            raise click.UsageError(
                f"--direct {missing[0]}: no LLM server with OpenAI's API has {model!r} there"
            )
        ways = [(Way("fabric"), through_fabric(client, model, tokens))]
        if servers:
            ways.append((Way(f"{len(servers)} in turn" if len(servers) > 1 else "direct"),
                         directly(http, servers, tokens)))  # fmt: skip
        if len(servers) > 1:
            ways.append((Way("the first alone"), directly(http, servers[:1], tokens)))
        await compare(ways, requests, at_once)
    return {
        "model": model,
        "requests": requests,
        "at_once": at_once,
        "tokens": tokens,
        "servers": [each.url for each in servers],
        "machine": _machine(),
        "nodes": {node.name: _hardware(node) for node in nodes},
        "ways": [_row(way) for way, _ in ways],
    }


def _addresses(nodes: list[NodeView]) -> list[str]:
    """Of the fabric's LLM servers that can be reached from here."""
    found = []
    for node in nodes:
        for backend in (each for worker in node.workers for each in worker.backends):
            parts = urlsplit(str(backend.get("url", "")))
            is_here = node.host in (socket.gethostname(), platform.node())
            if parts.scheme in ("http", "https") and (is_here or not is_loopback(parts.hostname or "")):
                found.append(parts.geturl())
    return found


def _row(way: Way) -> dict[str, Any]:
    return {
        "way": way.name,
        "answers": len(way.answers),
        "failed": dict(way.failed),
        "answers_per_second": round(way.per_second, 3),
        "tokens_per_second": round(way.tokens_per_second, 2),
        "first_seconds": {"p50": way.first_seconds(0.5), "p95": way.first_seconds(0.95)},
        "whole_seconds": {"p50": way.whole_seconds(0.5), "p95": way.whole_seconds(0.95)},
    }


def _machine() -> str:
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {system}, SOLLOL {VERSION}"


def _hardware(node: NodeView) -> str:
    told = node.hardware
    gpus = [str(gpu.get("name", "GPU")) for gpu in told.get("gpus", ())]
    return ", ".join([*gpus, str(told.get("cpu_model") or "CPU"), f"{told.get('cpu_count', '?')} cores"])


def _show(told: dict[str, Any]) -> None:
    output.print_table(
        (Column("WAY"), *_COLUMNS),
        [
            (
                Cell(each["way"], "bold"),
                f"{each['answers']:,}",
                f"{each['answers_per_second']:.2f}",
                f"{each['tokens_per_second']:,.1f}",
                *(
                    _ms(each[what][share])
                    for what in ("first_seconds", "whole_seconds")
                    for share in ("p50", "p95")
                ),
                ", ".join(f"{count} {why}" for why, count in each["failed"].items()) or "-",
            )
            for each in told["ways"]
        ],
    )
    fabric, *others = told["ways"]
    for other in others:
        if fabric["tokens_per_second"] and other["tokens_per_second"]:
            ratio = fabric["tokens_per_second"] / other["tokens_per_second"]
            output.say(f"fabric / {other['way']}: {ratio:.2f} x the tokens per second")
    if not others:
        output.say("None of its LLM servers can be asked from here: name one with --direct URL to compare.")
    output.aside(
        f"{told['requests']} requests each way, {told['at_once']} at once; the client ran on {told['machine']}"
    )
    for name, hardware in told["nodes"].items():
        output.aside(f"{name}: {hardware}")


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.0f} ms"
