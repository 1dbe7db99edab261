"""A plain blocking connection to the fabric's Redis, for RQ, which knows no other."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.cluster import ClusterNode, RedisCluster
from redis.sentinel import Sentinel

from sollol_broker.keys import Keys
from sollol_broker.url import BrokerUrl

_CONNECT_SECONDS = 5.0
# RQ blocks on its queues for longer than any usual answer takes.
_SOCKET_SECONDS = 120.0


def connect(url: BrokerUrl, *, socket_seconds: float = _SOCKET_SECONDS) -> Redis:
    """A client of the primary; of a Cluster, that of the fabric's slot.

    Args:
        socket_seconds: the longest wait for an answer.
    """
    who: dict[str, Any] = {"username": url.username, "password": url.password}
    times: dict[str, Any] = {"socket_connect_timeout": _CONNECT_SECONDS, "socket_timeout": socket_seconds}
    if url.mode == "unix":
        return Redis(unix_socket_path=url.path, db=url.db, **who, **times)
    tls = _tls(url)
    if url.mode == "sentinel":
        sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            list(url.hosts), sentinel_kwargs={"password": url.sentinel_password, **tls}, **who, **times, **tls
        )
        primary: Redis = sentinel.master_for(url.service, db=url.db)  # type: ignore[no-untyped-call]
        return primary
    host, port = url.hosts[0]
    if url.mode == "cluster":
        nodes = [ClusterNode(*each) for each in url.hosts]  # type: ignore[no-untyped-call]
        cluster = RedisCluster(startup_nodes=nodes, **who, **tls)
        node = cluster.get_node_from_key(Keys(url.fabric).prefix)  # type: ignore[no-untyped-call]
        cluster.close()
        if node is not None:
            host, port = node.host, node.port
    return Redis(host=host, port=port, db=url.db, **who, **times, **tls)


def _tls(url: BrokerUrl) -> dict[str, Any]:
    if url.tls is None:
        return {}
    return {
        "ssl": True,
        "ssl_ca_certs": url.tls.ca,
        "ssl_certfile": url.tls.cert,
        "ssl_keyfile": url.tls.key,
        "ssl_check_hostname": url.tls.check_hostname,
    }
