"""Task `prompts`: a JSONL file of one's own, one object a line, with "prompt" and, if it can be checked, "answer".

    {"prompt": "What is 2 + 3? End with #### and the number.", "answer": "5", "id": "sum-1"}

An output's answer is what follows the last `####` or `The final answer is` on its line. Ids default to the line number.
"""

from __future__ import annotations

import re

from specexp.errors import TaskError
from specexp.tasks.example import Dataset, Example
from specexp.tasks.source import DataConfig, Row, Rows, first_twice, read, text_of

KEYS = {"prompt", "answer", "id"}
ANSWER = re.compile(r"(?:####|[Tt]he final answer is:?)[ \t]*([^\n]*)")


class Prompts:
    """The prompts of a file. Rows are read and checked at once."""

    name = "prompts"

    def __init__(self, config: DataConfig) -> None:
        self._rows: Rows = read(config)
        self._examples = [_example(row) for row in self._rows.rows]
        if twice := first_twice(example.prompt_id for example in self._examples):
            raise TaskError(f"{config.source}: id {twice!r} is given twice; every prompt needs its own.")

    def examples(self, limit: int) -> list[Example]:
        return self._examples[:limit]

    def extract(self, text: str, finished: bool) -> str | None:
        return extract_answer(text, finished)

    def dataset(self) -> Dataset:
        return self._rows.dataset(self.name)


def extract_answer(text: str, finished: bool = True) -> str | None:
    """What stands behind the last mark on its line, or None; in an unfinished text that line must have ended."""
    matches = list(ANSWER.finditer(text))
    if not matches or (not finished and matches[-1].end() == len(text)):
        return None
    return normal(matches[-1].group(1)) or None


def normal(answer: str) -> str:
    """An answer without what is not part of it: a final period, a currency sign, commas between digits."""
    bare = answer.strip().rstrip(".").strip().removeprefix("$")
    return re.sub(r"(?<=\d),(?=\d{3})", "", bare)


def _example(row: Row) -> Example:
    if unknown := sorted(row.values.keys() - KEYS):
        raise TaskError(f"{row.where}: unknown key '{unknown[0]}'. Known: {', '.join(sorted(KEYS))}.")
    answer = row.values.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise TaskError(f"{row.where}: 'answer' is {answer!r}; it must be a text or a number, or be left out.")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)  # a column of whole numbers with a gap in it comes as floats
    gold = None if answer is None or answer != answer else normal(str(answer))
    return Example(str(row.values.get("id", f"line-{row.number}")), (text_of(row, "prompt"),), gold)
