"""The files for Docker and Kubernetes are valid, hardened, and agree with each other."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

import compose_kit

_ROOT = Path(__file__).parents[2]
_MANIFESTS = sorted((_ROOT / "compose" / "kubernetes").glob("*.yaml"))


def _ours() -> dict[str, Any]:
    services = compose_kit.read({})["services"]
    return {name: each for name, each in services.items() if each["image"].startswith("sollol:")}


@pytest.mark.parametrize("environ", [{}, compose_kit.example()], ids=["defaults", "example"])
def test_the_compose_file_is_valid(environ: dict[str, str]) -> None:
    read = compose_kit.read(environ)
    plain = yaml.safe_dump({key: value for key, value in read.items() if not key.startswith("x-")})
    # Docker's own word for this machine; the schema knows addresses alone.
    plain = plain.replace("host.docker.internal:host-gateway", "host.docker.internal:127.0.0.1")
    assert set(PyCompose.from_yaml(plain).service_names()) == read["services"].keys()


def test_the_example_sets_what_the_file_reads_to_the_same_defaults() -> None:
    read = compose_kit.variables()
    assert read.pop("SOLLOL_VERSION") == "latest"
    assert compose_kit.example() == read


def test_our_containers_have_no_rights_and_say_how_they_are() -> None:
    assert len(_ours()) >= 9
    for name, each in _ours().items():
        assert each["read_only"] is True, name
        assert each["cap_drop"] == ["ALL"], name
        assert each["security_opt"] == ["no-new-privileges:true"], name
        assert "healthcheck" in each or each["restart"] == "no", name
    dockerfile = (_ROOT / "compose" / "Dockerfile").read_text("utf-8")
    assert re.search(r"^USER 10001$", dockerfile, re.M)
    assert "--require-hashes" in dockerfile


def test_each_part_sees_its_own_password_alone() -> None:
    for name, each in _ours().items():
        text = yaml.safe_dump(each)
        secrets = set(re.findall(r"secret-(\w+):", text))
        if name == "users":
            assert len(secrets) == 6
            continue
        (role,) = secrets
        assert set(re.findall(r"sollol-(\w+)@redis", text)) == {role}, name
        assert f"/secrets/{role}/password" in text


def test_ports_are_open_on_this_machine_alone_until_one_says_otherwise() -> None:
    services = compose_kit.read({})["services"]
    ports = [port for each in services.values() for port in each.get("ports", ())]
    assert len(ports) >= 5
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_what_the_dockerfile_copies_is_let_through() -> None:
    dockerfile = (_ROOT / "compose" / "Dockerfile").read_text("utf-8")
    copied = {
        word for words in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.M) for word in words.split()
    }
    let_through = set(re.findall(r"^!(.+)$", (_ROOT / ".dockerignore").read_text("utf-8"), re.M))
    assert copied == let_through
    assert all((_ROOT / each).exists() for each in copied)


@pytest.mark.parametrize("path", _MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(path: Path) -> None:
    for manifest in yaml.safe_load_all(path.read_text("utf-8")):
        if manifest["kind"] in ("Kustomization", "ScaledObject"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kubernetes_validate.validate(manifest, "1.32", strict=True)


def test_kustomize_takes_every_manifest() -> None:
    folder = _ROOT / "compose" / "kubernetes"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    others = {path.name for path in _MANIFESTS} - {"kustomization.yaml", "keda.yaml"}
    assert set(kustomization["resources"]) == others


def test_keda_scales_workers_by_metrics_that_are_there() -> None:
    folder = _ROOT / "compose" / "kubernetes"
    scaled = yaml.safe_load((folder / "keda.yaml").read_text("utf-8"))
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    workers = list(yaml.safe_load_all((folder / "worker.yaml").read_text("utf-8")))
    assert scaled["spec"]["scaleTargetRef"]["name"] in {each["metadata"]["name"] for each in workers}
    documented = set(re.findall(r"`(sollol_\w+)`", (_ROOT / "docs" / "metrics.md").read_text("utf-8")))
    for trigger in scaled["spec"]["triggers"]:
        assert trigger["type"] == "prometheus"
        assert {"serverAddress", "query", "threshold"} == trigger["metadata"].keys()
        assert set(re.findall(r"sollol_\w+", trigger["metadata"]["query"])) <= documented


def _listens_for_prometheus(command: list[str]) -> str:
    """The port at which others than this machine may read /metrics without a key; "" = none."""
    told = dict(itertools.pairwise(command))
    host, _, port = told.get("--metrics", "").rpartition(":")
    host, port = told.get("--metrics-host", host), told.get("--metrics-port", port)
    return port if host == "0.0.0.0" else ""  # noqa: S104  # that is what is looked for


def test_prometheus_reads_only_where_it_is_let_in() -> None:
    services = compose_kit.read({})["services"]
    config = yaml.safe_load((_ROOT / "compose" / "prometheus" / "prometheus.yml").read_text("utf-8"))
    read = set()
    for job in config["scrape_configs"]:
        assert "authorization" not in job
        for places in job.get("static_configs", ()):
            read |= {tuple(target.split(":")) for target in places["targets"]}
        for places in job.get("dns_sd_configs", ()):
            read |= {(name, str(places["port"])) for name in places["names"]}
    told = {(name, _listens_for_prometheus(list(each.get("command", ())))) for name, each in services.items()}
    assert read == {(name, port) for name, port in told if port}
    assert {name for name, _ in read} >= {"gateway", "coordinator", "dashboard", "worker"}


def test_pods_are_read_where_prometheus_is_let_in() -> None:
    read = set()
    for path in _MANIFESTS:
        for manifest in yaml.safe_load_all(path.read_text("utf-8")):
            pod = manifest.get("spec", {}).get("template", {})
            noted = pod.get("metadata", {}).get("annotations", {})
            if noted.get("prometheus.io/scrape") != "true":
                continue
            commands = [each.get("args", []) for each in pod["spec"]["containers"]]
            assert noted["prometheus.io/port"] in map(_listens_for_prometheus, commands), path.name
            read.add(manifest["metadata"]["name"])
    assert read >= {"gateway", "coordinator", "dashboard"}
