"""What was asked of a cluster: jobs with their times and lengths, read from a file or drawn anew.

No text of any prompt is needed. Nothing here knows of nodes or queues.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sollol_broker.words import Priority

# The other names that a column may have, ours first.
_NAMES = {
    "arrival_s": ("arrival_s", "arrived", "submitted"),
    "prompt_tokens": ("prompt_tokens",),
    "output_tokens": ("output_tokens",),
    "app": ("app", "client"),
    "model": ("model",),
    "session": ("session",),
    "priority": ("priority",),
}
ANY_MODEL = ""


class BadTrace(ValueError):
    """A file that cannot be read as a trace; says where."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request.

    Attributes:
        arrival_s: seconds since the first one. output_tokens: 0 for an embedding.
        app: who asks. model: "" = the only one. session: "" = none.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    app: str = "app"
    model: str = ANY_MODEL
    session: str = ""
    priority: int = int(Priority.NORMAL)


def read_trace(path: Path, *, most: int = 0) -> list[Job]:
    """Read a CSV file with a header, JSON lines, or a list in JSON; sorted by arrival, the first at 0.

    Columns: `arrival_s` (or `submitted`, in seconds), `prompt_tokens`, `output_tokens`, and if there are any
    `app` (or `client`), `model`, `session`, `priority`. Others are ignored.

    Args:
        most: take only the first so many jobs; 0 = all.

    Raises:
        BadTrace: a column is missing, or a value is no number.
        OSError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = _json_rows(file) if _is_json(path) else _csv_rows(file)
            jobs = [_job(row, f"line {at}" if at else "a job") for at, row in rows]
    except BadTrace as error:
        raise BadTrace(f"{path.name}, {error}") from error
    except UnicodeDecodeError as error:
        raise BadTrace(f"{path.name} is not text: {error.reason}") from error
    if not jobs:
        raise BadTrace(f"{path.name} holds no jobs")
    jobs.sort(key=lambda job: job.arrival_s)
    begin = jobs[0].arrival_s
    return [replace(job, arrival_s=job.arrival_s - begin) for job in jobs[: most or None]]


def stretched(jobs: Sequence[Job], factor: float) -> list[Job]:
    """The same jobs, with `factor` times as long between them."""
    return [replace(job, arrival_s=job.arrival_s * factor) for job in jobs]


def _is_json(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        return file.read(1) in ("{", "[")


def _csv_rows(lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    rows = csv.DictReader(lines)
    columns = rows.fieldnames or ()
    for ours in ("arrival_s", "prompt_tokens", "output_tokens"):
        if not set(_NAMES[ours]) & set(columns):
            raise BadTrace(f"line 1 must name the columns, {', '.join(_NAMES)}: {ours} is missing")
    for row in rows:
        yield rows.line_num, row


def _json_rows(lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    lines = list(lines)
    if lines[0].startswith("["):
        try:
            found = json.loads("".join(lines))
        except ValueError as error:
            raise BadTrace(f"it is not JSON: {error}") from error
        if not all(isinstance(row, dict) for row in found):
            raise BadTrace("it is not a list of objects")
        # Of `sollol jobs --json`, those without an answer have no lengths yet.
        yield from ((0, row) for row in found if row.get("state", "done") == "done")
        return
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadTrace(f"line {at} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise BadTrace(f"line {at} is not an object")
        yield at, row


def _job(row: Mapping[str, Any], where: str) -> Job:
    found = {ours: _value(row, names) for ours, names in _NAMES.items()}
    priority = found["priority"]
    job = Job(
        arrival_s=_number(found["arrival_s"], "arrival_s", where),
        prompt_tokens=int(_number(found["prompt_tokens"], "prompt_tokens", where)),
        output_tokens=int(_number(found["output_tokens"], "output_tokens", where)),
        app=str(found["app"] or "app"),
        model=str(found["model"] or ANY_MODEL),
        session=str(found["session"] or ""),
        priority=int(Priority.NORMAL)
        if priority in (None, "")
        else int(_number(priority, "priority", where)),
    )
    if min(job.prompt_tokens, job.output_tokens) < 0 or not 0 <= job.priority <= Priority.CRITICAL:
        raise BadTrace(f"{where}: lengths are 0 or more, a priority is 0 to {int(Priority.CRITICAL)}")
    return job


def _value(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _number(value: Any, name: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        problem = "is missing" if value in (None, "") else f"is no number: {value!r}"
        raise BadTrace(f"{where}: {name} {problem}") from None
    if not math.isfinite(number):
        raise BadTrace(f"{where}: {name} is {value}")
    return number
