"""`sollol setup-llama-cpp` with a real cmake and compiler, on a tree whose programs hand over to the real ones."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from sollol_broker.child import free_port
from sollol_worker_agent.llama_binaries import find_llama_server, find_rpc_server
from sollol_worker_agent.rpc.wire import RpcState, ask
from waiting import wait_until

_CMAKE = """\
cmake_minimum_required(VERSION 3.14)
project(fake LANGUAGES {language})
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${{CMAKE_BINARY_DIR}}/bin)
add_executable(llama-server server.c)
add_executable({rpc_server} rpc-server.c)
add_executable(never-built missing.c)
"""
# What real ones would do, in three lines: they become the programs of the wheel.
_HANDS_OVER = '#include <unistd.h>\nint main(int count, char **words) {{ return execv("{path}", words); }}\n'
_SIGILL = "int main(void) { __builtin_trap(); }\n"


@dataclass
class Setup:
    """The command, with a home of its own."""

    home: Path

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sollol.setup_llama_cpp", *words],
            env={**os.environ, "XDG_DATA_HOME": str(self.home), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @property
    def builds(self) -> Path:
        return self.home / "sollol/llama.cpp"

    def tree(self, *, language: str = "C", rpc_server: str = "ggml-rpc-server", server: str = "") -> Path:
        """Sources whose programs are those of the wheel, or `server`."""
        tree = self.home / "tree"
        tree.mkdir(exist_ok=True)
        (tree / "CMakeLists.txt").write_text(_CMAKE.format(language=language, rpc_server=rpc_server))
        (tree / "server.c").write_text(server or _HANDS_OVER.format(path=find_llama_server().path))
        (tree / "rpc-server.c").write_text(_HANDS_OVER.format(path=find_rpc_server().path))
        (tree / "missing.c").write_text("this does not compile\n")
        return tree


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return Setup(tmp_path)


def test_what_is_installed_is_found_and_tried_out(setup: Setup) -> None:
    shown = setup.run("--json")

    assert shown.returncode == 0, shown.stdout
    found = json.loads(shown.stdout)
    assert [each["program"] for each in found] == ["llama-server", "ggml-rpc-server"]
    assert [each["problem"] for each in found] == ["", ""]
    assert found[0]["path"] == str(find_llama_server().path)


def test_a_tree_is_built_installed_tried_out_and_found_from_then_on(setup: Setup) -> None:
    before = find_llama_server().path

    built = setup.run("--build", "--source", str(setup.tree()), "--jobs", "1")

    assert built.returncode == 0, built.stderr
    assert "building llama-server and ggml-rpc-server, 1 files at once" in built.stderr
    found = find_llama_server()
    assert found.path != before
    assert found.path.parent.parent == setup.builds.resolve()
    record = json.loads((found.path.parent / "build.json").read_text())
    assert found.path.parent.name == record["hash"][:12]
    assert found.build() == f"source tree (sha256:{record['hash'][:12]})"
    assert "-DGGML_RPC=ON" in record["flags"]
    assert find_rpc_server().path.parent == found.path.parent
    assert not list(setup.builds.glob("work-*")), "what was only needed for the build is gone"
    # The same sources and flags are not built again.
    again = setup.run("--build", "--source", str(setup.home / "tree"))
    assert again.returncode == 0
    assert "building" not in again.stderr


def test_older_sources_call_the_rpc_server_otherwise(setup: Setup) -> None:
    built = setup.run("--build", "--source", str(setup.tree(rpc_server="rpc-server")))

    assert built.returncode == 0, built.stderr
    assert find_rpc_server().path.name == "ggml-rpc-server"
    assert find_rpc_server().path.is_relative_to(setup.builds)


def test_a_release_is_cloned_and_built(setup: Setup) -> None:
    tree = setup.tree()
    git = [
        "git",
        "-C",
        str(tree),
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@t",
        "-c",
        "init.defaultBranch=main",
    ]
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "all"), ("tag", "b1")):
        subprocess.run([*git, *words], check=True)
    # Git itself is told that its host is that folder.
    elsewhere = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{tree}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/ggml-org/llama.cpp",
    }

    cloned = setup.run("--clone", "--git-ref", "b1", **elsewhere)
    missing = setup.run("--clone", "--git-ref", "b2", **elsewhere)
    built = setup.run("--build", "--git-ref", "b1")

    assert cloned.returncode == 0, cloned.stderr
    assert (setup.builds / "source/git-b1/CMakeLists.txt").is_file()
    assert missing.returncode == 1
    assert "Leave --git-ref out" in missing.stderr
    assert built.returncode == 0, built.stderr
    assert find_llama_server().build().startswith("git b1 (sha256:")


def test_an_archive_that_is_not_the_known_one_is_refused(setup: Setup) -> None:
    with tarfile.open(setup.home / "llama_cpp_python-0.3.36.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("llama_cpp_python-0.3.36/vendor/llama.cpp/CMakeLists.txt"), io.BytesIO())

    cloned = setup.run(
        "--clone", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(setup.home), PIP_CONFIG_FILE=os.devnull
    )

    assert cloned.returncode == 1
    assert "DO NOT MATCH THE HASHES" in cloned.stderr
    assert list((setup.builds / "source").iterdir()) == [setup.builds / "source/fetch.log"]


def test_a_build_for_another_processor_is_not_used(setup: Setup) -> None:
    before = find_llama_server().path

    built = setup.run("--build", "--source", str(setup.tree(server=_SIGILL)))

    assert built.returncode == 1
    assert "killed by SIGILL: this build uses instructions that the processor does not have" in built.stderr
    assert find_llama_server().path == before


def test_a_compiler_that_complains_is_quoted(setup: Setup) -> None:
    built = setup.run("--build", "--source", str(setup.tree(server="int main(void) { return nonsense; }\n")))

    assert built.returncode == 1
    assert "the build failed" in built.stderr
    assert "nonsense" in built.stderr
    assert "build.log" in built.stderr


def test_a_missing_compiler_is_told_with_what_to_do(setup: Setup) -> None:
    built = setup.run("--build", "--source", str(setup.tree(language="CXX")), CXX="/nowhere/c++")

    assert built.returncode == 1
    assert "there is no C++ compiler here" in built.stderr
    assert "apt-get install g++" in built.stderr


def test_sources_without_an_rpc_server_are_refused(setup: Setup) -> None:
    built = setup.run("--build", "--source", str(setup.tree(rpc_server="something-else")))

    assert built.returncode == 1
    assert "these sources build no rpc-server" in built.stderr


def test_ccache_is_used_where_it_is(setup: Setup) -> None:
    programs = setup.home / "programs"
    programs.mkdir()
    ccache = programs / "ccache"
    ccache.write_text(f'#!/bin/sh\necho "$@" >> {setup.home}/compiled\nexec "$@"\n')
    ccache.chmod(0o755)

    built = setup.run("--build", "--source", str(setup.tree()), PATH=f"{programs}:{os.environ['PATH']}")

    assert built.returncode == 0, built.stderr
    assert "server.c" in (setup.home / "compiled").read_text()


@pytest.mark.parametrize("words", [("--start",), ("--all",)])
async def test_an_rpc_server_runs_until_it_is_told_to_end(setup: Setup, words: tuple[str, ...]) -> None:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sollol.setup_llama_cpp", *words, "--port", str(port),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = await asyncio.wait_for(process.stdout.readline(), 60)
        report = await ask("127.0.0.1", port)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert f"rpc-server on 127.0.0.1:{port}" in said.decode()
    assert report.state is RpcState.IDLE

    async def is_gone() -> bool:
        return (await ask("127.0.0.1", port)).state is RpcState.DOWN

    await wait_until(is_gone, timeout=10, what="its port is free")


async def test_a_port_that_is_taken_is_told(setup: Setup) -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        started = await asyncio.to_thread(setup.run, "--start", "--port", str(port))

    assert started.returncode != 0
    assert f"port {port} of 127.0.0.1 is taken" in started.stderr


def test_the_unit_names_the_program_that_was_found(setup: Setup) -> None:
    shown = setup.run("--systemd", "--dry-run")

    assert shown.returncode == 0
    assert f'ExecStart="{find_rpc_server().path.resolve()}" -H 127.0.0.1 -p %i -c' in shown.stdout
