"""What a claim costs Redis in a large fabric against a small one, whom a submit wakes, and what a waiting job weighs.

Server time of each claim, by Redis' own count: neither this process nor the network is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from sollol_broker import parse_url
from sollol_broker.broker import Broker, ClaimRequest, LaneOffer, ModelOffer, Submission, Used
from sollol_broker.claim_rule import share_of
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.fair_order import head_start_ms
from sollol_broker.names import key_part

from .report import Aim, Outcome, Table, percentile

_MODELS = tuple(f"model-{number}" for number in range(50))
_LARGE, _SMALL = (1_000, 1_000_000), (10, 1_000)  # workers, jobs
_EACH = (len(_MODELS), 5)  # models that a worker serves
_CLAIMS = 2_000
_IDLE_SUBMITS = 10
_AT_ONCE = 2_000
_SEED = 7
_TTL_MS = 3_600_000
_PROMPT_CHARS = 1_200
# ms per prompt token and per output token: a large GPU, a middling one, a CPU box.
_SPEEDS = ((0.3, 10.0), (0.6, 22.0), (14.0, 110.0))


@dataclass(slots=True)
class _Fabric:
    """A broker with workers that exist only as adverts; each serves `each` of the models."""

    broker: Broker
    workers: int
    jobs: int
    each: int = 0
    submitted: int = 0

    def models(self, number: int) -> tuple[str, ...]:
        """What a worker serves: others than its neighbour, but each model has as many servers."""
        return tuple(_MODELS[(number * self.each + place) % len(_MODELS)] for place in range(self.each))

    def request(self, number: int) -> ClaimRequest:
        """What a worker with one free slot asks for: its first model is loaded, the others are not."""
        prompt_ms, output_ms = _SPEEDS[number % len(_SPEEDS)]
        offers = tuple(
            ModelOffer(key_part(name), 8_000.0 * (place > 0), prompt_ms, output_ms, 0.3)
            for place, name in enumerate(self.models(number))
        )
        lane = LaneOffer(1, offers, busy=number % 2)
        return ClaimRequest(f"w{number}", f"n{number}", uuid.uuid4().hex, 60_000, (lane,), 1)

    async def advertise(self, number: int) -> None:
        """Tell the fabric of a worker."""
        prompt_ms, output_ms = _SPEEDS[number % len(_SPEEDS)]
        shares = {
            name: share_of(load_ms=8_000 * (place > 0), prompt_ms=prompt_ms, output_ms=output_ms)
            for place, name in enumerate(self.models(number))
        }
        fields = {"state": "up"}
        await self.broker.advertise(
            f"w{number}",
            f"n{number}",
            ttl_ms=_TTL_MS,
            worker_fields=fields,
            node_fields=fields,
            models=shares,
        )

    async def park(self, number: int) -> None:
        """Let a worker find nothing and wait in line."""
        await self.broker.claim(self.request(number))

    async def submit(self, number: int) -> None:
        """Add a job."""
        await self.broker.submit(
            Submission(
                job_id=f"job-{number}",
                model=_MODELS[number % len(_MODELS)],
                app=f"app-{number % 20}",
                priority=5,
                head_start_ms=head_start_ms(5),
                stream=False,
                envelope=b"x" * _PROMPT_CHARS,
                inbox="",
                result_ttl_ms=_TTL_MS,
                prompt_chars=_PROMPT_CHARS,
                output_cap=256,
            )
        )

    async def work(self, number: int) -> float:
        """Claim, finish, and let another job come; microseconds of server time of the claim."""
        before = await self._function_us()
        got = await self.broker.claim(self.request(number))
        spent = await self._function_us() - before
        for claimed in got.jobs if got else ():
            await self.broker.finish(claimed.lease, b"done", used=Used(300, 200, 2_000.0))
            await self.more(1)
        return spent

    async def more(self, count: int) -> None:
        """Submit so many jobs."""
        numbers = range(self.submitted, self.submitted + count)
        self.submitted += count
        await _for_each(self.submit, numbers)

    async def serve(self, each: int) -> None:
        """Let all workers serve so many models from now on; all of them are at work, none waits in line."""
        self.each = each
        await _for_each(self.advertise, range(self.workers))
        if self.submitted:
            for number in range(self.workers):
                await self.work(number)

    async def woken_per_submit(self) -> float:
        """How many workers each of a few jobs wakes, when all wait in line."""
        await _for_each(self.park, range(self.workers))
        quiet = await self._inbox_entries()
        await self.more(_IDLE_SUBMITS)
        return (await self._inbox_entries() - quiet) / _IDLE_SUBMITS

    async def fill(self) -> float:
        """Submit all jobs; bytes that each of them weighs."""
        before, count = await self._bytes_used(), self.jobs - self.submitted
        await self.more(count)
        return (await self._bytes_used() - before) / count

    async def _function_us(self) -> float:
        """Server time of all function calls so far."""
        return await self._info("commandstats", "cmdstat_fcall:", "usec=")

    async def _bytes_used(self) -> float:
        return await self._info("memory", "used_memory:", "")

    async def _info(self, section: str, *marks: str) -> float:
        text = (await self.broker.link.call("INFO", section)).decode()
        for mark in marks:
            text = text.split(mark, 1)[1] if mark else text
        return float(re.match(r"[\d.]+", text)[0])  # type: ignore[index]  # Redis always says a number there

    async def _inbox_entries(self) -> int:
        streams = [self.broker.keys.inbox(f"w{number}") for number in range(self.workers)]
        return sum([await self.broker.link.call("XLEN", stream) for stream in streams])


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the large fabric's jobs."""
    return asyncio.run(_compared(max(10_000, round(_LARGE[1] * share))))


