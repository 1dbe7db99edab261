"""The lines of an OpenAI batch: from one of its input to items for the fabric, and from those to one of its output.

Pure but for the clock.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sollol_broker.errors import JobCancelled, SollolError
from sollol_broker.names import canonical_model
from sollol_broker.outcome import Routing
from sollol_broker.words import JobKind

from ..answer import Answer
from ..batch_item import BatchItem
from .asked import Asked, take_wishes
from .numbers import check_numbers
from .openai_translate import Talk, chat_talk, completion_talk, embed_asked
from .openai_wire import Completions, embed_reply
from .refusals import Refused, refusal_of
from .replies import as_json
from .shapes import error_body

# What a batch can ask, by its endpoint.
ENDPOINTS = {
    "/v1/chat/completions": JobKind.CHAT,
    "/v1/completions": JobKind.GENERATE,
    "/v1/embeddings": JobKind.EMBED,
}
MOST_LINES = 50_000
_MOST_ID = 512


class LineFault(Exception):
    """A line that makes no sense.

    Attributes:
        code, param: as OpenAI's batches tell them. line: its number, from 1; None = the whole file.
    """

    def __init__(self, code: str, message: str, *, line: int | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.line = line
        self.param = param

    def as_dict(self) -> dict[str, Any]:
        """As an entry of a batch's `errors`."""
        return {"code": self.code, "message": str(self), "param": self.param, "line": self.line}

    def all(self) -> Sequence[LineFault]:
        """It, and those that were found with it."""
        return (self,)


