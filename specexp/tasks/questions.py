"""Tasks `mtbench`, `spec_bench` and `speed_bench`: questions by category, with one turn or more.

Rows have `question_id`, `category`, `turns` and sometimes `reference` (the hub's MT-Bench calls them `prompt_id` and
`prompt`). SPEED-Bench (Abramovich et al. 2604.09557) is read from a person's own copy, which its `prepare_data.py` has
filled: rows of the hub have placeholders for what its sources forbid to hand on.

Only Spec-Bench's `math_reasoning` is graded, against the number at the end of its reference. Open questions
have no gold answer here; for them, an evaluation reports agreement with plain decoding.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from specexp.answers import numbers
from specexp.answers.comparators import CANONICAL
from specexp.answers.rules import marked
from specexp.errors import TaskError, shown
from specexp.reading import BOM
from specexp.sequences.names import first_twice
from specexp.tasks import sampling
from specexp.tasks.conversations import NO_SHOTS, Shots
from specexp.tasks.example import Comparator, Dataset, Example, checked
from specexp.tasks.gsm8k import gold_of
from specexp.tasks.source import DataConfig, Row, Rows, name_of, read

# Spec-Bench's file (Xia et al. 2401.07851) begins with MT-Bench (Zheng et al. 2306.05685), in these categories.
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
CHECKED = "math_reasoning"
PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"
KEYS = ("question_id", "prompt_id", "category", "turns", "prompt", "reference")
# What SPEED-Bench has besides, about where a question comes from.
ABOUT = ("sub_category", "source", "src_id", "difficulty", "multiturn")


class Questions:
    """The questions of a file; if `categories` is given, those of other categories are left out."""

    comparator: Comparator = CANONICAL

    def __init__(
        self, name: str, config: DataConfig, categories: tuple[str, ...] = (), shots: Shots = NO_SHOTS
    ) -> None:
        self.name, self._shots = name, shots
        self._rows: Rows = read(config)
        examples = checked(self._rows.rows, lambda row: _example(name, row))
        if categories:
            examples = examples.at(array("q", (i for i, x in enumerate(examples) if x.category in categories)))
        if not examples:
            raise TaskError(f"data '{config}' holds no question of {name}'s categories ({', '.join(categories)}).")
        if twice := first_twice(example.prompt_id for example in examples):
            raise TaskError(
                f"data '{config}': question {shown(twice)} is given twice; every question needs its own id."
            )
        self._examples = shots.precede(examples)
        self.notes = self._rows.unused(KEYS + ABOUT if name == "speed_bench" else KEYS)

    def examples(self, limit: int) -> Sequence[Example]:
        return sampling.chosen(self._examples, limit)

    def selection(self, limit: int) -> str:
        return sampling.words(self._examples, limit)

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        """Return the number that a text marks as its answer, else the last number of a finished text: these prompts ask
        for no particular form."""
        result, said = marked(text, finished)
        return said if result or not finished else numbers.last(text)

    def dataset(self) -> Dataset:
        return self._shots.mark(self._rows.dataset(self.name))


def _example(task: str, row: Row) -> Example:
    result = row.values
    turns = result.get("turns", result.get("prompt"))
    if not isinstance(turns, list) or not turns:
        raise TaskError(f"{row.where}: 'turns' must be a list of one question or more, got {shown(turns)}.")
    if not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise TaskError(f"{row.where}: 'turns' must hold texts that are not empty.")
    if any(turn.startswith(PLACEHOLDER) for turn in turns):
        raise TaskError(
            f"{row.where}: 'turns' holds a placeholder, no question; fill your copy with prepare_data.py of NVIDIA's"
            " specdec_bench, and give the file that it writes."
        )
    category = str(result.get("category") or "")
    answer = None
    reference = result.get("reference")
    if category == CHECKED and isinstance(reference, list) and reference:
        answer = gold_of(str(reference[-1]))
        if answer is None:
            raise TaskError(f"{row.where}: 'reference' of a {CHECKED} question must end with #### and a number.")
    name = name_of(row, ("question_id", "prompt_id"), str(row.number))
    return Example(f"{task}-{name}", tuple(turn.removeprefix(BOM) for turn in turns), answer, category)
