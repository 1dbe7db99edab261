"""`SOLLOLClient`: asks a gateway over HTTP. Only the standard library is needed."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from sollol_broker.errors import BackendError, InvalidJob

from .config import SOLLOLConfig


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
        """The vectors of many texts, in order, in `["embeddings"]`; raises as `chat`."""
        return self._post("/api/embed", {"model": model, "input": list(documents)})

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
