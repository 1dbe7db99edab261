"""`sollol config` and `sollol completion`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sollol.cli.app import ENTRIES, app
from sollol.cli.config_shown import masked
from sollol_broker.settings import SETTINGS


def run(*args: str, **env: str) -> Result:
    return CliRunner().invoke(app, list(args), env={"SOLLOL_REDIS_URL": None, **env})


def shown(*args: str, **env: str) -> dict[str, dict[str, Any]]:
    result = run("config", "show", "--json", *args, **env)
    assert result.exit_code == 0, result.output
    return {each["key"]: each for each in json.loads(result.stdout)["settings"]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[redis]\nurl = "redis://me:hunter2@there:6379/0"\npassword = "hunter2"\n'
        '[worker]\nslots = 2\nlabel = ["a", "b"]\n'
    )
    path.chmod(0o600)
    return path


def test_show_tells_value_and_origin_of_each_setting(file: Path) -> None:
    settings = shown("--config", str(file), SOLLOL_WORKER_NODE="n1")
    assert set(settings) == {each.key for each in SETTINGS}
    told = {key: (each["value"], each["origin"], each["source"]) for key, each in settings.items()}
    assert told["worker.slots"] == (2, "file", str(file))
    assert told["worker.label"] == (["a", "b"], "file", str(file))
    assert told["worker.node"] == ("n1", "environment", "SOLLOL_WORKER_NODE")
    assert told["worker.lease"] == (None, "default", "")
    assert settings["worker.slots"]["env"] == "SOLLOL_WORKER_SLOTS"
    assert settings["worker.slots"]["flag"] == "sollol-worker --slots"
    # The environment's form of a setting silences the file's other form of it.
    twin = shown("--config", str(file), **{"SOLLOL_REDIS_PASSWORD_FILE": "/x"})
    assert twin["redis.password"]["origin"] == "default"
    assert shown("gateway", SOLLOL_PORT="81")["gateway.port"]["source"] == "SOLLOL_PORT"


def test_show_masks_secrets_wherever_they_come_from(file: Path) -> None:
    for args in (["--json"], []):
        said = run("config", "show", *args, "--config", str(file), SOLLOL_BACKEND_API_KEY="hunter2").output
        assert "hunter2" not in said
        assert "redis://me:***@there:6379/0" in said


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:hunter2@h/0",
        "redis://:hunter2@h",
        "redis://:hun@ter2@h",
        "u:hunter2@h",
        "redis://:hunter2/x@h",
    ],
)
def test_a_malformed_url_is_masked_too(url: str) -> None:
    assert "ter2" not in masked(url)


def test_show_of_one_table_and_of_a_misspelt_one(file: Path) -> None:
    assert set(shown("redis.url")) == {"redis.url"}
    assert all(key.startswith("gateway.") for key in shown("gateway"))
    result = run("config", "show", "gatway")
    assert result.exit_code == 2
    assert "Did you mean 'gateway'?" in result.stderr


def test_check_says_what_is_wrong_in_every_table_and_exits_with_2(tmp_path: Path, file: Path) -> None:
    good = run("config", "check", "--config", str(file))
    assert (good.exit_code, good.stdout) == (0, f"{file}: 4 settings, and all makes sense.\n")
    bad = tmp_path / "bad.toml"
    bad.write_text("[gateway]\nport = 70000\n")
    said = run("config", "check", "--config", str(bad))
    assert said.exit_code == 2
    assert said.stderr.startswith(f"error: {bad}: [gateway] port: 70000 is not in the range")
    bad.write_text("[gateway]\nprot = 70000\n")
    said = run("config", "check", "--json", "--config", str(bad))
    assert said.exit_code == 2
    assert "did you mean [gateway] port?" in json.loads(said.stdout)["message"]


def test_check_warns_of_secrets_that_others_read_and_of_misspelt_variables(file: Path) -> None:
    file.chmod(0o644)
    said = json.loads(run("config", "check", "--json", "--config", str(file), SOLLOL_WORKER_SLTS="1").stdout)
    assert [each.split(",")[0] for each in said["warnings"]] == [
        f"{file} holds a secret",
        "$SOLLOL_WORKER_SLTS is no setting",
    ]


def test_init_writes_a_file_in_which_every_setting_makes_sense(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sollol.toml"
    assert run("config", "init", "--out", str(path)).exit_code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert "0 settings" in run("config", "check", "--config", str(path)).stdout
    lines = path.read_text().splitlines()
    # Every one of them, taken out of its comment.
    live = [line.removeprefix("#") if line[:1] == "#" and line[1:2] != " " else line for line in lines]
    assert sum(" = " in line and not line.startswith("#") for line in live) == len(SETTINGS)
    here = tmp_path / "models"
    here.mkdir()
    text = "\n".join(line for line in live if not line.startswith("password = "))
    path.write_text(text.replace('"/models"', f'"{here}"'))
    said = run("config", "check", "--config", str(path))
    assert said.exit_code == 0, said.output
    again = run("config", "init", "--out", str(path))
    assert again.exit_code == 2
    assert "is there already" in again.stderr


def test_a_bad_file_stops_a_command_but_neither_its_help_nor_config_init(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("nonsense = 1\n")
    said = run("nodes", "--json", SOLLOL_CONFIG=str(bad))
    assert said.exit_code == 2
    assert json.loads(said.stdout)["error"] == "BadConfig"
    assert run("nodes", "--help", SOLLOL_CONFIG=str(bad)).exit_code == 0
    assert run("config", "init", "--out", "-", SOLLOL_CONFIG=str(bad)).exit_code == 0


def test_a_command_takes_its_redis_from_the_file_and_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "sollol.toml"
    path.write_text('[redis]\nurl = "redis://:hunter2@127.0.0.1:1/7"\n')
    for args in (["--config", str(path), "nodes"], ["nodes", f"--config={path}"]):
        said = run(*args)
        assert said.exit_code == 3
        assert "redis://:***@127.0.0.1:1/7" in said.stderr
    assert "SOLLOL_REDIS_URL" not in os.environ


# --- completion


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    program = tmp_path / "sollol"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sollol.cli "$@"\n')
    program.chmod(0o755)
    script = run("completion", "bash").stdout
    ask = (
        f'{script}\nask() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _sollol_completion {program}; '
        'echo "${COMPREPLY[*]}"; }; ask sollol mod; ask sollol nodes --js'
    )
    said = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == ["models", "--json"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script_for_every_command(shell: str) -> None:
    said = run("completion", shell)
    assert said.exit_code == 0
    assert "_SOLLOL_COMPLETE" in said.stdout
    assert "_SOLLOL_WORKER_COMPLETE" in said.stdout


def test_completion_knows_all_commands_without_importing_them() -> None:
    code = (
        "import sys; from sollol.cli.app import app; import click; "
        "print(*(each.value for each in app.shell_complete(click.Context(app), ''))); "
        "print(*({'redis', 'httpx', 'sollol_broker'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[0].split() == list(ENTRIES)
    assert said.splitlines()[1:] == [""]
