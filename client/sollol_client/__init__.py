"""What an application uses: clients, jobs and answers."""

from .aio import AsyncClient
from .answer import Answer, Delta
from .client import Client
from .jobs import AsyncJob, Job

__all__ = ["Answer", "AsyncClient", "AsyncJob", "Client", "Delta", "Job"]
