"""A recommendation as a file of settings that `evaluate --config` accepts unchanged, with a header like a preset's."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from specexp import config
from specexp.advise.advice import Advice
from specexp.advise.advice_text import notes, recommendation
from specexp.advise.candidates import PLAIN, Candidate
from specexp.config import CALIBRATED, Experiment, MethodConfig
from specexp.config.experiment import LATER_OF_EXPERIMENT, LATER_OF_MODELS
from specexp.config.models import ON_TARGET
from specexp.decoding.protocol import Role
from specexp.engine_settings import recommendation as engine_recommendation
from specexp.engine_settings.recommendation import Recommendation
from specexp.lm.runtime import AUTO

NAME = "recommended.yaml"
SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")


def recommended(advice: Advice, path: Path) -> str:
    """The file's text; `path` is the file's later path, for the command in its header."""
    experiment = advice.prepared.experiment
    header = [
        f"What advise recommends for pair {experiment.pair} on task {experiment.task}.",
        f"Command:  python -m specexp evaluate --config {path}",
        f"          mlflow run . --env-manager local -e evaluate -P config={path}",
        f"Hardware: {hardware(advice.environment)}",
        f"Result:   {recommendation(advice)}",
        *(f"          {note}" for note in notes(advice)),
    ]
    settings = yaml.safe_dump(
        _settings(advice), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
    )
    # A name may contain any character, also a line break, which would end the comment.
    return "".join(f"# {' '.join(line.splitlines())}\n" for line in header) + settings


def _settings(advice: Advice) -> dict[str, Any]:
    experiment = advice.prepared.experiment
    result = {**_models(experiment, advice.prepared.pair.models), "task": experiment.task}
    if experiment.data is not None:
        result["data"] = {key: value for key, value in asdict(experiment.data).items() if value}
    if experiment.shots:
        result["shots"] = experiment.shots
    if experiment.shots_data is not None:
        result["shots_data"] = {key: value for key, value in asdict(experiment.shots_data).items() if value}
    if experiment.system:
        result["system"] = experiment.system
    if experiment.history != "baseline":
        result["history"] = experiment.history
    if experiment.answer_rule != "auto":
        result["answer_rule"] = experiment.answer_rule
    if experiment.answer_pattern:
        result["answer_pattern"] = experiment.answer_pattern
    result |= {
        name: value for name, default in LATER_OF_EXPERIMENT.items() if (value := getattr(experiment, name)) != default
    }
    chosen = [c.setting.config for c in advice.candidates if c.label == advice.best]
    result["methods"] = [PLAIN, *(method.preset for method in chosen)]
    for method in chosen:
        result |= _method(method)
    return result | {name: getattr(experiment, name) for name in SAMPLING}


def _models(experiment: Experiment, loaded: Collection[Role]) -> dict[str, Any]:
    """The pair by its preset's name if it has one, else the loaded models in full."""
    if experiment.toy is not None:
        return {"pair": experiment.pair, "toy": asdict(experiment.toy)}
    if experiment.pair in config.preset_names("models"):
        preset = config.load_yaml(config.PRESETS / "models" / f"{experiment.pair}.yaml")["target"]
        template = experiment.target.chat_template
        given = {} if template == preset.get("chat_template", AUTO) else {"chat_template": template}
        return {"pair": experiment.pair, **given}
    return {
        role: {name: getattr(model, name) for name in ON_TARGET if getattr(model, name)}
        if model.on_target
        else {key: value for key, value in asdict(model).items() if value not in ("", LATER_OF_MODELS.get(key))}
        for role, model in experiment.models.items()
        if role in loaded
    }


def _method(method: MethodConfig) -> dict[str, Any]:
    """The settings of a method, besides its preset."""
    if method.tree is not None:
        return {key: value for key, value in asdict(method.tree).items() if value is not None}
    result: dict[str, Any] = {"gamma": method.gamma}
    if method.auto_gamma:
        result = {"gamma": "auto", "max_gamma": method.max_gamma}
    if method.max_ngram:
        result["max_ngram"] = method.max_ngram
    if method.min_draft_probability:
        result["min_draft_probability"] = method.min_draft_probability
    if method.suffix_factor:
        result |= {
            "suffix_factor": method.suffix_factor, "suffix_min_probability": method.suffix_min_probability
        }  # fmt: skip
    if method.suffix_memory != "prompt":
        result["suffix_memory"] = method.suffix_memory
    if method.min_match > 1:
        result["min_match"] = method.min_match
    if method.proposers:
        result["proposers"] = method.proposers
    if method.draft_temperature is not None:
        result["draft_temperature"] = method.draft_temperature
    if method.rule != "token":
        result["rule"] = method.rule
    if not method.bonus:
        result["bonus"] = False
    if method.judge:
        result |= {"judge": method.judge, "threshold": CALIBRATED if method.threshold is None else method.threshold}
    return result


def hardware(environment: Mapping[str, Any]) -> str:
    """The hardware of the measurements, in one line."""
    return ", ".join(_hardware(environment))


def _hardware(environment: Mapping[str, Any]) -> Iterator[str]:
    models = environment["models"].values()
    yield environment["processor"] or environment["platform"]
    if devices := sorted(
        {f"{x['device']} {x['device_name']}".strip() for x in models if x.get("device", "cpu") != "cpu"}
    ):
        yield ", ".join(devices)
    if threads := environment["models"]["target"].get("threads"):
        yield f"{threads} thread{'s' * (threads > 1)}"
    if dtypes := sorted({x["dtype"] for x in models if "dtype" in x}):
        yield ", ".join(dtypes)
    if "torch" in environment["packages"]:
        yield f"PyTorch {environment['packages']['torch']}"


def recommended_for_engines(advice: Advice) -> Recommendation:
    """The recommended setting; plain decoding where the advice is not to speculate."""
    label = advice.best or PLAIN
    [setting] = [each for each in advice.prepared.settings if each.config.label == label]
    chosen = next((each for each in advice.candidates if each.label == advice.best), None)
    fixed = _fixed_gamma(advice, chosen) if chosen is not None and chosen.adapts else 0
    return engine_recommendation.of(
        advice.prepared.experiment, setting.config, setting.lossless, advice.prepared.pair.vocabulary, fixed
    )


def _fixed_gamma(advice: Advice, adapting: Candidate) -> int:
    """The draft length of the best predicted candidate that differs from an adapting one in its length alone; 0: there
    is none."""
    wanted = adapting.setting.config
    alike = [
        each
        for each in advice.candidates
        if not each.adapts
        and each.setting.config.tree is None
        and all(
            getattr(each.setting.config, name) == getattr(wanted, name)
            for name in ("method", "rule", "draft_temperature", "proposers", "min_draft_probability", "bonus")
        )
    ]
    best = max(alike, key=lambda each: advice.forecast.predicted[each.label].speedup, default=None)
    return 0 if best is None else best.setting.config.gamma
