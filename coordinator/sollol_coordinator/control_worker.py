"""The process that runs control jobs: `python -m sollol_coordinator.control_worker`, which a coordinator starts."""

from __future__ import annotations

import logging
import sys

from .control_jobs import QUEUE, form_group, url_of_environment
from .rq_prefix import keep_rq_inside

# The process looks for work again after so long without, in case a wake-up was lost.
_WORKER_TTL_SECONDS = 60


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
    jobs = allowing([form_group])
    queue = safe_queue(QUEUE, connection, jobs, fabric=url.fabric)
    safe_worker([queue], connection, jobs, worker_ttl=_WORKER_TTL_SECONDS).work(logging_level="WARNING")


if __name__ == "__main__":
    main()
