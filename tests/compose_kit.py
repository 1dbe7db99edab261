"""The compose file as Docker would read it, and its services as processes of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "compose"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def read(environ: Mapping[str, str]) -> dict[str, Any]:
    """With variables put in: those of `environ`, else their defaults."""

    def value(found: re.Match[str]) -> str:
        return environ.get(found[1]) or found[2] or ""

    text = _VARIABLE.sub(value, (FOLDER / "docker-compose.yml").read_text("utf-8"))
    parsed: dict[str, Any] = yaml.safe_load(text)
    return parsed


def variables() -> dict[str, str]:
    """Every variable that the file reads, with its default."""
    text = (FOLDER / "docker-compose.yml").read_text("utf-8")
    return dict(_VARIABLE.findall(text))


def example() -> dict[str, str]:
    """What .env.example sets."""
    lines = (FOLDER / ".env.example").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
