"""msgpack in and out, with limits: what comes from Redis may have been written by anyone."""

from __future__ import annotations

import math
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no stubs

from .errors import InvalidJob

# 1 MB of empty maps unpacks to 73 MB; real requests have a few thousand items at most. It bounds each list,
# and all lists and maps together: many lists side by side or in each other would explode as well.
_MAX_ITEMS = 100_000
_MAX_MAP = 10_000
# A short text takes 3 bytes on the way and 72 in memory: so many stay below 8 MiB, 8 times the longest request.
_MOST_VALUES = 50_000
# Far more than any schema of a tool needs, and far less than a JSON encoder's stack can take.
_MOST_DEPTH = 100


def pack(value: Any) -> bytes:
    """Encode plain data (dict, list, str, bytes, numbers, None).

    Raises:
        InvalidJob: the value holds something else.
    """
    try:
        return bytes(msgpack.packb(value, use_bin_type=True))
    except UnicodeEncodeError:
        raise InvalidJob(
            "a text in it is not Unicode (half of a surrogate pair, or bytes that were not UTF-8): decode it rightly"
        ) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidJob(f"only plain data can be sent: {error}") from error


def unpack(data: bytes, *, max_bytes: int, max_items: int = _MAX_ITEMS) -> Any:
    """Decode what `pack` made; refuses more than `max_bytes`, and shapes that would explode in memory.

    Raises:
        InvalidJob: too large, malformed, or nested too deeply.
    """
    containers = 0

    def counted(container: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > max_items:
            raise ValueError
        return container

    return _unpack(data, max_bytes, max_items, object_hook=counted, list_hook=counted)


def unpack_request(data: bytes, *, max_bytes: int) -> Any:
    """Decode what `pack` made of a request: only what JSON can carry, too, since backends get it as JSON.

    Raises:
        InvalidJob: as `unpack`; or it has bytes, a number that is none, a key twice, more than 50,000 values, or
            more than 100 lists and maps within each other.
    """
    values = 0

    def count(more: int) -> None:
        nonlocal values
        values += more
        if values > _MOST_VALUES:
            raise InvalidJob(f"more than {_MOST_VALUES:,} values: send several jobs")

    def listed(items: list[Any]) -> list[Any]:
        count(len(items))
        return items

    def mapped(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        count(2 * len(pairs))
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise InvalidJob("a key occurs twice in one map")
        return fields

    plain = _unpack(data, max_bytes, _MOST_VALUES, object_pairs_hook=mapped, list_hook=listed)
    _check_json(plain)
    return plain


def _unpack(data: bytes, max_bytes: int, max_items: int, **hooks: Any) -> Any:
    if len(data) > max_bytes:
        raise InvalidJob(f"the message has {len(data)} bytes, the limit is {max_bytes}")
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=max_bytes,
            max_bin_len=max_bytes,
            max_array_len=max_items,
            max_map_len=_MAX_MAP,
            max_ext_len=0,
            ext_hook=_no_extension,
            **hooks,
        )
    except InvalidJob:
        raise
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        # UnpackException's text may quote the data, so only its kind is handed on.
        raise InvalidJob(f"the message is malformed ({type(error).__name__})") from None


def _check_json(plain: Any) -> None:
    level, depth = [[plain]], 0
    while level:
        if depth > _MOST_DEPTH:
            raise InvalidJob(f"lists and maps are nested more than {_MOST_DEPTH} deep")
        below: list[Any] = []
        for container in level:
            for value in container.values() if isinstance(container, dict) else container:
                if isinstance(value, dict | list):
                    below.append(value)
                elif isinstance(value, bytes):
                    raise InvalidJob("bytes can only be sent as pictures, in images")
                elif isinstance(value, float) and not math.isfinite(value):
                    raise InvalidJob(f"{value} is no number that JSON can carry")
        level, depth = below, depth + 1


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError
