"""Components import from rows above their own only; algorithms are free of torch; looking at settings loads no library.

A component is a package, a subpackage, or a module at the top of `specexp`. docs/architecture.md lists these rows.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A component imports from components in rows above its own in this list, and from others in its own row.
ROWS = [
    {"errors"},
    {"addresses", "bugs", "installed", "signals"},
    {"answers", "reading", "sandbox", "sequences"},
    {"tasks", "decoding", "programs"},
    {"method_specs", "draft_faults", "engines", "lm"},
    {"lm.configs", "lm.kernels", "lm.streaming"},
    {"lm.blocks"},
    {"lm.native"},
    {"lm.hf"},
    {"lm.heads", "lm.sharded"},
    {"engine", "config", "storage"},
    {"engine_settings", "pair", "tracking", "profiling"},
    {"judge.shards"},
    {"checkpoints", "drafter", "judge", "metrics", "zoo"},
    {"methods", "rule_calibration", "judge_comparison", "judge_report"},
    {"evaluation", "evaluation.token_view", "evaluation.report", "api"},
    {"workers"},
    {"certify", "advise", "benchmark", "load_testing", "serving"},
    {"advise.engines", "advise.workers"},
    {"engine_certify"},
    {"specexp"},
    {"command_line", "lm_eval", "scale"},
    {"entrypoints", "entrypoints.judge_report", "entrypoints.serve"},
    {"__main__"},
]
# Stories of their own, which never import each other.
STORIES = {"certify", "advise", "benchmark", "load_testing", "serving"}
SOURCES = sorted([*(ROOT / "specexp").rglob("*.py"), *(ROOT / "entrypoints").rglob("*.py")])
HEAVY = {"torch", "transformers", "mlflow", "numpy"}
MOST_FILES, MOST_SHARE, MOST_LINES = 16, 0.2, 300


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in SOURCES}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def component_of(module: str) -> str:
    """The package that a module is in, or the module itself at the top."""
    package = module if module in PACKAGES else module.rpartition(".")[0]
    if module.split(".")[0] == "entrypoints":
        return package
    return package.removeprefix("specexp.") if package != "specexp" else module.removeprefix("specexp.")


def origin(node: ast.ImportFrom, path: Path) -> str:
    """The dotted name of what `from ... import` imports from; relative names are resolved."""
    if not node.level:
        return node.module or ""
    package = dotted(path.parent / "__init__.py").split(".")
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def imports(path: Path, loading: bool = False) -> set[str]:
    """Dotted names, and for `from package import name` the module that this is, if it is one.

    With `loading`, only what is imported as the module itself is.
    """
    names = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if loading else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = origin(node, path)
            inner = {f"{base}.{alias.name}" for alias in node.names}
            names |= {name for name in inner if name in MODULES}
            if any(name not in MODULES for name in inner):
                names.add(base)
    return names


def arrows() -> Iterator[tuple[str, str, str]]:
    """(module, its component, the component that it imports from)."""
    for module, path in MODULES.items():
        for name in imports(path):
            if name in MODULES and component_of(name) != component_of(module):
                yield module, component_of(module), component_of(name)


def row_of(component: str) -> int:
    return next(i for i, row in enumerate(ROWS) if component in row)


def test_relative_imports_are_seen_and_are_the_commands_way_to_each_other() -> None:
    """The commands' package has two names: `entrypoints` in a checkout, `specexp.entrypoints` where it is installed."""
    assert "entrypoints.train_judge" in imports(ROOT / "entrypoints/main.py"), "from .train_judge import ..."
    alike = ast.parse("from . import common").body[0]
    assert isinstance(alike, ast.ImportFrom)
    assert origin(alike, ROOT / "entrypoints/evaluate.py") == "entrypoints"
    node = ast.parse("from ..lm import forward").body[0]
    assert isinstance(node, ast.ImportFrom)
    assert origin(node, ROOT / "specexp/pair/x.py") == "specexp.lm"
    assert origin(node, ROOT / "specexp/pair/__init__.py") == "specexp.lm"
    for path in SOURCES:
        for statement in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            names += [statement.module or ""] if isinstance(statement, ast.ImportFrom) and not statement.level else []
            assert not [name for name in names if name.split(".")[0] == "entrypoints"], path


