"""Runs the command collect_labels in this process."""

from __future__ import annotations

from click.testing import Result

from entrypoints import collect_labels
from helpers.cli_runner import invoke


def collect(*arguments: str) -> Result:
    return invoke(collect_labels.command, *arguments)
