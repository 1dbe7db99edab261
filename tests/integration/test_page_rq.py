"""RQ's own dashboard inside the page: it shows and steers the coordinator's jobs, and nobody gets in by it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from fabric import output_of
from page_kit import site
from rq_page_kit import page_process, put_control_jobs

_WITHOUT = {
    "the reading of JSON alone": "rq_pages.read_json_only = lambda: None",
    "the look at the method": "rq_pages.acts_by_get = lambda: False",
}


async def _token(http: httpx.AsyncClient) -> dict[str, str]:
    """What RQ's scripts send, read where they read it."""
    await http.get("/rq/")
    return {"X-CSRFToken": next(c.value or "" for c in http.cookies.jar if c.name == "_csrf_token")}


async def test_it_shows_the_coordinators_jobs_and_an_operator_steers_them(
    redis_url: str, tmp_path: Path
) -> None:
    put_control_jobs(redis_url, tmp_path / "touched")
    async with page_process(tmp_path / "page.log", redis_url) as (http, process):
        assert 'name="rq" content="/rq/"' in (await http.get("/control")).text
        # Who acts need not have looked at any of its pages before.
        act = {
            "X-CSRFToken": (await http.get("/control")).text.partition('name="csrf-token" content="')[2][:64]
        }
        assert (await http.post("/rq/job/nobody/delete", headers=act)).json() == {"status": "ERROR"}
        told = (await http.get("/rq/0/data/queues.json")).json()["queues"]
        assert [(q["name"], q["count"], q["failed_job_registry_count"]) for q in told] == [("groups", 3, 1)]
        job = (await http.get("/rq/0/data/job/failed.json")).json()
        assert (job["status"], job["exc_info"]) == ("failed", "CannotForm: no memory")
        token = await _token(http)
        assert (await http.post("/rq/job/failed/requeue", headers=token)).status_code == 200
        assert (await http.post("/rq/job/two/delete", headers=token)).status_code == 200
        (queue,) = (await http.get("/api/control")).json()["queues"]
        assert (queue["counts"]["queued"], queue["counts"]["failed"]) == (3, 0)
        for path, status in (
            ("/rq/0/view/job/two", 404),
            ("/rq/0/view/job/nobody", 404),
            ("/rq/1/view/queues", 404),
            ("/rq/0/data/job/evil.json", 409),
        ):
            answer = await http.get(path)
            assert (answer.status_code, answer.text.count("\n")) == (status, 1), answer.text
        # What stands in an address stays text, in its scripts, too.
        page = (await http.get("/rq/0/view/jobs/x');window.hit=1;('/queued/8/asc/1")).text
        assert "x&#39;);window.hit=1;(&#39;" in page
        assert "x')" not in page
        assert "Traceback" not in process.said()


@pytest.mark.parametrize("without", ["", *_WITHOUT.values()], ids=["", *_WITHOUT])
async def test_it_neither_unpickles_nor_acts_by_get(redis_url: str, tmp_path: Path, without: str) -> None:
    touched = tmp_path / "touched"
    put_control_jobs(redis_url, touched)
    async with page_process(tmp_path / "page.log", redis_url, before=without) as (http, _):
        for path in ("view/job/evil", "data/job/evil.json", "data/jobs/groups/queued/8/asc/1.json"):
            await http.get(f"/rq/0/{path}")
        await http.get("/rq/requeue/groups")
        (queue,) = (await http.get("/api/control")).json()["queues"]
        acted = queue["counts"]["failed"] == 0
    assert (touched.exists(), acted) == ("json" in without, "by_get" in without)


async def test_who_is_not_logged_in_or_may_only_look_changes_nothing(redis_url: str, tmp_path: Path) -> None:
    put_control_jobs(redis_url, tmp_path / "touched")
    secret = tmp_path / "password"
    secret.write_text("correct horse\n")
    told = ("--password-file", str(secret), "--password-role", "viewer")
    async with page_process(tmp_path / "page.log", redis_url, *told) as (http, _):
        for path in ("/rq/", "/rq/0/data/queues.json", "/rq/0/view/job/one"):
            answer = await http.get(path)
            assert (answer.status_code, answer.headers["Location"][:6]) == (302, "/login")
        assert (await http.post("/rq/job/one/delete")).status_code == 401
        form = (await http.get("/login")).text.partition('name="token" value="')[2][:64]
        await http.post("/login", data={"secret": "correct horse", "token": form})
        assert (await http.get("/rq/0/data/queues.json")).status_code == 200
        token = await _token(http)
        for headers in ({}, token, {**token, "Origin": "http://elsewhere.example"}):
            answer = await http.post("/rq/job/one/delete", headers=headers)
            assert answer.status_code == 403
        assert (await http.get("/rq/0/data/job/one.json")).json()["status"] == "queued"


async def test_a_page_in_another_programs_process_leaves_its_rq_alone(redis_url: str) -> None:
    async with site(redis_url) as page:
        assert (await page.http.get("/rq/")).status_code == 404
        assert 'name="rq"' not in (await page.http.get("/control")).text
    assert output_of("import sollol_coordinator.page.server, sys; print('rq' in sys.modules)") == "False\n"
