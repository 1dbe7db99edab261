"""From the arguments of `submit` to a submission: everything is checked here, before anything is sent."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sollol_broker import features
from sollol_broker.broker import Submission
from sollol_broker.codec import pack
from sollol_broker.envelope import Envelope, Requires, Trace, checked, rerank_label
from sollol_broker.errors import InvalidJob
from sollol_broker.fair_order import head_start_ms
from sollol_broker.names import canonical_model, check_name
from sollol_broker.payload import take_blobs_out
from sollol_broker.tracing import SUBMIT, Span, begin
from sollol_broker.words import JobKind

from .cache import AnswerCache

# How long an answer can be fetched after the job's end.
RESULT_TTL_SECONDS = 3600.0
# The roles that Ollama knows; others are passed on, but a message without one is a mistake.
_KINDS = tuple(kind.value for kind in JobKind if kind is not JobKind.WARM)
_TEXTLESS = (JobKind.EMBED, JobKind.RERANK, JobKind.WARM)
_LATER = "not available in this release: leave it out"


@dataclass(frozen=True, slots=True)
class Request:
    """A checked job, ready to go.

    Attributes:
        span: of OpenTelemetry, until the fabric has answered that it has the job.
    """

    submission: Submission
    kind: JobKind
    model: str
    stream: bool
    requires: Requires | None = None
    span: Span = field(default_factory=Span)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.submission.job_id


def build_request(
    app: str,
    inbox: str,
    *,
    answer_cache: AnswerCache | None = None,
    model: str,
    chat: str | Sequence[Mapping[str, Any]] | None = None,
    generate: str | None = None,
    embed: str | Sequence[str] | None = None,
    rerank: Sequence[str] | None = None,
    query: str | None = None,
    warm: bool = False,
    stream: bool = False,
    priority: int = 5,
    timeout: float | None = None,
    deadline: float | None = None,
    session: str | None = None,
    requires: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
    result_ttl: float = RESULT_TTL_SECONDS,
    wait_for_node: bool = False,
    trace: Mapping[str, str] | None = None,
    hedge: bool | None = None,
    cache: bool | None = None,
    prefer: str | Sequence[str] | None = None,
    backend: Mapping[str, Any] | None = None,
    **backend_fields: Any,
) -> Request:
    """Check a job and make its envelope. The arguments are those of `Client.submit`.

    Args:
        warm: only have the model in memory, in place of chat, generate, embed and rerank.
        answer_cache: says under which key the request shares its answer; None = it does not.
        backend: what the backend gets besides, whatever its names; ours are no arguments there.

    Raises:
        InvalidJob: names the argument at fault; nothing has been sent.
    """
    asked = {"chat": chat, "generate": generate, "embed": embed, "rerank": rerank}
    kind, body = (JobKind.WARM, {}) if warm else _body(**asked)
    body.update(_query(kind, query))
    name = canonical_model(model)
    _check_priority(priority)
    timeout_s = _seconds(timeout, "timeout")
    deadline_s = _seconds(deadline, "deadline")
    ttl_s = _seconds(result_ttl, "result_ttl") or RESULT_TTL_SECONDS
    backend_fields = {**backend_fields, **(backend or {})}
    _check_backend_fields(kind, backend_fields)
    _check_maps(requires=requires, metadata=metadata, trace=trace)
    try:
        payload, blobs = take_blobs_out({**body, **backend_fields})
    except InvalidJob as error:
        raise _as_written(error, kind) from None
    needs = _needs(requires) if requires else None
    if kind is JobKind.RERANK:  # servers can or cannot: only those that can shall claim it
        needs = needs or Requires()
        needs = needs.model_copy(update={"labels": [*needs.labels, rerank_label(name)]})
    needed = needs.to_bytes() if needs else b""
    job_id = job_id_of(app, idempotency_key) if idempotency_key is not None else new_job_id()
    about = {
        **{"messaging.system": "sollol", "messaging.message.id": job_id, "sollol.app": app},
        **{"gen_ai.operation.name": kind.value, "gen_ai.request.model": name},
    }
    given_trace = checked(Trace, dict(trace)) if trace else None
    span = begin(SUBMIT, given_trace.model_dump() if given_trace else None, about, kind="PRODUCER")
    carried = span.carried()
    asked_cache = False if cache is None and idempotency_key is not None else _word(cache, "cache")
    fields: dict[str, Any] = {
        "kind": kind.value,
        "model": name,
        "app": app,
        "priority": int(priority),
        "stream": stream,
        "payload": payload,
        "timeout_seconds": timeout_s,
        "session": session,
        "metadata": dict(metadata or {}),
        "trace": checked(Trace, carried) if carried else given_trace,
    }
    try:
        envelope = checked(Envelope, fields).to_bytes()
    except InvalidJob as error:
        span.end(error)
        raise _as_written(error, kind) from None
    submission = Submission(
        job_id=job_id,
        model=name,
        app=app,
        priority=int(priority),
        head_start_ms=head_start_ms(int(priority)),
        stream=stream,
        envelope=envelope,
        inbox=inbox,
        result_ttl_ms=round(ttl_s * 1000),
        prompt_chars=features.prompt_characters(payload),
        extra_tokens=features.picture_tokens(blobs) + _kept_tokens(payload),
        output_cap=0 if kind in _TEXTLESS else features.output_cap(payload.get("options")),
        context_tokens=features.context_needed(payload),
        task=features.task_type(kind, payload),
        affinity="" if kind in _TEXTLESS else features.affinity(app, session, payload),
        hedge={True: 1, None: 0, False: -1}[_word(hedge, "hedge")],
        cache_key=answer_cache.key_for(kind, name, payload, blobs, needs=needed, asked=asked_cache, app=app)
        if answer_cache is not None
        else "",
        deadline_ms=max(1, round(deadline_s * 1000)) if deadline_s else 0,
        needs=needed,
        without_node=wait_for_node,
        prefer=_nodes(prefer),
        blobs=blobs,
    )
    return Request(submission, kind, name, stream, needs, span)


def new_job_id() -> str:
    """A new id: 12 hex digits of the time in ms, so that ids sort by age, and 16 random ones."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"


def job_id_of(app: str, idempotency_key: str) -> str:
    """The id that this key of this application always gives."""
    check_name(idempotency_key, "idempotency_key")
    return "k" + hashlib.sha256(f"{app}\0{idempotency_key}".encode()).hexdigest()[:27]


def _body(**given: Any) -> tuple[JobKind, dict[str, Any]]:
    asked = {name: value for name, value in given.items() if value is not None}
    if len(asked) != 1:
        told = "none" if not asked else " and ".join(asked)
        raise InvalidJob(
            f"exactly one of {', '.join(_KINDS)} is needed, got {told}", field=next(iter(asked), "chat")
        )
    name, value = next(iter(asked.items()))
    kind = JobKind(name)
    if kind is JobKind.CHAT:
        return kind, {"messages": messages_of(value)}
    if kind is JobKind.GENERATE:
        if not isinstance(value, str):
            raise InvalidJob(f"generate: a prompt is text, got {type(value).__name__}", field="generate")
        return kind, {"prompt": value}
    if kind is JobKind.RERANK:
        if not _are_texts(value) or not value:
            raise InvalidJob("rerank: a list of texts is needed, one at least", field="rerank")
        return kind, {"documents": list(value)}
    if isinstance(value, str):
        return kind, {"input": value}
    if not _are_texts(value):
        raise InvalidJob("embed: a text, or a list of texts, is needed", field="embed")
    return kind, {"input": list(value)}


