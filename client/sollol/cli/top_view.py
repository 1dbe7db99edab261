"""What `sollol top` draws: the overview as lines of a terminal, however wide and high it is. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .output import printable
from .units import count, duration, gib

Told = Mapping[str, Any]

_WIDE = 110
_BARS = "▁▂▃▄▅▆▇█"
_METER = 8
_MOST_ALERTS = 5
_MOST_QUEUES = 8
_STYLES = {
    "gone": "red",
    "down": "red",
    "draining": "yellow",
    "cordoned": "yellow",
    "busy": "cyan",
    "idle": "green",
}
_LEVELS = {"error": "red", "warning": "yellow"}
# Above the nodes, below the nodes, below the queues.
_FIXED_LINES = 4


def draw(told: Told, rates: Told, *, width: int, height: int | None, trouble: str = "") -> RenderableType:
    """The whole picture.

    Args:
        told: as `overview` has it. rates: of the last minutes.
        height: lines that there are; nodes that do not fit are counted. None = as many as it takes.
        trouble: why what is shown is not new; "" = it is.
    """
    head = _head(told, rates, width, trouble)
    warnings = [_line(alert["text"], _LEVELS.get(alert["level"], "dim"), "! ") for alert in told["alerts"]]
    queues = [queue for queue in told["queues"] if queue["waiting"] or queue["running"]]
    shown_queues = queues[: _MOST_QUEUES if height is None else max(1, min(_MOST_QUEUES, height // 4))]
    parts: list[RenderableType] = [*head, *warnings[:_MOST_ALERTS]]
    if len(warnings) > _MOST_ALERTS:
        parts.append(_line(f"{len(warnings) - _MOST_ALERTS} more to look at: `sollol doctor`", "dim"))
    used = len(parts) + (len(shown_queues) + 2 if shown_queues else 0) + _FIXED_LINES
    room = len(told["nodes"]) if height is None else max(1, height - used)
    nodes = told["nodes"]
    if len(nodes) > room:  # those that are gone stand among the warnings, too
        nodes = sorted(nodes, key=lambda node: node["state"] == "gone")[:room]
    if nodes:
        parts += ["", _nodes(nodes, width)]
    else:
        parts += [
            "",
            _line("No worker is there: `sollol up` starts one here, `sollol-worker` on other machines."),
        ]
    if (left := told["nodes_in_all"] - len(nodes)) > 0:
        parts.append(_line(f"and {count(left, 'node')} more: `sollol nodes`", "dim"))
    if shown_queues:
        parts += ["", _queues(shown_queues)]
    if (left := len(queues) - len(shown_queues)) > 0:
        parts.append(_line(f"and {count(left, 'queue')} more: `sollol queues`", "dim"))
    return Group(*parts)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as a row of bars; nothing but zeros is a flat row."""
    last = list(values)[-width:]
    most = max(last, default=0.0)
    if most <= 0:
        return _BARS[0] * len(last)
    return "".join(_BARS[min(len(_BARS) - 1, int(value / most * len(_BARS)))] for value in last)


def meter(part: float, whole: float) -> str:
    """How full something is."""
    filled = round(_METER * min(1.0, max(0.0, part / whole))) if whole > 0 else 0
    return "█" * filled + "░" * (_METER - filled)


def _head(told: Told, rates: Told, width: int, trouble: str) -> list[RenderableType]:
    totals = told["totals"]
    clock = time.strftime("%H:%M:%S", time.localtime(told["at"]))
    first = Text.assemble(("SOLLOL", "bold"), f"  {clock}", no_wrap=True, overflow="ellipsis")
    first.append(f"  {count(totals['nodes'], 'node')}")
    if totals["nodes_gone"]:
        first.append(f", {totals['nodes_gone']} gone", "red")
    first.append(f"  {totals['busy']} of {count(totals['slots'], 'slot')} busy")
    if totals["vram_total_mib"]:
        used = totals["vram_total_mib"] - totals["vram_free_mib"]
        first.append(f"  VRAM {gib(used)} of {gib(totals['vram_total_mib'])} GiB")
    if width >= _WIDE:
        first.append(f"  leader {printable(told['leader']) or 'none'}  {told['version']}", "dim")
    lines: list[RenderableType] = [first]
    if trouble:
        lines.append(_line(f"not up to date: {trouble}", "red"))
    return [*lines, _jobs(totals), *_speeds(rates), *_hour(rates, width)]


