"""A real browser, and a page over a fabric that really works."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, async_playwright

from page_kit import Site, site


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Headless Chromium."""
    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    assert program, "these tests need Chromium: apt-get install chromium"
    async with async_playwright() as playwright:
        # Containers have no user namespaces for its sandbox, and little shared memory.
        browser = await playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield browser
        await browser.close()


@pytest.fixture
async def dashboard(redis_url: str) -> AsyncIterator[Site]:
    async with site(redis_url) as dashboard:
        yield dashboard


@pytest.fixture
async def tab(browser: Browser, dashboard: Site) -> AsyncIterator[Page]:
    """A tab that opens the page's paths. At its end nothing may have gone wrong in it."""
    context = await browser.new_context(base_url=dashboard.page.url, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(30_000)
    tab = await context.new_page()
    wrong: list[str] = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
    tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    yield tab
    await context.close()
    assert wrong == []
