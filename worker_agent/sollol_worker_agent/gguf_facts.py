"""What of a GGUF header decides how much memory the model needs."""

from __future__ import annotations

from sollol_broker.model_facts import ModelFacts

from .gguf_header import BadGguf, GgufHeader, GgufTensor

# Every how many layers one looks back without limit, where the file does not say (as llama.cpp has it).
_FULL_EVERY = {
    "cohere2": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "llama4": 4,
    "olmo2": 4,
}


def facts_of(header: GgufHeader) -> ModelFacts:
    """Sum up a header.

    Raises:
        BadGguf: it does not say how many layers there are, or has weights of a type unknown here.
    """

    def number(key: str, default: int = 0) -> int:
        value = header.metadata.get(f"{header.architecture}.{key}", default)
        return int(value) if isinstance(value, int | float) else default

    layers = number("block_count")
    if layers <= 0:
        raise BadGguf(f"{header.name or 'the model'} does not say how many layers it has")
    layer_bytes, given, output = [0] * layers, 0, 0
    for name, tensor in header.tensors.items():
        size = _bytes(tensor)
        kind, _, rest = name.partition(".")
        if kind == "blk":
            layer_bytes[min(int(rest.partition(".")[0]), layers - 1)] += size
        elif name.startswith(("output", "cls")):
            output += size
        else:
            given += size
    embeddings = header.tensors.get("token_embd.weight", GgufTensor(0, 0))
    is_tied = "output.weight" not in header.tensors and not header.is_embedding
    heads = _per_layer(header, "attention.head_count", layers, 1)
    width = header.embedding_length
    per_head = width // max(1, *heads)
    window = number("attention.sliding_window")
    return ModelFacts(
        architecture=header.architecture,
        layer_bytes=tuple(layer_bytes),
        input_bytes=given,
        output_bytes=output,
        tied_bytes=_bytes(embeddings) if is_tied else 0,
        kv_heads=(0,) * layers
        if header.is_encoder
        else _per_layer(header, "attention.head_count_kv", layers, max(heads)),
        key_length=number("attention.key_length", per_head),
        value_length=number("attention.value_length", per_head),
        window=window,
        windowed=_windowed(header, layers, window),
        embedding_length=width,
        feed_forward_length=max(_per_layer(header, "feed_forward_length", layers, 4 * width)),
        heads=max(heads),
        vocabulary=embeddings.elements // width if width else 0,
        context_tokens=header.context_tokens,
    )


def _per_layer(header: GgufHeader, key: str, layers: int, default: int) -> tuple[int, ...]:
    """A value that files give once for all layers, or for each."""
    name = f"{header.architecture}.{key}"
    listed = [int(each) for each in header.lists.get(name, ())]
    if len(listed) >= layers:
        return tuple(listed[:layers])
    value = header.metadata.get(name, default)
    return (int(value) if isinstance(value, int | float) else default,) * layers


def _windowed(header: GgufHeader, layers: int, window: int) -> tuple[bool, ...]:
    """Which layers look back `window` tokens only; a kind that is not known counts as none, which is more memory."""
    if window <= 0:
        return (False,) * layers
    name = f"{header.architecture}.attention.sliding_window_pattern"
    if len(listed := header.lists.get(name, ())) >= layers:
        return tuple(bool(each) for each in listed[:layers])
    every = header.metadata.get(name, _FULL_EVERY.get(header.architecture, 0))
    if not isinstance(every, int) or every <= 0:
        return (False,) * layers
    return tuple(layer % every < every - 1 for layer in range(layers))


def _bytes(tensor: GgufTensor) -> int:
    # Here, since it brings numpy along: 0.1 s that only those with model files pay.
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
    except (KeyError, ValueError):
        raise BadGguf(
            f"weights of type {tensor.kind} are not known here; a newer gguf package may know them"
        ) from None
    return tensor.elements // block * size
