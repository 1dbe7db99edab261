"""What the doctor makes of workers, backends, GPUs and queues. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sollol_broker.registry import WorkerView
from sollol_broker.words import Durability

from .doctor_facts import Facts, Finding, error, note, ok, warning
from .doctor_releases import backend_holes
from .doctor_server import CLOCK_SECONDS
from .units import count, duration, gib

# Two adverts missed; after three and a half the worker is no longer listed.
_SILENT_MS = 9_000
# A job that nobody started for so long was forgotten, or the fabric is too small.
_OLD_SECONDS = 600.0


def check_workers(facts: Facts) -> Iterator[Finding]:
    """Whether anybody does the work."""
    if facts.nodes is None:
        return
    workers = facts.workers
    if workers:
        slots = sum(worker.slots for worker in workers)
        on = f"{count(len(workers), 'worker')} on {count(len(facts.nodes), 'node')}"
        yield ok("workers.connected", f"{on}, {count(slots, 'slot')}")
    else:
        remote = ", where URL must be reachable from there" if facts.is_loopback else ""
        yield error(
            "workers.connected",
            "none is connected, so no job is answered",
            f"`sollol up` starts one here; on another machine run sollol-worker --redis URL{remote}",
        )
    if workers and all(worker.state != "up" for worker in workers):
        yield warning(
            "workers.closed",
            "all workers are draining or cordoned: new jobs are refused",
            "`sollol nodes uncordon NODE` opens a node again",
        )
    if facts.vanished:
        yield warning(
            "workers.vanished",
            f"{count(facts.vanished, 'worker')} went within the last minute without taking leave",
            "look at its log; others take over what it held",
        )
    for worker in workers:
        who = f"{worker.id} on {worker.node}"
        if worker.seen_ms_ago > _SILENT_MS:
            silent = f"{who} has been silent for {duration(worker.seen_ms_ago / 1000)}"
            yield warning("workers.silent", silent, "is that machine overloaded, or off the network?")
        if worker.state == "draining":
            yield note("workers.closed", f"{who} is draining: it takes nothing new")
        if worker.state == "cordoned":
            yield note(
                "workers.closed",
                f"{who} is cordoned: it takes nothing new until `sollol nodes uncordon {worker.node}`",
            )


def check_backends(facts: Facts) -> Iterator[Finding]:
    """Whether each worker's LLM servers are there, serve something, and are safe."""
    all_down = all(backend["down"] for worker in facts.workers for backend in worker.backends)
    for worker in facts.workers:
        for backend in worker.backends:
            release = backend.get("version", "")
            where = (
                f"{' '.join(filter(None, (backend['kind'], release)))} at {backend['url']} on {worker.node}"
            )
            if backend["down"]:
                say = error if all_down else warning
                yield say("backends.up", f"{where}: down, {backend['down']}", "start it, or look at its log")
            else:
                yield ok("backends.up", f"{where}: up, {backend['busy']}/{backend['slots']} slots busy")
            if better := backend_holes(backend["kind"], release):
                yield warning("backends.holes", f"{where} has known holes", f"upgrade it there to {better}")
        yield from _lacks(worker)


def check_gpus(facts: Facts) -> Iterator[Finding]:
    """Whether the nodes' GPUs can be read."""
    for node in facts.nodes or ():
        gpus = node.hardware.get("gpus") or ()
        if unread := node.hardware.get("unread"):
            yield warning(
                "gpus.readable",
                f"{node.name} has an NVIDIA GPU that cannot be read: {unread}",
                "does `nvidia-smi` work there? In a container, give it the GPU (--gpus all)",
            )
        elif guessed := [gpu["name"] for gpu in gpus if gpu["is_estimate"]]:
            yield note(
                "gpus.readable",
                f"{node.name}: the memory of {', '.join(guessed)} is an estimate, for the driver does not tell it",
                "bound it with the worker's own limits if models do not fit",
            )
        elif gpus:
            drivers = ", ".join(sorted({gpu["driver"] for gpu in gpus if gpu.get("driver")}))
            vram = sum(gpu["memory_total_mib"] for gpu in gpus)
            with_driver = f", driver {drivers}" if drivers else ""
            yield ok("gpus.readable", f"{node.name}: {count(len(gpus), 'GPU')}, {gib(vram)} GiB{with_driver}")
        else:
            yield ok("gpus.readable", f"{node.name} has none, and computes on its CPU")


