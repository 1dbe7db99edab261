"""Rules of setting up llama.cpp: how many compilers, what a build is called, what the systemd unit says."""

from __future__ import annotations

import configparser
import io
import tarfile
from pathlib import Path

import pytest

from sollol.llama_cpp import SetupError
from sollol.llama_cpp.build import FLAGS, build_hash, jobs_for
from sollol.llama_cpp.source import Source, given, unpack
from sollol.llama_cpp.unit import unit_text
from sollol_worker_agent.llama_binaries import LlamaBinary


@pytest.mark.parametrize(
    ("cpus", "available_mib", "jobs"),
    [(2, 16_000, 2), (64, 16_000, 10), (8, 1_000, 1), (1, 100_000, 1), (128, 0, 1)],
)
def test_compilers_are_bounded_by_processors_and_memory(cpus: int, available_mib: float, jobs: int) -> None:
    assert jobs_for(cpus, available_mib) == jobs


def _tree(root: Path, text: str = "x") -> Source:
    (root / "ggml").mkdir(parents=True)
    (root / "CMakeLists.txt").write_text(text)
    (root / "ggml/ggml.c").write_text("int x;")
    return given(root)


def test_a_build_is_known_by_its_sources_and_flags(tmp_path: Path) -> None:
    one, same, other = (
        _tree(tmp_path / "a"),
        _tree(tmp_path / "b"),
        _tree(tmp_path / "c", "something else"),
    )
    (tmp_path / "b/.git").mkdir()
    (tmp_path / "b/.git/HEAD").write_text("of no matter")

    assert build_hash(one, FLAGS) == build_hash(same, FLAGS)
    assert build_hash(one, FLAGS) != build_hash(other, FLAGS)
    assert build_hash(one, FLAGS) != build_hash(one, (*FLAGS, "-DGGML_CUDA=ON"))


def test_a_file_that_moves_makes_another_build(tmp_path: Path) -> None:
    one, other = _tree(tmp_path / "a"), _tree(tmp_path / "b")
    (tmp_path / "b/ggml/ggml.c").rename(tmp_path / "b/ggml.c")

    assert build_hash(one, FLAGS) != build_hash(other, FLAGS)


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"no CMakeLists\.txt"):
        given(tmp_path)


def test_of_the_package_only_llama_cpp_is_used(tmp_path: Path) -> None:
    archive = tmp_path / "package.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("package-1/setup.py", "package-1/vendor/llama.cpp/CMakeLists.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            tar.addfile(entry, io.BytesIO(b"abc"))

    tree = unpack(archive, tmp_path)

    assert [path.name for path in tree.iterdir()] == ["CMakeLists.txt"]


def test_an_archive_that_writes_elsewhere_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "package.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../../evil"), io.BytesIO())

    with pytest.raises(tarfile.FilterError):
        unpack(archive, tmp_path / "work")


def _unit(path: str, **environment: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit_text(LlamaBinary(Path(path), environment)))
    return parser


def test_the_unit_listens_on_loopback_and_is_kept_there() -> None:
    service = _unit("/opt/llama/ggml-rpc-server")["Service"]

    assert service["ExecStart"] == '"/opt/llama/ggml-rpc-server" -H 127.0.0.1 -p %i -c'
    assert service["IPAddressDeny"] == "any"
    assert service["IPAddressAllow"] == "localhost"
    assert service["DynamicUser"] == "yes"
    assert service["CapabilityBoundingSet"] == ""


def test_a_program_in_a_home_is_seen_though_homes_are_hidden() -> None:
    assert "BindReadOnlyPaths" not in _unit("/opt/llama/ggml-rpc-server")["Service"]

    service = _unit("/home/me/.local/share/sollol/llama.cpp/abc/ggml-rpc-server", LD_LIBRARY_PATH="/x")[
        "Service"
    ]

    assert service["ProtectHome"] == "tmpfs"
    assert service["BindReadOnlyPaths"] == "/home/me/.local/share/sollol/llama.cpp/abc"
    assert service["Environment"] == '"LD_LIBRARY_PATH=/x"'