async def _compared(most_jobs: int) -> Outcome:
    """The two fabrics side by side, so that whatever slows this machine slows both."""
    async with _fabric(*_SMALL) as small, _fabric(_LARGE[0], most_jobs) as large:
        aims: list[Aim] = []
        weights: list[float] = []
        rows: list[tuple[str | float, ...]] = []
        for fabric in (small, large):
            await fabric.serve(_EACH[0])
            woken = await fabric.woken_per_submit()
            aims.append(Aim(f"workers that one submit wakes, of {fabric.workers:,} idle", woken, 1.0))
            weights.append(await fabric.fill())
        for each in _EACH:
            spent: tuple[list[float], list[float]] = ([], [])
            for fabric in (small, large):
                await fabric.serve(each)
            chance = random.Random(_SEED)
            for _ in range(_CLAIMS):
                for fabric, times in zip((small, large), spent, strict=True):
                    times.append(await fabric.work(chance.randrange(fabric.workers)))
            for fabric, times, weight in zip((small, large), spent, weights, strict=True):
                name = f"{fabric.workers:,} workers, {fabric.jobs:,} jobs, {each} models each"
                rows.append((name, *(percentile(times, part) for part in (0.5, 0.95, 0.99)), weight))
            tails = [percentile(times, 0.99) for times in spent]
            aims.append(Aim(f"claim p99, large to small, {each} models each", tails[1] / tails[0], 1.5, " x"))
    columns = ("fabric", "claim us p50", "p95", "p99", "bytes per waiting job")
    note = f"Server time. A waiting job's bytes include its prompt of {_PROMPT_CHARS:,} characters."
    return Outcome("scale", (Table("scale: 50 models", columns, tuple(rows)),), tuple(aims), (note,))


@contextlib.asynccontextmanager
async def _fabric(workers: int, jobs: int) -> AsyncIterator[_Fabric]:
    with EmbeddedBroker() as server:
        broker = Broker(parse_url(server.url), name="benchmarks")
        await broker.open()
        try:
            yield _Fabric(broker, workers, jobs)
        finally:
            await broker.close()


async def _for_each(act: Callable[[int], Awaitable[None]], numbers: range) -> None:
    """Do something with each number, many at once."""
    for first in range(numbers.start, numbers.stop, _AT_ONCE):
        await asyncio.gather(*map(act, range(first, min(numbers.stop, first + _AT_ONCE))))
