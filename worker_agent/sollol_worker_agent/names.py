"""What a worker is called."""

from __future__ import annotations

import secrets

from sollol_broker.names import key_part


def worker_name(node: str) -> str:
    """NODE.RANDOM: another one at each start, so that nobody is taken for who was here before."""
    return f"{key_part(node)[:48]}.{secrets.token_hex(4)}"
