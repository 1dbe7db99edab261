"""Units as systemd itself judges them, and what they start, started as they say."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from sollol import AsyncClient
from sollol_broker.embedded import EmbeddedBroker
from waiting import wait_until

# systemd's own scale: 10 is without any guard; it calls less than 4 OK.
_MOST_EXPOSED = 2.5
WHAT = {
    "sollol-worker": ("install-service", "worker"),
    "sollol-gateway": ("install-service", "gateway", "--", "--port", "0"),
    "sollol-coordinator": ("install-service", "coordinator", "--", "--metrics", "off"),
    "sollol-dashboard": ("install-service", "dashboard", "--", "--port", "0"),
    "sollol-gpu-reporter": ("install-gpu-reporter", "--redis-host", "127.0.0.1"),
}


def unit_of(*what: str, of_user: bool = False, more: tuple[str, ...] = ()) -> str:
    """What the command prints; run with PATH as it is for people who have not activated anything."""
    first, *rest = what
    user = ("--user",) if of_user else ()
    command = (sys.executable, "-m", "sollol.cli", first, "--dry-run", *user, *more, *rest)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not here, so no unit was checked by systemd: apt-get install systemd")
    return found


@pytest.mark.parametrize("name", WHAT)
def test_systemd_takes_the_unit_and_finds_it_well_guarded(analyze: str, tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.service"
    path.write_text(unit_of(*WHAT[name]))
    verified = subprocess.run([analyze, "verify", path], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = subprocess.run(
        [analyze, "security", "--offline=true", f"--threshold={_MOST_EXPOSED * 10:.0f}", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout[-300:] + judged.stderr


def test_systemd_takes_a_users_unit(analyze: str, tmp_path: Path) -> None:
    path = tmp_path / "sollol-worker.service"
    path.write_text(unit_of("install-service", "worker", of_user=True))
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    verified = subprocess.run(
        [analyze, "--user", "verify", path], capture_output=True, text=True, check=False, env=environ
    )
    assert (verified.returncode, verified.stderr) == (0, "")


@asynccontextmanager
async def started(unit: str, directory: Path) -> AsyncIterator[Path]:
    """What the unit's ExecStart names, with the unit's own environment and nothing else; gives its log."""
    credentials, log = directory / "credentials", directory / "log"
    credentials.mkdir()
    environ = {"PATH": "/usr/bin:/bin"}
    command: list[str] = []
    for line in unit.splitlines():
        name, _, value = line.partition("=")
        if name == "LoadCredential":
            credential, _, path = value.partition(":")
            shutil.copy(path, credentials / credential)
        elif name == "Environment":
            for word in shlex.split(value):
                key, _, text = word.partition("=")
                text = text.replace("%d/", f"{credentials}/").replace("%S/", f"{directory}/")
                environ[key] = text.replace("%C/", f"{directory}/").replace("%%", "%")
        elif name == "ExecStart":
            command = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(value)]
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *command, env=environ, cwd="/", stdin=asyncio.subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    try:
        yield log
        process.terminate()
        async with asyncio.timeout(30):
            assert await process.wait() in (0, -15), log.read_text()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("kind", ["worker", "gpu-reporter"])
async def test_what_a_unit_starts_joins_the_fabric_with_the_password_from_its_credential(
    tmp_path: Path, kind: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    with EmbeddedBroker(appendonly=False, port=0, password="s3cret") as broker:  # noqa: S106
        port = broker.url.rpartition(":")[2].partition("/")[0]
        password = ("--password-file", str(secret))
        if kind == "worker":
            more = ("--redis", f"redis://127.0.0.1:{port}/0", *password)
            words = ("--node", "served", "--backend", "echo://", "--label", "100%d", "--label", "$HOME")
            what: tuple[str, ...] = ("install-service", "worker", "--", *words)
        else:
            more = ("--port", port, *password)
            what = ("install-gpu-reporter", "--redis-host", "127.0.0.1", "--node", "served")
        unit = unit_of(*what, more=more)
        assert "s3cret" not in unit
        async with AsyncClient(broker.url) as client, started(unit, tmp_path) as log:
            try:
                await wait_until(client.nodes, timeout=30, what="the node")
            except AssertionError:
                pytest.fail(log.read_text())
            (node,) = await client.nodes()
            assert node.name == "served"
            assert [each.kind for each in node.workers] == ["worker" if kind == "worker" else "reporter"]
            if kind == "worker":
                assert {"100%d", "$HOME"} <= set(node.workers[0].labels)


@pytest.mark.parametrize(("kind", "more", "said"), [
    ("gateway", ("--", "--port", "0"), "gateway on 127.0.0.1:0"),
    ("coordinator", ("--", "--metrics", "off"), "leads"),
    ("dashboard", ("--", "--port", "0"), "the page is at"),
])  # fmt: skip
async def test_what_a_unit_starts_comes_up_with_nothing_but_the_units_environment(
    redis_url: str, tmp_path: Path, kind: str, more: tuple[str, ...], said: str
) -> None:
    unit = unit_of("install-service", kind, *more, more=("--redis", redis_url))
    async with started(unit, tmp_path) as log:
        try:
            await wait_until(lambda: said in log.read_text(), timeout=30, what=f"{said!r} in the log")
        except AssertionError:
            pytest.fail(log.read_text())
