"""The units that systemd gets: hardened, without secrets, and the same when they are written again."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sollol.cli.app import app
from sollol.services.install import Systemd
from sollol.services.unit import PROGRAMS, REPORTER, Service, argument, assignment, below_homes
from sollol_broker.errors import SollolError

HARDENED = (
    *(
        "DynamicUser=yes",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=tmpfs",
        "PrivateTmp=yes",
    ),
    *("CapabilityBoundingSet=", "RestrictNamespaces=yes", "SystemCallFilter=@system-service", "UMask=0077"),
)


def run(*args: str, **env: str) -> Result:
    return CliRunner().invoke(app, list(args), env={"SOLLOL_REDIS_URL": None, **env})


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("hunter2\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("kind", [*PROGRAMS, REPORTER])
def test_every_unit_is_hardened_and_of_a_user_of_its_own(kind: str) -> None:
    lines = Service(kind, ("/opt/sollol/bin/x",)).text().splitlines()
    assert set(HARDENED) <= set(lines)
    needs_gpus = kind in ("worker", REPORTER)
    assert ("PrivateDevices=yes" in lines) is not needs_gpus


def test_units_have_the_names_that_people_know() -> None:
    assert Service("worker", ()).unit == "sollol-worker.service"
    assert Service("worker", (), "10-0-0-5").unit == "sollol-worker-10-0-0-5.service"
    assert Service(REPORTER, ()).unit == "sollol-gpu-reporter.service"


def test_words_reach_the_process_as_they_are() -> None:
    assert argument("plain") == "plain"
    assert argument("100%$HOME") == "100%%$$HOME"
    assert argument('a "b" \\c') == '"a \\"b\\" \\\\c"'
    assert argument("") == '""'
    assert assignment("A", "b $c %d") == '"A=b $c %%d"'
    assert assignment("A", "%d/b%c") == "A=%d/b%%c"
    with pytest.raises(ValueError, match="line break"):
        argument("a\nExecStartPost=/bin/evil")


def test_only_what_the_unit_hides_is_shown_to_it_again() -> None:
    paths = ["/usr", "/home/me/venv", "/home/me/venv/lib", "/root/.pyenv", "/homework"]
    assert below_homes([Path(each) for each in paths]) == (Path("/home/me/venv"), Path("/root/.pyenv"))


def test_secrets_go_by_files_alone(secret: Path, tmp_path: Path) -> None:
    settings = tmp_path / "sollol.toml"
    settings.write_text("[worker]\nslots = 2\n")
    said = run(
        *("install-service", "worker", "--dry-run", "--redis", "redis://me@10.0.0.5/0"),
        *("--password-file", str(secret), "--config", str(settings), "--", "--label", "eu"),
        SOLLOL_PAYLOAD_KEY_FILE=str(secret),
    )
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    for name, variable, path in (
        ("redis-password", "SOLLOL_REDIS_PASSWORD_FILE", secret),
        ("payload-key", "SOLLOL_PAYLOAD_KEY_FILE", secret),
        ("sollol.toml", "SOLLOL_CONFIG", settings),
    ):
        assert f"LoadCredential={name}:{path}" in lines
        assert f"Environment={variable}=%d/{name}" in lines
    assert "Environment=SOLLOL_REDIS_URL=redis://me@10.0.0.5/0" in lines
    (start,) = (line for line in lines if line.startswith("ExecStart="))
    assert shlex.split(start.removeprefix("ExecStart="))[1:] == ["--label", "eu"]
    assert "hunter2" not in said.output


@pytest.mark.parametrize(
    ("args", "env", "said"),
    [
        (["--redis", "redis://:hunter2@10.0.0.5"], {}, "The URL holds a password"),
        (["--redis", "redis://10.0.0.5"], {}, "is on the network and we have no password for it"),
        ([], {"SOLLOL_REDIS_PASSWORD": "hunter2"}, "a service needs a file"),
        (["--password-file", "/no/such/file"], {}, "/no/such/file cannot be read"),
        (["--name", "../x"], {}, "letters, digits"),
    ],
)
def test_what_would_not_work_or_be_safe_is_refused(args: list[str], env: dict[str, str], said: str) -> None:
    result = run("install-service", "worker", "--dry-run", *args, **env)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert "hunter2" not in result.output


def test_a_redis_that_the_settings_file_names_is_left_to_it(tmp_path: Path) -> None:
    settings = tmp_path / "sollol.toml"
    settings.write_text('[redis]\nurl = "redis://127.0.0.1:7777/0"\n')
    unit = run("install-service", "coordinator", "--dry-run", "--config", str(settings)).stdout
    assert "SOLLOL_REDIS_URL" not in unit
    assert "Environment=SOLLOL_CONFIG=%d/sollol.toml" in unit


def test_the_reporters_unit(secret: Path) -> None:
    said = run(
        *(
            "install-gpu-reporter",
            "--redis-host",
            "10.0.0.5",
            "--port",
            "6380",
            "--tls",
            "--username",
            "sollol-worker",
        ),
        *("--password-file", str(secret), "--node", "gpu-1", "--dry-run"),
    )
    assert said.exit_code == 0, said.output
    assert "sollol-worker --report-only --node gpu-1\n" in said.stdout
    assert "Environment=SOLLOL_REDIS_URL=rediss://sollol-worker@10.0.0.5:6380/0\n" in said.stdout


def test_install_and_uninstall_may_be_done_twice(tmp_path: Path) -> None:
    said: list[str] = []
    systemd = Systemd(of_user=False, directory=tmp_path / "units", say=said.append)
    service = Service("worker", ("/opt/sollol-worker",))
    path = tmp_path / "units" / "sollol-worker.service"
    systemd.install(service)
    assert path.read_text() == service.text()
    before = path.stat().st_mtime_ns
    systemd.install(service)
    assert path.stat().st_mtime_ns == before
    systemd.install(Service("worker", ("/opt/sollol-worker", "--slots", "2")))
    assert "--slots 2" in path.read_text()
    systemd.uninstall("sollol-worker.service")
    assert not path.exists()
    systemd.uninstall("sollol-worker.service")
    told = [line.rpartition(" is ")[2] for line in said if "systemctl" not in line]
    assert told == ["written", "as it should be", "written anew", "stopped and removed", "not installed"]


def test_who_may_not_write_the_unit_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    systemd = Systemd(of_user=False, directory=tmp_path / "file" / "units")
    with pytest.raises(SollolError, match="run it as root, or take --user, or --dry-run"):
        systemd.install(Service("worker", ("/x",)))
