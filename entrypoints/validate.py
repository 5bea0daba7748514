"""validate: check all presets that ship with specexp, or the given files, and report all faults at once."""

from __future__ import annotations

import click

from specexp import config
from specexp.errors import ConfigError
from specexp.lm.runtime import HEADS
from specexp.method_specs import models_of, spec

from .common import guarded, own_options


@click.command("validate", help=__doc__)
@click.argument("files", nargs=-1)
@own_options("validate")
def command(files: tuple[str, ...], experiment: str) -> None:
    guarded(lambda: validate(files, experiment))


def validate(files: tuple[str, ...], experiment: str) -> None:
    """Resolve each file over `experiment`; without files, every experiment, template, and pair with every method."""
    jobs = [(f"file {file}", experiment, {"config": file}) for file in files]
    if not files:
        jobs = [(f"experiment {name}", name, {}) for name in config.preset_names("experiments")]
        jobs += [
            (f"template {name}", experiment, {"config": str(config.PRESETS / "templates" / f"{name}.yaml")})
            for name in config.preset_names("templates")
        ]
        jobs += [
            (f"method {method} with pair {pair}", experiment, {"pair": pair, "methods": method})
            for pair in config.preset_names("models")
            for method in config.preset_names("methods")
            if not (_drafts_by_a_head(pair) and _needs_a_draft_model(method))
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


def _drafts_by_a_head(pair: str) -> bool:
    draft = config.load_yaml(config.PRESETS / "models" / f"{pair}.yaml").get("draft")
    return isinstance(draft, dict) and bool(set(HEADS) & draft.keys())


def _needs_a_draft_model(method: str) -> bool:
    methods = config.resolve("arith_quick", {"methods": method}).methods
    return any("draft" in models_of(each) and not spec(each.method).takes_heads for each in methods)


if __name__ == "__main__":
    command()
