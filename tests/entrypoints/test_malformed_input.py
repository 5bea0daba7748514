"""Malformed files, odd paths and odd flags: one line that names value and place, exit code 2, and nothing written.

A table of (files, command, arguments, fragment of the message). What is refused here is refused before any model is
loaded and before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.cli_runner import is_refused, run, runs


class Bad(NamedTuple):
    """`files` are written first; `arguments` go to `command`, and `message` must be in its one line."""

    command: str
    arguments: list[str]
    message: str
    files: Mapping[str, bytes | str] = {}


def raw(text: str) -> bytes:
    """UTF-8, with halves of characters as they are."""
    return text.encode("utf-8", "surrogatepass")


def rows(name: str, content: bytes | str, message: str, task: str = "prompts") -> Bad:
    arguments = ["--task", task, "--data", name, "--output", "out"]
    return Bad("evaluate", arguments, message, {name: content})


def settings(content: bytes | str, message: str, command: str = "evaluate") -> Bad:
    arguments = ["mine.yaml"] if command == "validate" else ["--config", "mine.yaml"]
    return Bad(command, arguments, message, {"mine.yaml": content})


def flags(*arguments: str, message: str, command: str = "evaluate") -> Bad:
    return Bad(command, list(arguments), message)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
LATE = '{"prompt": "a"}\n' * 60  # rows before the bad one: none of them may be decoded
ROWS = {
    "half a character in a late row": rows(
        "a.jsonl", LATE + '{"prompt": "b\\ud800"}\n', "a.jsonl, line 61: 'prompt' holds '\\ud800', half of a character"
    ),
    "in an answer": rows("a.jsonl", '{"prompt": "a", "answer": "\\udfff"}', "line 1: 'answer' holds '\\udfff', half o"),
    "in an id": rows("a.jsonl", '{"prompt": "a", "id": "x\\ud800"}', "a.jsonl, line 1: 'id' holds '\\ud800', half of"),
    "in a key": rows("a.jsonl", '{"\\ud800": "a"}', "a.jsonl, line 1: a key holds '\\ud800', half of a character"),
    "in a turn": rows("a.jsonl", '{"turns": ["a", "\\ud800"]}', "line 1: 'turns[1]' holds '\\ud800'", "mtbench"),
    "in a JSON document": rows("a.json", '[{"prompt": "a"},\n {"prompt": "\\ud800"}]', "a.json: '[1].prompt' holds"),
    "a key twice": rows("a.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1: 'prompt' is given twice; give it once."),
    "a key twice in a document": rows("a.json", '[{"id": 1, "id": 2}]', "a.json: 'id' is given twice; give it once."),
    "an id that is none": rows("a.jsonl", '{"prompt": "a", "id": [1]}', "line 1: 'id' is [1]; it must be a text or a"),
    "an empty id": rows("a.jsonl", '{"prompt": "a", "id": " "}', "line 1: 'id' is ' '; it must be a text or a number"),
    "an id as number and text": rows(
        "a.jsonl", '{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}', "a.jsonl: id '1' is given twice; every"
    ),
    "a default id taken": rows(
        "a.jsonl", '{"prompt": "a", "id": "line-2"}\n{"prompt": "b", "id": null}', "id 'line-2' is given twice"
    ),
    "NaN": rows("a.jsonl", '{"prompt": "a", "answer": NaN}', "a.jsonl, line 1: not JSON: NaN is not a JSON value."),
    "a number without end": rows("a.jsonl", '{"prompt": "a", "answer": 1e999}', "line 1: 'answer' is inf; it must be"),
    "a number too long": rows("a.jsonl", '{"prompt": ' + "9" * 5000 + "}", "a.jsonl, line 1: not JSON: Exceeds the"),
    "5,000 deep": rows("a.jsonl", '{"prompt": ' + "[" * 5000 + "]" * 5000 + "}", "line 1: nested too deep. At most 10"),
    "100,000 deep": rows("a.jsonl", "[" * 100_000 + "]" * 100_000, "a.jsonl, line 1: nested too deep. At most 100 le"),
    "120 deep": rows("a.jsonl", '{"prompt": ' + "[" * 120 + "]" * 120 + "}", "line 1: nested too deep. At most 100"),
    "a deep document": rows("a.json", "[" * 100_000 + "]" * 100_000, "a.json: nested too deep. At most 100 levels"),
    "a document of numbers": rows("a.json", "[1]", "a.json, row 1: must be an object, got int."),
    "no rows in a document": rows("a.json", "[]", "a.json: holds no rows"),
    "UTF-16": rows("a.jsonl", "\ufeff{}".encode("utf-16-le"), "a.jsonl: not UTF-8 text (byte 0, as UTF-16 begins);"),
    "no UTF-8 in CSV": rows("a.csv", b"prompt,answer\na\xff,5\n", "a.csv: not UTF-8 text (byte 15); save it as UTF-8."),
    "no UTF-8 in JSON": rows("a.json", b'{"prompt": "\xff"}', "a.json: not UTF-8 text (byte 12); save it as UTF-8."),
    "a CSV row too long": rows("a.csv", "prompt,answer\na,5\nb,6,7\n", "a.csv, row 2: has 3 fields, but there are 2"),
    "CSV rows all too long": rows("a.csv", "prompt,answer\na,5,7\nb,6,7\n", "a.csv, row 1: has 3 fields, but there ar"),
    "a CSV column twice": rows("a.csv", "prompt,answer,answer\na,5,6\n", "a.csv: column 'answer' is given twice"),
    "an empty CSV": rows("a.csv", "", "a.csv: has no rows; give column names, and a row below them."),
    "a CSV of names alone": rows("a.csv", "prompt,answer\n", "a.csv: has no rows; give column names, and a row"),
    "upper case": rows("A.JSONL", '{"prompt": "\\ud800"}', "A.JSONL, line 1: 'prompt' holds '\\ud800'"),
    "no Parquet": rows("a.parquet", "x", "data 'a.parquet' cannot be loaded: Parquet file size is 1 bytes"),
    "a name of two lines": Bad("evaluate", ["--task", "gsm8k", "--data", "a\nb.jsonl"], "error: data file 'a b.jsonl'"),
}  # fmt: skip
SETTINGS = {
    "5,000 deep": settings("toy: " + "[" * 5000 + "]" * 5000, "mine.yaml: not valid YAML: nested deeper than 100 leve"),
    "100,000 deep": settings("toy: " + "[" * 100_000, "mine.yaml: not valid YAML: nested deeper than 100 levels (line"),
    "deep by indentation": settings("".join(" " * i + "a:\n" for i in range(150)), "nested deeper than 100 levels (li"),
    "deep by aliases": settings(
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 130)), "mine.yaml: nested too deep."
    ),
    "a bomb of aliases": settings(BOMB, "not valid YAML: more than 10,000 values, as aliases are followed (line 4,"),
    "a bomb, validated": settings(BOMB, "not valid YAML: more than 10,000 values, as aliases are", "validate"),
    "a bomb in one setting": settings(BOMB + "limit: *a8\n", "not valid YAML: more than 10,000 values, as aliases"),
    "an alias of itself": settings("toy: &a [*a]\n", "mine.yaml: not valid YAML: '*a' is part of itself (line 1, colu"),
    "too large a file": settings("#" + "x" * (1 << 20), "config file 'mine.yaml' has more than 1,048,576 bytes"),
    "a tag's bad value": settings("limit: !!bool x\n", "mine.yaml: not valid YAML: 'x'"),
    "a tag's bad date": settings("limit: !!timestamp x\n", "mine.yaml: not valid YAML: "),
    "half a character": settings('judge: "a\\ud800"\n', "mine.yaml: 'judge' holds '\\ud800', half of a character; giv"),
    "NUL": settings('target: "./a\\0b"\n', "target is './a\\x00b'; it holds a NUL character, which no name has."),
    "NUL in a model": settings('target: {model: "a\\0b"}\n', "model is 'a\\x00b': it holds a NUL character, which no"),
    "a number too long": settings("limit: " + "9" * 5000, "mine.yaml: not valid YAML: Exceeds the limit"),
    "a float too large": settings("temperature: 1" + "0" * 400, "it must be a number >= 0 (0 = greedy)."),
    "a value too long": settings("limit: [" + "x, " * 3000 + "]", "; it must be a whole number >= 1."),
    "a name too long": settings("pair: " + "x" * 5000, "unknown pair 'xxxxxxx"),
    "a folder": flags("--config", ".", message="config file '.' cannot be read: Is a directory."),
    "a device without end": flags("--config", "/dev/zero", message="config file '/dev/zero' has more than 1,048,576"),
    "a preset elsewhere": flags(
        "--methods", "../experiments/arith_quick", message="unknown method '../experiments/arith_quick'"
    ),
    "a preset too long": flags("--methods", "x" * 5000, message="unknown method 'xxxxx"),
    "a method too long": flags("--method", "x" * 5000, message="unknown method 'xxxxx", command="certify"),
}  # fmt: skip
LONG = "x" * 5000
FLAGS = {
    "no UTF-8 in an output": flags("--output", "a\udcff", message="output holds the byte 0xff, which is not UTF-8; gi"),
    "no UTF-8 in a target": flags("--target", "\udcfe", message="target holds the byte 0xfe, which is not UTF-8; give"),
    "no UTF-8 in a file": flags("\udcfe.yaml", message="files holds the byte 0xfe, which is not", command="validate"),
    "NUL in an output": flags("--output", "a\0b", message="output 'a\\x00b' is not a path: it holds a NUL character."),
    "NUL in a config": flags("--config", "a\0b", message="config file 'a\\x00b' is not a path: it holds a NUL"),
    "NUL in data": flags("--task", "gsm8k", "--data", "a\0", message="data is 'a\\x00'; it holds a NUL character"),
    "NUL in a judge": flags("--judge", "a\0b", message="judge is 'a\\x00b'; it holds a NUL character, which no name h"),
    "a long judge": flags("--judge", LONG, message="xxxxxx' is not a path: it is too long (5000 characters)."),
    "a long output": flags("--output", LONG, message="xxxxxx' is not a path: it is too long (5000 characters)."),
    "a long config": flags("--config", LONG, message="xxxxxx' is not a path: it is too long (5000 characters)."),
    "long data": flags("--task", "gsm8k", "--data", LONG, message="xxxxxx' is not a path: it is too long (5000"),
    "a long target": flags("--target", LONG, message="xxxxxx' is not a path: it is too long (5000 characters)."),
    "a home of nobody": flags("--config", "~nobody-at-all/x", message="config file '~nobody-at-all/x' is not a path"),
    "a judge by http": flags(
        "--judge", "http://me:secret@localhost:9/x",
        message="judge 'http://localhost:9/x' is an address of kind http, which is not read; give a folder,",
    ),
    "a judge in a bucket": flags("--judge", "s3://b/x", message="judge 's3://b/x' is an address of kind s3, which is"),
    "a judge that is a file": flags("--judge", "mlflow.db", message="judge 'mlflow.db' is a file; give the folder tha"),
    "a judge by no run": flags("--judge", "runs:/", message="judge 'runs:/' is not in the store at sqlite"),
    "a json in a folder": flags("--json", ".", message="json '.' cannot be written; name a fil", command="speed_check"),
    "a long json": flags("--json", LONG, message="is not a path: it is too long", command="speed_check"),
    "another long json": flags("--json", LONG, message="is not a path: it is too long", command="benchmark"),
    "labels too long": flags("--labels", LONG, message="is not a path: it is too long", command="train_judge"),
    "labels by http": flags("--labels", "http://x/y", message="labels 'http://x/y' is an addre", command="train_judge"),
    "NUL in an upload": flags("--output", "a\0", message="output 'a\\x00' is not a path: it holds", command="upload"),
    "a prompt of a mark": flags("\ufeff", message="the prompt is empty; give it some text.", command="generate"),
    "a target that is a file": flags("--target", "mlflow.db", message="'mlflow.db' is a file; give the folder "),
    "a prompt that does not fit": flags("Mia. " * 400, message="model's context is 512; shorten", command="generate"),
    "a prompt that leaves little": flags(
        "--max-new-tokens", "500", message="tokens of the target model's context; lower max", command="collect_labels"
    ),
    "endless repeats": flags("--repeats", "1" + "0" * 12, message="repeats is '1000000000000'; it must be at most"),
    "an endless batch": flags("--batch", "1" + "0" * 12, message="batch is '1000000000000'; it must be at most 4,096."),
    "an endless tree": flags("--tree-budget", "1" + "0" * 12, message="'1000000000000'; it must be at most 65,536."),
    "a large toy": flags("--experiment", "toy_quick", "--toy", "vocab_size=9999", message="it must be at most 4,096."),
    "a noisy toy": flags("--experiment", "toy_quick", "--toy", "draft_noise=1e308", message="number in [0, 1000000]"),
    "a toy's seed twice": flags("--experiment", "toy_quick", "--toy", "seed=1,seed=2", message="it must give each of"),
    "a length twice": flags("--gamma", "2,02", message="gamma is '2,02'; it must list each length only once."),
    "prompts without end": flags("--limit", "1" + "0" * 12, message="1000000000000 prompts of task 'arith' are asked"),
    "a skip without end": flags("--skip", "1" + "0" * 12, message="prompts of task 'arith'", command="collect_labels"),
    "a long gamma": flags("--gamma", "1000000", message="gamma is 1000000; with a context of 512 it must be at most 2"),
}  # fmt: skip
TABLE = {
    **{f"rows: {what}": bad for what, bad in ROWS.items()},
    **{f"settings: {what}": bad for what, bad in SETTINGS.items()},
    **{f"flags: {what}": bad for what, bad in FLAGS.items()},
}


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("what", TABLE)
def test_bad_input_is_refused_in_one_line(workplace: Path, unloaded: None, what: str) -> None:
    bad = TABLE[what]
    for name, content in bad.files.items():
        (workplace / name).write_bytes(raw(content) if isinstance(content, str) else content)
    before = files_in(workplace)
    is_refused(run(bad.command, *bad.arguments), bad.message)
    assert files_in(workplace) == before, "nothing is written"
    assert not runs()
