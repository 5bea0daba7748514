"""One place for versions, a command line that says what MLproject says, and a wheel that holds all that it needs."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from entrypoints.__main__ import COMMANDS, Entrypoints

ROOT = Path(__file__).resolve().parent.parent
EVALUATE = [
    "experiment", "pair", "target", "draft", "toy", "chat_template", "task", "data", "system", "shots",
    "shots_data", "history", "answer_rule",
    "answer_pattern", "comparator", "execute", "methods", "gamma", "tree_budget",
    "temperature", "top_k", "top_p", "max_new_tokens", "min_new_tokens", "ignore_eos", "stop", "thinking_budget",
    "limit", "seed", "repeats", "batch", "numerics", "judge", "threshold",
    "accept_k", "accept_margin", "accept_epsilon", "accept_entropy", "accept_distance", "rule", "config", "output",
    "resume", "show",
]  # fmt: skip

BENCHMARK = [
    "experiment", "pair", "target", "draft", "chat_template", "task", "data", "gamma", "max_new_tokens", "limit",
    "seed", "repeats", "batch", "config", "output", "resume", "quick", "compiled", "json",
    "concurrency", "request_rate", "num_requests", "warmup_requests", "level_seconds", "ttft_bound", "tpot_bound",
]  # fmt: skip

CERTIFY = [
    "experiment", "method", "pair", "target", "draft", "toy", "chat_template",
    "task", "data", "system", "shots", "shots_data", "gamma", "tree_budget",
    "temperature", "top_k", "top_p", "max_new_tokens", "limit", "seed", "batch", "numerics", "judge", "threshold",
    "accept_k", "accept_margin", "accept_epsilon", "accept_entropy", "accept_distance", "rule", "samples", "config",
    "output", "resume", "engine", "engine_model", "against", "weights", "bias", "engine_dtype",
]  # fmt: skip

ADVISE = [
    "experiment", "pair", "target", "draft", "toy", "chat_template", "task", "data", "gamma", "tree_budget",
    "temperature", "top_k", "top_p", "max_new_tokens", "limit", "seed", "repeats", "judge", "threshold", "config",
    "output", "resume", "sweep",
]  # fmt: skip


WORKERS = ["workers", "ray", "gpus_per_worker", "cpus_per_worker"]
STAY = {
    "evaluate": [*EVALUATE, *WORKERS], "benchmark": BENCHMARK, "advise": [*ADVISE, "draft_cost", *WORKERS],
    "certify": [*CERTIFY, *WORKERS],
}  # fmt: skip


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def ranges() -> list[Requirement]:
    project = pyproject()["project"]
    extras = [line for group in project["optional-dependencies"].values() for line in group]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_lock_has_one_version_in_every_range_and_nothing_else() -> None:
    locked = lock()
    assert [each.name for each in ranges()] == list(locked), "in the order of pyproject.toml"
    assert all(each.specifier.contains(locked[each.name]) for each in ranges())


def test_every_range_ends_below_the_next_major_version() -> None:
    for each in ranges():
        least, upper = sorted(each.specifier, key=lambda part: Version(part.version))
        assert (least.operator, upper.operator) == (">=", "<"), each
        assert upper.version == str(Version(lock()[each.name]).major + 1), each


def test_the_oldest_environment_is_the_lower_ends() -> None:
    names = {canonicalize_name(each.name): each for each in ranges() if each.name != "selenium"}
    oldest = runpy.run_path(str(ROOT / ".ci" / "oldest.py"))["constraints"]
    pins = [line.split("==") for line in oldest((ROOT / "pyproject.toml").read_text())]
    assert [canonicalize_name(name) for name, _ in pins] == list(names)
    for name, version in pins:
        assert names[canonicalize_name(name)].specifier.contains(version)
        assert f">={version}" in str(names[canonicalize_name(name)])
    with pytest.raises(ValueError, match="'tqdm>4' is no range"):
        oldest('[project]\ndependencies = ["tqdm>4"]\n[project.optional-dependencies]\ntest = []')


def test_conda_has_the_locked_dependencies() -> None:
    pip = next(line["pip"] for line in load("conda.yaml")["dependencies"] if isinstance(line, dict))
    names = [Requirement(line).name for line in pyproject()["project"]["dependencies"]]
    assert pip == [f"{name}=={lock()[name]}" for name in names]


def test_make_installs_from_the_lock() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "LOCK ?= requirements.lock" in makefile
    installs = [line.strip() for line in makefile.splitlines() if "pip install" in line]
    assert installs
    assert all(
        line.startswith("pip install --quiet --constraint $(LOCK) --editable")
        or re.fullmatch(r"(CMAKE_ARGS=\S+( \S+)*\" )?pip install --quiet --no-deps --target \S+( \S+==\S+)+", line)
        for line in installs
    )
    pins = dict(re.findall(r" ([a-z-]+)==(\S+)", makefile))
    assert {name: lock()[name] for name in ("compressed-tensors", "torchao")}.items() <= pins.items()
    assert "test-oldest" not in (ROOT / ".ci" / "run").read_text()


def test_one_version_everywhere() -> None:
    version = pyproject()["project"]["version"]
    assert load("CITATION.cff")["version"] == version
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == version


def test_hosted_ci_runs_what_ci_runs() -> None:
    steps = load(".github/workflows/ci.yml")["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    hooks = [hook["entry"] for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook.split()[0] for hook in hooks} == {"ruff", "codespell"}


@pytest.mark.parametrize("package", ["entrypoints", "specexp"])
def test_a_checkout_that_is_not_installed_runs_commands_under_both_names(package: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = (
        "import sys, runpy\n"
        "sys.argv = ['x', 'presets', 'toy']\n"
        "try:\n"
        f"    runpy.run_module({package!r}, run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        "    names = [name for name in sys.modules if name.split('.')[0] == 'entrypoints' or '.entrypoints' in name]\n"
        "    print(sorted({sys.modules[name].__file__ for name in names if name.endswith('presets')}), len(names))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("# models/toy.yaml")
    assert result.stdout.splitlines()[-1].startswith(str([str(ROOT / "entrypoints" / "presets.py")])), "this checkout's"


@pytest.mark.slow
def test_the_wheel_holds_specexp_alone_with_all_that_it_needs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("specexp", "entrypoints", "tests", "docker"):  # with what was compiled beside it
        shutil.copytree(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (scripts,) = (file.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    information = f"specexp-{pyproject()['project']['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"specexp", information}
    kept = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "specexp").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    kept |= {f"specexp/{path.relative_to(ROOT)}" for path in (ROOT / "entrypoints").rglob("*.py")}
    assert {name for name in names if name.startswith("specexp/")} == kept
    for name in (
        "py.typed", "entrypoints/evaluate.py", "presets/experiments/arith_quick.yaml",
        "presets/templates/template_specexec.yaml", "zoo/target/model.safetensors", "zoo/draft/tokenizer.json",
        "evaluation/report/templates", "evaluation/token_view/templates",
    ):  # fmt: skip
        assert any(packed.startswith(f"specexp/{name}") for packed in names), name
    parsed = ConfigParser()
    parsed.read_string(scripts)
    assert dict(parsed["console_scripts"]) == {"specexp": "specexp.entrypoints.__main__:cli"}


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
    entry_points = load("MLproject")["entry_points"]
    for name, parameters in STAY.items():
        assert sorted(entry_points[name]["parameters"]) == sorted(parameters)
    without = {"presets", "validate", "speed_check", "upload", "generate", "serve"}  # no run is to be made for them
    assert set(entry_points) == set(COMMANDS) - without


def test_the_defaults_agree() -> None:
    for name, entry in load("MLproject")["entry_points"].items():
        command = Entrypoints().get_command(click.Context(click.Command("x")), name)
        assert command is not None
        for parameter in command.params:
            expected = entry["parameters"][parameter.name]["default"]
            assert str(parameter.default).lower() == expected.lower(), f"{name}: {parameter.name}"
