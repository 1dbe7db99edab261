"""What a job gives back: Ollama's answer with a few conveniences, and the pieces of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sollol_broker.errors import InvalidJob
from sollol_broker.outcome import Routing, read_outcome
from sollol_broker.vectors import unpack_vectors
from sollol_broker.words import JobState


class Answer(dict[str, Any]):
    """Ollama's answer as a dict (`answer["message"]["content"]`), and what one mostly wants of it.

    Attributes:
        routing: node, worker, attempt, queue wait and times of this answer, and whether it comes from a cache.
    """

    def __init__(self, fields: Mapping[str, Any], routing: Routing) -> None:
        super().__init__(fields)
        self.routing = routing

    @property
    def text(self) -> str:
        """The text of a chat or generate answer; "" for embeddings and rankings."""
        if "message" in self:
            return str(self["message"].get("content") or "")
        return str(self.get("response") or "")

    @property
    def thinking(self) -> str:
        """What the model thought before it answered, if it says so."""
        source = self.get("message", self)
        return str(source.get("thinking") or "")

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The tools that the model wants called: [{"function": {"name", "arguments"}}, …]."""
        return list(self.get("message", {}).get("tool_calls") or [])

    @property
    def embeddings(self) -> list[list[float]]:
        """The vectors of an embed answer, one per input, in order."""
        return list(self.get("embeddings") or [])

    @property
    def results(self) -> list[dict[str, Any]]:
        """The texts of a rerank answer, best first: [{"index": which, "relevance_score": how well}, …]."""
        return list(self.get("results") or [])


class Delta(str):
    """New text of a stream. What comes besides text hangs on it, with "" as the text.

    Attributes:
        thinking: new text of the model's thinking.
        tool_calls, logprobs: as Ollama gives them.
        entry_id: its place in the stream: `attach(job_id, after=entry_id)` goes on behind it, in any process.
    """

    __slots__ = ("entry_id", "logprobs", "thinking", "tool_calls")

    entry_id: str

    thinking: str
    tool_calls: list[dict[str, Any]]
    logprobs: list[dict[str, Any]]

    @classmethod
    def of(cls, piece: Mapping[str, Any], entry_id: str = "") -> Delta:
        """From the data of a piece entry."""
        delta = cls(piece.get("text", ""))
        delta.thinking = piece.get("thinking", "")
        delta.tool_calls = piece.get("tool_calls", [])
        delta.logprobs = piece.get("logprobs", [])
        delta.entry_id = entry_id
        return delta


def make_answer(outcome: Mapping[str, Any]) -> Answer:
    """The answer of a job that is done; `outcome` is what its terminal entry said."""
    fields = dict(outcome["answer"])
    if isinstance(fields.get("embeddings"), Mapping):
        fields["embeddings"] = unpack_vectors(fields["embeddings"])
    return Answer(fields, Routing.from_dict(outcome["routing"]))


def check_answer(job_id: str, data: bytes) -> None:
    """Check that `data` can serve as the terminal entry of a job that is done.

    Raises:
        InvalidJob: it cannot.
    """
    outcome = read_outcome(job_id, JobState.DONE, data)
    try:
        make_answer(outcome if isinstance(outcome, dict) else {})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InvalidJob(f"what is said to be the answer of job {job_id} is none") from None
