"""What `sollol top` draws, at any width and height, whatever somebody has named things."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from facts_kit import NOW, facts, node, queue, running
from sollol.cli.top_view import draw, meter, sparkline
from sollol_broker.facts import Facts, Gone
from sollol_broker.overview import overview

_GPU = {"name": "RTX", "memory_total_mib": 24_576, "memory_used_mib": 12_288, "utilisation_percent": 93.0,
        "temperature_c": 71.0}  # fmt: skip
_HARDWARE = {"gpus": [_GPU], "vram_total_mib": 24_576, "vram_free_mib": 12_288, "ram_total_mib": 65_536,
             "ram_available_mib": 32_768, "cpu_percent": 12.0, "cpu_count": 8}  # fmt: skip
_RATES: dict[str, Any] = {
    **{
        "requests": 1.5,
        "tokens": 123.4,
        "errors": 0.0,
        "ttft_p50": 0.2,
        "ttft_p95": 1.25,
        "latency_p50": None,
    },
    **{"latency_p95": None, "tokens_hour": [0.0, 1.0, 2.0, 4.0], "requests_hour": 1_204, "errors_hour": 3},
}


def _drawn(found: Facts, *, width: int = 80, height: int | None = None, trouble: str = "") -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
    console.print(draw(overview(found), _RATES, width=width, height=height, trouble=trouble))
    return out.getvalue().splitlines()


def _busy() -> Facts:
    return facts(
        nodes=(node(busy=1, hardware=_HARDWARE), node("cpu1")),
        queues=(queue(running=1),),
        running=(running(),),
        running_total=1,
        counters={"submitted": 20, "done": 15, "failed": 1},
        gone=(Gone("gpu2.1", "gpu2", NOW - 20),),
    )


def test_it_tells_what_every_machine_does_what_waits_and_what_is_wrong() -> None:
    lines = _drawn(_busy())
    text = "\n".join(lines)
    assert "2 nodes, 1 gone  1 of 4 slots busy  VRAM 12 of 24 GiB" in lines[0]
    assert "jobs    1 run, 3 wait (the first for 5.0 s); 15 done, 1 failed" in lines[1]
    assert "speed   1.5 jobs/s, 123 tokens/s in the last minute" in text
    assert "delays  first token 200 ms, p95 1.2 s; answer - in 5 minutes" in text
    assert "1 hour  ▁▃▅█  1,204 jobs, 3 failed tries" in text
    assert "! Node gpu2 vanished 20 s ago without a word" in text
    (gone, *_) = [line for line in lines if line.startswith("gpu2")]
    assert gone.split()[:3] == ["gpu2", "gone", "0/0"]
    (gpu, *_) = [line for line in lines if line.startswith("gpu1")]
    assert "█████░░░ 12/24  answers 1 job with m" in gpu or "████░░░░ 12/24  answers 1 job with m" in gpu
    assert [line.split()[:4] for line in lines if line.startswith("m ")] == [["m", "3", "1", "5.0"]]


@pytest.mark.parametrize("width", [40, 80, 120, 300])
@pytest.mark.parametrize("height", [10, 24, 60])
def test_it_fits(width: int, height: int) -> None:
    many = facts(
        nodes=tuple(node(f"machine-with-a-long-name-{n:04}", hardware=_HARDWARE) for n in range(200)),
        queues=tuple(queue(f"model{n}" * 20) for n in range(50)),
        gone=tuple(Gone(f"old{n}.1", f"old{n}", NOW - 20) for n in range(30)),
    )
    lines = _drawn(many, width=width, height=height)
    assert max(len(line) for line in lines) <= width
    assert len(lines) <= max(height, 20)
    assert any("more" in line for line in lines)


def test_where_not_all_fit_the_nodes_that_live_are_shown_first() -> None:
    found = facts(
        nodes=tuple(node(f"live{n}") for n in range(3)),
        gone=tuple(Gone(f"old{n}.1", f"old{n}", NOW - 20) for n in range(3)),
    )
    shown = [[line.split()[0] for line in _drawn(found, height=rows) if " 0/" in line] for rows in (14, 60)]
    assert shown[0] == ["live0", "live1"]
    assert shown[1] == ["old0", "old1", "old2", "live0", "live1", "live2"]


def test_wide_terminals_show_more() -> None:
    wide, narrow = "\n".join(_drawn(_busy(), width=160)), "\n".join(_drawn(_busy()))
    for words in ("93 % 71°", "32/64", "12 %", "leader none"):
        assert words in wide
        assert words not in narrow


def test_an_empty_fabric_says_what_to_do_and_old_news_says_so() -> None:
    lines = _drawn(facts(), trouble="cannot reach Redis\nat x")
    assert lines[1] == "not up to date: cannot reach Redis at x"
    assert any("sollol up" in line for line in lines)


def test_names_cannot_take_over_the_terminal() -> None:
    evil = "\x1b]0;owned\x07[red]x\nnext"
    found = facts(nodes=(node(evil, models={evil: {"loaded": True}}),), queues=(queue(evil),))
    text = "\n".join(_drawn(found, width=200))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]x" in text


def test_bars() -> None:
    assert sparkline([0, 0], 5) == "▁▁"
    assert sparkline([], 5) == ""
    assert sparkline([99, 80, 100], 2) == "▇█"
    assert (meter(0, 8), meter(4, 8), meter(99, 8), meter(1, 0)) == (
        "░░░░░░░░", "████░░░░", "████████", "░░░░░░░░",
    )  # fmt: skip
