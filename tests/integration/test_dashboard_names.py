"""The monitoring page under the names by which programs of earlier releases start it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from fabric import output_of, town, until
from pool_kit import name
from sollol import SOLLOL, InvalidJob, SOLLOLConfig, SollolError, run_unified_dashboard


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _page(port: int) -> str:
    """The page's text; "" = it is not there."""
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/", trust_env=False, timeout=20, follow_redirects=True)
    except httpx.TransportError:
        return ""
    return answer.text if answer.status_code == 200 else ""


@contextmanager
def _running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_service_of_that_name_is_the_page(redis_url: str) -> None:
    port = _free_port()
    told = ("-m", "sollol.dashboard_service", "--port", str(port), f"--redis-url={redis_url}")
    with _running(*told) as process:
        until(lambda: process.poll() is not None or "SOLLOL" in _page(port), "the page")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def test_a_redis_that_is_away_is_one_line() -> None:
    told = ("-m", "sollol.dashboard_service", "--port", "0", "--redis-url", "redis://127.0.0.1:1/0")
    with _running(*told) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert said.splitlines()[-1].startswith("error: cannot reach Redis")


def test_a_program_shows_its_own_pools_private_fabric(redis_url: str) -> None:
    """Its page runs in a thread, and ends with the program."""
    with town(redis_url) as there:
        said = output_of(
            "import sys, threading, time, urllib.request\n"
            "from sollol import OllamaPool, run_unified_dashboard\n"
            "port = int(sys.argv[1])\n"
            "pool = OllamaPool([sys.argv[2]], app_name='mine')\n"
            "threading.Thread(target=run_unified_dashboard, args=(pool,), daemon=True,\n"
            "    kwargs={'dashboard_port': port}).start()\n"
            "for _ in range(1000):\n"
            "    try:\n"
            "        page = urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=20)\n"
            "        break\n"
            "    except OSError:\n"
            "        time.sleep(0.02)\n"
            "print(page.status, pool.url.startswith('unix:'))\n",
            str(_free_port()),
            name(there.ollama),
        )
    assert said == "200 True\n"


def test_the_port_comes_from_the_environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("SOLLOL_DASHBOARD_PORT", str(port))
        monkeypatch.setenv("SOLLOL_REDIS_URL", redis_url)
        with (
            pytest.warns(DeprecationWarning, match="ray_dashboard_port"),
            pytest.raises(SollolError, match=f"port {port} of 127.0.0.1 cannot be listened on"),
        ):
            run_unified_dashboard(None, 8265)
    monkeypatch.setenv("SOLLOL_DASHBOARD_PORT", "eighty")
    with pytest.raises(InvalidJob, match="dashboard_port: a port from 0 to 65535 is needed, got 'eighty'"):
        run_unified_dashboard()


def test_a_service_serves_it_where_it_is_asked_to(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLLOL_DASHBOARD", "true")
    monkeypatch.setenv("SOLLOL_DASHBOARD_PORT", "0")
    config = SOLLOLConfig(redis_url=redis_url, gateway_port=0, metrics_port=0)
    assert config.dashboard
    service = SOLLOL(config)
    service.start(blocking=False)
    try:
        url = service.get_status()["dashboard"]
        assert "SOLLOL" in _page(int(url.rstrip("/").rpartition(":")[2]))
        # The port of another program's page is no reason not to start.
        second = SOLLOL(
            SOLLOLConfig(
                redis_url=redis_url,
                gateway_port=0,
                metrics_port=0,
                dashboard_port=int(url.rstrip("/").rpartition(":")[2]),
            )
        )
        second.start(blocking=False)
        assert (second.is_running, second.get_status()["dashboard"]) == (True, "")
        second.stop()
    finally:
        service.stop()
    assert _page(int(url.rstrip("/").rpartition(":")[2])) == ""
    monkeypatch.delenv("SOLLOL_DASHBOARD")
    assert not SOLLOLConfig().dashboard
