"""Wall clocks that are wrong, or jump: processes under libfaketime. Their monotonic clocks run true."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def faked(shift: str) -> dict[str, str]:
    """The environment of a process whose wall clock is off.

    Args:
        shift: as libfaketime has it: "+2h", "-2h", or "+0 x1.1" for one that runs a tenth too fast.
    """
    return {
        "LD_PRELOAD": str(_library()),
        "FAKETIME": shift,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


class SteppedClock:
    """A wall clock that is right until it is stepped.

    Args:
        directory: where the file lies by which it is told.

    Attributes:
        environment: of the processes that live by it.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "shift"
        self.step(0)
        self.environment = {
            **faked("+0"),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
        }
        del self.environment["FAKETIME"]

    def step(self, seconds: int) -> None:
        """Be so far off from now on."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}s\n")
        fresh.rename(self._file)


def _library() -> Path:
    spec = importlib.util.find_spec("libfaketime")
    assert spec is not None, "libfaketime is missing: pip install libfaketime"
    assert spec.origin is not None
    path = Path(spec.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    assert path.exists(), f"{path} is missing: the wheel of libfaketime has no library for this system"
    return path
