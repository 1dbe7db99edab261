"""Batches from file to file: what is read, what is written, and what a run that was broken off leaves."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sollol.batch.items import Item, Source, survey
from sollol.batch.outputs import Row, check_output, errors_of, open_output, part_of
from sollol.batch.state import Asked, State, check_same, locked, new_state, read_state, write_state
from sollol.cli.app import app as command_line
from sollol_broker.batch_record import check_batch_id
from sollol_broker.errors import InvalidJob
from sollol_broker.words import JobKind

ERROR = {"error": "BackendError", "message": "too long"}


def _file(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text", "field", "expected"),
    [
        ("a.txt", "one\n\ntwo\r\nthree", None, [Item("one"), Item("two"), Item("three")]),
        ("a.TXT", "\ufeffone\u2028still one\n", None, [Item("one\u2028still one")]),
        ("a.jsonl", '"one"\n\n{"text": "two", "id": 7}\n{"prompt": "three", "custom_id": "x"}', None,
         [Item("one"), Item("two", 7), Item("three", "x")]),
        ("a.ndjson", '{"title": "one", "text": "no"}', "title", [Item("one")]),
        ("a.csv", 'id,text\n1,"one\ntwo"\n2,three\n', None, [Item("one\ntwo", "1"), Item("three", "2")]),
        ("a.csv", "body,other\none,x\n", "body", [Item("one")]),
    ],
)  # fmt: skip
def test_texts_are_read(
    tmp_path: Path, name: str, text: str, field: str | None, expected: list[Item]
) -> None:
    source = survey(_file(tmp_path, name, text), JobKind.EMBED, field)
    assert list(source.items()) == expected
    assert list(source.items(1)) == expected[1:]
    assert source.count == len(expected)


def test_chats_are_texts_or_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    lines = ["hi", messages, {"messages": messages, "id": "a"}, {"prompt": "hi"}]
    text = "\n".join(map(json.dumps, lines))
    values = [item.value for item in survey(_file(tmp_path, "a.jsonl", text), JobKind.CHAT).items()]
    assert values == ["hi", messages, messages, "hi"]


@pytest.mark.parametrize(
    ("name", "text", "kind", "match"),
    [
        ("a.jsonl", '"one"\n{"text": 3}', JobKind.EMBED, "line 2: a text is needed"),
        ("a.jsonl", '"one"\n{"body": "x"}', JobKind.EMBED, "line 2: it has no field text or input.*--field"),
        ("a.jsonl", '"one"\n{secret-canary', JobKind.EMBED, "line 2: no JSON"),
        ("a.jsonl", "[" * 100_000, JobKind.EMBED, "no JSON"),
        ("a.jsonl", '[{"content": "x"}]', JobKind.CHAT, "messages with role"),
        ("a.jsonl", '""', JobKind.CHAT, "empty"),
        ("a.jsonl", '["one"]', JobKind.GENERATE, "a text is needed"),
        ("a.txt", "\n\n", JobKind.EMBED, "no items"),
        ("a.pdf", "x", JobKind.EMBED, "can be read"),
    ],
)
def test_a_line_at_fault_is_named_before_anything_is_sent(
    tmp_path: Path, name: str, text: str, kind: JobKind, match: str
) -> None:
    with pytest.raises(InvalidJob, match=match) as error:
        survey(_file(tmp_path, name, text), kind)
    assert "canary" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidJob, match="No such file"):
        survey(tmp_path / "none.txt", JobKind.EMBED)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidJob, match="UTF-8"):
        survey(tmp_path / "a.txt", JobKind.EMBED)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    lines = [json.dumps({"text": "x", "id": f"n{index}"}) for index in range(5)]
    return survey(_file(tmp_path, "in.jsonl", "\n".join(lines)), JobKind.EMBED)


def _row(index: int, vector: list[float] | None) -> Row:
    if vector is None:
        return Row(index, f"n{index}", error=ERROR)
    return Row(index, f"n{index}", struct.pack(f"<{len(vector)}f", *vector))


def _rows(start: int, *vectors: list[float] | None) -> list[Row]:
    return [_row(start + n, vector) for n, vector in enumerate(vectors)]


FIVE = [None, [1.0, 2.0], [3.0, 4.5], None, [5.0, 6.0]]


def _write_brokenly(path: Path, source: Source) -> None:
    """The first run dies in the middle of a row; the second goes on."""
    one = open_output(path, source)
    one.add(_rows(0, *FIVE[:1]))
    one.add(_rows(1, *FIVE[1:4]))
    one.close()
    part = part_of(path)
    part.write_bytes(part.read_bytes()[:-3])
    two = open_output(path, source)
    assert two.rows == 3, "the row that was torn is written anew"
    assert not path.exists(), "a file is there when it is whole"
    two.add(_rows(3, *FIVE[3:]))
    two.finish()


def test_vectors_as_a_matrix(tmp_path: Path, source: Source) -> None:
    path = tmp_path / "out.npy"
    _write_brokenly(path, source)
    matrix = np.load(path, mmap_mode="r")
    assert matrix.dtype == np.float32
    expected = np.array([[np.nan, np.nan] if row is None else row for row in FIVE], np.float32)
    np.testing.assert_array_equal(matrix, expected)
    told = [json.loads(line) for line in errors_of(path).read_text().splitlines()]
    assert told == [{"index": n, "id": f"n{n}", **ERROR} for n in (0, 3)]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl", "out.npy", "out.npy.errors.jsonl"]
    again = open_output(path, source)
    again.add(_rows(0, *[[0.0, 1.0]] * 5))
    assert again.finish() == [path]
    assert not errors_of(path).exists(), "errors of an earlier batch would mislead"


def test_vectors_as_lines(tmp_path: Path, source: Source) -> None:
    path = tmp_path / "out.jsonl"
    _write_brokenly(path, source)
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["index"] for each in told] == [0, 1, 2, 3, 4]
    assert [each.get("embedding") for each in told] == FIVE
    assert told[3] == {"index": 3, "id": "n3", **ERROR}


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
def test_without_a_single_vector_there_is_a_file_all_the_same(
    tmp_path: Path, source: Source, name: str
) -> None:
    path = tmp_path / name
    output = open_output(path, source)
    output.add(_rows(0, *[None] * 5))
    output.finish()
    if name.endswith("npy"):
        assert np.load(path).shape == (5, 0)
    else:
        assert len(path.read_text().splitlines()) == 5


def test_vectors_of_two_lengths_are_no_matrix(tmp_path: Path, source: Source) -> None:
    output = open_output(tmp_path / "out.npy", source)
    with pytest.raises(ValueError, match="3 numbers, those before 2"):
        output.add(_rows(0, [1.0, 2.0], [1.0, 2.0, 3.0]))
    output.close()


@pytest.mark.parametrize(
    ("name", "kind", "match"),
    [
        ("out.npy", JobKind.CHAT, "answers go into files that end with .jsonl"),
        ("out.pdf", JobKind.EMBED, "vectors go into files that end with .npy, .parquet, .jsonl"),
        ("none/out.npy", JobKind.EMBED, "no folder"),
    ],
)
def test_an_output_that_cannot_be(tmp_path: Path, name: str, kind: JobKind, match: str) -> None:
    with pytest.raises(InvalidJob, match=match):
        check_output(tmp_path / name, kind)


ASKED = Asked("embed", "m", "d" * 64, 5, {"options": {"seed": 1}})


def test_a_state_names_the_batch_to_go_on_with(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    assert read_state(path) is None
    state = new_state(ASKED, 0)
    assert check_batch_id(state.batch) != new_state(ASKED, 0).batch
    write_state(path, state)
    assert read_state(path) == state
    check_same(path, state, ASKED)
    (tmp_path / "out.npy.state").write_text("{}")
    with pytest.raises(InvalidJob, match="--fresh"):
        read_state(path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"digest": "e" * 64, "count": 6}, "another input file:"),
        ({"model": "n"}, "another model:"),
        ({"more": {}, "kind": "chat"}, "another kind and options:"),
    ],
)
def test_another_question_does_not_go_on_in_the_same_file(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    other = Asked(**{**_fields(ASKED), **changed})
    with pytest.raises(InvalidJob, match=told):
        check_same(tmp_path / "out.npy", State(ASKED, "b", 0), other)


def _fields(asked: Asked) -> dict[str, Any]:
    return {name: getattr(asked, name) for name in ("kind", "model", "digest", "count", "more")}


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    with locked(path), pytest.raises(InvalidJob, match="another run"), locked(path):
        pass
    with locked(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_without_its_package_a_table_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "sollol.batch.parquet", raising=False)
    out = tmp_path / "out.parquet"
    said = CliRunner().invoke(
        command_line, ["batch", "embed", str(tmp_path / "x.txt"), "-m", "m", "-o", str(out)]
    )
    assert said.exit_code == 1
    assert "pip install 'sollol[parquet]'" in said.stderr
