"""AsyncJob: what a coroutine sees of a job."""

from __future__ import annotations

from sollol_broker.outcome import Routing, pack_answer
from sollol_broker.words import JobState
from sollol_client import AsyncJob
from sollol_client.follow import Follower
from sollol_client.receiving import end_entry

_ROUTING = Routing("n1", "w1", "ollama", 1, "generation", 0.0, 1.0)


async def test_a_cancel_that_comes_too_late_leaves_the_answer() -> None:
    async def cancel(job_id: str) -> str:
        return "done"

    job, follower = AsyncJob("j1", cancel), Follower("j1")
    assert not await job.cancel()
    assert not job.done()
    follower.take(end_entry(JobState.DONE, pack_answer({"response": "yes"}, _ROUTING)))
    job.on_end(follower)
    assert (await job).text == "yes"
    assert not job.cancelled()
