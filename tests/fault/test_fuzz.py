"""Whatever comes in, by a caller or out of Redis: InvalidJob at most, little memory, no key outside the fabric."""

from __future__ import annotations

import contextlib
import json
import random
import tracemalloc
from dataclasses import replace
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no stubs
import pytest
import redis

from fabric_kit import TTL_MS, fabric_at
from sollol_broker.broker import Submission
from sollol_broker.envelope import MAX_ENVELOPE_BYTES, Envelope, checked
from sollol_broker.errors import InvalidJob
from sollol_broker.keys import Keys
from sollol_broker.library import library
from sollol_broker.names import canonical_model, check_name, key_part
from sollol_broker.payload import put_blobs_back, take_blobs_out

# Each case has a number, which is its seed: a failing one names itself. 11,000 in all.
_ENVELOPES, _CALLS, _NAMES, _SUBMITS = 5_000, 3_000, 5_000, 2_000
_WHOLE = {
    "kind": "chat",
    "model": "m",
    "app": "a",
    "payload": {"messages": [{"role": "user", "content": "Hi"}]},
}
_RICH = _WHOLE | {"metadata": {"a": [1, 2.5, None]}, "trace": {"traceparent": "x"}, "session": "s"}
_ODD_LETTERS = ":{}*\r\n|~?[]\\ \0aA.-_%éß中\u202e\x7f"
_FIELDS = ("v", "kind", "model", "app", "priority", "stream", "timeout_seconds", "session", "trace", "other")


def _text(chance: random.Random, longest: int = 30) -> str:
    return "".join(chance.choice(_ODD_LETTERS) for _ in range(chance.randrange(longest)))


def _scalar(chance: random.Random) -> Any:
    return chance.choice(
        [
            None,
            True,
            chance.randrange(-(2**66), 2**66),
            chance.choice([0.5, -0.0, 1e308, float("nan"), float("inf")]),
            _text(chance),
            chance.randbytes(5),
            {1, 2},
            object(),
        ]
    )


def _anything(chance: random.Random, depth: int = 4) -> Any:
    kind = chance.random() if depth else 1
    if kind < 0.25:
        return [_anything(chance, depth - 1) for _ in range(chance.randrange(4))]
    if kind < 0.5:
        keys = [_text(chance, 6) if chance.random() < 0.95 else 7 for _ in range(chance.randrange(4))]
        return {key: _anything(chance, depth - 1) for key in keys}
    return _scalar(chance) if chance.random() < 0.4 else _text(chance, 8)


def _mutated(chance: random.Random) -> bytes:
    """An envelope with a few bytes changed, or cut off."""
    data = bytearray(msgpack.packb(chance.choice([_WHOLE, _RICH])))
    for _ in range(chance.randrange(4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data[: len(data) - chance.choice([0, 0, 1, 3])])


# Short texts, numbers, and empty lists and maps grow most.
_GROWING = (
    b"\x80",
    b"\x90",
    b"\xa2ab",
    b"\xa5abcde",
    b"\xcd\xff\xff",
    b"\xcb12345678",
    b"\x81\xa1a\x80",
    b"\x91\x90",
)


def _bomb(chance: random.Random) -> bytes:
    """An envelope whose payload is the same item again and again, in one list or in several."""
    item, lists = chance.choice(_GROWING), chance.choice([1, 1, 2, 3, 9, 40])
    count = chance.randrange(MAX_ENVELOPE_BYTES - 300) // len(item) // lists
    head = msgpack.packb(_WHOLE | {"payload": {"x": None}})[:-1]
    one = b"\xdd" + count.to_bytes(4, "big") + item * count
    return bytes(head + b"\xdd" + lists.to_bytes(4, "big") + one * lists)


def _map_bomb(chance: random.Random) -> bytes:
    pairs: dict[str, Any] = {f"{number:x}": {} for number in range(chance.randrange(12_000))}
    return bytes(msgpack.packb(_WHOLE | {"payload": pairs}))


def _depth_bomb(chance: random.Random) -> bytes:
    head = msgpack.packb(_WHOLE | {"payload": {"x": None}})[:-1]
    return bytes(head + chance.choice([b"\x91", b"\x81\xa1a"]) * chance.randrange(2_000) + b"\xc0")


def test_an_envelope_out_of_redis_is_read_or_invalid() -> None:
    read = 0
    for number in range(_ENVELOPES):
        chance = random.Random(number)
        data = _mutated(chance) if number % 4 else chance.randbytes(chance.randrange(300))
        with contextlib.suppress(InvalidJob):
            json.dumps(Envelope.from_bytes(data).payload, allow_nan=False)
            read += 1
    assert read > _ENVELOPES / 10, "almost none was good: this proved little"


_MOST_MEMORY = 8 * MAX_ENVELOPE_BYTES


def _peak(data: bytes) -> int:
    """The most bytes at once while an envelope is read."""
    tracemalloc.start()
    try:
        with contextlib.suppress(InvalidJob):
            Envelope.from_bytes(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [_bomb, _map_bomb, _depth_bomb])
def test_an_envelope_that_explodes_is_refused_before_it_does(make: Any) -> None:
    refused = 0
    for number in range(60):
        data = make(random.Random(number))
        # Threads that other tests have left allocate, too; what the reading takes is the least of some tries.
        peak = min(_peak(data) for _ in range(3)) if (peak := _peak(data)) >= _MOST_MEMORY else peak
        assert peak < _MOST_MEMORY, f"case {number}: {len(data)} bytes took {peak}"
        try:
            Envelope.from_bytes(data)
        except InvalidJob:
            refused += 1
    assert refused > 5


def test_what_a_caller_gives_arrives_as_it_was_or_is_invalid() -> None:
    sent = 0
    for number in range(_CALLS):
        chance = random.Random(number)
        names = ["messages", "images", "options", _text(chance)]
        payload = {name: _anything(chance) for name in names if chance.random() < 0.4}
        odd = {chance.choice(_FIELDS): _anything(chance)} if number % 3 == 0 else {}
        try:
            plain, blobs = take_blobs_out(payload)
            data = checked(
                Envelope, _WHOLE | {"payload": plain, "metadata": {"x": _scalar(chance)}} | odd
            ).to_bytes()
        except InvalidJob:
            continue
        arrived = Envelope.from_bytes(data).payload
        assert json.loads(json.dumps(arrived, allow_nan=False)) == arrived
        put_blobs_back(arrived, ["" for _ in blobs])
        sent += 1
    assert sent > _CALLS / 20, "almost none was good: this proved little"


def _deep(levels: int) -> list[Any]:
    return [_deep(levels - 1)] if levels else []


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ({"x": float("nan")}, "no number"),
        ({"options": {"temperature": float("inf")}}, "no number"),
        ({"x": [b"bytes"]}, "pictures"),
        ({"x": [["ab"] * 2_000] * 26}, "values"),
        ({"x": _deep(101)}, "deep"),
        ({"x": _deep(300)}, "deep"),
        ({"x": _deep(900)}, "deep"),
    ],
)
def test_what_a_backend_could_not_be_told_is_refused_where_it_is_handed_in(
    payload: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidJob, match=why):
        checked(Envelope, _WHOLE | {"payload": payload}).to_bytes()


