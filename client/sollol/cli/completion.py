"""`sollol completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAMS = ("sollol", "sollol-worker", "sollol-gateway", "sollol-coordinator", "sollol-dashboard")
_SHELLS = ("bash", "fish", "zsh")


@click.command(short_help="Let the shell complete commands and options.")
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print what SHELL needs to complete the commands of SOLLOL.

    \b
    bash: source <(sollol completion bash)               in ~/.bashrc
    zsh:  source <(sollol completion zsh)                in ~/.zshrc, behind compinit
    fish: sollol completion fish | source                in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  # the choices above are click's own
    for name in _PROGRAMS:
        variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
        click.echo(kind(click.Command(name), {}, name, variable).source())
