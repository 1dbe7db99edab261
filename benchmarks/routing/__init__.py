"""How policies compare on recorded traffic, in virtual time."""
