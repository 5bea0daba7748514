"""Decodes the texts of mined labels again and scores each mismatch by the rules, which read p and q there.

A label set holds no texts. Mining is deterministic: the target's greedy response, and after each unimportant mismatch
the response with it and the target's continuation. So a prompt's responses follow from its labels; only what is swapped
in has to be continued again. A response that differs from what was mined is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from specexp.config import MiningConfig
from specexp.config.experiment import LATER_OF_EXPERIMENT, Experiment
from specexp.decoding.baseline import Baseline
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import UNIT_TEMPERATURE, Warp
from specexp.engine import Engine, Request, RequestCoroutine, ScoreRequest
from specexp.errors import JudgeError
from specexp.judge.collection import PreparedMining, prepare
from specexp.judge.labels import Label, LabelSet
from specexp.judge.mining import Miner
from specexp.lm.runtime import ModelConfig
from specexp.pair.loading import identity
from specexp.rule_calibration.dials import Dial, MismatchPlace
from specexp.storage.journal import Journal
from specexp.tasks.example import Example
from specexp.tasks.source import DataConfig

SPLITS = ("calibration", "test")
SAME = ("target", "draft", "tokenizer", "chat_template")  # of a pair's identity

Scored = tuple[Label, dict[str, float]]
Seen = TypeVar("Seen")  # what a visit returns
Visit = Callable[[Sequence[int], Sequence[int], Label], RequestCoroutine[Seen]]


def prepared(labels: LabelSet, batch: int) -> PreparedMining:
    """The pair, the task and the prompts that labels were mined with. Raises JudgeError if they are others now."""
    settings = labels.manifest["settings"]
    try:
        models: dict[str, Any] = {role: ModelConfig(**settings[role]) for role in ("target", "draft")}
        data, shots = (DataConfig(**rows) if (rows := settings.get(key)) else None for key in ("data", "shots_data"))
        kept = ("name", "task", "pair", "shots", "answer_rule", "answer_pattern", "limit", "max_new_tokens")
        own = {key: settings[key] for key in kept} | {
            key: settings[key] for key in LATER_OF_EXPERIMENT if key in settings
        }
        experiment = Experiment(**models, **{**own, "data": data, "shots_data": shots, "methods": ()})
        config = MiningConfig(experiment, settings["dtype"], settings["skip"], batch)
    except (KeyError, TypeError) as error:
        raise JudgeError(f"the labels' settings cannot be read ({error}); mine them again.") from error
    result = prepare(config)
    now, was = identity(result.pair, experiment), labels.manifest["identity"]
    changed = [key for key in SAME if key in was and was[key] != now[key]]
    if result.task.dataset().digest != labels.manifest["data"]["sha256"]:
        changed.append("data")
    if changed:
        raise JudgeError(
            f"the labels were mined with another {' and '.join(changed)} than is there now; mine them again."
        )
    return result


class LabelReplay(Generic[Seen]):
    """Decodes the responses of the prompts of some splits again, and visits each decided mismatch in them.

    `visit` is called with a prompt's ids, the response at the mismatch, and the label.
    """

    def __init__(self, mining: PreparedMining, visit: Visit[Seen], splits: Sequence[str] = SPLITS) -> None:
        self._pair, self._limit = mining.pair, mining.config.experiment.max_new_tokens
        budget = mining.config.experiment.thinking_budget
        self._miner = Miner(mining.pair, mining.task, self._limit, thinking_budget=budget)
        self._visit, self._splits = visit, splits
        self._engine = Engine(mining.pair.models, mining.pair.eos_ids, reuse=True, max_batch_size=mining.config.batch)

    def run(
        self, examples: Sequence[Example], labels: Sequence[Label], on_prompt: Callable[[], object]
    ) -> Iterator[tuple[Label, Seen]]:
        """Yield each decided label of the splits with what its visit returned. Raises JudgeError."""
        for _, seen in self.prompts(examples, labels, on_prompt):
            yield from seen

    def prompts(
        self, examples: Sequence[Example], labels: Sequence[Label], on_prompt: Callable[[], object]
    ) -> Iterator[tuple[str, list[tuple[Label, Seen]]]]:
        """Yield each prompt's id with its labels, as `run` does, as soon as one is done."""
        of_prompts: dict[str, list[Label]] = {}
        for label in labels:
            if label.split in self._splits:
                of_prompts.setdefault(label.prompt_id, []).append(label)
        chosen = [example for example in examples if example.prompt_id in of_prompts]
        if missing := of_prompts.keys() - {example.prompt_id for example in chosen}:
            raise JudgeError(f"the labels' prompt '{min(missing)}' is not among the task's prompts; mine them again.")
        work = (self._prompt(example, of_prompts[example.prompt_id]) for example in chosen)
        for place, seen in self._engine.run_all(work):
            on_prompt()
            yield chosen[place].prompt_id, seen

    def _prompt(self, example: Example, labels: Sequence[Label]) -> RequestCoroutine[list[tuple[Label, Seen]]]:
        prompt = self._pair.text.encode(example.messages())
        first = yield self._miner.request(prompt, example.prompt_id)
        response, result = list(first.token_ids), list[tuple[Label, Seen]]()
        for label in labels:
            at = label.position
            if response[at : at + 1] != [label.target_token]:
                raise JudgeError(
                    f"prompt '{example.prompt_id}': token {at} of the response is another than when it was mined; mine"
                    " the labels again here."
                )
            if label.important is not None:
                seen = yield from self._visit(prompt, response, label)
                result.append((label, seen))
            if label.important is False:
                swap = self._miner.swapped(prompt, response, at, label.draft_token, example.prompt_id)
                response, _ = yield from swap
        return result


