"""The queues that are compared, each behind the same small Protocol, each with its worker process."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Protocol, cast

# The last argument of a worker that has to keep results, where that is a choice.
WITH_RESULTS = "with-results"


class MissingContender(Exception):
    """A contender's package is not installed."""


class Contender(Protocol):
    """The sending side of one queue, in this process."""

    def ask(self, text: str) -> None:
        """Send one job and wait until its answer is here."""

    def send(self, count: int) -> None:
        """Send so many jobs, waiting for none of them."""

    def accepted(self) -> int:
        """How many jobs Redis has taken in since it was emptied."""

    def done(self) -> int:
        """How many jobs were finished since Redis was emptied."""

    def close(self) -> None:
        """Disconnect."""


class ContenderModule(Protocol):
    """What a module of this package offers."""

    def connect(self, url: str) -> Contender:
        """The sending side."""

    def serve(self, url: str, *arguments: str) -> None:
        """Be the worker process until SIGTERM."""


def contender(name: str) -> ContenderModule:
    """The contender of that name.

    Raises:
        MissingContender: its package is not installed.
    """
    try:
        module: ModuleType = importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(__name__):
            raise
        raise MissingContender(
            f"{error.name} is not installed; install it with: pip install 'sollol[bench]'"
        ) from error
    return cast(ContenderModule, module)
