"""The command line without a fabric: help, bad usage, missing packages, errors and their exit codes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from sollol import commands
from sollol.cli import app as app_module
from sollol.cli import failures
from sollol.cli.app import ENTRIES, EXIT_CODES, app
from sollol.cli.chat import choose_model
from sollol.cli.following import routing_line
from sollol.cli.options import APP
from sollol.cli.output import printable
from sollol.cli.units import count, duration, gib, megabits, milliseconds, size
from sollol_broker import errors
from sollol_broker.acl import Role
from sollol_broker.errors import NoNodeForModel, SollolError
from sollol_broker.outcome import Routing
from sollol_broker.registry import ModelView
from sollol_client.gateway.cli import main as gateway

# Nothing listens on port 1.
NOWHERE = "redis://:hunter2@127.0.0.1:1/0"
# Commands that ask no fabric, or have words of their own.
_OTHERS = ("up", "demo", "acl", "bench", "setup-llama-cpp", "config", "completion",
           "install-service", "install-gpu-reporter")  # fmt: skip


def run(*args: str, env: Mapping[str, str | None] | None = None, stdin: str = "") -> Result:
    return CliRunner().invoke(app, list(args), env={"SOLLOL_REDIS_URL": None, **(env or {})}, input=stdin)


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)


# --- help


def test_help_lists_every_command_and_the_exit_codes() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name, entry in ENTRIES.items():
        assert f"  {name} " in result.stdout
        assert entry.help in result.stdout
    assert "4    no node serves the model" in result.stdout
    assert "SOLLOL_REDIS_URL" in result.stdout


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from sollol.cli.app import app; app(['--help'], standalone_mode=False); "
        "print(*({'redis', 'pydantic', 'httpx', 'sollol_broker', 'rich'} & set(sys.modules)))"
    )
    assert python(code).stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("name", [name for name in ENTRIES if name not in _OTHERS])
def test_each_command_has_help_that_names_the_shared_options(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert "--redis URL" in result.stdout
    assert "--json" in result.stdout


def test_whatever_shows_something_has_json() -> None:
    """The others begin processes, or write files for people."""
    without = {"up", "demo", "install-service", "install-gpu-reporter", "config init", "completion"}
    assert {path for path, command in _all(app, "") if "--json" not in _options(command)} == without


def _options(command: click.Command) -> set[str]:
    return {option for each in command.params for option in each.opts}


def _all(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _all(found, f"{path} {name}".strip())
    if path and (not isinstance(command, click.Group) or command.invoke_without_command):
        yield path, command


def test_doctor_tells_its_own_exit_codes() -> None:
    said = " ".join(run("doctor", "--help").stdout.split())
    assert "0 all is well, perhaps with notes, 1 there are warnings, 2 there are errors" in said


def test_version() -> None:
    assert run("--version").stdout.startswith("sollol ")


# --- bad usage


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nodez"], "Did you mean 'nodes'?"),
        (["chat"], "Missing argument 'QUESTION'"),
        (["chat", "  "], "the question is empty"),
        (["chat", "hi", "--priority", "soon"], "neither a number from 0 to 10 nor one of critical"),
        (["chat", "hi", "--priority", "11"], "neither a number"),
        (["chat", "hi", "--option", "temperature"], "is not KEY=VALUE"),
        (["chat", "hi", "--timeout", "0"], "--timeout"),
        (["submit", "-m", "m"], "got none of them"),
        (["submit", "-m", "m", "--chat", "a", "--embed", "b"], "got --chat and --embed"),
        (["submit", "-m", "m", "--rerank", "a"], "needs a --query"),
        (["submit", "-m", "m", "--chat", "a", "--query", "b"], "needs a --query"),
        (["submit", "--chat", "a"], "--model"),
        (["jobs", "--limit", "0"], "--limit"),
        (["bench", "replay", "no-such-file"], "does not exist"),
    ],
)
def test_bad_usage_says_what_is_wrong(args: list[str], said: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_bad_usage_with_json_is_json() -> None:
    result = run("submit", "--json", "--chat", "a")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"] == "MissingParameter"


# --- no Redis


@pytest.mark.parametrize(
    "args",
    [["nodes"], ["models"], ["queues"], ["jobs"], ["jobs", "x"], ["stats"], ["chat", "hi"], ["cancel", "x"],
     ["attach", "x"], ["submit", "-m", "m", "--chat", "hi"], ["explain", "x"], ["limits"], ["dead"],
     ["nodes", "cordon", "x"], ["bench", "record", "/dev/null"], ["limits", "app", "x", "--rpm", "1"],
     ["dead", "drop", "x"]],
)  # fmt: skip
def test_without_redis_one_line_and_exit_code_3(args: list[str]) -> None:
    result = run(*args, env={"SOLLOL_REDIS_URL": NOWHERE})
    assert result.exit_code == 3
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: cannot reach Redis at redis://:***@127.0.0.1:1/0")
    assert "hunter2" not in result.output


def test_without_redis_json_holds_the_error() -> None:
    result = run("nodes", "--json", "--redis", NOWHERE)
    assert result.exit_code == 3
    said = json.loads(result.stdout)
    assert said["error"] == "BrokerUnavailable"
    assert "hunter2" not in result.output


def test_doctor_without_redis_has_one_finding_and_its_own_exit_code() -> None:
    result = run("doctor", "--json", "--redis", NOWHERE)
    assert result.exit_code == 2
    said = json.loads(result.stdout)
    assert said["worst"] == "error"
    assert [finding["id"] for finding in said["findings"]] == ["redis.reachable"]
    assert "hunter2" not in result.output


def test_a_url_that_makes_no_sense_is_not_repeated() -> None:
    result = run("nodes", "--redis", "http://hunter2@example")
    assert result.exit_code == 3
    assert "makes no sense" in result.stderr
    assert "hunter2" not in result.output


def test_a_gateway_tells_of_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = CliRunner().invoke(gateway, ["--port", str(port), "--redis", NOWHERE])

    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"error: port {port} of 127.0.0.1 cannot be listened on ({os.strerror(errno.EADDRINUSE)}): choose another "
        f"with --port, or end who has it"
    ]


# --- missing packages


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_click_or_rich_one_line_names_the_extra(package: str) -> None:
    result = python(f"import sys; sys.modules[{package!r}] = None; from sollol.cli import main; main()")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: the command line needs click and rich: pip install 'sollol[cli]'"
    ]


@pytest.mark.parametrize("name", ["coordinator", "dashboard", "gateway", "worker"])
def test_a_package_that_is_missed_later_is_named_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise ModuleNotFoundError("No module named 'rq'", name="rq")

    monkeypatch.setattr(commands, "import_module", lambda module: SimpleNamespace(main=main))
    said = io.StringIO()
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stderr(said):
        getattr(commands, name)()

    assert ended.value.code == 1
    assert said.getvalue().startswith(f"error: sollol-{name} needs rq: pip install 'sollol[")


@pytest.mark.parametrize("start", ["sollol.cli import main", "sollol.commands import worker as main"])
def test_ctrl_c_while_a_command_is_imported_leaves_no_traceback(start: str) -> None:
    ended = python(
        f"import os, signal, sys\n"
        f"from {start}\n"
        f"class Interrupting:\n"
        f"    def find_spec(self, name, path, target=None):\n"
        f"        os.kill(os.getpid(), signal.SIGINT)\n"
        f"signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.meta_path.insert(0, Interrupting())\n"
        f"main()\n"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


@pytest.fixture
def missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands cannot be imported: a package that one of them needs is not there."""

    def import_module(name: str, package: str | None = None) -> Any:
        raise ModuleNotFoundError("No module named 'psutil'", name="psutil")

    monkeypatch.setattr(app_module, "import_module", import_module)