def _jobs(totals: Told) -> Text:
    oldest = f" (the first for {duration(totals['oldest_seconds'])})" if totals["waiting"] else ""
    words = f"jobs    {totals['running']:,} run, {totals['waiting']:,} wait{oldest}"
    text = Text(words, no_wrap=True, overflow="ellipsis")
    if totals["delayed"]:
        text.append(f", {totals['delayed']:,} wait to be tried again")
    text.append(f"; {totals['done']:,} done")
    text.append(f", {totals['failed']:,} failed", "red" if totals["failed"] else "")
    if totals["dead"]:
        text.append(f", {count(totals['dead'], 'dead letter')}", "red")
    return text


def _speeds(rates: Told) -> list[RenderableType]:
    return [
        _line(f"speed   {rates['requests']:.3g} jobs/s, {rates['tokens']:.3g} tokens/s in the last minute"),
        _line(f"delays  first token {_pair(rates, 'ttft')}; answer {_pair(rates, 'latency')} in 5 minutes"),
    ]


def _hour(rates: Told, width: int) -> list[RenderableType]:
    words = f"  {rates['requests_hour']:,} jobs, {rates['errors_hour']:,} failed tries"
    line = sparkline(rates["tokens_hour"], max(10, min(60, width - len(words) - 10)))
    return [Text(f"1 hour  {line}{words}", no_wrap=True, overflow="ellipsis")]


def _pair(rates: Told, name: str) -> str:
    half, most = rates[f"{name}_p50"], rates[f"{name}_p95"]
    return "-" if half is None else f"{duration(half)}, p95 {duration(most)}"


def _nodes(nodes: Sequence[Told], width: int) -> Table:
    wide = width >= _WIDE
    table = _table()
    for name in ("NODE", "STATE", "SLOTS", "VRAM", *(("GPU", "RAM", "CPU") if wide else ())):
        table.add_column(name, no_wrap=True, max_width=20, overflow="ellipsis")
    table.add_column("DOING", no_wrap=True, overflow="ellipsis", ratio=1)
    for node in nodes:
        style = _STYLES.get(node["state"], "")
        cells = [
            _text(node["name"], "bold"),
            _text(node["state"], style),
            _text(f"{node['busy']}/{node['slots']}"),
            _text(_vram(node)),
        ]
        if wide:
            cells += [_text(_gpu(node)), _text(_ram(node)), _text(_cpu(node))]
        table.add_row(*cells, _text(node["doing"], style if style == "red" else ""))
    return table


def _queues(queues: Sequence[Told]) -> Table:
    table = _table()
    table.add_column("QUEUE", no_wrap=True, max_width=24, overflow="ellipsis")
    for name in ("WAIT", "RUN", "OLDEST"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("WHY", no_wrap=True, overflow="ellipsis", ratio=1)
    for queue in queues:
        table.add_row(
            _text(queue["model"], "bold"),
            f"{queue['waiting']:,}",
            f"{queue['running']:,}",
            duration(queue["oldest_seconds"]) if queue["waiting"] else "-",
            _text(queue["why"]),
        )
    return table


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)


def _vram(node: Told) -> str:
    total = sum(gpu["memory_total_mib"] or 0 for gpu in node["gpus"])
    used = sum(gpu["memory_used_mib"] or 0 for gpu in node["gpus"])
    return f"{meter(used, total)} {gib(used)}/{gib(total)}" if total else "-"


def _gpu(node: Told) -> str:
    told = [
        " ".join(
            part
            for part in (
                f"{gpu['utilisation_percent']:.0f} %" if gpu["utilisation_percent"] is not None else "",
                f"{gpu['temperature_c']:.0f}°" if gpu["temperature_c"] is not None else "",
            )
            if part
        )
        for gpu in node["gpus"]
    ]
    return ", ".join(each for each in told if each) or "-"


def _ram(node: Told) -> str:
    total = node.get("ram_total_mib", 0)
    return f"{gib(node['ram_used_mib'])}/{gib(total)}" if total else "-"


def _cpu(node: Told) -> str:
    return f"{node['cpu_percent']:.0f} %" if node.get("cpu_count") else "-"


def _line(text: str, style: str = "", mark: str = "") -> Text:
    return Text(mark + printable(text).replace("\n", " "), style=style, no_wrap=True, overflow="ellipsis")


def _text(text: str, style: str = "") -> Text:
    # A Text, since a string would be read as rich's markup.
    return Text(printable(text).replace("\n", " "), style=style)
