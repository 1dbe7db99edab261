"""How the page's server begins and ends."""

from __future__ import annotations

import os
import signal

import pytest

from sollol_coordinator.page.config import PageConfig
from sollol_coordinator.page.server import Page, _signals_end


def _get(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_browsers_are_let_go_before_the_server_waits_for_them(number: int) -> None:
    gone: list[bool] = []
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), _signals_end(lambda: gone.append(True)):
        _get(number)
    assert gone == [True]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080/"),
        ("0.0.0.0", "http://127.0.0.1:8080/"),  # noqa: S104  # nothing is bound
        ("::", "http://[::1]:8080/"),  # it listens on IPv6 alone
        ("::1", "http://[::1]:8080/"),
    ],
)
def test_its_url_can_be_opened_on_this_machine(host: str, url: str) -> None:
    assert Page("redis://127.0.0.1:1", PageConfig(host=host), environ={}).url == url
