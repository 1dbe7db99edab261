"""How an operator's controls shape what a worker offers: which models, at which price. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain

from sollol_broker.broker import LaneOffer
from sollol_broker.claim_rule import Share, share_of
from sollol_broker.controls import Controls
from sollol_broker.envelope import rerank_label
from sollol_broker.names import key_part
from sollol_broker.words import JobKind

from .backends.protocol import ModelInfo


def offered(controls: Controls, offer: LaneOffer, models: Iterable[str]) -> LaneOffer:
    """A lane's offer as the operator wants it.

    Args:
        models: names of the models in the offer.
    """
    if controls == Controls():
        return offer
    allowed = {key_part(model) for model in models if controls.allows(model)}
    price = controls.price
    return replace(
        offer,
        models=tuple(
            replace(
                model,
                load_ms=model.load_ms * price,
                prompt_ms=model.prompt_ms * price,
                output_ms=model.output_ms * price,
            )
            for model in offer.models
            if model.model_key in allowed
        ),
    )


def labelled(
    labels: Iterable[str], controls: Controls, served: Iterable[Mapping[str, ModelInfo]]
) -> tuple[str, ...]:
    """The worker's labels: those it was started with, the operator's, and one for each model with which it reranks.

    Args:
        served: the models of each lane by name.
    """
    models = chain.from_iterable(each.items() for each in served)
    ranks = sorted({rerank_label(name) for name, info in models if JobKind.RERANK in info.kinds})
    return (*labels, *controls.labels, *ranks)


def advertised(controls: Controls, shares: Mapping[str, Share]) -> dict[str, Share]:
    """What the worker adds to the others' view of each model; nothing while it takes no jobs."""
    if controls.is_closed:
        return {}
    return {
        model: _priced(share, controls.price) for model, share in shares.items() if controls.allows(model)
    }


def _priced(share: Share, price: float) -> Share:
    if price == 1:
        return share
    priced = share_of(
        load_ms=share.load_ms * price,
        prompt_ms=share.prompt_us / 1000 * price,
        output_ms=share.output_us / 1000 * price,
        slots=share.capacity,
        context_tokens=share.context_tokens,
    )
    return replace(priced, crowding=share.crowding)
