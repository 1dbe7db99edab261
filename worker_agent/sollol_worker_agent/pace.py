"""How fast a model runs here: learned from what the backend reports after each job. Pure: no clock, no Redis.

A job that shares the server with others takes longer, and not each part of it alike: a token of the answer waits
while the server computes somebody else's prompt. So how much `n` busy slots slow each other down is learned from
whole jobs; what a prompt token costs in proportion to an output token, mostly from jobs that ran alone.

All figures start from an expectation (`priors.py`) and return to it when a model was not used for days: the
driver, the cooling or the owner may have changed meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from .aged import Line, Mean

# Jobs that an expectation is worth. Little, so that a single real job outweighs any table of GPUs.
_TRUST = 0.2
# The same for "no job fails": one failure alone should not make a node look hopeless.
_SUCCESS_TRUST = 4.0
# Below it, dearer would only mean that the model never gets a chance to do better.
_LEAST_SUCCESS = 0.2
# Seconds after which what was learned counts half, and those that are too few to count.
_HALF_LIFE_SECONDS = 86_400.0
_AGING_STEP_SECONDS = 60.0
# Share by which each further busy slot slows the others down; measured on a GPU whose four slots together
# gave 1.7 times the tokens of one, and much less where the backend batches well.
_USUAL_SLOWDOWN = 0.1
_MOST_SLOWDOWN = 2.0
# Tokens from which a job counts in full. Of a few tokens most of the time is not theirs.
_FULL_PROMPT, _FULL_OUTPUT = 64.0, 32.0
# Jobs from which on a figure is trusted to judge others by. What is only expected may be wrong by any factor.
_SURE = 3.0
# A single job may look at most this many times faster or slower than is known: a laptop that sleeps in the
# middle of an answer must not be remembered for weeks.
_MOST_STEP = 8.0

Sums = TypeVar("Sums", Mean, Line)
_NO_MEAN, _NO_LINE = Mean(), Line()


@dataclass(frozen=True, slots=True)
class Expected:
    """What a model should cost before it has run: a small GPU's figures unless more is known.

    Attributes:
        prompt_ms, output_ms: per token, when nothing else runs. load_ms: to bring it into memory.
    """

    prompt_ms: float = 1.0
    output_ms: float = 20.0
    load_ms: float = 4000.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What one model costs on one node.

    Attributes:
        expected: before any job.
        prompt, output: ms per token, when nothing else runs. load: ms to load.
        crowd: time taken, as a multiple of what prompt and output say, over the other busy slots.
        success: 1 for a job that worked, 0 for one that failed. errors: see `error`.
        jobs_seen: jobs that worked, ever.
        as_of: the moment (seconds since 1970) for which the sums are right; 0 = none.
    """

    expected: Expected = Expected()
    prompt: Mean = _NO_MEAN
    output: Mean = _NO_MEAN
    crowd: Line = _NO_LINE
    load: Mean = _NO_MEAN
    success: Mean = _NO_MEAN
    errors: Mean = _NO_MEAN
    jobs_seen: int = 0
    as_of: float = 0.0

    @property
    def prompt_ms(self) -> float:
        """Per prompt token, when nothing else runs."""
        return self.prompt.value(self.expected.prompt_ms, _TRUST)

    @property
    def output_ms(self) -> float:
        """Per output token, when nothing else runs."""
        return self.output.value(self.expected.output_ms, _TRUST)

    @property
    def slowdown(self) -> float:
        """Share by which each other busy slot slows a job down, 0 to 2."""
        return self.crowd.fitted_slope(_USUAL_SLOWDOWN, _MOST_SLOWDOWN)

    @property
    def load_ms(self) -> float:
        """To bring the model into memory."""
        return self.load.value(self.expected.load_ms, _TRUST)

    @property
    def success_rate(self) -> float:
        """Of the last jobs, 0 to 1."""
        return self.success.value(1.0, _SUCCESS_TRUST)

    @property
    def price(self) -> float:
        """What an answer costs as a multiple of a try, since tries that fail are made again; 1 to 5."""
        return 1 / max(_LEAST_SUCCESS, self.success_rate)

    @property
    def error(self) -> float:
        """By how much predictions were off lately: mean of |ln(actual / predicted)|; 0 = not known."""
        return self.errors.value(0.0, 0.0)

    def after(
        self,
        closing: Mapping[str, Any],
        *,
        busy: float = 1.0,
        predicted_ms: float = 0.0,
        actual_ms: float = 0.0,
        cached_tokens: float = 0.0,
    ) -> Pace:
        """With one more job that worked.

        1. How much longer it took than it would have alone, as far as that is known.
        2. What a token of the prompt and of the answer took, set right for the others that ran.
        3. A prediction counts only with its outcome.

        Args:
            closing: Ollama's closing fields (durations in ns); missing or odd ones teach nothing.
            busy: slots at work while it ran, its own included; may be a mean.
            predicted_ms: what had been predicted; 0 = nothing. actual_ms: what it took, loading included.
            cached_tokens: of its prompt, that the backend still knew.
        """
        others = max(0.0, busy - 1.0)
        prompt, output = _parts_of(closing, actual_ms, cached_tokens)
        took_ms = prompt.took_ms + output.took_ms
        known_ms = self.prompt_ms * prompt.tokens + self.output_ms * output.tokens
        ratio = took_ms / known_ms if known_ms > 0 else 1.0
        pace = self
        if self._is_sure_of(prompt, output):  # 1
            believable = _believable(ratio, 1 + self.slowdown * others)
            pace = replace(pace, crowd=self.crowd.plus(others, believable, max(prompt.weight, output.weight)))
        slow = 1 + pace.slowdown * others
        pace = replace(  # 2
            pace,
            prompt=_learned(self.prompt, self.prompt_ms, prompt, ratio, slow, others),
            output=_learned(self.output, self.output_ms, output, ratio, slow, others),
        )
        if predicted_ms > 0 and actual_ms > 0:  # 3
            pace = replace(pace, errors=self.errors.plus(abs(math.log(actual_ms / predicted_ms))))
        return replace(pace, success=self.success.plus(1.0), jobs_seen=self.jobs_seen + 1)

    def failed(self) -> Pace:
        """With one more job that the backend could not answer."""
        return replace(self, success=self.success.plus(0.0))

    def load_seen(self, took_ms: float) -> Pace:
        """With one more loading that took so long."""
        if not (math.isfinite(took_ms) and took_ms > 0):
            return self
        sure = self.load.weight >= _SURE
        return replace(self, load=self.load.plus(_believable(took_ms, self.load_ms) if sure else took_ms))

    def aged(self, now: float) -> Pace:
        """As it stands at `now` (seconds since 1970): what was learned counts half after each day."""
        if self.as_of <= 0 or now <= self.as_of:  # a clock that was set back makes nothing younger
            return replace(self, as_of=now)
        if now - self.as_of < _AGING_STEP_SECONDS:
            return self
        factor = 0.5 ** ((now - self.as_of) / _HALF_LIFE_SECONDS)
        faded = {name: getattr(self, name).faded(factor) for name in _SUMS}
        return replace(self, **faded, as_of=now)

    def to_fields(self) -> dict[str, str]:
        """As texts for Redis; what was expected is left out, for the next start knows it better."""
        sums = {name: " ".join(f"{part:.9g}" for part in _parts(getattr(self, name))) for name in _SUMS}
        return {**sums, "jobs_seen": str(self.jobs_seen), "as_of": f"{self.as_of:.3f}"}

    @classmethod
    def from_fields(cls, given: Mapping[str, str], expected: Expected) -> Pace:
        """What `to_fields` wrote. Parts that make no sense are as if never learned."""
        as_of, jobs_seen = _floats(given.get("as_of", ""), 1), _floats(given.get("jobs_seen", ""), 1)
        if as_of is None:  # of unknown age: worthless
            return cls(expected)
        return cls(
            expected,
            prompt=_sums(Mean, given.get("prompt", "")),
            output=_sums(Mean, given.get("output", "")),
            crowd=_sums(Line, given.get("crowd", "")),
            load=_sums(Mean, given.get("load", "")),
            success=_sums(Mean, given.get("success", "")),
            errors=_sums(Mean, given.get("errors", "")),
            jobs_seen=int(jobs_seen[0]) if jobs_seen else 0,
            as_of=as_of[0],
        )

    def _is_sure_of(self, prompt: _Part, output: _Part) -> bool:
        """Whether what such a job takes is known well enough to tell what slowed it down."""
        known = (
            part.tokens <= 0 or mean.weight >= _SURE
            for part, mean in ((prompt, self.prompt), (output, self.output))
        )
        return prompt.tokens + output.tokens > 0 and all(known)


