"""msgpack in and out, with limits: what comes from Redis may have been written by anyone."""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no stubs

from .errors import InvalidJob

# 1 MB of empty maps unpacks to 73 MB; real requests have a few thousand items at most. It bounds each list,
# and all lists and maps together: many lists side by side or in each other would explode as well.
_MAX_ITEMS = 100_000
_MAX_MAP = 10_000


def pack(value: Any) -> bytes:
    """Encode plain data (dict, list, str, bytes, numbers, None).

    Raises:
        InvalidJob: the value holds something else.
    """
    try:
        return bytes(msgpack.packb(value, use_bin_type=True))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidJob(f"only plain data can be sent: {error}") from error


def unpack(data: bytes, *, max_bytes: int, max_items: int = _MAX_ITEMS) -> Any:
    """Decode what `pack` made; refuses more than `max_bytes`, and shapes that would explode in memory.

    Raises:
        InvalidJob: too large, malformed, or nested too deeply.
    """
    if len(data) > max_bytes:
        raise InvalidJob(f"the message has {len(data)} bytes, the limit is {max_bytes}")
    containers = 0

    def counted(container: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > max_items:
            raise ValueError
        return container

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
            object_hook=counted,
            list_hook=counted,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        # UnpackException's text may quote the data, so only its kind is handed on.
        raise InvalidJob(f"the message is malformed ({type(error).__name__})") from None


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError
