"""llama.cpp on this machine: fetched, built, installed, tried out, and run by systemd.

Where a program is found when it is needed is the worker's business (llama_binaries.py).
"""

from .errors import SetupError

__all__ = ["SetupError"]
