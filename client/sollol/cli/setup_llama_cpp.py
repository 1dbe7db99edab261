"""`sollol setup-llama-cpp`: finds llama.cpp, or fetches and builds it, tries it out, and starts an rpc-server."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from sollol_broker.errors import BackendError, SollolError
from sollol_worker_agent.llama_binaries import find_llama_server, find_rpc_server
from sollol_worker_agent.rpc.part import threads_for
from sollol_worker_agent.rpc.server import RpcServer

from ..llama_cpp import SetupError, unit
from ..llama_cpp import source as sources
from ..llama_cpp.build import RPC_SERVER, SERVER, default_flags, default_jobs
from ..llama_cpp.commands import find, run
from ..llama_cpp.setup import fetched_or_fetch, set_up, sources_directory
from ..llama_cpp.smoke import try_out
from . import output

_DEFAULT_PORT = 50052
_TODO = "sollol setup-llama-cpp --build"


@click.command("setup-llama-cpp")
@click.option("--all", "wants_all", is_flag=True,
              help="Use what is here, else fetch and build it; then start an rpc-server.")  # fmt: skip
@click.option("--clone", "wants_clone", is_flag=True, help="Fetch the sources only.")
@click.option("--build", "wants_build", is_flag=True,
              help="Build and install, whatever is here already; fetches the sources if need be.")  # fmt: skip
@click.option("--start", "wants_start", is_flag=True,
              help="Start an rpc-server on 127.0.0.1, and keep it running until Ctrl-C.")  # fmt: skip
@click.option("--source", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="Build this tree of llama.cpp.")  # fmt: skip
@click.option("--git-ref", metavar="TAG",
              help="Build this release from llama.cpp's git host, such as b11434. Default: the archive of "
              "llama-cpp-python on PyPI, whose hash is checked.")  # fmt: skip
@click.option("--flag", "flags", multiple=True, metavar="-DNAME=VALUE",
              help="One more for cmake, such as -DGGML_NATIVE=ON or -DGGML_CUDA=ON (the default where nvcc "
              "and nvidia-smi are). May be repeated.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), metavar="N",
              help="Compilers at once.  [default: one per processor and per 1.5 GB of free memory]")  # fmt: skip
@click.option("--port", type=click.IntRange(1, 65535), default=_DEFAULT_PORT, show_default=True,
              help="Of the rpc-server.")  # fmt: skip
@click.option("--systemd", "wants_unit", is_flag=True,
              help=f"Write the unit llama-rpc@PORT.service to {unit.DIRECTORY}.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the unit instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def setup_llama_cpp(
    wants_all: bool,
    wants_clone: bool,
    wants_build: bool,
    wants_start: bool,
    source: Path | None,
    git_ref: str | None,
    flags: tuple[str, ...],
    jobs: int | None,
    port: int,
    wants_unit: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find llama.cpp's programs on this machine, or build them, and try them out.

    Without an option it tells what is here, and whether it works: every program must answer with a tiny model. Looked
    for in this order: PATH, what was built here, the wheel of `sollol[local]`. A worker of a fabric needs no more than
    that; it starts rpc-servers by itself when a group of nodes is formed.

    A build takes about 20 minutes of one processor, and lies in ~/.local/share/sollol/llama.cpp. How long is left is
    told; an interrupted build goes on where it was.
    """
    if source is not None and git_ref is not None:
        raise click.UsageError("--source and --git-ref exclude each other.")
    if dry_run and not wants_unit:
        raise click.UsageError("--dry-run belongs to --systemd.")
    if wants_unit:
        _write_unit(dry_run=dry_run)
        return
    if not (wants_all or wants_clone or wants_build or wants_start):
        _show(as_json=as_json)
        return
    if wants_clone:
        sources.fetch(sources_directory(), git_ref, output.aside)
    if wants_build or (wants_all and not _works()):
        tree = sources.given(source) if source is not None else fetched_or_fetch(git_ref, output.aside)
        _build(tree, (*default_flags(), *flags), jobs or default_jobs())
    if wants_start or wants_all:
        asyncio.run(_serve(port))


@dataclass(frozen=True, slots=True)
class _Found:
    """A program and what was found out about it. `problem`: why it cannot be used; "" = it works."""

    program: str
    path: str = ""
    build: str = ""
    problem: str = ""


def _look() -> list[_Found]:
    try:
        server = find_llama_server()
    except BackendError as error:
        return [_Found(SERVER, problem=str(error))]
    try:
        rpc_server, missing = find_rpc_server(), ""
    except BackendError as error:
        rpc_server, missing = None, str(error)
    try:
        asyncio.run(try_out(server, rpc_server))
        problem = ""
    except SetupError as error:
        problem = str(error)
    found = [_Found(SERVER, str(server.path), server.build(), problem)]
    if rpc_server is None:
        return [*found, _Found(RPC_SERVER, problem=missing)]
    return [*found, _Found(RPC_SERVER, str(rpc_server.path), rpc_server.build() or server.build(), problem)]


def _works() -> bool:
    found = _look()
    for each in found:
        output.aside(f"{each.program}: {each.problem or f'{each.path}, {each.build}, works'}")
    return not any(each.problem for each in found)


def _show(*, as_json: bool) -> None:
    found = _look()
    if as_json:
        output.print_json(found)
    else:
        output.print_lines(
            [
                (each.program, output.Cell("cannot be used", "red"), each.problem)
                if each.problem
                else (each.program, output.Cell("works", "green"), f"{each.path}  {each.build}")
                for each in found
            ]
        )
        if any(each.problem for each in found):
            output.say(f"\nBuild one with: {_TODO}")
    if any(each.problem for each in found):
        raise click.exceptions.Exit(1)


def _build(source: sources.Source, flags: tuple[str, ...], jobs: int) -> None:
    server = set_up(source, flags, jobs, output.aside)
    output.say(f"{server.path.parent} works: {server.build()}")
    if (other := find_llama_server().path).parent != server.path.parent.resolve():
        output.say(f"But {other} is on PATH, and will be used before it.")


async def _serve(port: int) -> None:
    server = RpcServer(
        log_directory=Path(tempfile.mkdtemp(prefix="sollol-rpc-")),
        threads=threads_for(os.cpu_count() or 1, None),
        port=port,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        report = await server.start()
        version = ".".join(map(str, report.version or ()))
        output.say(f"rpc-server on 127.0.0.1:{port}, protocol {version}; Ctrl-C ends it.")
        ended = asyncio.create_task(server.wait_dead())
        waiting = asyncio.create_task(stopped.wait())
        await asyncio.wait({ended, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if ended.done():
            raise SollolError(f"the rpc-server ended: {ended.result()}")
        ended.cancel()
    finally:
        await server.stop()
        shutil.rmtree(server.log.parent, ignore_errors=True)


def _write_unit(*, dry_run: bool) -> None:
    text = unit.unit_text(find_rpc_server())
    if dry_run:
        click.echo(text, nl=False)
        return
    target = unit.DIRECTORY / unit.NAME
    try:
        target.write_text(text)
    except OSError as error:
        raise SetupError(
            f"{target} cannot be written ({error.strerror}): run it as root, or "
            f"sollol setup-llama-cpp --systemd --dry-run | sudo tee {target}"
        ) from error
    if (analyze := find("systemd-analyze")) is not None:
        with tempfile.TemporaryDirectory() as work:
            run([analyze, "verify", target], log=Path(work) / "log", what="systemd-analyze verify")
    output.say(f"{target} is written. Start one with: systemctl enable --now llama-rpc@{_DEFAULT_PORT}")
