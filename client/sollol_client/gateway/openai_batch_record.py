"""What is known of an OpenAI batch: its record in Redis, and the object that OpenAI's clients get. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from sollol_broker.batch_record import BatchView
from sollol_broker.words import Priority

# Of its errand.
KIND = "openai"
_MOST_METADATA, _MOST_NAME, _MOST_VALUE = 16, 64, 512
_TIMES = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


@dataclass(frozen=True, slots=True)
class OpenAIBatch:
    """The record of a batch. Times in seconds since the epoch, by Redis' clock.

    Attributes:
        status: validating, in_progress, finalizing, completed, failed, expired or cancelled.
        lines, items: of the input; a line may be several items. completed, failed: lines, once they are counted.
        output_ttl: seconds for which its files live. errors: as OpenAI tells them, of a batch that failed.
        shared: what all lines say alike, of embeddings.
        times: when it came to a status, by the name of that field.
    """

    id: str
    app: str
    endpoint: str
    input_file_id: str
    model: str
    created: float
    expires: float
    window: str = "24h"
    priority: int = int(Priority.BATCH)
    metadata: Mapping[str, str] | None = None
    output_ttl: float = 7 * 24 * 3600.0
    status: str = "validating"
    lines: int = 0
    items: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: tuple[Mapping[str, Any], ...] = ()
    shared: Mapping[str, Any] = field(default_factory=dict)
    times: Mapping[str, float] = field(default_factory=dict)

    def came_to(self, status: str, now: float, **changes: Any) -> Self:
        """It in another status."""
        return replace(self, status=status, times={**self.times, f"{status}_at": now}, **changes)

    @property
    def is_over(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.status in ("completed", "failed", "expired", "cancelled")

    def as_dict(self) -> dict[str, Any]:
        """For Redis."""
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """What `as_dict` gave."""
        known = {name: value for name, value in told.items() if name in cls.__slots__}
        return cls(**{**known, "errors": tuple(known.get("errors") or ())})

    def as_object(self, view: BatchView | None = None, *, is_cancelled: bool = False) -> dict[str, Any]:
        """As OpenAI's clients know it.

        Args:
            view: how its items stand, while it runs. is_cancelled: somebody has cancelled it.
        """
        completed, failed = self.completed, self.failed
        if view is not None and not self.is_over and self.items:
            # A line of several items is counted when it is written; until then by its share.
            completed, failed = (count * self.lines // self.items for count in (view.completed, view.failed))
        status = "cancelling" if is_cancelled and not self.is_over else self.status
        errors = {"object": "list", "data": list(self.errors)} if self.errors else None
        times = {name: int(self.times[name]) if name in self.times else None for name in _TIMES}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": errors,
            "input_file_id": self.input_file_id,
            "completion_window": self.window,
            "status": status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": int(self.created),
            "expires_at": int(self.expires),
            **times,
            "request_counts": {"total": self.lines, "completed": completed, "failed": failed},
            "metadata": dict(self.metadata) if self.metadata is not None else None,
        }


def metadata_of(given: object) -> dict[str, str] | None:
    """The metadata of a new batch; None where it is not what OpenAI takes.

    Raises:
        ValueError: says what is wrong.
    """
    if given is None:
        return None
    if not isinstance(given, dict) or len(given) > _MOST_METADATA:
        raise ValueError(f"an object of at most {_MOST_METADATA} pairs is needed")
    for name, value in given.items():
        if not isinstance(value, str) or len(name) > _MOST_NAME or len(value) > _MOST_VALUE:
            raise ValueError(
                f"names of at most {_MOST_NAME} and texts of at most {_MOST_VALUE} characters are needed"
            )
    return dict(given)
