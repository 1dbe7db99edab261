"""Which batch a file that is not whole belongs to: a small file beside it, so that the same command goes on."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sollol_broker.errors import InvalidJob


@dataclass(frozen=True, slots=True)
class Asked:
    """What a batch is about; another one must not go on in its file.

    Attributes:
        digest: of the input. count: its items. more: whatever else changes the answers.
    """

    kind: str
    model: str
    digest: str
    count: int
    more: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class State:
    """What lies beside the output.

    Attributes:
        start: index of the batch's first item in the input.
    """

    asked: Asked
    batch: str
    start: int


def new_state(asked: Asked, start: int) -> State:
    """The state of a batch that is about to begin."""
    return State(asked, f"cli-{asked.digest[:12]}-{secrets.token_hex(4)}", start)


def state_of(path: Path) -> Path:
    """The state file of an output."""
    return path.with_name(f"{path.name}.state")


def read_state(path: Path) -> State | None:
    """The state beside an output; None = there is none.

    Raises:
        InvalidJob: the file is none of ours.
    """
    file = state_of(path)
    try:
        told = json.loads(file.read_text("utf-8"))
        return State(Asked(**told["asked"]), str(told["batch"]), int(told["start"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise InvalidJob(f"{file} is not what it was: remove it, or use --fresh", field="output") from None


def write_state(path: Path, state: State) -> None:
    """Write it as a whole, or not at all."""
    file = state_of(path)
    new = file.with_name(f"{file.name}.new")
    new.write_text(json.dumps(asdict(state)), "utf-8")
    os.replace(new, file)


def check_same(path: Path, found: State, asked: Asked) -> None:
    """See whether a run may go on in an output's unfinished file.

    Raises:
        InvalidJob: it belongs to another question; says what is another.
    """
    changed = [name for name, before in asdict(found.asked).items() if before != asdict(asked)[name]]
    words = {"digest": "input file", "count": "input file", "more": "options"}
    if changed:
        told = " and ".join(dict.fromkeys(words.get(name, name) for name in changed))
        raise InvalidJob(
            f"{path} was begun with another {told}: --fresh throws away what is there, or name another output",
            field="output",
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep others from writing to an output at the same time.

    Raises:
        InvalidJob: another run does.
    """
    file = path.with_name(f".{path.name}.lock")
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InvalidJob(f"another run writes to {path} now", field="output") from None
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
