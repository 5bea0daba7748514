"""Settings: presets, a file of one's own and flags, resolved into one frozen `Experiment`, with all faults at once.

Later sources win: experiment preset, then `config` file, then flags. Flags arrive as text, since MLflow passes text;
"" is unset. Nothing here imports torch, transformers or mlflow.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specexp import reading
from specexp.decoding.rules import MOST_TOP_K, is_greedy
from specexp.errors import ConfigError, shown, unknown
from specexp.lm.runtime import (
    ATTENTIONS,
    AUTO,
    CHAT_TEMPLATES,
    DTYPES,
    NO_TEMPLATE,
    OFFLOADS,
    OWN_TEMPLATE,
    QUANTIZATIONS,
    TOY,
    ModelConfig,
    ToyConfig,
)
from specexp.tasks.answers import RULES, check_pattern
from specexp.tasks.defaults import DEFAULTS
from specexp.tasks.gsm8k import SHOTS
from specexp.tasks.source import DataConfig

if TYPE_CHECKING:
    from specexp.decoding.protocol import Role

PRESETS = Path(__file__).resolve().parent / "presets"
KINDS = ("experiments", "models", "methods", "templates")
METHODS = ("baseline", "draft_only", "speculative", "lookup", "autojudge", "topk", "specexec")
DRAFTING = ("speculative", "lookup", "autojudge", "topk", "specexec")  # methods that take gamma
CALIBRATED = "calibrated"  # the threshold that a judge comes with
TREES = ("specexec",)  # methods that grow a tree
PARALLEL_BRANCHES = 4
MAX_NGRAM = 3
MOST = (1 << 63) - 1  # of a whole number: what arrays and databases hold
MOST_NODES = 1 << 16  # of a tree
MOST_TOGETHER = 1 << 12  # prompts of a batch
MOST_REPEATS = 10_000
MOST_TOY_TOKENS = 1 << 12  # the toy's table has a row and a column for each
# Tasks, and where their rows come from unless `data` says so; None is for those that make their own.
MUST_BE_GIVEN = DataConfig("")
TASKS: dict[str, DataConfig | None] = {
    "arith": None,
    "gsm8k": DataConfig("openai/gsm8k", "main", "test"),
    "mtbench": DataConfig("HuggingFaceH4/mt_bench_prompts", split="train"),
    "prompts": MUST_BE_GIVEN,
    "spec_bench": DataConfig(
        "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
    ),
    "toy": None,
}
CHECKABLE = ("arith", "gsm8k", "prompts")  # tasks whose answers a judge can be mined on
MINED_PROMPTS = 600  # unless a file or a flag says otherwise
MINED_TOGETHER = 16  # likewise
FEATURE_DTYPES = ("float32", "float16")
SEVERAL_TURNS = ("mtbench", "spec_bench")
HISTORIES = ("baseline", "own")
# What a preset says for its own task alone.
OF_TASK = ("data", "shots", "history", "answer_rule", "answer_pattern", "limit", "max_new_tokens")
ROLES = ("target", "draft")
LONGEST_PATTERN = 1000


@dataclass(frozen=True, slots=True)
class TreeConfig:
    """The shape of a method's trees; `specexp.decoding.specexec` says what each number does."""

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
    limit: int = 20
    max_new_tokens: int = 160
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repeats: int = 1
    batch: int = 1  # prompts decoded together

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def models(self) -> dict[Role, ModelConfig]:
        """Both models, by role."""
        return {"target": self.target, "draft": self.draft}

    @property
    def hash(self) -> str:
        """Twelve hex digits that name this configuration."""
        return settings_hash(self.as_dict())


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Twelve hex digits that name an experiment's settings, as JSON has them.

    A chat template that `auto` cannot use counts as `none`, and the draft's only where the target's is `auto`, so that
    these settings keep the names they had when `none` was the default.
    """
    canonical = dict(settings)
    unused = settings["toy"] is not None or DEFAULTS[settings["task"]].completions
    for role in ROLES:
        if settings[role]["chat_template"] == AUTO and (unused or settings["target"]["chat_template"] != AUTO):
            canonical[role] = {**settings[role], "chat_template": NO_TEMPLATE}
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()[:12]


def preset_text(kind: str, name: str) -> str:
    """A preset as it stands in its file, header and all."""
    return (PRESETS / kind / f"{name}.yaml").read_text(encoding="utf-8")


def preset_names(kind: str) -> list[str]:
    """Names of the presets of a kind."""
    return sorted(path.stem for path in (PRESETS / kind).glob("*.yaml"))


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; ConfigError names the file and the place."""
    found = reading.parse_yaml(
        reading.decode(reading.read_bytes(path, "config file", ConfigError), str(path), ConfigError),
        str(path),
        ConfigError,
    )
    if found is None:
        raise ConfigError(f"{path}: is empty; give it settings, or leave it out.")
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must be a mapping of settings to values, got {type(found).__name__}.")
    return found


