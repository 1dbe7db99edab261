"""The process that runs control jobs of one queue: `python -m sollol_coordinator.control_worker QUEUE`.

A coordinator starts one for each queue: batches do not wait for a group that takes minutes to form.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from . import batch_jobs, control_jobs
from .control_jobs import url_of_environment
from .rq_prefix import keep_rq_inside

# The process looks for work again after so long without, in case a wake-up was lost.
_WORKER_TTL_SECONDS = 60
_QUEUES: dict[str, Callable[..., Any]] = {
    control_jobs.QUEUE: control_jobs.form_group,
    batch_jobs.QUEUE: batch_jobs.drive_batches,
}


def main() -> None:
    """Run jobs until stopped."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(message)s", stream=sys.stderr
    )
    url = url_of_environment()
    keep_rq_inside(url.fabric)
    # Not before the prefix is set: RQ reads it when it is imported.
    from .safe_jobs import allowing, safe_queue, safe_worker
    from .sync_redis import connect

    connection = connect(url)
    name = sys.argv[1]
    jobs = allowing([_QUEUES[name]])
    queue = safe_queue(name, connection, jobs, fabric=url.fabric)
    safe_worker([queue], connection, jobs, worker_ttl=_WORKER_TTL_SECONDS).work(logging_level="WARNING")


if __name__ == "__main__":
    main()
