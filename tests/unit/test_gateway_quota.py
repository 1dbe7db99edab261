"""What is left of a quota: how submit tells it, and how a gateway does."""

from __future__ import annotations

import pytest

from sollol_broker.quota_left import Left, QuotaLeft, quota_left
from sollol_client.gateway.refusals import quota_headers


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ([], None),
        ([b"-1", b"0", b"0", b"-1", b"0", b"0"], None),
        ([b"3", b"2", b"0", b"-1", b"0", b"0"], QuotaLeft(Left(3, 2, 0.0))),
        ([60, 59, 1500, 9, -4, 60000], QuotaLeft(Left(60, 59, 1.5), Left(9, -4, 60.0))),
    ],
)
def test_the_end_of_a_reply_tells_what_is_left(told: list[bytes | int], left: QuotaLeft | None) -> None:
    assert quota_left(told) == left


def test_headers_name_each_limit_and_the_nearest() -> None:
    left = QuotaLeft(Left(60, 59, 1.5), Left(1000, 10, 59.4))
    assert quota_headers(left) == {
        "X-RateLimit-Limit-Requests": "60",
        "X-RateLimit-Remaining-Requests": "59",
        "X-RateLimit-Reset-Requests": "1.500s",
        "X-RateLimit-Limit-Tokens": "1000",
        "X-RateLimit-Remaining-Tokens": "10",
        "X-RateLimit-Reset-Tokens": "59.400s",
        "RateLimit-Limit": "1000",
        "RateLimit-Remaining": "10",
        "RateLimit-Reset": "60",
    }


def test_a_refused_request_has_nothing_left_until_it_may_be_tried_again() -> None:
    left = QuotaLeft(Left(20, -1, 0.0))
    headers = quota_headers(left, retry_after=2.1)
    assert headers["X-RateLimit-Remaining-Requests"] == headers["RateLimit-Remaining"] == "0"
    assert headers["RateLimit-Reset"] == "3"


def test_without_a_quota_nothing_is_said() -> None:
    assert quota_headers(None) == quota_headers(None, 3.0) == {}
