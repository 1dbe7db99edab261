"""The machines and models of a replay: plain descriptions, from a file or by a preset's name."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .trace import ANY_MODEL, Job


class BadCluster(ValueError):
    """A description of a cluster that makes no sense; says what is wrong."""


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One machine, as measured with a model of 8 billion parameters at 4 bits.

    Attributes:
        prefill: prompt tokens per second. decode: output tokens per second. Both with one job running.
        slots: jobs at once. slowdown: share by which each further job slows all of them down.
        memory_gb: for models. load_gb_s: read from disk into it. load_s: for each load besides.
        count: of machines like this one.
    """

    name: str
    prefill: float
    decode: float
    slots: int
    slowdown: float
    memory_gb: float
    load_gb_s: float = 1.5
    load_s: float = 2.0
    has_gpu: bool = True
    count: int = 1


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model. `work`: time per token, relative to that of the usual one of 8 billion parameters."""

    name: str = ANY_MODEL
    memory_gb: float = 5.5
    work: float = 1.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines, and the models that all of them have on disk."""

    nodes: tuple[NodeSpec, ...]
    models: Mapping[str, ModelSpec] = field(default_factory=lambda: {ANY_MODEL: ModelSpec()})

    def with_models(self, *models: ModelSpec) -> Cluster:
        """The same machines with these models."""
        return replace(self, models={model.name: model for model in models})

    def model(self, name: str) -> ModelSpec:
        """A model by name; one that is not described is a usual one."""
        return self.models.get(name) or ModelSpec(name)


# Pace of llama.cpp with an 8B model at Q4: an RTX 3090, a 16 GB and an 8 GB card of that time, eight CPU cores.
_GPU24 = NodeSpec("gpu24", 3500, 105, 8, 0.3, 22)
_GPU16 = NodeSpec("gpu16", 1900, 45, 4, 0.3, 14.5)
_GPU8 = NodeSpec("gpu8", 1800, 62, 2, 0.3, 7)
_CPU = NodeSpec("cpu", 70, 9, 2, 0.6, 24, load_gb_s=0.5, has_gpu=False)


def _named(spec: NodeSpec, count: int) -> tuple[NodeSpec, ...]:
    return tuple(replace(spec, name=f"{spec.name}-{at}") for at in range(1, count + 1))


PRESETS: dict[str, Cluster] = {
    "home5": Cluster((*_named(_GPU24, 1), *_named(_GPU16, 1), *_named(_GPU8, 1), *_named(_CPU, 2))),
    "gpu3": Cluster((*_named(_GPU24, 1), *_named(_GPU16, 1), *_named(_GPU8, 1))),
    "lab12": Cluster((*_named(_GPU24, 3), *_named(_GPU16, 3), *_named(_GPU8, 4), *_named(_CPU, 2))),
    "n100": Cluster((*_named(_GPU24, 20), *_named(_GPU16, 20), *_named(_GPU8, 20), *_named(_CPU, 40))),
}


def load_cluster(text: str) -> Cluster:
    """A preset by name, or a TOML or JSON file.

    The file holds a list `nodes` with the attributes of `NodeSpec`, and if there are several models a list
    `models` with those of `ModelSpec`.

    Raises:
        BadCluster: no such preset or file, or its content makes no sense.
    """
    if text in PRESETS:
        return PRESETS[text]
    path = Path(text)
    if not path.exists():
        raise BadCluster(f"{text!r} is neither a file nor one of {', '.join(PRESETS)}")
    try:
        content = path.read_text(encoding="utf-8")
        data = json.loads(content) if path.suffix == ".json" else tomllib.loads(content)
    except ValueError as error:
        raise BadCluster(f"{path.name}: {error}") from error
    if not isinstance(data, dict) or not data.get("nodes"):
        raise BadCluster(f"{path.name} names no nodes")
    return Cluster(_nodes(data["nodes"], path.name), _models(data.get("models", [])))


def _nodes(entries: Any, where: str) -> tuple[NodeSpec, ...]:
    specs: list[NodeSpec] = []
    for entry in entries:
        spec: NodeSpec = _filled(NodeSpec, entry, where)
        if min(spec.prefill, spec.decode, spec.slots, spec.memory_gb, spec.load_gb_s, spec.count) <= 0:
            raise BadCluster(f"{where}: pace, slots, memory and count of {spec.name} must be above 0")
        specs += [spec] if spec.count == 1 else [replace(each, count=1) for each in _named(spec, spec.count)]
    return tuple(specs)


def _models(entries: Any) -> Mapping[str, ModelSpec]:
    models = [_filled(ModelSpec, entry, "models") for entry in entries] or [ModelSpec()]
    return {model.name: model for model in models}


def _filled(kind: type[Any], entry: Any, where: str) -> Any:
    known = {each.name for each in fields(kind)}
    if not isinstance(entry, dict):
        raise BadCluster(f"{where}: {entry!r} is not a table")
    if unknown := set(entry) - known:
        raise BadCluster(
            f"{where}: {kind.__name__} has no {', '.join(sorted(unknown))}, only {sorted(known)}"
        )
    try:
        return kind(**entry)
    except TypeError as error:
        raise BadCluster(f"{where}: {error}") from error


def seconds_alone(node: NodeSpec, model: ModelSpec, prompt_tokens: float, output_tokens: float) -> float:
    """What a job takes on a machine that does nothing else, its model in memory."""
    return model.work * (prompt_tokens / node.prefill + output_tokens / node.decode)


def full_load_factor(cluster: Cluster, jobs: Sequence[Job]) -> float:
    """By how much to stretch the jobs so that all machines, serving the same mix, could just keep up.

    Loads of models are not counted.
    """
    rate = 0.0
    for node in cluster.nodes:
        served = [job for job in jobs if cluster.model(job.model).memory_gb <= node.memory_gb]
        alone = sum(
            seconds_alone(node, cluster.model(job.model), job.prompt_tokens, job.output_tokens)
            for job in served
        )
        if alone > 0:
            rate += len(served) * node.slots / (1 + node.slowdown * (node.slots - 1)) / alone
    if rate <= 0:
        raise BadCluster("no machine has the memory for any of the models")
    span = jobs[-1].arrival_s - jobs[0].arrival_s
    return len(jobs) / rate / span if span > 0 else 1.0
