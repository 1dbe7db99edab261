"""Many texts of a pool, embedded as one batch: few calls to the servers instead of one for each text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sollol_broker.batch_record import BatchView
from sollol_client import Answer, BatchItem, Client

from ..routing_dict import with_routing
from .tally import Tally

# So many are requests of their own, which may share answers that are kept.
_FEW = 100
# What a batch takes of what a request does.
_TAKEN = frozenset(
    ("options", "truncate", "dimensions", "keep_alive", "timeout", "requires", "prefer", "wait_for_node")
)


def fits(inputs: Sequence[str], asked: Mapping[str, Any]) -> bool:
    """Whether these texts can be a batch."""
    return len(inputs) > _FEW and asked.keys() <= _TAKEN


def embed_many(
    client: Client, tally: Tally, model: str, inputs: Sequence[str], asked: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One answer for each text, in order.

    Raises:
        SollolError: of the first that has no answer; the batch is ended.
    """
    batch, began = client.batch(embed=list(inputs), model=model, **asked), time.monotonic()
    for _ in inputs:
        tally.began()
    answers: list[dict[str, Any]] = []
    try:
        for item in batch.results():
            answers.append(with_routing(_answer(batch.view, item)))
            tally.answered(answers[-1]["_sollol_routing"]["node"], (time.monotonic() - began) * 1000)
    finally:
        for _ in range(len(inputs) - len(answers)):
            tally.failed()
        if len(answers) < len(inputs):
            batch.cancel()
    return answers


def _answer(view: BatchView, item: BatchItem) -> Answer:
    vector = item.vector  # raises the item's error
    assert item.routing is not None  # noqa: S101  # what has a vector was answered somewhere
    return Answer({"model": view.model, "embeddings": [vector]}, item.routing)
