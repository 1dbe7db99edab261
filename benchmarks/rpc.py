"""What a group of nodes costs beside the same programs started by hand, how long it takes to form, and to heal.

Workers on this machine, each with too little memory for SmolLM2, and a coordinator. Where all have one address they are
on one machine, and reach each other's rpc-servers on loopback, as by hand; with addresses of their own they use the
tunnels that a group has between machines. Estimates of memory are compared with what llama-server reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from sollol_broker.child import ChildProcess
from sollol_broker.embedded import EmbeddedBroker
from sollol_broker.errors import NoNodeForModel
from sollol_broker.groups import GroupState, GroupView
from sollol_broker.model_facts import ModelFacts
from sollol_client import Client
from sollol_coordinator.estimate import Load, estimate
from sollol_worker_agent.gguf_facts import facts_of
from sollol_worker_agent.gguf_header import read_header
from sollol_worker_agent.llama_process import LlamaServerProcess
from sollol_worker_agent.rpc.server import RpcServer

from .llama import model_file
from .report import Aim, Outcome, Table, median

_MODEL = "big"
_RAM_MIB = {"a": 105, "b": 100, "c": 100, "d": 100}
_CONTEXT = 2048
_TOKENS = 96
_ANSWERS = 12
_WAIT_SECONDS = 120.0
_BUFFER = re.compile(r"(model|KV|compute|output) buffer size = +([0-9.]+) MiB")


def run(share: float = 1.0) -> Outcome:
    """Measure; `share` of the usual number of answers."""
    answers = max(4, round(_ANSWERS * share))
    with tempfile.TemporaryDirectory(prefix="sollol-bench-") as folder:
        fleet = _measured(Path(folder) / "one", answers, tunnelled=False)
        far = _measured(Path(folder) / "many", answers, tunnelled=True)
        errors = list(_estimates(Path(folder)))
    ratio, far_ratio = (
        median([t / h for t, h in zip(each.through, each.by_hand, strict=True)]) for each in (fleet, far)
    )
    speed = Table(
        f"rpc: {answers} answers of {_TOKENS} tokens, SmolLM2 over three processes, decode only, pairs in turn",
        ("way", "tokens/s", "to by hand"),
        (
            ("by hand", median(fleet.by_hand), 1.0),
            ("a group on one machine", median(fleet.through), ratio),
            ("by hand, once more", median(far.by_hand), 1.0),
            ("a group as between machines, through its tunnels", median(far.through), far_ratio),
        ),
    )
    times = Table(
        "rpc: seconds",
        ("what", "one machine", "through tunnels"),
        (
            ("job to first text, group not formed, tensors not cached", fleet.cold, far.cold),
            ("job to first text, group not formed, tensors cached", fleet.warm, far.warm),
            ("job to first text, group stands", fleet.ready, far.ready),
            ("a member is killed in mid-answer: until the next text", fleet.healed, far.healed),
        ),
    )
    memory = Table("rpc: memory, MiB", ("model and load", "estimated", "reported", "ratio"), tuple(errors))
    worst = max(abs(float(row[3]) - 1) for row in errors)
    aims = (
        Aim(
            "tokens/s of a group on one machine, to the same by hand",
            ratio,
            0.97,
            " x",
            higher_is_better=True,
        ),
        Aim("worst error of an estimate", 100 * worst, 10.0, " %"),
    )
    return Outcome("rpc", (speed, times, memory), aims)


@dataclass(frozen=True, slots=True)
class _Measured:
    by_hand: list[float]
    through: list[float]
    cold: float
    warm: float
    ready: float
    healed: float


def _measured(folder: Path, answers: int, *, tunnelled: bool) -> _Measured:
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(EmbeddedBroker())
        client = stack.enter_context(Client(redis.url, app="bench", cache=False))
        workers = {
            name: _worker(stack, redis.url, name, f"127.0.0.{11 + at * tunnelled}", folder)
            for at, name in enumerate(_RAM_MIB)
        }
        _child(stack, folder, redis.url, "coordinator", "--metrics", "off", "--context", str(_CONTEXT))
        _wait_until_formable(client)
        cold = _first_text(client)
        ready = median([_first_text(client) for _ in range(5)])
        group = _group(client)
        client.dissolve_group(_MODEL)
        while any(each.id == group.id and each.state is GroupState.READY for each in client.groups()):
            time.sleep(0.05)
        warm = _first_text(client)
        group = _group(client)
        by_hand, through = asyncio.run(_compared(folder, client, group, answers))
        healed = _heal(client, workers[group.parts[1][0]])
    return _Measured(by_hand, through, cold, warm, ready, healed)


def _worker(stack: contextlib.ExitStack, url: str, name: str, address: str, folder: Path) -> ChildProcess:
    return _child(
        stack,
        folder,
        url,
        name,
        *("--node", name, "--model", f"{_MODEL}={model_file()}", "--ram", str(_RAM_MIB[name])),
        *("--address", address, "--lease", "3"),
    )


def _child(stack: contextlib.ExitStack, folder: Path, url: str, name: str, *arguments: str) -> ChildProcess:
    module = "sollol_coordinator.cli" if name == "coordinator" else "sollol_worker_agent.cli"
    # The tensor cache of rpc-servers lies in the home directory: this one is empty at first.
    environment = {**os.environ, "HOME": str(folder), "OLLAMA_MODELS": str(folder / "none")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    process = ChildProcess(
        [sys.executable, "-m", module, "--redis", url, *arguments],
        environment=environment,
        log=folder / f"{name}.log",
    )
    stack.callback(process.stop, patience_seconds=15.0)
    return process


def _wait_until_formable(client: Client) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < end:
        nodes = client.nodes()
        if sum(bool(node.llama.get("files")) for node in nodes) == len(_RAM_MIB):
            return
        time.sleep(0.1)
    raise RuntimeError("the workers have not advertised their files")


def _first_text(client: Client) -> float:
    began = time.perf_counter()
    while True:
        job = client.submit(chat="Hi.", model=_MODEL, stream=True, options={"num_predict": 4})
        try:
            next(iter(job))
        except NoNodeForModel:
            time.sleep(0.1)  # the coordinator has not said yet that a group could be formed
            continue
        took = time.perf_counter() - began
        job.result(_WAIT_SECONDS)
        return took


def _group(client: Client) -> GroupView:
    return next(group for group in client.groups() if group.state is GroupState.READY)


async def _compared(
    folder: Path, client: Client, group: GroupView, answers: int
) -> tuple[list[float], list[float]]:
    """Tokens per second by llama-server's own count, in turn by hand and through the group."""
    places = [(place["node"], int(place["layers"])) for place in group.places]
    own = sum(layers for node, layers in places if node == group.head)
    counts = [layers for node, layers in places if node != group.head]
    servers = [RpcServer(log_directory=folder / f"hand-{at}", caches=False) for at in range(len(counts))]
    try:
        for server in servers:
            await server.start()
        endpoints = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        names = ",".join(f"RPC{at}" for at in range(len(counts)))
        llama = LlamaServerProcess(
            model_path=model_file(),
            alias=_MODEL,
            log_directory=folder,
            context_tokens=_CONTEXT,
            extra_args=(
                *("--rpc", endpoints, "--device", names, "--n-gpu-layers", str(sum(counts)), "--fit", "off"),
                *("--tensor-split", ",".join(map(str, counts))),
            ),
        )
        assert own + sum(counts) == facts_of(read_header(model_file())).layers + 1
        async with llama:
            return await asyncio.to_thread(_in_turn, llama.url, client, answers)
    finally:
        for server in servers:
            await server.stop()


