"""Every order of events of the lease and of the leader: SPIN looks at them all, and finds weaker rules out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_MODELS = Path(__file__).parent
_HOW_TO_INSTALL = "install the model checker with: apt-get install spin gcc libc6-dev"


@pytest.fixture(autouse=True, scope="module")
def spin() -> None:
    """`make test` installs SPIN where it may; where it may not, these are the only tests that do without."""
    if missing := [name for name in ("spin", "gcc") if not shutil.which(name)]:
        text = f"{' and '.join(missing)} not found; {_HOW_TO_INSTALL}"
        if os.geteuid() == 0:
            pytest.fail(text)
        pytest.skip(f"not root, so nothing could be installed: {text}")


def _explore(folder: Path, model: str, **variant: int) -> tuple[int, int]:
    """Look at every state of a variant of a model; gives the errors found, and how many states there are."""
    choices = [f"-D{name}={value}" for name, value in variant.items()]
    _run(folder, "spin", "-a", *choices, str(_MODELS / f"{model}.pml"))
    # SAFETY: assertions and deadlocks only, which is faster.
    _run(folder, "gcc", "-O1", "-w", "-DSAFETY", "-o", "pan", "pan.c")
    told = _run(folder, "./pan", "-m100000")
    found = re.search(r"errors: (\d+)", told)
    states = re.search(r"(\d+) states, stored", told)
    assert found, told
    assert states, told
    assert "max search depth too small" not in told
    return int(found[1]), int(states[1])


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command[0]} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize(("model", "at_least"), [("lease", 10_000), ("leader", 1_000)])
def test_no_order_of_events_breaks_the_promise(tmp_path: Path, model: str, at_least: int) -> None:
    errors, states = _explore(tmp_path, model)
    assert errors == 0
    assert states > at_least, "so few states: the model does nothing"


def test_without_failover_the_fence_alone_would_do(tmp_path: Path) -> None:
    assert _explore(tmp_path, "lease", SHOWN=1, FAILOVER=0)[0] == 0


@pytest.mark.parametrize(
    ("model", "variant"),
    [
        pytest.param("lease", {"SHOWN": 0, "FAILOVER": 0}, id="no fence"),
        pytest.param("lease", {"SHOWN": 1}, id="a fence alone, and a failover"),
        pytest.param("lease", {"LATCH": 0}, id="a client without a latch"),
        pytest.param("leader", {"CHECKED": 0, "FAILOVER": 0}, id="a leader without a check of its term"),
        pytest.param("leader", {"COUNTER": 1}, id="counted terms, and a failover"),
    ],
)
def test_a_weaker_rule_is_found_out(tmp_path: Path, model: str, variant: dict[str, int]) -> None:
    assert _explore(tmp_path, model, **variant)[0] > 0
