"""The helper's `transformers serve` answers as `generate` does: tests of certificates start it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip(
    "openai", reason="openai is not installed, which transformers serve wants; make test-served runs this"
)

import specexp
from helpers.transformers_serve import transformers_serving
from specexp.tasks.task import task

pytestmark = pytest.mark.slow


def test_transformers_serve_gives_the_greedy_tokens_of_generate(tmp_path: Path) -> None:
    pair = specexp.load("arith_quick")
    prompts = [example.turns[0] for example in task("arith").examples(3)]
    with transformers_serving(tmp_path) as server:
        for prompt in prompts:
            out = pair.generate(prompt, "baseline", max_new_tokens=24, temperature=0)
            answer = server.ask({"prompt": prompt, "max_tokens": 24, "temperature": 0})
            assert answer["choices"][0]["text"] == out.text
            assert answer["usage"]["completion_tokens"] == len(out.token_ids)
