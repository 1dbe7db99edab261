"""The fabric's figures as Prometheus reads them. Names and labels are promises: docs/metrics.md lists them all.

Whoever shows them needs `prometheus-client`, which the extras worker, coordinator and gateway bring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .batch_record import BatchView
from .batch_store import BatchStore
from .broker import Broker
from .errors import SollolError
from .facts import Facts
from .facts_reader import FactsReader
from .groups import GroupState
from .registry import NodeView
from .series import COUNTS, PER_DOUBLING, TIMES, Point, Time, edge_ms
from .series_reader import SeriesReader
from .words import BatchState, JobState

# Label values of one kind, so that no stranger can fill a Prometheus; what is beyond counts under OTHER.
MOST_HOSTS: Final = 256
MOST_MODELS: Final = 64
OTHER: Final = "other"
# Each is a read of its own.
_MOST_BATCHES: Final = 30
# A scrape must not hang with a Redis that does: Prometheus gives up after ten seconds.
_READ_SECONDS = 5.0
_SCRAPE_SECONDS = 8.0
_MIB = 1024 * 1024
# Doublings of an eighth of a millisecond at which Prometheus' buckets end: 4 ms to 17 min, and 1 ms to 16 s.
_LONG: Final = range(5, 24)
_SHORT: Final = range(3, 18)
_BY_MODEL: Final[tuple[tuple[Time, str, str, range], ...]] = (
    ("ttft", "sollol_ttft_seconds", "From a job's submission to the first piece of its answer.", _LONG),
    ("gap", "sollol_token_gap_seconds", "Between two tokens of an answer.", _SHORT),
    ("wait", "sollol_queue_wait_seconds", "From a job's submission to its claim by a worker.", _LONG),
    ("latency", "sollol_duration_seconds", "From a job's submission to its answer.", _LONG),
)

Totals = Mapping[str, Mapping[str, Point]]


def job_families(totals: Totals) -> Iterator[Metric]:
    """What jobs took, by host and model; only the busiest models by name."""
    totals = _with_few_models(totals)
    requests = CounterMetricFamily(
        "sollol_requests", "Attempts that ended with an answer or an error.", labels=("host", "model")
    )
    errors = CounterMetricFamily(
        "sollol_errors", "Attempts that ended with an error.", labels=("host", "model")
    )
    prompt = CounterMetricFamily(
        "sollol_prompt_tokens", "Tokens of prompts that were answered.", labels=("host", "model")
    )
    output = CounterMetricFamily(
        "sollol_output_tokens", "Tokens that were generated.", labels=("host", "model")
    )
    for host, models in totals.items():
        for model, point in models.items():
            counts = dict(zip(COUNTS, point.counts, strict=True))
            requests.add_metric((host, model), counts["requests"])
            errors.add_metric((host, model), counts["errors"])
            prompt.add_metric((host, model), counts["tokens_in"])
            output.add_metric((host, model), counts["tokens_out"])
    yield from (requests, errors, prompt, output)

    success = GaugeMetricFamily(
        "sollol_success_rate", "Share of a host's attempts without an error.", labels=("host",)
    )
    run = HistogramMetricFamily(
        "sollol_latency_seconds", "From a job's claim by a host to its answer.", labels=("host",)
    )
    for host, models in totals.items():
        whole = _joined(models.values())
        ended, failed = whole.counts[0], whole.counts[1]
        success.add_metric((host,), (ended - failed) / ended if ended else 1.0)
        _add_histogram(run, (host,), whole, "run", _LONG)
    yield from (success, run)

    by_model: dict[str, Point] = {}
    for models in totals.values():
        for model, point in models.items():
            by_model.setdefault(model, Point()).add(point)
    for time, name, text, edges in _BY_MODEL:
        family = HistogramMetricFamily(name, text, labels=("model",))
        for model, point in by_model.items():
            _add_histogram(family, (model,), point, time, edges)
        yield family


def fabric_families(facts: Facts, batches: Sequence[BatchView] = ()) -> Iterator[Metric]:
    """What the fabric is like at this moment.

    Args:
        batches: the latest ones.
    """
    yield _redis_up(1)
    yield from _queue_families(facts)
    yield from _host_families(sorted(facts.nodes, key=lambda node: node.name)[:MOST_HOSTS])
    yield _gauge("sollol_nodes", "Nodes with a live worker.", len(facts.nodes))
    yield _gauge(
        "sollol_nodes_gone", "Nodes whose workers vanished within the last hour.", len(facts.vanished)
    )
    yield _gauge("sollol_apps", "Applications that were heard of within two minutes.", facts.apps_in_all)
    yield _gauge("sollol_leases", "Jobs that run.", facts.running_total)
    yield _gauge("sollol_jobs_delayed", "Jobs that wait out a backoff.", facts.delayed)
    yield _gauge("sollol_dead_letters", "Jobs that took too many workers down with them.", facts.dead)
    yield _counter("sollol_jobs_submitted", "Jobs that were taken in.", facts.counters.get("submitted", 0))
    yield _counter(
        "sollol_jobs_requeued", "Attempts that were given back.", facts.counters.get("requeued", 0)
    )
    ended = CounterMetricFamily("sollol_jobs_ended", "Jobs that have ended.", labels=("state",))
    for state in JobState:
        if state.is_terminal:
            ended.add_metric((str(state),), facts.counters.get(state, 0))
    yield ended
    groups = GaugeMetricFamily("sollol_groups", "Groups of nodes by state.", labels=("state",))
    for each in GroupState:
        groups.add_metric((each.value,), sum(group.state is each for group in facts.groups))
    yield groups
    of_batches = GaugeMetricFamily("sollol_batches", "The latest batches by state.", labels=("state",))
    for kind in BatchState:
        of_batches.add_metric((kind.value,), sum(batch.state is kind for batch in batches))
    yield of_batches
    open_items = sum(batch.fed - batch.done for batch in batches if not batch.state.is_terminal)
    yield _gauge("sollol_batch_items_open", "Items of these batches without a result.", open_items)
    yield _gauge("sollol_has_leader", "1 while a coordinator leads.", int(bool(facts.leader)))
    server = facts.server
    yield _gauge("sollol_redis_memory_used_bytes", "Memory that Redis uses.", server.used_bytes)
    yield _gauge(
        "sollol_redis_memory_max_bytes", "Memory that Redis may use; 0 = no limit.", server.most_bytes
    )
    if server.persistent is not None:
        yield _gauge(
            "sollol_redis_persistent", "1 while Redis writes an append-only file.", int(server.persistent)
        )
        yield _gauge(
            "sollol_redis_write_failed",
            "1 after a write of Redis' to disk that failed.",
            int(server.write_failed),
        )


class FabricFigures:
    """Reads the fabric's figures, at each scrape.

    Args:
        broker: its user needs no more rights than the role `dashboard` has.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._facts = FactsReader(broker)
        self._series = SeriesReader(broker)
        self._batches = BatchStore(broker)

    async def families(self) -> list[Metric]:
        """All of them; with Redis away, that it is."""
        try:
            async with asyncio.timeout(_READ_SECONDS):
                facts, totals, batches = await asyncio.gather(
                    self._facts.read(), self._series.totals(), self._batches.views(_MOST_BATCHES)
                )
        except (SollolError, TimeoutError):
            return [_redis_up(0)]
        return [*fabric_families(facts, batches), *job_families(totals)]

    async def server_families(self) -> list[Metric]:
        """Whether Redis answers, and nothing else."""
        try:
            async with asyncio.timeout(_READ_SECONDS):
                await self._broker.link.call("TIME", patience_seconds=1.0)
        except (SollolError, TimeoutError):
            return [_redis_up(0)]
        return [_redis_up(1)]

    async def text(self) -> bytes:
        """In Prometheus' format."""
        return exposition(await self.families())