@pytest.mark.usefixtures("missing_package")
@pytest.mark.parametrize(("command", "extra"), [("up", "local"), ("demo", "local"), ("nodes", "cli")])
def test_a_missing_extra_is_named(command: str, extra: str) -> None:
    result = run(command)
    assert result.exit_code == 1
    expected = (
        f"error: `sollol {command}` needs psutil, which is not installed: pip install 'sollol[{extra}]'"
    )
    assert result.stderr.splitlines() == [expected]


@pytest.mark.usefixtures("missing_package")
def test_help_works_without_the_extras() -> None:
    assert run("--help").exit_code == 0


def test_a_package_found_missing_late_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str) -> None:
        raise ModuleNotFoundError("No module named 'gguf'", name="gguf")

    monkeypatch.setattr("sollol.cli.nodes.open_client", fail)
    result = run("nodes", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "MissingExtra"
    assert "needs gguf" in result.stderr


# --- errors


def _tree(kind: type[SollolError]) -> list[type[SollolError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _tree(child))]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("SollolError", 1),
        ("ClientClosed", 1),
        ("InvalidJob", 2),
        ("BrokerUnavailable", 3),
        ("BrokerOutdated", 3),
        ("NoNodeForModel", 4),
        ("JobFailed", 5),
        ("BackendError", 5),
        ("JobCancelled", 5),
        ("JobDead", 5),
        ("JobLost", 5),
        ("QueueFull", 6),
        ("QuotaExceeded", 6),
        ("DeadlineExceeded", 7),
        ("BackendTimeout", 7),
    ],
)
def test_each_error_has_its_exit_code(name: str, code: int) -> None:
    arguments = {"phase": "total"} if name == "BackendTimeout" else {}
    assert failures.exit_code(getattr(errors, name)("why", **arguments)) == code
    assert f"  {code} " in EXIT_CODES


