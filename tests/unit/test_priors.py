"""What is expected of a model before it has run: by hardware, size and name."""

from __future__ import annotations

import pytest

from sollol_worker_agent.hardware import Gpu, Hardware
from sollol_worker_agent.pace import Expected, Pace
from sollol_worker_agent.priors import chip_of, prior, size_by_name

LLAMA_8B = 4_900_000_000


def gpu(
    name: str, mib: int, *, vendor: str = "nvidia", shares_ram: bool = False, is_estimate: bool = False
) -> Gpu:
    return Gpu(
        *(0, vendor, name, name, mib, 0, mib, None, None, None, "gpustat"),
        is_estimate=is_estimate,
        shares_ram=shares_ram,
    )


def machine(*gpus: Gpu, cpus: int = 8) -> Hardware:
    return Hardware(gpus, "a CPU", cpus, 0.0, 0.0, 32_000, 16_000, False)


RTX_3090_TI = gpu("NVIDIA GeForce RTX 3090 Ti", 24_564)
RTX_3060_TI = gpu("NVIDIA GeForce RTX 3060 Ti", 8192)


@pytest.mark.parametrize(
    ("hardware", "prompt_per_second", "output_per_second"),
    [
        # 8B in 4 bits, published for llama.cpp.
        (machine(RTX_3090_TI), 3500, 105),
        (machine(RTX_3060_TI), 1800, 62),
        (machine(gpu("NVIDIA GeForce RTX 4060 Ti", 16_380)), 1900, 45),
        (machine(), 70, 9),
        (machine(gpu("Apple Silicon GPU", 24_000, vendor="apple", shares_ram=True)), 300, 26),
    ],
)
def test_it_comes_within_a_factor_of_two_of_what_was_measured(
    hardware: Hardware, prompt_per_second: float, output_per_second: float
) -> None:
    pace = prior(hardware, LLAMA_8B, "llama3.1:8b")
    assert 0.5 < 1000 / pace.prompt_ms / prompt_per_second < 2
    assert 0.5 < 1000 / pace.output_ms / output_per_second < 2
    assert pace.load_ms == pytest.approx(6900)


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("llama3.2:3b", 1.8),
        ("qwen2.5:1.5b-instruct", 0.9),
        ("smollm2:135m", 0.081),
        ("mixtral:8x7b", 33.6),
        ("llama3.1:8b-instruct-fp16", 16.0),
        ("llama3.1:8b-instruct-q8_0", 8.56),
        ("Meta-Llama-3-8B-Instruct", 4.8),
        ("qwen3:30b-a3b", 18.0),
        ("gemma2", 0.0),
        ("llama3.2", 0.0),
        ("echo", 0.0),
    ],
)
def test_a_name_may_tell_the_size(name: str, gigabytes: float) -> None:
    assert size_by_name(name) / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_a_model_of_experts_reads_only_some_of_them() -> None:
    hardware = machine(gpu("NVIDIA H200", 143_000))
    dense, sparse = prior(hardware, 0, "qwen3:30b"), prior(hardware, 0, "qwen3:30b-a3b")
    assert sparse.output_ms < dense.output_ms / 2
    assert sparse.load_ms == dense.load_ms
    assert prior(hardware, 0, "mixtral:8x7b").output_ms < prior(hardware, 0, "m:56b").output_ms / 2


def test_what_does_not_fit_the_gpu_is_read_by_the_cpu() -> None:
    fits, spills = machine(RTX_3090_TI), machine(RTX_3060_TI)
    large = 13_000_000_000
    assert prior(spills, large, "m").output_ms > 5 * prior(fits, large, "m").output_ms
    assert prior(spills, large, "m").output_ms < prior(machine(), large, "m").output_ms
    both = machine(RTX_3060_TI, RTX_3090_TI)
    assert prior(both, large, "m") == prior(fits, large, "m"), "the faster GPU is filled first"


def test_of_unknown_models_a_small_gpu_is_expected() -> None:
    assert prior(machine(RTX_3090_TI), 0, "echo") == Pace(Expected())
    assert prior(None, 0, "llama3.2:3b").output_ms == Expected().output_ms
    assert prior(None, 3_000_000_000, "m").load_ms == pytest.approx(5000)


@pytest.mark.parametrize(
    ("name", "speed"),
    [
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 672),
        ("NVIDIA GeForce RTX 4070", 504),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", 494),
        ("NVIDIA A100-SXM4-80GB", 1555),
        ("NVIDIA A10G", 600),
        ("NVIDIA L40S", 864),
        ("NVIDIA L4", 300),
        ("Tesla T4", 320),
        ("NVIDIA GH200 480GB", 4000),
        ("AMD Radeon RX 7900 series", 900),
        ("Intel Arc B580", 456),
    ],
)
def test_known_names(name: str, speed: float) -> None:
    assert chip_of(gpu(name, 1)).gb_per_second == pytest.approx(speed)


def test_unknown_gpus_count_by_maker_and_memory() -> None:
    speeds = [chip_of(gpu("Nobody's", gib * 1024)).gb_per_second for gib in (4, 8, 16, 24, 80)]
    assert speeds == sorted(set(speeds))
    own, built_in = gpu("X", 8192, vendor="amd"), gpu("X", 8192, vendor="amd", shares_ram=True)
    assert chip_of(built_in).gb_per_second < chip_of(own).gb_per_second
    assert chip_of(built_in).prompt_gain < chip_of(own).prompt_gain


def test_a_gpu_that_hides_its_memory_is_used_and_one_kept_back_is_not() -> None:
    hidden, kept = gpu("NVIDIA H200", 0, is_estimate=True), gpu("NVIDIA H200", 0)
    assert prior(machine(hidden), LLAMA_8B, "m").output_ms < 5
    assert prior(machine(kept), LLAMA_8B, "m") == prior(machine(), LLAMA_8B, "m")
