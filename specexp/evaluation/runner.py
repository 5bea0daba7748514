"""Runs an experiment: every setting on every prompt, interleaved prompt by prompt, one record each.

The order of the settings turns by one from prompt to prompt, so that none always runs behind the same other. Each run
starts from an empty cache; prefill is timed apart. Nothing here knows MLflow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from specexp.config import Experiment, MethodConfig
from specexp.decoding.dice import dice_for
from specexp.decoding.rules import Warp
from specexp.engine import Decoder, Engine, Generation, costs
from specexp.errors import ConfigError, PromptError
from specexp.evaluation import environment
from specexp.evaluation.methods import decoder_for
from specexp.evaluation.metrics import check_identities, summarise
from specexp.evaluation.output import OutputFolder
from specexp.evaluation.pair import Pair, load_pair
from specexp.evaluation.records import Record, RecordFile
from specexp.tasks.task import Example, Task, task

WARM_UP_TOKENS = 24
Summary = dict[tuple[str, int], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One method at one draft length, with its decoder."""

    config: MethodConfig
    decoder: Decoder


@dataclass(frozen=True, slots=True)
class Prepared:
    """An experiment that can run: everything that could be wrong with it has been looked at."""

    experiment: Experiment
    task: Task
    examples: list[Example]
    prompts: list[list[int]]
    settings: list[Setting]
    pair: Pair


def prepare(experiment: Experiment) -> Prepared:
    """Load models and task, and check that every prompt fits. Writes nothing."""
    warp = Warp(experiment.temperature, experiment.top_k, experiment.top_p)
    settings = [Setting(method, decoder_for(method, warp)) for method in experiment.methods]
    chosen = task(experiment.task, experiment.data)
    examples = chosen.examples(experiment.limit)
    pair = load_pair(experiment, {role for setting in settings for role in setting.decoder.models})
    prompts = [pair.encode(example.prompt) for example in examples]
    _check_gammas(settings, pair)
    engine = Engine(pair.models)
    for example, ids in zip(examples, prompts, strict=True):
        if not example.prompt.strip():
            raise PromptError(f"prompt '{example.prompt_id}' is empty; give it some text or leave it out.")
        for role in sorted({setting.decoder.models[0] for setting in settings}, reverse=True):
            try:
                engine.room_for(ids, experiment.max_new_tokens, role)
            except PromptError as error:
                raise PromptError(f"prompt '{example.prompt_id}': {error}") from None
    return Prepared(experiment, chosen, examples, prompts, settings, pair)


def _check_gammas(settings: Sequence[Setting], pair: Pair) -> None:
    context = min(model.context for model in pair.models.values())
    for setting in settings:
        if setting.config.gamma > context // 2:
            raise ConfigError(
                f"gamma is {setting.config.gamma}; with a context of {context} it must be at most {context // 2}."
            )


def run(prepared: Prepared, output: OutputFolder, records: RecordFile) -> None:
    """Append every record that is still missing. An interruption leaves whole records only."""
    experiment = prepared.experiment
    jobs = list(_jobs(prepared, records))
    total = len(prepared.examples) * len(prepared.settings) * experiment.repeats
    engine = Engine(prepared.pair.models, prepared.pair.eos_ids)
    where = _environment(prepared, output)
    if jobs:
        _warm_up(prepared, engine)
    if output.read_json("costs.json") is None:
        output.write_json("costs.json", _measure(prepared))
    with tqdm(total=total, initial=total - len(jobs), desc=experiment.name, unit="run", dynamic_ncols=True) as bar:
        for index, setting, repeat in jobs:
            example = prepared.examples[index]
            seed = experiment.seed + repeat
            dice = dice_for(experiment.temperature, seed, example.prompt_id)
            out = engine.generate(setting.decoder, prepared.prompts[index], experiment.max_new_tokens, dice)
            record = _record(prepared, example, setting.config, repeat, seed, out) | {"environment": where}
            check_identities(record)
            records.append(record)
            bar.set_postfix_str(setting.config.label, refresh=False)
            bar.update()


def _environment(prepared: Prepared, output: OutputFolder) -> str:
    """Note where this process runs in environments.json; a resumed run may have several."""
    facts = environment.describe(prepared.pair.models)
    name = environment.name_of(facts)
    output.write_json("environments.json", {**(output.read_json("environments.json") or {}), name: facts})
    return name


def summary(prepared: Prepared, output: OutputFolder, records: Sequence[Record]) -> Summary:
    """Metrics by (label, repeat)."""
    measured = output.read_json("costs.json")
    found = costs.Costs(measured["draft"], {int(n): s for n, s in measured["target"].items()}) if measured else None
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record["label"], record["repeat"]), []).append(record)
    gammas = {setting.config.label: setting.config.gamma for setting in prepared.settings}
    plain = {key[1]: group for key, group in groups.items() if group[0]["method"] == "baseline"}
    return {
        (setting.config.label, repeat): summarise(
            groups[setting.config.label, repeat], plain.get(repeat, []), found, gammas[setting.config.label]
        )
        for setting in prepared.settings
        for repeat in range(prepared.experiment.repeats)
    }


def missing(prepared: Prepared, records: RecordFile) -> int:
    """How many records this experiment still lacks."""
    return len(list(_jobs(prepared, records)))


def _jobs(prepared: Prepared, records: RecordFile) -> Iterator[tuple[int, Setting, int]]:
    done = records.done
    settings = prepared.settings
    for repeat in range(prepared.experiment.repeats):
        for index, example in enumerate(prepared.examples):
            turn = (index + repeat) % len(settings)
            for setting in settings[turn:] + settings[:turn]:
                if (example.prompt_id, 0, setting.config.label, repeat) not in done:
                    yield index, setting, repeat


def _warm_up(prepared: Prepared, engine: Engine) -> None:
    for setting in prepared.settings:
        for ids in prepared.prompts[:2]:
            dice = dice_for(prepared.experiment.temperature, 0, "warm-up")
            engine.generate(setting.decoder, ids, WARM_UP_TOKENS, dice)


def _measure(prepared: Prepared) -> dict[str, Any] | None:
    """Seconds per call where the middle of an output stands; None when no chain is verified."""
    gammas = sorted({s.config.gamma for s in prepared.settings if s.config.gamma})
    if not gammas:
        return None
    length = max(len(ids) for ids in prepared.prompts)
    ids = prepared.prompts[0]
    room = min(model.context for model in prepared.pair.models.values()) - max(costs.ROW, gammas[-1] + 1)
    behind = (ids * (length // len(ids) + 2))[: min(length + 32, room)]
    found = costs.measure(prepared.pair.models, behind, gammas)
    target = {str(n): seconds for n, seconds in found.target.items()}
    return {"context": len(behind), "draft": found.draft_step, "target": target}


def _record(
    prepared: Prepared, example: Example, method: MethodConfig, repeat: int, seed: int, out: Generation
) -> Record:
    text = prepared.pair.decode(out.token_ids[:-1] if out.finish_reason == "stop" else out.token_ids)
    answer = prepared.task.extract(text, out.finish_reason == "stop")
    return {
        "prompt_id": example.prompt_id,
        "turn": 0,
        "method": method.method,
        "preset": method.preset,
        "label": method.label,
        "repeat": repeat,
        "seed": seed,
        "text": text,
        "answer": answer,
        "gold": example.answer,
        "correct": None if example.answer is None else answer == example.answer,
        **{name: getattr(out, name) for name in Generation.__dataclass_fields__},
        "settings_hash": prepared.experiment.hash,
    }
