"""RQ with the list of what may run: what else is queued fails, and has done nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from sollol_broker.acl import Role, user
from sollol_broker.errors import SollolError
from sollol_coordinator.rq_prefix import check_rq_is_inside, keep_rq_inside, prefix

_TESTS = Path(__file__).parent.parent


def _run(url: str, folder: Path, how: str) -> dict[str, Any]:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import rq_attacks; rq_attacks.main()", url, str(folder), how],
        cwd=_TESTS,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture
def coordinator_url(redis_url: str) -> Iterator[str]:
    """Redis, as the coordinator's user of `sollol acl`; at the end its log of refused commands must be empty."""
    made = user(Role.COORDINATOR, "cell-2")
    with redis.Redis.from_url(redis_url) as admin:
        admin.execute_command("ACL", "SETUSER", made.name, "on", ">pw", *made.rules)
        admin.execute_command("ACL", "LOG", "RESET")
        try:
            yield redis_url.replace("unix://", f"unix://{made.name}:pw@")
            assert [(row["object"], row["context"]) for row in admin.acl_log()] == []
            keys = [bytes(key).decode() for key in admin.scan_iter()]
            assert [key for key in keys if not key.startswith(f"{prefix('cell-2')}:")] == []
        finally:
            admin.flushdb()
            admin.execute_command("ACL", "DELUSER", made.name)


def test_only_what_is_on_the_list_runs(coordinator_url: str, tmp_path: Path) -> None:
    told = _run(coordinator_url, tmp_path / "safe", "safe")
    assert (told["good"]["status"], told["good"]["result"], told["noted"]) == ("finished", 5, True)
    assert (told["last"]["status"], told["last"]["result"]) == (
        "finished",
        42,
    )  # the worker has survived them all
    assert told["failing"]["why"] == ["ValueError: as it should"]
    for name, why in {
        "system": "not on the list: os.system",
        "eval": "not on the list: builtins.eval",
        "pickled": "it is not JSON",
        "success": "not on the list: shutil.rmtree",
        "failure": "not on the list: os.system",
        "stopped": "not on the list: os.system",
        "webhook": "it wants a webhook",
    }.items():
        assert told[name]["status"] == "failed", (name, told[name])
        assert why in told[name]["why"][0]
        assert not told[name]["left"], f"{name} has run"


def test_without_the_list_they_would_run(redis_url: str, tmp_path: Path) -> None:
    told = _run(redis_url, tmp_path / "plain", "plain")
    with redis.Redis.from_url(redis_url) as raw:
        raw.flushdb()
    assert told["system"]["left"]
    assert told["eval"]["left"]


def test_the_prefix_is_chosen_before_rq_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    import rq  # noqa: F401  # with the prefix that it has by itself

    monkeypatch.delenv("RQ_KEY_PREFIX", raising=False)
    assert prefix() == "{sollol}:rq"
    with pytest.raises(SollolError, match="before the first `import rq`"):
        keep_rq_inside("cell-2")
    with pytest.raises(SollolError, match="not under"):
        check_rq_is_inside()
