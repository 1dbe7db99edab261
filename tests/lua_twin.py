"""Runs the functions of the Lua library on plain Python data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from lupa import lua51  # type: ignore[import-untyped]  # it ships no stubs

LUA = lua51.LuaRuntime(unpack_returned_tuples=True)


def function(file: str, name: str) -> Callable[..., Any]:
    """A local function, or another value, of one of the library's files."""
    code = (files("sollol_broker") / "lua" / file).read_text("utf-8")
    found: Callable[..., Any] = LUA.execute(f"{code}\nreturn {name}")
    return found


def table(value: Any) -> Any:
    """Lists and dicts as Lua tables, all the way down."""
    if isinstance(value, Mapping):
        return LUA.table_from({key: table(each) for key, each in value.items()})
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return LUA.table_from([table(each) for each in value])
    return value