def _are_texts(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_list and all(isinstance(each, str) for each in value)


def _query(kind: JobKind, query: Any) -> dict[str, Any]:
    """What the texts of a rerank job are held against; other jobs have none."""
    if kind is not JobKind.RERANK:
        if query is not None:
            raise InvalidJob("query: only rerank has one", field="query")
        return {}
    if not isinstance(query, str):
        raise InvalidJob(f"query: a text is needed, got {type(query).__name__}", field="query")
    return {"query": query}


def messages_of(chat: Any) -> list[dict[str, Any]]:
    """A text, or a list of messages, as messages.

    Raises:
        InvalidJob: it is neither.
    """
    if isinstance(chat, str):
        return [{"role": "user", "content": chat}]
    if not isinstance(chat, Sequence) or isinstance(chat, bytes):
        raise InvalidJob(
            f"chat: a text or a list of messages is needed, got {type(chat).__name__}", field="chat"
        )
    messages = []
    for index, message in enumerate(chat):
        where = f"chat[{index}]"
        if not isinstance(message, Mapping):
            raise InvalidJob(f"{where}: a message is a dict with role and content", field=where)
        role, content = message.get("role"), message.get("content", "")
        if not isinstance(role, str) or not role:
            raise InvalidJob(
                f"{where}.role: 'user', 'assistant', 'system' or 'tool' is needed", field=f"{where}.role"
            )
        if content is not None and not isinstance(content, str):
            raise InvalidJob(
                f"{where}.content: text is needed, got {type(content).__name__}", field=f"{where}.content"
            )
        messages.append(dict(message))
    return messages


def _check_priority(priority: Any) -> None:
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 10:
        raise InvalidJob(
            f"priority: a whole number from 0 to 10 is needed, got {priority!r}", field="priority"
        )


def _nodes(prefer: Any) -> tuple[str, ...]:
    names = (prefer,) if isinstance(prefer, str) else () if prefer is None else prefer
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise InvalidJob(
            f"prefer: a node's name, or a list of names, is needed, got {prefer!r}", field="prefer"
        )
    return tuple(check_name(name, "prefer") for name in names)


def _seconds(value: Any, field: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise InvalidJob(f"{field}: seconds above 0 are needed, got {value!r}", field=field)
    return float(value)


def _check_maps(**given: Any) -> None:
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise InvalidJob(f"{name}: a dict is needed, got {type(value).__name__}", field=name)
        try:
            pack(dict(value))
        except InvalidJob as error:
            raise InvalidJob(f"{name}: {error}", field=name) from None


def _needs(requires: Mapping[str, Any]) -> Requires:
    try:
        return checked(Requires, dict(requires))
    except InvalidJob as error:
        raise InvalidJob(f"requires.{error}", field=f"requires.{error.field}") from None


def _as_written(error: InvalidJob, kind: JobKind) -> InvalidJob:
    """The error with the caller's name of the field: chat, not messages; the text itself, not the payload."""
    field = error.field or "payload"
    for inner in ("messages", "payload"):
        if field.startswith(inner):
            field = kind.value + field.removeprefix(inner)
    message = str(error).removeprefix(f"{error.field}: ") if error.field else str(error)
    return InvalidJob(f"{field}: {message}", field=field)


def _check_backend_fields(kind: JobKind, fields: Mapping[str, Any]) -> None:
    for name in ("messages", "prompt", "input", "documents"):
        # To some servers a chat may bring documents.
        if name in fields and (name != "documents" or kind is JobKind.RERANK):
            raise InvalidJob(f"{name}: use chat=, generate=, embed= or rerank=", field=name)
    options = fields.get("options")
    if options is not None and not isinstance(options, Mapping):
        raise InvalidJob(f"options: a dict is needed, got {type(options).__name__}", field="options")
    tools = fields.get("tools")
    if tools is not None and (not isinstance(tools, Sequence) or isinstance(tools, str | bytes)):
        raise InvalidJob(f"tools: a list is needed, got {type(tools).__name__}", field="tools")


def _kept_tokens(payload: Mapping[str, Any]) -> int:
    """Tokens of a conversation that a generate job continues, as an answer's `context` gave them."""
    context = payload.get("context")
    return len(context) if isinstance(context, list) else 0


def _word(asked: Any, field: str) -> bool | None:
    if asked is not None and not isinstance(asked, bool):
        raise InvalidJob(f"{field}: True, False or None is needed, got {asked!r}", field=field)
    return asked
