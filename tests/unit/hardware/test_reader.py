"""The whole machine in one reading, and what its owner keeps back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_worker_agent import hardware
from sollol_worker_agent.hardware import Gpu, Hardware, HardwareReader, Limits, NvidiaReader
from sollol_worker_agent.hardware.reader import number_on, worth_offering
from sollol_worker_agent.hardware.readings import Memory, Ram

Play = Callable[[str], Any]
Build = Callable[[str], Path]
EMPTY = Path("/nonexistent")


def reader(psutil: Any, *, sysfs_root: Path = EMPTY, system: str = "Linux", **more: Any) -> HardwareReader:
    """A reader that sees nothing of the machine that runs the tests, but for NVML's double."""
    return HardwareReader(
        psutil=psutil, sysfs_root=sysfs_root, proc_root=EMPTY, system=system, machine="arm64", **more
    )


def gpu(uuid: str, memory: Memory, *, index: int = 0, shares_ram: bool = False) -> Gpu:
    return Gpu(
        index=index,
        vendor="amd",
        name="AMD GPU",
        uuid=uuid,
        memory_total_mib=memory.total_mib,
        memory_used_mib=memory.used_mib,
        memory_free_mib=memory.free_mib,
        utilisation_percent=None,
        temperature_c=None,
        power_w=None,
        source="sysfs",
        is_estimate=shares_ram,
        shares_ram=shares_ram,
    )


def test_the_face_shows_what_it_names() -> None:
    assert all(hasattr(hardware, name) for name in hardware.__all__)


def test_a_box_with_two_cards_sums_their_memory(nvml: Play, psutil_double: Any) -> None:
    nvml("rtx3090_rtx4060ti")
    machine = reader(psutil_double).read()
    assert machine.vram_total_mib == 24_576 + 16_380
    assert machine.vram_free_mib == 15_446 + 15_968
    assert (machine.ram_total_mib, machine.is_estimate) == (65_536, False)


def test_cards_of_two_makers_get_numbers_of_their_own(nvml: Play, sysfs: Build, psutil_double: Any) -> None:
    nvml("one_lost")
    machine = reader(psutil_double, sysfs_root=sysfs("rx7900xtx")).read()
    assert [(card.vendor, card.index) for card in machine.gpus] == [("nvidia", 1), ("amd", 2)]


def test_built_in_graphics_are_not_offered_beside_a_card(
    nvml: Play, sysfs: Build, psutil_double: Any
) -> None:
    nvml("no_driver")
    machine = reader(psutil_double, sysfs_root=sysfs("desktop_with_both")).read()
    assert [card.name for card in machine.gpus] == ["AMD Radeon RX 7900 series"]
    assert not machine.is_estimate


def test_built_in_graphics_alone_are_offered_as_an_estimate(
    nvml: Play, sysfs: Build, psutil_double: Any
) -> None:
    nvml("no_library")
    machine = reader(psutil_double, sysfs_root=sysfs("apu_780m")).read()
    assert (len(machine.gpus), machine.is_estimate) == (1, True)


def test_a_cpu_box_offers_no_gpu_and_is_no_estimate(nvml: Play, psutil_double: Any) -> None:
    nvml("no_library")
    machine = reader(psutil_double).read()
    assert (machine.gpus, machine.vram_total_mib, machine.is_estimate) == ((), 0, False)


def test_a_mac_offers_its_gpu_as_an_estimate(nvml: Play, psutil_double: Any) -> None:
    nvml("no_library")
    machine = reader(psutil_double, system="Darwin").read()
    assert [(card.vendor, card.memory_total_mib) for card in machine.gpus] == [("apple", 49_152)]
    assert machine.is_estimate


def test_with_no_reporter_at_all_there_is_an_estimate(nvml: Play, psutil_double: Any) -> None:
    nvml("no_library")
    psutil_double.total = None
    machine = reader(psutil_double).read()
    assert machine.is_estimate
    assert machine.ram_total_mib > 0


def test_the_missing_driver_is_remembered_by_the_clock_handed_in(
    nvml: Play, psutil_double: Any, clock: Any
) -> None:
    double = nvml("no_driver")
    machine = reader(psutil_double, clock=clock)
    for _ in range(3):
        machine.read()
        clock.now += 5.0
    assert double.inits == 1


