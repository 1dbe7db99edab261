"""SOLLOL's own bookkeeping of batch jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sollol.batch_manager import BatchJobManager, BatchJobStatus
from sollol_broker.errors import InvalidJob


def test_a_job_from_its_beginning_to_its_end() -> None:
    manager = BatchJobManager()
    job_id = manager.create_job("embed", 4, {"shelf": 3})
    assert manager.get_job_results(job_id) is None
    manager.start_job(job_id)
    manager.update_progress(job_id, 1, 1)
    told = manager.get_job_status(job_id)
    assert told is not None
    assert told["status"] == "running"
    assert told["progress"] == {"total_items": 4, "completed_items": 1, "failed_items": 1, "percent": 50.0}
    manager.complete_job(job_id, [1, 2, 3], [{"index": 3, "error": "x"}])
    told = manager.get_job_status(job_id)
    assert told is not None
    assert (told["progress"]["completed_items"], told["progress"]["failed_items"]) == (3, 1)
    assert told["started_at"] <= told["completed_at"]
    assert told["duration_seconds"] >= 0
    results = manager.get_job_results(job_id)
    assert results is not None
    assert (results["status"], results["results"], len(results["errors"])) == ("completed", [1, 2, 3], 1)
    assert manager.cancel_job(job_id) is False
    manager.fail_job(job_id, "too late")
    assert manager.get_job_status(job_id) == told


def test_what_is_not_known_is_no_error() -> None:
    manager = BatchJobManager()
    manager.start_job("x")
    manager.update_progress("x", 1)
    manager.complete_job("x", [])
    manager.fail_job("x", "y")
    assert (manager.cancel_job("x"), manager.get_job("x"), manager.get_job_status("x")) == (False, None, None)
    with pytest.raises(InvalidJob, match="max_jobs"):
        BatchJobManager(max_jobs=0)


def test_only_so_many_are_kept_and_only_for_so_long() -> None:
    manager = BatchJobManager(max_jobs=3, job_ttl_seconds=60)
    ids = [manager.create_job("embed", 1) for _ in range(3)]
    manager.fail_job(ids[0], "x")
    assert manager.cancel_job(ids[1])
    newest = manager.create_job("embed", 1)
    assert [each["job_id"] for each in manager.list_jobs()] == [newest, ids[2], ids[1]]
    old = manager.get_job(ids[1])
    assert old is not None
    assert old.status is BatchJobStatus.CANCELLED
    old.completed_at = datetime.now(UTC) - timedelta(seconds=61)
    assert manager.get_job(ids[1]) is None
    stats = manager.get_stats()
    assert (stats["total_jobs_created"], stats["total_jobs_failed"], stats["total_jobs_cancelled"]) == (
        4,
        1,
        1,
    )
    assert (stats["active_jobs"], stats["stored_jobs"]) == (2, 2)
