"""How many prompts a second are decoded, several together or one at a time: same prompts, methods and models, greedy.

Whole passes over the prompts are timed, prefill included, interleaved, in an order that rotates from repeat to repeat.
The outputs of both sizes are compared afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

from specexp.decoding.rng import CertainRng
from specexp.engine import Engine, Request
from specexp.errors import PromptError
from specexp.evaluation.equality import Difference, differences
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.timing import SpecexpContender, rotated
from specexp.lm import out_of_memory
from specexp.lm.hf.hf_model import HFModel
from specexp.metrics.statistics import Timed, rate, rate_ratio
from specexp.storage.journal import Journal, Key

BATCHES = 3  # at least so many batches of prompts: a row that is done takes the next prompt
WARM_UP_TOKENS = 8
Pass = tuple[str, int]  # name of a method, prompts together


@dataclass(frozen=True, slots=True)
class Batched:
    """Seconds of each pass by repeats, over `num_prompts`, one at a time and `size` together."""

    size: int
    num_prompts: int
    seconds: Mapping[Pass, Sequence[float]]
    differences: Sequence[Difference]

    def as_json(self) -> dict[str, Any]:
        methods = {}
        for name in dict.fromkeys(name for name, _ in self.seconds):
            alone, together = (Timed([self.num_prompts], [self.seconds[name, size]]) for size in (1, self.size))
            methods[name] = {
                "prompts_per_second_alone": asdict(rate(alone)),
                "prompts_per_second": asdict(rate(together)),
                "speedup": asdict(rate_ratio(together, alone)),
            }
        return {"size": self.size, "prompts": self.num_prompts, "methods": methods}


class Batching:
    """Times these methods at both sizes, a turn at a time. Turns are spread in time, since other load is temporary.

    Raises ModelError when memory runs out.
    """

    def __init__(
        self,
        prepared: Prepared,
        contenders: Sequence[SpecexpContender],
        size: int,
        bar: Any,
        journal: Journal | None = None,
    ) -> None:
        self._prepared, self._size, self._bar = prepared, size, bar
        self._journal = Journal() if journal is None else journal
        self._prompts = _prompts(prepared, BATCHES * size)
        self._passes: list[tuple[SpecexpContender, int]] = list(product(contenders, (1, size)))
        self._seconds: dict[Pass, list[float]] = {(contender.name, batch): [] for contender, batch in self._passes}
        self._outputs: dict[str, list[list[int]]] = {}
        last = num_turns(prepared) - 1
        if all(_key(contender, batch, last) in self._journal for contender, batch in self._passes):
            return
        for contender, batch in self._passes:
            _pass(prepared, contender, batch, dict(list(self._prompts.items())[:size]), WARM_UP_TOKENS)

    def turn(self) -> None:
        """Time every pass once, starting with a different one than the previous turn."""
        done = len(self._seconds[self._passes[0][0].name, 1])
        for contender, batch in rotated(self._passes, done, 0):
            self._bar.set_postfix_str(named(contender.name, batch))
            limit = self._prepared.experiment.max_new_tokens
            run = partial(_pass, self._prepared, contender, batch, self._prompts, limit)
            taken, result = self._journal.unit(_key(contender, batch, done), run)
            self._seconds[contender.name, batch].append(taken)
            self._outputs[named(contender.name, batch)] = result
            self._bar.update()

    def result(self) -> Batched:
        """All turns, and the differences between the outputs of both sizes."""
        model = self._prepared.pair.models["target"]
        assert isinstance(model, HFModel)
        reference = named(self._passes[0][0].name, 1)
        unequal = differences(self._prepared.pair, model.module.dtype, self._prompts, self._outputs, reference)
        return Batched(self._size, len(self._prompts), self._seconds, unequal)


def _key(contender: SpecexpContender, batch: int, turn: int) -> Key:
    return "batch", contender.name, batch, turn


def num_passes(prepared: Prepared, num_contenders: int) -> int:
    return 2 * num_contenders * num_turns(prepared)


def num_turns(prepared: Prepared) -> int:
    """Half as many as repeats of single prompts: a pass is long."""
    return max(1, prepared.experiment.repeats // 2)


def named(name: str, size: int) -> str:
    return name if size == 1 else f"{name}_batch{size}"


def _prompts(prepared: Prepared, most: int) -> dict[str, list[int]]:
    """The prepared prompts, and more of the task if it has more that fit."""
    result = {example.prompt_id: ids for example, ids in zip(prepared.examples, prepared.prompts, strict=True)}
    engine = Engine(prepared.pair.models)
    for example in prepared.task.examples(max(most, len(result))):
        if example.prompt_id in result:
            continue
        ids = prepared.pair.text.encode(example.messages())
        try:
            engine.output_limit(ids, prepared.experiment.max_new_tokens)
        except PromptError:
            continue
        result[example.prompt_id] = ids
    return result


def _pass(
    prepared: Prepared, contender: SpecexpContender, batch: int, prompts: Mapping[str, list[int]], limit: int
) -> tuple[float, list[list[int]]]:
    """Seconds over all prompts, and the output of each."""
    engine = Engine(prepared.pair.models, prepared.pair.eos_ids, max_batch_size=batch)
    prepared.pair.models["target"].wait()
    start = time.perf_counter()
    what = f"{contender.name}, {batch} prompts at a time"
    with out_of_memory.translate_oom(what, "batch or max_new_tokens", prepared.experiment.models):
        decoder, rng = contender.setting.decoder, CertainRng()
        requests = (Request(decoder, ids, limit, rng, name=name) for name, ids in prompts.items())
        result = dict(engine.generate_all(requests))
    return time.perf_counter() - start, [result[place].token_ids for place in range(len(prompts))]
