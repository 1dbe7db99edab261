"""Every command of the compose file runs here, without Docker: the same words, with this machine's paths and ports."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

import compose_kit
from sollol_broker.child import free_port
from sollol_broker.embedded import find_server
from waiting import wait_until

# Services with an image of ours that run for as long as the fabric does.
_PORT = "8000|8080|9090"
_STAY = ("gateway", "coordinator", "dashboard", "worker")


@dataclass
class Compose:
    """Services as processes."""

    folder: Path
    services: dict[str, Any]
    ports: dict[str, int] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def words(self, service: str, command: list[str]) -> list[str]:
        """What a container would run, as this machine runs it."""
        return [self._here(service, str(word)) for word in command]

    def run(self, service: str, *instead: str) -> subprocess.CompletedProcess[str]:
        """A service that ends by itself."""
        each = self.services[service]
        words = self.words(service, [*each.get("entrypoint", ()), *(instead or each["command"])])
        return subprocess.run(words, env=self._environ(service), capture_output=True, text=True, check=False)

    def start(self, service: str) -> None:
        """A service that stays."""
        with (self.folder / f"{service}.log").open("wb") as log:
            self.running[service] = subprocess.Popen(
                self.words(service, self.services[service]["command"]),
                env=self._environ(service),
                cwd=self.folder / "data",
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    async def healthy(self, service: str) -> None:
        """Wait until its health check passes."""
        kind, *command = self.services[service]["healthcheck"]["test"]
        words = ["sh", "-c", *command] if kind == "CMD-SHELL" else command

        def passes() -> bool:
            assert self.running[service].poll() is None, self.log(service)
            here = self.words(service, words)
            return subprocess.run(here, env=self._environ(service), capture_output=True).returncode == 0

        await wait_until(passes, timeout=60, what=f"{service} to be healthy")

    def log(self, service: str) -> str:
        """What it has said so far."""
        return (self.folder / f"{service}.log").read_text(errors="replace")

    def port(self, service: str, port: str) -> int:
        """The one here for a container's."""
        return self.ports.setdefault(f"{service}:{port}", free_port())

    def _environ(self, service: str) -> dict[str, str]:
        given = self.services[service].get("environment", {})
        return {
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            **{name: self._here(service, value) for name, value in given.items()},
        }

    def _here(self, service: str, word: str) -> str:
        word = re.sub(r"/(acl|secrets)(?=[/ ]|$)", lambda found: str(self.folder / found[1]), word)
        word = word.replace("@redis:6379", f"@127.0.0.1:{self.port('redis', '6379')}")
        word = re.sub(r"-p 6379", f"-p {self.port('redis', '6379')}", word)
        word = word.replace("0.0.0.0", "127.0.0.1")  # noqa: S104  # nothing of a test listens beyond this machine
        if re.fullmatch(_PORT, word):
            return str(self.port(service, word))
        return re.sub(rf"127\.0\.0\.1:({_PORT})\b", lambda it: f"127.0.0.1:{self.port(service, it[1])}", word)


@pytest.fixture
def compose(tmp_path: Path, toy_llama_server: str) -> Iterator[Compose]:
    for name in ("acl", "secrets", "data", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / "valkey-server").symlink_to(find_server().path)
    client = shutil.which("valkey-cli") or shutil.which("redis-cli")
    assert client, "install redis-tools, which has redis-cli: apt-get install redis-tools"
    (tmp_path / "bin" / "valkey-cli").symlink_to(client)
    services = compose_kit.read({"SOLLOL_BACKEND": f"llama+{toy_llama_server}"})["services"]
    compose = Compose(tmp_path, services)
    port = str(compose.port("redis", "6379"))
    services["redis"]["command"] += ["--port", port, "--bind", "127.0.0.1"]
    yield compose
    for process in reversed(compose.running.values()):
        process.terminate()
    for process in compose.running.values():
        process.wait(30)


async def test_the_whole_fabric_of_the_compose_file(compose: Compose) -> None:
    for _ in range(2):  # it runs at every start, and makes users at the first
        made = compose.run("users")
        assert made.returncode == 0, made.stderr
    assert (compose.folder / "acl" / "users.acl").stat().st_mode & 0o777 == 0o644
    compose.start("redis")
    await compose.healthy("redis")
    loaded = compose.run("functions")
    assert loaded.returncode == 0, loaded.stderr
    for service in _STAY:
        compose.start(service)
    for service in _STAY:
        await compose.healthy(service)

    key = compose.run("sollol", "keys", "add", "my-app", "--json")
    assert key.returncode == 0, key.stderr
    secret = json.loads(key.stdout)["key"]
    nodes = compose.run("sollol")
    assert "docker" in nodes.stdout, nodes.stdout + nodes.stderr
    url = f"http://127.0.0.1:{compose.port('gateway', '8000')}"
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:
        asked = {"model": "toy", "prompt": "hello", "stream": False, "options": {"num_predict": 4}}
        answer = await http.post("/api/generate", json=asked, headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["done"] is True
