"""What is released: built the same each time, whole, and good for a machine that has nothing else of it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_ROOMS = ("broker", "client", "coordinator", "worker_agent")
# What the bare client may bring: the chosen four, and what they need themselves.
_CLIENT_NEEDS = {
    "annotated-types",
    "hiredis",
    "msgpack",
    "pydantic",
    "pydantic-core",
    "redis",
    "typing-extensions",
    "typing-inspection",
}
_ADDS = {
    "cli": ["sollol"],
    "worker": ["sollol-worker"],
    "gateway": ["sollol-gateway"],
    "page": ["sollol-dashboard"],
    "coordinator": ["sollol-coordinator"],
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as a newcomer has them: without what tools and tests leave behind."""
    tree = tmp_path_factory.mktemp("tree") / "sollol"
    tree.mkdir()
    rubbish = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in (*_ROOMS, "docs"):
        shutil.copytree(_ROOT / name, tree / name, ignore=rubbish)
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore"):
        shutil.copy(_ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tree, tmp_path_factory.mktemp("built"))


def test_a_second_build_is_the_same_to_the_byte(tree: Path, built: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    shutil.copytree(tree, later)
    for path in later.rglob("*"):
        os.utime(path, (1_900_000_000, 1_900_000_000))
    assert _digests(_build(later, tmp_path / "again")) == _digests(built)


def test_the_source_archive_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    wheels = _digests(_build(source, tmp_path / "again", "--wheel"))
    assert wheels.items() <= _digests(built).items()
    assert len(wheels) == 1


def test_the_wheel_holds_the_rooms_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    packages = {name.partition("/")[0] for name in names}
    rooms = {"sollol", "sollol_broker", "sollol_client", "sollol_coordinator", "sollol_worker_agent"}
    assert {name for name in packages if not name.endswith(".dist-info")} == rooms
    assert {f"{room}/py.typed" for room in rooms} <= names
    sources = {
        path.relative_to(_ROOT / top).as_posix()
        for top in _ROOMS
        for path in (_ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= names


@dataclass(frozen=True, slots=True)
class Machine:
    """A Python that has nothing but what is installed here."""

    folder: Path
    wheel: Path

    def install(self, extra: str = "") -> None:
        what = f"sollol[{extra}] @ {self.wheel.as_uri()}" if extra else str(self.wheel)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.folder / "bin/python"),
            "install",
            "-q",
            what,
        ]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        clean = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}
        return subprocess.run(
            [str(self.folder / "bin" / command), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=clean,
            cwd=self.folder,
        )


@pytest.fixture(scope="module")
def machine(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    subprocess.run(
        [sys.executable, "-m", "virtualenv", "-q", "--no-pip", "--no-setuptools", folder], check=True
    )
    machine = Machine(folder, next(built.glob("*.whl")))
    machine.install()
    yield machine
    shutil.rmtree(folder)


def test_the_bare_client_is_small_and_names_what_is_missing(machine: Machine) -> None:
    said = machine.run(
        "python", "-c", "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    )
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in said.stdout.split()}
    assert names - {"sollol"} == _CLIENT_NEEDS
    # The import is quick because it imports next to nothing: no Redis, no pydantic, no event loop.
    said = machine.run("python", "-c", "import sollol, sys; print(*sys.modules)")
    assert {"redis", "pydantic", "asyncio", "msgpack"}.isdisjoint(said.stdout.split())
    said = machine.run("python", "-W", "error", "-c", "from sollol import AsyncClient, Client, Priority")
    assert (said.returncode, said.stderr) == (0, "")
    for extra, command in ((extra, command) for extra, all_of in _ADDS.items() for command in all_of):
        said = machine.run(command, "--help")
        assert said.returncode == 1
        assert said.stderr.endswith(f"pip install 'sollol[{extra}]'\n")
        assert "Traceback" not in said.stderr


@pytest.mark.parametrize(("extra", "commands"), _ADDS.items())
def test_each_extra_brings_what_its_commands_need(
    machine: Machine, tmp_path: Path, extra: str, commands: list[str]
) -> None:
    folder = tmp_path / "machine"
    shutil.copytree(machine.folder, folder, symlinks=True)
    for script in (folder / "bin").iterdir():
        if not script.is_symlink() and (text := script.read_bytes()).startswith(b"#!"):
            script.write_bytes(text.replace(bytes(machine.folder), bytes(folder)))
    alone = Machine(folder, machine.wheel)
    alone.install(extra)
    for command in commands:
        said = alone.run(command, "--help")
        assert said.stderr == ""
        assert (said.returncode, said.stdout.startswith(f"Usage: {command}")) == (0, True)


def _build(tree: Path, into: Path, *arguments: str) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", "-o", str(into), *arguments, str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return into


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
