"""What others have told is read as what it should be; nonsense counts as not told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sollol_broker.told import like, number, plain, text, texts, whole

NONE: tuple[Any, ...] = (None, b"", b"x", "nan", "-inf", b"\xff", "9" * 400, "9" * 5000, [], {})


@pytest.mark.parametrize(
    ("given", "wanted"), [(b"7", 7.0), ("1.5", 1.5), (3, 3.0), *((each, 0.0) for each in NONE)]
)
def test_numbers(given: Any, wanted: float) -> None:
    assert number(given) == wanted
    assert whole(given) == (wanted if wanted.is_integer() else 0)


def test_texts_that_are_none() -> None:
    assert text(b"a\xff\x00") == "a\ufffd\x00"
    assert texts([b"name", b"\xc3\xa4", b"odd"]) == {"name": "ä"}


@pytest.mark.parametrize(
    "given", [None, b"", "{", b"\xff", "[" * 100_000, '{"a":' * 50_000, "9" * 5000 + "x"]
)
def test_what_is_no_json_is_nothing(given: Any) -> None:
    assert plain(given) is None


def test_json_holds_only_numbers_that_browsers_can_read() -> None:
    found = plain('{"a": NaN, "b": -Infinity, "c": 1e999, "d": %s, "e": 2.5, "f": 3}' % ("9" * 5000))
    assert found == {"a": None, "b": None, "c": 0.0, "d": 0, "e": 2.5, "f": 3}
    json.loads(json.dumps(found, allow_nan=False))


EXAMPLE = {"name": "", "slots": 0, "is_on": True, "models": [""], "places": [{"mib": 0}], "by_name": {"": 0}}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"name": "x", "slots": 2.5, "is_on": False}, {"name": "x", "slots": 2.5, "is_on": False}),
        ({"name": 7, "slots": "2", "is_on": 1, "models": "m"}, {"models": []}),
        ({"name": None, "slots": True, "models": ["m", 1, None, {}]}, {"models": ["m"]}),
        ({"places": [{"mib": 1}, {"mib": {"toString": 1}}, 5]}, {"places": [{"mib": 1}, {}]}),
        ({"by_name": {"m": 1, "__proto__": "x", "n": None}}, {"by_name": {"m": 1}}),
        ({"slots": float("inf"), "of_another_release": [1]}, {"of_another_release": [1]}),
        ({"name": "x" * 100_000, "y" * 100_000: 1}, {"name": "x" * 1000}),
        ([1], None),
        (None, None),
    ],
)
def test_what_is_of_another_kind_is_left_out(given: Any, wanted: Any) -> None:
    assert like(EXAMPLE, given) == wanted
