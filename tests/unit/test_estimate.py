from __future__ import annotations

import pytest

from known_models import GEMMA3_270M, LLAMA_70B, MIB, MINILM, SMOLLM2
from sollol_broker.model_facts import ModelFacts
from sollol_coordinator.estimate import (
    CACHE_TYPES,
    Correction,
    Load,
    cache_bytes,
    compute_bytes,
    estimate,
    needs_of,
    split_layers,
)


@pytest.mark.parametrize(
    ("facts", "load", "reported_mib"),
    [
        # weights + cache + compute + output buffers, as llama-server b10068 logged them
        (SMOLLM2, Load(2048), 92.10 + 45.00 + 15.51 + 0.19),
        (SMOLLM2, Load(4096, slots=4), 92.10 + 90.00 + 14.51 + 0.75),
        (SMOLLM2, Load(2048, batch_tokens=128), 92.10 + 45.00 + 3.88 + 0.19),
        (GEMMA3_270M, Load(2048), 235.16 + 12.66 + 21.00 + 20.77 + 1.00),
        (GEMMA3_270M, Load(8192, slots=2), 235.16 + 12.66 + 54.00 + 22.77 + 2.00),
        (MINILM, Load(512), 43.48 + 5.76 + 0.12),
    ],
)
def test_is_within_a_tenth_of_what_a_server_reported(
    facts: ModelFacts, load: Load, reported_mib: float
) -> None:
    need = estimate(facts, load)

    assert need.total_mib - need.process_mib == pytest.approx(reported_mib, rel=0.1)


@pytest.mark.parametrize(
    ("facts", "load", "reported_mib"),
    [
        (SMOLLM2, Load(2048), 45.0),
        (SMOLLM2, Load(4096, slots=4), 90.0),
        (GEMMA3_270M, Load(2048), 21.0),
        (GEMMA3_270M, Load(8192, slots=2), 54.0),
        (MINILM, Load(512), 0.0),
    ],
)
def test_the_cache_is_exact(facts: ModelFacts, load: Load, reported_mib: float) -> None:
    assert sum(cache_bytes(facts, load)) / MIB == pytest.approx(reported_mib)


def test_the_weights_are_exact() -> None:
    assert estimate(SMOLLM2, Load()).weights_mib == pytest.approx(92.10, abs=0.01)
    assert estimate(GEMMA3_270M, Load()).weights_mib == pytest.approx(235.16, abs=0.01)


def test_smaller_numbers_in_the_cache_take_less() -> None:
    plain = sum(cache_bytes(SMOLLM2, Load(2048)))

    packed = sum(cache_bytes(SMOLLM2, Load(2048, key_type="q8_0", value_type="q8_0")))

    assert packed == pytest.approx(plain * (34 / 32) / 2)


def test_windows_that_are_not_kept_small_take_the_whole_context() -> None:
    kept = sum(cache_bytes(GEMMA3_270M, Load(8192, keeps_windows=True)))

    assert kept > 2 * sum(cache_bytes(GEMMA3_270M, Load(8192)))


def test_without_flash_attention_the_scores_are_kept() -> None:
    more = compute_bytes(SMOLLM2, Load(2048, has_flash_attention=False)) - compute_bytes(SMOLLM2, Load(2048))

    assert more == 9 * 2048 * 512 * 4


@pytest.mark.parametrize(
    ("shares", "weights_mib"),
    [
        # as llama-server split it over two rpc-servers
        ([1, 1], [33.82, 58.28]),
        ([3, 1], [50.73, 41.37]),
        ([1, 3], [16.91, 75.19]),
        ([1, 0], [92.10, 0.0]),
    ],
)
def test_layers_and_weights_go_where_llama_cpp_puts_them(
    shares: list[float], weights_mib: list[float]
) -> None:
    needs = needs_of(SMOLLM2, Load(2048), split_layers(SMOLLM2.layers, shares))

    assert [need.weights_mib for need in needs] == pytest.approx(weights_mib, abs=0.01)


def test_counts_given_as_shares_come_out_as_they_went_in() -> None:
    for counts in ([1, 30], [16, 15], [7, 11, 13], [31], [2, 27, 1, 1]):
        assert split_layers(30, counts) == counts


def test_the_output_layer_goes_with_the_last() -> None:
    first, last = needs_of(LLAMA_70B, Load(), [40, 41])

    assert (first.layers, last.layers) == (40, 41)
    assert last.weights_mib - first.weights_mib == pytest.approx(821)


def test_a_gpu_needs_some_memory_for_its_driver() -> None:
    on_cpu, on_gpu = (needs_of(SMOLLM2, Load(), [31], [kind])[0] for kind in ("cpu", "cuda"))

    assert on_gpu.total_mib > on_cpu.total_mib


def test_what_loads_have_taught_scales_the_compute_buffer() -> None:
    plain, taught = needs_of(SMOLLM2, Load(), [31])[0], None
    taught = needs_of(SMOLLM2, Load(), [31], correction=Correction(compute=2.0, beyond_mib=10.0))[0]

    assert taught.weights_mib == plain.weights_mib
    assert taught.compute_mib > 2 * plain.compute_mib


@pytest.mark.parametrize("bad", [{"key_type": "f8"}, {"slots": 0}, {"context_tokens": 0}])
def test_a_load_that_makes_no_sense_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"f8 is no type|at least 1"):
        Load(**bad)  # type: ignore[arg-type]  # what a caller without types may pass


def test_every_cache_type_is_at_most_a_full_float() -> None:
    assert max(CACHE_TYPES.values()) == 4.0


def test_facts_survive_the_way_through_an_advert() -> None:
    assert ModelFacts.from_json(GEMMA3_270M.to_json()) == GEMMA3_270M
    with pytest.raises(ValueError, match="no model facts"):
        ModelFacts.from_json('{"architecture": "llama"}')
