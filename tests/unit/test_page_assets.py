"""What browsers get: nothing from elsewhere, nothing inline, and no script that reads markup out of data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sollol_coordinator.page

_ROOT = Path(sollol_coordinator.page.__file__).parent
_SCRIPTS = sorted((_ROOT / "static").rglob("*.js"))
_TEMPLATES = sorted((_ROOT / "templates").glob("*.html"))
# Ways from text to code, or to elements.
_DANGEROUS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc|\beval\b"
    r"|new Function|setTimeout\(\s*[\"'`]|javascript:|\.href\s*=|location\s*=[^=]|window\.open|postMessage"
)
_ELSEWHERE = re.compile(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", re.IGNORECASE)


def test_there_is_something_to_look_at() -> None:
    assert len(_SCRIPTS) > 10
    assert len(_TEMPLATES) == 3


@pytest.mark.parametrize("path", _SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_text_of_data(path: Path) -> None:
    assert not _DANGEROUS.search(path.read_text("utf-8"))


@pytest.mark.parametrize("path", _TEMPLATES, ids=lambda path: path.name)
def test_templates_hold_no_script_no_style_and_no_handler(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not re.findall(r"<script(?![^>]*\ssrc=)", text)
    assert not re.findall(r"<style|\sstyle=|\son[a-z]+\s*=|\|\s*safe\b|autoescape false|javascript:", text)


@pytest.mark.parametrize(
    "path", [*_SCRIPTS, *_TEMPLATES, *(_ROOT / "static").glob("*.css")], ids=lambda path: path.name
)
def test_nothing_comes_from_elsewhere(path: Path) -> None:
    text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not _ELSEWHERE.search(text)
    assert "@import" not in text


def test_every_script_that_is_imported_is_there() -> None:
    for path in _SCRIPTS:
        for wanted in re.findall(r'from "(\.[^"]+)"', path.read_text("utf-8")):
            assert (path.parent / wanted).resolve() in _SCRIPTS, (path.name, wanted)
