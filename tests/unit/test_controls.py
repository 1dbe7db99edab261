"""An operator's settings of a node: how they are read, checked, and what a worker makes of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sollol_broker.broker import LaneOffer, ModelOffer
from sollol_broker.claim_rule import share_of
from sollol_broker.codec import pack
from sollol_broker.controls import Controls, changes, draining
from sollol_broker.errors import InvalidJob
from sollol_broker.names import key_part
from sollol_worker_agent.backends import ModelInfo
from sollol_worker_agent.controls import advertised, labelled, offered
from sollol_worker_agent.drainer import Drainer

_OFFER = LaneOffer(2, (ModelOffer("llama3.2", 100.0, 1.0, 10.0), ModelOffer("qwen3", 0.0, 2.0, 20.0)))
_SHARES = {
    name: share_of(load_ms=0, prompt_ms=1, output_ms=10, slots=2, context_tokens=4096)
    for name in ("llama3.2", "qwen3")
}


def test_what_was_written_is_read() -> None:
    wanted = Controls(
        cordoned=True,
        draining=True,
        drain_seconds=5.0,
        priority=8,
        labels=("eu",),
        allow=("llama*",),
        deny=("*-vision",),
    )
    fields: dict[str, Any] = {"name": "n1", **changes(priority=8, labels=["eu"], allow=["llama*"])}
    fields |= {**draining(5), **changes(deny=["*-Vision:latest"])}
    assert Controls.from_bytes(pack(fields)) == wanted


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff nonsense",
        pack("a word"),
        pack({"priority": "high", "labels": "eu", "cordoned": 1, "allow": [1, None], "drain_seconds": -3}),
        pack({"priority": float("nan"), "drain_seconds": True}),
    ],
)
def test_nonsense_sets_nothing(data: bytes) -> None:
    assert Controls.from_bytes(data) == Controls()


def test_a_priority_of_another_release_is_brought_into_bounds() -> None:
    assert Controls.from_bytes(pack({"priority": 99})).priority == 10


@pytest.mark.parametrize(("priority", "price"), [(0, 1.2**5), (5, 1.0), (6, 1 / 1.2), (10, 1.2**-5)])
def test_a_low_priority_looks_slow(priority: int, price: float) -> None:
    assert Controls(priority=priority).price == pytest.approx(price)


@pytest.mark.parametrize(
    ("allow", "deny", "model", "allowed"),
    [
        ((), (), "llama3.2", True),
        (("llama*",), (), "llama3.2:70b", True),
        (("llama*",), (), "qwen3", False),
        (("llama3.2",), (), "llama3.2:70b", False),
        ((), ("*:70b",), "llama3.2:70b", False),
        (("llama*",), ("*:70b",), "llama3.2:70b", False),
        (("llama*",), ("*:70b",), "llama3.2", True),
        (("qwen*", "llama*"), (), "llama3.2", True),
    ],
)
def test_which_models_a_node_may_serve(
    allow: tuple[str, ...], deny: tuple[str, ...], model: str, allowed: bool
) -> None:
    controls = Controls(allow=allow, deny=deny)
    assert controls.allows(model) is allowed
    assert bool(controls.forbids(model)) is not allowed


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"priority": 11}, "priority"),
        ({"priority": -1}, "priority"),
        ({"priority": 2.5}, "priority"),
        ({"labels": "eu"}, "labels"),
        ({"labels": ["two words"]}, "labels"),
        ({"allow": [""]}, "allow"),
        ({"deny": ["x"] * 101}, "deny"),
    ],
)
def test_bad_settings_name_the_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        changes(**given)
    assert caught.value.field == field


@pytest.mark.parametrize("seconds", [-1.0, 1e9, float("nan")])
def test_a_drain_takes_from_no_time_to_a_week(seconds: float) -> None:
    with pytest.raises(InvalidJob):
        draining(seconds)


class _Drain:
    """Stands in for a puller that drains; knows for how long, and what became of it."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.called_off = 0

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.called_off += 1
            raise


async def test_a_drain_begins_once_changes_with_its_time_and_is_called_off() -> None:
    drain = _Drain()
    drainer = Drainer(drain, usual_seconds=30)
    for controls, asked, called_off in (
        (Controls(cordoned=True), [], 0),
        (Controls(draining=True), [30], 0),
        (Controls(draining=True, priority=7), [30], 0),
        (Controls(draining=True, drain_seconds=5), [30, 5], 1),
        (Controls(), [30, 5], 2),
        (Controls(draining=True), [30, 5, 30], 2),
    ):
        drainer.obey(controls)
        for _ in range(3):
            await asyncio.sleep(0)
        assert (drain.asked, drain.called_off) == (asked, called_off)
    await drainer.stop()
    assert drain.called_off == 3


# --- what a worker makes of them


def test_without_controls_the_offer_is_the_lanes_own() -> None:
    assert offered(Controls(), _OFFER, ["llama3.2", "qwen3"]) is _OFFER
    assert advertised(Controls(), _SHARES) == _SHARES


def test_what_is_denied_is_not_offered() -> None:
    controls = Controls(deny=("qwen*",))
    assert [model.model_key for model in offered(controls, _OFFER, ["llama3.2", "qwen3"]).models] == [
        "llama3.2"
    ]
    assert set(advertised(controls, _SHARES)) == {"llama3.2"}


def test_a_name_that_is_no_key_is_denied_all_the_same() -> None:
    odd = "hf.co/Some/Model"
    lane = LaneOffer(1, (ModelOffer(key_part(odd), 0.0, 1.0, 1.0),))
    assert offered(Controls(deny=("hf.co/*",)), lane, [odd]).models == ()


def test_a_low_priority_is_dearer_for_itself_and_for_others() -> None:
    controls = Controls(priority=4)
    first = offered(controls, _OFFER, ["llama3.2", "qwen3"]).models[0]
    assert (first.load_ms, first.prompt_ms, first.output_ms) == pytest.approx((120.0, 1.2, 12.0))
    share = advertised(controls, _SHARES)["qwen3"]
    assert (share.prompt_us, share.output_us, share.capacity, share.context_tokens) == (1200, 12000, 2, 4096)
    assert share.group >= _SHARES["qwen3"].group


@pytest.mark.parametrize("controls", [Controls(cordoned=True), Controls(draining=True)])
def test_a_closed_node_adds_nothing_to_the_others_view(controls: Controls) -> None:
    assert controls.is_closed
    assert advertised(controls, _SHARES) == {}


def test_a_worker_has_a_label_for_each_model_with_which_it_reranks() -> None:
    lanes = [
        {"a": ModelInfo("a", frozenset({"chat"})), "b": ModelInfo("b", frozenset({"rerank"}))},
        {"b": ModelInfo("b", frozenset({"rerank"})), "c": ModelInfo("c", frozenset({"rerank"}))},
    ]
    assert labelled(("gpu",), Controls(labels=("eu",)), lanes) == ("gpu", "eu", "rerank:b", "rerank:c")
