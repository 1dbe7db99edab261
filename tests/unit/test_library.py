"""The function library is whole, says what it does, and keeps to the rules of the house."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from sollol_broker.library import VERBS, build, library, source

_FILES = {file.name: file.read_text("utf-8") for file in (files("sollol_broker") / "lua").iterdir()}


def test_every_file_is_part_of_it() -> None:
    assert all(text in source() for text in _FILES.values())
    assert {name.removesuffix(".lua") for name in _FILES if not name.startswith("_")} == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_opens_with_its_contract(verb: str) -> None:
    head = re.match(r"(?:--[^\n]*\n)+", _FILES[f"{verb}.lua"])
    assert head, f"{verb}.lua does not open with a comment"
    contract = head[0]
    assert contract.startswith(f"-- {verb}: ")
    for part in ("-- KEYS 1 fabric prefix\n", "\n-- ARGV 1 ", "\n-- returns "):
        assert part in contract, f"the contract of {verb}.lua lacks {part.strip()!r}"


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_registered_once_under_its_name(verb: str) -> None:
    registered = re.findall(r"^verb\('(\w+)', \w+(, \{'allow-oom'\})?\)", _FILES[f"{verb}.lua"], re.M)
    # Only new work may be refused by a full memory: all else frees some, or keeps work from being lost.
    assert registered == [(verb, "" if verb in ("submit", "keep", "batch", "feed") else ", {'allow-oom'}")]


def test_all_keys_of_a_call_share_the_one_it_names() -> None:
    for name, text in _FILES.items():
        assert not re.search(r"keys\[[^1]\]", text), f"{name} takes more than the prefix"


def test_nothing_walks_over_the_whole_keyspace() -> None:
    for name, text in _FILES.items():
        found = re.findall(r"'(KEYS|SCAN|EVAL\w*|FLUSH\w*|SELECT|RANDOMKEY|SORT|LOAD\w*)'", text, re.I)
        assert not found, f"{name} calls {found}"
        assert not re.search(r"\b(loadstring|dofile|require|setfenv)\b\s*\(", text), name


def test_the_version_is_a_digest_of_the_code() -> None:
    ours = library()
    assert build(source()) == ours
    changed = build(source() + "\n-- one more line\n")
    assert changed.version != ours.version
    assert changed.name != ours.name
    assert changed.function("claim") != ours.function("claim")


def test_the_code_carries_its_names() -> None:
    ours = library()
    assert ours.code.startswith(f"#!lua name={ours.name}\n".encode())
    assert b"@VERSION@" not in ours.code
    assert ours.function("claim") == f"sollol_{ours.version}_claim".encode()
    assert re.fullmatch(r"\w+", ours.name)
