"""What an application uses: clients, jobs and answers."""

from .aio import AsyncClient
from .answer import Answer, Delta
from .batch import AsyncBatch, Batch
from .batch_item import BatchItem
from .client import Client
from .jobs import AsyncJob, Job

__all__ = ["Answer", "AsyncBatch", "AsyncClient", "AsyncJob", "Batch", "BatchItem", "Client", "Delta", "Job"]
