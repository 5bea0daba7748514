"""Mines a task's prompts into a label set. A run that is killed loses only the prompts it was working on.

progress/NNNNNN.safetensors holds the results of one prompt and is written atomically. When all of them exist, they are
joined in the order of the prompts into the label set of labels.py, so an interrupted run gives the same labels as an
uninterrupted one.
"""

from __future__ import annotations

import shutil
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from specexp.answers.rules import UNRECORDED, VERSION, version_note, version_words
from specexp.config import Experiment, MiningConfig
from specexp.decoding.protocol import Role
from specexp.engine import Ending, output_limit
from specexp.errors import OutputError, PromptError, TaskError
from specexp.judge import features
from specexp.judge.labels import MANIFEST, LabelSet, pack, unpack, write_set
from specexp.judge.mining import MINED, NO_ANSWER, UNFINISHED, Mined, Miner
from specexp.judge.mining_progress import PromptFiles, SearchProgress
from specexp.judge.mining_yield import EarlyWarning, Yield, status_of
from specexp.judge.splits import filled
from specexp.lm import out_of_memory
from specexp.pair.loading import Pair, check_same_tokens, identity, load_pair
from specexp.pair.thinking import budget_of, thinking_changed, thinking_notes, thinking_of
from specexp.pair.tokenization import Text
from specexp.profiling.time_estimate import Pace, Progress, announce, pace
from specexp.sequences.lazy import at, lazily
from specexp.sequences.names import NameNumbers
from specexp.sequences.token_ids import TokenIds
from specexp.storage.files import make_folder, write_whole
from specexp.storage.run_folder import OutputFolder
from specexp.tasks import sampling
from specexp.tasks.example import Example, Task, naming, prompt_id_of
from specexp.tasks.programs import execution_of
from specexp.tasks.task import notes_of

PROGRESS = "progress"
EARLY = 10  # finished prompts from which the total time is estimated


@dataclass(frozen=True, slots=True)
class PreparedMining:
    """The loaded and checked inputs of a mining run."""

    config: MiningConfig
    task: Task
    examples: Sequence[Example]
    pair: Pair
    notes: Sequence[str] = ()  # messages for the user, shown before mining starts


class OtherMiners(Protocol):
    """Mine in place of this process."""

    @property
    def pace(self) -> Pace:
        """The pace of plain decoding."""
        ...

    def mine(self, prepared: PreparedMining, missing: Mapping[int, Path]) -> Iterator[Path]:
        """Write the files of these prompts, by index; yields each that is there."""
        ...


def prepare(config: MiningConfig, load: Callable[..., Pair] = load_pair) -> PreparedMining:
    """Load both models and the task, and check that every prompt fits the context. Writes nothing.

    `load` takes what `load_pair` takes; its models may be descriptions of models that are loaded elsewhere.
    """
    experiment = config.experiment
    chosen = experiment.read_task("mining")
    examples, left_out = after_skipped(chosen, config.skip, experiment.limit)
    notes = ["multi-turn prompts are left out: mining takes single-turn prompts only."] if left_out else []
    if not examples:
        kind = "prompt of one turn" if left_out else "prompt"
        raise TaskError(f"skip is {config.skip}, but task '{experiment.task}' has no {kind} after it; lower it.")
    pair = load(
        experiment, {"target", "draft"}, check=partial(_check_prompts, examples, experiment),
        same_tokens=True,
    )  # fmt: skip
    check_same_tokens(pair, "labels are mined")
    thinking = thinking_notes(thinking_of(pair.text), examples)
    return PreparedMining(config, chosen, examples, pair, [*pair.notes, *notes_of(chosen), *notes, *thinking])


def _check_prompts(
    examples: Sequence[Example], experiment: Experiment, text: Text, contexts: Mapping[Role, int]
) -> None:  # fmt: skip
    """Raise PromptError if the context leaves too little, or ModelError if no budget of thoughts can be had."""
    most = Ending(thinking=budget_of(text, experiment.thinking_budget)).most(experiment.max_new_tokens)
    for example in examples:
        with naming(example):
            ids = text.encode(example.messages())
        for role, context in contexts.items():
            with naming(example):
                limit = output_limit(ids, most, context, role)
            if limit < most:
                lower = "max_new_tokens to this number"
                if experiment.thinking_budget:
                    lower = f"max_new_tokens or thinking_budget, which need {most}"
                raise PromptError(
                    f"prompt '{example.prompt_id}' leaves {limit} tokens of the {role} model's context; lower {lower}."
                )


