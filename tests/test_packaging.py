"""One place for pins, and a command line that says what MLproject says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from entrypoints.__main__ import COMMANDS, Entrypoints

ROOT = Path(__file__).resolve().parent.parent
EVALUATE = [
    "experiment", "pair", "target", "draft", "toy", "chat_template", "task", "data", "shots", "history", "answer_rule",
    "answer_pattern", "methods", "gamma", "tree_budget",
    "temperature", "top_k", "top_p", "max_new_tokens", "limit", "seed", "repeats", "batch", "judge", "threshold",
    "accept_k", "config", "output", "resume", "show",
]  # fmt: skip

BENCHMARK = [
    "experiment", "pair", "target", "draft", "chat_template", "task", "data", "gamma", "max_new_tokens", "limit",
    "seed", "repeats", "batch", "config", "output", "resume", "quick", "compiled", "json",
]  # fmt: skip

CERTIFY = [
    "experiment", "method", "pair", "target", "draft", "toy", "chat_template",
    "task", "data", "shots", "gamma", "tree_budget",
    "temperature", "top_k", "top_p", "max_new_tokens", "limit", "seed", "batch", "judge", "threshold", "accept_k",
    "samples", "config", "output", "resume",
]  # fmt: skip

ADVISE = [
    "experiment", "pair", "target", "draft", "toy", "chat_template", "task", "data", "gamma", "tree_budget",
    "temperature", "top_k", "top_p", "max_new_tokens", "limit", "seed", "repeats", "judge", "threshold", "config",
    "output", "resume", "sweep",
]  # fmt: skip


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_conda_and_pyproject_pin_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = next(d["pip"] for d in load("conda.yaml")["dependencies"] if isinstance(d, dict))
    assert sorted(pip) == sorted(project["dependencies"])
    extras = [d for group in project["optional-dependencies"].values() for d in group]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", d) for d in [*pip, *extras]), "everything is pinned exactly"


@pytest.mark.parametrize("name", load("MLproject")["entry_points"])
def test_an_entry_point_passes_every_parameter_to_its_command(name: str) -> None:
    entry = load("MLproject")["entry_points"][name]
    parameters = list(entry["parameters"])
    assert re.findall(r"--(\w+) \{(\w+)\}", entry["command"]) == [(p, p) for p in parameters]
    assert all(spec["type"] == "string" for spec in entry["parameters"].values())
    command = Entrypoints().get_command(click.Context(click.Command("x")), name)
    assert command is not None
    assert [p.name for p in command.params] == parameters
    assert f"python -m entrypoints.{name} " in entry["command"]


def test_the_names_that_stay() -> None:
    assert list(load("MLproject")["entry_points"]["evaluate"]["parameters"]) == EVALUATE
    assert list(load("MLproject")["entry_points"]["benchmark"]["parameters"]) == BENCHMARK
    assert list(load("MLproject")["entry_points"]["advise"]["parameters"]) == ADVISE
    assert list(load("MLproject")["entry_points"]["certify"]["parameters"]) == CERTIFY
    without = {"presets", "validate", "speed_check", "upload", "generate"}  # no run is to be made for them
    assert set(load("MLproject")["entry_points"]) == set(COMMANDS) - without


def test_the_defaults_agree() -> None:
    for name, entry in load("MLproject")["entry_points"].items():
        command = Entrypoints().get_command(click.Context(click.Command("x")), name)
        assert command is not None
        for parameter in command.params:
            want = entry["parameters"][parameter.name]["default"]
            assert str(parameter.default).lower() == want.lower(), f"{name}: {parameter.name}"
