"""The function library with one line changed: what a test of a promise has to notice."""

from __future__ import annotations

from sollol_broker.library import Library, build, source


def mutant(line: str, instead: str, *more: tuple[str, str]) -> Library:
    """The library of this release with `line`, which must occur once, replaced; and with `more` such lines."""
    code = source()
    for old, new in ((line, instead), *more):
        assert code.count(old) == 1, f"{old!r} occurs {code.count(old)} times in the Lua files"
        code = code.replace(old, new)
    return build(code)
