"""CPU, load and RAM; and what is assumed where the machine does not say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sollol_worker_agent.hardware.apple import read_apple
from sollol_worker_agent.hardware.host import HostReader, usable_cpus
from sollol_worker_agent.hardware.readings import Ram

X86 = "processor\t: 0\nmodel\t\t: 97\nmodel name\t: AMD Ryzen 9   7950X\n\nprocessor\t: 1\n"
BOARD = (
    "processor\t: 0\nBogoMIPS\t: 108.00\n\nRevision\t: d04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
)


def proc_with(tmp_path: Path, cpuinfo: str) -> Path:
    (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    return tmp_path


def test_the_machine_is_read(tmp_path: Path, psutil_double: Any) -> None:
    host = HostReader(facade=psutil_double, proc_root=proc_with(tmp_path, X86), count_cpus=lambda: 16).read()
    assert (host.cpu_model, host.cpu_count, host.cpu_percent, host.load_1m) == (
        "AMD Ryzen 9 7950X",
        16,
        12.5,
        1.5,
    )
    assert (host.ram, host.is_estimate) == (Ram(65_536, 49_152), False)


def test_the_first_reading_already_has_a_cpu_share(tmp_path: Path, psutil_double: Any) -> None:
    psutil_double.percents = [0.0, 73.0]
    assert HostReader(facade=psutil_double, proc_root=tmp_path).read().cpu_percent == 73.0


def test_an_arm_board_is_named_by_its_model_line(tmp_path: Path, psutil_double: Any) -> None:
    reader = HostReader(facade=psutil_double, proc_root=proc_with(tmp_path, BOARD))
    assert reader.read().cpu_model == "Raspberry Pi 5 Model B Rev 1.0"


def test_without_cpuinfo_python_names_the_processor(
    tmp_path: Path, psutil_double: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert HostReader(facade=psutil_double, proc_root=tmp_path).read().cpu_model == "arm"


def test_nothing_names_the_processor(
    tmp_path: Path, psutil_double: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "")
    assert HostReader(facade=psutil_double, proc_root=tmp_path).read().cpu_model == "unknown"


def test_ram_that_cannot_be_read_is_estimated_and_marked(tmp_path: Path, psutil_double: Any) -> None:
    psutil_double.total = None
    psutil_double.load = None
    host = HostReader(facade=psutil_double, proc_root=tmp_path).read()
    assert host.is_estimate
    assert 0 < host.ram.available_mib < host.ram.total_mib
    assert host.load_1m == 0.0


def test_the_last_resort_is_four_gib(
    tmp_path: Path, psutil_double: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(name: str) -> int:
        raise ValueError(name)

    psutil_double.total = None
    monkeypatch.setattr("os.sysconf", no_answer)
    host = HostReader(facade=psutil_double, proc_root=tmp_path).read()
    assert (host.ram, host.is_estimate) == (Ram(4096, 2048), True)


@pytest.mark.parametrize(("percent", "expected"), [(-3.0, 0.0), (1600.0, 100.0)])
def test_odd_shares_are_brought_into_range(
    tmp_path: Path, psutil_double: Any, percent: float, expected: float
) -> None:
    psutil_double.percents = [percent]
    assert HostReader(facade=psutil_double, proc_root=tmp_path).read().cpu_percent == expected


def test_available_never_exceeds_the_total(tmp_path: Path, psutil_double: Any) -> None:
    psutil_double.available = psutil_double.total * 2
    ram = HostReader(facade=psutil_double, proc_root=tmp_path).read().ram
    assert ram.available_mib == ram.total_mib


def test_usable_cpus_are_at_least_one_and_no_more_than_there_are() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("ram", "total_mib", "free_mib"),
    [(Ram(16_384, 9_000), 10_922, 9_000), (Ram(131_072, 120_000), 98_304, 98_304)],
)
def test_apple_silicon_gets_a_share_of_its_one_memory(ram: Ram, total_mib: int, free_mib: int) -> None:
    (gpu,) = read_apple(ram, system="Darwin", machine="arm64")
    assert (gpu.memory_total_mib, gpu.memory_free_mib) == (total_mib, free_mib)
    assert (gpu.vendor, gpu.source, gpu.is_estimate, gpu.shares_ram) == ("apple", "estimate", True, True)


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "x86_64"), ("Linux", "arm64")])
def test_no_other_machine_has_an_apple_gpu(system: str, machine: str) -> None:
    assert read_apple(Ram(16_384, 9_000), system=system, machine=machine) == ()
