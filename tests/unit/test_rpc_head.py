from __future__ import annotations

from pathlib import Path

from sollol_worker_agent.hardware import Hardware
from sollol_worker_agent.rpc.head import Member, Split, read_buffers
from sollol_worker_agent.rpc.machine import LlamaDevice, capped, parse_devices


def _member(*layers: int) -> Member:
    return Member("m", "10.0.0.2", 4000, "", layers)


def test_layers_in_main_memory_are_left_out_of_the_devices() -> None:
    split = Split(10, (), (_member(12), _member(9)))

    assert split.arguments([7001, 7002]) == [
        *("--rpc", "127.0.0.1:7001,127.0.0.1:7002", "--device", "RPC0,RPC1"),
        *("--n-gpu-layers", "21", "--tensor-split", "12,9", "--fit", "off", "--log-verbosity", "4"),
    ]


def test_own_gpus_come_before_those_of_the_members() -> None:
    split = Split(0, (("CUDA0", 20), ("CUDA1", 20)), (_member(20, 21),))

    arguments = split.arguments([7001])

    assert arguments[3] == "CUDA0,CUDA1,RPC0,RPC1"
    assert arguments[7] == "20,20,20,21"


def test_a_device_without_layers_is_not_named() -> None:
    assert Split(0, (("CUDA0", 0),), (_member(0, 31),)).arguments([7001])[3] == "RPC1"


def test_a_head_without_members_needs_no_rpc() -> None:
    assert "--rpc" not in Split(5, (("CUDA0", 26),), ()).arguments(())


def test_reads_what_a_load_reported(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "0.00.084 I load_tensors: RPC0[127.0.0.1:51001] model buffer size =    33.82 MiB\n"
        "0.00.084 I load_tensors:   CPU_Mapped model buffer size =    28.69 MiB\n"
        "0.00.085 I llama_kv_cache: RPC0[127.0.0.1:51001] KV buffer size =    24.00 MiB\n"
        "0.00.085 I llama_kv_cache: RPC0[127.0.0.1:51001] KV buffer size =     6.00 MiB\n"
        "0.00.113 I sched_reserve: RPC0[127.0.0.1:51002] compute buffer size =    14.38 MiB\n"
    )

    assert read_buffers(log, "head", {51001: "gpu-2", 51002: "gpu-3"}) == {
        "gpu-2 model": 33.82,
        "head model": 28.69,
        "gpu-2 KV": 30.0,
        "gpu-3 compute": 14.38,
    }
    assert read_buffers(tmp_path / "none", "head", {}) == {}


def test_reads_the_devices_that_llama_server_lists() -> None:
    said = """load_backend: loaded
Available devices:
  CUDA0: NVIDIA GeForce RTX 3090 (24124 MiB, 23800 MiB free)
  Vulkan1: AMD Radeon (RADV NAVI31) (24560 MiB, 24000 MiB free)
  RPC0: 127.0.0.1:50052 (100 MiB, 100 MiB free)
"""

    assert parse_devices(said) == [
        LlamaDevice("CUDA0", "cuda", 23800.0),
        LlamaDevice("Vulkan1", "vulkan", 24000.0),
    ]
    assert parse_devices("Available devices:\n") == []


def test_no_device_offers_more_than_the_node_advertises() -> None:
    hardware = Hardware((), "cpu", 8, 0.0, 0.0, 16_000, 8_000, False)

    assert capped([LlamaDevice("CUDA0", "cuda", 100.0)], hardware) == []
