"""A model file of some hundred kB with random weights: enough to see whether a build can compute on this machine."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

_WIDTH, _HEADS, _CONTEXT_TOKENS = 64, 4, 512
_ALPHABET = "▁abcdefghijklmnopqrstuvwxyz"


def write_toy(path: Path) -> None:
    """Write it; one layer of the llama kind, with a vocabulary of single bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("toy")
    writer.add_context_length(_CONTEXT_TOKENS)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * _WIDTH)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    kinds = gguf.TokenType
    tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    tokens += [(letter, kinds.NORMAL) for letter in _ALPHABET]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(7)
    shapes = {
        "token_embd.weight": (len(tokens), _WIDTH),
        "output.weight": (len(tokens), _WIDTH),
        "blk.0.ffn_gate.weight": (2 * _WIDTH, _WIDTH),
        "blk.0.ffn_up.weight": (2 * _WIDTH, _WIDTH),
        "blk.0.ffn_down.weight": (_WIDTH, 2 * _WIDTH),
        **{f"blk.0.attn_{part}.weight": (_WIDTH, _WIDTH) for part in ("q", "k", "v", "output")},
    }
    for name, shape in shapes.items():
        values = random.standard_normal(shape, np.float32)
        if name == "output.weight":
            values[: -len(_ALPHABET)] = 0  # so that letters win: single bytes would make no text
        # Half precision: that code, too, is chosen by the processor.
        writer.add_tensor(name, values.astype(np.float16))
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
        writer.add_tensor(name, np.ones(_WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
