"""Runs an experiment: every setting on every prompt, interleaved prompt by prompt, one record each.

The order of the settings rotates by one from prompt to prompt, so that none always runs after the same other. With a
`batch`, several prompts take the place of one: a setting decodes them together, and a row that is done continues with
the next. Each run starts from an empty cache; prefill is timed separately. This module does not use MLflow.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tqdm import tqdm

from specexp.decoding.rng import rng_for
from specexp.engine import Engine, Generation, Request
from specexp.engines.served_methods import SERVED
from specexp.evaluation.measured_costs import check_sizes, measure_costs, median_of
from specexp.evaluation.preparation import (
    Prepared,
)
from specexp.evaluation.scheduling import (
    LOWER,
    Job,
    KnownRecords,
    Memories,
    MissingRecords,
    counted,
    groups_of,
    memory_of,
    place_of,
    prompt_of,
    requests,
)
from specexp.evaluation.served import Engines, texts_before
from specexp.lm import out_of_memory
from specexp.metrics.summary import check_identities
from specexp.pair.stop_strings import text_of
from specexp.profiling import memory
from specexp.profiling.time_estimate import Pace, Progress, announce
from specexp.storage import environment
from specexp.storage.records import SCHEMA_VERSION, Record, RecordFile, TreeShape
from specexp.storage.run_folder import OutputFolder

WARM_UP_TOKENS = 24
EARLY = 3  # prompts after which the total time is estimated from their outputs
MOMENTS = 12  # times in a run at which costs are measured, since the load of the machine varies
SHARE = 0.2  # share of the run's time that measuring costs may take, after the first time


def run(prepared: Prepared, output: OutputFolder, records: RecordFile) -> None:
    """Append every record that is still missing. An interruption leaves complete records only."""
    experiment = prepared.experiment
    lacking = counted(prepared, records)
    left = lacking.records.total()
    engine = Engine(prepared.pair.models, prepared.pair.eos_ids, max_batch_size=experiment.batch)
    peaks = memory.peaks_of(output.read_json(memory.FILE))
    try:
        if left:
            with out_of_memory.translate_oom("warming up", LOWER, experiment.models):
                paces = warm_up(prepared, engine, show=True)
            if paces:
                _announce(prepared, lacking, paces)
        begun = list((output.read_json("environments.json") or {}).values())
        with Engines(replace(prepared, served=prepared.served if left else ()), begun) as engines:
            where = _environment(prepared, output, engines.facts) if left or not prepared.served else ""
            _decode(prepared, output, records, lacking, engine, where, peaks, engines)
    finally:
        peaks.take()
        output.write_json(memory.FILE, peaks.as_dict())


def _decode(
    prepared: Prepared, output: OutputFolder, records: RecordFile, lacking: MissingRecords, engine: Engine,
    where: str, peaks: memory.MemoryPeaks, engines: Engines,
) -> None:  # fmt: skip
    experiment = prepared.experiment
    left = lacking.records.total()
    total = sum(len(x.turns) for x in prepared.examples) * len(prepared.everything) * experiment.repeats
    begun = output.read_json("costs.json")
    measured = [] if begun is None else [begun]
    memories = Memories(prepared, records)
    moments = {i * (lacking.groups - 1) // (MOMENTS - 1) for i in range(MOMENTS)}
    start, spent = time.perf_counter(), 0.0
    early = EARLY * len(prepared.everything) * experiment.batch
    with tqdm(total=total, initial=total - left, desc=experiment.name, unit="run", dynamic_ncols=True) as bar:
        say = partial(bar.write, file=sys.stderr)
        progress = Progress(left, early, "outputs", say, time.perf_counter)
        num_done = 0
        for number, jobs in enumerate(groups_of(prepared, records)):
            now = time.perf_counter()
            if number in moments and spent <= SHARE * (now - start):
                with out_of_memory.translate_oom("measuring calls", LOWER, experiment.models):
                    result = measure_costs(prepared) if experiment.batch == 1 else None
                spent += time.perf_counter() - now
                check_sizes(output, begun, result)
                measured += [] if result is None else [result]
                output.write_json("costs.json", median_of(measured) if measured else None)
            config = jobs[0].setting.config
            bar.set_postfix_str(config.label, refresh=False)
            if config.method.startswith(SERVED):
                for job in jobs:
                    records.append(engines.record(job, texts_before(prepared, records, job)) | {"environment": where})
                    bar.update()
                    num_done += 1
                    progress.seen(num_done)
                continue
            for record in decoded(prepared, records, jobs, engine, memories, peaks):
                records.append(record | {"environment": where})
                bar.update()
                num_done += 1
                progress.seen(num_done)
    complete(prepared, output)


def decoded(
    prepared: Prepared, records: KnownRecords, jobs: Sequence[Job], engine: Engine, memories: Memories,
    peaks: memory.MemoryPeaks,
) -> Iterator[Record]:  # fmt: skip
    """Decode jobs that share setting and turn; yield each one's record, without its environment."""
    config = jobs[0].setting.config
    with out_of_memory.translate_oom(*place_of(prepared, jobs)), peaks.watching(config.label):
        learned = memories.learn(jobs)
        for place, out in engine.generate_all(requests(prepared, records, jobs, memories)):
            out.seconds += learned
            ids = prompt_of(prepared, records, jobs[place]) if prepared.stop else ()
            record = record_of(prepared, jobs[place], out, ids)
            check_identities(record, config.tree, config.bonus)
            yield record