def resolve(name: str, flags: Mapping[str, Any] | None = None, defaults: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment preset `name` with `defaults`, a `config` file and flags laid over it, in this order.

    Raises ConfigError with every fault.
    """
    flags = {key: value for key, value in (flags or {}).items() if value not in (None, "")}
    faults: list[str] = []
    reader = _Reader(faults)
    known = name in preset_names("experiments")
    if known:
        preset = load_yaml(PRESETS / "experiments" / f"{name}.yaml")
        reader.lay("", {**preset, **(defaults or {})}, preset=True)
        reader.task = preset.get("task", "")
        reader.inherited = preset.keys() - (defaults or {}).keys()
    else:
        faults.append(unknown("experiment", name, preset_names("experiments")))
    if "config" in flags:
        try:
            path = reading.path_of(str(flags.pop("config")), "config file", ConfigError)
            reader.lay(f"{path}: ", load_yaml(path))
        except ConfigError as error:
            faults += error.faults
    reader.lay("", flags)
    experiment = reader.finish(name) if known else None
    if faults or experiment is None:
        raise ConfigError(faults)
    return experiment


@dataclass(frozen=True, slots=True)
class MiningConfig:
    """What labels are mined from and with: an experiment's pair and task, without its first `skip` prompts.

    `dtype` is what features are kept in. The labels do not depend on `batch`, how many prompts are mined together: it
    is no part of the hash.
    """

    experiment: Experiment
    dtype: str = "float32"
    skip: int = 0
    batch: int = 1

    def as_dict(self) -> dict[str, Any]:
        mine = self.experiment
        kept = (
            "name", "task", "pair", "target", "draft", "toy", "data", "shots", "answer_rule", "answer_pattern", "limit",
            "max_new_tokens",
        )  # fmt: skip
        found = {key: value for key, value in mine.as_dict().items() if key in kept}
        return {**found, "dtype": self.dtype, "skip": self.skip}

    @property
    def hash(self) -> str:
        return settings_hash(self.as_dict())


def resolve_mining(name: str, flags: Mapping[str, Any]) -> MiningConfig:
    """An experiment as a source of labels: prompts that no evaluation asks, and answers that can be read.

    Raises ConfigError with every fault.
    """
    given = {key: value for key, value in flags.items() if value not in (None, "")}
    dtype = given.pop("dtype", FEATURE_DTYPES[0])
    faults = [] if dtype in FEATURE_DTYPES else [unknown("dtype", dtype, FEATURE_DTYPES)]
    skip = given.pop("skip", "0")
    try:
        skip = _whole(0, ">= 0")(skip)
    except ValueError as error:
        faults.append(f"skip is {shown(skip)}; {error}")
    try:
        experiment = resolve(name, given, {"limit": MINED_PROMPTS, "batch": MINED_TOGETHER})
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    if experiment.task not in CHECKABLE:
        faults.append(f"task '{experiment.task}' has no answers to read; mine on {', '.join(CHECKABLE)}.")
    if faults:
        raise ConfigError(faults)
    source = TASKS[experiment.task]
    mine = experiment.data
    if source and mine and mine.source == source.source and mine.split in ("", "test") and source.split == "test":
        experiment = replace(experiment, data=replace(mine, subset=source.subset, split="train"))
    kept = replace(experiment, methods=(), seed=0, temperature=0.0, top_k=0, top_p=1.0, batch=1)
    return MiningConfig(kept, dtype, skip, experiment.batch)


def adjusted(experiment: Experiment, settings: Mapping[str, Any], under: Mapping[str, Any] | None = None) -> Experiment:
    """The same pair and task with other methods or sampling; None is unset. `under` are settings of methods below them.

    Raises ConfigError with every fault.
    """
    faults: list[str] = []
    reader = _Reader(faults)
    reader.lay("", under or {}, preset=True)
    reader.lay("", {key: value for key, value in settings.items() if value is not None})
    values = reader.values
    if "methods" in values:
        values["methods"] = tuple(reader._methods(values["methods"], values))
    values = {key: value for key, value in values.items() if key not in TAKERS}
    if faults:
        raise ConfigError(faults)
    return replace(experiment, **values)


@dataclass(slots=True)
class _Reader:
    """Lays settings over each other and collects what is wrong with them."""

    faults: list[str]
    values: dict[str, Any] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)  # settings that come from no experiment preset
    task: str = ""  # the experiment preset's
    inherited: set[str] = field(default_factory=set)  # settings that are still the experiment preset's

    def lay(self, where: str, layer: Mapping[str, Any], preset: bool = False) -> None:
        for key, value in layer.items():
            given, key = key, _ALIASES.get(key, key)
            if given != key and key in layer:
                self.faults.append(f"{where}{given} and {key} are the same setting; give one of them.")
            if not preset:
                self.own.add(key)
                self.inherited.discard(key)
            if key not in _PARSERS:
                self.faults.append(where + unknown("setting", key, _PARSERS))
                continue
            try:
                found = _PARSERS[key](value)
                before = self.values.get(key)
                # Parts of a model or the toy are settings of their own: what this layer leaves out stays.
                if key in ("target", "draft", "toy") and before is not None:
                    found = _laid_over(before, found)
                self.values[key] = found
            except (ValueError, ConfigError) as error:
                self.faults.append(f"{where}{key} is {shown(value)}; {error}")
        self._template(where, layer)

    def _template(self, where: str, layer: Mapping[str, Any]) -> None:
        """`chat_template` is for both models; a later layer's wins, whichever way it is given."""
        both = layer.get("chat_template")
        for role in ROLES:
            one = layer[role].get("chat_template") if isinstance(layer.get(role), dict) else None
            if one is not None and both not in (None, one):
                self.faults.append(f"{where}chat_template is {both!r}, but {role}'s is {one!r}; give one of them.")
            elif one is not None and role == "target":
                self.values.pop("chat_template", None)

    def finish(self, name: str) -> Experiment | None:
        values = dict(self.values)
        for key in ("task", "pair", "methods"):
            if key not in values and not any(f.startswith(key) for f in self.faults):
                self.faults.append(f"setting '{key}' is missing.")
        name = self._named(name, values)
        models = self._models(values.pop("pair", None), values)
        names = tuple(values.pop("methods", ()))
        judged = any(name.startswith("autojudge") for name in _expanded(names))
        if "judge" in self.own and "methods" not in self.own and not judged:
            names += ("autojudge",)  # who names a judge and no methods wants to see it
        methods = self._methods(names, values)
        self._task(values, [method.method for method in methods])
        if self.faults:
            return None
        return Experiment(name=name, methods=tuple(methods), **models, **values)

    def _named(self, name: str, values: dict[str, Any]) -> str:
        """The experiment's name. A task of one's own takes the place of the preset's, with its name and lengths."""
        task = values.get("task")
        if "task" not in self.own or task not in DEFAULTS or task == self.task:
            return name
        for key in self.inherited.intersection(OF_TASK):
            values.pop(key, None)
        values.setdefault("limit", DEFAULTS[task].limit)
        values.setdefault("max_new_tokens", DEFAULTS[task].max_new_tokens)
        return str(task)

    def _models(self, pair: str | None, values: dict[str, Any]) -> dict[str, Any]:
        if pair is None:
            return {}
        if pair not in preset_names("models"):
            self.faults.append(unknown("pair", pair, preset_names("models")))
            return {}
        found = load_yaml(PRESETS / "models" / f"{pair}.yaml")
        given = {role: values.pop(role) for role in ROLES if role in values}
        toy = values.pop("toy", None)
        template = values.pop("chat_template", None)
        if "toy" in found:
            if given:
                self.faults.append(f"{' and '.join(given)}: pair '{pair}' has none to replace; name another pair.")
            if template == OWN_TEMPLATE:
                self.faults.append(f"chat_template is {template}, but pair '{pair}' has no template; leave it out.")
            models = {role: ModelConfig(f"{TOY}{role}") for role in ROLES}
            return {"pair": pair, "toy": ToyConfig(**{**_toy(found["toy"]), **(toy or {})}), **models}
        if toy is not None:
            self.faults.append(f"toy is given, but pair '{pair}' is none; name pair toy, or leave it out.")
        both = {} if template is None else {"chat_template": template}
        models = {
            role: ModelConfig(**{**_laid_over(_model(found[role]), given.get(role, {})), **both}) for role in ROLES
        }
        self.faults += [f"{role}: {fault}" for role, model in models.items() for fault in model.faults()]
        return {"pair": pair if not given else f"{models['target'].model}+{models['draft'].model}", **models}

    def _task(self, values: dict[str, Any], methods: list[str]) -> None:
        """What a task needs, and what goes with no other."""
        name = values.get("task")
        if name not in TASKS:
            return
        source = TASKS[name]
        if source is None and values.get("data"):
            self.faults.append(f"data is given, but task '{name}' reads no file; leave it out.")
        elif source is MUST_BE_GIVEN and not values.get("data"):
            self.faults.append(f"task '{name}' reads a file; name it with data.")
        elif source is not None:
            values.setdefault("data", source)
        if values.get("shots") and name != "gsm8k":
            self.faults.append(f"shots is {values['shots']}, but task '{name}' has no solved examples; leave it out.")
        self._answers(values, name)
        if values.get("history", "baseline") != "baseline" and name not in SEVERAL_TURNS:
            self.faults.append(f"history is given, but task '{name}' has one turn only; leave it out.")
        elif name in SEVERAL_TURNS and values.get("history", "baseline") == "baseline" and "baseline" not in methods:
            self.faults.append(
                f"task '{name}' goes on behind the baseline's answers; add baseline to methods, or set history own."
            )

    def _answers(self, values: dict[str, Any], task: str) -> None:
        """How answers are read; a pattern alone says that it is by this pattern."""
        given = [key for key in ("answer_rule", "answer_pattern") if key in values]
        if given and task != "prompts":
            self.faults.append(
                f"{' and '.join(given)}: task '{task}' reads its answers in its own way; leave it out, or choose task"
                " prompts."
            )
        if "answer_pattern" in values and values.setdefault("answer_rule", "pattern") != "pattern":
            self.faults.append(
                f"answer_pattern is given, but answer_rule is {values['answer_rule']}; leave one of them out."
            )
        if values.get("answer_rule") == "pattern" and "answer_pattern" not in values:
            self.faults.append("answer_rule is pattern; give a regular expression as answer_pattern.")

    def _methods(self, names: tuple[str, ...], values: dict[str, Any]) -> list[MethodConfig]:
        """The settings of these methods; takes what is theirs out of `values`."""
        given = {key: values.pop(key) for key in TAKERS if key in values}
        methods: list[MethodConfig] = []
        for name in _expanded(names):
            if name not in preset_names("methods"):
                self.faults.append(unknown("method", name, preset_names("methods")))
                continue
            found = load_yaml(PRESETS / "methods" / f"{name}.yaml")
            if found["method"] in TREES:
                shape = {key: given[key] for key in _TREE_PARSERS if key in given}
                methods += _trees(name, given.get("gamma"), {**found, **shape})
            else:
                methods += _chains(name, found, given)
        labels = [method.label for method in methods]
        for label in sorted({x for x in labels if labels.count(x) > 1}):
            self.faults.append(f"method '{label}' is named {labels.count(label)} times; name it once.")
        self._unused(given.keys() & self.own, {method.method for method in methods})
        return methods

    def _unused(self, keys: Collection[str], methods: Collection[str]) -> None:
        """A setting of one's own that no method takes is a mistake, not something to drop."""
        for key in sorted(keys):
            takers = TAKERS[key]
            if methods and not any(method in takers for method in methods):
                self.faults.append(
                    f"{key} is given, but no method here takes one; leave it out, or add {' or '.join(takers)}."
                )


def _expanded(names: Sequence[str]) -> list[str]:
    """Names of methods, those of a preset that stands for several in its place."""
    found: list[str] = []
    for name in names:
        found += group_of(name) or [name]
    return found


def group_of(name: str) -> list[str]:
    """The methods that a preset of several stands for; none for any other name."""
    if name not in preset_names("methods"):
        return []
    return list(load_yaml(PRESETS / "methods" / f"{name}.yaml").get("methods", []))


def _chains(preset: str, found: Mapping[str, Any], given: Mapping[str, Any]) -> list[MethodConfig]:
    """A setting for each draft length and each threshold or K; only what was given several of is in a label."""
    method = found["method"]
    if method not in DRAFTING:
        return [MethodConfig(method, preset, preset)]
    lengths = {preset: found["gamma"]} if "gamma" not in given else {f"{method}_k{g}": g for g in given["gamma"]}
    bonus = given.get("bonus", found.get("bonus", True))
    dial: list[tuple[str, dict[str, Any]]] = [("", {})]
    if method == "autojudge":
        judge = given.get("judge", found.get("judge", ""))
        thresholds = given.get("threshold", (found.get("threshold", CALIBRATED),))
        dial = [
            (f"_t{t:g}" if t is not None else "_cal", {"threshold": t, "judge": judge})
            for t in (None if t == CALIBRATED else t for t in thresholds)
        ]
    elif method == "topk":
        dial = [(f"_top{k}", {"accept_k": k}) for k in given.get("accept_k", (found["accept_k"],))]
    elif method == "lookup":
        runs = given.get("max_ngram", (found.get("max_ngram", MAX_NGRAM),))
        dial = [(f"_n{n}" if len(runs) > 1 else "", {"max_ngram": n}) for n in runs]
    stops: tuple[float, ...] = (0.0,)
    if method in TAKERS["min_draft_probability"]:
        stops = given.get("min_draft_probability", (found.get("min_draft_probability", 0.0),))
    named = "threshold" in given or "accept_k" in given or method == "lookup"
    return [
        MethodConfig(
            method, preset, label + (suffix if named else "") + (f"_p{stop:g}" if len(stops) > 1 and stop else ""),
            gamma, bonus=bonus, min_draft_probability=stop, **dialled,
        )
        for label, gamma in lengths.items()
        for suffix, dialled in dial
        for stop in stops
    ]  # fmt: skip


def _trees(preset: str, gammas: tuple[int, ...] | None, found: Mapping[str, Any]) -> list[MethodConfig]:
    """A setting for each depth and budget. The depth is gamma, unless `max_depth` says one for all."""
    method = found["method"]
    more = {key: found[key] for key in _TREE_PARSERS if key in found and key not in ("tree_budget", "max_depth")}
    if "max_depth" in found:
        depths = {preset: found["max_depth"]}
    else:
        depths = {preset: found["gamma"]} if gammas is None else {f"{method}_k{gamma}": gamma for gamma in gammas}
    methods = []
    for label, depth in depths.items():
        trees = {label: more.get("parallel_branches", PARALLEL_BRANCHES) * depth}
        if "tree_budget" in found:
            trees = {f"{label}_b{budget}": budget for budget in found["tree_budget"]}
        for name, budget in trees.items():
            methods.append(MethodConfig(method, preset, name, tree=TreeConfig(budget, depth, **more)))
    return methods


def _whole(least: int, rule: str, most: float = MOST) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"it must be a whole number {rule}.")
        if number > most:
            raise ValueError(
                f"it must be a whole number {rule}." if "at most" in rule else f"it must be at most {most:,}."
            )
        return number

    return parse


