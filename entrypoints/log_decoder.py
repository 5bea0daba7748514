"""log_decoder: log and register a pair and a method as a model that MLflow serves, by reference to the weights."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace

import click

from specexp.command_line import guarded, own_options, print_notes, settings_options, tags_of
from specexp.config import single
from specexp.errors import ConfigError
from specexp.pair import first_look

from .generate import SETTINGS as GENERATE

SETTINGS = {
    **GENERATE,
    "max_new_tokens": "Set the most tokens to emit, unless a request says otherwise.",
}
TRIED = 8  # tokens decoded as a test before anything is logged


def log_decoder(experiment: str, method: str, name: str, most_new_tokens: str, flags: Mapping[str, str]) -> None:
    """Resolve, load, try, log and register. Raises SpecexpError."""
    asked = single.resolve(experiment, method, flags)
    if most_new_tokens and not (most_new_tokens.isdigit() and int(most_new_tokens) >= asked.max_new_tokens):
        raise ConfigError(
            f"most_new_tokens is {most_new_tokens!r}; it must be a whole number >= max_new_tokens,"
            f" which is {asked.max_new_tokens}."
        )
    first_look.check(asked)
    # Import torch and mlflow only after the settings are checked.
    from specexp.api import LoadedPair
    from specexp.methods import roles_of
    from specexp.serving import decoder_spec as referring
    from specexp.serving import registry
    from specexp.tracking import backend, client

    registry.check_name(name)
    next_step = "When the store answers, run the same command again."
    with backend.require_store("a decoder is registered there", next_step):
        pass  # raises before any model is loaded
    pair = LoadedPair(asked, roles=roles_of(asked.methods[0]))
    judge = pair.judge_of(asked.methods[0])
    print_notes(pair.notes)
    pair.decode(registry.EXAMPLE, replace(asked, max_new_tokens=TRIED))
    most = int(most_new_tokens or max(pair.context, asked.max_new_tokens))
    reference = referring.make_decoder_spec(pair, asked, most)
    label = asked.methods[0].label
    with backend.require_store("a decoder is registered there", next_step):
        with client.comparison(f"{uuid.uuid4().hex}/decoder", f"decoder {label}", tags_of("log_decoder", asked)):
            uri = registry.log(reference, judge)
        version = registry.register(uri, name, reference, judge)
    click.echo(f"{label} on {asked.pair}: {name} version {version}")
    click.echo(f"serve it: mlflow models serve -m models:/{name}/{version} --env-manager local")


@click.command("log_decoder", help=__doc__)
@own_options("log_decoder")
@settings_options("arith_quick", SETTINGS, output=False)
def command(experiment: str, method: str, name: str, most_new_tokens: str, **flags: str) -> None:
    guarded(
        lambda: log_decoder(experiment, method, name, most_new_tokens, flags),
        "Start it again.",
    )


if __name__ == "__main__":
    command()