class LoopCollector(Collector):
    """Figures that an event loop knows, for a server in another thread.

    Args:
        read: asked in that loop, at each scrape.
    """

    def __init__(self, read: Callable[[], Awaitable[Iterable[Metric]]]) -> None:
        self._read = read
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """From now on the running loop is asked."""
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """From now on nobody is asked."""
        self._loop = None

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """What there is now; nothing while the loop does not run or answer."""
        if self._loop is None:
            return ()

        async def read() -> list[Metric]:
            return list(await self._read())

        try:
            return asyncio.run_coroutine_threadsafe(read(), self._loop).result(_SCRAPE_SECONDS)
        except (FutureTimeout, RuntimeError):
            return ()


def serve(registry: CollectorRegistry, host: str, port: int, *, flag: str) -> Callable[[], None]:
    """Show figures at /metrics of a port of their own; gives what stops that.

    Args:
        flag: of the command line that named the port.

    Raises:
        ValueError: nobody can listen there.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ValueError(
            f"{flag} {port}: nothing can listen on {host}:{port} ({error.strerror or error}); choose another port"
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def exposition(families: Iterable[Metric]) -> bytes:
    """Figures in Prometheus' format."""
    registry = CollectorRegistry()
    registry.register(_Ready(list(families)))
    return generate_latest(registry)


