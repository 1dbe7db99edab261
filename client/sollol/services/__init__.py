"""SOLLOL's processes as services of systemd: the text of their units, and what installs and removes them."""