def _real(good: Callable[[float], bool], rule: str) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not good(number):
            raise ValueError(f"it must be a number {rule}.")
        return number

    return parse


def _several(what: str, most: int = MOST) -> Callable[[Any], tuple[int, ...]]:
    """One whole number, or several: each is a setting."""

    def parse(value: Any) -> tuple[int, ...]:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        number = _whole(1, ">= 1, or several separated by commas", most)
        if not parts:
            raise ValueError(f"it must name one {what} at least.")
        found = tuple(number(part.strip() if isinstance(part, str) else part) for part in parts)
        if len(set(found)) < len(found):
            raise ValueError(f"it must name each {what} once.")
        return found

    return parse


def _thresholds(value: Any) -> tuple[float | str, ...]:
    """One threshold, or several: each is a setting. `calibrated` is the judge's own."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    number = _real(lambda x: 0 <= x < math.inf, ">= 0, or 'calibrated'; several are separated by commas")
    texts = [part.strip() if isinstance(part, str) else part for part in parts]
    if not texts or len({str(text) for text in texts}) < len(texts):
        raise ValueError("it must name one threshold at least, and each once.")
    return tuple(text if text == CALIBRATED else number(text) for text in texts)


def _probabilities(value: Any) -> tuple[float, ...]:
    """One probability below which drafts stop, or several: each is a setting."""
    parts = value if isinstance(value, list) else [value]
    number = _real(lambda x: 0 <= x < 1, "in [0, 1) (0 = off), or a list of several")
    found = tuple(number(part) for part in parts)
    if not found or len(set(found)) < len(found):
        raise ValueError("it must name one probability at least, and each once.")
    return found


def _names(value: Any) -> tuple[str, ...]:
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts) or not all(parts):
        raise ValueError("it must be one or more preset names separated by commas.")
    return tuple(part.strip() for part in parts)


def _one_of(kind: str, known: Collection[str]) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            raise ValueError(unknown(kind, value, known))
        return str(value)

    return parse


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("it must be a name.")
    if "\0" in value:
        raise ValueError("it holds a NUL character, which no name has.")
    return value


def _pattern(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_PATTERN:
        raise ValueError(f"it must be a regular expression of at most {LONGEST_PATTERN} characters.")
    check_pattern(value)
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false.")
    return value


_MODEL_PARSERS: dict[str, Callable[[Any], Any]] = {
    "model": _text,
    "revision": _text,
    "tokenizer": _text,
    "device": _text,
    "dtype": _one_of("dtype", DTYPES),
    "quantization": _one_of("quantization", QUANTIZATIONS),
    "compute_dtype": _one_of("dtype", DTYPES),
    "offload": _one_of("offload", OFFLOADS),
    "attention": _one_of("attention", ATTENTIONS),
    "chat_template": _one_of("chat_template", CHAT_TEMPLATES),
    "trust_remote_code": _switch,
}


def _model(value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value:
        return {"model": _text(value)}
    if not isinstance(value, dict):
        raise ValueError("it must be a folder, a hub id, or a mapping with 'model'.")
    found = _keys("model", value, _MODEL_PARSERS)
    if found.get("compute_dtype") and found.get("quantization", "none") not in ("nf4", "fp4"):
        raise ValueError("compute_dtype goes with quantization nf4 or fp4 only.")
    return found


def _laid_over(preset: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a model over a preset's; another model has no use for the first one's revision and tokenizer."""
    if given.get("model", preset.get("model")) != preset.get("model"):
        preset = {key: value for key, value in preset.items() if key not in ("revision", "tokenizer")}
    return {**preset, **given}


