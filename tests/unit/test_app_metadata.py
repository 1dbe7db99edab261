"""What applications show of themselves can be large, deep or odd, and breaks nothing that shows it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sollol_broker.app_metadata import metadata_of, metadata_text
from sollol_broker.errors import InvalidJob


def _strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"team": "a", "agents": 3, "on": True, "none": None}, None),
        ({"tags": ["x", {"y": 1.5}]}, None),
        ({"load": float("nan"), "most": float("inf")}, {"load": "nan", "most": "inf"}),
        ({(1, 2): 3, 4: {5}}, {"(1, 2)": 3, "4": [5]}),
        ({"path": b"x"}, {"path": "b'x'"}),
        ({"a": "\ud800\x00<script>"}, None),
    ],
)
def test_it_comes_back_as_plain_data(given: dict[Any, Any], shown: dict[str, Any] | None) -> None:
    text = metadata_text(given)
    assert _strict(text) == metadata_of(text) == (given if shown is None else shown)


def test_what_is_too_deep_is_cut() -> None:
    deep: Any = "end"
    for _ in range(900):
        deep = [deep]
    (cut,) = metadata_of(metadata_text({"deep": deep, "text": "kept"}))["deep"]
    assert json.dumps(cut) == "[[[[[[" + '"\\u2026"' + "]]]]]]"
    assert metadata_of('{"a":' + "[" * 9_000 + "]" * 9_000 + "}") == {}
    assert metadata_of('{"a":' + "[" * 900 + "]" * 900 + ',"text":"kept"}')["text"] == "kept"


def test_what_is_too_long_is_refused_and_not_read() -> None:
    with pytest.raises(InvalidJob, match="at most 16,384") as told:
        metadata_text({"notes": "x" * 20_000})
    assert told.value.field == "metadata"
    assert metadata_of(json.dumps({"notes": "x" * 40_000})) == {}
