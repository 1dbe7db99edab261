"""Clients that come and go: attach from another process, close, fork, Ctrl-C, and no Redis at all."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import redis

from fabric import Town, output_of, script, town, until
from sollol import AsyncClient, Client
from sollol_broker.errors import BrokerUnavailable, ClientClosed, JobLost
from sollol_broker.keys import Keys
from sollol_broker.words import JobState

FOX = "the quick brown fox jumps over the lazy dog"

ATTACH = """
import sys
from sollol import Client
with Client(sys.argv[1]) as client:
    job = client.attach(sys.argv[2])
    print("attached", flush=True)
    print("|".join(job))
    print(job.result(timeout=30).text, job.state)
"""

FORK = """
import os, sys, warnings
from sollol import Client
warnings.simplefilter("ignore", DeprecationWarning)
client = Client(sys.argv[1], app="forker")
before = client.submit(chat="before", model="tiny")
assert before.result(timeout=30).text
pid = os.fork()
answer = client.submit(chat="after", model="tiny").result(timeout=30).text
print("child" if pid == 0 else "parent", answer, flush=True)
if pid:
    assert os.waitpid(pid, 0)[1] == 0
    print("parent again", client.submit(chat="later", model="tiny").result(timeout=30).text, flush=True)
"""

INTERRUPTED = """
import sys
from sollol import Client
client = Client(sys.argv[1])
job = client.submit(chat="hi", model="tiny")
print(job.id, flush=True)
job.result()
"""


@pytest.fixture
def fabric(redis_url: str) -> Iterator[Town]:
    with town(redis_url) as built:
        yield built


@pytest.fixture
def client(fabric: Town) -> Iterator[Client]:
    with Client(fabric.url, app="tests") as made:
        yield made


@pytest.mark.parametrize("stream", [True, False])
def test_another_process_attaches_while_it_runs_and_after_its_end(
    fabric: Town, client: Client, stream: bool
) -> None:
    fabric.hold()
    job = client.submit(chat="hi", model="tiny", stream=stream)
    with script(ATTACH, fabric.url, job.id) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "attached\n"
        fabric.go()
        printed, errors = other.communicate(timeout=20)
    assert errors == ""
    pieces, answer = printed.splitlines()
    assert pieces.replace("|", "") == job.result(timeout=30).text == FOX
    assert answer == f"{FOX} done"
    _, again, same = output_of(ATTACH, fabric.url, job.id).splitlines()
    assert same == answer
    if stream:
        assert "|" in pieces
        assert again == pieces
    else:  # in one piece, unless it was slow: then what there was of it was kept for another worker
        assert again.replace("|", "") == FOX


def test_attach_to_nothing(client: Client) -> None:
    with pytest.raises(JobLost, match="nobody"):
        client.attach("nobody").result(timeout=30)


def test_close_ends_waiting_but_not_the_job(fabric: Town) -> None:
    fabric.hold()
    client = Client(fabric.url)
    job = client.submit(chat="hi", model="tiny", stream=True)
    until(lambda: fabric.asked == 1, "it to run")
    errors: list[BaseException | None] = []
    waiters = [
        threading.Thread(target=lambda: errors.append(job.exception())),
        threading.Thread(target=lambda: errors.append(_raised_by_reading(job))),
    ]
    for waiter in waiters:
        waiter.start()
    client.close()
    for waiter in waiters:
        waiter.join(10)
    assert [type(error) for error in errors] == [ClientClosed, ClientClosed]
    with pytest.raises(ClientClosed):
        client.submit(chat="hi", model="tiny")
    fabric.go()
    with Client(fabric.url) as other:
        assert other.attach(job.id).result(timeout=30).text == FOX


def test_jobs_of_a_client_that_closes_at_once_are_run_all_the_same(fabric: Town) -> None:
    with Client(fabric.url) as client:
        jobs = [client.submit(chat="x" * 2000, model="tiny") for _ in range(200)]
        # These are looked at before they are sent.
        jobs += [client.submit(chat="hi", model="tiny", requires={"node": "n1"}) for _ in range(20)]
    with Client(fabric.url) as other:
        answers = [other.attach(job.id).result(timeout=30).text for job in jobs]
    assert answers == [FOX] * 220


def test_a_cancel_is_sent_even_when_the_client_closes_at_once(fabric: Town) -> None:
    fabric.hold()
    with Client(fabric.url) as client:
        job = client.submit(chat="hi", model="tiny", requires={"node": "n1"})
        job.cancel()
    with Client(fabric.url) as other:
        until(lambda: _state(other, job.id) in (None, JobState.CANCELLED), "it to be cancelled")
        assert fabric.ollama.seen.generating == 0


def test_both_halves_of_a_fork_work_on(fabric: Town) -> None:
    lines = output_of(FORK, fabric.url).splitlines()
    assert sorted(lines) == [f"child {FOX}", f"parent again {FOX}", f"parent {FOX}"]


def test_without_redis_the_error_comes_soon_and_says_what_to_do() -> None:
    began_at = time.monotonic()
    with Client("redis://me:hunter2@127.0.0.1:1/0", connect_timeout=1.0) as client:
        with pytest.raises(BrokerUnavailable) as failed:
            client.submit(chat="hi", model="tiny")
        assert time.monotonic() - began_at < 15
        said = str(failed.value)
        assert "redis://me:***@127.0.0.1:1/0" in said
        assert "hunter2" not in said
        assert "sollol up" in said


def test_ctrl_c_ends_the_waiting_and_names_the_job(fabric: Town, client: Client) -> None:
    fabric.hold()
    with script(INTERRUPTED, fabric.url) as process:
        assert process.stdout is not None
        job_id = process.stdout.readline().strip()
        until(lambda: fabric.asked == 1, "it to run")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in errors
    assert re.search(rf"job {job_id} goes on: attach\('{job_id}'\) finds its answer", errors)
    fabric.go()
    assert client.attach(job_id).result(timeout=30).text == FOX


async def test_the_clients_inbox_goes_with_it(redis_url: str) -> None:
    async with AsyncClient(redis_url) as client:
        inbox = Keys().inbox(client.session.inbox_name)
        with redis.Redis.from_url(redis_url) as raw:
            assert raw.exists(inbox)
            await client.close()
            assert not raw.exists(inbox)


def _raised_by_reading(job: object) -> BaseException | None:
    try:
        list(job)  # type: ignore[call-overload]  # a job is iterable
    except ClientClosed as error:
        return error
    return None


def _state(client: Client, job_id: str) -> JobState | None:
    view = client.job(job_id)
    return view.state if view is not None else None
