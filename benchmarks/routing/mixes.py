"""Traces drawn anew, seeded: kinds of traffic that the recorded ones do not show."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sollol.replay.trace import Job
from sollol_broker.words import Priority


@dataclass(frozen=True, slots=True)
class App:
    """One application's requests: medians of their lengths, spread (sigma of a log-normal), share of all jobs."""

    name: str
    prompt: float
    output: float
    share: float
    spread: float = 0.8
    burst: float = 1.0  # jobs that come together, on average
    model: str = ""
    priority: int = int(Priority.NORMAL)


def draw(apps: Sequence[App], count: int, seed: int) -> list[Job]:
    """About `count` jobs in a thousand seconds; each application comes in bursts at random times."""
    rng = random.Random(seed)
    total = sum(app.share for app in apps)
    jobs = [job for app in apps for job in _of(app, count * app.share / total, rng)]
    return sorted(jobs, key=lambda job: job.arrival_s)


def _of(app: App, count: float, rng: random.Random) -> list[Job]:
    jobs: list[Job] = []
    at, gap = 0.0, 1000.0 * app.burst / count
    while True:
        at += rng.expovariate(1 / gap)
        if at >= 1000:
            return jobs
        size = 1 if app.burst <= 1 else 1 + int(rng.expovariate(1 / (app.burst - 0.5)))
        jobs += [
            Job(
                at + 0.05 * each,
                _length(app.prompt, app.spread, rng, 32_000),
                _length(app.output, app.spread, rng, 8_000),
                app.name,
                app.model,
                priority=app.priority,
            )
            for each in range(size)
        ]


def _length(median: float, spread: float, rng: random.Random, most: int) -> int:
    return max(1, min(most, round(median * math.exp(rng.gauss(0.0, spread)))))


def chat(count: int, seed: int = 11) -> list[Job]:
    """People who chat, through one application."""
    return draw([App("chat", 600, 180, 1.0, spread=0.9)], count, seed)


def code(count: int, seed: int = 12) -> list[Job]:
    """Completions of code: long prompts, short answers, in bursts."""
    return draw([App("editor", 1800, 24, 0.7, burst=12), App("review", 2500, 150, 0.3, burst=4)], count, seed)


def reasoning(count: int, seed: int = 13) -> list[Job]:
    """Long answers of very unequal length, from six applications."""
    return draw([App(f"team{at}", 400, 1200, 1 / at, spread=1.0) for at in range(1, 7)], count, seed)


def office(count: int, seed: int = 14) -> list[Job]:
    """Chat, retrieval, extraction and summaries beside each other, each with lengths of its own."""
    apps = [
        App("chat", 500, 200, 4),
        App("retrieval", 3000, 120, 3, spread=0.4),
        App("extract", 700, 20, 4, spread=0.5, burst=6),
        App("summary", 6000, 350, 1, spread=0.5, burst=3),
        App("agent", 1500, 60, 3, burst=3),
        App("write", 200, 900, 0.7),
    ]
    return draw(apps, count, seed)


def urgency(jobs: Sequence[Job], seed: int = 15) -> list[Job]:
    """The same jobs, 30 % of them interactive (10), 50 % normal (5), 20 % batch (1)."""
    rng = random.Random(seed)
    levels = [int(Priority.CRITICAL), int(Priority.NORMAL), int(Priority.BATCH)]
    return [replace(job, priority=rng.choices(levels, (30, 50, 20))[0]) for job in jobs]


def flood(jobs: Sequence[Job], share: float = 0.3) -> list[Job]:
    """The same jobs, and an application "flood" that hands in so many more at once, a fifth into the trace."""
    at = jobs[0].arrival_s + 0.2 * (jobs[-1].arrival_s - jobs[0].arrival_s)
    rng = random.Random(16)
    more = [replace(job, arrival_s=at, app="flood") for job in rng.sample(list(jobs), int(share * len(jobs)))]
    return sorted([*jobs, *more], key=lambda job: job.arrival_s)


def spread_over(jobs: Sequence[Job], models: Sequence[str], seed: int = 17) -> list[Job]:
    """The same jobs for several models: each application mostly asks its own, the first models are asked most."""
    rng = random.Random(seed)
    weights = [1 / (at + 1) for at in range(len(models))]
    favourite: dict[str, str] = {}
    out = []
    for job in jobs:
        own = favourite.setdefault(job.app, rng.choices(models, weights)[0])
        out.append(replace(job, model=own if rng.random() < 0.6 else rng.choices(models, weights)[0]))
    return out
