"""multipart/form-data is the same however it is cut on its way."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sollol_client.gateway.multipart import Multipart, Part
from sollol_client.gateway.refusals import Refused

KIND = "multipart/form-data; boundary=edge"


def taken(pieces: list[bytes], kind: str = KIND) -> tuple[list[tuple[Part, bytes]], bool]:
    """Each part with its content; whether the body was whole."""
    body, found = Multipart(kind), list[tuple[Part, bytes]]()
    for piece in pieces:
        for each in body.feed(piece):
            if isinstance(each, Part):
                found.append((each, b""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + each)
    return found, body.is_over


@given(
    content=st.lists(
        st.sampled_from([b"\r\n", b"--", b"edg", b"-", b"\r", b"\n", b"\r\n--edg", b"x"]), max_size=12
    ).map(b"".join),
    cuts=st.lists(st.integers(1, 9), max_size=40),
)
def test_however_it_is_cut(content: bytes, cuts: list[int]) -> None:
    if b"\r\n--edge" in b"\r\n" + content + b"\r\n--":
        return
    sent = (
        b'what stands before\r\n--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch'
        b'\r\n--edge  \r\ncontent-type: text/plain\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"'
        b"\r\n\r\n" + content + b"\r\n--edge--\r\nand after"
    )
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(sent[at : at + cut])
        at += cut
    found, is_over = taken([*pieces, sent[at:]])
    assert found == [(Part("purpose"), b"batch"), (Part("file", "a.jsonl"), content)]
    assert is_over


def test_what_a_real_client_sends() -> None:
    sent = httpx.Request(
        "POST",
        "http://x/",
        data={"purpose": "batch"},
        files={"file": ("größe.jsonl", b"{}\n", "application/jsonl")},
    )
    found, is_over = taken([sent.read()], sent.headers["content-type"])
    assert [(part.name, content) for part, content in found] == [("purpose", b"batch"), ("file", b"{}\n")]
    assert found[1][0].file_name == "größe.jsonl"
    assert is_over


@pytest.mark.parametrize(
    "kind", ["", "application/json", "multipart/form-data", "multipart/form-data; boundary="]
)
def test_a_body_of_another_kind_is_refused(kind: str) -> None:
    with pytest.raises(Refused, match="boundary"):
        Multipart(kind)


@pytest.mark.parametrize(
    "sent", [b"--edge\r\n" + b"a" * 20_000, b"--edgewise\r\n", b"--edge" + b" " * 20_000]
)
def test_a_malformed_body_is_refused_before_it_is_large(sent: bytes) -> None:
    with pytest.raises(Refused, match="malformed"):
        taken([sent[at : at + 1000] for at in range(0, len(sent), 1000)])


def test_a_body_that_ends_early_is_not_whole() -> None:
    found, is_over = taken([b'--edge\r\nContent-Disposition: form-data; name="file"\r\n\r\nhal'])
    assert not is_over
    assert found[0][0].name == "file"