def test_a_key_that_occurs_twice_is_refused() -> None:
    twice = b"\x82" + msgpack.packb("a") + msgpack.packb(1) + msgpack.packb("a") + msgpack.packb(2)
    with pytest.raises(InvalidJob, match="twice"):
        Envelope.from_bytes(msgpack.packb(_WHOLE | {"payload": None})[:-1] + twice)


def test_a_name_is_taken_or_invalid_and_its_keys_stay_inside() -> None:
    keys = Keys("cell")
    for number in range(_NAMES):
        name = _text(random.Random(number), 250)
        with contextlib.suppress(InvalidJob):
            assert canonical_model(name) == name.lower().removesuffix(":latest")
        with contextlib.suppress(InvalidJob):
            assert check_name(name, "app") == name
        for key in (keys.queue(key_part(name)), keys.app(name), keys.node(name), keys.group(name)):
            assert key.startswith("{sollol:cell}:")
            assert key.count("{") == key.count("}") == 1
            assert key.isprintable()
            assert key.isascii()


async def test_odd_arguments_of_submit_leave_the_fabric_whole(redis_url: str) -> None:
    """Calls of the function itself, past every check of ours: whoever may submit can make them."""
    good = Submission(
        job_id="j",
        model="m",
        app="a",
        priority=5,
        head_start_ms=0.0,
        stream=True,
        envelope=b"envelope",
        inbox="client",
        result_ttl_ms=TTL_MS,
        without_node=True,
    )
    raw: Any = redis.Redis.from_url(redis_url)
    refused: list[str] = []
    async with fabric_at(redis_url) as fabric:
        await fabric.submit("first", without_node=True)
        for number in range(_SUBMITS):
            chance = random.Random(number)
            arguments = list(replace(good, job_id=f"j{number}").arguments())
            for _ in range(chance.randrange(3)):
                odd = [
                    _text(chance),
                    chance.randrange(-(2**70), 2**70),
                    "nan",
                    "inf",
                    "1e400",
                    "0x10",
                    -1,
                    0.5,
                    "",
                ]
                arguments[chance.randrange(23)] = chance.choice(odd)
            try:
                raw.fcall(library().function("submit"), 1, fabric.keys.prefix, *arguments)
            except redis.ResponseError as error:
                refused.append(f"case {number}: {error}")
        # An error of the script itself would leave its work half done.
        assert [each for each in refused if "user_function" in each or "script" in each] == []
        assert len(refused) > 100
        assert [key for key in raw.scan_iter(count=1_000) if not key.startswith(b"{sollol}:")] == []
        taken = 0
        await fabric.worker("w1")
        while claimed := await fabric.claim("w1", free=32):
            taken += len(claimed)
            for each in claimed:
                assert (await fabric.broker.finish(each.lease, b"answer", used=fabric.used())).taken
        assert taken > 500, "hardly anything was accepted: this proved little"
        for key in raw.scan_iter(match="{sollol}:job:*", count=1_000):
            fabric.submitted.append(key.decode().partition(":job:")[2])  # to be cancelled, and looked after
    raw.close()
