"""The keys of Python and those of the functions are the same."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from lupa import lua51  # type: ignore[import-untyped]  # it ships no stubs

from sollol_broker.errors import InvalidJob
from sollol_broker.keys import Keys, is_permanent
from sollol_broker.library import source

_LUA = (files("sollol_broker") / "lua" / "_keys.lua").read_text("utf-8")
_FAMILIES = re.findall(r"local function (\w+)_key\(F", _LUA)
_SINGLES = (
    *(
        "leases",
        "delayed",
        "deadlines",
        "dead",
        "failed",
        "ended",
        "ended_chunks",
        "workers",
        "apps",
        "models",
        "stats",
        "limits",
    ),
    *("series_models", "series_nodes"),
    *("batches", "batch_due"),
    *("hedges", "crashes", "controls", "policy", "caches", "leader", "groups", "log"),
    "errands",
)
# Written and read by workers, the coordinator or the gateway alone, each command by itself.
_PYTHON_ONLY = {"pace", "estimate", "errand", "errands_of"}


def _lua_key(family: str, prefix: str, part: str) -> str:
    run = lua51.LuaRuntime()
    return str(run.execute(f"{_LUA}\nreturn {family}_key")(prefix, part))


@pytest.mark.parametrize("fabric", ["", "cell-2", "Odd Cell".replace(" ", ":")])
@pytest.mark.parametrize("family", _FAMILIES)
def test_lua_builds_the_same_key(family: str, fabric: str) -> None:
    keys = Keys(fabric)
    assert _lua_key(family, keys.prefix, "some.name-1") == getattr(keys, family)("some.name-1")


def test_each_family_of_python_has_its_twin() -> None:
    methods = {name for name in vars(Keys) if not name.startswith("_") and callable(getattr(Keys, name))}
    assert methods - _PYTHON_ONLY == set(_FAMILIES)


def test_each_single_key_is_built_alike() -> None:
    in_lua = set(re.findall(r"F \.\. ':(\w+)'", source()))
    assert in_lua <= set(_SINGLES)
    for name in _SINGLES:
        assert getattr(Keys(), name) == f"{{sollol}}:{name}"


@pytest.mark.parametrize(("fabric", "prefix"), [("", "{sollol}"), ("cell-1", "{sollol:cell-1}")])
def test_one_hash_tag_for_the_whole_fabric(fabric: str, prefix: str) -> None:
    keys = Keys(fabric)
    assert keys.prefix == prefix
    assert {keys.job("x").split("}")[0], keys.leases.split("}")[0]} == {prefix[:-1]}


def test_a_fabric_cannot_break_out_of_the_tag() -> None:
    assert re.fullmatch(r"\{sollol:[a-z0-9._~-]+\}", Keys("a}b:{c").prefix)
    with pytest.raises(InvalidJob, match="fabric"):
        _ = Keys("two words").prefix


def test_the_few_that_live_for_ever() -> None:
    keys = Keys("cell-1")
    for name in _SINGLES:
        assert is_permanent(getattr(keys, name)) == (name != "ended_chunks")
    assert is_permanent(keys.queue("m"))
    for key in (
        keys.job("x"),
        keys.blob("x"),
        keys.events("x"),
        keys.idle("m"),
        keys.serves("m"),
        keys.inbox("w"),
    ):
        assert not is_permanent(key)
    for key in ("stats", "other:stats"):
        assert not is_permanent(key)