def complete(prepared: Prepared, output: OutputFolder) -> None:
    """Measure costs if costs.json was removed after the last record was made."""
    if not (output.path / "costs.json").exists():
        with out_of_memory.translate_oom("measuring calls", LOWER, prepared.experiment.models):
            result = measure_costs(prepared) if prepared.experiment.batch == 1 else None
        output.write_json("costs.json", result)


def _environment(prepared: Prepared, output: OutputFolder, engines: Mapping[str, Any]) -> str:
    """Note where this process runs in environments.json; a resumed run may have several."""
    facts = environment.describe(prepared.pair.models, prepared.pair.text.facts())
    facts |= {"engines": engines} if engines else {}
    name = environment.name_of(facts)
    output.write_json("environments.json", {**(output.read_json("environments.json") or {}), name: facts})
    return name


def warm_up(prepared: Prepared, engine: Engine, show: bool = False) -> dict[str, Pace]:
    """Decode a few tokens with every setting; return the pace of the fastest output, by label.

    With `show`, a progress bar is shown meanwhile. A setting that remembers the run's outputs does so twice, the second
    time after those of the other prompts.
    """
    rng = rng_for(prepared.experiment.temperature, 0, "warm-up")
    few = range(min(len(prepared.examples), max(2, prepared.experiment.batch)))
    some = [(prepared.examples[index].prompt_id, prepared.prompts[index]) for index in few]
    paces = {}
    bar = tqdm(
        prepared.settings, desc="warm-up", unit="setting", dynamic_ncols=True, leave=False, disable=not show
    )  # fmt: skip
    for setting in bar:
        bar.set_postfix_str(setting.config.label, refresh=False)
        ending = replace(prepared.ending, thinking=None)  # no longer than the others
        requests = [Request(setting.decoder, ids, WARM_UP_TOKENS, rng, name=name, ending=ending) for name, ids in some]
        outputs = dict(engine.generate_all(requests))
        result = [Pace.of(out) for out in outputs.values()]
        if setting.config.suffix_memory == "run":
            others = [memory_of(out.token_ids for j, out in outputs.items() if j != i) for i in range(len(requests))]
            again = (replace(request, earlier=each) for request, each in zip(requests, others, strict=True))
            result += [Pace.of(out) for _, out in engine.generate_all(again)]
        paces[setting.config.label] = min(result, key=lambda each: each.seconds(WARM_UP_TOKENS))
    return paces


