"""`sollol top`: the whole fabric in a terminal, refreshed until one has seen enough."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sollol_broker.errors import BrokerUnavailable

from . import output
from .options import fabric_options
from .top_view import draw

if TYPE_CHECKING:
    from rich.live import Live

    from sollol_broker.series import History

# The last hour changes by a point in ten seconds.
_HOUR_EVERY_SECONDS = 10.0


@click.command()
@click.option("--interval", type=click.FloatRange(0.2, 3600), default=2.0, show_default=True,
              metavar="SECONDS", help="Between two looks.")  # fmt: skip
@click.option("--once", is_flag=True, help="Look once, print it and end; also where there is no terminal.")
@fabric_options
def top(url: str, as_json: bool, interval: float, once: bool) -> None:
    """Watch the fabric: what every machine does, what waits and why, what went wrong. q ends it.

    --json prints what it shows once, for programs.
    """
    console = output.console()
    if as_json or once or not console.is_terminal:
        look = asyncio.run(_look_once(url))
        if as_json:
            output.print_json(look.as_dict())
        else:
            output.print_picture(draw(look.told, look.rates, width=console.width, height=None))
        return
    asyncio.run(_watch(url, interval))


@dataclass(frozen=True, slots=True)
class Look:
    """The fabric at one moment: `told` as `overview` has it, `rates` of the last minutes."""

    told: Mapping[str, Any]
    rates: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**self.told, "rates": dict(self.rates)}


class _Looker:
    """Looks at one fabric again and again."""

    def __init__(self, url: str) -> None:
        from sollol_broker.broker import Broker
        from sollol_broker.facts_reader import FactsReader
        from sollol_broker.link import LinkConfig
        from sollol_broker.series_reader import SeriesReader
        from sollol_broker.url import parse

        self._broker = Broker(
            parse(url, environ=os.environ), name="sollol-top", config=LinkConfig(patience_seconds=2.0)
        )
        self._facts = FactsReader(self._broker)
        self._series = SeriesReader(self._broker)
        self._hour: History | None = None
        self._hour_until = 0.0

    async def open(self) -> None:
        """Raises BrokerUnavailable."""
        await self._broker.open()

    async def close(self) -> None:
        await self._broker.close()

    async def look(self) -> Look:
        """Raises BrokerUnavailable."""
        from sollol_broker.overview import overview
        from sollol_broker.rates import DURATION_SECONDS, HOUR_SECONDS, rates

        facts, now = await asyncio.gather(self._facts.read(), self._series.fabric(DURATION_SECONDS))
        clock = asyncio.get_running_loop().time()
        if self._hour is None or clock >= self._hour_until:
            self._hour = await self._series.fabric(HOUR_SECONDS)
            self._hour_until = clock + _HOUR_EVERY_SECONDS
        by_minute = self._hour.by(60.0).rates("tokens_out")
        return Look(overview(facts), {**rates(now, self._hour), "tokens_hour": by_minute})


async def _look_once(url: str) -> Look:
    looker = _Looker(url)
    await looker.open()
    try:
        return await looker.look()
    finally:
        await looker.close()


async def _watch(url: str, interval: float) -> None:
    from rich.live import Live

    looker = _Looker(url)
    await looker.open()
    ended = asyncio.Event()
    try:
        # On the terminal's other screen, and each look written in one go: nothing flickers, nothing is left behind.
        with _keys(ended), Live(screen=True, auto_refresh=False, console=output.console()) as live:
            look, trouble = None, ""
            while not ended.is_set():
                try:
                    look, trouble = await looker.look(), ""
                except BrokerUnavailable as error:
                    if error.refused or look is None:
                        raise
                    trouble = str(error)
                _show(live, look, trouble)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval):
                        await ended.wait()
    finally:
        await looker.close()


def _show(live: Live, look: Look, trouble: str) -> None:
    size = live.console.size
    live.update(
        draw(look.told, look.rates, width=size.width, height=size.height, trouble=trouble), refresh=True
    )


@contextlib.contextmanager
def _keys(ended: asyncio.Event) -> Iterator[None]:
    """While it is shown, q ends it; without a keyboard, or on Windows, Ctrl-C does."""
    try:
        import termios
        import tty

        keyboard = sys.stdin.fileno()
        before = termios.tcgetattr(keyboard)
    except (ImportError, OSError, ValueError, AttributeError):
        yield
        return
    except termios.error:
        yield
        return

    def on_key() -> None:
        if os.read(keyboard, 64).lower()[:1] in (b"q", b""):
            ended.set()

    loop = asyncio.get_running_loop()
    # As q does, so that the terminal is left as it was.
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, on_key)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        loop.remove_signal_handler(signal.SIGTERM)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
