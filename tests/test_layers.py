"""Imports run down only, algorithms stay free of torch, and looking at settings loads neither torch nor mlflow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the ground up. A module may import from its own layer's row and from rows above it in this list.
LAYERS = [
    {"errors", "reading", "addresses", "files", "signals"},
    {"decoding"},
    {"lm"},
    {"engine", "tasks", "sheets", "store", "tracking", "config"},
    {"evaluation", "judge", "zoo"},
    {"api", "specexp"},
    {"serving"},  # what is served is what the Python door gives
    {"entrypoints"},
]
SOURCES = sorted([*(ROOT / "specexp").rglob("*.py"), *(ROOT / "entrypoints").rglob("*.py")])
HEAVY = {"torch", "transformers", "mlflow", "numpy"}


def layer_of(parts: tuple[str, ...]) -> int:
    """Row of a module named by its path or dotted name; the package's own __init__ is its Python door."""
    name = "entrypoints" if parts[0] == "entrypoints" else (parts[1] if len(parts) > 1 else "specexp")
    name = "specexp" if name == "__init__" else name
    return next(i for i, row in enumerate(LAYERS) if name in row)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_down_only(path: Path) -> None:
    mine = layer_of(path.relative_to(ROOT).with_suffix("").parts)
    for name in imports(path):
        parts = tuple(name.split("."))
        if name == "specexp" and parts[0] == "specexp":
            continue  # `from specexp import errors` says so twice: by the package and by the module
        if parts[0] in ("specexp", "entrypoints"):
            assert layer_of(parts) <= mine, f"{path.name} imports {name}, which stands above it"


@pytest.mark.parametrize("path", sorted((ROOT / "specexp/decoding").glob("*.py")), ids=lambda p: p.name)
def test_algorithms_import_no_array_library(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & HEAVY


def test_mlflow_is_imported_in_few_places() -> None:
    users = [p for p in SOURCES if any(name.split(".")[0] == "mlflow" for name in imports(p))]
    assert [str(p.relative_to(ROOT)) for p in users] == [
        "specexp/judge/registry.py",
        "specexp/judge/pyfunc.py",  # which MLflow runs
        "specexp/serving/registry.py",
        "specexp/serving/pyfunc.py",  # which MLflow runs
        "specexp/tracking/backend.py",
        "specexp/tracking/client.py",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["advise", "--help"],
        ["advise", "--experiment", "nothing"],
        ["advise", "--tree-budget", "none", "--gamma", "0"],
        ["evaluate", "--help"],
        ["evaluate", "--experiment", "nothing"],
        ["generate", "--help"],
        ["generate", "x", "--method", "nothing"],
        ["log_decoder", "--help"],
        ["log_decoder", "--method", "nothing"],
        ["log_decoder", "--most-new-tokens", "1"],
        ["benchmark", "--help"],
        ["benchmark", "--experiment", "nothing"],
        ["speed_check", "--help"],
        ["speed_check", "--shape", "nothing"],
        ["upload", "--help"],
        ["presets"],
        ["presets", "arith_quick"],
        ["validate", "--experiment", "gsm8k_llama_8b_1b"],
        ["validate"],
    ],
    ids=" ".join,
)
def test_help_and_wrong_settings_load_neither_torch_nor_mlflow(arguments: list[str]) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['entrypoints', *{arguments!r}]\n"
        "try:\n    runpy.run_module('entrypoints', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'mlflow'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


def test_importing_the_package_is_light() -> None:
    code = "import sys, specexp; print(sorted({'torch', 'transformers', 'mlflow', 'numpy', 'yaml'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
