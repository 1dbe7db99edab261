"""The linter that runs before all tests refuses what runs code while it reads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_REFUSED = """
import pickle
from pickle import loads
import shelve
from dill import load
from rq.serializers import DefaultSerializer
"""
_FINE = """
import json
from rq.serializers import JSONSerializer
"""


def test_pickle_and_its_kin_are_refused() -> None:
    ruff = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--no-cache"]
    done = subprocess.run(
        [*ruff, "--stdin-filename", "coordinator/sollol_coordinator/new.py", "-"],
        input=f"{_REFUSED}{_FINE}",
        capture_output=True,
        text=True,
        check=False,
        cwd=_ROOT,
    )
    lines = {int(line) for line in re.findall(r":(\d+):\d+: TID251", done.stdout)}
    assert lines == set(range(2, 7)), done.stdout
