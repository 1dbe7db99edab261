"""A fabric of this machine that others on the network may join."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sollol_broker.announce import Announcer
from sollol_broker.portal import Portal
from sollol_broker.url import parse

from .models import cache_directory

HOW_TO_JOIN = """\
Other machines of this network join with the password in {path}:
  pip install 'sollol[worker,lan]'
  SOLLOL_REDIS_PASSWORD=… sollol-worker --find
"""


def password_path() -> Path:
    """Where the password of the private Redis lies once it has one."""
    return cache_directory() / "redis-password"


def lan_password() -> str:
    """The password of the private Redis; drawn once, and kept for this user alone."""
    path = password_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text("utf-8").strip()
    password = secrets.token_urlsafe(24)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(password + "\n")
    return password


@contextmanager
def announced(url: str) -> Iterator[None]:
    """Announce this Redis on the local network meanwhile.

    Raises:
        SollolError: zeroconf is not installed, or others cannot reach it.
    """
    announcer = Announcer(parse(url, environ=os.environ))
    portal = Portal("sollol-announce")
    try:
        portal.run(announcer.start())
        yield
    finally:
        portal.run(announcer.stop())
        portal.close()
