"""`sollol demo`: the main job from start to end on this machine, with real models."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from itertools import combinations

import click
from rich.console import Console

from sollol_client import Client

from ..local import ALL_MINILM, SMOLLM2, all_minilm, cache_directory, smollm2
from ..local.fabric import LocalFabric
from .following import routing_line

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
    told = zip(_SENTENCES, answer.embeddings, strict=True)
    pairs = [(_cosine(a, b), said_a, said_b) for (said_a, a), (said_b, b) in combinations(told, 2)]
    for likeness, said_a, said_b in sorted(pairs, reverse=True):
        console.print(f'  {likeness:6.3f}  "{said_a}"  and  "{said_b}"')
    _, said_a, said_b = max(pairs)
    console.print(f'The two nearest: "{said_a}" and "{said_b}"')
    console.print(f"[dim]{routing_line(answer.routing)}[/]\n", soft_wrap=True)


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
