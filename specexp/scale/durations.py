"""How long prompts take: seconds recorded in an evaluation, or the lengths of answers times seconds a token."""

from __future__ import annotations

import json
from pathlib import Path

from specexp.errors import ConfigError
from specexp.storage.numbered_files import LineReader, existing

CHARACTERS = 4.0  # a token, where a file has answers as text


def recorded(folder: Path) -> list[float]:
    """Return the seconds of each prompt with all settings and repeats, in the order of the records.

    Raises ConfigError if the folder has no records.
    """
    path = folder / "records.jsonl"
    result: dict[str, float] = {}
    if existing(path):
        for line in LineReader(path).all():
            record = json.loads(line)
            name = record["prompt_id"]
            result[name] = result.get(name, 0.0) + record["seconds"] + record["prefill_seconds"]
    if not result:
        raise ConfigError(f"records is '{folder}', which has no records.jsonl; name an evaluation's output folder.")
    return list(result.values())


def of_answers(path: Path, seconds_per_token: float, prefill_seconds: float) -> list[float]:
    """Return the seconds of each row of a JSON Lines file, from the length of its `answer`, such as GSM8K's.

    Raises ConfigError if the file cannot be read, or a row has no answer.
    """
    result = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                answer = json.loads(line).get("answer") if line.strip() else ""
                if not isinstance(answer, str):
                    raise ConfigError(f"lengths is '{path}', whose line {number} has no text in 'answer'; add it.")
                if answer:
                    result.append(prefill_seconds + len(answer) / CHARACTERS * seconds_per_token)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"lengths is '{path}', which cannot be read as JSON Lines ({error}).") from error
    if not result:
        raise ConfigError(f"lengths is '{path}', which has no rows; give a file with an 'answer' in each.")
    return result