def _in_turn(url: str, client: Client, answers: int) -> tuple[list[float], list[float]]:
    by_hand: list[float] = []
    through: list[float] = []
    with httpx.Client(base_url=url, trust_env=False, timeout=_WAIT_SECONDS) as http:
        for at in range(-1, answers):
            prompt = f"{70_000 + at} is my number. Write a few sentences about the sea."
            hand, group = _direct(http, prompt), _through(client, prompt)
            if at >= 0:
                by_hand.append(hand)
                through.append(group)
    return by_hand, through


def _direct(http: httpx.Client, prompt: str) -> float:
    """Streamed, as the worker asks: reading costs the machine something, too."""
    message = {"role": "user", "content": prompt}
    body = {"messages": [message], "temperature": 0, "max_tokens": _TOKENS, "stream": True}
    timings: dict[str, float] = {}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                timings = json.loads(line[6:]).get("timings") or timings
    return float(timings["predicted_per_second"])


def _through(client: Client, prompt: str) -> float:
    options = {"temperature": 0, "num_predict": _TOKENS}
    answer = client.submit(chat=prompt, model=_MODEL, options=options).result(_WAIT_SECONDS)
    return float(answer["eval_count"]) * 1e9 / float(answer["eval_duration"])


def _heal(client: Client, member: ChildProcess) -> float:
    """Seconds without text after a member's agent was killed in mid-answer."""
    job = client.submit(
        chat="Tell me a long story.",
        model=_MODEL,
        stream=True,
        options={"temperature": 0, "num_predict": 400},
    )
    pieces = iter(job)
    for _ in range(5):
        next(pieces)
    member.stop(patience_seconds=0)
    longest, last = 0.0, time.perf_counter()
    for _ in pieces:
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest


def _estimates(folder: Path) -> Iterator[tuple[str | float, ...]]:
    facts = facts_of(read_header(model_file()))
    for context, slots, batch in ((2048, 1, 512), (4096, 4, 512), (2048, 1, 128), (8192, 2, 256)):
        load = Load(context, slots, batch)
        yield _estimate(folder, facts, load)


def _estimate(folder: Path, facts: ModelFacts, load: Load) -> tuple[str | float, ...]:
    server = LlamaServerProcess(
        model_path=model_file(),
        alias="estimate",
        log_directory=folder,
        slots=load.slots,
        context_tokens=load.context_tokens // load.slots,
        extra_args=("--ubatch-size", str(load.batch_tokens), "--fit", "off", "--log-verbosity", "4"),
    )
    asyncio.run(_started(server))
    reported = _reported(server.log.read_text(errors="replace"))
    need = estimate(facts, load)
    estimated = need.total_mib - need.process_mib
    name = f"SmolLM2, context {load.context_tokens}, {load.slots} slots, batch {load.batch_tokens}"
    return name, estimated, reported, estimated / reported


async def _started(server: LlamaServerProcess) -> None:
    await server.start()
    await server.stop()


def _reported(log: str) -> float:
    return sum(float(mib) for _, mib in _BUFFER.findall(log))
