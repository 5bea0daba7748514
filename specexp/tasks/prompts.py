"""Task `prompts`: a JSONL file of one's own, one object a line, with "prompt" and, if it can be checked, "answer".

    {"prompt": "What is 2 + 3? End with #### and the number.", "answer": "5", "id": "sum-1"}

An output's answer is what follows the last `####` or `The final answer is` on its line. Ids default to the line number.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from specexp.errors import TaskError

KEYS = {"prompt", "answer", "id"}
ANSWER = re.compile(r"(?:####|[Tt]he final answer is:?)[ \t]*([^\n]*)")


def read(path: Path) -> list[dict[str, Any]]:
    """The file's rows, checked; raises TaskError that names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise TaskError(f"data file '{path}' cannot be read: {error.strerror or error}.") from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise TaskError(f"{path}: holds no prompt; give one JSON object a line.")
    ids = [row["id"] for row in rows]
    twice = next((i for i in ids if ids.count(i) > 1), None)
    if twice is not None:
        raise TaskError(f"{path}: id {twice!r} is given twice; every prompt needs its own.")
    return rows


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


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TaskError(f"{where}: not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise TaskError(f"{where}: must be an object with 'prompt', got {type(row).__name__}.")
    if unknown := sorted(row.keys() - KEYS):
        raise TaskError(f"{where}: unknown key '{unknown[0]}'. Known: {', '.join(sorted(KEYS))}.")
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise TaskError(f"{where}: 'prompt' must be a text that is not empty.")
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise TaskError(f"{where}: 'answer' is {answer!r}; it must be a text or a number, or be left out.")
    gold = None if answer is None else normal(str(answer))
    return {"id": str(row.get("id", f"line-{number}")), "prompt": row["prompt"], "answer": gold}
