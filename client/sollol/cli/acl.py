"""`sollol acl`: users for Redis, one per role."""

from __future__ import annotations

import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from sollol_broker.acl import NOBODY, Role, user

from . import output
from .output import Cell, Column

_COLUMNS = (Column("ROLE"), Column("USER"), Column("PASSWORD"))
_HOW = """
The file has only hashes of the passwords{shown}.
1. In redis.conf: `aclfile {file}`, and neither `user` nor `requirepass` lines. Restart Redis; later `ACL LOAD` reads
   the file anew. Redis must be able to read it.
2. Load SOLLOL's functions, now and after each upgrade, as the admin:
     SOLLOL_REDIS_PASSWORD=… sollol doctor --redis 'redis://sollol-admin@HOST:6379/0'
3. Name the user in the URL of each program, such as redis://{example}@HOST:6379/0, and keep its password in
   SOLLOL_REDIS_PASSWORD, or in a file that SOLLOL_REDIS_PASSWORD_FILE names."""


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user, with the password that is shown this once, or the file that has it. `line`: its line in the ACL file."""

    role: str
    user: str
    password: str
    line: str


@click.command()
@click.option(
    "--fabric",
    default="",
    metavar="NAME",
    help="The fabric whose keys they may touch; usually the default one.",
)
@click.option("--role", "roles", multiple=True, type=click.Choice([each.value for each in Role]),
              help="Only this role, for instance for a new password; may be repeated. Default: all, and the default "
              "user is shut out.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the ACL file here, a new file. Default: to stdout, and the passwords to stderr.")  # fmt: skip
@click.option("--passwords", "folder", type=click.Path(path_type=Path), metavar="DIR",
              help="Keep each password in DIR/ROLE/password, for its owner alone, and show none. One that is there "
              "already is used.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Do nothing if the file is there: for machines that start again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def acl(
    fabric: str, roles: tuple[str, ...], out: Path | None, folder: Path | None, keep: bool, as_json: bool
) -> None:
    """Write users for Redis, one per role, each with a random password and the rights that it needs.

    \b
    admin        everything; loads SOLLOL's functions
    client       applications: submit, follow, cancel, look
    gateway      a client that checks API keys, too
    worker       sollol-worker: claim, answer, advertise
    coordinator  operators: nodes, limits and dead letters, too
    dashboard    looks on: neither prompts nor answers, and changes nothing

    It talks to no server.
    """
    if keep and out is None:
        raise click.UsageError("--keep looks for the file of --out: name one.")
    if keep and out is not None and out.exists():
        output.aside(f"{out} is there already, and stays as it is.")
        return
    users = [_new(Role(role), fabric, folder) for role in roles or Role]
    lines = [*(() if roles else (NOBODY,)), *(each.line for each in users)]
    if out is not None:
        _write(out, lines)
    if as_json:
        output.print_json({"users": [asdict(each) for each in users], "file": str(out) if out else None})
        return
    if out is None:
        for line in lines:
            output.say(line)
        output.aside("\n".join(f"{each.role:<12} {each.user:<24} {each.password}" for each in users))
        return
    output.print_table(_COLUMNS, [(each.role, Cell(each.user, "bold"), each.password) for each in users])
    output.aside(
        _HOW.format(
            file=out.absolute(), example=users[-1].user, shown="" if folder else "; they are shown this once"
        )
    )


def _new(role: Role, fabric: str, folder: Path | None) -> NewUser:
    password = secrets.token_urlsafe(32)
    made = user(role, fabric)
    if folder is None:
        return NewUser(role.value, made.name, password, made.line(password))
    file = folder / role.value / "password"
    if file.exists():
        password = file.read_text().strip()
    else:
        _write(file, [password])
    return NewUser(role.value, made.name, str(file), made.line(password))


def _write(path: Path, lines: list[str]) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise click.UsageError(
            f"{path} is there already, and its passwords would be lost: name a new file."
        ) from None
    except OSError as error:
        raise click.UsageError(f"{path} cannot be written: {error.strerror}.") from None
    with open(descriptor, "w") as file:
        file.writelines(f"{line}\n" for line in lines)
