"""Who gets into the page: sessions, tries, tokens. With a clock of the test's."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from sollol_broker.errors import InvalidJob
from sollol_coordinator.page.cli import main
from sollol_coordinator.page.config import PageConfig, Role
from sollol_coordinator.page.sessions import SESSION_SECONDS, Sessions, Tries, same_secret


class Clock:
    """Stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_session_ends_by_time_and_by_logging_out() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    word, other = sessions.begin(Role.VIEWER, "eva"), sessions.begin(Role.OPERATOR, "ops")
    visitor = sessions.visitor(word)
    assert visitor is not None
    assert (visitor.name, visitor.may_operate) == ("eva", False)
    sessions.end(word)
    assert sessions.visitor(word) is None
    clock.now += SESSION_SECONDS - 1
    assert sessions.visitor(other) is not None
    clock.now += 1
    assert sessions.visitor(other) is None


def test_there_are_so_many_sessions_and_no_more() -> None:
    sessions = Sessions(Clock())
    first = sessions.begin(Role.VIEWER, "first")
    often = [sessions.begin(Role.VIEWER, "often") for _ in range(1100)]
    assert sessions.visitor(first) is not None
    assert sum(sessions.visitor(word) is not None for word in often) == 100
    words = [sessions.begin(Role.VIEWER, str(number)) for number in range(1000)]
    assert sessions.visitor(first) is None
    assert sessions.visitor(words[0]) is not None


def test_a_token_is_of_one_word_and_one_page() -> None:
    one, other = Sessions(Clock()), Sessions(Clock())
    assert one.is_token("word", one.token("word"))
    for word, token in (
        ("word", other.token("word")),
        ("other", one.token("word")),
        ("", one.token("")),
        ("word", ""),
        ("word", "\ud800"),
    ):
        assert not one.is_token(word, token)


def test_ten_failed_tries_have_to_wait_and_do_not_stop_others() -> None:
    clock = Clock()
    tries = Tries(clock)
    for _ in range(10):
        assert tries.wait_seconds("a") == 0
        tries.failed("a")
    assert tries.wait_seconds("a") == 60
    assert tries.wait_seconds("b") == 0
    clock.now += 59
    assert tries.wait_seconds("a") == 1
    clock.now += 1
    assert tries.wait_seconds("a") == 0


def test_sixty_failed_tries_from_anywhere_stop_all() -> None:
    tries = Tries(Clock())
    for number in range(60):
        tries.failed(str(number))
    assert tries.wait_seconds("new") == 60


def test_secrets_are_compared_whole() -> None:
    assert same_secret("ä", "ä")
    assert not same_secret("a", "a ")
    assert not same_secret("", "a")


@pytest.mark.parametrize(
    ("config", "needs"),
    [
        (PageConfig(), False),
        (PageConfig(host="localhost"), False),
        (PageConfig(host="::1"), False),
        (PageConfig(login=True), True),
        (PageConfig(password="long enough"), True),  # noqa: S106  # a test's
        (PageConfig(host="0.0.0.0"), True),  # noqa: S104  # nothing is bound
        (PageConfig(host="192.168.1.5"), True),
        (PageConfig(proxy="127.0.0.1"), True),  # which is here, and lets in whoever reaches it
        (PageConfig(hosts=("sollol.example",)), True),
    ],
)
def test_who_has_to_log_in(config: PageConfig, needs: bool) -> None:
    assert config.needs_login is needs


def test_a_password_is_not_shown_and_not_short() -> None:
    assert "canary-password" not in repr(PageConfig(password="canary-password"))  # noqa: S106  # a test's
    with pytest.raises(InvalidJob, match="too short"):
        PageConfig(password="1234567")  # noqa: S106  # a test's


def test_what_the_command_refuses_before_it_connects(tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, ["--redis", "redis://192.0.2.1"])
    assert refused.exit_code == 3
    assert "could read every prompt" in refused.output
    empty = tmp_path / "password"
    empty.write_text("\n")
    refused = CliRunner().invoke(main, ["--password-file", str(empty)])
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
    assert "its first line is empty" in refused.output
