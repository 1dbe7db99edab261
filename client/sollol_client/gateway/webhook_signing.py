"""How a webhook proves that it comes from here: HMAC over id, time and body, as Standard Webhooks has it. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from sollol_broker.errors import InvalidJob

_PREFIX = "whsec_"
_LEAST_BYTES = 16


def secret_bytes(text: str) -> bytes:
    """A secret as it is written: "whsec_" and base64, or plain text.

    Raises:
        InvalidJob: it is too short, or no base64.
    """
    text = text.strip()
    try:
        key = (
            base64.b64decode(text.removeprefix(_PREFIX), validate=True)
            if text.startswith(_PREFIX)
            else text.encode()
        )
    except binascii.Error:
        raise InvalidJob("the webhook secret is no base64 behind whsec_", field="webhook_secret") from None
    if len(key) < _LEAST_BYTES:
        raise InvalidJob(
            f"the webhook secret has less than {_LEAST_BYTES} bytes: make one with `openssl rand -hex 32`",
            field="webhook_secret",
        )
    return key


def signed_headers(secret: bytes, event_id: str, seconds: int, body: bytes) -> dict[str, str]:
    """The headers of one call; without a secret it has no signature.

    Args:
        event_id: the same for each try of one event.
    """
    headers = {"webhook-id": event_id, "webhook-timestamp": str(seconds)}
    if secret:
        text = b".".join((event_id.encode(), str(seconds).encode(), body))
        mark = base64.b64encode(hmac.digest(secret, text, hashlib.sha256)).decode()
        headers["webhook-signature"] = f"v1,{mark}"
    return headers
