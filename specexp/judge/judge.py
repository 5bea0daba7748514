"""A judge on disk: `judge.safetensors` and `judge.json` in a folder, and the check that it fits a pair of models.

This module does not use MLflow (see registry.py) and does not train (see training.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save

from specexp import reading
from specexp.answers.rules import UNRECORDED, version_note
from specexp.errors import JudgeError, shown
from specexp.judge import features
from specexp.judge.network import Network
from specexp.storage.files import make_folder, write_whole

WEIGHTS, FACTS = "judge.safetensors", "judge.json"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a judge was trained for and on. The first block must match the pair that decodes with it."""

    target: str  # fingerprints of the loaded models
    draft: str
    tokenizer: str  # hash of its vocabulary
    features: str  # a mode of judge/features.py
    feature_version: int
    num_features: int
    target_name: str = ""
    draft_name: str = ""
    target_revision: str = ""
    draft_revision: str = ""
    task: str = ""
    kind: str = "mlp"
    layer: str = "last, after its norm"
    dtype: str = "float32"
    threshold: float = 0.0  # calibrated: p below it counts as unimportant
    requested_recall: float = 0.0
    recall: float = 0.0  # on the test split
    chat_template: str | None = None  # hash of the template applied to prompts; "" if none was applied, None if unknown
    labels: str = ""  # hash of the label set: of the file hashes in its manifest
    answer_version: int = UNRECORDED  # version of the rule that read the labels' answers


Rule = tuple[Callable[[Any], bool], str]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# What a value of judge.json must be: by its type in `Facts`, or by its name if the rule for it is stricter.
_TYPES: dict[str, Rule] = {
    "str": (lambda x: isinstance(x, str), "a string"),
    "int": (lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 0, "a whole number >= 0"),
    "float": (_is_number, "a number"),
}
_RULES: dict[str, Rule] = {
    "threshold": (lambda x: _is_number(x) and x >= 0, "a number >= 0"),
    **dict.fromkeys(("requested_recall", "recall"), (lambda x: _is_number(x) and 0 <= x <= 1, "a number in [0, 1]")),
}


def facts_of(content: Any, where: str) -> Facts:
    """Return `Facts` from the content of judge.json; unknown keys are ignored. Raises JudgeError with every fault."""
    if not isinstance(content, dict):
        raise JudgeError(f"{where} cannot be read: {FACTS} must be an object, got {type(content).__name__}.")
    faults, values = [], {}
    for field in fields(Facts):
        if field.name not in content:
            faults += [f"{field.name} is missing"] if field.default is MISSING else []
            continue
        values[field.name] = value = content[field.name]
        kind, _, optional = str(field.type).partition(" | ")
        is_good, rule = _RULES.get(field.name) or _TYPES[kind]
        if not is_good(value) and not (optional and value is None):
            faults.append(f"{field.name} is {shown(value)}; it must be {rule}")
    if faults:
        raise JudgeError(f"{where} cannot be read: in {FACTS}, {', '.join(faults)}. Train it again.")
    return Facts(**values)


@dataclass(frozen=True, slots=True)
class Judge:
    """A network and its facts."""

    network: Network
    facts: Facts

    def save(self, folder: Path) -> None:
        """Write both files, each of them atomically."""
        make_folder(folder)
        write_whole(folder / WEIGHTS, save(dict(self.network.arrays)))
        write_whole(folder / FACTS, json.dumps(asdict(self.facts), indent=2) + "\n")

    def digest(self) -> str:
        """Return the SHA-256 of the weights."""
        return hashlib.sha256(save(dict(sorted(self.network.arrays.items())))).hexdigest()

    @classmethod
    def load(cls, folder: Path, name: str = "") -> Judge:
        """Read a judge's folder; error messages refer to it as `name`. Raises JudgeError."""
        name = name or str(folder)
        if not (folder / FACTS).is_file() or not (folder / WEIGHTS).is_file():
            raise JudgeError(f"'{name}' holds no judge: it needs {FACTS} and {WEIGHTS}, as train_judge writes them.")
        where = f"the judge in '{name}'"
        text = reading.decode(
            reading.read_bytes(folder / FACTS, "judge file", JudgeError),
            f"{where} cannot be read: {FACTS}",
            JudgeError,
        )
        facts = facts_of(reading.parse_json(text, f"{where} cannot be read: {FACTS}", JudgeError), where)
        try:
            network = Network(facts.kind, load_file(folder / WEIGHTS))
        except Exception as error:  # the file was truncated or edited by hand
            raise JudgeError(f"{where} cannot be read: {error}") from error
        if network.num_features != facts.num_features:
            raise JudgeError(
                f"{where} declares {facts.num_features} features, but its weights have"
                f" {network.num_features}: its files come from different judges. Train it again."
            )
        return cls(network, facts)

    def check(self, pair: Mapping[str, Any], hidden_sizes: Mapping[str, int]) -> None:
        """Raise JudgeError, naming the fields, if this judge was not made for this pair.

        `pair` has the fields of `Facts` that must match (target, draft, tokenizer) and the models' names. The
        `hidden_sizes` are those of its models.
        """
        faults = []
        for role in ("target", "draft"):
            if getattr(self.facts, role) != pair[role]:
                name = getattr(self.facts, f"{role}_name")
                faults.append(
                    f"its {role} is '{name}' ({getattr(self.facts, role)}), not '{pair[f'{role}_name']}' ({pair[role]})"
                )
        if self.facts.tokenizer != pair["tokenizer"]:
            faults.append(f"its tokenizer is {self.facts.tokenizer[:12]}, not {pair['tokenizer'][:12]}")
        if self.facts.feature_version != features.VERSION:
            faults.append(f"its feature_version is {self.facts.feature_version}, not {features.VERSION}")
        if self.facts.features not in features.MODES:
            faults.append(f"its features are '{self.facts.features}', not one of {', '.join(features.MODES)}")
        elif (size := features.MODES[self.facts.features].size(hidden_sizes)) != self.facts.num_features:
            faults.append(
                f"it reads {self.facts.num_features} features, but '{self.facts.features}' of this pair has {size}"
            )
        if faults:
            raise JudgeError(f"the judge was made for another pair: {'; '.join(faults)}. Train one for this pair.")

    def notes(self, pair: Mapping[str, Any]) -> list[str]:
        """Return notes if this judge was mined with another chat template or answer rule; it is usable all the same."""
        note = version_note("the judge", self.facts.answer_version)
        result = [] if note is None else [note]
        mined, here = self.facts.chat_template, pair["chat_template"]
        if mined is None or mined == here:
            return result
        how = {(False, True): "without the chat template that prompts are put into here",
               (True, False): "with prompts in a chat template, which is not used here",
               (True, True): "with prompts in another chat template"}  # fmt: skip
        return [
            *result,
            f"the judge was mined {how[bool(mined), bool(here)]}: its threshold was calibrated on other prompts.",
        ]
