"""`sollol demo`: the main job from start to end on this machine, with real models."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from itertools import combinations

import click
from rich.console import Console

from sollol_broker.outcome import Routing
from sollol_client import Client

from ..local import ALL_MINILM, SMOLLM2, all_minilm, cache_directory, smollm2
from ..local.fabric import LocalFabric

_QUESTION = "Name three things that people keep in a kitchen."
_SENTENCES = ("A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.")


@click.command()
@click.option("--question", default=_QUESTION, show_default=True, metavar="TEXT", help="What to ask.")
def demo(question: str) -> None:
    """Start a private fabric, ask a real model, embed three sentences, and stop everything again."""
    console = Console(highlight=False)
    began = time.monotonic()

    def progress(said: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.1f} s[/]  {said}")

    progress("finding the models")
    models = [f"{SMOLLM2}={smollm2()}", f"{ALL_MINILM}={all_minilm(cache_directory())}"]
    with LocalFabric(models=models, progress=progress) as fabric:
        progress("ready: client → Redis → worker → llama-server")
        with Client(fabric.url, app="demo") as client:
            _chat(console, client, question)
            _embed(console, client)
        progress("stopping")
    progress("everything is stopped, nothing is left running")
    console.print(
        "\nNext: [bold].venv/bin/sollol up[/] keeps a fabric running; in another terminal, "
        '[bold].venv/bin/sollol chat "Hello"[/] asks it.'
    )


def _chat(console: Console, client: Client, question: str) -> None:
    console.print(f"\n[bold]{question}[/]")
    job = client.submit(
        model=SMOLLM2, chat=question, stream=True, options={"num_predict": 80, "temperature": 0, "seed": 1}
    )
    for piece in job:
        sys.stdout.write(piece)
        sys.stdout.flush()
    console.print(f"\n[dim]{routing_line(job.result().routing)}[/]", soft_wrap=True)


def _embed(console: Console, client: Client) -> None:
    answer = client.submit(model=ALL_MINILM, embed=list(_SENTENCES)).result()
    console.print(f"\n[bold]Three sentences, {len(answer.embeddings[0])} numbers each:[/]")
    pairs = sorted(
        ((_cosine(answer.embeddings[a], answer.embeddings[b]), a, b) for a, b in combinations(range(3), 2)), reverse=True
    )
    for likeness, a, b in pairs:
        console.print(f"  {likeness:.3f}  “{_SENTENCES[a]}”  –  “{_SENTENCES[b]}”")
    _, a, b = pairs[0]
    console.print(f"The two nearest: “{_SENTENCES[a]}” and “{_SENTENCES[b]}”")
    console.print(f"[dim]{routing_line(answer.routing)}[/]\n", soft_wrap=True)


def routing_line(routing: Routing) -> str:
    """Where an answer came from and what it took, on one line."""
    parts = [
        f"node {routing.node}",
        f"worker {routing.worker}",
        f"waited {routing.queue_wait_ms:.1f} ms",
    ]
    if routing.first_token_ms:
        parts.append(f"first token {routing.first_token_ms:.0f} ms")
    if routing.tokens_per_second:
        parts.append(f"{routing.tokens_per_second:.1f} tokens/s")
    else:
        parts.append(f"took {routing.run_ms:.0f} ms")
    parts.append(f"attempt {routing.attempt}")
    return " · ".join(parts)


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
