"""Loads an experiment's tokenizers, and then only the models that its methods need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from specexp.config import Experiment
from specexp.config.models import STORED
from specexp.decoding.protocol import Role
from specexp.errors import ModelError
from specexp.lm.model import Model
from specexp.lm.runtime import (
    AUTO_VOCABULARY,
    INVARIANT,
    SAME,
    ModelConfig,
    ToyConfig,
    check_vocabulary,
    shared_vocabulary,
)
from specexp.lm.toy import ToyModel
from specexp.method_specs import models_of, spec
from specexp.pair import chat_template
from specexp.pair.other_tokenizers import TRIAL, compare, differ, vocabulary_of
from specexp.pair.served_tokenizer import check_served_tokenizer, check_toy
from specexp.pair.tokenization import PlainText, Text, TokenizerText, ToyText
from specexp.tasks.defaults import defaults_of

TOY_CONTEXT = 512
# Checks prompts with the tokenizer and the models' context lengths, and raises a SpecexpError.
PromptCheck = Callable[[Text, Mapping[Role, int]], object]


@dataclass(frozen=True, slots=True)
class Pair:
    """The models by role and their tokenizer. `eos_ids` are the target's stop tokens.

    `notes` tell the user how prompts are made. `vocabulary` is how the draft's tokens become the target's.
    """

    text: Text
    models: Mapping[Role, Model]
    eos_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()
    vocabulary: str = SAME


def contexts(experiment: Experiment, roles: Set[Role]) -> dict[Role, int]:
    """The context length of each model, from its config, without loading weights. Raises ModelError."""
    if experiment.toy is not None:
        return dict.fromkeys(sorted(roles, reverse=True), TOY_CONTEXT)
    loading = _loading(experiment)
    return {role: loading.context_size(experiment.models[role]) for role in sorted(roles, reverse=True)}


def stops_of_target(experiment: Experiment) -> tuple[int, ...]:
    """The ids at which the target stops, from its config, without loading weights. Raises ModelError."""
    return (0,) if experiment.toy is not None else tuple(_loading(experiment).stop_ids(experiment.target))


def _loading(experiment: Experiment) -> ModuleType:
    try:
        from specexp.lm.hf import loading
    except ModuleNotFoundError as error:
        raise ModelError(
            f"model '{experiment.target.model}' needs the package '{error.name}', which is not installed;"
            f" pip install {error.name}, or try the numpy pair (experiment toy_quick)."
        ) from error
    return loading


def _load(config: ModelConfig, num_valid_ids: int, suppressed: Sequence[int], numerics: str) -> Any:
    """Load a model here, or a part of it in each of several processes."""
    if config.tensor_parallel > 1:
        from specexp.lm.sharded.sharded_model import load_sharded

        return load_sharded(config, num_valid_ids, suppressed)
    from specexp.lm.hf.loading import load_model

    return load_model(config, num_valid_ids, suppressed, invariant=numerics == INVARIANT)


def _require_invariance(model: Any) -> None:
    from specexp.lm.native import invariance

    invariance.require(model)


def _heads() -> ModuleType:
    from specexp.lm.heads import loading

    return loading


def load_pair(
    experiment: Experiment,
    roles: Set[Role],
    own_prompts: bool = False,
    check: PromptCheck = lambda text, contexts: None,
    same_tokens: bool = False,
) -> Pair:
    """Load the models of these roles, which may be none; with `own_prompts`, for a user's own prompts instead of the
    experiment's task; with `same_tokens`, for what needs a draft with the target's tokenizer (`check_same_tokens`).

    Before it reads any weights, it calls `check` and raises ModelError if the tokenizers differ.
    """
    if experiment.toy is not None:
        check_toy(experiment)
        return _toy_pair(experiment.toy, roles, check, experiment.system)
    with _head_folder(experiment.draft, roles) as head:
        return _hf_pair(experiment, roles, own_prompts, check, same_tokens, head)


@contextmanager
def _head_folder(draft: ModelConfig, roles: Set[Role]) -> Iterator[Path | None]:
    """Where the files of a head are that is named by its address in the tracking store; else None."""
    if "draft" in roles and draft.eagle3.startswith(STORED):
        from specexp.tracking import stored_heads

        with stored_heads.fetched(draft.eagle3) as folder:
            yield folder
    else:
        yield None


def _hf_pair(
    experiment: Experiment,
    roles: Set[Role],
    own_prompts: bool,
    check: PromptCheck,
    same_tokens: bool,
    head: Path | None,
) -> Pair:
    """`head` is the folder of a head that is not where its name says."""
    loading = _loading(experiment)
    configs = experiment.models
    # Before the tokenizers: their loader reads configs too, and reports a broken one as a fault of the tokenizer.
    sizes = {configs[role].model: loading.vocabulary_size(configs[role]) for role in roles}
    on_target = "draft" in roles and configs["draft"].on_target
    own_layers = loading.own_layers(configs["draft"]) if on_target else ()
    if on_target and configs["draft"].head:
        lengths = {m.label: m.gamma for m in experiment.methods if "draft" in models_of(m)}
        _heads().check_head(configs["draft"], lengths, head)
    tokenizer = loading.load_tokenizer(experiment.target)
    check_served_tokenizer(experiment, tokenizer, loading.load_tokenizer)
    text, notes = _text(experiment, tokenizer, not own_prompts and defaults_of(experiment.task).completions)
    draft_tokenizer = None
    if "draft" in roles and not on_target:
        draft_tokenizer = loading.load_tokenizer(experiment.draft)
    # The target defines the ids that may be emitted, for both models, even if only the draft is loaded.
    suppressed = loading.suppressed_ids(experiment.target)
    other = None
    wanted = experiment.draft.vocabulary
    wanted = SAME if same_tokens and wanted == AUTO_VOCABULARY else wanted
    if draft_tokenizer is not None and differ(tokenizer, draft_tokenizer, wanted):
        stops = {role: loading.stop_ids(config) for role, config in configs.items()}
        both = vocabulary_of(tokenizer, stops["target"]), vocabulary_of(draft_tokenizer, stops["draft"])
        other = compare(*both, wanted, experiment.methods, suppressed)
    compared = draft_tokenizer.get_vocab() if draft_tokenizer is not None and other is None else None
    known = shared_vocabulary(tokenizer.get_vocab(), compared)
    numbers: dict[Role, int] = {"target": known, "draft": other.num_own_ids if other else known}
    for role in roles:
        check_vocabulary(numbers[role], {configs[role].model: sizes[configs[role].model]})
    trees = any(spec(method.method).grows_tree for method in experiment.methods)
    for role in roles:
        loading.check_decodable(configs[role], trees)
    check(text, contexts(experiment, roles))
    loaded = [role for role in configs if role in roles and not (role == "draft" and on_target)]
    # An offloaded model keeps what is free on the device for its layers: the other one comes before it.
    by_place = sorted(loaded, key=lambda role: configs[role].offload != "none")
    models: dict[Role, Any] = {
        role: _load(configs[role], numbers[role], () if other and role == "draft" else suppressed, experiment.numerics)
        for role in by_place
    }
    models = {role: models[role] for role in loaded}
    if on_target:
        whole = models.get("target") or _load(experiment.target, known, suppressed, experiment.numerics)
        if own_layers:
            models["draft"] = loading.model_of_layers(whole, own_layers, experiment.draft.shown)
        else:
            models["draft"] = _heads().load_head(experiment.draft, whole, head)
    for model in models.values():
        model.check_cache()
        if experiment.numerics == INVARIANT:
            _require_invariance(model)
    main, vocabulary = models.get("target") or models.get("draft"), SAME
    if on_target and configs["draft"].head:
        said = (
            f"the draft, {configs['draft'].shown}, reads the target's hidden states and does not decode by itself:"
            " methods that need a draft model, such as draft_only, are left out."
        )
        notes = (*notes, said)
    if main is None:
        return Pair(text, models, stops_of_target(experiment), notes)
    if other is not None:
        prompt = text.encode([{"role": "user", "content": TRIAL}])
        vocabulary, said = other.choose(models["target"], models["draft"], prompt, main.eos_ids)
        models["draft"], notes = other.model(models["draft"], vocabulary), (*notes, said)
    return Pair(text, models, main.eos_ids, (*notes, *main.notes), vocabulary)


def _text(experiment: Experiment, tokenizer: Any, completions: bool) -> tuple[TokenizerText, tuple[str, ...]]:
    """The tokenizer that encodes prompts, and the notes about it."""
    target = experiment.target
    used = chat_template.is_used(target.chat_template, tokenizer, completions, target.tokenizer or target.model)
    if used and experiment.system:
        chat_template.check_system(tokenizer, target.tokenizer or target.model)
    system = chat_template.system_text(tokenizer) if used else ""
    why_not = f"the prompts of task '{experiment.task}' are completions"
    note = chat_template.note(target.chat_template, tokenizer, used, system, why_not, experiment.system)
    text = TokenizerText(tokenizer, used, target.chat_template, system, experiment.system)
    return text, (note,) if note else ()


def check_same_tokens(pair: Pair, what: str) -> None:
    """Raise ModelError if the draft's tokens are not the target's."""
    if pair.vocabulary != SAME:
        raise ModelError(
            f"{what} with a draft that has the target's tokenizer, but this one has another: choose a draft of the"
            " target's own family."
        )


def identity(pair: Pair, experiment: Experiment) -> dict[str, Any]:
    """Identifies the pair that labels and judges are made for; only a pair with the same values can use them."""
    return {
        **{role: model.facts()["fingerprint"] for role, model in pair.models.items()},
        "tokenizer": pair.text.facts()["vocabulary"],
        "chat_template": pair.text.facts()["chat_template"] or "",
        "target_name": experiment.target.model,
        "draft_name": experiment.draft.shown,
        "target_revision": experiment.target.revision,
        "draft_revision": experiment.draft.revision,
        "dtype": experiment.target.dtype,
        "quantization": {"target": experiment.target.quantization, "draft": experiment.draft.quantization},
        **({"vocabulary": pair.vocabulary} if pair.vocabulary != SAME else {}),
    }


def hidden_sizes(pair: Pair) -> dict[str, int]:
    """The width of each model's hidden states, which are a judge's inputs."""
    return {role: model.facts()["hidden_size"] for role, model in pair.models.items()}


def load_text(experiment: Experiment, check: PromptCheck) -> Pair:
    """A pair without models, for served engines alone: with their tokenizer, or text as it is."""
    name = next((each.endpoint.tokenizer for each in experiment.engine if each.endpoint.tokenizer), "")
    if not name:
        text: Text = PlainText(experiment.system)
        check(text, {})
        return Pair(text, {}, ())
    target = replace(experiment.target, model=name, tokenizer="")
    tokenizer = _loading(experiment).load_tokenizer(target)
    completions = defaults_of(experiment.task).completions
    text, notes = _text(replace(experiment, target=target), tokenizer, completions)
    check(text, {})
    return Pair(text, {}, (), notes)


def _toy_pair(config: ToyConfig, roles: Set[Role], check: PromptCheck, system: str) -> Pair:
    text = ToyText(config.vocab_size, system)
    check(text, dict.fromkeys(sorted(roles, reverse=True), TOY_CONTEXT))
    noise: dict[Role, float] = {"target": 0.0, "draft": config.draft_noise}
    models: dict[Role, Model] = {
        role: ToyModel(config.vocab_size, config.seed, noise[role], context=TOY_CONTEXT)
        for role in noise
        if role in roles
    }
    return Pair(text, models, (0,))
