"""NVIDIA GPUs: gpustat's own code, run over answers in NVML's format."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_worker_agent.hardware.nvidia import Answer, NvidiaReader
from sollol_worker_agent.hardware.readings import Gpu, Ram

RAM = Ram(total_mib=122_000, available_mib=100_000)
Play = Callable[[str], Any]


def assert_sound(gpu: Gpu) -> None:
    """No field is negative, and used and free fit into the total."""
    assert min(gpu.index, gpu.memory_total_mib, gpu.memory_used_mib, gpu.memory_free_mib) >= 0
    assert gpu.memory_used_mib + gpu.memory_free_mib <= gpu.memory_total_mib
    assert gpu.utilisation_percent is None or 0 <= gpu.utilisation_percent <= 100
    assert gpu.temperature_c is None or gpu.temperature_c >= 0
    assert gpu.power_w is None or gpu.power_w >= 0


def test_two_different_cards_are_read(nvml: Play) -> None:
    nvml("rtx3090_rtx4060ti")
    first, second = NvidiaReader().read(RAM)
    assert first == Gpu(
        index=0,
        vendor="nvidia",
        name="NVIDIA GeForce RTX 3090",
        uuid="GPU-6d1f0c52-8a0e-4a57-9a41-3c1d2f0b7a11",
        memory_total_mib=24576,
        memory_used_mib=9130,
        memory_free_mib=15446,
        utilisation_percent=87,
        temperature_c=61,
        power_w=312.0,
        source="gpustat",
        is_estimate=False,
        driver="570.133.07",
    )
    assert (second.index, second.name, second.memory_total_mib) == (1, "NVIDIA GeForce RTX 4060 Ti", 16380)
    assert second.utilisation_percent == 0, "an idle GPU says 0, not None"


def test_an_h200_has_143771_mib(nvml: Play) -> None:
    nvml("h200")
    (gpu,) = NvidiaReader().read(RAM)
    assert (gpu.memory_total_mib, gpu.memory_free_mib) == (143_771, 143_771 - 70_512)
    assert_sound(gpu)


def test_what_a_card_does_not_support_is_none(nvml: Play) -> None:
    nvml("not_supported")
    (gpu,) = NvidiaReader().read(RAM)
    assert (gpu.utilisation_percent, gpu.temperature_c, gpu.power_w) == (None, None, None)
    assert (gpu.memory_total_mib, gpu.is_estimate) == (2048, False)


def test_a_driver_without_the_newer_memory_call_is_understood(nvml: Play) -> None:
    nvml("old_driver")
    (gpu,) = NvidiaReader().read(RAM)
    assert gpu.memory_total_mib == 24576


def test_a_chip_without_gpu_memory_gets_most_of_the_ram_as_an_estimate(nvml: Play) -> None:
    nvml("gb10")
    (gpu,) = NvidiaReader().read(RAM)
    assert (gpu.is_estimate, gpu.shares_ram) == (True, True)
    assert (gpu.memory_total_mib, gpu.memory_free_mib) == (109_800, 100_000)
    assert_sound(gpu)


def test_a_card_that_hides_its_memory_promises_none(nvml: Play) -> None:
    nvml("h200_mig")
    (gpu,) = NvidiaReader().read(RAM)
    assert (gpu.memory_total_mib, gpu.memory_free_mib) == (0, 0)
    assert (gpu.is_estimate, gpu.shares_ram) == (True, False)


def test_a_card_that_fell_off_the_bus_is_left_out(nvml: Play) -> None:
    nvml("one_lost")
    (gpu,) = NvidiaReader().read(RAM)
    assert (gpu.index, gpu.name) == (1, "NVIDIA GeForce RTX 3090")


@pytest.mark.parametrize("record", ["no_library", "no_driver"])
def test_a_missing_driver_is_not_asked_for_at_each_reading(nvml: Play, clock: Any, record: str) -> None:
    double = nvml(record)
    reader = NvidiaReader(clock=clock)
    for _ in range(12):
        assert reader.read(RAM) == ()
        clock.now += 5.0
    assert double.inits == 1
    assert reader.read(RAM) == ()
    assert double.inits == 2, "a minute later it is asked for once more"


def test_a_driver_that_comes_back_is_used_again(nvml: Play, clock: Any) -> None:
    nvml("no_driver")
    reader = NvidiaReader(clock=clock)
    assert reader.read(RAM) == ()
    nvml("h200")
    assert reader.read(RAM) == ()
    clock.now += 60.0
    assert len(reader.read(RAM)) == 1


def test_the_reason_is_logged_once(nvml: Play, clock: Any, caplog: pytest.LogCaptureFixture) -> None:
    nvml("no_library")
    reader = NvidiaReader(clock=clock)
    with caplog.at_level(logging.INFO, logger="sollol_worker_agent"):
        for _ in range(3):
            reader.read(RAM)
            clock.now += 61.0
    (line,) = caplog.records
    assert "NVML Shared Library Not Found" in vars(line)["reason"]


def test_a_missing_gpustat_means_no_gpu(clock: Any) -> None:
    def query() -> Sequence[Answer]:
        raise ImportError("pynvml is missing or an outdated version is installed.")

    assert NvidiaReader(clock=clock, query=query).read(RAM) == ()


NUMBERS = st.one_of(st.none(), st.just("?"), st.integers(), st.floats())


@given(values=st.lists(NUMBERS, min_size=6, max_size=6), name=st.sampled_from(["NVIDIA GB10", "NVIDIA A2"]))
def test_whatever_the_driver_says_the_reading_is_sound(values: list[object], name: str) -> None:
    keys = ("index", "memory.total", "memory.used", "utilization.gpu", "temperature.gpu", "power.draw")
    answer = {"name": name, "uuid": "GPU-1", **dict(zip(keys, values, strict=True))}
    for gpu in NvidiaReader(query=lambda: [answer]).read(RAM):
        assert_sound(gpu)


@pytest.mark.parametrize("record", ["rtx3090_rtx4060ti", "h200", "not_supported", "gb10", "h200_mig"])
def test_every_record_gives_sound_readings(nvml: Play, record: str) -> None:
    nvml(record)
    gpus = NvidiaReader().read(RAM)
    assert gpus, "the record holds at least one GPU"
    for gpu in gpus:
        assert_sound(gpu)
        assert json.dumps(gpu.name)