class Faults(LineFault):
    """Several lines that make no sense."""

    def __init__(self, faults: Sequence[LineFault]) -> None:
        super().__init__(faults[0].code, str(faults[0]))
        self._faults = faults

    def all(self) -> Sequence[LineFault]:
        """See LineFault."""
        return self._faults


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input.

    Attributes:
        asked: what it asks of the fabric: several requests where it wants several choices.
        talk: of a chat or a completion. in_base64: how vectors are wanted.
    """

    number: int
    custom_id: str
    model: str
    asked: tuple[Asked, ...]
    talk: Talk | None = None
    in_base64: bool = False

    def items(self) -> list[Any]:
        """Its items, as `AsyncClient.batch` takes them."""
        if self.talk is None:
            (asked,) = self.asked
            return list(asked.payload["input"])
        return [_without_wishes(asked.payload) for asked in self.asked]

    @property
    def shared(self) -> dict[str, Any]:
        """What all lines of a batch have to agree on: vectors are made of many lines at once."""
        if self.talk is not None:
            return {}
        return {name: v for name, v in _without_wishes(self.asked[0].payload).items() if name != "input"}

    @property
    def size(self) -> int:
        """How many items it is."""
        return len(self.asked) if self.talk is not None else len(self.asked[0].payload["input"])


class Reader:
    """Reads the lines of one input, in order: each has to fit those before it.

    Args:
        model: which all lines have to name; "" = the first one says it.
        checks_ids: whether to look for ids that occur twice.
    """

    def __init__(self, endpoint: str, model: str = "", *, checks_ids: bool = True) -> None:
        self.model = model
        self.shared: dict[str, Any] | None = None
        self._endpoint = endpoint
        self._number = 0
        self._seen: set[str] | None = set() if checks_ids else None

    def read(self, text: bytes) -> Line | None:
        """A line; None = it is empty.

        Raises:
            LineFault: it makes no sense.
        """
        self._number += 1
        if not text.strip():
            return None
        try:
            line = self._line(text)
        except Refused as error:
            raise self._fault(
                "invalid_request", str(error), f"body.{error.field}" if error.field else "body"
            ) from None
        except SollolError as error:
            raise self._fault("invalid_request", str(error), "body") from None
        if self._seen is not None:
            if line.custom_id in self._seen:
                raise self._fault("duplicate_custom_id", "custom_id: another line has the same", "custom_id")
            self._seen.add(line.custom_id)
        return line

    def _line(self, text: bytes) -> Line:
        try:
            given = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise self._fault("invalid_json_line", "this line is no JSON in UTF-8") from None
        if not isinstance(given, dict):
            raise self._fault("invalid_json_line", "a line is an object with custom_id, method, url and body")
        custom_id, body = given.get("custom_id"), given.get("body")
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MOST_ID:
            raise self._fault(
                "invalid_custom_id", f"custom_id: 1 to {_MOST_ID} characters are needed", "custom_id"
            )
        if given.get("method", "POST") != "POST":
            raise self._fault("invalid_method", "method: POST is needed", "method")
        if given.get("url") != self._endpoint:
            raise self._fault("invalid_url", f"url: {self._endpoint} is needed, as the batch says", "url")
        if not isinstance(body, dict):
            raise self._fault("invalid_request", "body: an object is needed", "body")
        if body.get("stream"):
            raise self._fault("invalid_request", "stream: answers of a batch come whole", "body.stream")
        return self._asked(custom_id, body)

    def _asked(self, custom_id: str, body: dict[str, Any]) -> Line:
        if self._endpoint == "/v1/embeddings":
            asked, in_base64 = embed_asked(body)
            line = Line(self._number, custom_id, asked.model, (asked,), None, in_base64)
        else:
            talk = (chat_talk if self._endpoint == "/v1/chat/completions" else completion_talk)(body)
            line = Line(self._number, custom_id, talk.model, talk.asked, talk)
        for each in line.asked:
            check_numbers(each.payload)
        if canonical_model(self.model or line.model) != canonical_model(line.model):
            raise self._fault(
                "mismatched_model", "model: all lines of a batch have to name the same", "body.model"
            )
        if self.shared is None:
            self.shared = line.shared
        if self.shared != line.shared:
            told = ", ".join(sorted({*self.shared, *line.shared}))
            raise self._fault(
                "mismatched_options", f"{told}: all lines of a batch have to say the same", "body"
            )
        self.model = self.model or line.model
        return line

    def _fault(self, code: str, message: str, param: str | None = None) -> LineFault:
        return LineFault(code, message, line=self._number, param=param)


def told_line(line: Line, items: Sequence[BatchItem], batch_id: str, ended: str) -> tuple[bytes, bool]:
    """A line of the output, or of the error file; and whether it is an error.

    Args:
        items: what became of the line's items; those that were not come to have JobCancelled as their error.
        ended: how the batch ended: "cancelled" and "expired" name what has become of those.
    """
    request_id = f"batch_req_{batch_id.removeprefix('batch_')}_{line.number}"
    told: dict[str, Any] = {"id": request_id, "custom_id": line.custom_id, "response": None, "error": None}
    error = next((item.error for item in items if item.error is not None), None)
    if isinstance(error, JobCancelled) and ended in ("cancelled", "expired"):
        words = {"cancelled": "the batch was cancelled", "expired": "the batch's completion_window ended"}
        told["error"] = {
            "code": f"batch_{ended}",
            "message": f"{words[ended]} before this request was answered",
        }
    elif error is not None:
        refusal = refusal_of(error)
        told["response"] = _response(refusal.status, request_id, error_body("/v1/", refusal))
    else:
        told["response"] = _response(200, request_id, _body_of(line, items, request_id))
    return as_json(told) + b"\n", error is not None


def _no_number(name: str) -> None:
    raise ValueError(name)


def _body_of(line: Line, items: Sequence[BatchItem], request_id: str) -> dict[str, Any]:
    if line.talk is not None:
        return Completions(line.talk, request_id).whole(
            [item.answer for item in items if item.answer is not None]
        )
    told = {
        "embeddings": [item.vector for item in items],
        "prompt_eval_count": sum(item.prompt_tokens for item in items),
    }
    return embed_reply(line.model, Answer(told, items[0].routing or _NOWHERE), in_base64=line.in_base64)


def _response(status: int, request_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": request_id, "body": body}


def _without_wishes(payload: Any) -> dict[str, Any]:
    return take_wishes({}, payload)[1]


_NOWHERE = Routing("", "", "", 0, "", 0.0, 0.0)
