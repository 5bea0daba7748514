"""Task `gsm8k`: grade-school word problems (Cobbe et al. 2110.14168), without solved examples, or
after some: eight of its own, or rows of a person's choice.

Rows have `question` and `answer`; the gold number follows `####` in `answer`. An output's answer is the number after
the last `The final answer is` or `####`; an output without either has no answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from specexp.answers import numbers
from specexp.answers.comparators import CANONICAL
from specexp.answers.rules import marked
from specexp.errors import TaskError
from specexp.tasks.conversations import NO_SHOTS, Shots
from specexp.tasks.example import Comparator, Dataset, Example, checked
from specexp.tasks.source import DataConfig, Row, Rows, read, text_of

SHOTS = (0, 8)
INSTRUCTION = 'Solve the problem step by step. End with "The final answer is N", where N is a number.'

# The eight solved problems of chain-of-thought prompting (Wei et al. 2201.11903, appendix, CC BY 4.0).
COT = (
    (
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, there"
        " will be 21 trees. How many trees did the grove workers plant today?",
        "There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have been"
        " 21 - 15 = 6.",
        "6",
    ),
    (
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
        "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5.",
        "5",
    ),
    (
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
        "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, they"
        " had 74 - 35 = 39.",
        "39",
    ),
    (
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did Jason"
        " give to Denny?",
        "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = 8.",
        "8",
    ),
    (
        "Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does he have now?",
        "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 + 4 = 9.",
        "9",
    ),
    (
        "There were nine computers in the server room. Five more computers were installed each day, from monday to"
        " thursday. How many computers are now in the server room?",
        "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 = 20 computers were"
        " added. 9 + 20 is 29.",
        "29",
    ),
    (
        "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. How many golf balls"
        " did he have at the end of wednesday?",
        "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After losing 2 more, he had"
        " 35 - 2 = 33 golf balls.",
        "33",
    ),
    (
        "Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
        "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 dollars left."
        " 23 - 15 is 8.",
        "8",
    ),
)


def own_shots(count: int) -> Shots:
    """Return the first of the eight solved problems."""
    return Shots(tuple((ask(q), f"{reason} The final answer is {n}.") for q, reason, n in COT[:count]))


class GSM8K:
    """The task after solved examples, or without any. The constructor reads and checks all rows."""

    name = "gsm8k"
    comparator: Comparator = CANONICAL

    def __init__(self, config: DataConfig, shots: Shots = NO_SHOTS) -> None:
        self._shots = shots
        self._rows: Rows = read(config)
        self._examples = shots.precede(
            checked(
                self._rows.rows,
                lambda row: Example(f"gsm8k-{row.number}", (ask(text_of(row, "question")),), gold(row)),
            )
        )
        self.notes = self._rows.unused(("question", "answer"))

    def examples(self, limit: int) -> Sequence[Example]:
        return self._examples[:limit]

    def extract(self, text: str, finished: bool, gold: str | None = None) -> str | None:
        return extract_answer(text, finished)

    def dataset(self) -> Dataset:
        return self._shots.mark(self._rows.dataset(self.name))


def ask(question: str) -> str:
    """Return a problem as the model's prompt."""
    return f"{question.strip()}\n{INSTRUCTION}\n"


def worded(solution: str) -> str:
    """Return the solution of a row with the ending that `INSTRUCTION` asks for."""
    reason, mark, number = solution.rpartition("####")
    return f"{reason.rstrip()}\nThe final answer is {number.strip()}." if mark else solution


def extract_answer(text: str, finished: bool = True) -> str | None:
    """Return the canonical number after the last marker, or None. An unfinished text may end inside its number."""
    return marked(text, finished)[1]


def gold_of(text: str) -> str | None:
    """Return the number after `####` at the end of a reference, or None if it does not end that way."""
    _, mark, number = text.rpartition("####")
    return numbers.whole(number) if mark else None


def gold(row: Row) -> str:
    """Return the gold number of a row's `answer`. Raises TaskError."""
    answer = gold_of(text_of(row, "answer"))
    if answer is None:
        raise TaskError(f"{row.where}: 'answer' must end with #### and a number.")
    return answer
