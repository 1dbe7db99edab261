"""AMD and Intel GPUs, from trees in sysfs' format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol_worker_agent.hardware.readings import Gpu, Ram
from sollol_worker_agent.hardware.sysfs import SysfsReader

RAM = Ram(total_mib=32_000, available_mib=20_000)
Build = Callable[[str], Path]


def read(root: Path, ram: Ram = RAM) -> tuple[Gpu, ...]:
    return SysfsReader(root=root).read(ram)


def assert_sound(gpu: Gpu) -> None:
    """No field is negative, and used and free fit into the total."""
    assert min(gpu.index, gpu.memory_total_mib, gpu.memory_used_mib, gpu.memory_free_mib) >= 0
    assert gpu.memory_used_mib + gpu.memory_free_mib <= gpu.memory_total_mib
    assert gpu.utilisation_percent is None or 0 <= gpu.utilisation_percent <= 100
    assert gpu.temperature_c is None or gpu.temperature_c >= 0
    assert gpu.power_w is None or gpu.power_w >= 0


def test_a_radeon_is_read_once_and_its_plugs_are_not_gpus(sysfs: Build) -> None:
    assert read(sysfs("rx7900xtx")) == (
        Gpu(
            index=0,
            vendor="amd",
            name="AMD Radeon RX 7900 series",
            uuid="0000:03:00.0",
            memory_total_mib=24560,
            memory_used_mib=2048,
            memory_free_mib=22512,
            utilisation_percent=37,
            temperature_c=54,
            power_w=123.5,
            source="sysfs",
            is_estimate=False,
        ),
    )


def test_an_instinct_beside_a_service_processor_is_the_only_gpu(sysfs: Build) -> None:
    (gpu,) = read(sysfs("mi210"))
    assert (gpu.index, gpu.name, gpu.memory_total_mib) == (0, "Instinct MI210", 65520)
    assert (gpu.temperature_c, gpu.power_w) == (39, 41.0), "without an edge sensor the hot spot counts"


def test_graphics_in_an_amd_processor_borrow_from_ram(sysfs: Build) -> None:
    (gpu,) = read(sysfs("apu_780m"))
    assert (gpu.is_estimate, gpu.shares_ram) == (True, True)
    assert (gpu.memory_total_mib, gpu.memory_free_mib) == (512 + 15_800, 256 + 15_000)
    assert (gpu.name, gpu.power_w) == ("AMD Radeon 740M/760M/780M", 9.0)


def test_borrowed_memory_is_free_only_as_far_as_the_ram_is(sysfs: Build) -> None:
    (gpu,) = read(sysfs("apu_780m"), Ram(total_mib=32_000, available_mib=1_000))
    assert gpu.memory_free_mib == 256 + 1_000


def test_two_gib_set_aside_still_count_as_a_small_carve_out(sysfs: Build) -> None:
    (gpu,) = read(sysfs("apu_strix_halo"), Ram(total_mib=126_000, available_mib=110_000))
    assert (gpu.memory_total_mib, gpu.shares_ram) == (2048 + 63_000, True)


def test_a_large_carve_out_counts_like_own_memory(sysfs: Build) -> None:
    (gpu,) = read(sysfs("apu_big_carve_out"))
    assert (gpu.memory_total_mib, gpu.is_estimate, gpu.shares_ram) == (98_304, False, False)


def test_a_small_card_borrows_nothing(sysfs: Build) -> None:
    (gpu,) = read(sysfs("rx550"))
    assert (gpu.memory_total_mib, gpu.is_estimate, gpu.shares_ram) == (4_096, False, False)
    assert gpu.name == "AMD GPU 1002:699f", "an id without a name of its own is shown as it is"


def test_an_arc_under_i915_with_intels_additions(sysfs: Build) -> None:
    (gpu,) = read(sysfs("arc_a770_i915"))
    assert (gpu.name, gpu.vendor, gpu.is_estimate) == ("Intel Arc A770", "intel", False)
    assert (gpu.memory_total_mib, gpu.memory_used_mib, gpu.memory_free_mib) == (16_288, 4_000, 12_288)


def test_an_arc_under_xe_tells_its_size_to_all_and_its_use_to_root(sysfs: Build) -> None:
    (plain,) = read(sysfs("arc_a770_xe"))
    assert (plain.memory_total_mib, plain.memory_free_mib, plain.is_estimate) == (16_384, 16_384, True)
    (as_root,) = read(sysfs("arc_a770_xe_root"))
    assert (as_root.memory_used_mib, as_root.is_estimate, as_root.shares_ram) == (4_096, False, False)


def test_an_arc_under_plain_i915_is_as_large_as_its_window(sysfs: Build) -> None:
    (gpu,) = read(sysfs("arc_a770_plain_i915"))
    assert (gpu.memory_total_mib, gpu.is_estimate, gpu.shares_ram) == (16_384, True, False)


def test_an_arc_behind_a_small_window_promises_nothing(sysfs: Build) -> None:
    (gpu,) = read(sysfs("arc_a770_small_bar"))
    assert (gpu.memory_total_mib, gpu.is_estimate) == (0, True)


def test_graphics_in_an_intel_processor_share_half_of_the_ram(sysfs: Build) -> None:
    (gpu,) = read(sysfs("intel_built_in"))
    assert (gpu.memory_total_mib, gpu.is_estimate, gpu.shares_ram) == (16_000, True, True)


def test_virtual_displays_and_service_processors_are_no_gpus(sysfs: Build) -> None:
    assert read(sysfs("virtual_and_bmc")) == ()


def test_unreadable_files_cost_their_field_and_no_more(sysfs: Build) -> None:
    (gpu,) = read(sysfs("unreadable"))
    assert gpu.memory_total_mib == 24560
    assert (gpu.utilisation_percent, gpu.temperature_c, gpu.power_w) == (None, None, None)


def test_two_doors_to_one_card_are_one_gpu(sysfs: Build) -> None:
    gpus = read(sysfs("desktop_with_both"))
    assert [(gpu.index, gpu.uuid) for gpu in gpus] == [(0, "0000:0e:00.0"), (1, "0000:03:00.0")]


def test_a_machine_without_sysfs_has_no_such_gpus(tmp_path: Path) -> None:
    assert read(tmp_path / "nowhere") == ()


CONTENT = st.one_of(
    st.integers().map(str), st.sampled_from(["", "N/A", "0x10", "-1", "1e9", "\x00"]), st.text(max_size=8)
)
FILES = (
    "device/mem_info_vram_total",
    "device/mem_info_vram_used",
    "device/mem_info_gtt_total",
    "device/mem_info_gtt_used",
    "device/gpu_busy_percent",
    "device/hwmon/hwmon0/temp1_input",
    "device/hwmon/hwmon0/power1_average",
    "device/tile0/physical_vram_size_bytes",
    "device/resource",
    "device/uevent",
    "lmem_total_bytes",
    "lmem_avail_bytes",
)


@settings(max_examples=30, deadline=None)
@given(
    vendor=st.sampled_from(["0x1002", "0x8086"]),
    contents=st.fixed_dictionaries({}, optional=dict.fromkeys(FILES, CONTENT)),
)
def test_whatever_the_files_hold_the_reading_is_sound(
    tmp_path_factory: pytest.TempPathFactory, vendor: str, contents: dict[str, str]
) -> None:
    root = tmp_path_factory.mktemp("sys")
    card = root / "class" / "drm" / "card0"
    for name, content in {"device/vendor": vendor, **contents}.items():
        (card / name).parent.mkdir(parents=True, exist_ok=True)
        (card / name).write_text(content, encoding="utf-8", errors="replace")
    for gpu in read(root):
        assert_sound(gpu)
