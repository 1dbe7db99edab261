"""Model files in Ollama's store: found by name, with no Ollama running.

A manifest is a JSON file per name and tag; it names blobs, and the one of the kind "model" is a GGUF file that
llama-server loads as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_MODEL = "application/vnd.ollama.image.model"
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
# Where manifests have lain; newer releases may use the second.
_MANIFESTS = ("manifests", "manifest-v2")
_HOSTS = (_HOST, "ollama.com")
_SYSTEM_STORES = (
    "/usr/share/ollama/.ollama/models",
    "/var/lib/ollama/models",
    "/var/lib/ollama/.ollama/models",
)
# A manifest has a few hundred bytes.
_MOST_BYTES = 1024 * 1024


def stores(environ: Mapping[str, str] = os.environ, home: Path | None = None) -> list[Path]:
    """Where Ollama may keep its models here: $OLLAMA_MODELS alone if it is set, else the usual places."""
    if chosen := environ.get("OLLAMA_MODELS"):
        return [Path(chosen)]
    return [(home or Path.home()) / ".ollama/models", *map(Path, _SYSTEM_STORES)]


def resolve(name: str, roots: Sequence[Path] | None = None) -> Path | None:
    """The GGUF file of a model by its name in Ollama ("llama3.1:70b"); None when it is not here, or not whole."""
    for root in stores() if roots is None else roots:
        for manifest in _manifests(root, name):
            if (path := _model_file(root, manifest)) is not None:
                return path
    return None


def models(roots: Sequence[Path] | None = None) -> Iterator[tuple[str, Path]]:
    """All models in the stores: the name that Ollama shows ("NAME:TAG"), and the GGUF file."""
    for root in stores() if roots is None else roots:
        for folder in _MANIFESTS:
            base = root / folder
            for manifest in sorted(_files(base)):
                parts = manifest.relative_to(base).parts
                if len(parts) == 4 and (path := _model_file(root, manifest)) is not None:
                    yield _shown(*parts), path


def _manifests(root: Path, name: str) -> Iterator[Path]:
    reference, found, tag = name.rpartition(":")
    if not found or "/" in tag:
        reference, tag = name, _TAG
    parts = reference.split("/")
    if not all(parts) or len(parts) > 3 or ".." in (*parts, tag):
        return
    hosts = _HOSTS if len(parts) < 3 else (parts[0],)
    namespace = parts[-2] if len(parts) > 1 else _NAMESPACE
    for folder in _MANIFESTS:
        for host in hosts:
            base = root / folder / host / namespace
            if (exact := base / parts[-1] / tag).is_file():
                yield exact
                return
            # Ollama compares names without regard to case.
            for each in _files(base):
                if [part.lower() for part in each.parts[-2:]] == [parts[-1].lower(), tag.lower()]:
                    yield each


def _model_file(root: Path, manifest: Path) -> Path | None:
    try:
        if manifest.stat().st_size > _MOST_BYTES:
            return None
        layers = json.loads(manifest.read_bytes())["layers"]
        digest = next(str(layer["digest"]) for layer in layers if layer["mediaType"] == _MODEL)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None  # not a manifest, or of something that is no model
    kind, _, number = digest.partition(":")
    path = root / "blobs" / f"{kind}-{number}"
    return path if number.isalnum() and path.is_file() else None


def _files(base: Path) -> list[Path]:
    try:
        return [path for path in base.rglob("*") if path.is_file()]
    except OSError:  # another user's store
        return []


def _shown(host: str, namespace: str, model: str, tag: str) -> str:
    if host in _HOSTS:
        return f"{model}:{tag}" if namespace == _NAMESPACE else f"{namespace}/{model}:{tag}"
    return f"{host}/{namespace}/{model}:{tag}"
