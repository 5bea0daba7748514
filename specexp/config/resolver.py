"""Resolves presets, the user's file and flags into one frozen `Experiment`, and reports all faults at once.

Later sources win: experiment preset, then `config` file, then flags; "" is unset. Nothing here imports torch,
transformers or mlflow.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from specexp import reading
from specexp.config import request_settings
from specexp.config.experiment import (
    ROLES,
    Experiment,
    MethodConfig,
)
from specexp.config.load_settings import load_faults
from specexp.config.methods import chains, served, served_faults, trees
from specexp.config.models import laid_over, models_of_pair, numerics_faults
from specexp.config.parsers import AUTO_GAMMA, MUST_BE_GIVEN, SEVERAL_TURNS, TASK_SOURCES
from specexp.config.presets import PRESETS, expanded, load_yaml, method_preset, preset_names
from specexp.config.rule_settings import ANSWER_SETTINGS, answer_faults
from specexp.config.schema import ALIASES, SETTINGS
from specexp.draft_faults import draft_faults, head_faults
from specexp.engines.served_methods import SERVED
from specexp.errors import ConfigError, shown, unknown
from specexp.method_specs import OF_PROPOSERS, settings_of, spec, takers
from specexp.tasks.defaults import HARNESS, NO_EXECUTION, defaults_of, execution_fault, is_known
from specexp.tasks.long_prompts import DEFAULT_TOKENS

# Settings of a preset that apply to its own task only.
OF_TASK = (
    "data", "shots", "shots_data", "history", *ANSWER_SETTINGS, "prompt_tokens", "execute", "limit", "max_new_tokens",
)  # fmt: skip


def resolve(
    name: str,
    flags: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    executes: bool = False,
) -> Experiment:
    """The experiment preset `name` overridden by `defaults`, a `config` file, flags and `fixed`, in this order.

    `executes` is True for a command that reads answers, and so runs the programs of a task whose answers are programs.

    Raises ConfigError with every fault: another value than a `fixed` one in the user's file is one.
    """
    flags = {key: value for key, value in (flags or {}).items() if value not in (None, "")}
    faults: list[str] = []
    reader = _Reader(faults, executes)
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
    reader.fix(fixed or {})
    experiment = reader.finish(name) if known else None
    if faults or experiment is None:
        raise ConfigError(faults)
    return experiment


def adjusted(experiment: Experiment, settings: Mapping[str, Any], under: Mapping[str, Any] | None = None) -> Experiment:
    """The same pair and task with other methods or sampling; None is unset. `settings` override those in `under`.

    Raises ConfigError with every fault.
    """
    faults: list[str] = []
    reader = _Reader(faults)
    reader.lay("", under or {}, preset=True)
    reader.lay("", {key: value for key, value in settings.items() if value is not None})
    values = reader.values
    if "methods" in values:
        values["methods"] = tuple(reader._methods(values["methods"], values))
    reader.check(values.get("methods", experiment.methods), values.get("temperature", experiment.temperature))
    faults += request_settings.faults({**asdict(experiment), **values})
    values = {key: value for key, value in values.items() if key not in takers()}
    if faults:
        raise ConfigError(faults)
    return replace(experiment, **values)


@dataclass(slots=True)
class _Reader:
    """Merges layers of settings, later ones over earlier ones, and collects their faults."""

    faults: list[str]
    executes: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)  # settings from the user's file or flags
    task: str = ""  # the experiment preset's
    inherited: set[str] = field(default_factory=set)  # settings that are still the experiment preset's

    def lay(self, where: str, layer: Mapping[str, Any], preset: bool = False) -> None:
        for key, value in layer.items():
            given, key = key, ALIASES.get(key, key)
            if given != key and key in layer:
                self.faults.append(f"{where}{given} and {key} are the same setting; give one of them.")
            if not preset:
                self.own.add(key)
                self.inherited.discard(key)
            if key not in SETTINGS:
                self.faults.append(where + unknown("setting", key, SETTINGS))
                continue
            try:
                result = SETTINGS[key].parse(value)
                before = self.values.get(key)
                # Parts of a model or the toy are separate settings: those that this layer omits stay.
                if key in ("target", "draft", "toy") and before is not None:
                    result = laid_over(before, result)
                self.values[key] = result
            except (ValueError, ConfigError) as error:
                # The parts of an engine may hold a password: its own faults say which is meant.
                said = "not usable" if key == "engine" else shown(value)
                self.faults.append(f"{where}{key} is {said}; {error}")
        self._template(where, layer)

    def fix(self, fixed: Mapping[str, Any]) -> None:
        """Lay the settings of a command that takes no others, and report those that the user gave another value."""
        for key in sorted(fixed.keys() & self.own & self.values.keys()):
            if self.values[key] != SETTINGS[key].parse(fixed[key]):
                self.faults.append(
                    f"{key} is given, but this command has it at {str(fixed[key]).lower()}; leave it out."
                )
        self.lay("", fixed)

    def _template(self, where: str, layer: Mapping[str, Any]) -> None:
        """`chat_template` is for both models; a later layer's wins, in whichever form it is given."""
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
        models = models_of_pair(values.pop("pair", None), values, self.faults)
        names = tuple(values.pop("methods", ()))
        judged = any(name.startswith("autojudge") for name in expanded(names))
        if "judge" in self.own and "methods" not in self.own and not judged:
            names += ("autojudge",)  # a judge given without methods adds the method that uses it
        methods = self._methods(names, values)
        head = models["draft"] if "draft" in models and models["draft"].head else None
        if head and not {"methods", "judge"} & self.own:
            # Of an experiment's own methods, those that need a draft model are not what was asked for.
            methods = [method for method in methods if not head_faults([method], head)]
        self.check(methods, values.get("temperature"))
        self.faults += draft_faults(methods, models["draft"]) if "draft" in models else []
        self.faults += numerics_faults(values.get("numerics", ""), models)
        self.faults += [*request_settings.faults(values), *served_faults(methods, values), *load_faults(values)]
        self._task(values, [method.method for method in methods])
        if self.faults:
            return None
        return Experiment(name=name, methods=tuple(methods), **models, **values)

    def check(self, methods: Sequence[MethodConfig], temperature: float | None) -> None:
        """Report settings of methods that do not go together, or not with this temperature (None is 0)."""
        for method in methods:
            if method.max_ngram and method.min_match > method.max_ngram:
                self.faults.append(
                    f"min_match is {method.min_match}, but max_ngram of {method.label} is {method.max_ngram}: nothing"
                    " would be found; set max_ngram to as many."
                )
            if method.accept_window and method.accept_window >= method.gamma:
                self.faults.append(
                    f"accept_window is {method.accept_window}, but gamma of {method.label} is {method.gamma}: no window"
                    " would fit in a draft; set a greater gamma."
                )
            if temperature and spec(method.method).greedy_only:
                self.faults.append(
                    f"method '{method.label}' is defined at temperature 0 alone, but temperature is {temperature:g};"
                    " set it to 0, or leave the method out."
                )
        drawn = [method.draft_temperature for method in methods if method.draft_temperature is not None]
        if drawn and "draft_temperature" in self.own and not temperature:
            self.faults.append(
                f"draft_temperature is {drawn[0]:g}, but temperature is 0: nothing is drawn; leave it out."
            )

    def _named(self, name: str, values: dict[str, Any]) -> str:
        """The experiment's name: the task's, with the task's limits, if the task is not the preset's."""
        task = values.get("task")
        if "task" not in self.own or not is_known(task) or task == self.task:
            return name
        for key in self.inherited.intersection(OF_TASK):
            values.pop(key, None)
        defaults = defaults_of(str(task))
        values.setdefault("limit", defaults.limit)
        values.setdefault("max_new_tokens", defaults.max_new_tokens)
        return re.sub(r"[^\w.-]", "-", str(task))  # names a folder

    def _task(self, values: dict[str, Any], methods: list[str]) -> None:
        """Check what a task needs, and refuse what only other tasks take."""
        name = values.get("task")
        if not is_known(name):
            return
        harness = str(name).startswith(HARNESS)
        source = None if harness else TASK_SOURCES[str(name)]
        if source is None and values.get("data") and not harness:
            self.faults.append(f"data is given, but task '{name}' reads no file; leave it out.")
        elif source is MUST_BE_GIVEN and not values.get("data"):
            self.faults.append(f"task '{name}' reads its prompts from a file; set data to that file.")
        elif source is not None:
            values.setdefault("data", source)
        task = str(name)
        self.faults += request_settings.take_shots(task, values)
        self.faults += answer_faults(values, task)
        if name == "long_prompts":
            values.setdefault("prompt_tokens", DEFAULT_TOKENS)
        elif "prompt_tokens" in values:
            self.faults.append(
                f"prompt_tokens is {values['prompt_tokens']}, but task '{name}' has prompts of its own; leave it out."
            )
        if fault := execution_fault(task, values.get("execute", NO_EXECUTION), self.executes):
            self.faults.append(fault)
        if values.get("history", "baseline") != "baseline" and name not in SEVERAL_TURNS:
            self.faults.append(f"history is given, but task '{name}' has one turn only; leave it out.")
        elif name in SEVERAL_TURNS and values.get("history", "baseline") == "baseline" and "baseline" not in methods:
            self.faults.append(
                f"second turns of task '{name}' follow the baseline's answers; add baseline to methods, or set history"
                " to own."
            )

    def _methods(self, names: tuple[str, ...], values: dict[str, Any]) -> list[MethodConfig]:
        """The settings of these methods; takes the settings of methods out of `values`."""
        given = {key: values.pop(key) for key in takers() if key in values}
        auto = AUTO_GAMMA in given.get("gamma", ())
        methods: list[MethodConfig] = []
        for name in expanded(names):
            if name.startswith(SERVED):
                methods += served(name, values.get("engine", ()), self.faults)
                continue
            if name not in preset_names("methods"):
                self.faults.append(unknown("method", name, preset_names("methods")))
                continue
            result = method_preset(name)
            taken = spec(result["method"]).settings
            if auto and "gamma" in taken and "max_gamma" not in taken:
                self.faults.append(
                    f"gamma is {AUTO_GAMMA}, which is for chains of a draft model, not for {name}; give numbers, or"
                    f" leave {name} out of methods."
                )
                continue
            if spec(result["method"]).grows_tree:
                methods += trees(name, given, result)
            else:
                methods += chains(name, result, given)
        labels = [method.label for method in methods]
        for label in sorted({x for x in labels if labels.count(x) > 1}):
            self.faults.append(f"method '{label}' is named {labels.count(label)} times; name it once.")
        for method in methods:
            if method.auto_gamma and method.proposers and "draft" not in method.proposers.split(","):
                self.faults.append(
                    f"gamma is {AUTO_GAMMA}, but proposers of {method.label} has no draft, whose chains it is for; give"
                    " a number, or add draft."
                )
        if "max_gamma" in given and methods and not any(method.auto_gamma for method in methods):
            self.faults.append(f"max_gamma is given, but no gamma is {AUTO_GAMMA}; leave it out, or set gamma to it.")
        self._unused(given.keys() & self.own, methods)
        return methods

    def _unused(self, keys: Collection[str], methods: Sequence[MethodConfig]) -> None:
        """Report each setting from the user that no method uses: it is a mistake, not something to drop silently."""
        for key in sorted(keys):
            if not methods or any(key in settings_of(method.method, method.proposers) for method in methods):
                continue
            taking = takers()[key]
            turns = next((method.proposers for method in methods if method.method in taking), "")
            if turns:  # the method takes it, but those of its proposers that do have no turn
                others = " or ".join(name for name, settings in OF_PROPOSERS.items() if key in settings)
                self.faults.append(
                    f"{key} is given, but proposers is {turns}, which does not use it; leave it out, or add {others}."
                )
            else:
                self.faults.append(
                    f"{key} is given, but no selected method uses it; leave it out, or add {' or '.join(taking)}."
                )
