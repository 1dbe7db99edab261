"""`sollol-coordinator` without a fabric: what it refuses before it connects."""

from __future__ import annotations

from click.testing import CliRunner

from sollol_coordinator.cli import main


def test_a_redis_on_the_network_without_a_password_is_refused() -> None:
    # 192.0.2.0/24 is nobody's.
    refused = CliRunner().invoke(main, ["--redis", "redis://192.0.2.1", "--metrics", "off"])
    assert refused.exit_code == 3
    assert "could read every prompt" in refused.output
    # With the flag it gets as far as the next mistake.
    gone_on = CliRunner().invoke(main, ["--redis", "redis://192.0.2.1", "--metrics", "nowhere", "--insecure"])
    assert gone_on.exit_code == 2
    assert "give HOST:PORT" in gone_on.output
