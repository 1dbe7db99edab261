"""A job on its way in."""

from __future__ import annotations

from dataclasses import dataclass

from .names import key_part


@dataclass(frozen=True, slots=True)
class Submission:
    """A job on its way in; field by field what submit.lua takes.

    Attributes:
        prompt_chars: of the prompt's text; extra_tokens: of its pictures. output_cap: most tokens of the answer
            that the caller allows; 0 = not said. context_tokens: asked for explicitly; 0 = not said.
        affinity: 8 hex digits that jobs of one conversation share; "" = none.
        hedge: 1 a second copy may run when the first is late, 0 the fabric's policy decides, -1 never.
        cache_key: requests with the same key may share one answer; "" = never.
        prefer: nodes that should have it, if they have room soon.
        deadline_ms: from now; 0 = none. needs: msgpack of what a node must have; b"" = nothing.
    """

    job_id: str
    model: str
    app: str
    priority: int
    head_start_ms: float
    stream: bool
    envelope: bytes
    inbox: str
    result_ttl_ms: int
    prompt_chars: int = 0
    extra_tokens: int = 0
    output_cap: int = 0
    context_tokens: int = 0
    task: str = "generation"
    affinity: str = ""
    hedge: int = -1
    cache_key: str = ""
    deadline_ms: int = 0
    needs: bytes = b""
    without_node: bool = False
    prefer: tuple[str, ...] = ()
    blobs: tuple[bytes, ...] = ()

    def arguments(self) -> tuple[object, ...]:
        """As submit.lua wants them."""
        return (
            self.job_id,
            self.model,
            key_part(self.model),
            self.app,
            key_part(self.app),
            self.priority,
            self.head_start_ms,
            int(self.stream),
            self.deadline_ms,
            self.inbox,
            self.result_ttl_ms,
            self.prompt_chars,
            self.extra_tokens,
            self.output_cap,
            self.context_tokens,
            self.task,
            self.affinity,
            self.hedge,
            self.cache_key,
            self.needs,
            int(self.without_node),
            "|".join(("", *map(key_part, self.prefer), "")) if self.prefer else "",
            self.envelope,
            *self.blobs,
        )
