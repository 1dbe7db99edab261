"""The sources of llama.cpp: a directory of the user's, a release from its git host, or the archive of a Python package.

The archive is the default: its content is known beforehand, so that all nodes build the same, and speak the same RPC
protocol.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .commands import find, run
from .errors import SetupError

_PACKAGE, _VERSION = "llama-cpp-python", "0.3.36"
_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_GIT_URL = "https://github.com/ggml-org/llama.cpp"
# Not part of what is built, and different in each checkout.
_LEFT_OUT = frozenset({".git", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Source:
    """A tree with llama.cpp's CMakeLists.txt on top. `name`: for people, such as "llama-cpp-python 0.3.36"."""

    directory: Path
    name: str

    def digest(self) -> str:
        """The sha256 over names and contents of all its files."""
        whole = hashlib.sha256()
        for path in sorted(self._files()):
            name = path.relative_to(self.directory).as_posix()
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            whole.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        return whole.hexdigest()

    def _files(self) -> Iterator[Path]:
        for folder, folders, files in os.walk(self.directory):
            folders[:] = [name for name in folders if name not in _LEFT_OUT]
            yield from (Path(folder) / name for name in files)


def given(directory: Path) -> Source:
    """A tree of the user's.

    Raises:
        SetupError: it is none of llama.cpp.
    """
    if not (directory / "CMakeLists.txt").is_file():
        raise SetupError(f"{directory} holds no CMakeLists.txt: name the top folder of llama.cpp's sources")
    return Source(directory.resolve(), f"source {directory.resolve().name}")


def fetched(into: Path, git_ref: str | None = None) -> Source | None:
    """What `fetch` has brought earlier; None = nothing."""
    source = _wanted(into, git_ref)
    return source if (source.directory / "CMakeLists.txt").is_file() else None


def fetch(into: Path, git_ref: str | None, progress: Callable[[str], None]) -> Source:
    """Bring the sources into a folder of `into`.

    Args:
        git_ref: a tag or branch at llama.cpp's git host; None = the archive on PyPI.

    Raises:
        SetupError: they cannot be had, or are not what was expected.
    """
    source = _wanted(into, git_ref)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=into) as work:
        log = into / "fetch.log"
        log.write_bytes(b"")
        if git_ref is not None:
            progress(f"cloning {_GIT_URL} at {git_ref}")
            tree = _clone(git_ref, Path(work), log)
        else:
            progress(f"downloading {_PACKAGE} {_VERSION} from PyPI (77 MB), which brings llama.cpp's sources")
            tree = _download(Path(work), log)
        shutil.rmtree(source.directory, ignore_errors=True)
        tree.rename(source.directory)
    progress(f"the sources lie in {source.directory}")
    return source


def _wanted(into: Path, git_ref: str | None) -> Source:
    name = f"git {git_ref}" if git_ref is not None else f"{_PACKAGE} {_VERSION}"
    return Source(into / name.replace(" ", "-").replace("/", "-"), name)


def _clone(ref: str, work: Path, log: Path) -> Path:
    if (git := find("git")) is None:
        raise SetupError(
            "git is not installed: install it, or leave --git-ref out to build from PyPI's archive"
        )
    tree = work / "tree"
    command: list[str | Path] = [
        git,
        "clone",
        "--quiet",
        "--depth",
        "1",
        "--branch",
        ref,
        "--",
        _GIT_URL,
        tree,
    ]
    try:
        # Where a login would be asked for, nobody is there to answer.
        run(command, log=log, what="git clone", environment={"GIT_TERMINAL_PROMPT": "0"})
    except SetupError as error:
        raise SetupError(f"{error}\nLeave --git-ref out to build from PyPI's archive instead.") from None
    return tree


def _download(work: Path, log: Path) -> Path:
    wanted = work / "wanted.txt"
    wanted.write_text(f"{_PACKAGE}=={_VERSION} --hash=sha256:{_SHA256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
    ]
    command += [
        "--no-binary",
        _PACKAGE,
        "--require-hashes",
        "--dest",
        str(work),
        "--requirement",
        str(wanted),
    ]
    run(command, log=log, what=f"the download of {_PACKAGE} {_VERSION}")
    archive = next(work.glob("*.tar.gz"))
    return unpack(archive, work)


def unpack(archive: Path, work: Path) -> Path:
    """The tree of llama.cpp from the package's archive.

    Raises:
        SetupError: there is none in it.
    """
    with tarfile.open(archive) as tar:
        tar.extractall(work / "unpacked", filter="data")
    try:
        return next((work / "unpacked").glob("*/vendor/llama.cpp"))
    except StopIteration:
        raise SetupError(f"{archive.name} holds no llama.cpp") from None
