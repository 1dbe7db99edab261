"""Encryption of what people say to models and get back, with keys that Redis never sees.

What is sealed: envelopes, pictures, pieces, answers and errors. What stays readable is what routing needs: model,
application, priority, labels, counts of characters and tokens, times. Sealed data is

    0xC1 (a byte that no msgpack begins with) | 1 (the format) | id of the key (4) | nonce (12) | AES-256-GCM

under a key of the job's own, HMAC-SHA256(key, job id), so that random nonces stay safe for any number of pieces. What
it is, and of which job, is authenticated: data that was moved or altered does not open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from .errors import BrokerUnavailable, InvalidJob, KeyMissing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_MAGIC = b"\xc1\x01"
_ID_BYTES, _NONCE_BYTES, _KEY_BYTES = 4, 12, 32
_HEAD_BYTES = len(_MAGIC) + _ID_BYTES + _NONCE_BYTES
_HOW = "make one with `openssl rand -hex 32`"
# A job's cipher is asked for with each piece.
_CIPHERS_KEPT = 1024


class Seal:
    """Seals with the first key, opens with any of them; without keys it lets everything pass as it is.

    Args:
        keys: 32 bytes each.

    Raises:
        BrokerUnavailable: there are keys, and the library for them is not installed.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = {_key_id(key): key for key in keys}
        self._first = next(iter(self._keys), b"")
        if keys:
            try:
                import cryptography  # noqa: F401
            except ImportError:
                raise BrokerUnavailable(
                    "there are payload keys, but encryption is not installed: pip install 'sollol[crypto]'",
                    refused=True,
                ) from None

    @property
    def is_on(self) -> bool:
        """Whether there are keys."""
        return bool(self._keys)

    def close(self, data: bytes, job_id: str, what: str, *, key_id: bytes = b"") -> bytes:
        """Seal `data`, which is `what` of a job.

        Args:
            key_id: of the key to use; data passes as it is where we do not have that one.
        """
        key_id = key_id or self._first
        if (key := self._keys.get(key_id)) is None:
            return data
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = _cipher(key, job_id).encrypt(nonce, data, _bound(job_id, what))
        return b"".join((_MAGIC, key_id, nonce, sealed))

    def open(self, data: bytes, job_id: str, what: str, *, must: bool = False) -> bytes:
        """Open what `close` has sealed; what is not sealed passes.

        Args:
            must: it has to be sealed.

        Raises:
            KeyMissing: it is sealed with a key that is not here.
            InvalidJob: it was altered or belongs elsewhere, or has to be sealed and is not.
        """
        if not is_sealed(data):
            if must:
                raise InvalidJob(
                    f"the {what.partition(':')[0]} of job {job_id} is not encrypted, and whoever has a payload key "
                    "takes no other: was it written by somebody else? Give the same keys to all"
                )
            return data
        key_id = key_of(data)
        if (key := self._keys.get(key_id)) is None:
            have = ", ".join(each.hex() for each in self._keys) or "none"
            raise KeyMissing(
                f"job {job_id} is encrypted with payload key {key_id.hex()}, and we have {have}: name the file "
                "with the fabric's keys in SOLLOL_PAYLOAD_KEY_FILE",
                key_id=key_id.hex(),
            )
        from cryptography.exceptions import InvalidTag

        nonce = data[_HEAD_BYTES - _NONCE_BYTES : _HEAD_BYTES]
        try:
            return _cipher(key, job_id).decrypt(nonce, data[_HEAD_BYTES:], _bound(job_id, what))
        except (InvalidTag, ValueError):
            raise InvalidJob(
                f"the {what.partition(':')[0]} of job {job_id} does not open: it was altered, or belongs elsewhere"
            ) from None

    def blind(self, digest: str) -> str:
        """A digest of text as others may see it: without a key nobody can try texts against it."""
        if not self._keys or not digest:
            return digest
        return hmac.digest(self._keys[self._first], b"digest\0" + digest.encode(), "sha256").hex()[
            : len(digest)
        ]


def is_sealed(data: bytes) -> bool:
    """Whether `data` is sealed; a picture may look so by chance."""
    return data.startswith(_MAGIC)


def key_of(data: bytes) -> bytes:
    """The id of the key that `data` is sealed with; empty where it is not sealed."""
    return data[len(_MAGIC) : len(_MAGIC) + _ID_BYTES] if is_sealed(data) else b""


def read_keys(text: str) -> tuple[bytes, ...]:
    """The keys of a file: one a line, 32 bytes as hex or base64; lines that begin with # do not count.

    Raises:
        BrokerUnavailable: a line is no such key, or there is none.
    """
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(
        _key(line, number) for number, line in enumerate(lines, 1) if line and not line.startswith("#")
    )
    if not keys:
        raise BrokerUnavailable(f"the payload key file holds no key: {_HOW}", refused=True)
    return keys


def _key(line: str, number: int) -> bytes:
    try:
        key = bytes.fromhex(line) if len(line) == 2 * _KEY_BYTES else base64.b64decode(line, validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != _KEY_BYTES:
        raise BrokerUnavailable(
            f"line {number} of the payload key file is no key of {_KEY_BYTES} bytes: {_HOW}",
            refused=True,
        )
    return key


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"key id\0" + key).digest()[:_ID_BYTES]


def _bound(job_id: str, what: str) -> bytes:
    return f"{what}\0{job_id}".encode()


@lru_cache(_CIPHERS_KEPT)
def _cipher(key: bytes, job_id: str) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(hmac.digest(key, b"job\0" + job_id.encode(), "sha256"))
