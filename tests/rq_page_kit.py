"""RQ's own dashboard inside the page, for tests: `sollol-dashboard` as a process of its own, and jobs in RQ."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from fabric import WorkerProcess, output_of, program
from waiting import wait_until

_START = """
import sys
from sollol_coordinator.page import rq_pages
from sollol_coordinator.page.cli import main
{before}
main(sys.argv[1:])
"""
# RQ reads its prefix when it is imported, so it has to be a process of its own.
_PUT = """
import os, pickle, sys
from pathlib import Path
from sollol_broker.url import parse
from sollol_coordinator.rq_prefix import keep_rq_inside
url = parse(sys.argv[1])
keep_rq_inside(url.fabric)
from rq import Queue
from rq.results import Result
from rq.serializers import JSONSerializer
from sollol_coordinator.sync_redis import connect

class Touch:
    def __reduce__(self):
        return Path(sys.argv[2]).touch, ()

redis = connect(url)
queue = Queue("groups", connection=redis, serializer=JSONSerializer)
markup = "<img src=x onerror='window.hit=1'><script>window.hit=1</script>"
for name in ("one", "two"):
    queue.enqueue("os.getcwd", job_id=name, description=f"form {name} {markup}")
evil = queue.enqueue("os.getcwd", job_id="evil")
redis.hset(evil.key, mapping={"data": pickle.dumps(Touch()), "meta": pickle.dumps(Touch())})
failed = queue.enqueue("os.getcwd", job_id="failed")
queue.remove(failed)
failed.set_status("failed")
queue.failed_job_registry.add(failed)
Result.create_failure(failed, 600, "CannotForm: no memory")
"""


def put_control_jobs(redis_url: str, touched: Path) -> None:
    """Three jobs in RQ's queue `groups`, and one that failed.

    `one` and `two` are described in markup; `evil` makes the file `touched` when it is unpickled.
    """
    output_of(_PUT, redis_url, str(touched))


@asynccontextmanager
async def page_process(
    log: Path, redis_url: str, *arguments: str, before: str = "", environment: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, WorkerProcess]]:
    """`sollol-dashboard` on a free port; `before`: a line of Python that runs first."""
    code = log.with_suffix(".py")
    code.write_text(_START.format(before=before))
    told = {"PYTHONPATH": str(code.parent), **(environment or {})}
    command = ("--port", "0", "--redis", redis_url, *arguments)
    async with program(log, code.stem, *command, environment=told) as process:
        await wait_until(
            lambda: "the page is at http" in process.said() or process.process.returncode is not None,
            timeout=60,
            what="the page to start",
        )
        assert "the page is at http" in process.said(), process.said()
        url = process.said().partition("the page is at ")[2].split(",")[0]
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
            yield http, process
