"""`SOLLOLClient`: asks a gateway over HTTP. Only the standard library is needed."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from sollol_broker.errors import BackendError, InvalidJob

from .config import SOLLOLConfig

# So many texts are one request; more are a batch.
_FEW = 100
_FIRST_LOOK_SECONDS, _LAST_LOOK_SECONDS = 0.02, 1.0


class SOLLOLClient:
    """Asks the gateway at `config.url`, which may be on another machine. Safe to share between threads.

    Programs that reach Redis have more from `Client` and `OllamaPool`.

    Raises:
        InvalidJob: the gateway's address is no http or https URL.
    """

    def __init__(self, config: SOLLOLConfig | None = None) -> None:
        self.config = config or SOLLOLConfig()
        if not self.config.url.startswith(("http://", "https://")):
            raise InvalidJob(
                f"base_url: an http or https URL is needed, got {self.config.url!r}", field="base_url"
            )
        # Proxies are meant for the internet, not for a gateway on the network.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing stays open between calls; it is here for programs that call it."""

    def chat(
        self,
        message: str,
        model: str | None = None,
        priority: int | None = None,
        system_prompt: str | None = None,
        conversation_history: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Answer a message; Ollama's answer as a dict.

        Raises:
            BackendError: no answer; `status` is that of the gateway, None where it cannot be reached.
        """
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        messages = [*system, *(conversation_history or ()), {"role": "user", "content": message}]
        return self._post(
            "/api/chat",
            {
                "model": model or self.config.default_model,
                "messages": messages,
                "stream": False,
                "priority": self.config.default_priority if priority is None else priority,
            },
        )

    async def chat_async(
        self,
        message: str,
        model: str | None = None,
        priority: int | None = None,
        system_prompt: str | None = None,
        conversation_history: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """`chat` for coroutines."""
        return await asyncio.to_thread(
            self.chat, message, model, priority, system_prompt, conversation_history
        )

    def embed(self, text: str, model: str = "nomic-embed-text") -> list[float]:
        """The vector of a text; raises as `chat`."""
        return list(self._post("/api/embed", {"model": model, "input": text})["embeddings"][0])

    def batch_embed(self, documents: Sequence[str], model: str = "nomic-embed-text") -> dict[str, Any]:
        """The vectors of many texts, in order, in `["embeddings"]`; raises as `chat`.

        More than a hundred are one batch of the gateway's: up to 10,000, behind everybody who waits at a prompt.
        There a text that has no vector is None, and `["errors"]` says why; only if none has one, it raises.
        """
        if len(documents) <= _FEW:
            return self._post("/api/embed", {"model": model, "input": list(documents)})
        batch_id = self._post("/api/batch/embed", {"model": model, "documents": list(documents)})["job_id"]
        pause = _FIRST_LOOK_SECONDS
        while (job := self._ask("GET", f"/api/batch/jobs/{batch_id}", None))["status"] in (
            "pending",
            "running",
        ):
            time.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK_SECONDS)
        told = self._ask("GET", f"/api/batch/results/{batch_id}", None)
        if job["status"] != "completed":
            why = told["errors"][0]["error"] if told["errors"] else job.get("error", "no reason given")
            raise BackendError(f"batch {batch_id} is {job['status']}: {why}", retryable=False)
        return {"model": model, "embeddings": told["results"], "errors": told["errors"], "job_id": batch_id}

    def health(self) -> dict[str, Any]:
        """{"service", "version", "status"}."""
        return self._ask("GET", "/api/health", None)

    def stats(self) -> dict[str, Any]:
        """What the fabric has done since it began."""
        return self._ask("GET", "/api/stats", None)

    def dashboard(self) -> dict[str, Any]:
        """Where the monitoring page is: {"url"}."""
        return {"url": f"{self.config.url}/api/dashboard"}

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._ask("POST", path, json.dumps(body).encode())

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        url = self.config.url + path
        request = urllib.request.Request(  # noqa: S310  # the scheme was checked
            url, data=body, method=method, headers={"Content-Type": "application/json"}
        )
        try:
            with self._opener.open(request, timeout=self.config.timeout) as answer:
                read: dict[str, Any] = json.load(answer)
                return read
        except urllib.error.HTTPError as error:
            with error:
                told = error.read(64 * 1024).decode(errors="replace")
            raise BackendError(f"the gateway refused {path}: {told}", status=error.code) from None
        except (OSError, ValueError) as error:
            raise BackendError(
                f"the gateway at {self.config.url} cannot be asked ({error}); start it with sollol-gateway, or "
                "correct base_url",
                retryable=True,
            ) from error
