"""The release this code belongs to."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("sollol")
except PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0+unknown"
