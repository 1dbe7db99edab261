"""Which releases of servers have known holes: tables, and what follows from them. Pure.

A floor is the first release of its series without the holes that were known in November 2026 and let somebody run
code on the machine, or read its memory:

- Redis: CVE-2025-49844 (scripts), CVE-2026-23479 (blocked clients), CVE-2026-25243 and CVE-2026-66373 (RESTORE),
  CVE-2026-81934 (TLS, before the login).
- Valkey: the same but the last, with CVE-2026-56684 (TLS) and CVE-2026-63639 (RESTORE).
- Ollama: CVE-2026-7482 (whoever reaches it reads its memory).
- llama.cpp: CVE-2026-107183 (a request writes into freed memory), CVE-2026-43631 and older ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_FLOORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "Redis": ((7, 2, 16), (7, 4, 11), (8, 2, 9), (8, 4, 6), (8, 6, 6), (8, 8, 2), (8, 10, 1)),
    "Valkey": ((8, 0, 10), (8, 1, 9), (9, 0, 5), (9, 1, 1)),
}
# Releases that distributions go on patching under the same number: Debian 12 and Ubuntu 24.04, Debian 13.
_PATCHED_ELSEWHERE: dict[str, dict[tuple[int, ...], str]] = {
    "Redis": {(7, 0, 15): "7.0.15-1~deb12u10", (8, 0, 2): ""},
    "Valkey": {(8, 1, 1): ""},
}
OLDEST_REDIS = (7, 0)
_OLLAMA = (0, 17, 1)
_LLAMA_BUILD = 11393
# Builds without the history of the sources number themselves 0 or 1.
_LEAST_BUILD = 100


def server_of(info: Mapping[str, str]) -> tuple[str, str, tuple[int, ...]]:
    """Kind of server, its version as text and as numbers. Valkey also claims to be Redis 7.2."""
    kind, field = ("Valkey", "valkey_version") if "valkey_version" in info else ("Redis", "redis_version")
    text = info.get(field, "0")
    return kind, text, numbers(text)


def numbers(text: str) -> tuple[int, ...]:
    """ "v0.17.1-rc2" as (0, 17, 1)."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def safe_release(kind: str, version: tuple[int, ...]) -> str:
    """The first release of this series, or of the next one, without known holes; "" = this one has none.

    1. A series with a floor: below the floor is unsafe.
    2. A series newer than all floors is safe.
    3. Any other got no fixes: the next series with a floor is named.
    """
    floors = _FLOORS[kind]
    for floor in floors:
        if version[:2] == floor[:2]:  # 1
            return "" if version >= floor else _dotted(floor)
    if version[:2] > floors[-1][:2]:  # 2
        return ""
    return _dotted(next(floor for floor in floors if floor[:2] > version[:2]))  # 3


def distribution_patch(kind: str, version: tuple[int, ...]) -> str | None:
    """The package that is patched under this number ("" = not known which); None = nobody patches under it."""
    return _PATCHED_ELSEWHERE[kind].get(version)


def backend_holes(kind: str, version: str) -> str:
    """What is known against this release of an LLM server, and which one to take; "" = nothing."""
    if kind == "ollama" and (found := numbers(version)) and found < _OLLAMA:
        return f"Ollama {_dotted(_OLLAMA)} (CVE-2026-7482: whoever reaches it reads its memory)"
    if kind == "llama-server" and (build := llama_build(version)) and build < _LLAMA_BUILD:
        return f"llama.cpp b{_LLAMA_BUILD} (CVE-2026-107183: a request can write into its freed memory)"
    return ""


def llama_build(version: str) -> int:
    """The number in "b10068-3f1b2c4"; 0 when the build does not know its own."""
    found = re.match(r"b?(\d+)", version)
    return int(found[1]) if found and int(found[1]) >= _LEAST_BUILD else 0


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