_SUMS = ("prompt", "output", "crowd", "load", "success", "errors")


def _number(closing: Mapping[str, Any], name: str) -> float:
    """A number above 0, or 0 for all else that a backend may have said."""
    value = closing.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if 0 < value < math.inf else 0.0


@dataclass(frozen=True, slots=True)
class _Part:
    """The prompt or the answer of one job; both 0 when it tells nothing.

    Attributes:
        weight: 0 to 1: how much its time says about that of a token.
    """

    tokens: float = 0.0
    took_ms: float = 0.0
    weight: float = 0.0

    @classmethod
    def of(cls, tokens: float, took_ms: float, full: float) -> _Part:
        return cls(tokens, took_ms, min(1.0, tokens / full)) if tokens > 0 and took_ms > 0 else cls()


def _parts_of(closing: Mapping[str, Any], actual_ms: float, cached_tokens: float) -> tuple[_Part, _Part]:
    """Prompt and answer. Embeddings tell no time for their prompt; there it is all but the loading."""
    prompt_ms = _number(closing, "prompt_eval_duration") / 1e6
    if prompt_ms <= 0 and "eval_count" not in closing:
        whole_ms = _number(closing, "total_duration") / 1e6 or max(0.0, actual_ms)
        prompt_ms = whole_ms - _number(closing, "load_duration") / 1e6
    new_tokens = _number(closing, "prompt_eval_count") - max(0.0, cached_tokens)
    output_ms = _number(closing, "eval_duration") / 1e6
    return (
        _Part.of(new_tokens, prompt_ms, _FULL_PROMPT),
        _Part.of(_number(closing, "eval_count"), output_ms, _FULL_OUTPUT),
    )


