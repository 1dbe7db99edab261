"""Numbers for people: sizes, durations, counts. Pure."""

from __future__ import annotations

_MIB_PER_GIB = 1024
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Bytes as "1.5 GiB"."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 or count >= 100 else f"{count:.1f} {_UNITS[unit]}"


def gib(mib: float) -> str:
    """MiB as a bare number of GiB: "5.8", "24"."""
    value = mib / _MIB_PER_GIB
    return f"{value:.1f}".removesuffix(".0") if value < 10 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """Seconds as "12 ms", "3.2 s", "4 min", "2 h" or "3 d"."""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} d"


def milliseconds(number: float) -> str:
    """Of a link's round trip, where a tenth counts: "0.3 ms", "12 ms"."""
    return f"{number:.2g} ms" if number < 10 else f"{number:.0f} ms"


def megabits(mib_per_second: float) -> str:
    """MiB per second as networks are sold: "940 Mbit/s", "9.4 Gbit/s"."""
    mbit = mib_per_second * 8 * 1024 * 1024 / 1e6
    if mbit >= 1000:
        return f"{mbit / 1000:.0f} Gbit/s" if mbit >= 10_000 else f"{mbit / 1000:.1f} Gbit/s"
    return f"{mbit:.0f} Mbit/s" if mbit >= 10 else f"{mbit:.1f} Mbit/s"


def count(number: int, what: str, plural: str = "") -> str:
    """ "1 job", "3 jobs"."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"
