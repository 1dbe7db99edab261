"""The split over rpc-servers that somebody names by hand. Pure; a fabric's groups are planned by the coordinator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sollol_broker.model_facts import ModelFacts
from sollol_coordinator.estimate import DeviceNeed, Load, head_mib, needs_of, split_layers


@dataclass(frozen=True, slots=True)
class RemoteDevice:
    """A device of an rpc-server. `name`: for people, such as "127.0.0.1:50052" or "10.0.0.5:50052 device 1"."""

    name: str
    free_mib: float


@dataclass(frozen=True, slots=True)
class Split:
    """All layers on remote devices.

    Attributes:
        needs: per device, in order. head_mib: main memory of the machine that runs llama-server.
    """

    devices: tuple[RemoteDevice, ...]
    needs: tuple[DeviceNeed, ...]
    head_mib: float

    @property
    def shares(self) -> tuple[int, ...]:
        """Layers per device: what llama-server's --tensor-split is to be told."""
        return tuple(each.layers for each in self.needs)

    @property
    def missing_mib(self) -> dict[str, float]:
        """By device: what it lacks."""
        return {
            device.name: need.total_mib - device.free_mib
            for device, need in zip(self.devices, self.needs, strict=True)
            if need.total_mib > device.free_mib
        }


def split_over(facts: ModelFacts, load: Load, devices: Sequence[RemoteDevice]) -> Split:
    """Each device gets layers by the memory that it has free; the output layer counts as one."""
    free = [max(1.0, device.free_mib) for device in devices]
    counts = split_layers(facts.layers, free)
    return Split(tuple(devices), tuple(needs_of(facts, load, counts)), head_mib(facts, load))
