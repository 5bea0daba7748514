"""Logs decoders in MLflow, as models from code by reference to their weights, and registers them."""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from specexp.config import Experiment
from specexp.errors import ConfigError
from specexp.judge.judge import Judge
from specexp.methods import is_lossless, roles_of
from specexp.serving.decoder_spec import JUDGE, MAX_BATCH_SIZE, Reference
from specexp.serving.requests import COLUMN

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent
EXAMPLE = "Mia has 4 apples. Then she buys 3 more. How many is that in the end?\n"
# What decoding imports; what else a pair needs, such as bitsandbytes, depends on its settings.
REQUIREMENTS = (
    "accelerate", "array-api-compat", "Jinja2", "mlflow", "numpy", "pyarrow", "PyYAML", "regex", "safetensors", "scipy",
    "tokenizers", "torch", "transformers",
)  # fmt: skip
_ABOUT = """Decoders of specexp: prompts in, texts and counts out, each version one method on one pair of models.

Serve one: `mlflow models serve -m models:/{name}/1 --env-manager local`. A version names its models and holds no copy
of them; it is refused where they are not what they were when it was logged."""


def check_name(name: str) -> None:
    """Refuse a name that a registered model cannot have. Raises ConfigError."""
    if not name.strip() or re.search(r"[/:]", name):
        raise ConfigError(f"name is {name!r}; it must be a name without / and :.")


def log(reference: Reference, judge: Judge | None) -> str:
    """Log a decoder as a model of the active run; returns its address."""
    asked = reference.experiment
    method = asked.methods[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "decoder"
        reference.save(folder)
        if judge is not None:
            judge.save(folder / JUDGE)
        info = mlflow.pyfunc.log_model(
            name="decoder",
            python_model=str(HERE / "pyfunc.py"),
            code_paths=[str(_code(Path(scratch)))],
            artifacts={"decoder": str(folder)},
            signature=signature(asked),
            model_config={"rows": MAX_BATCH_SIZE, "device": ""},  # what the caller may choose at loading
            input_example=[{COLUMN: EXAMPLE}],
            pip_requirements=requirements(asked),
            metadata={
                "method": method.label,
                **{key: value for key, value in reference.identity.items() if isinstance(value, str) and value},
            },
        )
    return str(info.model_uri)


def signature(asked: Experiment) -> ModelSignature:
    """The signature: a prompt in, text and counts out; parameters have the experiment's values as defaults."""
    kinds = {
        "max_new_tokens": "long", "min_new_tokens": "long", "ignore_eos": "boolean", "temperature": "double",
        "top_k": "long", "top_p": "double", "seed": "long",
    }  # fmt: skip
    outputs = {
        "text": "string", "num_tokens": "long", "target_calls": "long", "tokens_per_call": "double",
        "finish_reason": "string",
    }  # fmt: skip
    return ModelSignature(
        inputs=Schema([ColSpec("string", COLUMN)]),
        outputs=Schema([ColSpec(kind, name) for name, kind in outputs.items()]),
        params=ParamSchema(
            [
                *(ParamSpec(name, kind, getattr(asked, name)) for name, kind in kinds.items()),
                ParamSpec("stop", "string", list(asked.stop), (-1,)),
            ]
        ),
    )


def requirements(asked: Experiment) -> list[str]:
    """The packages that decoding needs, at their installed versions."""
    more = [] if asked.target.quantization == asked.draft.quantization == "none" else ["bitsandbytes"]
    return [f"{package}=={version(package)}" for package in (*REQUIREMENTS, *more)]


def register(uri: str, name: str, reference: Reference, judge: Judge | None = None) -> str:
    """Add a version to the registered model `name`, tagged with what it decodes; its page says what it is for."""
    client, made = MlflowClient(), mlflow.register_model(uri, name)
    asked = reference.experiment
    method = asked.methods[0]
    tags = {"method": method.label, "lossless": str(is_lossless(method, asked.warp, judge)).lower()}
    tags |= {role: getattr(asked, role).model for role in sorted(roles_of(method))}
    for key, value in tags.items():
        client.set_model_version_tag(name, made.version, key, value)
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, _ABOUT.format(name=name))
    return str(made.version)


def _code(scratch: Path) -> Path:
    """A copy of this package without the embedded weights, which are not part of its code."""
    folder = scratch / "code" / PACKAGE.name
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for part in (folder / "zoo").iterdir():
        if part.is_dir():
            shutil.rmtree(part)
    return folder
