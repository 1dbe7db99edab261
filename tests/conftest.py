"""What tests share: a real Redis on a private socket, real llama-servers with toy models, real small models.

Nothing is skipped: where a program is missing the tests fail, and say how to install it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings

import toy_models
from sollol.local import all_minilm, smollm2
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.keys import is_permanent
from sollol_worker_agent.llama_process import LlamaServerProcess

# A run that was started in the background is told to ignore Ctrl-C, and would hand that on to the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What whoever runs the tests has set for himself is none of theirs.
os.environ["SOLLOL_CONFIG"] = os.devnull

# Begun first, so that none of them is what the other processes wait for at the end; those that compute stand between
# those that wait.
# Those that make networks come first, too: a browser, whose tests come later, drops what it fetches when the machine
# gets another network.
_LONG = """
    group_network lan partition split
    groups failover cli_fabric lost_replies takeover_llama leader_storm kill_storm examples release
    faulty_backends dashboard pool power_cut setup_llama_cpp worker_process heartbeat doctor_rpc openai
    client_sync canaries acl
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first; else all stays in order."""
    places = {f"test_{name}": place for place, name in enumerate(_LONG.split())}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True)
def environment_stays() -> Iterator[None]:
    """A command that is run in this process fills its environment from its file; the next test gets the old one."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


# How long an example takes says something of the machine, and nothing of the code. A run that passed passes again:
# others are found with pytest --hypothesis-profile=explore
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedBroker]:
    """One server for the whole run. A test that kills or reconfigures a server makes its own."""
    with EmbeddedBroker(appendonly=False) as broker:
        yield broker


@pytest.fixture
def redis_url(redis_server: EmbeddedBroker) -> Iterator[str]:
    """The URL of an empty Redis. Loaded functions stay from test to test, as FLUSHALL leaves them.

    At the end no key may be left that would live for ever, save those that are meant to.
    """
    redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield redis_server.url
        keys = [bytes(key) for key in client.scan_iter(count=1000)]
        immortal = [key.decode(errors="replace") for key in keys if client.ttl(key) == -1]
    if forgotten := sorted(key for key in immortal if not is_permanent(key)):
        pytest.fail(f"{len(forgotten)} keys have no TTL: {', '.join(forgotten[:20])}")


@pytest.fixture(scope="session")
def toy_chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model; it always answers with exactly `max_tokens` tokens."""
    return toy_models.make_toy_chat(tmp_path_factory.mktemp("models") / "toy.gguf")


@pytest.fixture(scope="session")
def toy_embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model for vectors of 64 numbers."""
    return toy_models.make_toy_embedding(tmp_path_factory.mktemp("models") / "toy-embed.gguf")


@pytest.fixture(scope="session")
def toy_llama_server(toy_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real llama-server with the model "toy" and two slots."""
    with _serving(toy_chat_model, "toy", tmp_path_factory.mktemp("logs")) as url:
        yield url


@pytest.fixture(scope="session")
def toy_embed_server(toy_embedding_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real llama-server with the embedding model "toy-embed" and two slots."""
    with _serving(toy_embedding_model, "toy-embed", tmp_path_factory.mktemp("logs")) as url:
        yield url


@pytest.fixture(scope="session")
def toy_rerank_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real llama-server with the reranking model "toy-rank" and two slots."""
    model = toy_models.make_toy_reranker(tmp_path_factory.mktemp("models") / "toy-rank.gguf")
    with _serving(model, "toy-rank", tmp_path_factory.mktemp("logs")) as url:
        yield url


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, a real model that chats."""
    return smollm2()


@pytest.fixture(scope="session")
def minilm_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file of all-MiniLM-L6-v2, a real model that embeds; converted once per run."""
    return all_minilm(tmp_path_factory.mktemp("cache"))


@contextmanager
def _serving(model: Path, alias: str, logs: Path) -> Iterator[str]:
    # One thread: more only make servers on a small machine wait for each other.
    server = LlamaServerProcess(model_path=model, alias=alias, slots=2, threads=1, log_directory=logs)
    # The process needs no event loop of ours once it runs, so no test's loop is tied to it.
    asyncio.run(server.start())
    try:
        yield server.url
    finally:
        asyncio.run(server.stop())
