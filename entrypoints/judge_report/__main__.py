"""`python -m entrypoints.judge_report`."""

from . import command

command()