def check_worker_clocks(facts: Facts) -> Iterator[Finding]:
    """Whether the workers' machines and Redis agree on the time."""
    ahead = {
        worker.node: worker.clock_ahead_seconds
        for worker in facts.workers
        if worker.clock_ahead_seconds is not None
    }
    wrong = {node: seconds for node, seconds in ahead.items() if abs(seconds) >= CLOCK_SECONDS}
    for node, seconds in wrong.items():
        direction = "ahead of" if seconds > 0 else "behind"
        yield warning(
            "clock.workers",
            f"{node} is {duration(abs(seconds))} {direction} Redis: jobs run rightly, but its log misleads",
            "synchronise it with NTP (timedatectl set-ntp true)",
        )
    if ahead and not wrong:
        yield ok("clock.workers", f"all workers within {duration(CLOCK_SECONDS)} of Redis")


def check_durability(facts: Facts) -> Iterator[Finding]:
    """When jobs and answers count as accepted, and whether all agree on that."""
    if facts.nodes is None and facts.apps is None:
        return
    told = [(worker.node, worker.durability) for worker in facts.workers]
    told += [(f"application {app.name}", app.durability) for app in facts.apps or ()]
    others = sorted({who for who, durability in told if durability not in ("", facts.durability)})
    if others:
        other = "local" if facts.durability is Durability.HA else "ha"
        yield note(
            "persistence.durability",
            f"{facts.durability} here, {other} on {', '.join(others)}: local jobs and answers are not waited for",
            "name the same in all URLs (durability=) or in SOLLOL_DURABILITY, if that is not meant so",
        )
    elif facts.durability is Durability.HA:
        yield ok("persistence.durability", "ha: what is accepted lies on a replica, too")
    else:
        yield ok("persistence.durability", "local: what Redis has taken is accepted")


def check_versions(facts: Facts) -> Iterator[Finding]:
    """Whether all run the same release."""
    ours = facts.functions.name.removeprefix("sollol_") if facts.functions else ""
    told = [(worker.node, worker.version, worker.functions) for worker in facts.workers]
    told += [
        (f"application {app.name}", app.version, app.functions) for app in facts.apps or () if app.version
    ]
    others = [
        (who, f"{version} ({functions})" if functions else version)
        for who, version, functions in told
        if version != facts.version or (ours and functions and functions != ours)
    ]
    if others:
        names = ", ".join(sorted({who for who, _ in others}))
        versions = ", ".join(sorted({release for _, release in others}))
        here = f"{facts.version} ({ours})" if ours else facts.version
        yield warning(
            "versions.skew",
            f"here {here}, on {names} {versions}",
            "they work side by side; bring all to one release when it suits",
        )
    elif told:
        yield ok("versions.skew", f"all run {facts.version}")


def check_dead_letters(facts: Facts) -> Iterator[Finding]:
    """Whether jobs took too many workers down."""
    if facts.dead:
        yield warning(
            "jobs.dead",
            f"{count(facts.dead, 'job')} took too many workers down, lately {', '.join(facts.dead_ids)}",
            "`sollol dead` shows where; look at those workers' logs (out of memory?), then retry or drop them",
        )
    elif facts.dead is not None:
        yield ok("jobs.dead", "no dead letters")


def check_queues(facts: Facts) -> Iterator[Finding]:
    """Whether jobs wait for a model that nobody serves, or for too long."""
    if facts.queues is None:
        return
    is_well = True
    for queue in facts.queues:
        waited = f"the oldest has waited {duration(queue.oldest_seconds)}"
        if queue.waiting and not queue.workers:
            is_well = False
            yield warning(
                "queues.unserved",
                f"{count(queue.waiting, 'job')} for {queue.model} and no worker that serves it; {waited}",
                f"start a worker that has {queue.model}, or cancel the jobs",
            )
        elif queue.waiting and queue.oldest_seconds > _OLD_SECONDS:
            is_well = False
            yield warning(
                "queues.old",
                f"{count(queue.waiting, 'job')} for {queue.model}, {count(queue.workers, 'worker')}; {waited}",
                "`sollol jobs` and `sollol explain ID` tell why; add a node, or bound the queue: `sollol limits`",
            )
    if is_well:
        waiting = sum(queue.waiting for queue in facts.queues)
        running = sum(queue.running for queue in facts.queues)
        yield ok("queues.waiting", f"{waiting:,} waiting, {running:,} running")


def _lacks(worker: WorkerView) -> Iterator[Finding]:
    if worker.kind == "reporter":
        return
    if not worker.backends:
        yield warning(
            "backends.none",
            f"{worker.id} on {worker.node} has no LLM server",
            "start Ollama or llama-server there, or give the worker --backend URL",
        )
    elif worker.state == "up" and not worker.models and not all(each["down"] for each in worker.backends):
        yield warning(
            "backends.models",
            f"no model is there on {worker.node}",
            "load one there, such as: ollama pull llama3.2",
        )
