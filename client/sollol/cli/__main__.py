"""`python -m sollol.cli` is `sollol`."""

from . import main

main()
