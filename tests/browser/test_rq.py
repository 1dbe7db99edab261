"""RQ's own dashboard in a browser: reached from the page, it works, and nothing that it shows runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from rq_page_kit import page_process, put_control_jobs

_OPEN = "rq_pages._POLICY = \"script-src 'self' 'unsafe-inline' 'unsafe-eval'\""
# One more that is missing, as the one in the job's description is, and is found so after it.
_AFTER_ALL_PICTURES = (
    "new Promise((done) => { const last = new Image(); last.onerror = done; last.src = 'y'; })"
)


@pytest.mark.parametrize("without", ["", _OPEN], ids=["", "the policy"])
async def test_control_jobs_are_steered_in_rqs_dashboard_and_their_markup_runs_nothing(
    redis_url: str, browser: Browser, tmp_path: Path, without: str
) -> None:
    put_control_jobs(redis_url, tmp_path / "touched")
    async with page_process(tmp_path / "page.log", redis_url, before=without) as (http, _):
        # Its questions come and go at once: one that is still coming does not go.
        context = await browser.new_context(base_url=str(http.base_url), reduced_motion="reduce")
        context.set_default_timeout(30_000)
        tab = await context.new_page()
        await tab.goto("/control")
        await tab.locator("#rq").click()
        await expect(tab.locator('tr[data-role="queue"]')).to_contain_text("groups")
        if folder := os.environ.get("SOLLOL_SCREENSHOTS"):
            await tab.screenshot(path=f"{folder}/rq.png")
        await tab.goto("/rq/0/view/job/one")
        await expect(tab.locator("#job-data")).to_contain_text("form one")
        if without:
            await tab.wait_for_function("window.hit === 1")
        else:
            await tab.evaluate(_AFTER_ALL_PICTURES)
            assert await tab.evaluate("window.hit") is None
        await tab.goto("/rq/0/view/jobs/groups/failed/8/asc/1")
        async with tab.expect_response("**/requeue"):
            await tab.locator('[data-job-id="failed"] [data-role="requeue-job-btn"]').click()
        await tab.goto("/rq/0/view/jobs/groups/queued/8/asc/1")
        await expect(tab.locator('[data-job-id="failed"]')).to_be_visible()
        if not without:
            await tab.locator('[data-job-id="two"] [data-role="delete-job-btn"]').click()
            await tab.locator("#confirmation-modal-yes").click()
            await expect(tab.locator('[data-job-id="two"]')).to_have_count(0)
            await tab.locator(".navbar-brand").first.click()
            await expect(tab.locator("#queue-groups")).to_contain_text("3 queued")
        await context.close()
