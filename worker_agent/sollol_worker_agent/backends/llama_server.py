"""llama.cpp's llama-server: OpenAI's API for chats and embeddings, Jina's for rankings, its own for raw prompts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from sollol_broker.errors import BackendError
from sollol_broker.words import JobKind
from sollol_worker_agent.backends.conversation import Call, converse, only_touches, touched
from sollol_worker_agent.backends.http import HttpDoor
from sollol_worker_agent.backends.openai_compatible import embed_through, rerank_through
from sollol_worker_agent.backends.openai_stream import ChatReader, LlamaCompletionReader
from sollol_worker_agent.backends.openai_wire import (
    LLAMA_SERVER,
    chat_body,
    llama_completion_body,
    short_name,
    templated_generate,
)
from sollol_worker_agent.backends.probe import with_last
from sollol_worker_agent.backends.protocol import (
    CannotContinue,
    End,
    ModelInfo,
    Piece,
    Ranking,
    Said,
    Timeouts,
    Traffic,
    Vectors,
)
from sollol_worker_agent.backends.refusals import most_tokens
from sollol_worker_agent.backends.resuming import before_blanks, behind, for_the_rest

# A server started with --embeddings or --reranking is there for nothing else.
_GENERATING = frozenset({"chat", "generate"})
_CAPABILITIES = (("chat", "completion"), ("embed", "embedding"), ("rerank", "reranking"))


class LlamaServerBackend:
    """A llama-server with one model, or several behind its router.

    Args:
        url: e.g. "http://127.0.0.1:8080".
        model: what its model is to be called; default is the server's alias, or the file's name
            without ".gguf", in lower case.
        api_key: sent as a bearer token if given (llama-server's `--api-key`).

    Raises:
        ValueError: `url` is not an http or https address.
    """

    kind = "llama-server"

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        self._door = HttpDoor(url, server="llama-server", api_key=api_key)
        self.url = self._door.url
        self._model = model
        # Our name of a model -> the server's own, learned by models().
        self._server_names: dict[str, str] = {}
        # Server names of models -> what they are for, and whether they infill; found by trying once.
        self._kinds: dict[str, frozenset[str]] = {}
        self._infills: dict[str, bool] = {}
        # Our names of models -> whether the last answer that was to be gone on with could be.
        self._goes_on: dict[str, bool] = {}

    async def models(self) -> list[ModelInfo]:
        """What the server has. The first call asks it to rerank and to embed, to learn whether it can."""
        listing, props = await self._door.get("/v1/models"), await self._props()
        entries = listing.get("data") or ()
        found = []
        for entry in entries:
            server_name = str(entry["id"])
            name = self._model if self._model and len(entries) == 1 else short_name(server_name)
            self._server_names[name] = server_name
            kinds = await self._kinds_of(server_name) if _is_loaded(entry) else _GENERATING
            info = _model_info(name, entry, props, kinds)
            found.append(replace(info, continues=self._goes_on.get(name)))
        return found

    async def loaded(self) -> frozenset[str]:
        """All models; behind a router, those which it has started."""
        listing = await self._door.get("/v1/models")
        entries = listing.get("data") or ()
        only = self._model if len(entries) == 1 else None
        return frozenset(only or short_name(str(entry["id"])) for entry in entries if _is_loaded(entry))

    async def slots(self) -> int:
        """How many requests it works on at once (`--parallel`); more wait in the server."""
        return int((await self._props()).get("total_slots") or 0)

    @property
    def traffic(self) -> Traffic:
        """What has gone to the server so far."""
        return self._door.traffic

    async def version(self) -> str:
        """The build of llama.cpp."""
        return str((await self._props()).get("build_info") or "")

    def chat(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Answer `messages`."""
        if only_touches(request):
            return touched(request)

        async def prepare() -> Call:
            return self._chat_call(model, request)

        return converse(self._door, prepare, timeouts)

    def generate(
        self, model: str, request: Mapping[str, Any], timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Continue `prompt`.

        1. With `suffix`: fill in what stands between, if the model can.
        2. With `raw`: the prompt as it is.
        3. Otherwise inside the chat template, `system` before it, as Ollama does. It goes through
           the chat endpoint, which also knows where thinking ends and how images are woven in.
        """
        if only_touches(request):
            return touched(request)

        async def prepare() -> Call:
            if request.get("suffix"):  # 1
                await self._require_infill(model)
                return self._completion_call("/infill", model, request)
            if request.get("raw"):  # 2
                return self._completion_call("/completion", model, request)
            return self._chat_call(model, templated_generate(request))  # 3

        return converse(self._door, prepare, timeouts)

    def resume(
        self, kind: JobKind, model: str, request: Mapping[str, Any], said: Said, timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """Go on with an answer: of a raw prompt by its tokens, if they are known here, else in the chat template."""
        if not request.get("raw"):
            chat = request if kind is JobKind.CHAT else templated_generate(request)
            return self._chat_rest(model, chat, said, timeouts)

        async def prepare() -> Call:
            return await self._raw_rest(model, for_the_rest(request, said), said)

        return converse(self._door, prepare, timeouts)

    async def embed(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> Vectors:
        """Embed `input`; the vectors have length 1. Texts that are too long are cut, unless `truncate` is False."""
        name = self._server_name(model)
        try:
            return await embed_through(self._door, name, request, timeouts)
        except BackendError as error:
            most = most_tokens(error.said)
            if most is None or request.get("truncate") is False:
                raise
            return await embed_through(self._door, name, await self._cut(name, request, most), timeouts)

    async def rerank(self, model: str, request: Mapping[str, Any], timeouts: Timeouts) -> Ranking:
        """Say how well each of `documents` answers `query`. A text longer than the server's batch is refused."""
        return await rerank_through(self._door, self._server_name(model), request, timeouts)

    async def warm(self, model: str, request: Mapping[str, Any]) -> None:
        """Do nothing: the model has been in memory since the server started."""

    async def unload(self, model: str) -> None:
        """Do nothing: the model goes when the server stops."""

    async def close(self) -> None:
        """Close all connections."""
        await self._door.close()

    async def _cut(self, server_name: str, request: Mapping[str, Any], most: int) -> dict[str, Any]:
        """The request with its texts as tokens, at most so many each."""
        texts = request["input"]
        marks = await self._tokens(server_name, "")
        cut = []
        for text in [texts] if isinstance(texts, str) else texts:
            ids = await self._tokens(server_name, text)
            if len(ids) > most:
                # A mark that the model has behind each text stays behind it.
                end = marks[-1:] if ids[-1:] == marks[-1:] else []
                ids = ids[: most - len(end)] + end
            cut.append(ids)
        return {**request, "input": cut}

    async def _tokens(self, server_name: str, text: str) -> list[int]:
        asked = {"model": server_name, "content": text, "add_special": True}
        return [int(each) for each in (await self._door.post("/tokenize", asked))["tokens"]]

    async def _raw_rest(self, model: str, request: Mapping[str, Any], said: Said) -> Call:
        call = self._completion_call("/completion", model, request)
        prompt, ids = str(request.get("prompt") or ""), list(said.ids)
        # The same text may be made of other tokens, and another model's numbers mean other words.
        is_exact = bool(prompt and ids) and await self._spelled(model, ids) == said.text
        rest = [prompt, *ids] if is_exact else prompt + said.text
        return replace(call, body={**call.body, "prompt": rest})

    async def _chat_rest(
        self, model: str, request: Mapping[str, Any], said: Said, timeouts: Timeouts
    ) -> AsyncGenerator[Piece | End, None]:
        """The chat with the answer so far as its last message; without its last blanks, if the template trims them."""
        for begun in (said, before_blanks(said)):
            self._goes_on[model], body = await self._left_open(
                model, for_the_rest(request, begun), begun.text
            )
            if self._goes_on[model]:
                break
        else:
            raise CannotContinue("the model's chat template does not leave the last message open")

        async def prepare() -> Call:
            return replace(self._chat_call(model, request), body=body)

        async with aclosing(behind(converse(self._door, prepare, timeouts), said, begun)) as events:
            async for event in events:
                yield event

    async def _left_open(
        self, model: str, request: Mapping[str, Any], text: str
    ) -> tuple[bool, dict[str, Any]]:
        """Whether the template leaves a last message with this text open, and the body of the chat that has it.

        It does if what the model gets to see is what it saw before, and the text behind it: no more, no less.
        """
        call, begun = self._chat_call(model, request), self._chat_call(model, with_last(request, text))
        body = {**begun.body, "add_generation_prompt": False, "continue_final_message": True}
        try:
            is_open = await self._rendered(body) == await self._rendered(call.body) + text
        except BackendError as error:
            if error.retryable:
                raise
            is_open = False
        return bool(text) and is_open, body

    async def _rendered(self, body: Mapping[str, Any]) -> str:
        return str((await self._door.post("/apply-template", body)).get("prompt"))

    async def _spelled(self, model: str, ids: list[int]) -> str:
        asked = {"model": self._server_name(model), "tokens": ids}
        return str((await self._door.post("/detokenize", asked)).get("content"))

    def _chat_call(self, model: str, request: Mapping[str, Any]) -> Call:
        body = chat_body(self._server_name(model), request, LLAMA_SERVER)
        # Tells how many tokens each piece took.
        body["timings_per_token"] = True
        reader = ChatReader(f"llama-server at {self.url}", top_logprobs=request.get("top_logprobs") or 0)
        return Call("/v1/chat/completions", body, reader)

    def _completion_call(self, path: str, model: str, request: Mapping[str, Any]) -> Call:
        body = {**llama_completion_body(request), "model": self._server_name(model), "return_tokens": True}
        reader = LlamaCompletionReader(
            f"llama-server at {self.url}", top_logprobs=request.get("top_logprobs") or 0
        )
        return Call(path, body, reader)

    def _server_name(self, model: str) -> str:
        return self._server_names.get(model, model)

    async def _props(self) -> Mapping[str, Any]:
        props = await self._door.get("/props")
        return props if isinstance(props, dict) else {}

    async def _kinds_of(self, server_name: str) -> frozenset[str]:
        # Neither /props nor /v1/models tells of --embeddings and --reranking. A server without them refuses at once.
        # One that reranks gives vectors, too, but they hold nothing beside the score.
        if server_name not in self._kinds:
            model = {"model": server_name}
            if await self._does("/v1/rerank", {**model, "query": "a", "documents": ["a"]}):
                kinds = frozenset({"rerank"})
            elif await self._does("/v1/embeddings", {**model, "input": "a"}):
                kinds = frozenset({"embed"})
            else:
                kinds = _GENERATING
            self._kinds[server_name] = kinds
        return self._kinds[server_name]

    async def _require_infill(self, model: str) -> None:
        name = self._server_name(model)
        if name not in self._infills:
            probe = {"model": name, "input_prefix": "a", "input_suffix": "a", "n_predict": 1}
            self._infills[name] = await self._does("/infill", probe)
        if not self._infills[name]:
            raise BackendError(
                f"{model} on llama-server at {self.url} does not support insert (a generate request "
                f"with suffix); leave suffix out, or send the job to a model that does",
                status=400,
                retryable=True,
            )

    async def _does(self, path: str, probe: Mapping[str, Any]) -> bool:
        try:
            await self._door.post(path, probe)
        except BackendError as error:
            # Only these mean "cannot"; a server that is loading or overloaded has not answered yet.
            if error.status in (400, 404, 500, 501):
                return False
            raise
        return True


def _is_loaded(entry: Mapping[str, Any]) -> bool:
    # Only a router gives its models a status.
    status = entry.get("status")
    return not isinstance(status, Mapping) or status.get("value") == "loaded"


def _model_info(
    name: str, entry: Mapping[str, Any], props: Mapping[str, Any], kinds: frozenset[str]
) -> ModelInfo:
    meta = entry.get("meta") or {}
    template = props.get("chat_template_caps") or {}
    modalities = props.get("modalities") or {}
    capabilities = [word for kind, word in _CAPABILITIES if kind in kinds]
    if template.get("supports_tools"):
        capabilities.append("tools")
    if modalities.get("vision"):
        capabilities.append("vision")
    return ModelInfo(
        name=name,
        kinds=kinds,
        size_bytes=int(meta.get("size") or 0),
        context_tokens=int(meta.get("n_ctx") or 0),
        capabilities=tuple(capabilities),
        listing={"details": {"format": "gguf", "parameter_size": _human(int(meta.get("n_params") or 0))}},
    )


def _human(parameters: int) -> str:
    """A number of parameters as Ollama shows it: "134.52M"; "" = unknown."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= size:
            return f"{parameters / size:.2f}".rstrip("0").rstrip(".") + letter
    return str(parameters or "")
