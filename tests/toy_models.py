"""Tiny GGUF models with random weights, made in a fraction of a second, for a real llama-server.

They answer fast and always at full length. What they say means nothing.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import numpy.typing as npt

FloatType = Literal["f32", "f16"]
_FILE_TYPES = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}

CONTEXT_TOKENS = 4096
_HEADS, _KV_HEADS = 4, 2

_TEXT = (
    "the of and to in is it you that he was for on are with as his they be at one have this from or had by "
    "hot word but what some we can out other were all there when up use your how said an each she which do "
    "their time if will way about many then them write would like so these her long make thing see him two "
    "has look more day could go come did number sound no most people my over know water than call first who "
    "may down side been now find any new work part take get place made live where after back little only "
    "round man year came show every good me give our under name very through just form sentence great think"
)

_CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_toy_chat(path: Path, *, layers: int = 2, embd: int = 64, ftype: FloatType = "f32") -> Path:
    """Write a chat model that never stops by itself: an answer has exactly `max_tokens` tokens.

    Use "f32" where texts are compared; with "f16" near ties fall differently from run to run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return _write(path, name="toy-chat", layers=layers, embd=embd, ftype=ftype, pooling=None)


def make_toy_embedding(path: Path, *, layers: int = 2, embd: int = 64) -> Path:
    """Write a model that makes vectors of `embd` numbers: the mean over its tokens."""
    return _write(
        path, name="toy-embed", layers=layers, embd=embd, ftype="f32", pooling=gguf.PoolingType.MEAN
    )


def make_toy_reranker(path: Path, *, layers: int = 2, embd: int = 64) -> Path:
    """Write a model of the BERT kind that gives a score to a query and a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("toy-rank")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(embd)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * embd)
    writer.add_head_count(_HEADS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_token_type_count(1)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _, vocabulary = _add_vocabulary(writer)
    writer.add_sep_token_id(2)
    for tensor, values in _ranking_tensors(layers, embd, vocabulary).items():
        writer.add_tensor(tensor, values)
    _close(writer)
    return path


def _write(
    path: Path, *, name: str, layers: int, embd: int, ftype: FloatType, pooling: gguf.PoolingType | None
) -> Path:
    # A network of the llama kind, since llama.cpp needs nothing special for it.
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(embd)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * embd)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(embd // _HEADS)
    writer.add_file_type(_FILE_TYPES[ftype])
    if pooling is not None:
        writer.add_pooling_type(pooling)
    first_printable, vocabulary = _add_vocabulary(writer)
    for tensor, values in _tensors(layers, embd, vocabulary, first_printable).items():
        keep = ftype == "f32" or values.ndim == 1
        writer.add_tensor(tensor, values if keep else values.astype(np.float16))
    _close(writer)
    return path


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter) -> tuple[int, int]:
    """Add a vocabulary that can spell any text; returns its first printable token and its size."""
    kinds = gguf.TokenType
    tokens = [("<unk>", kinds.UNKNOWN)]
    tokens += [(text, kinds.CONTROL) for text in ("<s>", "</s>", "<|im_start|>", "<|im_end|>")]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    first_printable = len(tokens)
    pieces = [chr(code) for code in range(33, 127)] + ["▁"]
    # The tokenizer joins pairs step by step, so each beginning of a word has to be a token as well.
    pieces += ["▁" + word[:length] for word in _TEXT.split() for length in range(1, len(word) + 1)]
    tokens += [(piece, kinds.NORMAL) for piece in dict.fromkeys(pieces)]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(max(0, index - first_printable + 1)) for index in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(_CHAT_TEMPLATE)
    return first_printable, len(tokens)


def _tensors(
    layers: int, embd: int, vocabulary: int, first_printable: int
) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(7)
    weights = partial(_weights, random)
    kv = _KV_HEADS * (embd // _HEADS)
    ones = np.ones(embd, np.float32)
    tensors = {"token_embd.weight": random.standard_normal((vocabulary, embd), np.float32)}
    for layer in range(layers):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": ones,
            f"blk.{layer}.attn_q.weight": weights(embd, embd, 2),
            f"blk.{layer}.attn_k.weight": weights(kv, embd, 2),
            f"blk.{layer}.attn_v.weight": weights(kv, embd),
            f"blk.{layer}.attn_output.weight": weights(embd, embd, 0.7),
            f"blk.{layer}.ffn_norm.weight": ones,
            f"blk.{layer}.ffn_gate.weight": weights(2 * embd, embd),
            f"blk.{layer}.ffn_up.weight": weights(2 * embd, embd),
            f"blk.{layer}.ffn_down.weight": weights(embd, 2 * embd, 0.7),
        }
    output = weights(vocabulary, embd, 6)
    # A score of 0 against about 20 for the best word: control tokens, the end mark too, are never chosen.
    output[:first_printable] = 0
    return tensors | {"output_norm.weight": ones, "output.weight": output}


def _ranking_tensors(layers: int, embd: int, vocabulary: int) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(7)
    weights = partial(_weights, random)
    ones, zeros = np.ones(embd, np.float32), np.zeros(embd, np.float32)
    tensors = {
        "token_embd.weight": random.standard_normal((vocabulary, embd), np.float32),
        "token_types.weight": np.zeros((1, embd), np.float32),
        "position_embd.weight": weights(CONTEXT_TOKENS, embd),
        "token_embd_norm.weight": ones,
        "token_embd_norm.bias": zeros,
    }
    for layer in range(layers):
        tensors |= {
            f"blk.{layer}.attn_{part}.weight": weights(embd, embd) for part in ("q", "k", "v", "output")
        }
        tensors |= {
            f"blk.{layer}.attn_{part}.bias": zeros for part in ("q", "k", "v", "output", "output_norm")
        }
        tensors |= {
            f"blk.{layer}.attn_output_norm.weight": ones,
            f"blk.{layer}.ffn_up.weight": weights(2 * embd, embd),
            f"blk.{layer}.ffn_up.bias": np.zeros(2 * embd, np.float32),
            f"blk.{layer}.ffn_down.weight": weights(embd, 2 * embd),
            f"blk.{layer}.ffn_down.bias": zeros,
            f"blk.{layer}.layer_output_norm.weight": ones,
            f"blk.{layer}.layer_output_norm.bias": zeros,
        }
    score = {"cls.output.weight": weights(1, embd, 4), "cls.output.bias": np.zeros(1, np.float32)}
    return tensors | {"cls.weight": weights(embd, embd), "cls.bias": zeros} | score


def _weights(
    random: np.random.Generator, rows: int, columns: int, scale: float = 1.0
) -> npt.NDArray[np.float32]:
    return random.standard_normal((rows, columns), np.float32) * np.float32(scale / columns**0.5)
