# ruff: noqa: RUF001  # the page uses the signs of arithmetic
"""The worked example of docs/routing.md gives the numbers that it shows."""

from __future__ import annotations

import doctest
import re
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

from sollol.replay.cluster import load_cluster
from sollol.replay.policies import read_settings
from sollol_broker.claim_rule import DEFAULT_WEIGHTS
from sollol_broker.fair_order import SIZE_WEIGHT, head_start_ms

_PAGE = Path(__file__).parents[2] / "docs" / "routing.md"


def test_the_example_computes() -> None:
    failed, tried = doctest.testfile(str(_PAGE), module_relative=False)
    assert tried > 8
    assert failed == 0


def test_the_numbers_are_those_of_the_code() -> None:
    text = re.sub(r"\s+", " ", _PAGE.read_text("utf-8"))
    weights = DEFAULT_WEIGHTS
    assert f"`ratio − 1 ≤ {weights.backlog:g} × backlog ÷ capacity`" in text
    assert f"`ratio ≤ {weights.most_ratio:g}`" in text
    assert f"`ratio + {weights.regret:g} × place in line ÷ capacity`" in text
    assert f"{SIZE_WEIGHT:g} × (cost − usual cost)" in text
    assert f"less {weights.size:g} times their own" in text
    starts = " | ".join(f"{head_start_ms(priority) / 1000:.0f}" for priority in range(10, -1, -1))
    assert f"head start given away, s | {starts} |" in text


def test_the_files_for_a_replay_are_such(tmp_path: Path) -> None:
    weights, cluster = re.findall(r"```toml\n(.*?)```", _PAGE.read_text("utf-8"), flags=re.DOTALL)
    paths = [tmp_path / "weights.toml", tmp_path / "cluster.toml"]
    for path, text in zip(paths, (weights, cluster), strict=True):
        path.write_text(text)
    assert replace(read_settings(paths[0]).weights, backlog=DEFAULT_WEIGHTS.backlog) == DEFAULT_WEIGHTS
    assert read_settings(paths[0]).size_weight == SIZE_WEIGHT
    assert set(tomllib.loads(weights)) == {*asdict(DEFAULT_WEIGHTS), "size_weight", "head_start"}
    assert len(load_cluster(str(paths[1])).nodes) == 2
