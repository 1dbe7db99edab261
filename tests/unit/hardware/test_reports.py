"""What others told of a machine's hardware: read back, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sollol_worker_agent.hardware import HardwareReader
from sollol_worker_agent.hardware.reports import from_advert, from_old_report

NOW = 1_700_000_000.0
# As SOLLOL 0.9's reporter writes it.
REPORT: dict[str, Any] = {
    "vendor": "nvidia",
    "gpus": [
        {"index": 0, "name": "NVIDIA GeForce RTX 3070", "memory_total_mb": 8192, "memory_free_mb": 4123,
         "utilization_percent": 55, "temperature_c": 62}
    ],
    "timestamp": NOW - 4,
}  # fmt: skip


def read(**changes: Any) -> Any:
    return from_old_report(json.dumps({**REPORT, **changes}).encode(), now_seconds=NOW)


def test_an_advert_is_read_back_as_it_was() -> None:
    hardware = HardwareReader().read()
    hardware = replace(hardware, gpus=read().gpus)
    assert from_advert(json.loads(json.dumps(hardware.as_dict()))) == hardware


@pytest.mark.parametrize("told", [{}, {"gpus": 1}, {"gpus": [1]}, {"gpus": [{"index": 0}]}, {"cpu_count": 2}])
def test_half_an_advert_is_none(told: dict[str, Any]) -> None:
    assert from_advert(told) is None


def test_a_fresh_report_tells_of_the_gpus_and_of_nothing_else() -> None:
    hardware = read()
    assert (hardware.vram_total_mib, hardware.vram_free_mib, hardware.ram_total_mib) == (8192, 4123, 0)
    (gpu,) = hardware.gpus
    assert (gpu.name, gpu.vendor, gpu.memory_used_mib) == ("NVIDIA GeForce RTX 3070", "nvidia", 4069)
    assert (gpu.utilisation_percent, gpu.temperature_c, gpu.source) == (55, 62, "reporter")


@pytest.mark.parametrize("timestamp", [NOW - 31, NOW + 31, 0, None, "soon", "nan"])
def test_a_stale_report_is_refused(timestamp: object) -> None:
    assert read(timestamp=timestamp) is None


def test_nonsense_is_refused() -> None:
    for text in (b"", b"[]", b"{}", b"{", b'{"gpus": []}', b"x" * 100_000):
        assert from_old_report(text, now_seconds=NOW) is None
    assert read(gpus=[{"name": "no memory"}]) is None
    assert read(gpus=[]) is None
    assert read(gpus=[{"memory_total_mb": -5, "memory_free_mb": 10}]).vram_free_mib == 0
