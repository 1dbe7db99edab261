"""The documentation's site: every page is in it, every link in it leads somewhere, and it fetches nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
# What makes a browser fetch something by itself; a link that a reader may follow is no such thing.
_FETCHES = re.compile(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"?(https?://[^\" >]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=_ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_on_the_site_and_fetches_nothing(site: Path) -> None:
    pages = {path.stem for path in (_ROOT / "docs").glob("*.md")}
    built = {path.stem: path.read_text("utf-8") for path in site.glob("*.html")}
    assert pages <= built.keys()
    fetched = {name: urls for name, text in built.items() if (urls := _FETCHES.findall(text))}
    assert not fetched
    navigation = (_ROOT / "mkdocs.yml").read_text("utf-8")
    assert {page for page in pages if f"{page}.md" not in navigation} == set()


def test_the_reference_has_the_docstrings(site: Path) -> None:
    text = (site / "reference.html").read_text("utf-8")
    for name in (
        "sollol_client.client.Client",
        "sollol_client.aio.AsyncClient.batch",
        "sollol_broker.errors.QueueFull",
    ):
        assert f'id="{name}"' in text
