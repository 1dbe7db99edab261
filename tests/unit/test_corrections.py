from __future__ import annotations

import pytest

from known_models import SMOLLM2
from sollol_coordinator.corrections import learned
from sollol_coordinator.estimate import NO_CORRECTION, Load, compute_bytes, needs_of

_LOAD = Load(2048)
_OURS_MIB = compute_bytes(SMOLLM2, _LOAD) / 2**20


def test_a_larger_buffer_than_estimated_makes_the_next_estimate_larger() -> None:
    report = {"a compute": 1.1 * _OURS_MIB, "b compute": 1.5 * _OURS_MIB, "a KV": 24.0, "b KV": 21.0}

    correction = learned(SMOLLM2, _LOAD, {"report": report, "places": [{}, {}]})

    assert correction.compute == pytest.approx(1.5, abs=0.01)
    assert correction.beyond_mib == 0.0
    plain, taught = (
        needs_of(SMOLLM2, _LOAD, [31], correction=each)[0] for each in (NO_CORRECTION, correction)
    )
    assert taught.compute_mib > 1.4 * plain.compute_mib


def test_a_larger_cache_is_remembered_per_device() -> None:
    report = {"a compute": _OURS_MIB, "a KV": 35.0, "b KV": 20.0}  # 45 MiB were estimated

    assert learned(SMOLLM2, _LOAD, {"report": report, "places": [{}, {}]}).beyond_mib == 5.0


@pytest.mark.parametrize("result", [{}, {"report": {}}, {"report": {"a KV": 1.0}, "places": [{}]}])
def test_without_a_report_nothing_is_learned(result: dict[str, object]) -> None:
    assert learned(SMOLLM2, _LOAD, result) == NO_CORRECTION


def test_nonsense_is_bounded() -> None:
    result = {"report": {"a compute": 1e9}, "places": [{}]}

    assert learned(SMOLLM2, _LOAD, result).compute == 4.0
