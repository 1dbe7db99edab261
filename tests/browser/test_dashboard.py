"""What a person sees: the page in a browser, over a fabric that works."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from playwright.async_api import Browser, Page, Route, expect

from fabric import worker, worker_process
from page_kit import Site, site
from sollol import AsyncClient, AsyncJob
from sollol_broker.errors import JobCancelled
from sollol_broker.keys import Keys
from sollol_broker.log_entry import LogEntry, to_flat
from waiting import wait_until

# Jobs stay long enough to be looked at, however slow the machine; a test cancels what it does not wait for.
_SLOW = "echo://?slots=2&delay_ms=60000&models=m"
_SOON = "echo://?slots=2&models=m"
expect.set_options(timeout=30_000)
_PATHS = ("/", "/nodes", "/jobs", "/groups", "/batches", "/apps", "/log", "/control")


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(redis_url, app="people") as client:
        yield client


def _ask(client: AsyncClient, count: int, **more: Any) -> list[AsyncJob]:
    return [client.submit(chat=f"number {n}", model="m", cache=False, **more) for n in range(count)]


async def _end(jobs: list[AsyncJob]) -> None:
    await asyncio.gather(*(job.cancel() for job in jobs))
    await asyncio.gather(*jobs, return_exceptions=True)


async def test_the_numbers_are_those_that_the_client_counts(
    redis_url: str, client: AsyncClient, tab: Page
) -> None:
    async with worker(redis_url, _SLOW, node="gpu-1", lease_seconds=30):
        jobs = _ask(client, 5, wait_for_node=True)
        for job in jobs:
            await job.accepted(30)

        async def two_run() -> bool:
            (queue,) = await client.queues()
            return (queue.running, queue.waiting) == (2, 3)

        await wait_until(two_run, timeout=30, what="two of five jobs to run")
        await tab.goto("/")
        await expect(tab.locator("#tile-running .value")).to_have_text("2")
        await expect(tab.locator("#tile-waiting .value")).to_have_text("3")
        await expect(tab.locator('article[data-node="gpu-1"]')).to_have_attribute("data-state", "busy")
        await expect(tab.locator('article[data-node="gpu-1"] .doing')).to_have_text("answers 2 jobs with m")
        row = tab.locator('tr[data-model="m"]')
        await expect(row).to_have_attribute("data-waiting", "3")
        await tab.goto("/jobs")
        await expect(tab.locator("tr[data-job]")).to_have_count(5)
        shown = {await each.get_attribute("data-job") for each in await tab.locator("tr[data-job]").all()}
        assert shown == {job.id for job in jobs}
        await _end(jobs)


async def test_a_job_is_watched_from_the_queue_to_its_end(
    redis_url: str, client: AsyncClient, tab: Page
) -> None:
    (job,) = _ask(client, 1, wait_for_node=True)
    await job.accepted(30)
    await tab.goto(f"/job?id={job.id}")
    await expect(tab.locator("#job-head")).to_have_attribute("data-state", "queued")
    async with worker(redis_url, _SOON, node="gpu-1"):
        await job
        await expect(tab.locator("#job-head")).to_have_attribute("data-state", "done")
        told = await tab.locator("#job-timeline").inner_text()
    assert "handed in by people" in told
    assert "gpu-1" in told
    assert "number 0" not in await tab.content(), "the page shows no prompt"


async def test_a_job_is_cancelled_with_a_click_and_a_question(
    redis_url: str, client: AsyncClient, tab: Page
) -> None:
    async with worker(redis_url, _SLOW, lease_seconds=30):
        (job,) = _ask(client, 1, wait_for_node=True)
        await job.accepted(30)
        await tab.goto("/jobs")
        row = tab.locator(f'tr[data-job="{job.id}"]')
        await row.locator('[data-do="cancel"]').click()
        if await tab.locator("#ask").is_visible():
            await tab.locator('#ask button[value="yes"]').click()
        with pytest.raises(JobCancelled):
            async with asyncio.timeout(30):
                await job
        await expect(row).to_have_attribute("data-state", "cancelled")


async def test_a_killed_worker_turns_red(redis_url: str, tab: Page, tmp_path: Path) -> None:
    async with worker_process(redis_url, tmp_path / "log", "--backend", _SOON, "--node", "doomed") as process:
        await tab.goto("/")
        card = tab.locator('article[data-node="doomed"]')
        await expect(card).to_have_attribute("data-state", "idle")
        process.process.kill()
        await expect(card).to_have_attribute("data-state", "gone")
        colour = await card.locator(".badge").evaluate("badge => getComputedStyle(badge).color")
        red, green, blue = (int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(","))
        assert red > 2 * max(green, blue)
        await expect(tab.locator('#alerts [data-code="worker.gone"]')).to_have_count(1)


@pytest.mark.parametrize("script", ["dom", "views/overview"])
async def test_a_script_that_cannot_be_fetched_is_fetched_again(
    browser: Browser, dashboard: Site, script: str
) -> None:
    context = await browser.new_context(base_url=dashboard.page.url)
    tab = await context.new_page()
    left = [2]  # it is asked for by the shell beforehand, and by who needs it

    async def lose(route: Route) -> None:
        left[0] -= 1
        await (route.abort() if left[0] >= 0 else route.continue_())

    await tab.route(f"**/js/{script}.js*", lose)
    await tab.goto("/")
    await expect(tab.locator(".view[data-drawn]")).to_have_count(1)
    assert left[0] < 0
    await context.close()


_PAYLOADS = [
    shape.format(number)
    for number, shape in enumerate(
        [
            "<script>parent.ran={}</script>",
            "<img src=x onerror=window.ran={}>",
            '"><svg onload=window.ran={}>',
            "'-(window.ran={})-'",
            "javascript:window.ran={}",
        ]
        * 10
    )
]


async def test_fifty_scripts_in_names_and_logs_run_nothing(redis_url: str, tab: Page) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for payload in _PAYLOADS[:5]:
            metadata = {payload: payload}
            await stack.enter_async_context(
                AsyncClient(redis_url, app=payload.replace(" ", "/"), metadata=metadata)
            )
        client = await stack.enter_async_context(AsyncClient(redis_url, app="people"))
        await stack.enter_async_context(worker(redis_url, "echo://?models=m,<svg/onload=ran=1>", node="n1"))
        async with redis.asyncio.Redis.from_url(redis_url) as raw:
            for payload in _PAYLOADS:
                entry = LogEntry(
                    "", 0.0, "error", "worker", payload, payload, payload, payload, {payload: payload}
                )
                flat = to_flat(entry, ago_ms=0)
                await raw.xadd(Keys().log, dict(zip(flat[::2], flat[1::2], strict=True)))
        jobs = _ask(client, 2, session=_PAYLOADS[0])
        await asyncio.gather(*jobs)
        for path in (
            *_PATHS,
            f"/job?id={jobs[0].id}",
            f"/node?name={_PAYLOADS[1]}",
            f"/job?id={_PAYLOADS[2]}",
        ):
            await tab.goto(path)
            await expect(tab.locator(".view[data-drawn], .trouble:visible")).not_to_have_count(0)
            assert await tab.evaluate("window.ran === undefined && parent.ran === undefined"), path
            assert (
                await tab.locator(".view script, .view img, .view [onload], .view [onerror]").count() == 0
            ), path


async def test_twenty_browsers_cost_redis_little(
    redis_url: str, client: AsyncClient, browser: Browser, dashboard: Site
) -> None:
    async with (
        worker(redis_url, _SOON, poll_seconds=60, reap_seconds=60),
        redis.asyncio.Redis.from_url(redis_url) as raw,
    ):

        async def rate() -> float:
            """Commands a second, those of the worker and the client among them."""
            loop = asyncio.get_running_loop()
            began, before = loop.time(), (await raw.info("stats"))["total_commands_processed"]
            await asyncio.sleep(5)
            spent = (await raw.info("stats"))["total_commands_processed"] - before
            return float(spent / (loop.time() - began))

        alone = await rate()
        # One profile each: a browser opens six connections to a page and no more.
        contexts = [await browser.new_context(base_url=dashboard.page.url) for _ in range(20)]
        tabs = [await context.new_page() for context in contexts]
        for tab in tabs:
            await tab.goto("/", wait_until="commit")
        for tab in tabs:
            await expect(tab.locator(".view[data-drawn]")).to_have_count(1, timeout=60_000)
        watched = await rate()
        for context in contexts:
            await context.close()
    assert watched - alone <= 50, f"{watched:.0f} commands a second, {alone:.0f} without browsers"


@pytest.mark.parametrize(
    ("name", "scheme", "width"), [("light", "light", 1280), ("dark", "dark", 1280), ("phone", "light", 390)]
)
async def test_every_page_fits_its_screen(
    redis_url: str,
    client: AsyncClient,
    browser: Browser,
    dashboard: Site,
    tmp_path: Path,
    name: str,
    scheme: str,
    width: int,
) -> None:
    """Its pictures lie in $SOLLOL_SCREENSHOTS, for somebody to look at."""
    folder = Path(os.environ.get("SOLLOL_SCREENSHOTS") or tmp_path)
    async with worker(redis_url, _SOON, node="gpu-1"):
        await asyncio.gather(*_ask(client, 3))
        context = await browser.new_context(
            base_url=dashboard.page.url,
            color_scheme="dark" if scheme == "dark" else "light",
            viewport={"width": width, "height": 900},
        )
        tab = await context.new_page()
        shades = set()
        for path in _PATHS:
            await tab.goto(path)
            await expect(tab.locator(".view[data-drawn]")).to_have_count(1, timeout=30_000)
            picture = await tab.screenshot(
                path=folder / f"{name}-{path.strip('/') or 'overview'}.png", full_page=True
            )
            assert len(picture) > 5_000
            overflow = await tab.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert overflow <= 0, f"{path} is {overflow} pixels wider than the screen"
            shade = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
            shades.add(sum(int(part) for part in shade.removeprefix("rgb(").rstrip(")").split(",")[:3]) > 384)
        assert shades == {scheme == "light"}
        await context.close()


async def test_it_works_with_the_keyboard_alone(redis_url: str, client: AsyncClient, tab: Page) -> None:
    async with worker(redis_url, _SOON, node="gpu-1"):
        await tab.goto("/")
        await expect(tab.locator('article[data-node="gpu-1"]')).to_have_count(1)
        await tab.keyboard.press("Tab")
        assert await tab.evaluate("document.activeElement.className") == "skip"
        cordon = tab.locator('article[data-node="gpu-1"] [data-do="cordon"]')
        await cordon.focus()
        assert await cordon.evaluate("button => getComputedStyle(button).outlineStyle") != "none"
        await tab.keyboard.press("Enter")
        if await tab.locator("#ask").is_visible():
            await tab.locator('#ask button[value="yes"]').focus()
            await tab.keyboard.press("Enter")
        await expect(tab.locator('article[data-node="gpu-1"]')).to_have_attribute("data-state", "cordoned")
        (node,) = await client.nodes()
        assert node.controls.cordoned


async def test_focus_stays_where_it_is_when_rows_above_go(
    redis_url: str, client: AsyncClient, tab: Page
) -> None:
    jobs = _ask(client, 3, wait_for_node=True)
    for job in jobs:
        await job.accepted(30)
    await tab.goto("/jobs?state=waiting")
    await expect(tab.locator("tr[data-job]")).to_have_count(3)
    shown = [str(await row.get_attribute("data-job")) for row in await tab.locator("tr[data-job]").all()]
    await tab.locator(f'tr[data-job="{shown[-1]}"] [data-do="cancel"]').focus()
    for job in jobs:
        if job.id != shown[-1]:
            await job.cancel()
    await expect(tab.locator("tr[data-job]")).to_have_count(1)
    assert await tab.evaluate("document.activeElement.dataset.job") == shown[-1]
    assert await tab.locator("main h1").count() == 1, "what the page is stays told to who hears it"
    await _end(jobs)


async def test_tabs_that_nobody_sees_keep_none_from_being_loaded(browser: Browser, dashboard: Site) -> None:
    """A browser opens six connections to a page, and each tab's stream takes one."""
    context = await browser.new_context(base_url=dashboard.page.url)
    await context.add_init_script(
        "window.unseen = true;"
        "Object.defineProperty(document, 'hidden', {get: () => window.unseen, configurable: true})"
    )
    tabs = [await context.new_page() for _ in range(7)]
    for tab in tabs:
        await tab.goto("/apps")
        await expect(tab.locator("#live")).to_have_attribute("data-state", "paused")
    await tabs[0].evaluate("window.unseen = false; document.dispatchEvent(new Event('visibilitychange'))")
    await expect(tabs[0].locator("#live")).to_have_attribute("data-state", "live")
    await tabs[0].evaluate("window.unseen = true; document.dispatchEvent(new Event('visibilitychange'))")
    await expect(tabs[0].locator("#live")).to_have_attribute("data-state", "paused")
    await context.close()


def _port_of_nobody() -> int:
    """One that no connection gets by chance while nobody listens there."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("every port is taken")


async def test_a_page_that_starts_anew_is_found_again_with_the_filter(
    redis_url: str, client: AsyncClient, browser: Browser
) -> None:
    (job,) = _ask(client, 1, wait_for_node=True)
    await job.accepted(30)
    context = await browser.new_context()
    tab = await context.new_page()
    port = _port_of_nobody()
    async with site(redis_url, port=port) as first:
        await tab.goto(f"{first.page.url}jobs?app=people&state=waiting")
        await expect(tab.locator("tr[data-job]")).to_have_count(1)
    await expect(tab.locator("#live")).to_have_attribute("data-state", "lost")
    async with site(redis_url, port=port):
        await expect(tab.locator("#live")).to_have_attribute("data-state", "live")
        await _end([job])
        await expect(tab.locator("tr[data-job]")).to_have_count(0)
        await context.close()
