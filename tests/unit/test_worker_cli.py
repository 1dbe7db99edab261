"""`sollol-worker` without a fabric: where it is told that Redis is."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from sollol_broker.announce import Announcement
from sollol_broker.errors import BrokerUnavailable
from sollol_worker_agent import cli

# Nothing listens on port 1; 192.0.2.0/24 is nobody's.
TYPED = "redis://127.0.0.1:1/1"
FOUND = "redis://192.0.2.9:6379/0"


@pytest.mark.parametrize(
    ("args", "env", "file", "looks"),
    [
        (["--find"], {}, "", "any"),
        (["--find", "blue"], {"SOLLOL_REDIS_URL": TYPED}, "", "blue"),
        ([], {"SOLLOL_WORKER_FIND": "blue"}, "", "blue"),
        ([], {}, 'find = "any"', "any"),
        (["--redis", TYPED], {}, 'find = "any"', None),
        ([], {"SOLLOL_REDIS_URL": TYPED}, 'find = "any"', None),
        ([], {}, "", None),
    ],
)
def test_it_looks_for_a_fabric_when_it_is_asked_to(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    args: list[str],
    env: dict[str, str],
    file: str,
    looks: str | None,
) -> None:
    looked: list[str] = []

    async def find(fabric: str, *, seconds: float, only_tls: bool) -> Announcement:
        looked.append(fabric)
        return Announcement(FOUND, "default")

    monkeypatch.setattr(cli, "find", find)
    monkeypatch.setattr(cli, "_run", _refuse)
    settings = tmp_path / "sollol.toml"
    settings.write_text(f"[worker]\n{file}\n")
    environ = {"SOLLOL_REDIS_URL": None, "SOLLOL_CONFIG": str(settings), **env}
    said = CliRunner().invoke(cli.main, args, env=environ)
    assert looked == ([looks] if looks else [])
    # One that was found on the network needs a password as any other does.
    assert ("on the network and we have no password" in said.output) is bool(looks)


async def _refuse(options: cli.Options) -> None:
    raise BrokerUnavailable("no further")


def test_two_places_are_one_too_many() -> None:
    said = CliRunner().invoke(cli.main, ["--find", "--redis", TYPED])
    assert said.exit_code == 2
    assert "give one" in said.output
