"""Doubles for the machine: NVML's answers, a tree under /sys, and psutil.

The records are recorded-format answers: written by hand in the format of NVML and of sysfs, as each
file's note says. None was taken from a real machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

RECORDED = Path(__file__).parent / "recorded"
MIB = 1024 * 1024


class FakeClock:
    """Monotonic seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakePsutil:
    """psutil's three functions over fields that a test may set; None makes a function fail."""

    total: int | None = 64 * 1024 * MIB
    available: int = 48 * 1024 * MIB
    percents: list[float] = field(default_factory=lambda: [0.0, 12.5])
    load: tuple[float, float, float] | None = (1.5, 1.0, 0.5)

    def virtual_memory(self) -> SimpleNamespace:
        if self.total is None:
            raise KeyError("MemTotal")
        return SimpleNamespace(total=self.total, available=self.available)

    def cpu_percent(self, interval: float | None = None) -> float:
        assert interval is None, "a reading must not wait"
        return self.percents.pop(0) if len(self.percents) > 1 else self.percents[0]

    def getloadavg(self) -> tuple[float, float, float]:
        if self.load is None:
            raise OSError("no load here")
        return self.load


class RecordedNvml:
    """NVML's functions below gpustat, answering from a record; gpustat's own code runs over them."""

    def __init__(self, nvml: Any, record: dict[str, Any]) -> None:
        self._nvml = nvml
        self._record = record
        self.inits = 0

    def patch_into(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the answers where gpustat asks for them."""
        from gpustat.nvml import pynvml_monkeypatch as compat  # type: ignore[import-untyped]  # ships no types

        answers: dict[str, Callable[..., Any]] = {
            "nvmlInit": self._init,
            "nvmlShutdown": lambda: None,
            "nvmlSystemGetDriverVersion": lambda: self._record["driver_version"],
            "nvmlDeviceGetCount": lambda: len(self._record["devices"]),
            "nvmlDeviceGetHandleByIndex": self._handle,
            "nvmlDeviceGetIndex": lambda handle: handle,
            "nvmlDeviceGetName": self._answer("name"),
            "nvmlDeviceGetUUID": self._answer("uuid"),
            "nvmlDeviceGetTemperature": self._answer("temperature"),
            "nvmlDeviceGetFanSpeed": self._answer("fan_speed"),
            "nvmlDeviceGetUtilizationRates": self._answer("utilization"),
            "nvmlDeviceGetEncoderUtilization": self._answer("encoder"),
            "nvmlDeviceGetDecoderUtilization": self._answer("decoder"),
            "nvmlDeviceGetPowerUsage": self._answer("power_mw"),
            "nvmlDeviceGetEnforcedPowerLimit": self._answer("power_limit_mw"),
            "nvmlDeviceGetComputeRunningProcesses": self._answer("compute_processes"),
            "nvmlDeviceGetGraphicsRunningProcesses": self._answer("graphics_processes"),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(self._nvml, name, answer)
        monkeypatch.setattr(compat, "has_memoryinfo_v2", None)
        monkeypatch.setattr(compat, "original_nvmlGetFunctionPointer", staticmethod(self._function))
        monkeypatch.setattr(compat, "original_nvmlDeviceGetMemoryInfo", staticmethod(self._memory))

    def _init(self) -> None:
        self.inits += 1
        if self._record["init"]:
            raise self._error(self._record["init"])

    def _handle(self, index: int) -> int:
        if "handle" in self._record["devices"][index]:
            raise self._error(self._record["devices"][index]["handle"])
        return index

    def _function(self, name: str) -> str:
        if not self._record.get("has_memory_v2", True):
            raise self._error("FunctionNotFound")
        return name

    def _memory(self, handle: int, version: int | None = None) -> Any:
        if version is not None:
            self._function("nvmlDeviceGetMemoryInfo_v2")
        return self._answer("memory")(handle)

    def _answer(self, key: str) -> Callable[..., Any]:
        def answer(handle: int, *_: object) -> Any:
            value = self._record["devices"][handle][key]
            if isinstance(value, dict) and "error" in value:
                raise self._error(value["error"])
            return _as_structs(value)

        return answer

    def _error(self, name: str) -> Exception:
        error = getattr(self._nvml, f"NVMLError_{name}")()
        assert isinstance(error, Exception)
        return error


def _as_structs(value: Any) -> Any:
    """Objects with attributes in place of dicts, as the C structs have them."""
    if isinstance(value, list):
        return [_as_structs(item) for item in value]
    return SimpleNamespace(**value) if isinstance(value, dict) else value


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until the test moves it."""
    return FakeClock()


@pytest.fixture
def psutil_double() -> FakePsutil:
    """A machine with 64 GiB of RAM, 48 GiB of it available."""
    return FakePsutil()


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RecordedNvml]:
    """Makes NVML answer from a record: `nvml("h200")` plays recorded/nvml_h200.json."""
    import gpustat.core  # type: ignore[import-untyped]  # ships no types

    # gpustat sleeps 0.1 s per GPU to measure processes, which these tests do not look at.
    monkeypatch.setattr(gpustat.core, "time", SimpleNamespace(sleep=lambda seconds: None))

    def play(name: str) -> RecordedNvml:
        record = json.loads((RECORDED / f"nvml_{name}.json").read_text(encoding="utf-8"))
        double = RecordedNvml(gpustat.core.N, record)
        double.patch_into(monkeypatch)
        return double

    return play


@pytest.fixture
def sysfs(tmp_path: Path) -> Callable[[str], Path]:
    """Builds a tree from a record: `sysfs("mi210")` writes recorded/sysfs_mi210.json and gives its root."""

    def build(name: str) -> Path:
        root = tmp_path / name
        files = json.loads((RECORDED / f"sysfs_{name}.json").read_text(encoding="utf-8"))["files"]
        for path, content in files.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                target.mkdir()  # reading a folder fails for root too, which a mode of 000 does not
            else:
                target.write_text(content, encoding="utf-8")
        return root

    return build