def _learned(mean: Mean, known_ms: float, part: _Part, ratio: float, slow: float, others: float) -> Mean:
    """With one more job's time per token.

    Beside others the parts are seen through each other, so there the whole job counts the more: both parts are
    taken to be slower or faster than known by the same factor.
    """
    if part.tokens <= 0:
        return mean
    each = part.took_ms / part.tokens / slow
    if mean.weight >= _SURE:
        alone = 1 / (1 + others) ** 2
        each = _believable(alone * each + (1 - alone) * known_ms * ratio / slow, known_ms)
    return mean.plus(each, part.weight)


def _believable(observed: float, known: float) -> float:
    return min(max(observed, known / _MOST_STEP), known * _MOST_STEP)


def _parts(sums: Mean | Line) -> list[float]:
    return [getattr(sums, each.name) for each in fields(sums)]


def _floats(text: str, count: int) -> list[float] | None:
    """So many numbers from 0 up, or None."""
    try:
        numbers = [float(part) for part in text.split()]
    except ValueError:
        return None
    good = len(numbers) == count and all(0 <= number < math.inf for number in numbers)
    return numbers if good else None


def _sums(kind: type[Sums], text: str) -> Sums:
    numbers = _floats(text, len(fields(kind)))
    return kind() if numbers is None else kind(*numbers)
