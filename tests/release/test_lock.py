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


def test_the_image_has_the_same_versions_of_what_its_extras_need() -> None:
    makefile = (_ROOT / "Makefile").read_text()
    extras = re.findall(r"^IMAGE := (.+)$", makefile, re.M)[0].split()
    pins = _PINNED.findall((_ROOT / "compose" / "requirements.lock").read_text())
    image = {canonicalize_name(name): version for name, version, _ in pins}
    locked = {canonicalize_name(name): version for name, version, _ in _pins()}
    assert {name: locked.get(name) for name in image} == image
    needed = [
        *_PROJECT["dependencies"],
        *(each for extra in extras for each in _PROJECT["optional-dependencies"][extra]),
    ]
    names = {canonicalize_name(Requirement(each).name) for each in needed if not each.startswith("sollol[")}
    assert names <= image.keys(), "run `make lock`"
