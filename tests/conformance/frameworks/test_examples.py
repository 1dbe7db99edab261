"""The examples that need a framework, each as its reader would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sollol.local.fabric import LocalFabric, free_port

_EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def fabric(smollm2_path: Path, minilm_path: Path) -> Iterator[LocalFabric]:
    models = (f"smollm2={smollm2_path}", f"all-minilm={minilm_path}")
    with LocalFabric(models=models, gateway_port=free_port(0)) as fabric:
        yield fabric


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("langchain_chat", ["fruit: ", "fish: ", "streamed: ", "dimensions: 384"]),
        ("llama_index_chat", ["complete: ", "chat: "]),
        ("autogen_team", ["user: Write about the sea.", "writer: ", "critic: "]),
    ],
)
def test_a_framework_by_its_base_url(fabric: LocalFabric, name: str, said: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, _EXAMPLES / f"{name}.py"],
        env={**os.environ, "SOLLOL_GATEWAY_URL": fabric.gateway_url},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for begin in said:
        (line,) = (line for line in lines if line.startswith(begin))
        assert len(line) > len(begin) or begin[-1].isalnum() or begin.endswith("."), done.stdout
