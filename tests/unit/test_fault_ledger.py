"""The ledger of the fault tests catches each way to break the promise, and accepts what keeps it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ledger import Account, Fault, Told, Written, balance

WHOLE = (
    Written("start", 1),
    Written("piece", 1, 1, "one "),
    Written("piece", 1, 2, "two", at=4),
    Written("end", 1, text="one two", state="done"),
)
TAKEN_OVER = (*WHOLE[:2], Written("start", 2), Written("piece", 2, 1, "one two"), replace(WHOLE[3], fence=2))
GONE_ON = (*TAKEN_OVER[:3], Written("piece", 2, 1, "two", at=4), TAKEN_OVER[4])
KEPT = (Written("piece", 1, 1, "other"), Written("end", 1, text="one two", state="done"))
HEARD = Told("one two", streamed="one two")


def of(written: tuple[Written, ...], *told: Told, may_end: tuple[str, ...] = ("done",)) -> Account:
    return Account("j1", written, told or (HEARD,), "one two", may_end=frozenset(may_end))


@pytest.mark.parametrize(
    "account",
    [
        pytest.param(of(WHOLE), id="streamed"),
        pytest.param(of(WHOLE[3:], Told("one two")), id="not streamed"),
        pytest.param(of(TAKEN_OVER), id="answered by the second attempt"),
        pytest.param(of(GONE_ON), id="gone on with by the second attempt"),
        pytest.param(
            replace(of(KEPT, Told("one two")), streams=False), id="pieces kept for the next attempt"
        ),
        pytest.param(of(TAKEN_OVER, Told("one two", streamed="one ", broken=True)), id="its stream broke"),
        pytest.param(of(WHOLE, HEARD, HEARD), id="two clients"),
        pytest.param(
            of((Written("end", 3, state="dead"),), Told(error="JobDead"), may_end=("dead",)), id="dead letter"
        ),
        pytest.param(
            of((Written("end", 0, state="cancelled"),), Told(error="x"), may_end=("cancelled",)), id="other"
        ),
    ],
)
def test_a_promise_that_is_kept(account: Account) -> None:
    ledger = balance([account])
    assert ledger.findings == ()
    assert ledger.submitted == sum(ledger.ends.values()) == 1


@pytest.mark.parametrize(
    ("account", "faults"),
    [
        pytest.param(of((), Told()), {Fault.LOST, Fault.SILENT}, id="nothing"),
        pytest.param(of(WHOLE[:3]), {Fault.LOST}, id="no end"),
        pytest.param(of((*WHOLE, WHOLE[3])), {Fault.DOUBLED}, id="two ends"),
        pytest.param(of((*WHOLE, WHOLE[2])), {Fault.STALE, Fault.TORN}, id="a piece behind the end"),
        pytest.param(of((*WHOLE, Written("start", 2))), {Fault.STALE}, id="a start behind the end"),
        pytest.param(of((*TAKEN_OVER[:3], WHOLE[2], *TAKEN_OVER[3:])), {Fault.STALE}, id="a zombie's piece"),
        pytest.param(of((*TAKEN_OVER[:4], WHOLE[3])), {Fault.STALE}, id="a zombie's end"),
        pytest.param(of((*WHOLE[:3], *WHOLE[2:])), {Fault.TORN}, id="a doubled piece"),
        pytest.param(of((WHOLE[0], *WHOLE[2:])), {Fault.TORN}, id="a lost piece"),
        pytest.param(of((WHOLE[0], WHOLE[2], WHOLE[1], WHOLE[3])), {Fault.TORN}, id="pieces out of order"),
        pytest.param(of((*WHOLE[:2], WHOLE[3])), {Fault.TORN}, id="a truncated stream"),
        pytest.param(
            of((*GONE_ON[:3], replace(GONE_ON[3], at=5), GONE_ON[4])), {Fault.TORN}, id="a gap at the seam"
        ),
        pytest.param(
            of((*TAKEN_OVER[:3], Written("piece", 2, 1, "ONE two"), TAKEN_OVER[4])),
            {Fault.TORN},
            id="another text than was shown",
        ),
        pytest.param(of(KEPT), {Fault.TORN}, id="pieces that are not the answer"),
        pytest.param(
            of((replace(WHOLE[3], text="three"),), Told("three")), {Fault.MIXED}, id="another job's text"
        ),
        pytest.param(of(WHOLE, Told("three")), {Fault.MIXED, Fault.CONTRADICTED}, id="told another's text"),
        pytest.param(
            of(WHOLE, Told("one two", streamed="one ")), {Fault.TORN}, id="a stream that ends early"
        ),
        pytest.param(of(WHOLE, HEARD, Told()), {Fault.SILENT}, id="one of two waits in vain"),
        pytest.param(of(WHOLE, Told(error="JobLost")), {Fault.CONTRADICTED}, id="told an error"),
        pytest.param(
            of((Written("end", 1, state="failed"),)), {Fault.ENDED_BADLY, Fault.CONTRADICTED}, id="failed"
        ),
    ],
)
def test_a_promise_that_is_broken(account: Account, faults: set[Fault]) -> None:
    ledger = balance([of(WHOLE), account])
    assert {finding.fault for finding in ledger.findings} == faults
    assert all(ledger.count(fault) == 1 for fault in faults)
    assert all(str(fault) in str(ledger) for fault in faults)


def test_what_may_be_answered_anyhow_is_only_counted() -> None:
    ledger = balance([Account("j1", WHOLE), Account("j2", (), own_text="x")])
    assert (ledger.submitted, ledger.ends) == (2, {"done": 1})
    assert [finding.fault for finding in ledger.findings] == [Fault.LOST]


@pytest.mark.parametrize(("told", "faults"), [(HEARD, []), (Told(), [Fault.LOST, Fault.SILENT])])
def test_redis_may_forget_only_what_its_client_was_told(told: Told, faults: list[Fault]) -> None:
    ledger = balance([replace(of(WHOLE[:3], told), may_be_forgotten=True)])
    assert [finding.fault for finding in ledger.findings] == faults
