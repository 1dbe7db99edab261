"""How a batch is cut: sizes of chunks, windows, portions of slow workers; and what its record tells."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.batch_plan import BatchPlan, Refused, chunk_submission, pack_item, unpack_item
from sollol_broker.batch_record import (
    BatchView,
    Chunk,
    EndedChunk,
    check_batch_id,
    progress_of,
    view_of,
)
from sollol_broker.batch_rules import (
    ChunkLimits,
    SizeSeen,
    Speed,
    best_chars,
    chunk_tokens,
    fixed_chunk,
    items_for,
    share_of_the_rest,
    window,
)
from sollol_broker.codec import pack
from sollol_broker.envelope import Envelope
from sollol_broker.errors import InvalidJob
from sollol_broker.words import BatchState, JobKind, JobState
from sollol_client.batch_input import item_of
from sollol_worker_agent.portion import bound_ms, first_texts, shares

_RECORD = {
    **{"state": "running", "kind": "embed", "model": "m", "app": "a", "priority": "1", "tag": "ab12"},
    **{"fed": "10", "closed": "0", "next": "8", "completed": "3", "failed": "1", "created": "1000.5"},
    **{"started": "2000.0", "why": "", "keep": "1", "on_error": "collect", "ttl": "60000", "driver": "d"},
    **{"in_bytes": "5", "out_bytes": "7"},
}


@pytest.mark.parametrize(
    ("speeds", "tokens"),
    [
        ([Speed(1, 1.0)], 700),
        ([Speed(4, 0.1), Speed(4, 0.2)], 3500),  # the slower of two that both matter
        ([Speed(4, 0.1), Speed(2, 5.0)], 7000),  # one that does 1 % of the work cuts its chunks by itself
        ([Speed(1, 2.0), Speed(0, 0.1)], 350),  # one without a slot does nothing
    ],
)
def test_a_chunk_keeps_the_workers_that_matter_within_the_bound(speeds: list[Speed], tokens: float) -> None:
    assert chunk_tokens(speeds, 1000.0, is_known=True).most_tokens == pytest.approx(tokens)


def test_a_model_that_never_ran_gets_little_at_first() -> None:
    for speeds, is_known in (([Speed(1, 0.01)], False), ([], True)):
        limits = chunk_tokens(speeds, 1000.0, is_known=is_known)
        assert limits.most_items <= 8
        assert limits.most_tokens <= 256


@pytest.mark.parametrize(
    ("chars", "limits", "count"),
    [
        ([40] * 100, ChunkLimits(120), 10),  # 40 / 4 + 2 tokens each
        ([40] * 5, ChunkLimits(120), 5),
        ([40] * 100, ChunkLimits(1), 2),  # short ones never go alone
        ([4000] * 3, ChunkLimits(1), 1),
        ([4000, 40], ChunkLimits(120), 1),
        ([40] * 600, ChunkLimits(1e9), 512),
        ([100_000] * 20, ChunkLimits(1e9), 5),  # 512 KiB
        ([40] * 100, fixed_chunk(7), 7),
        ([40] * 100, ChunkLimits(1e9, most_chars=400), 10),
        ([400] * 100, ChunkLimits(1e9, most_chars=40), 2),
    ],
)
def test_items_fill_a_chunk(chars: list[int], limits: ChunkLimits, count: int) -> None:
    assert items_for([(each, each) for each in chars], limits, 4.0) == count


def _sizes(**cost: float) -> dict[int, SizeSeen]:
    return {int(name[1:]): SizeSeen(each * 1000, 1000) for name, each in cost.items()}


@pytest.mark.parametrize(
    ("seen", "powers"),
    [
        (_sizes(z9=1.0), {9, 10, 8}),
        (_sizes(z9=1.0, z10=0.8), {10, 11}),
        (_sizes(z9=1.0, z10=1.2), {9, 8}),
        (_sizes(z8=1.3, z9=1.0, z10=1.2), {9}),
    ],
)
def test_the_best_size_is_kept_and_its_neighbours_are_tried(
    seen: dict[int, SizeSeen], powers: set[int]
) -> None:
    chosen = [int(math.log2(best_chars(seen, turn))) for turn in range(2, 16)]
    assert set(chosen) - {max(seen, default=0)} <= powers
    assert powers - {9, 10} <= set(chosen)
    assert math.isinf(best_chars({}, 0))
    # What was worse before is looked at again, seldom.
    again = [int(math.log2(best_chars(_sizes(z8=1.3, z9=1.0, z10=1.2), turn))) for turn in range(64)]
    assert (again.count(8), again.count(9), again.count(10)) == (4, 56, 4)


@pytest.mark.parametrize(
    ("left", "slots", "most"), [(100, 2, 50), (5, 2, 3), (3, 2, 2), (1, 4, 2), (7, 0, 7)]
)
def test_the_last_items_are_shared_by_all_slots(left: int, slots: int, most: int) -> None:
    assert share_of_the_rest(left, slots) == most


def test_a_window_is_wide_enough_for_the_slots_and_never_without_bound() -> None:
    assert [window(slots) for slots in (0, 1, 4, 1000)] == [4, 4, 10, 256]
    assert window(1, is_single=True) == 64


@pytest.mark.parametrize(
    ("count", "chars", "predicted", "bound", "first"),
    [
        (10, 10, 100.0, 1000.0, 10),
        (10, 10, 1400.0, 1000.0, 10),  # not worth a second call
        (100, 10, 7000.0, 1000.0, 10),
        (100, 10, 1e9, 1000.0, 2),
        (2, 10, 1e9, 1000.0, 2),
        (100, 10, 1e9, 0.0, 100),  # nobody minds
        (0, 0, 1e9, 1000.0, 0),
    ],
)
def test_a_slow_worker_takes_what_keeps_within_the_bound(
    count: int, chars: int, predicted: float, bound: float, first: int
) -> None:
    assert first_texts(["x" * chars] * count, predicted_ms=predicted, bound=bound) == first


@pytest.mark.parametrize(
    ("metadata", "bound"), [({}, 0), ({"bound_ms": 5}, 5), ({"bound_ms": True}, 0), ({"bound_ms": -1}, 0)]
)
def test_only_a_batch_has_a_bound(metadata: dict[str, Any], bound: float) -> None:
    assert bound_ms(metadata) == bound


@given(tokens=st.integers(0, 10**6), texts=st.lists(st.text(max_size=30), max_size=20))
def test_the_tokens_of_all_texts_are_shared_out_to_the_last_one(tokens: int, texts: list[str]) -> None:
    found = shares(tokens, texts)
    assert len(found) == len(texts)
    assert sum(found) == (tokens if texts else 0)
    assert all(each >= 0 for each in found)


def test_long_texts_have_more_of_the_tokens() -> None:
    assert shares(100, ["x" * 32, "x" * 152]) == [20, 80]


def test_a_chunk_is_cut_in_two() -> None:
    assert Chunk(5, 3).halves() == (Chunk(5, 2), Chunk(7, 1))
    assert EndedChunk.parse(b"5:3:done:9") == EndedChunk(Chunk(5, 3), JobState.DONE, Chunk(5, 9))
    assert bytes(EndedChunk.parse(b"5:3:done:9")) == b"5:3:done:9"


def test_a_record_tells_how_far_it_is() -> None:
    view = view_of("b", _RECORD)
    assert (view.total, view.percent, view.done, view.created_at) == (None, None, 4, 1.0005)
    assert progress_of(view, 2.0).eta_s is None
    closed = view_of("b", {**_RECORD, "closed": "1"})
    assert (closed.total, closed.percent) == (10, 40.0)
    assert progress_of(closed, 2.0).eta_s == 3.0
    assert progress_of(closed, 0.0).eta_s is None
    ended = view_of("b", {**_RECORD, "closed": "1", "state": "cancelled", "ended": "5000.0"})
    assert (ended.duration_seconds, progress_of(ended, 0.0).eta_s) == (3.0, 0.0)
    assert view.job_id(Chunk(4, 2)) == "b~ab12~4~2"


def test_the_states_that_are_ends() -> None:
    assert [state for state in BatchState if not state.is_terminal] == [
        BatchState.PENDING,
        BatchState.RUNNING,
    ]


@pytest.mark.parametrize("bad", ["", "a b", "a~b", "é", "x" * 101, 5])
def test_an_id_cannot_be_anything(bad: Any) -> None:
    with pytest.raises(InvalidJob, match="id"):
        check_batch_id(bad)


def test_a_plan_comes_back_as_it_was() -> None:
    plan = BatchPlan(
        JobKind.CHAT, "m", "a", payload={"options": {"seed": 1}}, prefer=("n1",), metadata={"x": [1]}
    )
    assert BatchPlan.from_bytes(plan.to_bytes()) == plan
    with pytest.raises(InvalidJob, match="release"):
        BatchPlan.from_bytes(pack({"kind": "chat", "of": "tomorrow"}))
    other = BatchPlan(JobKind.CHAT, "m", "a", payload={"options": {"seed": 1}}, metadata={})
    assert plan.digest() == other.digest() != BatchPlan(JobKind.CHAT, "m", "a").digest()


def test_an_item_that_cannot_be_sent_travels_as_its_error() -> None:
    assert unpack_item(pack_item("text")) == "text"
    assert unpack_item(pack_item({"prompt": "p", "images": [b"x"]})) == {"prompt": "p", "images": [b"x"]}
    for bad in ("\ud800", {"prompt": object()}, Refused(InvalidJob("no"))):
        refused = unpack_item(pack_item(bad))
        assert isinstance(refused, Refused)
        assert isinstance(refused.error, InvalidJob)
    assert isinstance(unpack_item(pack(5)), Refused)
    assert isinstance(unpack_item(b"\xc1"), Refused)


@pytest.mark.parametrize(
    ("kind", "given", "item"),
    [
        (JobKind.EMBED, "a", "a"),
        (JobKind.EMBED, {"text": "a", "id": 7}, "a"),
        (JobKind.EMBED, {"input": "a"}, "a"),
        (JobKind.GENERATE, "a", {"prompt": "a"}),
        (JobKind.GENERATE, {"prompt": "a", "suffix": "b"}, {"prompt": "a", "suffix": "b"}),
        (JobKind.CHAT, "a", {"messages": [{"role": "user", "content": "a"}]}),
        (JobKind.CHAT, [{"role": "user", "content": "a"}], {"messages": [{"role": "user", "content": "a"}]}),
        (
            JobKind.CHAT,
            {"messages": "a", "tools": []},
            {"messages": [{"role": "user", "content": "a"}], "tools": []},
        ),
    ],
)
def test_an_item_takes_the_form_it_is_sent_in(kind: JobKind, given: Any, item: Any) -> None:
    assert item_of(kind, given) == item


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (JobKind.EMBED, 5),
        (JobKind.EMBED, ["a"]),
        (JobKind.GENERATE, None),
        (JobKind.CHAT, [5]),
        (JobKind.CHAT, {}),
    ],
)
def test_what_is_no_item_is_refused(kind: JobKind, given: Any) -> None:
    with pytest.raises(InvalidJob):
        item_of(kind, given)


def _view(kind: JobKind) -> BatchView:
    return view_of("b", {**_RECORD, "kind": kind.value})


def test_a_chunk_becomes_one_job_that_tells_nobody_but_its_batch() -> None:
    plan = BatchPlan(JobKind.EMBED, "m", "a", payload={"dimensions": 8})
    job = chunk_submission(plan, _view(JobKind.EMBED), Chunk(0, 2), ["one", "two"])
    envelope = Envelope.from_bytes(job.envelope)
    assert envelope.payload == {"dimensions": 8, "input": ["one", "two"]}
    assert (job.job_id, job.inbox, job.prompt_chars, job.without_node) == ("b~ab12~0~2", "", 6, True)
    assert bound_ms(envelope.metadata) == 1000


def test_the_options_of_one_item_come_on_top_of_those_of_all() -> None:
    plan = BatchPlan(
        JobKind.GENERATE, "m", "a", payload={"options": {"seed": 1, "num_predict": 9}, "system": "s"}
    )
    item = {"prompt": "p", "options": {"num_predict": 2}}
    job = chunk_submission(plan, _view(JobKind.GENERATE), Chunk(3, 1), [item])
    payload = Envelope.from_bytes(job.envelope).payload
    assert payload == {"options": {"seed": 1, "num_predict": 2}, "system": "s", "prompt": "p"}
    assert job.output_cap == 2
