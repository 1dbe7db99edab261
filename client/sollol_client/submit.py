"""The `submit` that both clients share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from .cache_face import CacheFace
from .request import RESULT_TTL_SECONDS, Request, build_request

J = TypeVar("J")


class Submitter(CacheFace, Generic[J]):
    """Builds jobs from what the caller says; a client sends them."""

    @abstractmethod
    def _names(self) -> tuple[str, str]:
        """The application's name and the inbox that gets the answers."""

    @abstractmethod
    def _send(self, request: Request) -> J:
        """Send a checked job."""

    def submit(
        self,
        *,
        model: str,
        chat: str | Sequence[Mapping[str, Any]] | None = None,
        generate: str | None = None,
        embed: str | Sequence[str] | None = None,
        rerank: Sequence[str] | None = None,
        query: str | None = None,
        stream: bool = False,
        priority: int = 5,
        timeout: float | None = None,
        deadline: float | None = None,
        session: str | None = None,
        requires: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        result_ttl: float = RESULT_TTL_SECONDS,
        wait_for_node: bool = False,
        trace: Mapping[str, str] | None = None,
        hedge: bool | None = None,
        cache: bool | None = None,
        prefer: str | Sequence[str] | None = None,
        **backend: Any,
    ) -> J:
        """Submit a job and return at once; the job is a future of its Answer.

        A job is run at least once, gets at most one answer, and never gets silence: when its worker
        dies, another one answers.

        Args:
            model: as Ollama names it; case and ":latest" do not matter.
            chat: a text, or messages [{"role", "content", "images"?, "tool_calls"?}, …].
            generate: a prompt to continue. embed: a text or a list of texts.
            rerank: texts to order by how well they answer `query`, on a server that can. Exactly one of the four.
            stream: deliver the text as it is made; iterate over the job.
            priority: 0 to 10, see `Priority`; a head start, not a band: nothing starves.
            timeout: seconds that the backend may take for it; None = the worker's default (30 min).
            deadline: seconds from now after which the answer is worthless: DeadlineExceeded.
            session: jobs of one conversation; carried for routing.
            requires: what a node must have: {"vram_gb": 8, "labels": ["eu"], "node": "name"}.
            metadata: plain data that stays with the job.
            idempotency_key: the same key of the same app is the same job, however often it is sent.
            result_ttl: seconds for which the answer can be fetched after the end.
            wait_for_node: wait in line even if no live node serves the model now.
            trace: W3C trace context: {"traceparent": …, "tracestate": …}.
            hedge: True = a second node may start the job, too, when the first is late: the first answer
                counts. False = never. None = as the fabric's policy says for its priority.
            cache: True = equal requests share one answer, whether it is being made or was made within its
                result_ttl; False = never. None = for embeddings and at temperature 0, unless the client was
                made with cache=False or there is an idempotency_key. Priority, deadline and result_ttl of
                the one that came first hold for the work itself.
            prefer: a node, or nodes, that should have the job: others leave it to them for 10 s.
            backend: whatever the backend takes, with Ollama's names and untouched: options, format,
                tools, think, keep_alive, images, system, template, suffix, raw, context, dimensions, top_n, …

        Raises:
            InvalidJob: names the argument at fault; nothing has been sent.
            BrokerUnavailable: the first call found no Redis.
        """
        app, inbox = self._names()
        return self._send(
            build_request(
                app,
                inbox,
                answer_cache=self._answer_cache(),
                model=model,
                chat=chat,
                generate=generate,
                embed=embed,
                rerank=rerank,
                query=query,
                stream=stream,
                priority=priority,
                timeout=timeout,
                deadline=deadline,
                session=session,
                requires=requires,
                metadata=metadata,
                idempotency_key=idempotency_key,
                result_ttl=result_ttl,
                wait_for_node=wait_for_node,
                trace=trace,
                hedge=hedge,
                cache=cache,
                prefer=prefer,
                **backend,
            )
        )

    def warm(
        self,
        model: str,
        *,
        node: str | None = None,
        priority: int = 5,
        timeout: float | None = None,
        deadline: float | None = None,
        **backend: Any,
    ) -> J:
        """Have a model brought into memory on the node that would take its next job; the job ends when it is there.

        It goes the way of every job, so it is the same node that a request coming now would get. Where the model is in
        memory already, or where a server always has it, there is nothing to do and it ends at once.

        Args:
            node: bring it into memory there.
            priority, timeout, deadline: as for `submit`.
            backend: with Ollama's names: keep_alive ("30m", -1 = for ever), and options that a model is loaded with,
                such as num_ctx; requests with other ones load it again.

        Raises:
            InvalidJob: names the argument at fault; nothing has been sent.
        """
        app, inbox = self._names()
        return self._send(
            build_request(
                app,
                inbox,
                model=model,
                warm=True,
                requires={"node": node} if node else None,
                priority=priority,
                timeout=timeout,
                deadline=deadline,
                hedge=False,
                **backend,
            )
        )
