"""The broker's face hands on exactly what it promises."""

from __future__ import annotations

import types

import sollol_broker


def test_all_names_exist_and_nothing_else_is_public() -> None:
    public = {
        name
        for name, value in vars(sollol_broker).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }
    assert public == set(sollol_broker.__all__)


def test_all_is_sorted_and_without_doubles() -> None:
    names = sollol_broker.__all__
    assert len(names) == len(set(names))
