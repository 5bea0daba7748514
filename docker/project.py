"""Writes MLproject from the commands' options, and docker/MLproject, the same in an image. `make settings` runs it.

An MLproject has one environment, so there are two files.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# No run is to be made for these.
WITHOUT_A_RUN = frozenset({"presets", "validate", "speed_check", "upload", "generate", "serve"})
LINE_LENGTH = 120
HEAD = """\
# Written by `make settings` from the commands' options, which are in specexp/config.
name: specexp

"""
CONDA = "conda_env: conda.yaml\n"
# MLflow joins the command for a shell, which starts in this folder and fills in what stands behind a $.
DOCKER = """\
docker_env:
  image: specexp-base
  volumes:
    - "$PWD/..:/mlflow/projects/code"
    - "$(python3 store.py)"
  # A local store is mounted at its own paths: the address outside is the address inside. SQLite then keeps its journal
  # beside the database, where every process finds it, and judges registered inside are found outside.
  environment: [["MLFLOW_TRACKING_URI", "$MLFLOW_TRACKING_URI"]]
"""


def project(made_from: Iterable[click.Command]) -> str:
    """The text of MLproject: an entry point per command, whose parameters are the command's options."""
    return f"{HEAD}{CONDA}\nentry_points:\n" + "".join(line for each in made_from for line in _entry_point(each))


def in_docker(root: str) -> str:
    """The text of docker/MLproject, from the text of the root's."""
    if root.count(CONDA) != 1:
        raise ValueError(f"MLproject has no line '{CONDA.strip()}' to put docker_env in the place of.")
    return root.replace(CONDA, DOCKER)


def _entry_point(command: click.Command) -> Iterator[str]:
    yield f"  {command.name}:\n    parameters:\n"
    for parameter in command.params:
        yield f"      {parameter.name}: {{type: string, default: {json.dumps(_text(parameter.default))}}}\n"
    options = " ".join(f"--{each.name} {{{each.name}}}" for each in command.params)
    call = f"python -m entrypoints.{command.name} {options}"
    margin = " " * 6
    lines = textwrap.wrap(
        call, LINE_LENGTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
    yield "\n".join(["    command: >-", *lines, ""])


def _text(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def commands() -> Iterator[click.Command]:
    from entrypoints.__main__ import COMMANDS, Entrypoints

    group = Entrypoints()
    for name in sorted(COMMANDS, key=lambda name: name != "main"):
        command = group.get_command(click.Context(group), name)
        if command is not None and name not in WITHOUT_A_RUN:
            yield command


def main() -> None:
    root = project(commands())
    for path, text in ((ROOT / "MLproject", root), (HERE / "MLproject", in_docker(root))):
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
