"""Every form of the URL leads to a real server, and a job goes all the way there and back."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from fabric_kit import Fabric, fabric_at, ids
from redis_7 import redis_7_on_path
from sollol_broker import Broker, BrokerUnavailable, LinkConfig, parse_url
from sollol_broker.child import ChildProcess, free_port, last_lines
from sollol_broker.embedded import EmbeddedBroker, find_server
from waiting import wait_until

_SECRET = "hunter2"  # noqa: S105  # the canary that must show nowhere


async def _one_job(url: str) -> None:
    """Submit, claim and finish a job at `url`; the secret must not show on the way."""
    parsed = parse_url(url)
    async with fabric_at(url) as fabric:
        await _there_and_back(fabric)
        clients = (await fabric.call("CLIENT", "LIST")).decode()
    assert "name=tests" in clients
    for text in (clients, str(parsed), repr(parsed)):
        assert _SECRET not in text


async def _there_and_back(fabric: Fabric) -> None:
    await fabric.worker("w1")
    job_id = uuid.uuid4().hex
    await fabric.submit(job_id)
    claimed = await fabric.claim("w1")
    assert ids(claimed) == [job_id]
    assert (await fabric.broker.finish(claimed[0].lease, b"answer")).taken
    assert await fabric.state(job_id) == "done"


async def _refusal(url: str) -> str:
    """What `open` says when it does not work; it must say it soon and without the secret."""
    broker = Broker(parse_url(url), name="tests", config=LinkConfig(connect_seconds=2.0))
    began = time.monotonic()
    try:
        with pytest.raises(BrokerUnavailable) as caught:
            await broker.open()
    finally:
        await broker.close()
    assert time.monotonic() - began < 15
    assert _SECRET not in f"{caught.value} {caught.value!r}"
    return str(caught.value)


# --- one server


async def test_a_unix_socket(redis_url: str) -> None:
    assert redis_url.startswith("unix://")
    await _one_job(redis_url)
    await _one_job(f"{redis_url}?db=3")


@pytest.fixture
def locked() -> Iterator[EmbeddedBroker]:
    """A server on a free port that wants a password."""
    with EmbeddedBroker(appendonly=False, port=0, password=_SECRET) as server:
        yield server


async def test_a_port_and_a_password(locked: EmbeddedBroker, tmp_path: Path) -> None:
    await _one_job(f"redis://:{_SECRET}@127.0.0.1:{locked.port}/0")
    await _one_job(f"redis://default:{_SECRET}@localhost:{locked.port}/2")
    file = tmp_path / "password"
    file.write_text(f"{_SECRET}\n")
    await _one_job(f"redis://127.0.0.1:{locked.port}/3?password_file={file}")


async def test_a_wrong_password_is_told_as_such(locked: EmbeddedBroker) -> None:
    said = await _refusal(f"redis://:wrong-{_SECRET}@127.0.0.1:{locked.port}/0")
    assert "refused the login" in said
    assert "refused the login" in await _refusal(f"redis://127.0.0.1:{locked.port}/0")


async def test_a_wrong_password_on_a_unix_socket_too() -> None:
    with EmbeddedBroker(appendonly=False, password=_SECRET) as server:
        await _one_job(server.url)
        socket = unquote(urlsplit(server.url).path)
        assert "refused the login" in await _refusal(f"unix://:wrong-{_SECRET}@{socket}")
        assert "refused the login" in await _refusal(f"unix://{socket}")


async def test_a_server_that_went_away_and_came_back() -> None:
    # "everysec" holds acknowledged writes back in the server while an fsync is under way, and a kill loses them.
    with EmbeddedBroker(port=0, appendfsync="always") as server:
        async with fabric_at(server.url) as fabric:
            await fabric.worker("w1")
            await fabric.submit("j1")
            await asyncio.to_thread(server.kill)
            waiting = asyncio.create_task(fabric.claim("w1"))
            await asyncio.to_thread(server.start)
            assert ids(await waiting) == ["j1"]


# --- rights


async def test_a_user_who_may_not_load_functions(redis_url: str) -> None:
    socket = unquote(urlsplit(redis_url).path)
    async with fabric_at(redis_url) as admin:
        await admin.call("ACL", "SETUSER", "app", "on", f">{_SECRET}", "~{sollol}*", "+@all", "-function")
        try:
            async with fabric_at(f"unix://app:{_SECRET}@{socket}") as fabric:
                await admin.call("FUNCTION", "FLUSH")
                began = time.monotonic()
                with pytest.raises(BrokerUnavailable, match="this user may not load them") as caught:
                    await fabric.worker("w1")
                assert time.monotonic() - began < 15
                assert fabric.broker.functions.name in str(caught.value)
                assert _SECRET not in str(caught.value)
                assert await admin.broker.cancel("nosuchjob") == "unknown"  # loads them
                await _there_and_back(fabric)
        finally:
            await admin.call("ACL", "DELUSER", "app")


async def test_a_user_with_no_more_rights_than_needed(redis_url: str) -> None:
    """Without INFO, CONFIG, KEYS and the like the fabric works all the same."""
    socket = unquote(urlsplit(redis_url).path)
    async with fabric_at(redis_url) as admin:
        assert await admin.broker.cancel("nosuchjob") == "unknown"
        rights = ("+@read", "+@write", "+fcall", "+time", "+ping", "+client|setname", "-keys", "-@dangerous")
        await admin.call("ACL", "SETUSER", "app", "on", f">{_SECRET}", "~{sollol}*", *rights)
        try:
            async with fabric_at(f"unix://app:{_SECRET}@{socket}") as fabric:
                await _there_and_back(fabric)
        finally:
            await admin.call("ACL", "DELUSER", "app")


# --- Sentinel


@pytest.fixture
def sentinel(locked: EmbeddedBroker, tmp_path: Path) -> Iterator[int]:
    """A sentinel that watches the locked server as "main"; its port."""
    port = free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor main 127.0.0.1 {locked.port} 1\nsentinel auth-pass main {_SECRET}\n"
    )
    log = tmp_path / "sentinel.log"
    process = ChildProcess([find_server().path, configuration, "--sentinel"], log=log)
    try:
        yield port
        assert process.poll() is None, last_lines(log)
    finally:
        process.stop(patience_seconds=5)


async def test_a_sentinel_names_the_primary(sentinel: int) -> None:
    # Without a replica nothing is ever confirmed.
    url = f"redis+sentinel://:{_SECRET}@127.0.0.1:{sentinel}/main?durability=local"

    await wait_until(lambda: _opens(url), timeout=10, what="the sentinel to answer")
    await _one_job(url)
    # One sentinel that is down does not matter, wherever it stands in the list.
    await _one_job(f"redis+sentinel://:{_SECRET}@127.0.0.1:1,127.0.0.1:{sentinel}/main/2?durability=local")
    assert "other" in await _refusal(f"redis+sentinel://:{_SECRET}@127.0.0.1:{sentinel}/other")


# --- Cluster


@pytest.fixture
def cluster() -> Iterator[EmbeddedBroker]:
    """A cluster of one node that owns all slots."""
    directives: dict[str, str | int] = {
        "cluster-enabled": "yes",
        "cluster-port": free_port(),
        "cluster-announce-ip": "127.0.0.1",
    }
    with EmbeddedBroker(appendonly=False, port=0, password=_SECRET, config=directives) as server:
        yield server


async def test_a_cluster_is_asked_for_the_fabrics_primary(cluster: EmbeddedBroker) -> None:
    node = Broker(parse_url(f"redis://:{_SECRET}@127.0.0.1:{cluster.port}"), name="tests")
    try:
        await node.link.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

        async def is_whole() -> bool:
            return b"cluster_state:ok" in await node.link.call("CLUSTER", "INFO")

        await wait_until(is_whole, timeout=10, what="the cluster to form")
    finally:
        await node.close()
    url = f"redis+cluster://:{_SECRET}@127.0.0.1:{cluster.port}?durability=local"
    await _one_job(url)
    await _one_job(f"{url}&fabric=cell-2")
    await _one_job(f"redis+cluster://:{_SECRET}@127.0.0.1:1,127.0.0.1:{cluster.port}?durability=local")
    assert "cannot reach Redis" in await _refusal(f"redis+cluster://:{_SECRET}@127.0.0.1:1")


# --- TLS


@dataclass(frozen=True)
class _Certificates:
    """A CA with a certificate for the server "localhost" and one for a client; and a CA nobody knows, with one, too."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> _Certificates:
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        done = subprocess.run(
            ["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"openssl failed; it comes with: apt-get install openssl\n{done.stderr}"

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for ca in ("ca", "stranger"):
        extensions = ("-addext", "keyUsage=critical,keyCertSign")
        openssl(
            "req",
            "-x509",
            *key,
            "-subj",
            f"/CN={ca}",
            *extensions,
            "-keyout",
            f"{ca}.key",
            "-out",
            f"{ca}.pem",
        )
    for name, ca, extension in (
        ("server", "ca", "subjectAltName=DNS:localhost"),
        ("client", "ca", "extendedKeyUsage=clientAuth"),
        ("forged", "stranger", "extendedKeyUsage=clientAuth"),
    ):
        openssl(
            *("req", "-x509", *key, "-subj", f"/CN={name}", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key"),
            *("-addext", "basicConstraints=critical,CA:false", "-addext", extension),
            *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
        )
    return _Certificates(folder)


@asynccontextmanager
async def _tls(
    socket: str, certificates: _Certificates, *, client_needed: bool = False
) -> AsyncIterator[int]:
    """TLS in front of a server on a Unix socket, for builds of Valkey that have none; its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.path("ca.pem"))
    context.load_cert_chain(certificates.path("server.pem"), certificates.path("server.key"))
    context.verify_mode = ssl.CERT_REQUIRED if client_needed else ssl.CERT_NONE
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_unix_connection(socket)
        try:
            await asyncio.gather(pump(reader, back_writer), pump(back_reader, writer))
        finally:
            for each in (writer, back_writer):
                each.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await each.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        await server.wait_closed()


async def test_tls(redis_url: str, certificates: _Certificates) -> None:
    ca, stranger = certificates.path("ca.pem"), certificates.path("stranger.pem")
    async with _tls(unquote(urlsplit(redis_url).path), certificates) as port:
        await _one_job(f"rediss://localhost:{port}/0?ca={ca}")
        await _one_job(f"rediss://127.0.0.1:{port}/0?ca={ca}&check_hostname=no")
        for url in (
            f"rediss://127.0.0.1:{port}/0?ca={ca}",  # the certificate is another host's
            f"rediss://localhost:{port}/0?ca={stranger}",
            f"rediss://localhost:{port}/0?ca={stranger}&check_hostname=no",
            f"rediss://localhost:{port}/0",  # not signed by a CA that the system knows
        ):
            assert "certificate" in (await _refusal(url)).lower()
        assert "cannot be read" in await _refusal(f"rediss://localhost:{port}/0?ca=/nowhere.pem")
        await _refusal(f"redis://localhost:{port}/0")


@pytest.fixture(params=["yes", "no"], ids=["mTLS", "TLS"])
def tls_redis(
    request: pytest.FixtureRequest, certificates: _Certificates, tmp_path: Path
) -> Iterator[tuple[int, bool]]:
    """A Redis 7 that speaks TLS itself: its port, and whether it wants a certificate of its clients."""
    port = free_port()
    directives = _tls_directives(certificates, port) | {"tls-auth-clients": request.param}
    with (
        redis_7_on_path(tmp_path),
        EmbeddedBroker(server="redis", appendonly=False, password=_SECRET, config=directives),
    ):
        yield port, request.param == "yes"


async def test_a_redis_that_speaks_tls_itself(
    tls_redis: tuple[int, bool], certificates: _Certificates
) -> None:
    port, is_mutual = tls_redis
    ca, stranger = certificates.path("ca.pem"), certificates.path("stranger.pem")
    own = f"ssl_certfile={certificates.path('client.pem')}&ssl_keyfile={certificates.path('client.key')}"
    where = f"rediss://:{_SECRET}@localhost:{port}/0"
    await _one_job(f"{where}?ssl_ca_certs={ca}&{own}")
    if is_mutual:
        assert "TLS handshake" in await _refusal(f"{where}?ca={ca}")
        forged = f"cert={certificates.path('forged.pem')}&key={certificates.path('forged.key')}"
        assert "TLS handshake" in await _refusal(f"{where}?ca={ca}&{forged}")
    else:
        await _one_job(f"{where}?ca={ca}")
    assert "TLS handshake" in await _refusal(f"{where}?ca={stranger}&{own}")
    assert "TLS handshake" in await _refusal(f"{where}?{own}")
    assert "TLS handshake" in await _refusal(f"{where.replace('localhost', '127.0.0.1')}?ca={ca}&{own}")
    assert "refused the login" in await _refusal(f"{where.replace(_SECRET, 'wrong')}?ca={ca}&{own}")
    await _refusal(f"redis://:{_SECRET}@localhost:{port}/0")


def _tls_directives(certificates: _Certificates, port: int) -> dict[str, str | int]:
    """A Redis 7 that speaks TLS with everybody, and only to who shows a certificate."""
    return {
        "tls-port": port,
        "tls-cert-file": str(certificates.path("server.pem")),
        "tls-key-file": str(certificates.path("server.key")),
        "tls-ca-cert-file": str(certificates.path("ca.pem")),
        "tls-replication": "yes",
        "tls-cluster": "yes",
    }


async def test_tls_to_sentinel_and_to_what_it_names(certificates: _Certificates, tmp_path: Path) -> None:
    port, watching = free_port(), free_port()
    own = (
        f"ca={certificates.path('ca.pem')}&cert={certificates.path('client.pem')}"
        # Sentinel names addresses, and the certificate is for a name.
        f"&key={certificates.path('client.key')}&check_hostname=no&durability=local"
    )
    directives = _tls_directives(certificates, port)
    with (
        redis_7_on_path(tmp_path),
        EmbeddedBroker(server="redis", appendonly=False, password=_SECRET, config=directives),
    ):
        sentinel = _tls_directives(certificates, watching) | {"port": 0, "bind": "127.0.0.1", "dir": tmp_path}
        configuration = tmp_path / "sentinel.conf"
        configuration.write_text(
            "".join(f"{name} {value}\n" for name, value in sentinel.items())
            + f"sentinel monitor main 127.0.0.1 {port} 1\nsentinel auth-pass main {_SECRET}\n"
        )
        log = tmp_path / "sentinel.log"
        process = ChildProcess([find_server("redis").path, configuration, "--sentinel"], log=log)
        try:
            url = f"rediss+sentinel://:{_SECRET}@localhost:{watching}/main"
            await wait_until(lambda: _opens(f"{url}?{own}"), timeout=10, what="the sentinel to answer")
            await _one_job(f"{url}?{own}&durability=local")
            await _refusal(f"{url}?ca={certificates.path('stranger.pem')}&check_hostname=no")
            assert process.poll() is None, last_lines(log)
        finally:
            process.stop(patience_seconds=5)


async def test_tls_to_a_cluster(certificates: _Certificates, tmp_path: Path) -> None:
    port = free_port()
    directives = _tls_directives(certificates, port) | {
        "cluster-enabled": "yes",
        "cluster-port": free_port(),
        "cluster-announce-ip": "127.0.0.1",
    }
    own = (
        f"ca={certificates.path('ca.pem')}&cert={certificates.path('client.pem')}"
        f"&key={certificates.path('client.key')}&check_hostname=no&durability=local"
    )
    with (
        redis_7_on_path(tmp_path),
        EmbeddedBroker(server="redis", appendonly=False, password=_SECRET, config=directives) as server,
    ):
        node = Broker(parse_url(server.url), name="tests")
        try:
            await node.link.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)

            async def is_whole() -> bool:
                return b"cluster_state:ok" in await node.link.call("CLUSTER", "INFO")

            await wait_until(is_whole, timeout=10, what="the cluster to form")
        finally:
            await node.close()
        url = f"rediss+cluster://:{_SECRET}@127.0.0.1:{port}"
        await _one_job(f"{url}?{own}&durability=local")
        await _refusal(f"{url}?ca={certificates.path('stranger.pem')}&check_hostname=no")


async def _opens(url: str) -> bool:
    broker = Broker(parse_url(url), name="tests")
    try:
        await broker.open()
    except BrokerUnavailable:
        return False
    finally:
        await broker.close()
    return True


async def test_tls_on_both_sides(redis_url: str, certificates: _Certificates) -> None:
    ca = certificates.path("ca.pem")
    own = f"cert={certificates.path('client.pem')}&key={certificates.path('client.key')}"
    async with _tls(unquote(urlsplit(redis_url).path), certificates, client_needed=True) as port:
        await _one_job(f"rediss://localhost:{port}/0?ca={ca}&{own}")
        assert "TLS handshake" in await _refusal(f"rediss://localhost:{port}/0?ca={ca}")
