"""What these frameworks leave behind is theirs, not ours."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They never close their connections."""
    for item in items:
        if "frameworks" in item.path.parts:
            for ignored in ("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"):
                item.add_marker(pytest.mark.filterwarnings(ignored))


@pytest.fixture(autouse=True)
def _swept() -> Iterator[None]:
    """What was left open is closed here, and troubles no other test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
