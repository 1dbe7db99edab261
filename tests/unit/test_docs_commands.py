"""Every command that the pages show exists, with the options that they give it."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest

from docs_kit import PAGES, ROOT, blocks, shell_lines

_COMMANDS = {
    "sollol": ("sollol.cli.app", "app"),
    "sollol-worker": ("sollol_worker_agent.cli", "main"),
    "sollol-gateway": ("sollol_client.gateway.cli", "main"),
    "sollol-coordinator": ("sollol_coordinator.cli", "main"),
    "sollol-dashboard": ("sollol_coordinator.page.cli", "main"),
}
_LANGUAGES = {
    "sh",
    "python",
    "pycon",
    "toml",
    "json",
    "yaml",
    "text",
    "ini",
    "mermaid",
    "html",
    "javascript",
    "",
}
# What ends a command in a shell.
_ENDS = re.compile(r"(?:&&|\|\||[|;&]|<<?<?|>>?)(?=\s|$)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_a_page_exist(page: Path) -> None:
    wrong = [f"{page.name}:{at}: {said}" for at, line in shell_lines(page) for said in _wrong_with(line)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_of_known_languages(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= _LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_on_a_page_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    shown = set(re.findall(r"(?:`|^    |^)make ([a-z-]+)", page.read_text("utf-8"), re.M))
    assert shown <= targets


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sollol nodes --json", []),
        ('sollol chat "Hello" --modle x', ["sollol chat has no --modle"]),
        ("SOLLOL_REDIS_URL=x sollol node | head", ["sollol has no command node"]),
        ("sollol-worker --nod a &", ["sollol-worker has no --nod"]),
        ("sudo sollol-gateway --port 1 > log  # and more", []),
        ("kubectl -n sollol create secret", []),
    ],
)
def test_the_check_finds_what_is_wrong(line: str, said: list[str]) -> None:
    assert _wrong_with(line) == said


def _wrong_with(line: str) -> list[str]:
    said = []
    for part in _ENDS.split(line):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:
            continue  # a sentence with an apostrophe
        while words and (re.fullmatch(r"\w+=.*|sudo|exec|nohup", words[0])):
            words = words[1:]
        if words and words[0] in _COMMANDS and not _is_prose(words):
            said += _wrong_words(words)
    return said


def _is_prose(words: list[str]) -> bool:
    """A page may say in an indented line what a command tells."""
    return len(words) > 1 and words[1].endswith((":", ","))


def _wrong_words(words: list[str]) -> list[str]:
    module, name = _COMMANDS[words[0]]
    command: click.Command = getattr(import_module(module), name)
    path, rest = words[0], words[1:]
    while isinstance(command, click.Group):
        while rest and rest[0].startswith("-"):
            rest = rest[2:] if _takes_value(command, rest[0]) else rest[1:]
        if not rest or not re.fullmatch(r"[a-z][a-z-]*", rest[0]):
            return []
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            return [] if command.invoke_without_command else [f"{path} has no command {rest[0]}"]
        command, path, rest = found, f"{path} {rest[0]}", rest[1:]
    known = {
        "--help",
        "-h",
        *(option for each in command.params for option in (*each.opts, *each.secondary_opts)),
    }
    if "--" in rest:  # what follows is for another program
        rest = rest[: rest.index("--")]
    given = (word.partition("=")[0].strip("[]…") for word in rest if re.match(r"\[?-{1,2}[a-z]", word))
    return [f"{path} has no {option}" for option in given if option not in known]


def _takes_value(command: click.Command, option: str) -> bool:
    return any(option in each.opts and not getattr(each, "is_flag", False) for each in command.params)
