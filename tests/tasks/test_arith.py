"""Task `arith`: exact numbers, disjoint splits, and answers read from generated text only."""

from __future__ import annotations

import itertools
import re

import pytest

from specexp.errors import TaskError
from specexp.tasks import arith
from specexp.tasks.task import task


def take(split: str, count: int, seed: int = 0) -> list[arith.Problem]:
    return list(itertools.islice(arith.problems(split, seed), count))


def test_every_equation_of_a_solution_is_right_and_the_last_one_is_the_answer() -> None:
    for problem in take("train", 500):
        equations = re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", problem.solution)
        assert len(equations) == len(problem.numbers) // 2
        value = problem.numbers[0]
        steps = zip(problem.numbers[1::2], problem.numbers[2::2], strict=True)
        for (a, operator, b, result), (op, operand) in zip(equations, steps, strict=True):
            assert (int(a), operator, int(b)) == (value, op, operand)
            value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) // int(b)}[operator]
            assert int(result) == value
            assert operator != "/" or int(a) % int(b) == 0
        assert value == problem.answer
        assert arith.extract_answer(problem.solution) == str(problem.answer)


def test_splits_share_no_numbers() -> None:
    seen = {split: {p.numbers for p in take(split, 1500)} for split in arith.SPLITS}
    for a, b in itertools.combinations(arith.SPLITS, 2):
        assert not seen[a] & seen[b]
    for split, numbers in seen.items():
        assert all(arith.split_of(n) == split for n in numbers)
    assert sorted(itertools.chain(*arith.SPLITS.values())) == list(range(8)), "every problem has exactly one split"


def test_a_problem_depends_on_split_seed_and_index_alone() -> None:
    assert take("test", 20) == take("test", 20)
    assert take("test", 20)[7] == next(arith.problems("test", 0, 7))
    assert take("test", 5) != take("test", 5, seed=1)


def test_distinct_problems_extend_each_other() -> None:
    many = arith.distinct("test", 300)
    assert len({p.numbers for p in many}) == 300
    assert arith.distinct("test", 40) == many[:40]


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(TaskError, match="no split 'validation'"):
        next(arith.problems("validation"))


@pytest.mark.parametrize(
    "text,finished,answer",
    [
        ("so\n#### 42", True, "42"),
        ("so\n#### 42", False, None),  # the number may go on
        ("so\n#### 42\n", False, "42"),
        ("#### 1 then #### 007", True, "7"),
        ("#### -3", True, "-3"),
        ("the answer is 42", True, None),
        ("####", True, None),
        ("", True, None),
    ],
)
def test_extraction(text: str, finished: bool, answer: str | None) -> None:
    assert arith.extract_answer(text, finished) == answer


def test_the_task_asks_questions_without_their_solutions() -> None:
    for example, problem in zip(task("arith").examples(20), arith.distinct("test", 20), strict=True):
        assert example.answer == str(problem.answer)
        assert "####" not in example.turns[0]
        assert "=" not in example.turns[0]
