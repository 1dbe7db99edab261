"""Groups, batches, applications and control jobs that are there: the page shows what the client knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from fabric import worker
from group_fleet import OPTIONS, QUESTION, RAM_MIB, Fleet
from page_kit import Site
from sollol import AsyncClient
from sollol_broker.words import BatchState
from waiting import wait_until

expect.set_options(timeout=30_000)
_STEADY = "echo://?slots=1&delay_ms=150&models=m"
_SHAPES = {
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
}


@pytest.fixture
def fleet(redis_url: str, smollm2_path: Path, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(redis_url, smollm2_path, tmp_path) as fleet:
        yield fleet
    assert not fleet.parts(), "processes of a group are left"


async def test_what_is_there_is_told(
    redis_url: str, fleet: Fleet, tab: Page, browser: Browser, dashboard: Site, tmp_path: Path
) -> None:
    """One fabric with all of it, since forming a group takes longest."""
    fleet.coordinator()
    for name, ram in zip("abc", RAM_MIB, strict=True):
        fleet.worker(name, ram)
    about = {"version": "2.1", "team": "search"}
    async with AsyncClient(redis_url, app="librarian", metadata=about, cache=False) as client:
        await client.submit(chat=QUESTION, model="big", options=OPTIONS, wait_for_node=True, timeout=180)
        await _group(client, tab)
        await _control_job(client, tab)
        batch = await client.batch(chat=[f"text {n}" for n in range(12)], model="m", wait_for_node=True)
        async with worker(redis_url, _STEADY, node="steady"):
            await wait_until(
                lambda: batch.progress.completed >= 3, timeout=60, what="some of the batch is done"
            )
        # Its only worker has left: from here on the numbers stand still.
        await tab.goto("/batches")
        row = tab.locator(f'tr[data-batch="{batch.id}"]')
        view = await batch.refresh()
        assert 3 <= view.completed < 12
        await expect(row.locator(".amount")).to_have_text(f"{view.completed} of 12")
        await expect(row).to_have_attribute("data-state", BatchState.RUNNING)
        await _application(client, tab)
        await _pictures(browser, dashboard, batch.id, tmp_path)
        await batch.cancel()


async def _group(client: AsyncClient, tab: Page) -> None:
    (group,) = await client.groups()
    await tab.goto("/groups")
    card = tab.locator(f'section[data-group="{group.id}"]')
    await expect(card).to_have_attribute("data-state", "ready")
    rows = card.locator("tbody tr")
    await expect(rows).to_have_count(len(group.places))
    for at, place in enumerate(group.places):
        told = await rows.nth(at).inner_text()
        assert all(str(each) in told for each in (place["node"], place["layers"], f"{place['mib']:.0f} MiB"))
        assert ("the head" if place["node"] == group.head else "bit/s, ") in told
        assert ("ms" in told) == (place["node"] != group.head)


async def _control_job(client: AsyncClient, tab: Page) -> None:
    """The group was formed by a job in RQ."""
    (group,) = await client.groups()
    await tab.goto("/control")
    row = tab.locator("tr[data-job]")
    await expect(row).to_have_count(1)
    assert group.id in await row.inner_text()
    await expect(row.locator(".badge")).to_have_attribute("data-state", "done")


async def _application(client: AsyncClient, tab: Page) -> None:
    (app,) = [each for each in await client.apps() if each.name == "librarian"]
    await tab.goto("/apps")
    row = tab.locator('tr[data-app="librarian"]')
    told = await row.inner_text()
    assert all(each in told for each in ("2.1", "team: search", f"{app.done}"))


async def _pictures(browser: Browser, dashboard: Site, batch: str, tmp_path: Path) -> None:
    """No page is wider than a phone. With $SOLLOL_SCREENSHOTS pictures lie there, for somebody to look at."""
    folder = os.environ.get("SOLLOL_SCREENSHOTS")
    jobs = (await dashboard.look("jobs"))["jobs"]
    paths = {"overview": "/", "nodes": "/nodes", "node": "/node?name=a", "jobs": "/jobs",
             "job": f"/job?id={jobs[0]['id']}", "groups": "/groups", "batches": "/batches", "apps": "/apps",
             "log": "/log", "control": "/control"}  # fmt: skip
    for shape, settings in _SHAPES.items():
        if shape != "phone" and not folder:
            continue
        context = await browser.new_context(base_url=dashboard.page.url, **settings)  # type: ignore[arg-type]  # of _SHAPES
        page = await context.new_page()
        for name, path in paths.items():
            await page.goto(path)
            await expect(page.locator(".view[data-drawn]")).to_have_count(1)
            overflow = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert overflow <= 0, f"{path} is {overflow} pixels wider than the screen"
            if folder:
                await page.screenshot(path=Path(folder) / f"full-{shape}-{name}.png", full_page=True)
        await context.close()
