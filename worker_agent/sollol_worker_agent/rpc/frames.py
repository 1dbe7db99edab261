"""Where messages of llama.cpp's RPC end, so that each goes through the tunnel in one piece. Pure.

A sender writes a message as command, length and payload, one after the other; handed on as they come, each would be
encrypted, sent and woken up for by itself. The receiver can do nothing with part of a message, so waiting for the
rest delays nobody.
"""

from __future__ import annotations

# Longer messages (weights on their way) are handed on as they come.
_LARGE_BYTES = 64 * 1024
_LENGTH_BYTES = 8
REQUEST_HEAD, REPLY_HEAD = 1 + _LENGTH_BYTES, _LENGTH_BYTES


class Frames:
    """One direction of a connection.

    Args:
        head_bytes: REQUEST_HEAD (command and length) or REPLY_HEAD (length).
    """

    def __init__(self, head_bytes: int) -> None:
        self._head = head_bytes
        self._held = bytearray()
        self._through = 0  # bytes of a large message that are still to come

    def whole(self, data: bytes) -> bytes:
        """Take what has come; gives what may be handed on now, "" = nothing yet."""
        if not self._held and self._through >= len(data):
            self._through -= len(data)
            return data
        self._held += data
        end = min(self._through, len(self._held))
        self._through -= end
        while len(self._held) - end >= self._head:
            size = self._head + int.from_bytes(
                self._held[end + self._head - _LENGTH_BYTES : end + self._head], "little"
            )
            there = len(self._held) - end
            if size > there and size <= _LARGE_BYTES:
                break
            if size > there:
                self._through = size - there
            end += min(size, there)
        whole = bytes(self._held[:end])
        del self._held[:end]
        return whole

    def rest(self) -> bytes:
        """What has been held back, at the end of the connection."""
        rest = bytes(self._held)
        self._held.clear()
        return rest