class _Ready(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _queue_families(facts: Facts) -> Iterator[Metric]:
    depth = GaugeMetricFamily("sollol_queue_depth", "Jobs that wait.", labels=("model",))
    oldest = GaugeMetricFamily(
        "sollol_queue_oldest_seconds", "How long the first of them has waited.", labels=("model",)
    )
    rows: dict[str, list[Any]] = {}
    for at, queue in enumerate(sorted(facts.queues, key=lambda queue: queue.model)):
        row = rows.setdefault(queue.model if at < MOST_MODELS else OTHER, [0, 0.0])
        row[0] += queue.waiting
        row[1] = max(row[1], queue.oldest_seconds)
    for model, (waiting, seconds) in rows.items():
        depth.add_metric((model,), waiting)
        oldest.add_metric((model,), seconds)
    yield from (depth, oldest)


def _host_families(nodes: Sequence[NodeView]) -> Iterator[Metric]:
    def family(name: str, text: str, *more: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, text, labels=("host", *more))

    workers = family("sollol_workers", "Live workers.")
    slots = family("sollol_slots", "Jobs that a host can run at once.")
    busy = family("sollol_slots_busy", "Jobs that a host runs.")
    down = family("sollol_backends_down", "LLM servers of a host that get no jobs because they fail.")
    load = family("sollol_load1", "Processes that run or wait, over a minute.")
    ram = family("sollol_ram_bytes", "Main memory.", "kind")
    vram = family("sollol_vram_bytes", "Memory of all GPUs.", "kind")
    gpu = family("sollol_gpu_utilisation_ratio", "How busy a GPU is, from 0 to 1.", "gpu")
    for node in nodes:
        host, hardware = node.name, node.hardware
        workers.add_metric((host,), len(node.workers))
        slots.add_metric((host,), sum(worker.slots for worker in node.workers))
        busy.add_metric((host,), sum(worker.busy for worker in node.workers))
        backends = [backend for worker in node.workers for backend in worker.backends]
        down.add_metric((host,), sum(bool(backend.get("down")) for backend in backends))
        if not hardware:
            continue
        load.add_metric((host,), float(hardware.get("load_1m", 0)))
        total, free = hardware.get("ram_total_mib", 0), hardware.get("ram_available_mib", 0)
        _add_memory(ram, host, int(total), int(free))
        if gpus := hardware.get("gpus", []):
            _add_memory(
                vram, host, int(hardware.get("vram_total_mib", 0)), int(hardware.get("vram_free_mib", 0))
            )
        for each in gpus:
            if each.get("utilisation_percent") is not None:
                gpu.add_metric((host, str(each.get("index", 0))), float(each["utilisation_percent"]) / 100)
    yield from (workers, slots, busy, down, load, ram, vram, gpu)


def _add_memory(family: GaugeMetricFamily, host: str, total_mib: int, free_mib: int) -> None:
    family.add_metric((host, "total"), total_mib * _MIB)
    family.add_metric((host, "used"), max(0, total_mib - free_mib) * _MIB)


def _redis_up(value: int) -> Metric:
    return _gauge("sollol_redis_up", "1 while Redis answers.", value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _with_few_models(totals: Totals) -> Totals:
    requests: dict[str, int] = {}
    for models in totals.values():
        for model, point in models.items():
            requests[model] = requests.get(model, 0) + point.counts[0]
    requests.pop(OTHER, None)
    if len(requests) <= MOST_MODELS:
        return totals
    named = set(sorted(requests, key=lambda model: (-requests[model], model))[:MOST_MODELS])
    found: dict[str, dict[str, Point]] = {}
    for host, models in totals.items():
        for model, point in models.items():
            name = model if model in named else OTHER
            found.setdefault(host, {}).setdefault(name, Point()).add(point)
    return found


def _joined(points: Iterable[Point]) -> Point:
    whole = Point()
    for point in points:
        whole.add(point)
    return whole


def _add_histogram(
    family: HistogramMetricFamily, labels: Sequence[str], point: Point, time: Time, doublings: range
) -> None:
    at = TIMES.index(time)
    buckets = point.times[at]
    edges = [(PER_DOUBLING * doubling, edge_ms(PER_DOUBLING * doubling) / 1000) for doubling in doublings]
    rows = [
        (f"{seconds:g}", float(sum(n for bucket, n in buckets.items() if bucket < edge)))
        for edge, seconds in edges
    ]
    rows.append(("+Inf", float(sum(buckets.values()))))
    family.add_metric(labels, rows, point.sums_us[at] / 1e6)
