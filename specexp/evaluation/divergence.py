"""Checks that settings which must emit plain decoding's tokens did, and explains the first token where one did not.

The tokens must be equal where nothing is drawn at random, and for trees at every temperature. As in a certificate
(`equality.py`), the target computes its logits at the first divergence once more: a near tie is rounding; in a dtype
coarser than float32, so is a gap that its rounding explains; any other difference means that the method is not lossless
here. Runs after all timing.

differences.json holds every output that differs, by prompt, turn, setting and repeat: a resume examines new ones only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from specexp.config import Experiment
from specexp.decoding.rng import rng_for
from specexp.engine import Engine
from specexp.evaluation.equality import Draws, difference, explanation
from specexp.evaluation.preparation import Prepared, PreparedMethod, arithmetic_of
from specexp.evaluation.scheduling import LOWER, Job, KnownRecords, prompt_of
from specexp.lm import out_of_memory
from specexp.lm.runtime import INVARIANT
from specexp.storage.record_places import Key
from specexp.storage.records import Record, RecordFile, finder, key_of
from specexp.storage.run_folder import OutputFolder
from specexp.tasks.example import place_of

FILE = "differences.json"
NOT_LOSSLESS = "not lossless here"  # marks a setting with an unexplained difference
NEAR_TIE, ROUNDING, UNEXPLAINED = "near tie", "rounding", "unexplained"


@dataclass(frozen=True, slots=True)
class Divergence:
    """How many of `num_outputs` equal plain decoding's, and the reasons for the others."""

    num_outputs: int
    differences: Sequence[Mapping[str, Any]]  # entries of differences.json

    @property
    def num_equal(self) -> int:
        return self.num_outputs - len(self.differences)

    def num(self, why: str) -> int:
        return sum(each["why"] == why for each in self.differences)

    @property
    def refuted(self) -> bool:
        """True if an output differs and rounding does not explain it."""
        return self.num(UNEXPLAINED) > 0

    @property
    def first(self) -> Mapping[str, Any]:
        """The first unexplained difference; there must be one."""
        return next(each for each in self.differences if each["why"] == UNEXPLAINED)

    def metrics(self) -> dict[str, float]:
        return {
            "quality/near_ties": self.num(NEAR_TIE),
            "quality/within_rounding": self.num(ROUNDING),
            "quality/unexplained": self.num(UNEXPLAINED),
        }


def comparable(setting: PreparedMethod, experiment: Experiment) -> bool:
    """True if this setting must emit plain decoding's tokens: a tree draws its tokens just as plain decoding does."""
    if not setting.facts.drafts or not setting.lossless:
        return False
    return experiment.warp.one_hot or setting.facts.grows_tree


Explain = Callable[[Iterator[tuple[Record, Record]]], Iterable[dict[str, Any]]]


def examine(prepared: Prepared, output: OutputFolder, records: RecordFile, explain: Explain | None = None) -> None:
    """Write differences.json. Raises ModelError if memory runs out.

    `explain` takes pairs of a record and plain decoding's, and returns an entry for each; the default does so here.
    """
    entries: list[dict[str, Any]] = output.read_json(FILE) or []
    known = {_key(each) for each in entries}
    if not prepared.settings:
        return
    differing = (
        (record, plain)
        for record, plain in _pairs(prepared, records.records, finder(records.records))
        if record["token_ids"] != plain["token_ids"] and key_of(record) not in known
    )
    entries += explain(differing) if explain is not None else _explained(prepared, records, differing)
    output.write_json(FILE, entries)


def _explained(
    prepared: Prepared, records: RecordFile, differing: Iterator[tuple[Record, Record]]
) -> Iterator[dict[str, Any]]:
    engine = Engine(prepared.pair.models)
    return (entry_of(prepared, engine, records, *each) for each in differing)


def entry_of(
    prepared: Prepared, engine: Engine, records: KnownRecords, record: Record, plain: Record
) -> dict[str, Any]:
    """Return the entry of one output that differs; `records` has those of the turns before. Raises ModelError."""
    experiment = prepared.experiment
    with out_of_memory.translate_oom("checking outputs that differ from plain decoding's", LOWER, experiment.models):
        ids = prompt_of(prepared, records, _job(prepared, record))
        return _entry(engine, experiment, ids, record, plain["token_ids"])


def why(engine: Engine, experiment: Experiment, ids: Sequence[int], record: Record, plain: Sequence[int]) -> str:
    """Return the reason why a record's output, for a prompt with these `ids`, is not plain decoding's."""
    return str(_entry(engine, experiment, ids, record, plain)["why"])


def _entry(
    engine: Engine, experiment: Experiment, ids: Sequence[int], record: Record, plain: Sequence[int]
) -> dict[str, Any]:
    warp, dtype = experiment.warp, arithmetic_of(experiment)
    draws = Draws(warp, lambda name: rng_for(experiment.temperature, record["seed"], name, record["turn"]))
    prompt_id, turn, label, repeat = key_of(record)
    result = difference(engine, dtype, label, prompt_id, ids, record["token_ids"], plain, draws)
    assert result is not None, "equal outputs have no difference"
    values = {key: value for key, value in asdict(result).items() if key != "name"}
    # Invariant numerics leave no rounding to a method.
    reason = UNEXPLAINED if experiment.numerics == INVARIANT else explanation(result, dtype)
    return {**values, "turn": turn, "label": label, "repeat": repeat, "why": reason}


def by_label(
    prepared: Prepared,
    entries: Sequence[Mapping[str, Any]] | None,
    records: Sequence[Record],
    repeat: int | None = None,
) -> dict[str, Divergence]:
    """Return the divergence of each setting that must emit plain decoding's tokens, in one repeat or in all; empty if
    none was examined."""
    if entries is None:
        return {}
    result, places = {_key(each): each for each in entries}, {_key(each): i for i, each in enumerate(entries)}
    num_compared: dict[str, int] = {}
    differing: dict[str, list[Key]] = {}
    chosen = records if repeat is None else (record for record in records if record["repeat"] == repeat)
    for record, _ in _pairs(prepared, chosen, finder(records)):
        label, key = record["label"], key_of(record)
        num_compared[label] = num_compared.get(label, 0) + 1
        if key in result:
            differing.setdefault(label, []).append(key)
    return {
        label: Divergence(number, [result[key] for key in sorted(differing.get(label, []), key=places.__getitem__)])
        for label, number in num_compared.items()
    }


def _pairs(
    prepared: Prepared, records: Iterable[Record], find: Callable[[Key], Record]
) -> Iterable[tuple[Record, Record]]:
    """Yield records whose tokens must be those of plain decoding, each with plain decoding's record."""
    plain = next((each.config.label for each in prepared.settings if each.config.method == "baseline"), None)
    labels = {each.config.label for each in prepared.settings if comparable(each, prepared.experiment)}
    if plain is None:
        return
    for record in records:
        if record["label"] in labels and record["paired"]:
            other = None
            with suppress(KeyError):
                other = find((record["prompt_id"], record["turn"], plain, record["repeat"]))
            if other is not None:
                yield record, other


def _job(prepared: Prepared, record: Record) -> Job:
    index = place_of(prepared.examples, record["prompt_id"])
    setting = next(each for each in prepared.settings if each.config.label == record["label"])
    return Job(index, record["turn"], setting, record["repeat"])


def _key(entry: Mapping[str, Any]) -> Key:
    """Return the key of the record that an entry of differences.json is about."""
    return entry["prompt_id"], entry["turn"], entry["label"], entry["repeat"]
