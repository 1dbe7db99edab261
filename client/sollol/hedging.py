"""How late requests are hedged, as SOLLOL's programs say it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HedgingStrategy:
    """Give it to `OllamaPool(enable_hedging=…)`: late jobs may run on a second node; the first answer counts.

    A second copy starts when the first is later than predicted, never before, and the slower one is always
    cancelled; `sollol limits` bounds what that may cost. So the numbers here are taken and change nothing.
    """

    num_hedges: int = 2
    hedge_delay_ms: float = 0
    enable_cancellation: bool = True
