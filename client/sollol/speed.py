"""How fast answers come: through the fabric, and from the same LLM servers asked directly, each in turn."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx

from sollol_broker.errors import InvalidJob, SollolError
from sollol_broker.names import canonical_model
from sollol_client import AsyncClient

Ask = Callable[[int], Awaitable["Answer"]]
_TOPICS = ("the sea", "old trains", "a garden in winter", "bread", "the night sky", "a small town")
_PROBE_SECONDS, _ANSWER_SECONDS = 3.0, 600.0
# llama-server closes an idle connection after 5 s.
_KEPT_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as its reader saw it: seconds until its first piece, and until its end."""

    first_seconds: float
    seconds: float
    tokens: int


@dataclass(slots=True)
class Way:
    """What came of all requests that went one way.

    Attributes:
        seconds: for which requests were under way. failed: how often, by reason.
    """

    name: str
    answers: list[Answer] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Answers."""
        return len(self.answers) / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of all answers together."""
        return sum(each.tokens for each in self.answers) / self.seconds if self.seconds else 0.0

    def first_seconds(self, share: float) -> float | None:
        """The time to the first piece that this share of the answers kept to."""
        return _at(share, [each.first_seconds for each in self.answers])

    def whole_seconds(self, share: float) -> float | None:
        """The time to the end that this share of the answers kept to."""
        return _at(share, [each.seconds for each in self.answers])


@dataclass(frozen=True, slots=True)
class Server:
    """An LLM server with OpenAI's API, and the name under which it has the model."""

    url: str
    model: str


async def compare(ways: Sequence[tuple[Way, Ask]], count: int, at_once: int) -> None:
    """Send `count` requests each way, so many at once; each way has its turn early and late, after one to warm up.

    Raises:
        SollolError: already that one failed.
    """
    for way, ask in ways:
        try:
            await ask(0)
        except httpx.HTTPError as error:
            raise SollolError(
                f"{way.name}: the first request failed: {str(error) or type(error).__name__}"
            ) from error
    halves = (count - count // 2, count // 2)
    numbers = iter(range(1, 2 * count * len(ways) + 1))
    for half, order in zip(halves, (ways, tuple(reversed(ways))), strict=True):
        for way, ask in order:
            await _many(way, ask, [next(numbers) for _ in range(half)], at_once)


async def servers_of(urls: Sequence[str], model: str) -> list[Server]:
    """Those of these addresses where a server has the model."""
    async with httpx.AsyncClient(trust_env=False, timeout=_PROBE_SECONDS) as http:
        found = await asyncio.gather(*(_server(http, url.rstrip("/"), model) for url in dict.fromkeys(urls)))
    return [each for each in found if each is not None]


def through_fabric(client: AsyncClient, model: str, tokens: int) -> Ask:
    """Ask the fabric."""

    async def ask(number: int) -> Answer:
        began, first = time.perf_counter(), 0.0
        options = {"temperature": 0, "num_predict": tokens}
        job = client.submit(chat=_prompt(number), model=model, stream=True, options=options)
        async for piece in job:
            first = first or (time.perf_counter() if piece else 0.0)
        result = await job
        ended = time.perf_counter()
        return Answer((first or ended) - began, ended - began, int(result.get("eval_count") or 0))

    return ask


def directly(http: httpx.AsyncClient, servers: Sequence[Server], tokens: int) -> Ask:
    """Ask these servers, each in turn."""

    async def ask(number: int) -> Answer:
        server = servers[number % len(servers)]
        body = {
            "model": server.model,
            "messages": [{"role": "user", "content": _prompt(number)}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_tokens": tokens,
        }
        began, first, pieces, told = time.perf_counter(), 0.0, 0, 0
        async with http.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                told = (event.get("usage") or {}).get("completion_tokens") or told
                if event.get("choices") and event["choices"][0].get("delta", {}).get("content"):
                    first, pieces = first or time.perf_counter(), pieces + 1
        ended = time.perf_counter()
        return Answer((first or ended) - began, ended - began, told or pieces)

    return ask


def direct_client() -> httpx.AsyncClient:
    """For `directly`."""
    limits = httpx.Limits(max_connections=None, keepalive_expiry=_KEPT_SECONDS)
    return httpx.AsyncClient(trust_env=False, timeout=_ANSWER_SECONDS, limits=limits)


async def _many(way: Way, ask: Ask, numbers: Sequence[int], at_once: int) -> None:
    room = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with room:
            try:
                way.answers.append(await ask(number))
            except httpx.HTTPStatusError as error:
                way.failed[f"HTTP {error.response.status_code}"] += 1
            except (SollolError, httpx.HTTPError) as error:
                way.failed[type(error).__name__] += 1

    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in numbers))
    way.seconds += time.perf_counter() - began


async def _server(http: httpx.AsyncClient, url: str, model: str) -> Server | None:
    try:
        answer = await http.get(f"{url}/v1/models")
        names = [str(each["id"]) for each in answer.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return None
    return next((Server(url, name) for name in names if _canonical(name) == canonical_model(model)), None)


def _canonical(name: str) -> str:
    try:
        return canonical_model(name)
    except InvalidJob:
        return ""


def _prompt(number: int) -> str:
    """It begins with its own number, so that no way profits from what another left in a server's cache."""
    return (
        f"{90_000 + 37 * number} is my number. Write a few sentences about {_TOPICS[number % len(_TOPICS)]}."
    )


def _at(share: float, values: list[float]) -> float | None:
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
