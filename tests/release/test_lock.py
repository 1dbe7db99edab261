"""The lock file covers what pyproject.toml asks for, each version with its hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).parents[2]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
# What only those need who work on SOLLOL itself.
_NOT_LOCKED = {"dev", "conformance", "bench", "docs", "release"}
_PINNED = re.compile(
    r"^([\w.-]+)==(\S+)(?: ; [^\n]*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M
)


@pytest.mark.parametrize(
    "needed",
    sorted(
        {
            *_PROJECT["dependencies"],
            *(
                needed
                for extra, all_needed in _PROJECT["optional-dependencies"].items()
                if extra not in _NOT_LOCKED
                for needed in all_needed
                if not needed.startswith("sollol[")
            ),
        }
    ),
)
def test_what_is_needed_is_locked_with_its_hashes(needed: str) -> None:
    locked = {canonicalize_name(name): version for name, version, _ in _pins()}
    requirement = Requirement(needed)
    version = locked.get(canonicalize_name(requirement.name))
    assert version, f"{needed} is not in requirements.lock: run `make lock`"
    assert version in requirement.specifier, f"{needed} is locked at {version}: run `make lock`"


def test_nothing_is_locked_without_a_hash() -> None:
    lines = [line for line in (_ROOT / "requirements.lock").read_text().splitlines() if "==" in line]
    assert len(_pins()) == len(lines) > 20


def _pins() -> list[tuple[str, str, str]]:
    return _PINNED.findall((_ROOT / "requirements.lock").read_text())
