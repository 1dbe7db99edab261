"""Tells the local network where a fabric's Redis is, and hears such tellings: mDNS. Needs zeroconf (`sollol[lan]`).

An announcement holds no secret: where Redis is, the fabric's name, and what a newcomer has to bring. Whoever is on the
network can announce anything, so what is heard is taken apart and only its place is used: never a path, a login or a
setting.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, urlsplit

from .errors import BrokerUnavailable, SollolError
from .listeners import own_addresses
from .url import BrokerUrl, is_loopback, parse
from .version import VERSION

if TYPE_CHECKING:
    from zeroconf import Zeroconf
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

SERVICE = "_sollol._tcp.local."
ANY = "any"
# As --find and people call the fabric without a name.
DEFAULT_FABRIC = "default"
# One string of a TXT record.
_MOST_TXT_BYTES = 250
# After the first one is heard, others are waited for so long: two answers at once are a question for a person.
_SETTLE_SECONDS = 1.0
_SCHEMES = re.compile(r"rediss?(\+(sentinel|cluster))?")


@dataclass(frozen=True, slots=True)
class Announcement:
    """What somebody announced.

    Attributes:
        url: of Redis, without a login.
        fabric: "default" where it has no name.
        needs: of "password" and "certificate", what a newcomer has to bring.
        version: of the announcer's release.
    """

    url: str
    fabric: str
    needs: tuple[str, ...] = ()
    version: str = ""

    @property
    def has_tls(self) -> bool:
        """Whether what is said to Redis is encrypted."""
        return self.url.startswith("rediss")


class Announcer:
    """Announces a fabric's Redis until it is stopped.

    Args:
        url: as we reach it. Where that is loopback, this machine's own addresses are announced, if Redis listens there.

    Raises:
        SollolError: zeroconf is not installed, or others cannot reach that Redis; the text says what to do.
    """

    def __init__(self, url: BrokerUrl) -> None:
        _zeroconf()
        self.announcement = describe(url, reachable(url))
        self._zeroconf: AsyncZeroconf | None = None

    async def start(self) -> None:
        """Announce, and go on answering questions."""
        from zeroconf import IPVersion
        from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

        told = self.announcement
        where = parse(told.url)
        host, port = where.hosts[0]
        name = f"{told.fabric}-{secrets.token_hex(3)}"
        self._zeroconf = AsyncZeroconf(ip_version=IPVersion.V4Only)
        info = AsyncServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            addresses=[socket.inet_aton(each) for each in _ipv4(host)],
            port=port,
            properties={
                "url": told.url,
                "fabric": told.fabric,
                "needs": ",".join(told.needs),
                "v": told.version,
            },
            server=f"{name}.local.",
        )
        # The name is drawn by lot, so nobody has to be asked whether it is taken.
        said = await self._zeroconf.async_register_service(info, cooperating_responders=True)
        await said

    async def stop(self) -> None:
        """Take it back."""
        if self._zeroconf is not None:
            await self._zeroconf.async_unregister_all_services()
            await self._zeroconf.async_close()
            self._zeroconf = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def describe(url: BrokerUrl, hosts: Sequence[tuple[str, int]]) -> Announcement:
    """What to say of a Redis that others reach at `hosts`. Pure.

    Raises:
        SollolError: it does not fit into an announcement.
    """
    needs = (
        *(("password",) if url.password or url.username else ()),
        *(("certificate",) if url.tls and url.tls.cert else ()),
    )
    text = str(replace(url, hosts=tuple(hosts), username=None, password=None, sentinel_password=None))
    text += f"?fabric={url.fabric}" if url.fabric else ""
    if len(text) > _MOST_TXT_BYTES:
        raise SollolError("the URL of Redis is too long to be announced: name fewer of its hosts")
    return Announcement(text, url.fabric or DEFAULT_FABRIC, needs, VERSION)


def read(url: str, *, needs: str = "", version: str = "") -> Announcement | None:
    """What was heard; None where it makes no sense. It comes from anybody, so nothing but the place is kept. Pure."""
    try:
        parts = urlsplit(url)
        given = parse_qs(parts.query, strict_parsing=bool(parts.query))
        if not _SCHEMES.fullmatch(parts.scheme) or "@" in parts.netloc or set(given) - {"fabric"}:
            return None
        where = parse(url)
    except (ValueError, BrokerUnavailable):
        return None
    if where.mode == "unix" or where.is_loopback:
        return None
    known = tuple(each for each in needs.split(",") if each in ("password", "certificate"))
    return Announcement(url, where.fabric or DEFAULT_FABRIC, known, re.sub(r"[^\w.+-]", "", version)[:40])


def choose(found: Iterable[Announcement], fabric: str, *, only_tls: bool = False) -> Announcement:
    """The one that is meant. Pure.

    Args:
        fabric: its name, "default", or "any".
        only_tls: leave out those without TLS.

    Raises:
        BrokerUnavailable: there is none, or there are several; the text says what to do.
    """
    fitting = {each.url: each for each in found if fabric in (ANY, each.fabric)}
    safe = {url: each for url, each in fitting.items() if each.has_tls or not only_tls}
    if len(safe) == 1:
        return next(iter(safe.values()))
    what = "fabric" if fabric == ANY else f"fabric {fabric!r}"
    if safe:
        listed = ", ".join(f"{each.fabric} at {each.url}" for each in safe.values())
        raise BrokerUnavailable(
            f"several are announced on this network: {listed}. Name one: --find FABRIC, or --redis URL"
        )
    if fitting:
        raise BrokerUnavailable(
            f"a {what} is announced without TLS only, and we have a CA to check servers by: announce a rediss:// URL"
        )
    raise BrokerUnavailable(
        f"no {what} is announced on this network: start `sollol-coordinator --announce` or `sollol up --announce` "
        "where Redis is known, or name it with --redis URL. Many routers pass no mDNS between Wi-Fi and cable"
    )


async def listen(
    seconds: float, *, is_enough: Callable[[Announcement], bool] = lambda _: False
) -> list[Announcement]:
    """What is announced on the local network.

    Args:
        seconds: for which to listen.
        is_enough: where it says so of one, only a moment more.

    Raises:
        SollolError: zeroconf is not installed, or there is no network.
    """
    _zeroconf()
    from zeroconf import IPVersion
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

    heard: dict[str, Announcement] = {}
    names: asyncio.Queue[str] = asyncio.Queue()

    def on_change(zeroconf: Zeroconf, service_type: str, name: str, state_change: object) -> None:
        names.put_nowait(name)

    ear = AsyncZeroconf(ip_version=IPVersion.V4Only)
    browser = AsyncServiceBrowser(ear.zeroconf, SERVICE, handlers=[on_change])
    ends = time.monotonic() + seconds
    try:
        while (left := ends - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    name = await names.get()
                    info = AsyncServiceInfo(SERVICE, name)
                    known = await info.async_request(ear.zeroconf, left * 1000)
            except TimeoutError:
                break
            announcement = _of(info) if known else None
            if announcement is None:
                heard.pop(name, None)
                continue
            heard[name] = announcement
            if is_enough(announcement):
                ends = min(ends, time.monotonic() + _SETTLE_SECONDS)
    finally:
        await browser.async_cancel()
        await ear.async_close()
    return list(dict.fromkeys(heard.values()))


async def find(fabric: str, *, seconds: float, only_tls: bool = False) -> Announcement:
    """Listen for a fabric that is announced; raises as `listen` and `choose`."""
    heard = await listen(seconds, is_enough=lambda each: fabric in (ANY, each.fabric))
    return choose(heard, fabric, only_tls=only_tls)


def reachable(url: BrokerUrl) -> list[tuple[str, int]]:
    """The hosts of a URL as others reach them: addresses in place of names, ours in place of loopback.

    With TLS names are kept, for the certificate is for them.

    Raises:
        SollolError: it is a Unix socket, or listens on loopback alone.
    """
    if url.mode == "unix":
        raise SollolError(
            "Redis is known by a Unix socket here, which others cannot reach: name it by redis://HOST:PORT"
        )
    found: dict[tuple[str, int], None] = {}
    for host, port in url.hosts:
        addresses = _ipv4(host)
        if is_loopback(host) or any(is_loopback(each) for each in addresses):
            own = [each for each in own_addresses() if _listens(each, port)]
            if not own:
                raise SollolError(
                    f"Redis listens on this machine alone ({host}:{port}), so there is nothing to announce: let it "
                    "listen on the network (`bind` in redis.conf) with a password, or name it by an address there"
                )
            found[own[0], port] = None
        else:
            found[host if url.tls or not addresses else addresses[0], port] = None
    return list(found)


def _of(info: AsyncServiceInfo) -> Announcement | None:
    told = info.decoded_properties
    return read(told.get("url") or "", needs=told.get("needs") or "", version=told.get("v") or "")


def _ipv4(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False


def _zeroconf() -> None:
    try:
        import zeroconf  # noqa: F401
    except ModuleNotFoundError as error:
        raise SollolError(
            f"mDNS needs {error.name}, which is not installed: pip install 'sollol[lan]'"
        ) from error