def test_the_plain_form_is_json_and_holds_every_field(nvml: Play, psutil_double: Any) -> None:
    nvml("h200")
    machine = reader(psutil_double).read()
    plain = json.loads(json.dumps(machine.as_dict()))
    assert set(plain) == {*Hardware.__dataclass_fields__, "vram_total_mib", "vram_free_mib"}
    assert set(plain["gpus"][0]) == set(Gpu.__dataclass_fields__)
    assert plain["gpus"][0]["memory_total_mib"] == 143_771


def test_an_owner_keeps_memory_back(nvml: Play, psutil_double: Any) -> None:
    nvml("rtx3090_rtx4060ti")
    limits = Limits(vram_mib=30_000, ram_mib=16_000)
    machine = reader(psutil_double, limits=limits).read()
    assert [card.memory_total_mib for card in machine.gpus] == [24_576, 30_000 - 24_576]
    assert (machine.ram_total_mib, machine.ram_available_mib) == (16_000, 16_000)


def test_memory_in_use_counts_against_the_cap(nvml: Play, psutil_double: Any) -> None:
    nvml("h200")
    (card,) = reader(psutil_double, limits=Limits(vram_mib=80_000)).read().gpus
    assert (card.memory_total_mib, card.memory_used_mib, card.memory_free_mib) == (80_000, 70_512, 9_488)


def test_ram_kept_back_is_kept_from_graphics_that_share_it(
    nvml: Play, sysfs: Build, psutil_double: Any
) -> None:
    nvml("no_library")
    limits = Limits(ram_mib=8_000)
    (card,) = reader(psutil_double, sysfs_root=sysfs("intel_built_in"), limits=limits).read().gpus
    assert card.memory_total_mib == 4_000


def test_no_gpu_memory_at_all_may_be_offered(nvml: Play, psutil_double: Any) -> None:
    nvml("rtx3090_rtx4060ti")
    machine = reader(psutil_double, limits=Limits(vram_mib=0)).read()
    assert (machine.vram_total_mib, machine.vram_free_mib, len(machine.gpus)) == (0, 0, 2)


@pytest.mark.parametrize("field", ["vram_mib", "ram_mib"])
def test_a_negative_cap_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} is -1; give a number of MiB"):
        Limits(**{field: -1})


def test_one_gpu_told_twice_is_offered_once_as_first_told() -> None:
    twice = number_on([gpu("a", Memory.own(8, 0))], [gpu("a", Memory.own(9, 0)), gpu("b", Memory.own(4, 0))])
    assert [(card.uuid, card.memory_total_mib) for card in worth_offering(twice)] == [("a", 8), ("b", 4)]


MEMORIES = st.builds(Memory.own, st.integers(), st.integers())


@given(memories=st.lists(MEMORIES, max_size=5), cap=st.none() | st.integers(min_value=0, max_value=10**6))
def test_under_any_cap_the_sums_hold(memories: list[Memory], cap: int | None) -> None:
    cards = [gpu(str(index), memory, index=index) for index, memory in enumerate(memories)]
    capped = Limits(vram_mib=cap).cap_gpus(cards)
    assert len(capped) == len(cards)
    for before, after in zip(cards, capped, strict=True):
        assert 0 <= after.memory_used_mib + after.memory_free_mib <= after.memory_total_mib
        assert min(after.memory_used_mib, after.memory_free_mib) >= 0
        assert after.memory_free_mib <= before.memory_free_mib
    if cap is not None:
        assert sum(card.memory_total_mib for card in capped) <= cap


@given(total=st.integers(), ram=st.builds(Ram, st.integers(), st.integers()))
def test_borrowed_memory_is_never_more_than_the_ram(total: int, ram: Ram) -> None:
    memory = Memory.borrowed(total, ram)
    assert memory.used_mib + memory.free_mib == memory.total_mib
    assert 0 <= memory.free_mib <= max(ram.available_mib, 0)


def test_a_reading_by_default_asks_this_machine_and_raises_nothing() -> None:
    machine = HardwareReader(nvidia=NvidiaReader(query=list)).read()
    assert machine.ram_total_mib > 0
    assert machine.cpu_count >= 1


@pytest.mark.parametrize(("nvidia_in_machine", "said"), [(True, "NVML"), (False, "")])
def test_a_card_without_a_driver_is_told_of(
    nvml: Play, psutil_double: Any, tmp_path: Path, nvidia_in_machine: bool, said: str
) -> None:
    nvml("no_library")
    vendor = tmp_path / "class/drm/card0/device/vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x10de\n" if nvidia_in_machine else "0x1a03\n")
    unread = reader(psutil_double, sysfs_root=tmp_path).read().unread
    assert (said in unread) if said else (unread == "")
