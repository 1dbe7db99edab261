"""Why a job is where it is: the reasons per node, the timeline, and when it should begin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sollol_broker.claim_rule import share_of
from sollol_broker.controls import Controls
from sollol_broker.envelope import Requires
from sollol_broker.explain import Candidate, Line, NodeReason, can_any, reasons, start_in_ms
from sollol_broker.history import attempts, refusals, span, taken, timeline
from sollol_broker.names import key_part

_FAST = share_of(load_ms=0, prompt_ms=1, output_ms=10, context_tokens=4096)
_SLOW = share_of(load_ms=0, prompt_ms=10, output_ms=100, context_tokens=4096)


def _line(**more: Any) -> Line:
    fields: dict[str, Any] = {
        "model": "m",
        "prompt_tokens": 100,
        "output_tokens": 100,
        "waited_ms": 0,
        "position": 0,
        "waiting": 1,
    }
    return Line(**(fields | more))


def _candidate(node: str = "n1", **more: Any) -> Candidate:
    fields: dict[str, Any] = {
        "worker": f"{node}.a",
        "node": node,
        "controls": Controls(),
        "state": "up",
        "serves": True,
        "slots": 2,
        "busy": 0,
        "share": _FAST,
    }
    return Candidate(**(fields | more))


def _reason(candidate: Candidate, *others: Candidate, **line: Any) -> NodeReason:
    found = reasons(_line(**line), [candidate, *others])
    return next(each for each in found if each.node == candidate.node)


@pytest.mark.parametrize(
    ("candidate", "line", "code", "number", "said"),
    [
        (_candidate(), {}, "ready", 0, "next look"),
        (_candidate(), {"position": 1, "waiting": 2}, "ready", 0, "1 job comes first"),
        (_candidate(), {"position": 3, "waiting": 4}, "ready", 0, "3 jobs come first"),
        (_candidate(controls=Controls(cordoned=True)), {}, "cordoned", 0, "cordoned"),
        (_candidate(controls=Controls(cordoned=True, draining=True)), {}, "draining", 0, "drains"),
        (_candidate(state="draining"), {}, "stopping", 0, "stopping"),
        (_candidate(controls=Controls(deny=("m*",))), {}, "denied", 0, "m* is denied"),
        (_candidate(serves=False, controls=Controls(allow=("q*",))), {}, "denied", 0, "only q*"),
        (_candidate(serves=False, has=("a", "b")), {}, "absent", 0, "it has a, b"),
        (_candidate(serves=False), {}, "absent", 0, "no model at all"),
        (_candidate(serves=False, short_mib=4096), {}, "memory", 4096, "4,096 MiB of memory"),
        (_candidate(serves=False, down="refused"), {}, "down", 0, "down: refused"),
        (_candidate(), {"requires": Requires(node="n9")}, "node", 0, "n9"),
        (_candidate(labels=("eu",)), {"requires": Requires(labels=["eu", "big"])}, "labels", 0, "label big"),
        (_candidate(vram_mib=6144), {"requires": Requires(vram_gb=8)}, "vram", 2048, "2,048 MiB of VRAM too little"),
        (_candidate(share=replace(_FAST, capacity=0)), {}, "degraded", 0, "checks"),
        (_candidate(busy=2), {}, "full", 0, "2 of 2"),
        (_candidate(busy=1), {"alone": True}, "quarantine", 0, "nothing else"),
    ],
)  # fmt: skip
def test_a_reason(candidate: Candidate, line: dict[str, Any], code: str, number: float, said: str) -> None:
    reason = _reason(candidate, **line)
    assert (reason.code, reason.number) == (code, number), reason
    assert said in reason.text


def test_what_is_required_and_there_keeps_nobody_away() -> None:
    wanted = Requires(vram_gb=8, labels=["eu"], node="n1")
    assert _reason(_candidate(labels=("eu", "x"), vram_mib=8192), requires=wanted).code == "ready"


def test_a_long_prompt_is_left_to_longer_contexts_if_there_are_some() -> None:
    short = _candidate(share=replace(_FAST, context_tokens=1000))
    long = _candidate("n2", share=_FAST)
    reason = _reason(short, long, prompt_tokens=1500)
    assert (reason.code, reason.number) == ("context", 500)
    assert _reason(short, prompt_tokens=1500).code == "ready"
    assert _reason(short, long, context_tokens=1200).number == 200


def test_where_it_failed_it_goes_last() -> None:
    assert _reason(_candidate(failed=True), _candidate("n2")).code == "failed"
    assert _reason(_candidate(failed=True), _candidate("n2", failed=True)).code == "ready"


def test_a_slow_node_leaves_it_to_the_fast_one_until_patience_ends_or_many_wait() -> None:
    slow, fast = _candidate("slow", share=_SLOW), _candidate("fast", busy=2)
    reason = _reason(slow, fast)
    assert reason.code == "cheaper"
    assert reason.number == pytest.approx(9_900)  # 11.0 s there, 1.1 s on the fast one
    assert "11 s here, 1.1 s on fast" in reason.text
    assert _reason(slow, fast, waited_ms=10_000).code == "ready"
    assert _reason(slow, fast, is_batch=True, waiting=20).code == "ready"


def test_it_is_left_for_a_while_to_the_node_that_it_prefers() -> None:
    other, wanted = _candidate("other"), _candidate("Big GPU", busy=2)
    line: dict[str, Any] = {"prefers": (key_part("Big GPU"),), "is_bound": True}
    reason = _reason(other, wanted, waited_ms=4_000, **line)
    assert (reason.code, reason.number) == ("preferred", 6_000)
    assert "prefers Big GPU, for 6.0 s more" in reason.text
    assert _reason(wanted, other, **line).code == "full"
    assert _reason(other, wanted, waited_ms=10_001, **line).code == "ready"
    assert _reason(other, _candidate("Big GPU", serves=False), **line).code == "ready"


def test_a_job_that_only_some_may_have_is_not_compared() -> None:
    slow, fast = _candidate("slow", share=_SLOW), _candidate("fast", busy=2)
    assert _reason(slow, fast, is_bound=True).code == "ready"


def test_a_node_counts_as_its_best_worker() -> None:
    full = _candidate(busy=2)
    found = reasons(_line(), [full, _candidate(worker="n1.b"), _candidate("n0", serves=False)])
    assert [(each.node, each.worker, each.code) for each in found] == [
        ("n0", "n0.a", "absent"),
        ("n1", "n1.b", "ready"),
    ]
    assert can_any(found)
    assert not can_any(found[:1])


# --- when it begins


@pytest.mark.parametrize(
    ("position", "waiting", "speed", "free", "ms"),
    [
        (0, 1, 1.0, True, 0),
        (0, 1, 1.0, False, 1000),
        (0, 1, 4.0, False, 250),
        (3, 4, 2.0, True, 500),
        (3, 4, 0.0, True, None),
        (0, 0, 1.0, True, None),
    ],
)
def test_when_it_should_begin(
    position: int, waiting: int, speed: float, free: bool, ms: float | None
) -> None:
    found = start_in_ms(
        position=position, waiting=waiting, backlog_ms=1000.0, speed=speed, has_free_slot=free
    )
    assert found == ms


def test_spans() -> None:
    assert [span(ms) for ms in (-1, 80, 2_140, 11_000, 240_000)] == [
        "0 ms",
        "80 ms",
        "2.1 s",
        "11 s",
        "4 min",
    ]


# --- the way so far

_STORY = {
    "app": "web",
    "submitted": "1000.000",
    "past": "1,n1,2000.000,3000.000,crash;2,n,2,4000.000,5000.000,error;",
    "no:n3": "cheaper|1500|1500",
    "no:n4": "requires|2048|1400",
    "state": "done",
    "attempt": "3",
    "node": "n5",
    "worker": "n5.a",
    "claimed": "6000.000",
    "first": "6500.000",
    "ended": "7000.000",
    "why": "2000|1000|2.000|4|12|2|30",
}


def test_a_timeline_tells_all_in_order() -> None:
    assert [(moment.at, moment.what) for moment in timeline(_STORY)] == [
        (1.0, "handed in by web"),
        (1.4, "n4 left it: it lacks 2048 MiB of VRAM"),
        (1.5, "n3 left it to faster nodes, which save it about 1.5 s"),
        (2.0, "attempt 1: taken by n1"),
        (3.0, "attempt 1: n1 was lost, its lease ran out"),
        (4.0, "attempt 2: taken by n,2"),
        (5.0, "attempt 2: the backend on n,2 failed"),
        (6.0, "attempt 3: taken by n5 (worker n5.a)"),
        (6.5, "attempt 3: first piece of the answer"),
        (7.0, "answered"),
    ]


def test_an_attempt_that_is_over_is_told_once() -> None:
    waiting = {**_STORY, "state": "queued", "node": "n,2", "claimed": "4000.000", "attempt": "2"}
    del waiting["ended"]
    told = [moment.what for moment in timeline(waiting)]
    assert sum("attempt 2: taken" in what for what in told) == 1
    assert "first piece" not in " ".join(told)


def test_a_dead_letter_that_is_tried_again_keeps_its_birth() -> None:
    told = timeline({"app": "web", "born": "1000", "submitted": "9000"})
    assert [(moment.at, moment.what) for moment in told] == [
        (1.0, "handed in by web"),
        (9.0, "an operator put it back in line"),
    ]


def test_of_one_moment_the_failure_comes_before_what_an_operator_made_of_it() -> None:
    told = timeline(
        {
            "app": "web",
            "born": "1000",
            "submitted": "3000",
            "past": "1,n1,2000,3000,error;1,n1,4000,5000,crash",
        }
    )
    assert [moment.what for moment in told] == [
        "handed in by web",
        "attempt 1: taken by n1",
        "attempt 1: the backend on n1 failed",
        "an operator put it back in line",
        "attempt 1: taken by n1",
        "attempt 1: n1 was lost, its lease ran out",
    ]


def test_why_it_was_taken() -> None:
    helped = taken(_STORY)
    assert helped is not None
    assert (helped.own_ms, helped.reference_ms, helped.capacity, helped.position) == (2000, 1000, 4, 2)
    assert helped.text == (
        "2.0 s expected, 1.0 s on the faster nodes, but 12 waited for their 4 slots; "
        "2 before it suited other nodes better"
    )
    alone = taken({"why": "80|0|1.000|0|1|0|1"})
    assert alone is not None
    assert alone.text == "no node was expected to be faster than 80 ms; it was first in line"
    patient = taken({"why": "2000|1000|2.000|1|1|0|1"})
    assert patient is not None
    assert "it had waited long enough for their 1 slot;" in patient.text


@pytest.mark.parametrize("why", ["", "1|2", "a|b|c|d|e|f"])
def test_a_reason_of_another_release_is_none(why: str) -> None:
    assert taken({"why": why}) is None


def test_what_is_malformed_is_left_out() -> None:
    fields = {"past": ";x,y;1,n1,a,b,crash;;", "no:n1": "cheaper", "no:n2": "odd|x|5", "state": "odd"}
    assert [(each.node, each.claimed, each.how) for each in attempts(fields)] == [("n1", 0.0, "crash")]
    assert [(each.node, each.number, each.text) for each in refusals(fields)] == [("n2", 0.0, "left it: odd")]
    assert [moment.what for moment in timeline({**fields, "ended": "1000"})][-1] == "odd"


def test_an_answer_is_gone_on_with_after_the_loss_even_within_one_millisecond() -> None:
    told = timeline(
        {
            "app": "web",
            "submitted": "1000",
            "past": "1,n1,2000,3000,crash",
            "claimed": "3000",
            "node": "n2",
            "worker": "w2",
            "attempt": "2",
            "seams": "2,n2,3000,5,continued;",
            "ended": "3000",
            "state": "done",
        }
    )
    assert [moment.what for moment in told] == [
        "handed in by web",
        "attempt 1: taken by n1",
        "attempt 1: n1 was lost, its lease ran out",
        "attempt 2: taken by n2 (worker w2)",
        "attempt 2: n2 goes on at character 5 (continued)",
        "answered",
    ]
