"""Everything a run depends on, resolved and frozen: an experiment, its methods' settings, and the hash of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from specexp.answers.kinds import AUTO as AUTO_KIND
from specexp.answers.kinds import MIN_SIMILARITY, kind_of
from specexp.answers.rules import AnswerRule
from specexp.decoding.rules import Warp
from specexp.engines.served_methods import ServedMethod
from specexp.lm.runtime import (
    AUTO,
    AUTO_VOCABULARY,
    FASTEST,
    HEADS,
    MTP,
    NO_TEMPLATE,
    ModelConfig,
    ToyConfig,
)
from specexp.tasks.defaults import NO_EXECUTION, defaults_of
from specexp.tasks.example import Task
from specexp.tasks.source import DataConfig
from specexp.tasks.task import task

if TYPE_CHECKING:
    from specexp.decoding.protocol import Role


CALIBRATED = "calibrated"  # the judge's own threshold
PARALLEL_BRANCHES = 4
MAX_NGRAM = 3
MAX_GAMMA = 16  # of gamma auto
ROLES = ("target", "draft")
# Settings that version 0.1's methods lack, and their defaults.
LATER = {
    "draft_temperature": None, "rule": "token", "suffix_factor": 0.0, "suffix_min_probability": 0.0,
    "suffix_memory": "prompt", "min_match": 1, "proposers": "", "max_gamma": 0,
    **dict.fromkeys(("accept_margin", "accept_epsilon", "accept_delta", "accept_entropy", "accept_distance")),
    "accept_window": 0, "distance": "",
}  # fmt: skip
# Likewise of experiments.
LATER_OF_EXPERIMENT: dict[str, Any] = {
    "min_new_tokens": 0, "ignore_eos": False, "stop": (), "system": "", "shots_data": None,
    "comparator": AUTO_KIND, "min_similarity": MIN_SIMILARITY, "prompt_tokens": 0, "execute": NO_EXECUTION,
    "engine": (), "thinking_budget": 0, "concurrency": (), "request_rate": (), "num_requests": 32,
    "warmup_requests": 1, "level_seconds": 60.0, "ttft_bound": 0.0, "tpot_bound": 0.0, "numerics": FASTEST,
}  # fmt: skip
PROPOSERS = ("suffix", "lookup", "draft")
LATER_OF_MODELS = {
    "layers": "",
    "tensor_parallel": 1,
    "offload_memory": None,
    "vocabulary": AUTO_VOCABULARY,
    **dict.fromkeys(HEADS, ""),
    MTP: False,
}
SUFFIX_FACTOR, SUFFIX_MIN_PROBABILITY = 1.0, 0.1


@dataclass(frozen=True, slots=True)
class TreeConfig:
    """The shape of a method's trees; `specexp.decoding.specexec` explains each number."""

    tree_budget: int
    max_depth: int
    parallel_branches: int = PARALLEL_BRANCHES
    branch_width: int | None = None
    branch_prune_threshold: float = 0.0
    min_log_prob: float | None = None


@dataclass(frozen=True, slots=True)
class MethodConfig:
    """One setting of one method. `label` names it in records, runs and tables; it has `gamma` or `tree`, or neither."""

    method: str
    preset: str
    label: str
    gamma: int = 0
    tree: TreeConfig | None = None
    bonus: bool = True
    judge: str = ""
    threshold: float | None = None  # None is the judge's own
    accept_k: int = 0
    max_ngram: int = 0
    min_draft_probability: float = 0.0
    draft_temperature: float | None = None  # None is the experiment's
    rule: str = "token"
    suffix_factor: float = 0.0
    suffix_min_probability: float = 0.0
    suffix_memory: str = "prompt"
    min_match: int = 1
    proposers: str = ""  # their names, separated by commas
    max_gamma: int = 0  # of gamma auto, the longest chain, which gamma then is, too
    # What rules without training accept; None where the method has no such rule, or the rule no such condition.
    accept_margin: float | None = None
    accept_epsilon: float | None = None
    accept_delta: float | None = None  # None is the root of accept_epsilon, and no condition where that is 1
    accept_entropy: float | None = None
    accept_window: int = 0
    accept_distance: float | None = None
    distance: str = ""

    @property
    def auto_gamma(self) -> bool:
        """True if chains end where no longer one pays."""
        return self.max_gamma > 0

    @property
    def rule_is_off(self) -> bool:
        """True if what a rule without training accepts is what the lossless one does, at every temperature."""
        return (
            self.accept_margin == 0 or self.accept_entropy == 1 or self.accept_distance == 0
            or (self.accept_epsilon == 1 and self.accept_delta is None)
        )  # fmt: skip

    @property
    def dial(self) -> float | None:
        """The number that sets how much its acceptance rule accepts; None for other methods, and for a judge's own."""
        dials = (self.accept_margin, self.accept_epsilon, self.accept_entropy, self.accept_distance, self.threshold)
        return next((each for each in dials if each is not None), self.accept_k or None)


