"""Puts jobs, good and bad, into RQ's queue, runs a worker until it is empty, and tells what came of them.

    python -c 'import rq_attacks; rq_attacks.main()' URL FOLDER safe|plain

RQ reads its prefix when it is imported, so it has to be a process of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from redis import Redis

from sollol_coordinator.rq_prefix import keep_rq_inside

FABRIC = "cell-2"
NOTES: list[str] = []


def add(a: int, b: int) -> int:
    """The one job on the list."""
    return a + b


def note(*_: Any) -> None:
    """The one callback on the list; it leaves a file, as the worker's children are processes."""
    (Path(sys.argv[2]) / "noted").touch()


def fail() -> None:
    """On the list, too."""
    raise ValueError("as it should")


def attack(url: str, folder: Path, how: str) -> dict[str, Any]:
    """What came of each job: its state, its result, the end of its traceback, and the file it wanted to leave."""
    keep_rq_inside(FABRIC)
    from rq import Callback, Queue, Worker
    from rq.job import Job
    from rq.serializers import JSONSerializer
    from rq.webhook import Webhook

    from sollol_coordinator.safe_jobs import allowing, safe_queue, safe_worker

    connection = Redis.from_url(url, driver_info=None)
    rogue = Queue("orders", connection=connection, serializer=JSONSerializer)
    pickling = Queue("orders", connection=connection)
    touch = {name: f"touch {folder / name}" for name in ("system", "eval", "pickled")}
    put = {
        "good": rogue.enqueue(f"{__name__}.add", 2, 3, on_success=Callback(f"{__name__}.note")),
        "failing": rogue.enqueue(f"{__name__}.fail"),
        "system": rogue.enqueue("os.system", touch["system"]),
        "eval": rogue.enqueue("builtins.eval", f"__import__('os').system({touch['eval']!r})"),
        "pickled": pickling.enqueue("os.system", touch["pickled"]),
        "success": rogue.enqueue(f"{__name__}.add", 1, 1, on_success=Callback("shutil.rmtree")),
        "failure": rogue.enqueue(f"{__name__}.fail", on_failure=Callback("os.system")),
        "stopped": rogue.enqueue(f"{__name__}.add", 1, 1, on_stopped=Callback("os.system")),
        "webhook": rogue.enqueue(
            f"{__name__}.add", 1, 1, webhooks=[Webhook("http://127.0.0.1:1/", "finished")]
        ),
        "last": rogue.enqueue(f"{__name__}.add", 20, 22),
    }
    if how == "safe":
        jobs = allowing([add, note, fail])
        safe_worker([safe_queue("orders", connection, jobs, fabric=FABRIC)], connection, jobs).work(
            burst=True
        )
    else:
        Worker([rogue], connection=connection, serializer=JSONSerializer).work(burst=True)
    told: dict[str, Any] = {}
    for name, job in put.items():
        found = Job.fetch(job.id, connection=connection, serializer=JSONSerializer)
        result = found.latest_result()
        told[name] = {
            "status": found.get_status().value,
            "result": found.return_value() if found.is_finished else None,
            "why": (result.exc_string or "").strip().splitlines()[-1:] if result else [],
            "left": (folder / name).exists(),
        }
    told["noted"] = (folder / "noted").exists()
    connection.close()
    return told


def main() -> None:
    """Attack, and tell on the last line."""
    outcome = attack(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    sys.stdout.write("\n" + json.dumps(outcome))
