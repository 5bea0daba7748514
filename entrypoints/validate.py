"""validate: check all presets that ship with specexp, or the given files, and report all faults at once."""

from __future__ import annotations

import click

from specexp import config
from specexp.command_line import guarded, own_options
from specexp.draft_faults import draft_faults
from specexp.errors import ConfigError


@click.command("validate", help=__doc__)
@click.argument("files", nargs=-1)
@own_options("validate")
def command(files: tuple[str, ...], experiment: str) -> None:
    guarded(lambda: validate(files, experiment))


def validate(files: tuple[str, ...], experiment: str) -> None:
    """Resolve each file over `experiment`; without files, every experiment, template, and pair with every method
    that its draft takes."""
    jobs = [(f"file {file}", experiment, {"config": file}) for file in files]
    if not files:
        jobs = [(f"experiment {name}", name, {}) for name in config.preset_names("experiments")]
        jobs += [
            (f"template {name}", experiment, {"config": str(config.PRESETS / "templates" / f"{name}.yaml")})
            for name in config.preset_names("templates")
        ]
        jobs += [
            (f"method {method} with pair {pair}", experiment, {"pair": pair, "methods": method})
            for method, pair in _pairings()
        ]
    faults: list[str] = []
    for what, name, flags in jobs:
        try:
            resolved = config.resolve(name, flags)
        except ConfigError as error:
            faults += [fault if files else f"{what}: {fault}" for fault in error.faults]
        else:
            click.echo(f"{what}: good, {len(resolved.methods)} settings, configuration {resolved.hash}")
    if faults:
        raise ConfigError(faults)


def _pairings() -> list[tuple[str, str]]:
    """The presets of methods and pairs that go together."""
    methods = {
        name: config.resolve("arith_quick", {"methods": name}).methods for name in config.preset_names("methods")
    }
    result = []
    for pair in config.preset_names("models"):
        draft = config.resolve("arith_quick", {"pair": pair, "methods": "baseline"}).draft
        result += [(name, pair) for name, settings in methods.items() if not draft_faults(settings, draft)]
    return result


if __name__ == "__main__":
    command()
