"""SOLLOL's own bookkeeping of batch jobs, for programs that do the work themselves.

Batches that the fabric carries out are `Client.batch` and the gateway's `/api/batch`; nothing of them is kept here.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

from sollol_broker.errors import InvalidJob


class BatchJobStatus(Enum):
    """Where a job is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDS = (BatchJobStatus.COMPLETED, BatchJobStatus.FAILED, BatchJobStatus.CANCELLED)


@dataclass(slots=True)
class BatchJob:
    """One job, and what is known of it."""

    job_id: str
    job_type: str
    status: BatchJobStatus
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    total_items: int = 0
    completed_items: int = 0
    failed_items: int = 0
    results: list[Any] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.status in _ENDS

    def get_progress_percent(self) -> float:
        """How many of its items have ended, either way."""
        done = self.completed_items + self.failed_items
        return 100.0 * done / self.total_items if self.total_items else 0.0

    def get_duration_seconds(self) -> float | None:
        """From its start to its end, or until now; None = it has not begun."""
        if self.started_at is None:
            return None
        return ((self.completed_at or datetime.now(UTC)) - self.started_at).total_seconds()

    def to_dict(self) -> dict[str, Any]:
        """As `GET /api/batch/jobs/ID` tells it."""
        return {
            "job_id": self.job_id,
            "job_type": self.job_type,
            "status": self.status.value,
            "created_at": self.created_at.isoformat(),
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "completed_at": self.completed_at.isoformat() if self.completed_at else None,
            "progress": {
                "total_items": self.total_items,
                "completed_items": self.completed_items,
                "failed_items": self.failed_items,
                "percent": round(self.get_progress_percent(), 2),
            },
            "duration_seconds": self.get_duration_seconds(),
            "metadata": dict(self.metadata),
        }


class BatchJobManager:
    """Keeps book of jobs in this process. Any thread may call any method; a job that is not known is no error.

    Args:
        max_jobs: that are kept; beyond it the oldest that have ended go first.
        job_ttl_seconds: for which a job is kept after its end.

    Raises:
        InvalidJob: one of them is below 1.
    """

    def __init__(self, max_jobs: int = 1000, job_ttl_seconds: int = 3600) -> None:
        for name, value in (("max_jobs", max_jobs), ("job_ttl_seconds", job_ttl_seconds)):
            if value < 1:
                raise InvalidJob(f"{name}: at least 1 is needed, got {value!r}", field=name)
        self.jobs: dict[str, BatchJob] = {}
        self.max_jobs = max_jobs
        self.job_ttl_seconds = job_ttl_seconds
        self._created = 0
        self._ended: dict[BatchJobStatus, int] = {}
        self._lock = threading.RLock()

    def create_job(self, job_type: str, total_items: int, metadata: Mapping[str, Any] | None = None) -> str:
        """A new job; gives its id."""
        job = BatchJob(
            uuid.uuid4().hex,
            job_type,
            BatchJobStatus.PENDING,
            datetime.now(UTC),
            total_items=total_items,
            metadata=dict(metadata or {}),
        )
        with self._lock:
            self.jobs[job.job_id] = job
            self._created += 1
            self._clean_up()
        return job.job_id

    def start_job(self, job_id: str) -> None:
        """It runs from now on."""
        with self._lock:
            job = self.jobs.get(job_id)
            if job is not None and job.status is BatchJobStatus.PENDING:
                job.status, job.started_at = BatchJobStatus.RUNNING, datetime.now(UTC)

    def update_progress(self, job_id: str, completed_items: int, failed_items: int = 0) -> None:
        """So many of its items have ended."""
        with self._lock:
            job = self.jobs.get(job_id)
            if job is not None and not job.is_over:
                job.completed_items, job.failed_items = completed_items, failed_items

    def complete_job(
        self, job_id: str, results: Sequence[Any], errors: Sequence[dict[str, Any]] | None = None
    ) -> None:
        """It is done, with these results and errors."""
        told = list(errors or ())
        with self._lock:
            job = self.jobs.get(job_id)
            if job is not None and self._end(job, BatchJobStatus.COMPLETED):
                job.results, job.errors, job.failed_items = list(results), told, len(told)
                job.completed_items = min(len(job.results), max(0, job.total_items - len(told)))

    def fail_job(self, job_id: str, error: str) -> None:
        """It has failed as a whole."""
        with self._lock:
            job = self.jobs.get(job_id)
            if job is not None and self._end(job, BatchJobStatus.FAILED):
                job.errors.append({"error": error})

    def cancel_job(self, job_id: str) -> bool:
        """It is not wanted any more; False: it had ended, or is not known."""
        with self._lock:
            job = self.jobs.get(job_id)
            return job is not None and self._end(job, BatchJobStatus.CANCELLED)

    def get_job(self, job_id: str) -> BatchJob | None:
        """The job; None = it is not known."""
        with self._lock:
            self._clean_up()
            return self.jobs.get(job_id)

    def get_job_status(self, job_id: str) -> dict[str, Any] | None:
        """How it stands; None = it is not known."""
        job = self.get_job(job_id)
        return job.to_dict() if job is not None else None

    def get_job_results(self, job_id: str) -> dict[str, Any] | None:
        """{"job_id", "status", "results", "errors"}; None = it is not known, or has not ended."""
        job = self.get_job(job_id)
        if job is None or not job.is_over:
            return None
        told = {"job_id": job.job_id, "status": job.status.value}
        return {**told, "results": list(job.results), "errors": list(job.errors)}

    def list_jobs(self, limit: int = 100) -> list[dict[str, Any]]:
        """The jobs, the newest first."""
        with self._lock:
            self._clean_up()
            found = list(self.jobs.values())[::-1]
        return [job.to_dict() for job in found[:limit]]

    def get_stats(self) -> dict[str, Any]:
        """How many jobs there have been, and how they ended."""
        with self._lock:
            active = sum(not job.is_over for job in self.jobs.values())
            ended = {f"total_jobs_{each.value}": self._ended.get(each, 0) for each in _ENDS}
            kept = {"active_jobs": active, "stored_jobs": len(self.jobs)}
            return {"total_jobs_created": self._created, **ended, **kept}

    def _end(self, job: BatchJob, status: BatchJobStatus) -> bool:
        if job.is_over:
            return False
        job.status, job.completed_at = status, datetime.now(UTC)
        self._ended[status] = self._ended.get(status, 0) + 1
        return True

    def _clean_up(self) -> None:
        oldest = datetime.now(UTC) - timedelta(seconds=self.job_ttl_seconds)
        over = [job for job in self.jobs.values() if job.completed_at is not None]
        for job in over:
            if job.completed_at is not None and job.completed_at < oldest:
                del self.jobs[job.job_id]
        for job in over:
            if len(self.jobs) <= self.max_jobs:
                return
            self.jobs.pop(job.job_id, None)