class MismatchReplay:
    """Scores the mismatches of the calibration and test prompts of a label set.

    `window` is FLy's, `k` that of relaxed Top-K.
    """

    def __init__(self, mining: PreparedMining, dials: Mapping[str, Dial], window: int, k: int) -> None:
        self._pair = mining.pair
        self._dials, self._window, self._k = dials, window, k
        self._room = min(model.context for model in mining.pair.models.values())
        self._replay = LabelReplay(mining, self._scores)

    def run(
        self,
        examples: Sequence[Example],
        labels: Sequence[Label],
        on_prompt: Callable[[], object],
        journal: Journal | None = None,
    ) -> Iterator[Scored]:
        """Yield each decided label of these splits with its score by each rule, in the order of the labels. Prompts in
        the journal are not decoded again. Raises JudgeError."""
        journal = journal or Journal()
        rules = ",".join(self._dials)
        missing = [label for label in labels if (rules, label.prompt_id) not in journal]
        for _ in {label.prompt_id for label in labels if label.split in SPLITS} - {each.prompt_id for each in missing}:
            on_prompt()
        for prompt_id, seen in self._replay.prompts(examples, missing, on_prompt):
            scored = [[label.position, scores] for label, scores in seen]
            journal.unit((rules, prompt_id), lambda scored=scored: scored)  # type: ignore[misc]
        for label in labels:
            if label.split in SPLITS and label.important is not None:
                of_prompt = dict(journal.unit((rules, label.prompt_id), list))
                yield label, of_prompt[label.position]

    def _scores(
        self, prompt: Sequence[int], response: Sequence[int], label: Label
    ) -> RequestCoroutine[dict[str, float]]:
        place = yield from self._place([*prompt, *response[: label.position]], label.draft_token)
        return {name: dial.score(place, self._k) for name, dial in self._dials.items()}

    def _place(self, ids: list[int], token: int) -> RequestCoroutine[MismatchPlace]:
        tokens = [token]
        asked = "fly" in self._dials and token not in self._pair.eos_ids
        if asked and len(ids) + 1 + self._window < self._room:
            behind = yield Request(Baseline(Warp(), "draft"), [*ids, token], self._window, CertainRng())
            tokens += behind.token_ids
        target, _ = yield ScoreRequest("target", ids, tokens)
        draft, _ = yield ScoreRequest("draft", ids, [])
        choices = [int(each) for each in UNIT_TEMPERATURE.first(target).tolist()]
        agrees = len(tokens) > self._window and choices[1 : len(tokens)] == tokens[1:]
        return MismatchPlace(_distribution(target[:1]), _distribution(draft[:1]), token, agrees)


def _distribution(logits: Any) -> np.ndarray:
    """The distribution of temperature 1 on the host: [1, V] in float64."""
    result: np.ndarray = UNIT_TEMPERATURE(np.array(logits.tolist(), dtype=np.float64))
    return result
