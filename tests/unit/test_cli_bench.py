"""`sollol bench replay` on files: what it reads, what it says, and how it says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sollol.cli.app import app

_TRACE = Path(__file__).parents[2] / "benchmarks" / "routing" / "traces" / "vtc_arena_clients.csv"
_ROWS = [(0.0, 100, 50), (0.5, 2000, 10), (1.0, 300, 200), (30.0, 10, 10)]


def replay(*args: object) -> Result:
    return CliRunner().invoke(app, ["bench", "replay", *map(str, args)])


def figures(*args: object) -> Any:
    result = replay(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*args: object) -> str:
    result = replay(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    return " ".join(result.stderr.split())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(
        "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{a},{p},{o}\n" for a, p, o in _ROWS)
    )
    return path


def test_the_table_has_a_row_for_each_policy(log: Path) -> None:
    result = replay(log)
    assert result.exit_code == 0
    names = (
        "round-robin",
        "two-choices",
        "least-connections",
        "sollol-formula",
        "fifo-pull",
        "ours",
        "clairvoyant",
    )
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["POLICY", *names]


def test_a_job_alone_takes_what_the_machine_needs_for_it(tmp_path: Path) -> None:
    cluster, log = tmp_path / "one.toml", tmp_path / "log.csv"
    cluster.write_text("[[nodes]]\nname='a'\nprefill=100\ndecode=10\nslots=1\nslowdown=0\nmemory_gb=8\n")
    log.write_text("arrival_s,prompt_tokens,output_tokens\n5,100,20\n5,100,20\n")
    for found in figures(log, "--cluster", cluster)["policies"]:
        # 1 s to read and 2 s to write, one after the other.
        assert found["all"]["end"]["mean"] == pytest.approx((3 + 6) / 2)
        assert found["all"]["first"]["mean"] == pytest.approx((1 + 4) / 2)


def test_csv_json_lines_and_a_list_are_the_same_log(log: Path, tmp_path: Path) -> None:
    rows = [{"arrival_s": a, "prompt_tokens": p, "output_tokens": o} for a, p, o in _ROWS]
    lines, listed = tmp_path / "log.jsonl", tmp_path / "log.json"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    waiting = {"submitted": 9, "prompt_tokens": 0, "output_tokens": 0, "state": "queued"}
    views = [
        {"submitted": 1e9 + a, "prompt_tokens": p, "output_tokens": o, "state": "done"} for a, p, o in _ROWS
    ]
    listed.write_text(json.dumps([*views, waiting]))
    assert figures(log) == figures(lines) == figures(listed)


def test_other_weights_stand_beside_those_in_use(tmp_path: Path) -> None:
    same, timid = tmp_path / "same.toml", tmp_path / "timid.json"
    same.write_text("backlog = 3\n")
    timid.write_text('{"backlog": 0.01, "patience": 1000000, "size_weight": 0}')
    args = (_TRACE, "--policy", "ours", "--load", 0.95, "--limit", 300, "--weights")
    ours, again = figures(*args, same)["policies"]
    assert (ours["policy"], again["policy"]) == ("ours", "ours, same.toml")
    assert ours["all"] == again["all"]
    ours, other = figures(*args, timid)["policies"]
    assert other["all"]["end"]["mean"] > 1.05 * ours["all"]["end"]["mean"]


def test_priorities_and_applications_have_rows_of_their_own(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = [
        f"{at / 100},500,200,{'flood' if at % 10 else 'me'},m,{5 if at % 10 else 10}" for at in range(300)
    ]
    log.write_text("arrival_s,prompt_tokens,output_tokens,app,model,priority\n" + "\n".join(rows))
    (ours,) = figures(log, "--policy", "ours")["policies"]
    assert {name: group["jobs"] for name, group in ours["by_app"].items()} == {"flood": 270, "me": 30}
    assert ours["by_app"]["me"]["end"]["p95"] < 0.5 * ours["by_app"]["flood"]["end"]["p95"]
    assert list(ours["by_priority"]) == ["10", "5"]
    shown = replay(log, "--policy", "ours").stdout
    assert "PRIORITY" in shown
    assert "flood" in shown


def test_machines_that_die_cost_time(log: Path) -> None:
    args = (_TRACE, "--policy", "ours", "--load", 0.5, "--limit", 300)
    (well,), (ill,) = figures(*args)["policies"], figures(*args, "--failures", 300)["policies"]
    assert well["lost_seconds"] == 0 < ill["lost_seconds"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arrival_s,prompt_tokens,output_tokens\n", "log.csv holds no jobs"),
        ("", "line 1 must name the columns"),
        (
            "arrival_s,prompt_tokens\n",
            "line 1 must name the columns, arrival_s, prompt_tokens, output_tokens",
        ),
        (
            "arrival_s,prompt_tokens,output_tokens\n0,1,2\n1,x,2\n",
            "log.csv, line 3: prompt_tokens is no number: 'x'",
        ),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,\n", "log.csv, line 2: output_tokens is missing"),
        ("arrival_s,prompt_tokens,output_tokens\n0,-1,2\n", "line 2: lengths are 0 or more"),
        (
            "arrival_s,prompt_tokens,output_tokens,priority\n0,1,2,11\n",
            "line 2: lengths are 0 or more, a priority",
        ),
        ('{"arrival_s": 0}\n', "line 1: prompt_tokens is missing"),
        ('{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}\n{"a\n', "line 2 is not JSON"),
        ("[1]", "is not a list of objects"),
    ],
)
def test_a_bad_log_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text(text)
    assert said in refused(log)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("baklog = 2", "there is no 'baklog'; did you mean 'backlog'?"),
        ("x = 2", "there are backlog, regret"),
        ("regret = -1", "regret is -1, not a number of 0 or more"),
        ("regret = true", "regret is True"),
        ("backlog = 0", "backlog must be above 0"),
        ("backlog =", "w.toml:"),
    ],
)
def test_bad_weights_are_named(log: Path, tmp_path: Path, text: str, said: str) -> None:
    weights = tmp_path / "w.toml"
    weights.write_text(text)
    assert said in refused(log, "--weights", weights)


def test_a_bad_cluster_policy_or_model_is_named(log: Path, tmp_path: Path) -> None:
    assert "neither a file nor one of home5" in refused(log, "--cluster", "home6")
    assert "There is no policy 'best', only round-robin" in refused(log, "--policy", "best")
    small = tmp_path / "small.toml"
    small.write_text("[[nodes]]\nname='a'\nprefill=1\ndecode=1\nslots=1\nslowdown=0\nmemory_gb=2\n")
    assert "needs 5.5 GB, and no machine has that" in refused(log, "--cluster", small)
    small.write_text("[[nodes]]\nname='a'\nprefil=1\n")
    assert "NodeSpec has no prefil" in refused(log, "--cluster", small)
