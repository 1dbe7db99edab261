"""What a job was asked: for operators of a page that was started with --show-prompts, and for nobody else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sollol_broker.broker import Broker
from sollol_broker.envelope import Envelope
from sollol_broker.errors import JobLost

_MOST_CHARS = 20_000


async def read_prompt(broker: Broker, job_id: str) -> str:
    """The text of a request, as long as Redis has it: until the job ends; a dead letter keeps it.

    Raises:
        JobLost: it is not kept (any more). KeyMissing: it is encrypted, and the page has no key for it.
    """
    data = await broker.link.call("HGET", broker.keys.blob(job_id), "env")
    if data is None:
        raise JobLost("what it asked is not kept any more: Redis has it until the job ends")
    payload = Envelope.from_bytes(broker.seal.open(bytes(data), job_id, "envelope")).payload
    text = prompt_text(payload)
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}…"


def prompt_text(payload: Mapping[str, Any]) -> str:
    """A request in words: its messages, its prompt, or its texts; pictures are left out."""
    messages = payload.get("messages")
    if isinstance(messages, list):
        return "\n\n".join(_message(each) for each in messages if isinstance(each, Mapping))
    for name in ("prompt", "input", "query"):
        value = payload.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list):
            return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in value)
    return ""


def _message(message: Mapping[str, Any]) -> str:
    content = message.get("content", "")
    return f"{message.get('role', '')}: {content if isinstance(content, str) else json.dumps(content)}"
