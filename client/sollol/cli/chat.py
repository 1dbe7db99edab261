"""`sollol chat`: one question, one answer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from sollol_broker.errors import NoNodeForModel
from sollol_broker.words import JobKind

from . import output
from .following import follow
from .options import fabric_options, job_options, open_client

if TYPE_CHECKING:
    from sollol_broker.registry import ModelView


@click.command()
@click.argument("question")
@click.option(
    "-m", "--model", metavar="NAME", help="Default: the one model that can chat; the loaded one of several."
)
@click.option("--system", metavar="TEXT", help="How the model should behave.")
@click.option("--no-stream", is_flag=True, help="Show the answer when it is whole.")
@job_options
@fabric_options
def chat(
    url: str,
    as_json: bool,
    question: str,
    model: str | None,
    system: str | None,
    no_stream: bool,
    priority: int,
    options: dict[str, Any],
    timeout: float | None,
    deadline: float | None,
) -> None:
    """Ask a model a QUESTION and watch the answer come. "-" reads the question from stdin.

    The answer goes to stdout, everything else to stderr. Ctrl-C leaves the job running and says how to find
    it again.

    \b
    sollol chat "Why is the sky blue?"
    git diff | sollol chat - --system "Review this change."
    """
    text = sys.stdin.read() if question == "-" else question
    if not text.strip():
        raise click.BadParameter("the question is empty.", param_hint="'QUESTION'")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    backend: dict[str, Any] = {"options": options} if options else {}
    with open_client(url) as client:
        if model is None:
            model, why = choose_model(client.models())
            output.aside(f"model {model}{why}")
        job = client.submit(
            model=model,
            chat=messages,
            stream=not (no_stream or as_json),
            priority=priority,
            timeout=timeout,
            deadline=deadline,
            **backend,
        )
        follow(job, as_json=as_json)


def choose_model(models: list[ModelView]) -> tuple[str, str]:
    """A model that can chat, and why it was this one.

    1. The only one there is.
    2. Of several, the first that some node has in memory.
    3. Else the first.

    Raises:
        NoNodeForModel: there is none.
    """
    able = [model for model in models if JobKind.CHAT in model.kinds]
    if not able:
        known = ", ".join(model.name for model in models)
        raise NoNodeForModel(
            f"no node serves a model that can chat, only {known}: load one into Ollama or llama-server"
            if known
            else "no worker serves a model here: `sollol up` starts one on this machine, "
            "`sollol-worker --redis URL` joins from another; `sollol doctor` looks for the reason"
        )
    if len(able) == 1:  # 1
        return able[0].name, ""
    chosen = next((model for model in able if model.loaded_on), able[0])  # 2, 3
    others = ", ".join(model.name for model in able if model is not chosen)
    loaded = "in memory; " if chosen.loaded_on else ""
    return chosen.name, f" ({loaded}--model chooses another: {others})"
