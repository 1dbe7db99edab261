"""Batches from file to file, for the command line: what is read, what is written, and how one goes on after a break."""