def test_an_unexpected_error_is_one_line_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("sollol.cli.nodes.open_client", fail)
    result = run("nodes")
    assert result.exit_code == 1
    assert result.stderr == "error: unexpected KeyError: 'oops' (SOLLOL_DEBUG=1 shows where)\n"
    debugged = run("nodes", env={"SOLLOL_DEBUG": "1"})
    assert isinstance(debugged.exception, KeyError)


def test_ctrl_c_without_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sollol.cli.nodes.open_client", fail)
    result = run("nodes", "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout) == {"error": "Interrupted", "message": "interrupted"}


# --- what the arguments become


class RecordingClient:
    """Takes a job, remembers what was asked, and has the answer at once."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def __enter__(self) -> RecordingClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, **asked: Any) -> object:
        self.asked = asked
        return SimpleNamespace(id="j1", accepted=lambda: None)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> RecordingClient:
    client = RecordingClient()
    monkeypatch.setattr("sollol.cli.submit.open_client", lambda url: client)
    return client


def test_submit_passes_on_what_was_said(recorder: RecordingClient) -> None:
    result = run(
        "submit", "-m", "llama3.2", "--chat", "Hi", "--priority", "High", "--option", "temperature=0",
        "--option", "stop=[\"a\"]", "--option", "seed_name=x=y", "--deadline", "30", "--idempotency-key", "k",
    )  # fmt: skip
    assert result.stdout == "j1\n"
    assert recorder.asked["priority"] == 7
    assert recorder.asked["options"] == {"temperature": 0, "stop": ["a"], "seed_name": "x=y"}
    assert recorder.asked["deadline"] == 30.0
    assert recorder.asked["idempotency_key"] == "k"
    assert recorder.asked["generate"] is None
    assert recorder.asked["embed"] is None


def test_submit_embeds_several_texts(recorder: RecordingClient) -> None:
    assert json.loads(run("submit", "-m", "e", "--embed", "a", "--embed", "b", "--json").stdout) == {
        "job": "j1"
    }
    assert recorder.asked["embed"] == ["a", "b"]
    assert "options" not in recorder.asked


def test_submit_reranks_several_texts(recorder: RecordingClient) -> None:
    assert run("submit", "-m", "r", "--rerank", "a", "--rerank", "b", "--query", "q").stdout == "j1\n"
    assert (recorder.asked["rerank"], recorder.asked["query"]) == (["a", "b"], "q")
    assert recorder.asked["stream"] is False


def _model(name: str, *kinds: str, loaded: bool = False) -> ModelView:
    return ModelView(name, kinds or ("chat",), ("n1",), ("n1",) if loaded else ())


def test_the_only_chat_model_is_chosen() -> None:
    assert choose_model([_model("e", "embed"), _model("a")]) == ("a", "")


def test_of_several_models_the_loaded_one_is_chosen() -> None:
    chosen, why = choose_model([_model("a"), _model("b", loaded=True), _model("c", loaded=True)])
    assert chosen == "b"
    assert why == " (in memory; --model chooses another: a, c)"


def test_of_several_models_on_disk_the_first_is_chosen() -> None:
    assert choose_model([_model("a"), _model("b")]) == ("a", " (--model chooses another: b)")


@pytest.mark.parametrize(
    ("models", "said"), [([], "sollol up"), ([_model("all-minilm", "embed")], "only all-minilm")]
)
def test_no_chat_model_is_an_error_that_says_what_to_do(models: list[ModelView], said: str) -> None:
    with pytest.raises(NoNodeForModel, match=said):
        choose_model(models)


# --- words and numbers


def test_routing_line() -> None:
    chat = Routing("n1", "n1.ab", "ollama", 1, "generation", 3.2, 900.0, 60.4, 0.0, 48.21)
    assert routing_line(chat) == "n1 · n1.ab · waited 3 ms · first token 60 ms · 48.2 tokens/s · attempt 1"
    embed = Routing("n1", "n1.ab", "ollama", 2, "embedding", 3.2, 12.0)
    assert routing_line(embed) == "n1 · n1.ab · waited 3 ms · took 12 ms · attempt 2"


def test_a_terminal_gets_no_control_characters_of_strangers() -> None:
    assert printable("a\x1b[2Jb\x07\r\n\tc\x9b") == "a[2Jb\n\tc"
    assert printable("Grüße, 你好 👋") == "Grüße, 你好 👋"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"),
        (0.0123, "12 ms"),
        (3.21, "3.2 s"),
        (42, "42 s"),
        (600, "10 min"),
        (7200, "2 h"),
        (3 * 86400, "3 d"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_links() -> None:
    assert [megabits(pace) for pace in (0.5, 112.0, 250.0, 2500.0)] == [
        "4.2 Mbit/s", "940 Mbit/s", "2.1 Gbit/s", "21 Gbit/s",
    ]  # fmt: skip
    assert [milliseconds(each) for each in (0.043, 0.31, 12.4)] == ["0.043 ms", "0.31 ms", "12 ms"]


def test_sizes_and_counts() -> None:
    assert [size(n) for n in (0, 1023, 1536, 200 * 2**20, 24 * 2**30)] == [
        "0 B", "1023 B", "1.5 KiB", "200 MiB", "24.0 GiB",
    ]  # fmt: skip
    assert [gib(n) for n in (512, 6 * 1024, 24 * 1024)] == ["0.5", "6", "24"]
    assert [count(1, "job"), count(1200, "job"), count(2, "is", "are")] == ["1 job", "1,200 jobs", "2 are"]


def test_the_fabric_knows_this_command_by_name() -> None:
    assert APP == "sollol-cli"


# --- acl


def test_acl_writes_a_file_once(tmp_path: Path) -> None:
    file = tmp_path / "users.acl"
    made = run("acl", "--out", str(file))
    assert made.exit_code == 0, made.output
    lines = file.read_text().splitlines()
    assert lines[0] == "user default off"
    assert [line.split()[1] for line in lines[1:]] == [f"sollol-{role}" for role in Role]
    assert file.stat().st_mode & 0o777 == 0o600
    password = made.stdout.splitlines()[1].split()[-1]
    assert password not in file.read_text()
    assert f"#{hashlib.sha256(password.encode()).hexdigest()}" in lines[1]
    assert "sollol doctor" in made.stderr
    before = file.read_text()
    again = run("acl", "--out", str(file))
    assert (again.exit_code, file.read_text()) == (2, before)
    assert "is there already" in again.output


def test_acl_keeps_passwords_in_files_and_uses_them_again(tmp_path: Path) -> None:
    file, folder = tmp_path / "users.acl", tmp_path / "secrets"
    arguments = ("acl", "--keep", "--out", str(file), "--passwords", str(folder))
    made = run(*arguments)
    assert made.exit_code == 0, made.output
    for role in Role:
        kept = folder / role / "password"
        assert kept.stat().st_mode & 0o777 == 0o600
        assert (password := kept.read_text().strip()) not in made.output
        assert f"user sollol-{role} on #{hashlib.sha256(password.encode()).hexdigest()} " in file.read_text()
    before = file.read_text()
    assert "stays as it is" in run(*arguments).stderr
    assert file.read_text() == before
    file.unlink()  # it broke off between the passwords and the file
    assert run(*arguments).exit_code == 0
    assert file.read_text() == before
    assert run("acl", "--keep").exit_code == 2


def test_acl_of_one_role_for_another_file() -> None:
    made = run("acl", "--role", "worker", "--fabric", "cell-2")
    assert made.exit_code == 0
    (line,) = made.stdout.splitlines()
    assert line.startswith("user sollol-cell-2-worker on #")
    assert "sollol-cell-2-worker" in made.stderr
