"""The function library with one line changed: what a test of a promise has to notice."""

from __future__ import annotations

from sollol_broker.library import Library, build, source


def mutant(line: str, instead: str) -> Library:
    """The library of this release with `line`, which must occur once, replaced."""
    assert source().count(line) == 1, f"{line!r} occurs {source().count(line)} times in the Lua files"
    return build(source().replace(line, instead))
