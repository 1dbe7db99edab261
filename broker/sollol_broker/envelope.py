"""The job as it travels: an envelope of msgpack, checked where it enters and where it leaves."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .codec import pack, unpack_request
from .errors import InvalidJob
from .words import JobKind

M = TypeVar("M", bound=BaseModel)
MAX_ENVELOPE_BYTES = 1024 * 1024
MAX_BLOB_BYTES = 32 * 1024 * 1024
# Of all of a job's pictures together.
MAX_BLOBS_BYTES = 128 * 1024 * 1024
MAX_ANSWER_BYTES = 128 * 1024 * 1024


class Requires(BaseModel):
    """What a node must have before it may take the job."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    vram_gb: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    labels: list[str] = []
    node: str | None = None

    @property
    def vram_mib(self) -> int:
        """The memory wanted, in MiB."""
        return round((self.vram_gb or 0) * 1024)

    def to_bytes(self) -> bytes:
        """As claim.lua reads it; empty when nothing is required."""
        wanted: dict[str, Any] = {}
        if self.vram_gb:
            wanted["vram_mib"] = self.vram_mib
        if self.labels:
            wanted["labels"] = self.labels
        if self.node:
            wanted["node"] = self.node
        return pack(wanted) if wanted else b""


def rerank_label(model: str) -> str:
    """The label that a worker has for each model with which it can rerank; jobs of that kind require it."""
    return f"{JobKind.RERANK}:{model}"


class Trace(BaseModel):
    """W3C trace context, carried from the submitter to the worker."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    traceparent: str = Field(max_length=128)
    tracestate: str = Field(default="", max_length=512)


class Envelope(BaseModel):
    """All that a worker needs to know of a job. The rest of its life lies in the job's hash.

    Attributes:
        payload: the request with Ollama's names, as the backend gets it; `messages`, `prompt`, `input`, or
            `query` and `documents` according to `kind`, and whatever else the caller gave.
        timeout_seconds: for the backend call as a whole; None = the worker's default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    v: Literal[1] = 1
    kind: Literal["chat", "generate", "embed", "rerank", "warm"]
    model: str = Field(min_length=1, max_length=200)
    app: str = Field(max_length=200)
    priority: int = Field(default=5, ge=0, le=10)
    stream: bool = False
    payload: dict[str, Any]
    timeout_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    session: str | None = Field(default=None, max_length=200)
    metadata: dict[str, Any] = {}
    trace: Trace | None = None

    @property
    def job_kind(self) -> JobKind:
        """The kind as a word."""
        return JobKind(self.kind)

    def to_bytes(self) -> bytes:
        """Encode; blobs must have been taken out before.

        Raises:
            InvalidJob: over 1 MiB, or not plain data.
        """
        data = pack(self.model_dump(exclude_defaults=True))
        if len(data) > MAX_ENVELOPE_BYTES:
            raise InvalidJob(
                f"the job has {len(data):,} bytes without its pictures, "
                f"the limit is {MAX_ENVELOPE_BYTES:,} (1 MiB): shorten the messages, or send several jobs",
                field="payload",
            )
        # What a worker would refuse (a key that is no text, a list beyond its limits) is refused here.
        unpack_request(data, max_bytes=MAX_ENVELOPE_BYTES)
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Envelope:
        """Decode and check.

        Raises:
            InvalidJob: malformed, too large, of another version, or with unknown fields.
        """
        plain = unpack_request(data, max_bytes=MAX_ENVELOPE_BYTES)
        if not isinstance(plain, dict):
            raise InvalidJob("the envelope is not a map")
        return checked(cls, plain)


def checked(kind: type[M], fields: dict[str, Any]) -> M:
    """Build a pydantic model, or raise InvalidJob naming the first field at fault (and no value).

    Raises:
        InvalidJob: a field is missing, unknown, or of the wrong type or range.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        known = len(first["loc"]) == 1 and f"is not known; known are {', '.join(kind.model_fields)}"
        said = known if known and first["type"] == "extra_forbidden" else first["msg"]
        raise InvalidJob(f"{field}: {said}", field=field) from None