def _keys(kind: str, value: Mapping[str, Any], parsers: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """A mapping's values, parsed; ValueError says all that is wrong with them."""
    faults, found = [], {}
    for key, part in value.items():
        if key not in parsers:
            faults.append(unknown(f"{kind} setting", key, parsers))
            continue
        try:
            found[key] = parsers[key](part)
        except ValueError as error:
            faults.append(f"{key} is {shown(part)}: {error}")
    if faults:
        raise ValueError(" ".join(faults))
    return found


def _data(value: Any) -> DataConfig:
    if isinstance(value, str) and value:
        return DataConfig(_text(value))
    if not isinstance(value, dict) or not value.get("source"):
        raise ValueError("it must be a file, a folder, an address, a hub id, or a mapping with 'source'.")
    return DataConfig(**_keys("data", value, dict.fromkeys(("source", "subset", "split", "revision"), _text)))


def _toy(value: Any) -> dict[str, Any]:
    """`{vocab_size: 24, draft_noise: 0.5, seed: 0}`, or vocab_size=24,draft_noise=0.5 as text."""
    if isinstance(value, str):
        parts = [part.partition("=") for part in value.split(",")]
        value = {key.strip(): text.strip() for key, _, text in parts}
        if len(value) < len(parts):
            raise ValueError("it must give each of vocab_size, draft_noise and seed once.")
    if not isinstance(value, dict):
        raise ValueError("it must be a mapping of vocab_size, draft_noise and seed.")
    return _keys(
        "toy",
        value,
        {
            "vocab_size": _whole(2, ">= 2", MOST_TOY_TOKENS),
            "draft_noise": _real(lambda x: 0 <= x <= 1e6, "in [0, 1000000] (0 = the target itself)"),
            "seed": _whole(0, ">= 0", math.inf),
        },
    )


def _temperature(value: Any) -> float:
    """0 for every temperature that is greedy: all that asks whether tokens are drawn gets one answer."""
    number = _real(lambda x: 0 <= x < math.inf, ">= 0 (0 = greedy)")(value)
    return 0.0 if is_greedy(number) else number


def _shots(value: Any) -> int:
    number = _whole(0, "that is 0 or 8")(value)
    if number not in SHOTS:
        raise ValueError("it must be 0 or 8.")
    return number


_TREE_PARSERS: dict[str, Callable[[Any], Any]] = {
    "tree_budget": _several("budget", MOST_NODES),
    "max_depth": _whole(1, ">= 1"),
    "parallel_branches": _whole(1, ">= 1", MOST_NODES),
    "branch_width": _whole(1, ">= 1", MOST_NODES),
    "branch_prune_threshold": _real(lambda x: 0 <= x <= 1, "in [0, 1] (0 = off)"),
    "min_log_prob": _real(lambda x: -math.inf < x <= 0, "<= 0"),
}
_ALIASES = {"judge.threshold": "threshold"}
TAKERS: dict[str, tuple[str, ...]] = {  # settings of methods, and which take them
    "gamma": DRAFTING,
    "bonus": ("speculative", "lookup", "autojudge", "topk"),
    "judge": ("autojudge",),
    "threshold": ("autojudge",),
    "accept_k": ("topk",),
    "max_ngram": ("lookup",),
    "min_draft_probability": ("speculative", "autojudge", "topk"),
    **dict.fromkeys(_TREE_PARSERS, TREES),
}
_PARSERS: dict[str, Callable[[Any], Any]] = {
    **_TREE_PARSERS,
    "bonus": _switch,
    "threshold": _thresholds,
    "accept_k": _several("K"),
    "max_ngram": _several("run"),
    "min_draft_probability": _probabilities,
    "task": _one_of("task", TASKS),
    "data": _data,
    "toy": _toy,
    "shots": _shots,
    "history": _one_of("history", HISTORIES),
    "answer_rule": _one_of("answer rule", RULES),
    "answer_pattern": _pattern,
    "pair": _text,
    "target": _model,
    "draft": _model,
    "chat_template": _one_of("chat_template", CHAT_TEMPLATES),
    "methods": _names,
    "gamma": _several("length"),
    "judge": _text,
    "limit": _whole(1, ">= 1"),
    "max_new_tokens": _whole(1, ">= 1"),
    "temperature": _temperature,
    "top_k": _whole(0, f">= 0 (0 = off) and at most {MOST_TOP_K}, more than any vocabulary has", MOST_TOP_K),
    "top_p": _real(lambda x: 0 < x <= 1, "in (0, 1] (1 = off)"),
    "seed": _whole(0, ">= 0", math.inf),  # which is hashed
    "repeats": _whole(1, ">= 1", MOST_REPEATS),
    "batch": _whole(1, ">= 1", MOST_TOGETHER),
}
