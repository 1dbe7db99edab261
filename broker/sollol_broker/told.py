"""What other processes have told through Redis, read as what it should be: whatever is not counts as not told. Pure.

Anybody who may write there may write nonsense, and so may a release of another year. One such record must not keep
anybody from seeing the others.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Beyond it JSON's readers take one whole number for another; no count, size or moment of ours comes near.
_MOST = 2.0**53
# Of a text that is shown to people; names have at most 200.
_MOST_CHARS = 1000
# What every number beyond it has in it, and some others.
_ODD = re.compile(r"[0-9](?:[eE]|[0-9]{15})")


def text(value: bytes | str | None) -> str:
    """A text; "" = none."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""


def texts(flat: Iterable[bytes]) -> dict[str, str]:
    """The fields of a hash as HGETALL gives them."""
    words = [text(each) for each in flat]
    return dict(zip(words[::2], words[1::2], strict=False))


def number(value: Any) -> float:
    """A number; 0 = none."""
    try:
        found = float(value or 0)
    except (TypeError, ValueError):
        return 0.0
    return found if abs(found) < _MOST else 0.0  # nor is one that is none


def whole(value: Any) -> int:
    """A whole number; 0 = none."""
    found = number(value)
    return int(found) if found.is_integer() else 0


_PLAIN = json.JSONDecoder(parse_constant=lambda name: None)
_CAREFUL = json.JSONDecoder(parse_int=whole, parse_float=number, parse_constant=lambda name: None)


def plain(value: bytes | str | None) -> Any:
    """What JSON says, with numbers that are some; None = nothing, or it is no JSON."""
    found = text(value) or "null"
    try:
        if not _ODD.search(found):  # each number of a thousand nodes costs a call otherwise
            return _PLAIN.decode(found)
        return _CAREFUL.decode(found)
    except (ValueError, RecursionError):
        return None


def like(example: Any, value: Any) -> Any:
    """As much of a value as is of the same kind as the example; None = nothing of it.

        like({"name": "", "slots": 0, "models": [""]}, {"name": 7, "slots": 2, "models": ["m", None]})
        # {"slots": 2, "models": ["m"]}

    A list's first item is an example of all of its items. Of a map, fields that the example does not name stay as they
    are, unless it has an example of those under "". Texts are cut to 1,000 characters.
    """
    # By type and not by protocol: a thousand nodes are a hundred thousand of these questions.
    kind = type(example)
    if kind is dict:
        return _map_like(example, value) if isinstance(value, dict) else None
    if kind is list:
        found = [like(example[0], each) for each in value] if isinstance(value, list) else []
        return [each for each in found if each is not None]
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is int or kind is float:
        return value if isinstance(value, int | float) and math.isfinite(value) else None
    return value[:_MOST_CHARS] if kind is str and isinstance(value, str) else None


def _map_like(example: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, each in value.items():
        if len(name) > _MOST_CHARS:
            continue
        wanted = example.get(name, example.get(""))
        fit = each if wanted is None else like(wanted, each)
        if wanted is None or fit is not None:
            found[name] = fit
    return found
