"""Describes where a record was made: the models as loaded (not as requested), libraries, threads, CPU, commit."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from specexp.lm.model import Model

PACKAGES = ("specexp", "torch", "transformers", "bitsandbytes", "accelerate", "datasets", "numpy", "mlflow")
ROOT = Path(__file__).resolve().parents[2]


def describe(models: Mapping[Any, Model], tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as a JSON-serializable dict: of `models` by role and their tokenizer, of the machine and the code."""
    return {
        "models": {role: model.facts() for role, model in models.items()},
        "tokenizer": dict(tokenizer),
        "packages": {name: result for name in PACKAGES if (result := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "openmp": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(("OMP_", "GOMP_", "KMP_"))},
        "processor": processor_name(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
    }


def on_cuda(facts: Mapping[str, Any]) -> bool:
    """True if one of these models ran on CUDA."""
    return any(str(model.get("device", "")).startswith("cuda") for model in facts["models"].values())


def name_of(facts: Mapping[str, Any]) -> str:
    """Hash of the facts in twelve hex digits, by which records refer to them."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor_name() -> str:
    """The CPU's name from /proc/cpuinfo, or else from `platform`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _git(*arguments: str) -> str:
    """Output of git for this checkout; "" if ROOT is not one, since an enclosing repository may be unrelated."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
