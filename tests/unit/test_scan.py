"""What is looked through when somebody asks for servers, how fast, and who gets a worker for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from threading import Thread

import pytest
from click.testing import CliRunner

from sollol import docker_ip_resolver
from sollol.adopt import Adopted, plan
from sollol.cli.app import app
from sollol.docker_engine import Published, published
from sollol.docker_ip_resolver import auto_resolve_ips, resolve_docker_ip, resolve_docker_ip_with_alternatives
from sollol.scan import Found, Pace, addresses, ports
from sollol_broker.errors import InvalidJob
from sollol_broker.registry import NodeView, WorkerView


def test_networks_are_taken_apart_each_address_once() -> None:
    assert addresses(["10.0.0.0/30", "10.0.0.2", "fd00::5"]) == ["10.0.0.1", "10.0.0.2", "fd00::5"]


@pytest.mark.parametrize("network", ["10.0.0.0/8", "fd00::/64", "nowhere", "10.0.0.0/33", ""])
def test_a_network_that_is_none_or_too_large_is_refused(network: str) -> None:
    with pytest.raises(InvalidJob):
        addresses([network])
    with pytest.raises(InvalidJob):
        addresses(["10.0.0.0/20", network])


def test_ports_and_ranges() -> None:
    assert ports("80, 50050-50052,80") == [80, 50050, 50051, 50052]


@pytest.mark.parametrize("text", ["", "http", "0", "70000", "90-80", "1-1000", "-5"])
def test_ports_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(InvalidJob):
        ports(text)


async def test_no_more_begin_per_second_than_is_told() -> None:
    now, begun = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    pace = Pace(rate=10, at_once=100, clock=lambda: now, sleep=sleep)
    for _ in range(31):
        async with pace:
            begun.append(now)
    assert begun[0] == 0
    assert begun[30] == pytest.approx(3.0)


async def test_no_more_are_under_way_at_once_than_is_told() -> None:
    pace, under_way, most, go = Pace(rate=1e9, at_once=3), 0, 0, asyncio.Event()

    async def one() -> None:
        nonlocal under_way, most
        async with pace:
            under_way += 1
            most = max(most, under_way)
            if under_way == 3:
                go.set()
            await go.wait()
            under_way -= 1

    await asyncio.gather(*(one() for _ in range(12)))
    assert most == 3


def test_nothing_is_looked_through_unasked() -> None:
    said = CliRunner().invoke(app, ["discover"])
    assert said.exit_code == 2
    assert "Say what to look through: --subnet CIDR" in said.output


# --- who gets a worker


def found(host: str, port: int = 11434, kind: str = "ollama") -> Found:
    return Found(host, port, kind, f"http://{host}:{port}")


def node(name: str, url: str, *open_to: str) -> NodeView:
    backend = {"kind": "ollama", "url": url, "open": list(open_to)}
    worker = WorkerView(f"{name}.1", name, "up", "1", 1, 0, 0.0, backends=(backend,))
    return NodeView(name, name, "Linux", {}, (worker,))


def planned(servers: list[Found], nodes: Sequence[NodeView] = ()) -> tuple[list[Adopted], dict[str, str]]:
    return plan(servers, nodes, own=["10.0.0.9"], own_host="desk.lan")


def test_each_host_is_a_node_of_its_own_with_all_its_servers() -> None:
    servers = [found("10.0.0.5"), found("10.0.0.5", 8080, "llama-server"), found("10.0.0.6", 8000, "openai")]
    start, served = planned([*servers, found("10.0.0.7", 50052, "rpc"), found("10.0.0.8", 80, "locked")])
    assert served == {}
    assert start == [
        Adopted("10.0.0.5", "10.0.0.5", ("ollama+http://10.0.0.5:11434", "llama+http://10.0.0.5:8080")),
        Adopted("10.0.0.6", "10.0.0.6", ("openai+http://10.0.0.6:8000",)),
    ]
    assert start[1].arguments == [
        *("--node", "10.0.0.6", "--elsewhere", "10.0.0.6", "--backend", "openai+http://10.0.0.6:8000")
    ]


@pytest.mark.parametrize("host", ["10.0.0.9", "127.0.0.1"])
def test_servers_of_this_machine_are_of_its_own_node(host: str) -> None:
    (mine,), _ = planned([found(host)])
    assert (mine.node, mine.elsewhere) == ("desk", "")


@pytest.mark.parametrize(
    "live",
    [
        node("10.0.0.5", "http://10.0.0.5:11434"),  # adopted before
        node("gpu", "http://127.0.0.1:11434", "10.0.0.5"),  # a worker beside it
    ],
)
def test_what_is_served_already_is_left_alone(live: NodeView) -> None:
    start, served = planned([found("10.0.0.5")], [live])
    assert start == []
    assert served == {"http://10.0.0.5:11434": live.name}


def test_another_machines_loopback_is_not_ours() -> None:
    start, served = planned([found("127.0.0.1")], [node("gpu", "http://127.0.0.1:11434")])
    assert served == {}
    assert start[0].node == "desk"


def test_a_host_with_a_reporter_is_called_as_that_calls_it() -> None:
    reporter = WorkerView("gpu-1.1", "gpu-1", "up", "1", 0, 0, 0.0, kind="reporter")
    there = NodeView("gpu-1", "gpu-1", "Linux", {}, (reporter,), addresses=("10.0.0.5",))
    (mine,), _ = planned([found("10.0.0.5")], [there])
    assert (mine.node, mine.elsewhere) == ("gpu-1", "10.0.0.5")


def test_a_worker_beside_its_server_is_known_by_its_machines_addresses() -> None:
    live = node("gpu", "http://127.0.0.1:11434", "0.0.0.0")  # noqa: S104
    there = replace(live, addresses=("10.0.0.5",))
    assert planned([found("10.0.0.5")], [there]) == ([], {"http://10.0.0.5:11434": "gpu"})
    assert planned([found("10.0.0.6")], [there])[1] == {}


# --- Docker

# As Docker's engine answers GET /containers/json.
_CONTAINERS = b"""[
  {"Names": ["/ollama"], "State": "running",
   "Ports": [{"IP": "0.0.0.0", "PrivatePort": 11434, "PublicPort": 21434, "Type": "tcp"},
             {"IP": "::", "PrivatePort": 11434, "PublicPort": 21434, "Type": "tcp"},
             {"PrivatePort": 53, "Type": "udp"}],
   "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}}},
  {"Names": ["/llama"], "Ports": [{"PrivatePort": 8080, "Type": "tcp"}],
   "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.3"}, "host": {"IPAddress": ""}}}}
]"""


@contextmanager
def docker_at(path: Path, status: int = 200) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/containers/json" else 404)
            self.end_headers()
            self.wfile.write(_CONTAINERS)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def address_string(self) -> str:
            return "unix"

    with ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_docker_tells_of_its_containers_and_their_published_ports(tmp_path: Path) -> None:
    with docker_at(tmp_path / "d.sock"):
        assert published(tmp_path / "d.sock") == [
            Published("ollama", "172.17.0.2", 11434, 21434),
            Published("llama", "172.17.0.3", 8080, 0),
        ]


def test_without_docker_nothing_is_known(tmp_path: Path) -> None:
    assert published(tmp_path / "none.sock") is None
    with docker_at(tmp_path / "d.sock", status=403):
        assert published(tmp_path / "d.sock") is None


def test_a_published_port_stands_in_for_a_container_that_is_not_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.sock"
    monkeypatch.setattr(docker_ip_resolver, "published", lambda: published(path))
    with docker_at(path):
        context = docker_ip_resolver.get_deployment_context()
    assert context["published"] == {"172.17.0.2:11434": 21434}

    def only_published(host: str, port: int, timeout: float) -> bool:
        return (host, port) == ("127.0.0.1", 21434)

    outside = {**context, "is_docker": False}
    asked = ("172.17.0.2", 11434, 0.1, only_published, outside)
    assert resolve_docker_ip_with_alternatives(*asked) == [("127.0.0.1", 21434)]
    # This one can only tell of the same port.
    assert resolve_docker_ip(*asked) is None
    nodes = [{"host": "172.17.0.2", "port": "11434"}]
    assert auto_resolve_ips(nodes, 0.1, only_published, outside) == [{"host": "127.0.0.1", "port": "21434"}]
