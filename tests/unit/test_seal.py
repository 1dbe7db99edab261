"""Sealed data opens with its key, as what it is, of its own job; and in no other way."""

from __future__ import annotations

import base64
import builtins
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_broker.codec import unpack
from sollol_broker.errors import BrokerUnavailable, InvalidJob, KeyMissing, from_wire, to_wire
from sollol_broker.seal import Seal, is_sealed, read_keys
from sollol_broker.url import parse

_OLD, _NEW, _STRANGE = (bytes([each]) * 32 for each in (1, 2, 3))
_TEXT = b"xylophone-canary"


@given(st.binary(max_size=500))
def test_there_and_back(data: bytes) -> None:
    seal = Seal([_NEW])
    sealed = seal.close(data, "j1", "envelope")
    assert seal.open(sealed, "j1", "envelope", must=True) == data
    assert sealed != seal.close(data, "j1", "envelope")  # no two alike
    assert len(data) < 8 or data not in sealed


def test_without_keys_everything_passes() -> None:
    seal = Seal()
    assert not seal.is_on
    assert seal.close(_TEXT, "j1", "end") == _TEXT == seal.open(_TEXT, "j1", "end")
    assert seal.blind("abc") == "abc"


@pytest.mark.parametrize(
    ("job_id", "what"), [("j2", "end"), ("j1", "envelope"), ("j1", "end:1"), ("j", "1end")]
)
def test_what_was_moved_does_not_open(job_id: str, what: str) -> None:
    seal = Seal([_NEW])
    with pytest.raises(InvalidJob, match="altered, or belongs elsewhere"):
        seal.open(seal.close(_TEXT, "j1", "end"), job_id, what)


def test_what_was_altered_does_not_open() -> None:
    seal = Seal([_NEW])
    sealed = seal.close(_TEXT, "j1", "end")
    for index in range(len(sealed)):
        altered = sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]
        with pytest.raises((InvalidJob, KeyMissing)) as caught:
            seal.open(altered, "j1", "end", must=True)
        assert "canary" not in str(caught.value)
    for cut in range(2, len(sealed)):
        with pytest.raises((InvalidJob, KeyMissing)):
            seal.open(sealed[:cut], "j1", "end", must=True)


def test_keys_are_changed_one_reader_at_a_time() -> None:
    old, both, new = Seal([_OLD]), Seal([_NEW, _OLD]), Seal([_NEW])
    assert both.open(old.close(_TEXT, "j1", "end"), "j1", "end") == _TEXT
    assert new.open(both.close(_TEXT, "j1", "end"), "j1", "end") == _TEXT  # the first one seals
    with pytest.raises(KeyMissing, match="SOLLOL_PAYLOAD_KEY_FILE") as caught:
        old.open(new.close(_TEXT, "j1", "end"), "j1", "end")
    assert len(caught.value.key_id) == 8
    assert _NEW.hex() not in str(caught.value)
    with pytest.raises(KeyMissing, match="we have none"):
        Seal().open(new.close(_TEXT, "j1", "end"), "j1", "end")
    again = from_wire(to_wire(caught.value))
    assert isinstance(again, KeyMissing)
    assert again.key_id == caught.value.key_id


def test_who_has_a_key_takes_nothing_unsealed() -> None:
    with pytest.raises(InvalidJob, match="is not encrypted"):
        Seal([_NEW]).open(_TEXT, "j1", "end", must=True)


def test_digests_cannot_be_tried_without_the_key() -> None:
    digest = "0123456789abcdef0123456789abcdef01234567"
    blind = Seal([_NEW]).blind(digest)
    assert blind == Seal([_NEW]).blind(digest)
    assert len(blind) == len(digest)
    assert len({blind, digest, Seal([_STRANGE]).blind(digest)}) == 3
    assert Seal([_NEW]).blind("") == ""


def test_no_message_looks_sealed() -> None:
    with pytest.raises(InvalidJob):
        unpack(b"\xc1\x01" + bytes(40), max_bytes=1000)
    assert is_sealed(Seal([_NEW]).close(b"", "j1", "end"))


# --- where keys come from


def test_a_file_of_keys(tmp_path: Path) -> None:
    text = f"# the newest first\n{_NEW.hex()}\n\n{base64.b64encode(_OLD).decode()}\n"
    assert read_keys(text) == (_NEW, _OLD)
    file = tmp_path / "keys"
    file.write_text(text)
    url = parse(f"redis://box?payload_key_file={file}")
    assert url.payload_keys == (_NEW, _OLD)
    assert parse("unix:///s", environ={"SOLLOL_PAYLOAD_KEY_FILE": str(file)}).payload_keys == (_NEW, _OLD)
    assert parse("redis://box").payload_keys == ()
    assert "payload" not in f"{url} {url!r}"


@pytest.mark.parametrize("text", ["", "# nothing", "hunter2", "00" * 31, "zz" * 32, "ab" * 16])
def test_a_file_that_holds_no_key(text: str) -> None:
    with pytest.raises(BrokerUnavailable, match="openssl rand -hex 32") as caught:
        read_keys(text)
    assert not text or text.startswith("#") or text not in str(caught.value)


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name == "cryptography":
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    Seal()
    with pytest.raises(BrokerUnavailable, match=r"pip install 'sollol\[crypto\]'"):
        Seal([_NEW])
