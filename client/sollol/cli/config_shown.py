"""How settings stand now, and how a file with all of them begins. Pure."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from sollol_broker.config_file import ConfigFile, Value, is_given
from sollol_broker.settings import PROGRAMS, SETTINGS, Setting

# Names in the environment that are no settings of the file.
_OTHER_NAMES = frozenset(
    ("SOLLOL_CONFIG", "SOLLOL_DEBUG", "SOLLOL_APP_NAME", "SOLLOL_HOME", "SOLLOL_GATEWAY_CONFIG")
)
_HEAD = """\
# Settings of SOLLOL. Flags win over the environment, the environment over this file, this file over the defaults.
# The name in the environment is the same: `slots` of [worker] is SOLLOL_WORKER_SLOTS, and `sollol-worker --slots`.
# Take the # from what you want to set; `sollol config check` looks it over, `sollol config show` says what holds.
"""
_EXAMPLES = {
    "durability": '"local"',
    "redis.url": '"redis://your-redis:6379/0"',
    "redis.username": '"sollol-worker"',
    "redis.password": '"..."',
    "redis.password_file": '"/etc/sollol/redis-password"',
    "redis.ca": '"/etc/sollol/ca.pem"',
    "redis.cert": '"/etc/sollol/me.pem"',
    "redis.key": '"/etc/sollol/me.key"',
    "payload_key_file": '"/etc/sollol/payload.key"',
    "worker.backend": '["http://127.0.0.1:11434"]',
    "worker.model": '["name=/models/file.gguf"]',
    "worker.models_dir": '["/models"]',
    "worker.address": '"10.0.0.5"',
    "worker.node": '"gpu-1"',
    "worker.label": '["eu"]',
    "worker.slots": "2",
    "gateway.allow_host": '["llm.example.org"]',
    "gateway.allow_origin": '["https://chat.example.org"]',
}
_BY_KIND = {"text": '"..."', "whole": "8192", "number": "10", "yes/no": "true", "list": '["..."]'}


@dataclass(frozen=True, slots=True)
class Shown:
    """A setting as it holds now.

    Attributes:
        value: None = the default holds, which `default` tells in words; a secret is "***".
        origin: "environment", "file" or "default".
        source: the variable, or the path of the file; "" = neither.
    """

    key: str
    value: Value | None
    origin: str
    source: str
    env: str
    flag: str
    default: str
    help: str


def shown(setting: Setting, file: ConfigFile, environ: Mapping[str, str]) -> Shown:
    """How a setting stands: the environment wins over the file."""
    value: Value | None = None
    origin, source = "default", ""
    variable = next((name for name in setting.names if environ.get(name)), "")
    if variable:
        value, origin, source = environ[variable], "environment", variable
    elif setting.key in file.values and not (setting.is_shared and is_given(setting, environ)):
        value, origin, source = file.values[setting.key], "file", str(file.path)
    if value is not None and (setting.is_secret or setting.key == "redis.url"):
        value = "***" if setting.is_secret else masked(str(value))
    flag = f"{PROGRAMS.get(setting.section, 'all')} {setting.flag}" if setting.flag else ""
    return Shown(setting.key, value, origin, source, setting.env, flag, setting.default, setting.help)


def masked(url: str) -> str:
    """A URL without its password, however malformed it is."""
    login, at, where = url.rpartition("@")
    if not at:
        return url
    scheme, found, user = login.partition("://")
    return f"{scheme}://{user.partition(':')[0]}:***@{where}" if found else f"***@{where}"


def unknown_names(environ: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none."""
    known = [name for each in SETTINGS for name in each.names]
    found = []
    for name in sorted(environ):
        if name.startswith("SOLLOL_") and name not in known and name not in _OTHER_NAMES:
            near = difflib.get_close_matches(name, known, n=1)
            found.append(f"${name} is no setting" + (f", did you mean ${near[0]}?" if near else ""))
    return found


def template() -> str:
    """A file with every setting, explained and commented out."""
    lines = [_HEAD]
    section = ""
    for setting in SETTINGS:
        if setting.section != section:
            section = setting.section
            lines.append(f"\n[{section}]" + (f"  # {PROGRAMS[section]}" if section in PROGRAMS else ""))
        wrapped = textwrap.wrap(f"{setting.help} Default: {setting.default}.", 112)
        example = _EXAMPLES.get(setting.key) or _example(setting)
        lines += [*(f"# {line}" for line in wrapped), f"#{setting.name} = {example}"]
    return "\n".join(lines) + "\n"


def _example(setting: Setting) -> str:
    """The default where it is one that can be written; any value of the kind otherwise."""
    if setting.kind in ("whole", "number") and setting.default.isdigit():
        return setting.default
    if setting.kind == "text" and " " not in setting.default and setting.default != "none":
        return f'"{setting.default}"'
    return _BY_KIND[setting.kind]