@dataclass(frozen=True, slots=True)
class Experiment:
    """Everything a run depends on, resolved."""

    name: str
    task: str
    pair: str
    target: ModelConfig
    draft: ModelConfig
    methods: tuple[MethodConfig, ...]
    toy: ToyConfig | None = None
    data: DataConfig | None = None
    shots: int = 0
    history: str = "baseline"
    answer_rule: str = "auto"
    answer_pattern: str = ""
    execute: str = NO_EXECUTION  # where the programs of outputs run
    limit: int = 20
    max_new_tokens: int = 160
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repeats: int = 1
    batch: int = 1  # prompts decoded together
    min_new_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()  # stop strings
    system: str = ""  # system prompt; "" is the chat template's own
    shots_data: DataConfig | None = None  # rows of solved examples; None is the task's own examples
    comparator: str = AUTO_KIND
    min_similarity: float = MIN_SIMILARITY
    prompt_tokens: int = 0  # of long prompts
    engine: tuple[ServedMethod, ...] = ()  # served engines
    thinking_budget: int = 0  # tokens of a thought apart from those of the answer; 0 is no budget
    # Of load on served engines:
    concurrency: tuple[int, ...] = ()  # clients at once
    request_rate: tuple[float, ...] = ()  # arrivals a second
    num_requests: int = 32
    warmup_requests: int = 1
    level_seconds: float = 60.0
    ttft_bound: float = 0.0  # ms; 0 is no bound
    tpot_bound: float = 0.0
    numerics: str = FASTEST  # of both models

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def models(self) -> dict[Role, ModelConfig]:
        """Both models, by role."""
        return {"target": self.target, "draft": self.draft}

    def answers(self) -> AnswerRule:
        """How answers of one's own prompts are read and compared. Raises TaskError if that needs what is missing."""
        return AnswerRule(self.answer_rule, self.answer_pattern, kind_of(self.comparator, self.min_similarity))

    def read_task(self, split: str = "test") -> Task:
        """Return the task with its rows; `split` is that of problems that are generated. Raises TaskError."""
        return task(
            self.task, self.data, self.shots, split, self.answers(), self.shots_data, self.prompt_tokens, self.execute
        )

    @property
    def warp(self) -> Warp:
        """The transformation of logits into the distribution that is sampled."""
        return Warp(self.temperature, self.top_k, self.top_p)

    @property
    def hash(self) -> str:
        """Twelve hex digits that identify this configuration."""
        return settings_hash(self.as_dict())


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Twelve hex digits that identify an experiment's settings, given as in JSON.

    A chat template of `auto` counts as `none` if the task uses no template; the draft's also does if the target's is
    not `auto`. So these settings keep the hashes they had when `none` was the default. Likewise for settings that came
    later, of experiments, methods and models: a default does not count.
    """
    canonical = {
        key: value
        for key, value in settings.items()
        if key not in LATER_OF_EXPERIMENT or (value != LATER_OF_EXPERIMENT[key] and value not in ((), [], None))
    }
    if "methods" in settings:  # labels have none
        canonical["methods"] = [
            {key: value for key, value in method.items() if key not in LATER or value != LATER[key]}
            for method in settings["methods"]
        ]
    for role in ROLES:
        canonical[role] = {
            key: value
            for key, value in settings[role].items()
            if key not in LATER_OF_MODELS or value != LATER_OF_MODELS[key]
        }
    unused = settings["toy"] is not None or defaults_of(settings["task"]).completions
    for role in ROLES:
        if settings[role]["chat_template"] == AUTO and (unused or settings["target"]["chat_template"] != AUTO):
            canonical[role] = {**canonical[role], "chat_template": NO_TEMPLATE}
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:12]