def after_skipped(chosen: Task, skip: int, limit: int) -> tuple[Sequence[Example], bool]:
    """Return `limit` single-turn examples outside the first `skip`, and whether multi-turn ones were passed over."""
    # Compare by id: if a limit covers all rows, they come in file order, and a smaller one in the order of a sample.
    before = NameNumbers()
    for example in chosen.examples(skip):
        before.number(example.prompt_id)
    size = skip + limit
    while True:
        rows = chosen.examples(size)
        usable, passed_over = array("q"), False
        for index, example in enumerate(rows):
            if before.find(example.prompt_id) is None:
                if len(example.turns) == 1:
                    usable.append(index)
                else:
                    passed_over = True
        if len(usable) >= limit or len(rows) < size:
            return sampling.chosen(at(rows, usable), limit), passed_over
        size *= 2


def note_inputs(prepared: PreparedMining, output: OutputFolder) -> None:
    """Write inputs.json. Raises OutputError if the folder was started with other rows, another pair or another version
    of the answer rule: a label set never mixes two. A finished set is not changed."""
    pair_identity = identity(prepared.pair, prepared.config.experiment)
    keys = ("target", "draft", "tokenizer", "chat_template")
    now: dict[str, Any] = {"data": prepared.task.dataset().digest, **{key: pair_identity[key] for key in keys}}
    config = prepared.config
    if words := sampling.selection(prepared.task, config.skip + config.experiment.limit):
        now["selection"] = words
    if thinking := thinking_of(prepared.pair.text):
        now["thinking_end"] = thinking.end
    before = output.read_json("inputs.json")
    was = UNRECORDED if before is None else before.pop("answer_version", UNRECORDED)
    finished = (output.path / MANIFEST).exists()
    if before is not None and not finished and was != VERSION:
        raise OutputError(
            f"'{output.path}' was begun with {version_words(was)} of the answer rule, and this is version {VERSION};"
            " labels of two versions are not mixed: name another output folder."
        )
    if before is not None and not finished and before.get("selection") != now.get("selection"):
        raise OutputError(
            f"'{output.path}' was begun on {before.get('selection') or 'the first rows'}; these settings now select"
            f" {now.get('selection') or 'the first rows'}. Name another output folder."
        )
    if before is not None and not finished and (fault := thinking_changed(output.path, before, now)):
        raise OutputError(fault)
    if before is not None and before != {key: now[key] for key in before if key in now}:
        changed = " and ".join(key for key in now if now[key] != before.get(key))
        raise OutputError(f"'{output.path}' was begun with another {changed}; name another output folder.")
    if not finished:
        output.write_json("inputs.json", {**now, "answer_version": VERSION})


def collect(prepared: PreparedMining, output: OutputFolder, others: OtherMiners | None = None) -> LabelSet:
    """Mine the prompts that have no results yet, and write the label set. `others` mine in place of this process."""
    if (output.path / MANIFEST).exists():
        shutil.rmtree(output.path / PROGRESS, ignore_errors=True)
        result = LabelSet.read(output.path)
        if note := version_note(f"label set '{output.path}'", result.answer_version):
            print(f"note: {note}", file=sys.stderr)
        return result
    progress = output.path / PROGRESS
    make_folder(progress)
    paths = PromptFiles(progress, range(len(prepared.examples)))
    there, missing = paths.parted()
    for path in there.values():
        unpack(path)  # reports a broken file before mining starts
    early = EarlyWarning(prepared.config.experiment.max_new_tokens)
    for path in there.values():
        early.add(path)
    if missing:
        _announce(prepared, len(missing), None if others is None else others.pace)
    for path in _mined(prepared, missing) if others is None else others.mine(prepared, missing):
        early.add(path)
    assemble(prepared, paths.parted()[0].values(), output.path)
    shutil.rmtree(progress)
    return LabelSet.read(output.path)


