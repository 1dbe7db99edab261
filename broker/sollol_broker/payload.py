"""Pictures in a request: they travel beside the envelope, and only a reference to them inside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from .envelope import MAX_BLOB_BYTES, MAX_BLOBS_BYTES
from .errors import InvalidJob

# The reference that stands where a picture stood.
_REFERENCE = "sollol-blob"


def take_blobs_out(payload: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    """Replace each picture of `images` (top level, and in each message) by a reference to a blob.

    A picture is base64 text, as Ollama takes it, or raw bytes.

    Raises:
        InvalidJob: not base64, over 32 MiB, or over 128 MiB all together.
    """
    blobs: list[bytes] = []

    def refer(images: Any, field: str) -> list[dict[str, int]]:
        if not isinstance(images, list | tuple):
            raise InvalidJob(f"{field}: a list of pictures is needed", field=field)
        references = []
        for index, image in enumerate(images):
            blobs.append(_picture(image, f"{field}[{index}]"))
            if sum(map(len, blobs)) > MAX_BLOBS_BYTES:
                raise InvalidJob(
                    f"{field}: all pictures together have more than {MAX_BLOBS_BYTES:,} bytes (128 MiB): "
                    "send several jobs",
                    field=field,
                )
            references.append({_REFERENCE: len(blobs) - 1})
        return references

    plain = dict(payload)
    if plain.get("images"):
        plain["images"] = refer(plain["images"], "images")
    messages = plain.get("messages")
    if isinstance(messages, list) and any(isinstance(m, Mapping) and m.get("images") for m in messages):
        plain["messages"] = [
            {**message, "images": refer(message["images"], f"messages[{index}].images")}
            if isinstance(message, Mapping) and message.get("images")
            else message
            for index, message in enumerate(messages)
        ]
    return plain, tuple(blobs)


def put_blobs_back(payload: Mapping[str, Any], pictures: Sequence[str]) -> dict[str, Any]:
    """Undo `take_blobs_out`, with each picture as base64 text.

    Raises:
        InvalidJob: a reference points nowhere.
    """

    by_number = dict(enumerate(pictures))

    def restore(images: Any) -> list[Any]:
        try:
            return [by_number[each[_REFERENCE]] if isinstance(each, Mapping) else each for each in images]
        except (KeyError, TypeError):
            raise InvalidJob("a picture of the job is missing in Redis", field="images") from None

    plain = dict(payload)
    if plain.get("images"):
        plain["images"] = restore(plain["images"])
    if isinstance(plain.get("messages"), list):
        plain["messages"] = [
            {**message, "images": restore(message["images"])}
            if isinstance(message, Mapping) and message.get("images")
            else message
            for message in plain["messages"]
        ]
    return plain


def _picture(image: Any, field: str) -> bytes:
    if isinstance(image, str):
        try:
            image = base64.b64decode(image, validate=True)
        except ValueError:  # binascii.Error, or letters that are not ASCII
            raise InvalidJob(f"{field}: not base64", field=field) from None
    if not isinstance(image, bytes | bytearray):
        raise InvalidJob(
            f"{field}: a picture is base64 text or bytes, got {type(image).__name__}", field=field
        )
    if len(image) > MAX_BLOB_BYTES:
        raise InvalidJob(
            f"{field}: {len(image):,} bytes, the limit is {MAX_BLOB_BYTES:,} (32 MiB)", field=field
        )
    return bytes(image)
