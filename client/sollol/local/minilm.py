"""Turns all-MiniLM-L6-v2, as sentence-transformers publishes it, into a GGUF file.

Only numpy and gguf are needed; no PyTorch. Other models of the BERT kind are not handled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

_DTYPES = {"F32": np.float32, "F16": np.float16}
_SPECIAL = frozenset({"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"})
# The positions are counted by llama.cpp; the pooler serves a training task that nobody asks for here.
_UNUSED = frozenset({"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"})
# llama.cpp wants these in full precision, as it does every vector.
_KEPT_F32 = ("token_types", "position_embd")

Tensor = npt.NDArray[Any]


def convert(source: Path, target: Path) -> None:
    """Write the model in directory `source` to the GGUF file `target`, in half precision.

    Raises:
        OSError: a file of the model is missing, or `target` cannot be written.
        ValueError: the directory holds another kind of model.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bert":
        raise ValueError(f"{source} holds no model of the BERT kind")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(target, "bert")
    try:
        _add_network(writer, config)
        _add_vocabulary(writer, (source / "vocab.txt").read_text(encoding="utf-8").splitlines())
        for name, values in _read_safetensors(source / "model.safetensors"):
            if (ours := name.removeprefix("bert.")) in _UNUSED:
                continue
            theirs = names.get_name(ours, try_suffixes=(".weight", ".bias"))
            if theirs is None:
                raise ValueError(f"{source} holds the tensor {name}, which llama.cpp does not know")
            keep = values.ndim == 1 or any(part in theirs for part in _KEPT_F32)
            writer.add_tensor(theirs, values.astype(np.float32 if keep else np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_network(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _add_vocabulary(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    kinds = gguf.TokenType
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_as_llama_cpp_spells_it(token) for token in tokens])
    writer.add_token_types([kinds.CONTROL if token in _SPECIAL else kinds.NORMAL for token in tokens])
    ids = {token: number for number, token in enumerate(tokens) if token in _SPECIAL}
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_mask_token_id(ids["[MASK]"])
    # The writer has no method for this one.
    writer.add_uint32("tokenizer.ggml.cls_token_id", ids["[CLS]"])
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_eos_token_id(ids["[SEP]"])


def _as_llama_cpp_spells_it(token: str) -> str:
    """BERT marks the inside of words ("##ing"), llama.cpp their beginning ("▁play")."""
    if token in _SPECIAL:
        return token
    return token[2:] if token.startswith("##") else "▁" + token


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """All float tensors of a safetensors file: a JSON header with its length before it, then raw numbers."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    for name, entry in header.items():
        if name != "__metadata__" and (dtype := _DTYPES.get(entry["dtype"])) is not None:
            begin, end = entry["data_offsets"]
            # A copy, so that it is aligned and does not keep the file open.
            yield name, np.frombuffer(data[begin:end].tobytes(), dtype).reshape(entry["shape"])