def _mined(prepared: PreparedMining, missing: Mapping[int, Path]) -> Iterator[Path]:
    """Mine prompts, by index, into their files; yields each file that is written."""
    config, indices = prepared.config, array("q", missing)
    limits = config.experiment.max_new_tokens, config.dtype, config.batch, config.experiment.thinking_budget
    miner = Miner(prepared.pair, prepared.task, *limits)
    total = len(missing) * config.experiment.max_new_tokens
    with tqdm(total=total, desc="mining", unit="token", dynamic_ncols=True) as bar:
        search = SearchProgress(bar, len(missing))
        duration = Progress(0, 0, "tokens to try", partial(bar.write, file=sys.stderr), time.perf_counter)
        with _in_memory(config):
            mining = miner.mine_all((prepared.examples[index] for index in indices), search.update)
            for number, (place, mined) in enumerate(mining, 1):
                path = missing[indices[place]]
                _write(path, mined)
                yield path
                num_before = len(prepared.examples) - len(missing)
                bar.set_postfix_str(f"{num_before + number} of {len(prepared.examples)} prompts", refresh=False)
                if number >= EARLY:
                    duration.seen(bar.n, bar.total)


def _in_memory(config: MiningConfig) -> AbstractContextManager[None]:
    what = f"mining {config.batch} prompts at a time"
    return out_of_memory.translate_oom(what, "batch or max_new_tokens", config.experiment.models)


def _announce(prepared: PreparedMining, num_prompts: int, known: Pace | None) -> None:
    """Print the longest time that the responses can take. The time of the search depends on their mismatches.

    `known` is the pace of others; it is measured here without."""
    most = prepared.config.experiment.max_new_tokens
    if known is None:
        text, examples = prepared.pair.text, prepared.examples
        texts = TokenIds(lambda index: text.encode(examples[index].messages()), len(examples))
        with _in_memory(prepared.config):
            known = pace(prepared.pair.models, texts, names=lazily(prompt_id_of, examples))
    what = (
        f"{num_prompts} responses of up to {most} tokens one after another; the search in them takes longer the more"
        " mismatches they have, and is estimated once some are done"
    )
    announce(num_prompts * known.seconds(most), what, "limit or max_new_tokens")


def _write(path: Path, mined: Mined) -> None:
    write_whole(path, packed(mined))


def packed(mined: Mined) -> bytes:
    """The content of a prompt's file in progress/."""
    return pack(mined.labels, mined.features, {**mined.counts, f"num_{mined.status}": 1})


def assemble(prepared: PreparedMining, paths: Collection[Path], folder: Path) -> None:
    """Write the results of all prompts as one label set; features are read prompt by prompt, and not held together."""
    labels, counts = [], Counter({f"num_{status}": 0 for status in (MINED, NO_ANSWER, UNFINISHED)})
    whole = Yield()
    num_rows, sizes = Counter[str](), dict[str, int]()  # by part
    for path in paths:
        result, arrays, spent = unpack(path)
        labels += result
        counts.update(spent)
        whole.add(result, spent, status_of(spent))
        for part, rows in arrays.items():
            num_rows[part] += len(rows)
            sizes[part] = int(rows.shape[1])
    limit = prepared.config.experiment.max_new_tokens
    if not labels:
        enough = f", from {limit} to about {whole.enough_tokens(limit)}" if whole.unfinished else ""
        raise TaskError(
            f"no mismatch was found in {len(paths)} prompts ({counts[f'num_{NO_ANSWER}']} had no answer,"
            f" {counts[f'num_{UNFINISHED}']} did not end); mine more prompts, or raise max_new_tokens{enough}."
        )
    # Prompts that an earlier version mined have no scalars: then the set has none.
    parts = [part for part, number in num_rows.items() if number == len(labels)]
    config = prepared.config
    data = prepared.task.dataset()
    manifest = {
        "identity": identity(prepared.pair, config.experiment),
        "task": prepared.task.name,
        "data": {"source": data.source, "sha256": data.digest},
        "settings": config.as_dict(),
        "settings_hash": config.hash,
        "feature_version": features.VERSION,
        **execution_of(prepared.task),
        "answer_version": VERSION,
        "comparator": prepared.task.comparator.name,
        "feature_dtype": config.dtype,
        "hidden_sizes": {role: sizes[f"{role}_token"] for role in ("target", "draft")},
        "num_prompts": len(paths),
        "num_labels": len(labels),
        "counts": dict(sorted({**counts, "num_undecided": whole.undecided}.items())),
        "enough_tokens": whole.enough_tokens(limit),
    }
    blocks = (unpack(path)[1] for path in paths)
    write_set(
        folder,
        filled(labels),
        ({part: each[part] for part in parts} for each in blocks if each.keys() >= set(parts)),
        manifest,
    )
