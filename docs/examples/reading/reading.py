"""Spec-Bench's reading questions as a graded task: rows for task `prompts`, and the function that compares answers.

python reading.py spec_bench_question.jsonl > reading.jsonl
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

INSTRUCTION = "Answer the question at the end with one short sentence from the text."


def recall(answer: str, gold: str) -> float:
    """Return the share of the gold answer's words that the answer has, of the best of its lines (ROUGE-1 recall)."""
    words = Counter(_words(answer))
    shares = [(Counter(line) & words).total() / len(line) for line in map(_words, gold.splitlines()) if line]
    return max(shares, default=float(not words))


def _words(text: str) -> list[str]:
    """Return the words without articles and punctuation, as SQuAD's evaluation reads them."""
    return [word for word in re.findall(r"\w+", text.lower()) if word not in ("a", "an", "the")]


def rows(path: Path) -> list[dict[str, str]]:
    """Return the questions of category `rag`, each with its reference answers in lines."""
    questions = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {"prompt": f"{INSTRUCTION}\n\n{each['turns'][0]}", "answer": "\n".join(each["reference"][0])}
        for each in questions
        if each["category"] == "rag"
    ]


if __name__ == "__main__":
    for row in rows(Path(sys.argv[1])):
        print(json.dumps(row))
