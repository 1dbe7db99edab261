"""The rules of `sollol acl` keep step with the code: every key family, and every command that is really sent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sollol_broker
import sollol_client
import sollol_coordinator
import sollol_worker_agent
from sollol_broker.acl import FAMILIES, Role, commands, patterns, user
from sollol_broker.errors import InvalidJob
from sollol_broker.keys import Keys

# Sent by nobody but the admin, who has all rights.
_ADMINS = {"FUNCTION"}
_SENT = re.compile(r'(?:call|_each|send)\(\s*"([A-Z]+)"')


def test_every_family_of_keys_is_given_to_roles() -> None:
    families = {name for name in vars(Keys) if not name.startswith("_")} - {"fabric", "prefix"}
    assert families == set(FAMILIES), "say in acl.py which role may read and write the new keys"


def test_every_key_lies_in_its_familys_pattern() -> None:
    keys = Keys("cell-2")
    given = [each.lstrip("~%R") for role in (Role.COORDINATOR, Role.GATEWAY) for each in patterns(role, keys)]
    for family in FAMILIES:
        member = getattr(keys, family)
        key = member if isinstance(member, str) else member(*["x"] * (2 if family == "pace" else 1))
        assert [each for each in given if key == each or (each.endswith("*") and key.startswith(each[:-1]))]


@pytest.mark.parametrize(
    ("role", "room"),
    [
        (Role.CLIENT, sollol_client),
        (Role.CLIENT, sollol_broker),
        (Role.WORKER, sollol_worker_agent),
        (Role.WORKER, sollol_broker),
        (Role.GATEWAY, sollol_client),
        (Role.COORDINATOR, sollol_coordinator),
        (Role.COORDINATOR, sollol_broker),
    ],
)
def test_every_command_that_a_room_sends_is_a_right(role: Role, room: object) -> None:
    (folder,) = room.__path__  # type: ignore[attr-defined]  # a package
    text = "\n".join(path.read_text() for path in Path(folder).rglob("*.py"))
    sent = set(_SENT.findall(text)) - _ADMINS
    rights = {each.partition("|")[0].upper() for each in commands(role)}
    assert sent
    assert sent <= rights, "say in acl.py who may send it"


def test_names_and_lines() -> None:
    assert user(Role.CLIENT).name == "sollol-client"
    assert user(Role.WORKER, "cell-2").name == "sollol-cell-2-worker"
    line = user(Role.DASHBOARD, "cell-2").line("secret-canary")
    assert line.startswith("user sollol-cell-2-dashboard on #")
    assert "secret-canary" not in line
    assert "fcall" not in line
    assert "{sollol:cell-2}:blob" not in line
    with pytest.raises(InvalidJob):
        user(Role.CLIENT, "two words")


def test_a_dashboard_only_reads() -> None:
    assert all(each.startswith("%R~") for each in patterns(Role.DASHBOARD, Keys()))
