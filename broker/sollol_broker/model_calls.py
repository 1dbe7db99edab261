"""What an admin asks the LLM server of a node about its models: show, pull, push, create, copy, delete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .broker import Broker
from .codec import pack, unpack
from .errors import InvalidJob

# The paths that may be called, with Ollama's names and methods.
PATHS: Final = {
    "/api/show": "POST",
    "/api/pull": "POST",
    "/api/push": "POST",
    "/api/create": "POST",
    "/api/copy": "POST",
    "/api/delete": "DELETE",
}
# A worker that lives reads its calls at once.
_WAIT_MS = 60_000
# A verbose `show` lists the whole vocabulary.
_MOST_BYTES = 16 * 1024 * 1024
_MOST_ITEMS = 2_000_000


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call to one worker's LLM server.

    Attributes:
        id: a repeated call is carried out once. path: one of PATHS. reply_to: inbox of whoever waits for it.
    """

    id: str
    path: str
    body: Mapping[str, Any]
    reply_to: str


@dataclass(frozen=True, slots=True)
class CallReply:
    """What has come of a call.

    Attributes:
        lines: what the server has said since the last reply.
        status: 0 = it is still at it; else the HTTP status of its end.
        error: in the server's words, where it failed.
    """

    lines: tuple[dict[str, Any], ...] = ()
    status: int = 0
    error: str = ""


async def send_call(broker: Broker, worker: str, call: ModelCall) -> bool:
    """Put a call to a worker; False: it is gone. Safe to repeat.

    Raises:
        NotAllowed: our user may not.
    """
    data = pack({"path": call.path, "body": dict(call.body), "reply_to": call.reply_to})
    return bool(await broker.link.call(*broker.command("call", worker, call.id, data, _WAIT_MS)) == 1)


async def read_call(broker: Broker, call_id: str) -> ModelCall | None:
    """The call that an inbox has told of; None: it has run out.

    Raises:
        InvalidJob: it is none that this release knows.
    """
    found = await broker.link.call("GET", broker.keys.call(call_id))
    if found is None:
        return None
    data = unpack(found, max_bytes=_MOST_BYTES)
    try:
        call = ModelCall(call_id, str(data["path"]), data["body"], str(data["reply_to"]))
    except (KeyError, TypeError) as error:
        raise InvalidJob(f"a call that is not understood here: {error}") from error
    if call.path not in PATHS or not isinstance(call.body, dict):
        raise InvalidJob(f"no call to {call.path} is made here")
    return call


async def send_call_reply(broker: Broker, call: ModelCall, reply: CallReply) -> bool:
    """Say what has come of a call; False: nobody waits for it any more."""
    kind = "progress" if not reply.status else "failed" if reply.error else "done"
    data = pack({"lines": list(reply.lines), "status": reply.status, "error": reply.error})
    return bool(await broker.link.call(*broker.command("reply", call.reply_to, call.id, kind, data)) == 1)


def call_reply(entry: Mapping[bytes, bytes]) -> CallReply:
    """From an inbox.

    Raises:
        InvalidJob: it is none.
    """
    try:
        data = unpack(entry[b"d"], max_bytes=_MOST_BYTES, max_items=_MOST_ITEMS)
        return CallReply(tuple(data["lines"]), int(data["status"]), str(data["error"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidJob(f"a reply that is not understood here: {error}") from error
