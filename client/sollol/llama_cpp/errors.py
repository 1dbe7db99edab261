"""What can go wrong while llama.cpp is set up."""

from sollol_broker.errors import SollolError


class SetupError(SollolError):
    """llama.cpp could not be fetched, built or used; the text says why and what to do."""
