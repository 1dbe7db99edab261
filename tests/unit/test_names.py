"""Names that people choose: their one spelling, and what becomes of them in a key."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_broker.errors import InvalidJob
from sollol_broker.keys import Keys
from sollol_broker.names import MAX_NAME_CHARS, canonical_model, check_name, key_part

# Letters that mean something to Redis, to our own keys, or to a terminal.
ODD_NAMES = st.text(
    st.sampled_from(":{}*\r\n|~?[]\\ \0aA.-_éß中") | st.characters(codec="utf-8"), max_size=80
)


@settings(max_examples=500, deadline=None)
@given(ODD_NAMES)
def test_no_name_leaves_the_prefix(name: str) -> None:
    part = key_part(name)
    assert re.fullmatch(r"[a-z0-9._~-]{1,64}", part)
    keys = Keys("cell-1")
    for key in (keys.queue(part), keys.node(name), keys.app(name), keys.tally(name)):
        head, _, tail = key.partition("}:")
        assert head == "{sollol:cell-1"
        assert re.fullmatch(r"(queue|node|app|tally):[a-z0-9._~-]+", tail)


@settings(max_examples=1_000, deadline=None)
@given(ODD_NAMES, ODD_NAMES)
def test_two_names_never_share_a_part(one: str, other: str) -> None:
    assert (key_part(one) == key_part(other)) == (one == other)


@given(ODD_NAMES)
def test_a_part_can_not_be_claimed_as_a_name(name: str) -> None:
    part = key_part(name)
    if part != name:
        assert key_part(part) != part  # it holds "~", which no plain name does


def test_a_plain_name_stays_readable() -> None:
    assert key_part("llama3.2") == "llama3.2"
    assert re.fullmatch(r"llama3\.2-1b~[0-9a-f]{16}", key_part("llama3.2:1b"))
    assert key_part("llama3.2:1b") != key_part("llama3.2-1b")


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("llama3.2", "llama3.2"),
        ("Llama3.2", "llama3.2"),
        ("llama3.2:latest", "llama3.2"),
        ("LLAMA3.2:LATEST", "llama3.2"),
        ("llama3.2:1b", "llama3.2:1b"),
        ("library/llama3.2", "llama3.2"),
        ("registry.ollama.ai/library/llama3.2:latest", "llama3.2"),
        ("hf.co/unsloth/Qwen3-GGUF:Q4_K_M", "hf.co/unsloth/qwen3-gguf:q4_k_m"),
        ("someone/model:latest", "someone/model"),
        ("latest", "latest"),
    ],
)
def test_canonical_model(written: str, canonical: str) -> None:
    assert canonical_model(written) == canonical


@pytest.mark.parametrize(
    "name",
    ["", " ", "two words", "tab\t", "line\nbreak", "nul\0", "nbsp\xa0", "\ud800", ":latest", "library/"],
)
def test_what_is_no_name_of_a_model(name: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        canonical_model(name)
    assert caught.value.field == "model"


@pytest.mark.parametrize("name", [None, 7, b"bytes", ["list"]])
def test_a_name_of_the_wrong_type_is_named_by_its_type(name: object) -> None:
    with pytest.raises(InvalidJob, match=f"app: a name is needed, got {type(name).__name__}"):
        check_name(name, "app")  # type: ignore[arg-type]  # that is the point


def test_a_long_name_is_refused_with_the_limit() -> None:
    assert check_name("x" * MAX_NAME_CHARS, "app")
    with pytest.raises(InvalidJob, match="201 characters, at most 200"):
        check_name("x" * (MAX_NAME_CHARS + 1), "app")
