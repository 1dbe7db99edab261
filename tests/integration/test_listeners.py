"""What listens on this machine, and who can reach it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import psutil
import pytest

from sollol_broker.listeners import listeners, open_to


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])  # noqa: S104  # what is to be found
def listening(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    with socket.create_server((request.param, 0)) as server:
        yield request.param, server.getsockname()[1]


def test_a_port_is_found_with_its_program(listening: tuple[str, int]) -> None:
    found = [each for each in listeners() or () if each.port == listening[1]]
    assert [(each.address, each.program) for each in found] == [
        (listening[0], psutil.Process(os.getpid()).name())
    ]


def test_who_can_reach_a_server(listening: tuple[str, int]) -> None:
    address, port = listening
    is_open = address != "127.0.0.1"
    assert open_to(f"http://localhost:{port}") == ((address,) if is_open else ())
    assert open_to(f"http://127.0.0.1:{port}/v1") == ((address,) if is_open else ())


def test_servers_elsewhere_are_not_looked_up(listening: tuple[str, int]) -> None:
    assert open_to(f"http://192.0.2.1:{listening[1]}") == ()
    assert open_to("echo://?slots=1") == ()


def test_without_psutil_nothing_is_known(monkeypatch: pytest.MonkeyPatch, listening: tuple[str, int]) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert listeners() is None
    assert open_to(f"http://127.0.0.1:{listening[1]}") == ()
