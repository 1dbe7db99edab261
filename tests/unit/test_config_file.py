"""`sollol.toml`: what may stand in it, where it is found, and what wins over it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sollol.cli.config import COMMANDS
from sollol_broker.config_file import ConfigError, ConfigFile, fill, find, load, read
from sollol_broker.configured import configured, key_of
from sollol_broker.settings import PROGRAMS, SETTINGS
from sollol_broker.url import parse

# Options that are no settings: --redis and --insecure are shared, and the rest says something of one call.
_NO_SETTINGS = {"redis", "insecure", "config", "help"}


def written(directory: Path, text: str) -> Path:
    path = directory / "sollol.toml"
    path.write_text(text, "utf-8")
    return path


# --- the table


@pytest.mark.parametrize("section", PROGRAMS)
def test_every_option_of_a_command_is_a_setting_and_every_setting_an_option(section: str) -> None:
    module, attribute = COMMANDS[section]
    command: click.Command = getattr(import_module(module), attribute)
    options = {key_of(each) for each in command.params} - _NO_SETTINGS
    in_table = {each.name for each in SETTINGS if each.section == section}
    assert options == in_table, (
        "sollol_broker/settings.py lists the options of each command: add or drop them there"
    )


@pytest.mark.parametrize("section", PROGRAMS)
def test_a_setting_has_the_kind_and_the_default_of_its_option(section: str) -> None:
    module, attribute = COMMANDS[section]
    command: click.Command = getattr(import_module(module), attribute)
    kinds = {each.name: each.kind for each in SETTINGS if each.section == section}
    told = {each.name: each.default for each in SETTINGS if each.section == section}
    for option in command.params:
        if isinstance(option, click.Option) and key_of(option) in kinds:
            number = {"integer": "whole", "float": "number"}
            one = number.get(option.type.name.removesuffix(" range"), "text")
            kind = "yes/no" if option.is_flag else "list" if option.multiple else one
            assert kinds[key_of(option)] == kind, option.name
            if kind in ("whole", "number") and isinstance(option.default, int | float):
                assert told[key_of(option)] == f"{option.default:g}", option.name


@pytest.mark.parametrize("section", [each for each in PROGRAMS if each != "up"])
def test_every_program_of_its_own_takes_a_file(section: str) -> None:
    module, attribute = COMMANDS[section]
    command: click.Command = getattr(import_module(module), attribute)
    assert "config" in {key_of(each) for each in command.params}


def test_names_in_the_environment_are_unlike_each_other() -> None:
    names = [name for each in SETTINGS for name in each.names]
    assert len(set(names)) == len(names)


# --- the file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[worker]\nslot = 2", "[worker] slot is no setting, did you mean [worker] slots?"),
        ("slots = 2", "slots is no setting, did you mean [worker] slots?"),
        ('redis = "redis://x"', "redis is a table: write [redis], and below it url = …"),
        ("[workr]\nslots = 2", "workr is no setting, did you mean [worker]?"),
        ("[nonsense]\n", "nonsense is no setting"),
        ('[worker]\nslots = "two"', "[worker] slots: a whole number is needed"),
        ("[worker]\nslots = true", "[worker] slots: a whole number is needed"),
        ("[worker]\nlabel = [1]", "[worker] label: a list of texts"),
        ("insecure = 1", "insecure: true or false is needed"),
        ("[worker", "is no TOML"),
        ('[redis]\npassword = "a"\npassword_file = "b"', "are both given: keep one"),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        read(path)
    assert str(raised.value).startswith(str(path))
    assert said in str(raised.value)


def test_all_mistakes_are_named_at_once_and_no_secret_is(tmp_path: Path) -> None:
    path = written(tmp_path, '[redis]\npassword = ["hunter2"]\n[gateway]\nprot = 1\n')
    with pytest.raises(ConfigError) as raised:
        read(path)
    assert "password" in str(raised.value)
    assert "did you mean [gateway] port?" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_one_text_is_a_list_of_one(tmp_path: Path) -> None:
    assert read(written(tmp_path, '[worker]\nbackend = "http://a"')).section("worker") == {
        "backend": ("http://a",)
    }


def test_the_first_file_that_is_there_is_taken(tmp_path: Path) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    users = home / ".config/sollol"
    for directory in (here, users):
        directory.mkdir(parents=True)
    environ = {"HOME": str(home)}
    assert find(None, environ, here=here) is None
    of_user = written(users, "")
    assert find(None, environ, here=here) == of_user
    of_directory = written(here, "")
    assert find(None, environ, here=here) == of_directory
    assert find(None, {**environ, "SOLLOL_CONFIG": str(of_user)}, here=here) == of_user
    assert find(str(of_directory), {**environ, "SOLLOL_CONFIG": str(of_user)}, here=here) == of_directory


def test_a_named_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"no /no/such/file, which --config names"):
        load("/no/such/file", {})
    with pytest.raises(ConfigError, match=r"which \$SOLLOL_CONFIG names"):
        load(None, {"SOLLOL_CONFIG": "/no/such/file"})


# --- what wins


def test_flags_win_over_the_environment_that_over_the_file_and_that_over_the_default(tmp_path: Path) -> None:
    @click.command()
    @click.option("--slots", type=int, default=1)
    @click.option("--label", "labels", multiple=True)
    def command(slots: int, labels: tuple[str, ...]) -> None:
        click.echo(f"{slots} {','.join(labels)}")

    path = written(tmp_path, '[worker]\nslots = 2\nlabel = ["file"]\n')
    main = configured("worker", command)

    def run(*args: str, **environ: str) -> str:
        result = CliRunner().invoke(main, args, env={"SOLLOL_CONFIG": str(path), **environ})
        assert result.exit_code == 0, result.output
        return result.output.strip()

    assert run(SOLLOL_CONFIG="/dev/null") == "1"
    assert run() == "2 file"
    assert run(SOLLOL_WORKER_SLOTS="3", SOLLOL_WORKER_LABEL="one two") == "3 one,two"
    assert run("--slots", "4", SOLLOL_WORKER_SLOTS="3") == "4 file"


def test_a_value_that_the_option_does_not_take_names_file_and_setting(tmp_path: Path) -> None:
    from sollol_coordinator.cli import main

    path = written(tmp_path, "[coordinator]\nslots = 0\n")
    result = CliRunner().invoke(main, ["--config", str(path)])
    assert result.exit_code == 2
    assert result.output == f"error: {path}: [coordinator] slots: 0 is not in the range x>=1.\n"


def test_what_all_commands_share_goes_by_the_environment_and_gives_way_to_it() -> None:
    file = ConfigFile(
        Path("/x/sollol.toml"), {"redis.url": "redis://file", "insecure": True, "worker.slots": 2}
    )
    environ = {"SOLLOL_REDIS_URL": "redis://environment"}
    assert sorted(fill(file, environ)) == ["SOLLOL_CONFIG", "SOLLOL_INSECURE"]
    assert environ == {
        "SOLLOL_REDIS_URL": "redis://environment",
        "SOLLOL_INSECURE": "1",
        "SOLLOL_CONFIG": "/x/sollol.toml",
    }


def test_a_password_of_the_environment_wins_in_whichever_form(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the file")
    file = ConfigFile(Path("/x"), {"redis.password_file": str(tmp_path / "secret")})
    for environ, wanted in (({"SOLLOL_REDIS_PASSWORD": "of ours"}, "of ours"), ({}, "of the file")):
        fill(file, environ)
        assert parse("redis://x", environ=environ).password == wanted


def test_the_user_may_come_from_the_environment() -> None:
    environ = {"SOLLOL_REDIS_USERNAME": "sollol-worker"}
    assert parse("redis://x", environ=environ).username == "sollol-worker"
    assert parse("redis://me@x", environ=environ).username == "me"
