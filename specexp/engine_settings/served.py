"""Arguments of every engine for one recommendation, as text for the terminal and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specexp.engine_settings import llama_cpp, sglang, tensorrt_llm, transformers_generate, vllm
from specexp.engine_settings.engine_arguments import EngineArguments
from specexp.engine_settings.recommendation import Recommendation
from specexp.storage import files

FILE, TEXT_FILE = "engines.json", "engines.txt"
WIDTH = 110
NOT_EXAMINED = (
    "Other engines, other code: these arguments make an engine draft like this; what it then puts out was not examined."
)
ENGINES: Mapping[str, Callable[[Recommendation], EngineArguments]] = {
    vllm.NAME: vllm.arguments,
    sglang.NAME: sglang.arguments,
    tensorrt_llm.NAME: tensorrt_llm.arguments,
    llama_cpp.NAME: llama_cpp.arguments,
    transformers_generate.NAME: transformers_generate.arguments,
}


def arguments(recommended: Recommendation) -> list[EngineArguments]:
    """The arguments of each engine, or its refusal."""
    return [make(recommended) for make in ENGINES.values()]


def as_json(recommended: Recommendation) -> dict[str, Any]:
    """Every engine's arguments, by its name, and what they are for."""
    return {
        "label": recommended.method.label,
        "method": recommended.method.method,
        "lossless": recommended.lossless,
        "note": NOT_EXAMINED,
        "engines": {each.engine: each.as_json() for each in arguments(recommended)},
    }


def text(recommended: Recommendation) -> str:
    """Each engine's command, the version that it was compared with, and what it does otherwise."""
    if recommended.toy:
        return "Arguments of engines: none, since no engine can load the toy pair."
    lines = [f"Arguments of engines for {recommended.method.label}:"]
    for each in arguments(recommended):
        lines += ["", f"{each.engine} (compared with {each.checked})"]
        if each.refusal:
            lines += _wrapped(each.refusal, "  ")
            continue
        lines += each.command.splitlines()  # without indentation, which would break the END of a shell document
        for sentence in each.differences:
            lines += _wrapped(sentence, "  - ")
    return "\n".join([*lines, "", *_wrapped(NOT_EXAMINED, "")])


def _wrapped(sentence: str, start: str) -> list[str]:
    return textwrap.wrap(
        sentence, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def write(recommended: Recommendation, folder: Path, show: Callable[[str], object]) -> None:
    """Write both files into `folder`, and show the text. Raises OutputError."""
    told = text(recommended)
    files.write_json(folder / FILE, as_json(recommended))
    files.write_whole(folder / TEXT_FILE, f"{told}\n")
    show(f"\n{told}\n")
