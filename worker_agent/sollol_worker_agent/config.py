"""How a worker is set up: values only, checked where they are built."""

from __future__ import annotations

from dataclasses import dataclass, field

from sollol_broker.live_log import USUAL_SAMPLE
from sollol_broker.names import check_name

from .backends.protocol import Timeouts


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """One worker agent.

    Attributes:
        node: this machine's name in the fabric.
        slots: jobs at once over all backends; None = as many as the backends have.
        labels: words that jobs may ask for (`requires={"labels": […]}`).
        lease_seconds: how long a job stays ours without a sign of life. Shorter = a crash is noticed
            sooner; longer = a stalled network is forgiven longer.
        advertise_seconds: between two adverts; the advert lives three times as long.
        poll_seconds: an idle worker looks for work this often even when no bell rings, since a bell
            can be swallowed by a process that hangs.
        reap_seconds: between two looks for jobs of dead workers.
        most_errors: backend errors after which a job fails for good.
        most_crashes: workers that may die with a job before it goes to the dead letters; before the last
            one it is run alone.
        elsewhere: the host on which the backends stand when it is not this machine; of its hardware nothing is
            known then. "" = they stand here.
        counts: whether it counts what its jobs take, for the fabric's history and for Prometheus.
        drain_seconds: on SIGTERM, how long running jobs may take to end before they are handed back.
        log_sample: share of the answered jobs that the live log tells of; failures always. None = nothing is written.
    """

    node: str
    slots: int | None = None
    labels: tuple[str, ...] = ()
    lease_seconds: float = 10.0
    advertise_seconds: float = 4.0
    poll_seconds: float = 1.5
    reap_seconds: float = 2.5
    most_errors: int = 4
    most_crashes: int = 3
    elsewhere: str = ""
    counts: bool = True
    drain_seconds: float = 30.0
    log_sample: float | None = USUAL_SAMPLE
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        check_name(self.node, "node")
        if self.slots is not None and self.slots < 1:
            raise ValueError(f"slots must be 1 or more, got {self.slots}")
        if self.lease_seconds <= 0 or self.advertise_seconds <= 0:
            raise ValueError("lease and advert must last longer than 0 s")

    @property
    def lease_ms(self) -> int:
        """The lease in ms, as Redis counts."""
        return round(self.lease_seconds * 1000)
