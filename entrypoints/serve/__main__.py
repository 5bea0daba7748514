"""`python -m entrypoints.serve`."""

from . import command

command()
