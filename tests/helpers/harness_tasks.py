"""Small tasks of lm-evaluation-harness on arith problems, as YAML and JSONL in a folder: no network, no hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from specexp.tasks import arith

REGEX = r"#### (\-?[0-9]+)"


def rows(split: str, count: int) -> list[dict[str, Any]]:
    return [
        {"question": problem.question, "solution": problem.solution, "answer": str(problem.answer), "choices": choices}
        for problem in arith.distinct(split, count)
        for choices in [[str(problem.answer), str(problem.answer + 10), "7", "many plums"]]
    ]


def task(folder: Path, name: str, **settings: Any) -> None:
    """Write one task: its settings laid over those that all of them share."""
    files = {split: str(folder / f"{split}.jsonl") for split in ("test", "train")}
    shared = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "fewshot_split": "train",
        "num_fewshot": 0,
        "doc_to_text": "{{question}}\n",
        "doc_to_target": "{{solution}}",
        "target_delimiter": "",
        "fewshot_delimiter": "\n",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**shared, **settings}))


def folder_of_tasks(folder: Path, count: int = 6) -> Path:
    """Write the tasks `generated`, `chosen`, `rolling` and more, of the first `count` test problems."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, number in (("test", count), ("train", 4)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(split, number)))
    exact = {
        "output_type": "generate_until",
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "regexes_to_ignore": [",", "(?s).*#### "],
            }
        ],
        "filter_list": [
            {"name": "strict", "filter": [{"function": "regex", "regex_pattern": REGEX}, {"function": "take_first"}]},
            {
                "name": "last",
                "filter": [
                    {"function": "regex", "regex_pattern": "(-?[0-9]+)", "group_select": -1},
                    {"function": "take_first"},
                ],
            },
        ],
    }
    greedy = {"do_sample": False, "temperature": 0.0}
    task(folder, "generated", **exact, generation_kwargs={"until": ["Question:"], "max_gen_toks": 96, **greedy})
    # Strings that tokens join with what precedes and follows: " gives" is a token, and so are digits.
    strings = {"until": ["ives 1", "=6", "s. ", "\n"], "max_gen_toks": 64, **greedy}
    task(folder, "stopped", **exact, num_fewshot=1, generation_kwargs=strings)
    task(folder, "short", **exact, generation_kwargs={"until": [], "max_gen_toks": 470, **greedy})
    accuracy = [{"metric": each, "aggregation": "mean", "higher_is_better": True} for each in ("acc", "acc_norm")]
    task(
        folder, "chosen", output_type="multiple_choice", doc_to_text="{{question}} The answer is",
        doc_to_choice="{{choices}}", doc_to_target=0, target_delimiter=" ", metric_list=accuracy,
    )  # fmt: skip
    perplexity = [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}]
    task(
        folder, "rolling", output_type="loglikelihood_rolling", doc_to_text="",
        doc_to_target="{{question}} {{solution}} {{question}} {{solution}} {{question}} {{solution}} {{question}}"
        " {{solution}} {{question}} {{solution}} {{question}} {{solution}}", metric_list=perplexity,
    )  # fmt: skip
    return folder
