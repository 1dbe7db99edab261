"""The board for Grafana and the rules for Prometheus ask for nothing that is not told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from metrics_kit import Shape, told

_COMPOSE = Path(__file__).parents[2] / "compose"
_BOARD = json.loads((_COMPOSE / "grafana" / "boards" / "sollol.json").read_text("utf-8"))
_RULES = yaml.safe_load((_COMPOSE / "prometheus" / "alerts.yml").read_text("utf-8"))
# Prometheus' own, of each process that it reads.
_ITS_OWN = {"up": Shape("gauge", ("instance", "job"), "")}


def _panels() -> Iterator[dict[str, Any]]:
    return (panel for panel in _BOARD["panels"] if panel["type"] != "row")


def _queries() -> dict[str, str]:
    found = {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", "5m")
        for panel in _panels()
        for target in panel["targets"]
    }
    return found | {rule["alert"]: rule["expr"] for group in _RULES["groups"] for rule in group["rules"]}


class Asked:
    """The names of a query, with the labels that it wants of each."""

    def __init__(self, query: str) -> None:
        self.labels: dict[str, set[str]] = {}
        self._by: list[set[str]] = []
        promql_parser.walk(promql_parser.parse(query), self._enter, self._leave)

    def _enter(self, node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.AggregateExpr):
            self._by.append(set(node.modifier.labels) if node.modifier else set())
        elif isinstance(node, promql_parser.VectorSelector):
            matched = {matcher.name for matcher in node.matchers.matchers}
            self.labels.setdefault(node.name or "", set()).update(matched, *self._by)

    def _leave(self, node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.AggregateExpr):
            self._by.pop()


async def _exported() -> dict[str, set[str]]:
    """Each name that a query may use, with its labels."""
    found: dict[str, set[str]] = {}
    for name, shape in [
        *_ITS_OWN.items(),
        *(each for section in (await told()).values() for each in section.items()),
    ]:
        if shape.kind == "histogram":
            found |= {f"{name}_{part}": {*shape.labels} for part in ("sum", "count")}
            found[f"{name}_bucket"] = {*shape.labels, "le"}
        else:
            found[name] = {*shape.labels}
    return found


async def test_every_query_asks_for_what_is_told() -> None:
    exported = await _exported()
    seen: set[str] = set()
    for where, query in _queries().items():
        asked = Asked(query).labels
        assert asked, where
        for name, labels in asked.items():
            assert name in exported, f"{where} asks for {name}"
            assert labels <= exported[name], f"{where}: {name} has no label {labels - exported[name]}"
        seen |= asked.keys()
    assert len(seen) > 30


@pytest.mark.parametrize(
    "query", ["sum(sollol_nothing)", "sum by (user) (sollol_queue_depth)", 'sollol_leases{a="b"}']
)
async def test_a_query_for_what_is_not_told_is_found(query: str) -> None:
    exported = await _exported()
    (asked,) = Asked(query).labels.items()
    assert asked[0] not in exported or not asked[1] <= exported[asked[0]]


async def test_the_board_shows_every_figure_of_jobs_and_queues() -> None:
    asked = {re.sub("_bucket$", "", name) for query in _queries().values() for name in Asked(query).labels}
    jobs = (await told())["What jobs took"]
    assert set(jobs) <= asked


def test_panels_do_not_lie_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in _panels():
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert x < 24
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_ids_are_given_once() -> None:
    ids = [panel["id"] for panel in _BOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_rules_say_what_and_how_bad() -> None:
    rules = [rule for group in _RULES["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")
        assert promql_parser.parse_duration(rule.get("for", "1s"))


def test_prometheus_reads_the_rules_and_the_fabric() -> None:
    config = yaml.safe_load((_COMPOSE / "prometheus" / "prometheus.yml").read_text("utf-8"))
    assert config["rule_files"] == ["alerts.yml"]
    assert "sollol" in [job["job_name"] for job in config["scrape_configs"]]
