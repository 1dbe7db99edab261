"""How many slots of a lane were busy, on average, over the time that a job ran. Clock-free: times are handed in."""

from __future__ import annotations

from bisect import bisect_right

# Changes that are kept; twice as many before the older half is dropped.
_KEPT = 512


class Occupancy:
    """The busy slots over time.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self.busy = 0
        # When it changed, how many slot-seconds had been worked until then, and how many were busy from then on.
        self._times = [now]
        self._worked = [0.0]
        self._busy = [0]

    def change(self, busy: int, now: float) -> None:
        """From now on so many slots are busy."""
        now = max(now, self._times[-1])
        self._worked.append(self._worked[-1] + self.busy * (now - self._times[-1]))
        self._times.append(now)
        self._busy.append(busy)
        self.busy = busy
        if len(self._times) > 2 * _KEPT:
            del self._times[:_KEPT], self._worked[:_KEPT], self._busy[:_KEPT]

    def mean(self, since: float, now: float) -> float:
        """Busy slots between two moments, on average; over what is still known of that time."""
        since = max(since, self._times[0])
        if now <= since:
            return float(self.busy)
        return (self._worked_until(now) - self._worked_until(since)) / (now - since)

    def _worked_until(self, moment: float) -> float:
        at = bisect_right(self._times, moment) - 1
        return self._worked[at] + self._busy[at] * (moment - self._times[at])
