"""What the headers of some models say of the memory they need, written down so that no file is needed."""

from __future__ import annotations

from sollol_broker.model_facts import ModelFacts

MIB = 1024 * 1024

SMOLLM2 = ModelFacts(
    architecture="llama",
    layer_bytes=(2_216_448,) * 30,
    input_bytes=30_081_024,
    output_bytes=2_304,
    tied_bytes=30_081_024,
    kv_heads=(3,) * 30,
    key_length=64,
    value_length=64,
    window=0,
    windowed=(False,) * 30,
    embedding_length=576,
    feed_forward_length=1536,
    heads=9,
    vocabulary=49_152,
    context_tokens=8192,
)
_WIDE, _NARROW = 3_995_648, 3_596_288
GEMMA3_270M = ModelFacts(
    architecture="gemma3",
    layer_bytes=(
        *(_WIDE, _WIDE, _NARROW, _NARROW, _WIDE, _NARROW, _NARROW, _WIDE, _NARROW),
        *(_NARROW, _WIDE, _NARROW, _NARROW, _WIDE, _NARROW, _WIDE, _WIDE, _WIDE),
    ),
    input_bytes=178_257_920,
    output_bytes=2_560,
    tied_bytes=178_257_920,
    kv_heads=(1,) * 18,
    key_length=256,
    value_length=256,
    window=512,
    windowed=(*(True,) * 5, False) * 3,
    embedding_length=640,
    feed_forward_length=2048,
    heads=4,
    vocabulary=262_144,
    context_tokens=32_768,
)
MINILM = ModelFacts(
    architecture="bert",
    layer_bytes=(3_558_912,) * 6,
    input_bytes=24_233_472,
    output_bytes=0,
    tied_bytes=0,
    kv_heads=(0,) * 6,
    key_length=32,
    value_length=32,
    window=0,
    windowed=(False,) * 6,
    embedding_length=384,
    feed_forward_length=1536,
    heads=12,
    vocabulary=30_522,
    context_tokens=512,
)
# Llama 3 with 70 billion parameters at Q4_K_M.
LLAMA_70B = ModelFacts(
    architecture="llama",
    layer_bytes=(486 * MIB,) * 80,
    input_bytes=560 * MIB,
    output_bytes=821 * MIB,
    tied_bytes=0,
    kv_heads=(8,) * 80,
    key_length=128,
    value_length=128,
    window=0,
    windowed=(False,) * 80,
    embedding_length=8192,
    feed_forward_length=28_672,
    heads=64,
    vocabulary=128_256,
    context_tokens=8192,
)
