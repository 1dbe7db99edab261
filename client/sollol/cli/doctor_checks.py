"""What the doctor makes of the fabric, and all checks together. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from . import doctor_server
from .doctor_facts import Facts, Finding, Severity, error, ok, warn
from .units import count, duration

# Two adverts missed; after three and a half the worker is no longer listed.
_SILENT_MS = 9_000


def examine(facts: Facts) -> list[Finding]:
    """All findings, Redis first; only the first one when Redis cannot be reached."""
    if facts.unreachable:
        return [error("redis", facts.unreachable, "nothing else could be looked at")]
    return [finding for check in _CHECKS for finding in check(facts)]


def worst(findings: Sequence[Finding]) -> Severity:
    """The gravest severity among the findings."""
    order = list(Severity)
    return max((finding.severity for finding in findings), key=order.index, default=Severity.OK)


def check_workers(facts: Facts) -> Iterator[Finding]:
    """Whether anybody does the work."""
    if facts.workers is None:
        yield error("workers", facts.not_known("workers"), "let this user read the keys {sollol}:*")
        return
    if facts.workers:
        nodes = len({worker.node for worker in facts.workers})
        slots = sum(worker.slots for worker in facts.workers)
        workers = count(len(facts.workers), "worker")
        yield ok("workers", f"{workers} on {count(nodes, 'node')}, {count(slots, 'slot')}")
    else:
        remote = ", where URL must be reachable from there" if facts.is_loopback else ""
        yield error(
            "workers",
            "none is connected, so no job is answered",
            f"`sollol up` starts one here; on another machine run sollol-worker --redis URL{remote}",
        )
    if facts.vanished:
        yield warn(
            "workers",
            f"{count(facts.vanished, 'worker')} went in the last seconds without taking leave",
            "look at its log; others take over what it held",
        )
    for worker in facts.workers:
        who = f"{worker.id} on {worker.node}"
        if worker.seen_ms_ago > _SILENT_MS:
            silent = f"{who} has been silent for {duration(worker.seen_ms_ago / 1000)}"
            yield warn("workers", silent, "is that machine overloaded, or off the network?")
        if worker.state == "draining":
            yield ok("workers", f"{who} is draining: it takes nothing new")
        if worker.state == "cordoned":
            yield ok("workers", f"{who} is cordoned: it takes nothing new until `sollol nodes uncordon`")


def check_backends(facts: Facts) -> Iterator[Finding]:
    """Whether each worker's LLM servers are there, and serve something."""
    workers = facts.workers or ()
    all_down = all(backend["down"] for worker in workers for backend in worker.backends)
    for worker in workers:
        for backend in worker.backends:
            where = f"{backend['kind']} at {backend['url']} on {worker.node}"
            if not backend["down"]:
                yield ok("backends", f"{where}: up, {backend['busy']}/{backend['slots']} slots busy")
            else:
                say = error if all_down else warn
                yield say("backends", f"{where}: down, {backend['down']}", "start it, or look at its log")
        if not worker.backends:
            yield warn(
                "backends",
                f"{worker.id} on {worker.node} has no LLM server",
                "start Ollama or llama-server there, or give the worker --backend URL",
            )
        elif worker.state == "up" and not worker.models and not all(each["down"] for each in worker.backends):
            yield warn(
                "backends",
                f"no model is there on {worker.node}",
                "load one there, such as: ollama pull llama3.2",
            )


def check_versions(facts: Facts) -> Iterator[Finding]:
    """Whether all run the same release."""
    others = [worker for worker in facts.workers or () if worker.version != facts.version]
    if others:
        nodes = ", ".join(sorted({worker.node for worker in others}))
        versions = ", ".join(sorted({worker.version for worker in others}))
        yield warn(
            "versions",
            f"here {facts.version}, on {nodes} {versions}",
            "they work side by side; bring all to one release when it suits",
        )
    elif facts.workers:
        yield ok("versions", f"all run {facts.version}")


def check_dead_letters(facts: Facts) -> Iterator[Finding]:
    """Whether jobs took too many workers down."""
    if facts.dead:
        yield warn(
            "dead letters",
            f"{count(facts.dead, 'job')} took too many workers down, lately {', '.join(facts.dead_ids)}",
            "`sollol jobs ID` shows where; look at those workers' logs (out of memory?)",
        )
    elif facts.workers is not None:
        yield ok("dead letters", "none")


def check_queues(facts: Facts) -> Iterator[Finding]:
    """Whether jobs wait for a model that nobody serves."""
    if facts.queues is None:
        return
    stuck = [queue for queue in facts.queues if queue.waiting and not queue.workers]
    for queue in stuck:
        yield warn(
            "queues",
            f"{count(queue.waiting, 'job')} for {queue.model} and no worker that serves it; "
            f"the oldest has waited {duration(queue.oldest_seconds)}",
            f"start a worker that has {queue.model}, or cancel the jobs",
        )
    if not stuck:
        waiting = sum(queue.waiting for queue in facts.queues)
        running = sum(queue.running for queue in facts.queues)
        yield ok("queues", f"{waiting:,} waiting, {running:,} running")


_CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    doctor_server.check_server,
    doctor_server.check_access,
    doctor_server.check_persistence,
    doctor_server.check_eviction,
    doctor_server.check_memory,
    doctor_server.check_functions,
    doctor_server.check_clock,
    doctor_server.check_latency,
    check_workers,
    check_backends,
    check_versions,
    check_dead_letters,
    check_queues,
)
