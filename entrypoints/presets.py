"""presets: list the presets that ship with specexp by name, or show one preset."""

from __future__ import annotations

import click

from specexp import config
from specexp.command_line import guarded
from specexp.errors import ConfigError, unknown


@click.command("presets", help=__doc__)
@click.argument("name", required=False)
def command(name: str | None) -> None:
    guarded(lambda: show(name) if name else overview())


def overview() -> None:
    """Print every preset with the first line of its header."""
    for kind in config.KINDS:
        click.echo(f"{kind}:")
        names = config.preset_names(kind)
        for name in names:
            header = config.preset_text(kind, name).splitlines()[0].lstrip("# ")
            click.echo(f"  {name.ljust(max(map(len, names)))}  {header}")


def show(name: str) -> None:
    """Print the files of this name, of every kind that has one."""
    kinds = [kind for kind in config.KINDS if name in config.preset_names(kind)]
    if not kinds:
        raise ConfigError(unknown("preset", name, {n for kind in config.KINDS for n in config.preset_names(kind)}))
    for kind in kinds:
        click.echo(f"# {kind}/{name}.yaml\n{config.preset_text(kind, name).rstrip()}")


if __name__ == "__main__":
    command()
