"""Shows a job's answer while it comes, and leaves the job alone when the watcher goes."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sollol_broker.errors import SollolError
from sollol_broker.outcome import Routing
from sollol_client import Answer, Job

from . import output
from .failures import Interrupted
from .units import count

# A warm model answers sooner; whoever looks at a silent terminal wants to know why.
_SILENCE_SECONDS = 3.0
# Between two looks at what is being done for a job, such as forming a group of nodes for its model.
_NOTE_SECONDS = 0.5


def follow(job: Job, *, as_json: bool) -> None:
    """Show the answer as it comes, then where it came from.

    Raises:
        Interrupted: Ctrl-C; the job goes on.
        SollolError: the job ended without an answer.
    """
    try:
        if as_json:
            output.print_json(answer_fields(job.id, job.result()))
            return
        with _told_why_it_waits(job) as heard:
            answer = _stream(job, heard)
    except KeyboardInterrupt:
        raise Interrupted(job.id) from None
    output.aside(routing_line(answer.routing))


def answer_fields(job_id: str, answer: Answer) -> dict[str, object]:
    """An answer as plain data: Ollama's fields, and ours beside them."""
    ours = {"text": answer.text, "job": job_id, "routing": answer.routing.as_dict()}
    return {**answer, **ours}


def routing_line(routing: Routing) -> str:
    """Where an answer came from and what it took, on one line."""
    parts = [routing.node, routing.worker, f"waited {routing.queue_wait_ms:,.0f} ms"]
    if routing.first_token_ms:
        parts.append(f"first token {routing.first_token_ms:,.0f} ms")
    if routing.tokens_per_second:
        parts.append(f"{routing.tokens_per_second:,.1f} tokens/s")
    else:
        parts.append(f"took {routing.run_ms:,.0f} ms")
    parts.append(f"attempt {routing.attempt}")
    return " · ".join(parts)


def _stream(job: Job, heard: threading.Event) -> Answer:
    line_is_open = thinks = False
    try:
        for piece in job:
            heard.set()
            if piece.thinking and sys.stderr.isatty():
                output.aside(piece.thinking, end="")
                thinks = True
            if piece:
                if thinks:
                    output.aside("\n")
                    thinks = False
                output.write_answer(piece)
                line_is_open = not piece.endswith("\n")
        answer = job.result()
    finally:
        if line_is_open or thinks:
            output.write_answer("\n")
    for each in (*answer.embeddings, *answer.results):
        output.write_answer(json.dumps(each) + "\n")
    return answer


@contextmanager
def _told_why_it_waits(job: Job) -> Iterator[threading.Event]:
    """On a terminal: one line on what a job waits for, if nothing has come after a few seconds."""
    heard = threading.Event()

    def tell() -> None:
        if heard.wait(_SILENCE_SECONDS) or job.done():
            return
        try:
            before = job.position()
        except (SollolError, RuntimeError):
            return
        if before is None:
            output.aside(
                f"job {job.id} is running, its first text is not there yet: the model may have to be loaded"
            )
        else:
            output.aside(f"job {job.id} waits in line, {count(before, 'job')} before it")

    def tell_notes() -> None:
        told = ""
        while not heard.wait(_NOTE_SECONDS) and not job.done():
            if job.note != told:
                told = job.note
                output.aside(told)

    if sys.stderr.isatty():
        threading.Thread(target=tell, name="sollol-patience", daemon=True).start()
    threading.Thread(target=tell_notes, name="sollol-notes", daemon=True).start()
    try:
        yield heard
    finally:
        heard.set()
