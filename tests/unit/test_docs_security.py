"""docs/security.md promises tests; they exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_ROWS = [
    line.split("|")
    for line in (_ROOT / "docs" / "security.md").read_text("utf-8").splitlines()
    if line.startswith("| ") and "::" in line
]
_TESTS = sorted({test for row in _ROWS for test in re.findall(r"`([\w/]+\.py::\w+)`", row[3])})


def test_every_threat_has_a_control_and_a_test() -> None:
    assert len(_ROWS) > 15
    for _, threat, control, tests, _ in _ROWS:
        assert threat.strip()
        assert control.strip()
        assert "`" in tests, threat


@pytest.mark.parametrize("test", _TESTS)
def test_each_test_exists(test: str) -> None:
    path, name = test.split("::")
    code = (_ROOT / "tests" / path).read_text("utf-8")
    assert re.search(rf"^(async )?def {name}\(", code, flags=re.MULTILINE), (
        "rename it in docs/security.md, too"
    )