def _announce(prepared: Prepared, lacking: MissingRecords, paces: Mapping[str, Pace]) -> None:
    """Print how long the missing records take, at full length and at the pace of the warm-up."""
    most = prepared.experiment.max_new_tokens + prepared.experiment.thinking_budget
    known = {label: number for label, number in lacking.records.items() if label in paces}
    what = f"{sum(known.values())} outputs of up to {most} tokens, as fast as the first {WARM_UP_TOKENS} were"
    lower = "limit, max_new_tokens, repeats or the number of settings"
    announce(sum(number * paces[label].seconds(most) for label, number in known.items()), what, lower)


def record_of(prepared: Prepared, job: Job, out: Generation, prompt_ids: Sequence[int] = ()) -> Record:
    """Return one job's record, without its environment. A stop string may begin in the prompt."""
    example, method = prepared.examples[job.index], job.setting.config
    text = text_of(prepared.pair.text, out.token_ids, out.finish_reason, prepared.stop, prompt_ids)
    ended = out.finish_reason in ("stop", "stop_string")
    last = job.turn == len(example.turns) - 1  # a gold answer belongs to the last turn
    gold = example.answer if last else None
    answer = _answer(prepared, job, out, text, ended) if last else None
    correct = answer is not None and gold is not None and prepared.task.comparator.equal(answer, gold, example)
    record: Record = {
        "schema_version": SCHEMA_VERSION,
        "prompt_id": example.prompt_id,
        "turn": job.turn,
        "category": example.category,
        "paired": job.turn == 0 or prepared.experiment.history == "baseline",
        "method": method.method,
        "preset": method.preset,
        "label": method.label,
        "repeat": job.repeat,
        "seed": prepared.experiment.seed + job.repeat,
        "text": text,
        "answer": answer,
        "gold": gold,
        "correct": None if gold is None else correct,
        "token_ids": out.token_ids,
        "finish_reason": out.finish_reason,
        "num_rounds": out.num_rounds,
        "num_drafted": out.num_drafted,
        "num_accepted": out.num_accepted,
        "num_judged": out.num_judged,
        "num_cut": out.num_cut,
        "num_full": out.num_full,
        "num_tested": out.num_tested,
        "overlap": out.overlap,
        "num_target_calls": out.num_target_calls,
        "num_target_positions": out.num_target_positions,
        "num_draft_calls": out.num_draft_calls,
        "num_draft_positions": out.num_draft_positions,
        "accepted_histogram": out.accepted_histogram,
        "drafted_before_end": out.drafted_before_end,
        "accepted_before_end": out.accepted_before_end,
        "num_judged_before_end": out.num_judged_before_end,
        "trees": [_tree_shape(tree) for tree in out.trees],
        "proposers": out.proposers,
        "seconds": out.seconds,
        "prefill_seconds": out.prefill_seconds,
        "time_to_first_token": out.time_to_first_token,
        "settings_hash": prepared.experiment.hash,
    }
    if prepared.budget is not None:
        record["num_forced"] = out.num_forced
    return record


def _answer(prepared: Prepared, job: Job, out: Generation, text: str, ended: bool) -> str | None:
    """Return the answer in an output's text: in what follows the end of thinking, if the model thinks."""
    said: str | None = text
    if prepared.thinking is not None:
        said = prepared.thinking.answer_text(prepared.pair.text, prepared.prompts[job.index], out.token_ids, text)
    gold = prepared.examples[job.index].answer
    return None if said is None else prepared.task.extract(said, ended, gold)


def _tree_shape(counts: Mapping[str, Any]) -> TreeShape:
    """Return the shape of one round's tree, from what its decoder counted."""
    shape: TreeShape = {
        "num_nodes": counts["num_nodes"],
        "depth": counts["depth"],
        "num_draft_calls": counts["num_draft_calls"],
        "max_active": counts["max_active"],
        "num_expanded": counts["num_expanded"],
        "num_candidates": counts["num_candidates"],
        "pruned_by_threshold": counts["pruned_by_threshold"],
        "pruned_by_log_prob": counts["pruned_by_log_prob"],
        "pruned_by_budget": counts["pruned_by_budget"],
        "num_accepted": counts["num_accepted"],
        "path": counts["path"],
        "ranks": counts["ranks"],
    }
    if "judged" in counts:
        shape["judged"] = counts["judged"]
    return shape
