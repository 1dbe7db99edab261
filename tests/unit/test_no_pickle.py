"""The linter that runs before all tests refuses what runs code while it reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


def _complaints(code: str) -> str:
    ruff = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--no-cache"]
    done = subprocess.run(
        [*ruff, "--stdin-filename", "coordinator/sollol_coordinator/new.py", "-"],
        input=f'"""A new file."""\n\n{code}\n',
        capture_output=True,
        text=True,
        check=False,
        cwd=_ROOT,
    )
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\n\nprint(pickle)",
        "from pickle import loads\n\nLOADS = loads",
        "import shelve\n\nDB = shelve.open",
        "from dill import loads\n\nLOADS = loads",
        "from rq.serializers import DefaultSerializer\n\nS = DefaultSerializer",
    ],
)
def test_pickle_and_its_kin_are_refused(code: str) -> None:
    assert "TID251" in _complaints(code)


def test_json_is_not() -> None:
    assert "TID251" not in _complaints("import json\n\nLOADS = json.loads")
