"""A package that adds methods (docs/examples/near_best): every command knows them, without a line changed here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from specexp import method_specs
from specexp.errors import ConfigError
from specexp.method_specs import Method, MethodSpec

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "near_best"
METHODS = "baseline,near_best,lookup_then_draft"
TOY = ["--experiment", "toy_quick", "--limit", "2"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed."""
    target = tmp_path_factory.mktemp("site")
    copy = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "near_best")  # building leaves files there
    how = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(target), str(copy)]
    subprocess.run([sys.executable, "-m", "pip", "install", *how], check=True)
    return target


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(site), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "entrypoints", *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_evaluate_runs_them_and_the_report_has_them(site: Path, workplace: Path) -> None:
    done = run(site, workplace, "evaluate", *TOY, "--methods", METHODS, "--gamma", "2,3", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert "lookup_then_draft_k3" in done.stdout
    written = [json.loads(line) for line in (workplace / "out" / "records.jsonl").read_text().splitlines()]
    tokens = {(record["prompt_id"], record["label"]): record["token_ids"] for record in written}
    for (prompt, label), ids in tokens.items():
        if label.startswith("lookup_then_draft"):
            assert ids == tokens[prompt, "baseline"]
    assert sum(record["num_judged"] for record in written if record["method"] == "near_best") > 0
    assert "near_best_k2" in (workplace / "out" / "report.html").read_text()


@pytest.mark.nightly
@pytest.mark.parametrize("method,code,said", [
    ("lookup_then_draft", 0, "LOSSLESS"), ("near_best", 1, "near_best declares itself lossy"),
])  # fmt: skip
def test_certify_examines_them_with_the_exhaustive_oracle(
    site: Path, workplace: Path, method: str, code: int, said: str
) -> None:
    done = run(site, workplace, "certify", *TOY, "--method", method, "--gamma", "3", "--output", "out")
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stdout.split())
    checks = json.loads((workplace / "out" / "certificate.json").read_text())["checks"]
    assert checks[0]["name"] == "oracle"


def test_presets_validate_and_advise_know_them(site: Path, workplace: Path) -> None:
    assert "near_best" in run(site, workplace, "presets").stdout
    shown = run(site, workplace, "presets", "near_best").stdout
    assert "# Accepts drafted tokens that are near the target's best." in shown
    assert "gamma: 4" in shown
    (workplace / "mine.yaml").write_text(f"methods: [{METHODS}]\n")
    assert "3 settings" in run(site, workplace, "validate", "mine.yaml").stdout
    (workplace / "one.yaml").write_text("methods: [near_best]\n")
    refused = run(site, workplace, "advise", *TOY, "--config", "one.yaml")
    assert refused.returncode == 2
    assert "methods has near_best; advice weighs" in refused.stderr
    wrong = run(site, workplace, "evaluate", *TOY, "--methods", "near_bets")
    assert "did you mean 'near_best'?" in wrong.stderr


class Point:
    """An entry point of a package."""

    dist = None

    def __init__(self, name: str, loaded: object) -> None:
        self.name, self._loaded = name, loaded

    def load(self) -> object:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


@pytest.mark.parametrize("loaded,said", [
    (ImportError("no module named x"), "method 'mine' of package '?' cannot be loaded: ImportError: no module named x"),
    (42, "method 'mine' of package '?' is int; it must be a specexp.method_specs.Method."),
    (Method(MethodSpec("topk", "Mine.", "chain"), print), "another method has the name 'topk'; uninstall one of them."),
])  # fmt: skip
def test_a_package_that_is_broken_is_named(monkeypatch: pytest.MonkeyPatch, loaded: object, said: str) -> None:
    monkeypatch.setattr(method_specs, "entry_points", lambda group: [Point("mine", loaded)])
    method_specs.installed.cache_clear()
    try:
        with pytest.raises(ConfigError) as error:
            method_specs.installed()
    finally:
        method_specs.installed.cache_clear()
    assert said in str(error.value)
