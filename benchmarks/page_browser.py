"""The page in a headless Chromium: when it is painted, how long an update holds the tab up, what the tab weighs."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import psutil
from playwright.async_api import Browser, CDPSession, Page, async_playwright

MISSING = "Chromium is missing: apt-get install chromium. What a browser shows was not measured."
# What a person may have to wait for data, and may not notice of an update.
MOST_PAINT_MS, MOST_TASK_MS = 1000.0, 200.0
_UPDATES_SECONDS = 15.0
_MIB = 2**20

# Runs before the page's own scripts. Data are painted when a frame has passed since their first element was there.
_WATCH = """
(() => {
  const seen = window.seen = {painted: 0, tasks: []};
  let done;
  seen.done = new Promise((resolve) => { done = resolve; });
  new PerformanceObserver((list) => {
    for (const each of list.getEntries()) seen.tasks.push([each.startTime, each.duration]);
  }).observe({type: "longtask", buffered: true});
  const look = () => {
    if (!document.querySelector("article[data-node], tr[data-job], #node-head")) return requestAnimationFrame(look);
    const port = new MessageChannel();
    port.port1.onmessage = () => { seen.painted = performance.now(); done(); };
    requestAnimationFrame(() => port.port2.postMessage(0));
  };
  requestAnimationFrame(look);
})();
"""
_TOLD = """() => ({
  painted: seen.painted, tasks: seen.tasks,
  drawn: Number((document.querySelector(".view") || {dataset: {}}).dataset.drawn || 0),
  contentful: (performance.getEntriesByName("first-contentful-paint")[0] || {startTime: 0}).startTime,
  elements: document.getElementsByTagName("*").length,
})"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one path was like.

    Attributes:
        contentful_ms: from navigation to the first text on the screen. painted_ms: to the first node or job on it.
        first_task_ms, update_task_ms: the longest stretch in which the tab did not listen, until then and afterwards;
            browsers tell of those above 50 ms, 0 = none.
        updates: drawn while it was watched. heap_mib: of the tab's scripts, after a collection.
    """

    path: str
    contentful_ms: float
    painted_ms: float
    first_task_ms: float
    update_task_ms: float
    updates: int
    elements: int
    heap_mib: float

    @property
    def is_quick(self) -> bool:
        """Whether a person would say so."""
        return self.painted_ms <= MOST_PAINT_MS and self.update_task_ms <= MOST_TASK_MS


@dataclass(frozen=True, slots=True)
class Weight:
    """A tab and the page's process at one moment of a long look."""

    seconds: float
    updates: int
    elements: int
    nodes: int
    heap_mib: float
    page_mib: float


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser | None]:
    """A browser; None = this machine has none."""
    names = ("chromium", "google-chrome", "chromium-browser")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        yield None
        return
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield browser
        await browser.close()


async def look(browser: Browser, base: str, paths: Sequence[str]) -> AsyncIterator[Seen]:
    """Each path in new profiles: of five first paints the one in the middle, of which the last is watched on."""
    for path in paths:
        tries = [await _look(browser, base, path, 0.0) for _ in range(4)]
        last = await _look(browser, base, path, _UPDATES_SECONDS)
        first = sorted([*tries, last], key=lambda each: each.painted_ms)[2]
        yield replace(
            last,
            contentful_ms=first.contentful_ms,
            painted_ms=first.painted_ms,
            first_task_ms=first.first_task_ms,
        )


async def weigh(
    browser: Browser,
    base: str,
    path: str,
    minutes: float,
    say: Callable[[Weight], None],
    page: psutil.Process,
) -> None:
    """Leave a tab open for so long, and tell of it now and then."""
    tab, devtools = await _open(browser, base)
    await tab.goto(path)
    await _painted(tab)
    for at in range(int(2 * minutes) + 1):
        told = await tab.evaluate(_TOLD)
        heap, nodes = await _heap(devtools)
        rss = page.memory_info().rss / _MIB
        say(Weight(30.0 * at, told["drawn"], told["elements"], nodes, heap, rss))
        if at < int(2 * minutes):
            await asyncio.sleep(30)
    await tab.context.close()


async def _look(browser: Browser, base: str, path: str, seconds: float) -> Seen:
    tab, devtools = await _open(browser, base)
    await tab.goto(path, wait_until="commit")
    await _painted(tab)
    before = await tab.evaluate(_TOLD)
    await asyncio.sleep(seconds)
    told = await tab.evaluate(_TOLD)
    heap, _ = await _heap(devtools)
    await tab.context.close()
    first = [took for at, took in told["tasks"] if at <= told["painted"]]
    later = [took for at, took in told["tasks"] if at > told["painted"]]
    return Seen(
        path=path,
        contentful_ms=told["contentful"],
        painted_ms=told["painted"],
        first_task_ms=max(first, default=0.0),
        update_task_ms=max(later, default=0.0),
        updates=told["drawn"] - before["drawn"],
        elements=told["elements"],
        heap_mib=heap,
    )


async def _open(browser: Browser, base: str) -> tuple[Page, CDPSession]:
    context = await browser.new_context(base_url=base, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    await context.add_init_script(_WATCH)
    tab = await context.new_page()
    devtools = await context.new_cdp_session(tab)
    await devtools.send("Performance.enable")
    return tab, devtools


async def _painted(tab: Page) -> None:
    # Not wait_for_function, which evaluates text in the page: its policy forbids that.
    async with asyncio.timeout(60):
        await tab.evaluate("() => seen.done")


async def _heap(devtools: CDPSession) -> tuple[float, int]:
    """MiB of the tab's scripts, and how many DOM nodes it keeps, after a collection."""
    await devtools.send("HeapProfiler.collectGarbage")
    told: dict[str, Any] = await devtools.send("Performance.getMetrics")
    metrics = {each["name"]: each["value"] for each in told["metrics"]}
    return metrics["JSHeapUsedSize"] / _MIB, int(metrics["Nodes"])
