"""How a program ends when it cannot go on: one line, an exit code, and no traceback."""

from __future__ import annotations

import pytest

from sollol_broker.errors import BackendError, BrokerUnavailable, InvalidJob
from sollol_broker.program import one_line_errors


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BrokerUnavailable("Redis is away"), 3),
        (InvalidJob("that is no port", field="port"), 2),
        (BackendError("no server there"), 2),
        (ValueError("--find and --redis both say it"), 2),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == status
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError("a mistake of ours")
