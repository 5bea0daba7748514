"""Registered models that compete for the alias `champion`: judges, and heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import mlflow
from mlflow.tracking import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Promotion:
    """The alias of a newly registered version, and the reason for it."""

    version: str
    alias: str
    reason: str


def register(uri: str, name: str, tags: Mapping[str, object], about: str) -> str:
    """Register a new version of model `name` with these tags; describe the model if it has no description."""
    client, made = MlflowClient(), mlflow.register_model(uri, name)
    for key, value in tags.items():
        if value not in ("", None):
            client.set_model_version_tag(name, made.version, key, str(value))
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, about)
    return str(made.version)


def champion_version(name: str) -> str | None:
    """The version with the alias champion; None without one."""
    try:
        return str(MlflowClient().get_model_version_by_alias(name, CHAMPION).version)
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def contend(
    name: str, new: str, present: tuple[str, T | None] | None, better: Callable[[T], tuple[bool, str]]
) -> Promotion:
    """Make version `new` the champion if it is the first, or if `better` says so of the `present` one, with a reason.

    `present` is the champion's version and what it is (None if its files are gone); None if there is none.
    """
    if present is None:
        return promote(name, new, True, "the first of this name")
    old, champion = present
    if champion is None:
        return promote(name, new, True, f"the files of version {old}, the champion so far, no longer exist")
    wins, says = better(champion)
    return promote(name, new, wins, f"{says} (version {old})")


def promote(name: str, new: str, better: bool, reason: str) -> Promotion:
    """Set the alias of version `new`, and store the reason on that version."""
    alias = CHAMPION if better else CHALLENGER
    client = MlflowClient()
    client.set_registered_model_alias(name, alias, new)
    client.set_model_version_tag(name, new, "verdict", alias)
    client.update_model_version(name, new, description=f"{alias}: {reason}")
    return Promotion(new, alias, reason)
