"""All that the doctor looks at, in the order in which it tells. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from . import doctor_access, doctor_fabric, doctor_server
from .doctor_facts import Facts, Finding, Severity, error, warning

_CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    doctor_server.check_server,
    doctor_access.check_holes,
    doctor_access.check_login,
    doctor_access.check_roles,
    doctor_access.check_api_keys,
    doctor_access.check_slow_log,
    doctor_access.check_listeners,
    doctor_server.check_persistence,
    doctor_server.check_replicas,
    doctor_server.check_cut_off,
    doctor_fabric.check_durability,
    doctor_server.check_eviction,
    doctor_server.check_memory,
    doctor_server.check_clients,
    doctor_server.check_latency,
    doctor_server.check_functions,
    doctor_server.check_clock,
    doctor_fabric.check_worker_clocks,
    doctor_fabric.check_workers,
    doctor_fabric.check_backends,
    doctor_access.check_remote_backends,
    doctor_fabric.check_gpus,
    doctor_fabric.check_versions,
    doctor_fabric.check_dead_letters,
    doctor_fabric.check_queues,
)


def examine(facts: Facts) -> list[Finding]:
    """All findings, Redis first; only the first one when Redis cannot be reached."""
    if facts.unreachable:
        return [error("redis.reachable", facts.unreachable, "nothing else could be looked at")]
    return [finding for check in (*_CHECKS, check_sight) for finding in check(facts)]


def check_sight(facts: Facts) -> Iterator[Finding]:
    """What the doctor could not look at: then a good report says less."""
    by_reason: dict[str, list[str]] = {}
    for what, reason in facts.refused:
        by_reason.setdefault(reason, []).append(what)
    for reason, looks in by_reason.items():
        yield warning(
            "doctor.blind",
            f"not seen: {', '.join(looks)} ({reason})",
            "what hangs on it was left out: "
            + (
                "first see to what is said of persistence"
                if "MISCONF" in reason
                else "run the doctor as a user who may look, such as the admin of `sollol acl`"
            ),
        )


def worst(findings: Sequence[Finding]) -> Severity:
    """The gravest severity among the findings."""
    order = list(Severity)
    return max((finding.severity for finding in findings), key=order.index, default=Severity.OK)
