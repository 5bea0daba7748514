"""The time split of an evaluation's settings: instrumented runs of a few prompts, separate from the timed ones.

They wait for the device between parts, so only the shares are used, not the times. `shares.json` holds the seconds of
each part by label, measured once and kept on a resume. The timed runs decide how many prompts and tokens are used, so
that the time split takes no more than about a minute; else it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from specexp.decoding.rng import rng_for
from specexp.engine import Decoder, Engine, Request
from specexp.engine.suffix_automaton import SuffixAutomaton
from specexp.evaluation.large_runs import sample
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.scheduling import LOWER, Job, Memories
from specexp.lm import out_of_memory
from specexp.profiling.time_breakdown import HOST, Stopwatch, TimedDecoder, TimedModel, TimedRng, shares
from specexp.storage.records import Record, RecordFile
from specexp.storage.run_folder import OutputFolder

FILE = "shares.json"
PROMPTS = 4
SECONDS = 60.0  # limit for all settings together, estimated from the timed runs
FEWEST_TOKENS = 16  # of a prompt: fewer are not meaningful


@dataclass(frozen=True, slots=True)
class TimeSplitPlan:
    """With every setting, the first `num_prompts` are decoded to at most `max_new_tokens`."""

    num_prompts: int
    max_new_tokens: int


def plan(records: Sequence[Record], max_new_tokens: int, seconds: float = SECONDS) -> TimeSplitPlan | None:
    """Return what fits into `seconds`: fewer prompts first, then fewer tokens; None if even a few tokens do not fit."""
    tokens: dict[str, int] = {}
    decode: dict[str, float] = {}
    prefill: dict[str, list[float]] = {}
    for record in records:
        label = record["label"]
        tokens[label] = tokens.get(label, 0) + len(record["token_ids"])
        decode[label] = decode.get(label, 0.0) + record["seconds"]
        prefill.setdefault(label, []).append(record["prefill_seconds"])
    outputs = sum(len(each) for each in prefill.values()) / len(prefill)
    before = sum(sum(each) / len(each) for each in prefill.values())  # of one prompt with every setting
    whole = sum(decode.values()) / outputs
    if before + whole <= seconds:
        return TimeSplitPlan(min(PROMPTS, int(seconds / (before + whole))), max_new_tokens)
    affordable = int((seconds - before) / sum(decode[label] / tokens[label] for label in tokens))
    return TimeSplitPlan(1, min(affordable, max_new_tokens)) if affordable >= FEWEST_TOKENS else None


def measure(prepared: Prepared, output: OutputFolder, records: RecordFile) -> None:
    """Write shares.json, unless it exists or would take too long.

    A setting that remembers the run's outputs does so here, too; adding to its memory is a part of the host's.
    """
    if output.read_json(FILE) is not None or not prepared.settings:
        return
    experiment = prepared.experiment
    ours = [record for record in sample(prepared, records.records) if "served" not in record]
    chosen = plan(ours, experiment.max_new_tokens)
    if chosen is None:
        return
    prompts = min(chosen.num_prompts, len(prepared.examples))
    result, memories = {}, Memories(prepared, records)
    with tqdm(
        total=prompts * len(prepared.settings), desc="time split", unit="run", dynamic_ncols=True, leave=False
    ) as bar:
        for setting in prepared.settings:
            bar.set_postfix_str(setting.config.label, refresh=False)
            with out_of_memory.translate_oom(f"the time split of {setting.config.label}", LOWER, experiment.models):
                jobs = [Job(index, 0, setting, 0) for index in range(prompts)]
                learned = 0.0

                def earlier(index: int, jobs: Sequence[Job] = jobs) -> SuffixAutomaton | None:
                    nonlocal learned
                    learned += memories.learn([jobs[index]])
                    return memories.earlier(jobs[index])

                parts = seconds(
                    prepared, setting.decoder, prompts, chosen.max_new_tokens, experiment.temperature, bar.update,
                    earlier,
                )  # fmt: skip
                result[setting.config.label] = {**parts, HOST: parts[HOST] + learned}
    output.write_json(FILE, {"num_prompts": prompts, "max_new_tokens": chosen.max_new_tokens, "seconds": result})


def seconds(
    prepared: Prepared,
    decoder: Decoder,
    num_prompts: int,
    max_new_tokens: int,
    temperature: float,
    after_each: Callable[[], object] = lambda: None,
    earlier: Callable[[int], SuffixAutomaton | None] = lambda index: None,
) -> dict[str, float]:
    """Return the seconds of each part while the first prompts' first turns are decoded.

    `earlier` gives the outputs that a prompt, by its index, may continue.
    """
    models = prepared.pair.models

    def wait() -> None:
        for model in models.values():
            model.wait()

    watch = Stopwatch(wait=wait)
    engine = Engine({role: TimedModel(model, role, watch) for role, model in models.items()}, prepared.pair.eos_ids)
    for index, ids in enumerate(prepared.prompts[:num_prompts]):
        name = prepared.examples[index].prompt_id
        rng = TimedRng(rng_for(temperature, prepared.experiment.seed, name), watch)
        request = Request(
            TimedDecoder(decoder, watch), ids, max_new_tokens, rng, name=name, earlier=earlier(index),
            ending=replace(prepared.ending, thinking=None),
        )  # fmt: skip
        for _ in engine.generate_all([request]):
            after_each()
    return watch.seconds()


def read(output: OutputFolder) -> dict[str, dict[str, float]]:
    """Return each setting's shares, by label; empty if none were measured."""
    result: dict[str, Any] = output.read_json(FILE) or {"seconds": {}}
    return {label: shares(parts) for label, parts in result["seconds"].items()}
