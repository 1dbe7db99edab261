"""Numbers that backends are asked with: none goes out that could break one. Pure.

LLM servers have crashed, and written where they must not, on numbers that nobody would send on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .refusals import Refused

_INT = 2**31 - 1

_MOST_TOKENS = ("num_predict", "n_predict", "max_tokens", "max_completion_tokens", "max_output_tokens")
# Least and most of what is known, among the options and beside them; what is not here goes out as it is.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_MOST_TOKENS, (-2, _INT)),
    **dict.fromkeys(
        ("num_keep", "n_keep", "repeat_last_n", "penalty_last_n", "dry_penalty_last_n"), (-1, _INT)
    ),
    **dict.fromkeys(("n_discard", "min_keep", "n_indent", "dry_allowed_length", "n_cmpl"), (0, 2**20)),
    **dict.fromkeys(("num_ctx", "num_batch", "num_thread", "draft_num_predict"), (0, 2**27)),
    **dict.fromkeys(("num_gpu", "main_gpu", "id_slot"), (-1, 2**16)),
    **dict.fromkeys(("n_probs", "top_logprobs"), (0, 1000)),
    "top_k": (-1, _INT),
    "seed": (-(2**63), 2**63 - 1),
    "n": (1, 128),
    "top_n": (1, 2**20),
    "best_of": (1, 128),
    "mirostat": (0, 2),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "tfs_z", "xtc_probability", "xtc_threshold"), (0, 1)),
    **dict.fromkeys(("temperature", "dynatemp_range", "dynatemp_exponent"), (0, 1000)),
    **dict.fromkeys(("repeat_penalty", "presence_penalty", "frequency_penalty"), (-1000, 1000)),
    **dict.fromkeys(
        ("dry_multiplier", "dry_base", "mirostat_tau", "mirostat_eta", "top_n_sigma"), (-1, 1000)
    ),
    "dimensions": (0, 2**20),
}


def check_numbers(payload: Mapping[str, Any]) -> None:
    """Check the numbers of a request, in `options` and beside them.

    Raises:
        Refused: 400, one is out of its range.
    """
    options = payload.get("options")
    for fields in (payload, options if isinstance(options, Mapping) else {}):
        for name, value in fields.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            least, most = _RANGES.get(name, (-(2**63), 2**64 - 1))
            if not least <= value <= most:
                raise Refused(400, f'option "{name}" must be between {least:g} and {most:g}', field=name)
