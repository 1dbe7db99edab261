"""`sollol.toml`: where it is looked for, and what is in it. Flags win over the environment, and that over the file."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import SollolError
from .settings import BY_KEY, SETTINGS, TWINS, Kind, Setting

NAME = "sollol.toml"
VARIABLE = "SOLLOL_CONFIG"
Value = str | int | float | bool | tuple[str, ...]
# A configuration is some lines long; what is larger is the wrong file.
_MOST_BYTES = 1024 * 1024


class ConfigError(SollolError, ValueError):
    """A configuration file cannot be read, or says what makes no sense."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says, checked.

    Attributes:
        path: None = there is no file.
        values: by `Setting.key`.
    """

    path: Path | None = None
    values: Mapping[str, Value] = field(default_factory=dict, repr=False)

    def section(self, name: str) -> dict[str, Value]:
        """What one command's table says, by name."""
        return {BY_KEY[key].name: value for key, value in self.values.items() if BY_KEY[key].section == name}

    def shared(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What holds for all commands and `environ` does not say already, as the environment would."""
        return {
            setting.env: as_text(self.values[setting.key])
            for setting in SETTINGS
            if setting.is_shared and setting.key in self.values and not is_given(setting, environ)
        }


def is_given(setting: Setting, environ: Mapping[str, str]) -> bool:
    """Whether the environment says this, in one form or the other; an empty value says nothing."""
    twin = TWINS.get(setting.key)
    return bool(environ.get(setting.env) or (twin and environ.get(BY_KEY[twin].env)))


def find(given: str | None, environ: Mapping[str, str], *, here: Path | None = None) -> Path | None:
    """The file to read: the one that is named, else the first that is there; None = there is none.

    1. `given` (--config), else $SOLLOL_CONFIG.
    2. sollol.toml in the working directory, ~/.config/sollol ($XDG_CONFIG_HOME), /etc/sollol.

    Raises:
        ConfigError: the one that is named is not there.
    """
    if named := given or environ.get(VARIABLE):  # 1
        path = Path(named).expanduser()
        if not path.exists():
            raise ConfigError(f"there is no {path}, which {'--config' if given else '$' + VARIABLE} names")
        return path
    return next((path for path in places(environ, here=here) if path.is_file()), None)  # 2


def places(environ: Mapping[str, str], *, here: Path | None = None) -> Iterator[Path]:
    """Where a file is looked for that nobody names, in order."""
    yield (here or Path.cwd()) / NAME
    home = environ.get("HOME") or os.path.expanduser("~")
    yield Path(environ.get("XDG_CONFIG_HOME") or Path(home) / ".config") / "sollol" / NAME
    yield Path("/etc/sollol") / NAME


def load(given: str | None, environ: Mapping[str, str]) -> ConfigFile:
    """Find the file and read it; one without values when there is none.

    Raises:
        ConfigError: it cannot be read, or says what makes no sense.
    """
    path = find(given, environ)
    return ConfigFile() if path is None else read(path)


def read(path: Path) -> ConfigFile:
    """Read a file and check it against the table of settings.

    Raises:
        ConfigError: it cannot be read, is no TOML, or holds an unknown name or a value of the wrong kind; all mistakes
            are named at once. Secrets are not repeated.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    try:
        told = tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None
    values, mistakes = _checked(told)
    if mistakes:
        raise ConfigError(f"{path}: " + "; ".join(mistakes))
    return ConfigFile(path, values)


def fill(config: ConfigFile, environ: MutableMapping[str, str]) -> list[str]:
    """Let what holds for all commands come from the file where `environ` does not say it; gives the names set.

    Child processes get it the same way, and the same file.
    """
    new = config.shared(environ)
    if config.path is not None and environ.get(VARIABLE) != str(config.path.absolute()):
        new[VARIABLE] = str(config.path.absolute())
    environ.update(new)
    return list(new)


def as_text(value: Value) -> str:
    """A value as the environment has it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    return " ".join(value) if isinstance(value, tuple) else str(value)


def _checked(told: Mapping[str, object]) -> tuple[dict[str, Value], list[str]]:
    values: dict[str, Value] = {}
    mistakes: list[str] = []
    for key, value in _flat(told):
        setting = BY_KEY.get(key)
        if setting is None:
            mistakes.append(_unknown(key))
            continue
        try:
            values[key] = _value(setting.kind, value)
        except ValueError as error:
            mistakes.append(f"{_shown(key)}: {error}")
    for key, twin in TWINS.items():
        if key < twin and key in values and twin in values:
            mistakes.append(f"{_shown(key)} and {BY_KEY[twin].name} are both given: keep one")
    return values, mistakes


def _flat(told: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in told.items():
        if isinstance(value, dict):
            # A table that nobody knows is one mistake, even when it is empty.
            known = any(each.section == name for each in SETTINGS)
            yield from (
                ((f"{name}.{key}", inner) for key, inner in value.items()) if known else ((name, value),)
            )
        else:
            yield name, value


def _value(kind: Kind, value: object) -> Value:
    """Raises ValueError with what is wanted."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if kind == "text" and isinstance(value, str):
        return value
    if kind == "whole" and is_whole:
        return int(str(value))
    if kind == "number" and (is_whole or isinstance(value, float)):
        return float(str(value))
    if kind == "yes/no" and isinstance(value, bool):
        return value
    if kind == "list":
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(each, str) for each in items):
            return tuple(items)
    wanted = {
        "text": "a text in quotes",
        "whole": "a whole number",
        "number": "a number",
        "yes/no": "true or false",
        "list": 'a list of texts, such as ["a", "b"],',
    }[kind]
    # What is there is not repeated: it may be a secret.
    raise ValueError(f"{wanted} is needed")


def _unknown(key: str) -> str:
    section, _, name = key.rpartition(".")
    tables = {each.section for each in SETTINGS} - {""}
    if key in tables:
        example = next(each for each in SETTINGS if each.section == key)
        return f"{key} is a table: write [{key}], and below it {example.name} = …"
    # The right word in the wrong table is as common a mistake as a misspelt one.
    elsewhere = [known for known, setting in BY_KEY.items() if setting.name == name]
    near = difflib.get_close_matches(key, BY_KEY, n=1) or elsewhere[:1]
    if not section:
        near = elsewhere[:1] or difflib.get_close_matches(key, [*BY_KEY, *tables], n=1)
    return f"{_shown(key)} is no setting" + (f", did you mean {_shown(near[0])}?" if near else "")


def _shown(key: str) -> str:
    section, found, name = key.rpartition(".")
    is_table = key not in BY_KEY and any(each.section == key for each in SETTINGS)
    return f"[{section}] {name}" if found else f"[{name}]" if is_table else name
