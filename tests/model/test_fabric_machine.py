"""The function library keeps its promises in any order of calls; a library that does not is found out."""

from __future__ import annotations

import os

import pytest
from fabric_machine import FabricMachine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from mutants import mutant
from sollol_broker.errors import BrokerUnavailable
from sollol_broker.library import Library

# `make storm` asks for more, and for other ones each time.
_EXAMPLES = int(os.environ.get("SOLLOL_MODEL_EXAMPLES", "0"))
_USUAL = settings(
    max_examples=_EXAMPLES or 120,
    stateful_step_count=40,
    derandomize=not _EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


def _machine(url: str, functions: Library | None = None) -> type[FabricMachine]:
    return type("Machine", (FabricMachine,), {"url": url, "functions": functions})


def test_in_any_order_of_calls_every_promise_holds(redis_url: str) -> None:
    run_state_machine_as_test(_machine(redis_url), settings=_USUAL)


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        pytest.param("local FENCED = true", "local FENCED = false", id="no fence"),
        pytest.param(
            "return state == 'running' and fence == my_fence and nonce == my_nonce",
            "return state == 'running' and fence == my_fence",
            id="a fence without a nonce",
        ),
        pytest.param(
            "if h[1] ~= 'queued' and h[1] ~= 'running' then return",
            "if false then return",
            id="no latch of the end",
        ),
        pytest.param("if seq <= tonumber(h[4]) then return 1 end", "", id="pieces that may be repeated"),
        pytest.param(
            "if state then return {'known'",
            "if false then return {'known'",
            id="jobs that may be submitted twice",
        ),
        pytest.param(
            "if again then return {'ok', again, '-1'} end", "", id="claims that may not be repeated"
        ),
        pytest.param(
            "if fair.bytes > 0 then redis.call('HINCRBY', F .. ':stats', 'bytes', -fair.bytes) end",
            "",
            id="bytes that are never given back",
        ),
        pytest.param("redis.call('PEXPIRE', events, ttl)", "", id="events that live for ever"),
    ],
)
def test_a_broken_library_is_found_out(redis_url: str, line: str, instead: str) -> None:
    broken = _machine(redis_url, mutant(line, instead))
    hunt = settings(_USUAL, max_examples=1_000, phases=(Phase.generate,), report_multiple_bugs=False)
    with pytest.raises((AssertionError, BrokerUnavailable)):  # the latter: a function that fails
        run_state_machine_as_test(broken, settings=hunt)
