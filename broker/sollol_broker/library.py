"""The Redis function library: the files of `lua/`, joined and named after their own content.

The name holds a digest, so agents of different releases each find their own functions beside the
others', and a changed file can never be mistaken for the old one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

# In the order in which they need each other; the rest are verbs, one per file.
_GROUND = (
    *("_keys", "_rule", "_order", "_fits", "_words", "_classes", "_fair", "_apps", "_batch"),
    *("_leader", "_base", "_hedge", "_heads", "_admit", "_series"),
)
# Verbs whose parts others use.
_BUILT_UPON = ("claim", "advertise")
VERBS = (
    "submit",
    "claim",
    "finish",
    "emit",
    "fail",
    "release",
    "renew",
    "cancel",
    "reap",
    "advertise",
    "attend",
    "leave",
    "control",
    "policy",
    "letters",
    "rerank",
    "elect",
    "group",
    "order",
    "reply",
    "formable",
    "ask",
    "call",
    "keep",
    "batch",
    "feed",
    "drive",
    "cut",
    "spoil",
    "shed",
    "halt",
    "part",
)


@dataclass(frozen=True, slots=True)
class Library:
    """A function library as Redis takes it.

    Attributes:
        version: a digest of the code; every function's name carries it.
        code: what FUNCTION LOAD gets.
    """

    version: str
    code: bytes

    @property
    def name(self) -> str:
        """The library's name in Redis."""
        return f"sollol_{self.version}"

    def function(self, verb: str) -> bytes:
        """The name that FCALL wants for a verb."""
        return f"sollol_{self.version}_{verb}".encode()


def build(source: str) -> Library:
    """Make a library of Lua source text."""
    version = hashlib.sha256(source.encode()).hexdigest()[:12]
    code = f"#!lua name=sollol_{version}\n" + source.replace("@VERSION@", version)
    return Library(version, code.encode())


@cache
def source() -> str:
    """The Lua files, joined. What a verb defines is its own, unless others build on it: Lua has room for 200 names."""
    folder = files(__package__) / "lua"
    texts = {name: (folder / f"{name}.lua").read_text("utf-8") for name in (*_GROUND, *VERBS)}
    return "\n".join(
        text if name in _GROUND or name in _BUILT_UPON else f"do\n{text}\nend" for name, text in texts.items()
    )


@cache
def library() -> Library:
    """The library of this release."""
    return build(source())