def test_every_room_has_its_row() -> None:
    assert {component_of(module) for module in MODULES} == set().union(*ROWS)


def test_the_architecture_page_lists_these_rows() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```text components\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    listed = [set(re.split(r" {2,}", line)[0].split(", ")) for line in blocks[0].splitlines()]
    assert listed == ROWS


def test_imports_run_down_only() -> None:
    wrong = [f"{module} imports {other}" for module, component, other in arrows() if row_of(other) > row_of(component)]
    assert not sorted(wrong)


def test_no_rooms_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for _, component, other in arrows():
        graph.setdefault(component, set()).add(other)
    list(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


def test_no_modules_import_each_other_in_a_circle() -> None:
    """As they are loaded: an import inside a function, or for types alone, comes later."""
    graph = {
        module: {name for name in imports(path, loading=True) if name in MODULES} for module, path in MODULES.items()
    }
    list(TopologicalSorter(graph).static_order())


def test_stories_do_not_import_each_other() -> None:
    assert not [(module, other) for module, component, other in arrows() if {component, other} <= STORIES]


def test_no_name_with_an_underscore_leaves_its_module() -> None:
    wrong = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and origin(node, path).split(".")[0] in ("specexp", "entrypoints"):
                wrong += [f"{module}: {alias.name}" for alias in node.names if alias.name.startswith("_")]
    assert not wrong


def test_components_and_files_stay_small() -> None:
    sizes = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    components: dict[str, list[str]] = {}
    for module in sizes.keys() - PACKAGES - {"entrypoints.__main__"}:
        components.setdefault(component_of(module), []).append(module)
    total = sum(sizes.values())
    assert not {component: len(modules) for component, modules in components.items() if len(modules) > MOST_FILES}
    assert not [
        component for component, modules in components.items() if sum(sizes[m] for m in modules) > MOST_SHARE * total
    ]
    assert not {module: size for module, size in sizes.items() if size > MOST_LINES}


def test_a_class_name_is_used_once() -> None:
    places: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module)
    assert not {name: modules for name, modules in places.items() if len(modules) > 1}


@pytest.mark.parametrize("path", sorted((ROOT / "specexp/decoding").glob("*.py")), ids=lambda p: p.name)
def test_algorithms_import_no_array_library(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & HEAVY


def test_mlflow_is_imported_in_few_places() -> None:
    users = {module for module, path in MODULES.items() if "mlflow" in {n.split(".")[0] for n in imports(path)}}
    files = {
        "specexp.drafter.registry", "specexp.judge.registry", "specexp.judge.pyfunc", "specexp.serving.registry",
        "specexp.serving.pyfunc",
    }  # fmt: skip
    assert {module for module in users if component_of(module) != "tracking"} == files


def test_torch_and_transformers_are_imported_where_models_are() -> None:
    heavy = {"torch", "transformers"}
    users = {module for module, path in MODULES.items() if heavy & {name.split(".")[0] for name in imports(path)}}
    components = {"benchmark", "checkpoints", "drafter", "zoo"} | {
        each for row in ROWS for each in row if each.split(".")[0] == "lm"
    }
    files = {"specexp.judge.training", "specexp.profiling.bandwidth", "entrypoints.speed_check"}
    assert {module for module in users if component_of(module) not in components} == files


@pytest.mark.at_most(slow=5)
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
        ["serve", "--help"],
        ["serve", "--port", "nothing"],
        ["speed_check", "--help"],
        ["speed_check", "--shape", "nothing"],
        ["train_drafter", "--help"],
        ["train_drafter", "--task", "mtbench", "--depth", "0"],
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
