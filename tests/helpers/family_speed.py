"""How much faster the native forward decodes than `generate()`, for each family, on tiny models on a CPU.

`make models-speed` prints the table of docs/models.md. Both sides run in one process, alternating; a figure is the
best of the repeats, since anything else that runs only adds time.
"""

from __future__ import annotations

import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from helpers import tiny_models
from helpers.block_cases import BUILT
from specexp.decoding.baseline import Baseline
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.lm.hf.hf_model import HFModel
from specexp.storage.environment import processor_name

PROMPT = [5, 6, 7, 8, 9, 10]
TOKENS, REPEATS = 60, 5


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def setting() -> str:
    """The machine and the versions that a table was measured with."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{processor_name()}, {torch.get_num_threads()} thread(s), {versions}"


def measured(kind: str) -> tuple[float, float]:
    """(`generate()`, native forward): milliseconds a token, greedy, prefill included."""
    module = tiny_models.build(kind)
    module.generation_config = GenerationConfig()
    model = HFModel(module, kind)
    assert model.native is not None, f"{kind}: {model.why_not_native}"
    engine = Engine({"target": model})
    settings = GenerationConfig(max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0)

    @torch.inference_mode()
    def generate() -> Any:
        mask = torch.ones(1, len(PROMPT)).long()
        return module.generate(torch.tensor([PROMPT]), attention_mask=mask, generation_config=settings)

    def native() -> Any:
        return engine.generate(Baseline(Warp()), PROMPT, TOKENS, CertainRng())

    times = [(seconds(generate), seconds(native)) for _ in range(REPEATS + 1)][1:]  # the first ones warm up
    theirs, ours = (min(side) * 1000 / TOKENS for side in zip(*times, strict=True))
    return theirs, ours


def main(kinds: Sequence[str]) -> None:
    """Print the table, the setting first."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    print(f"{TOKENS} tokens after {len(PROMPT)}, greedy, float32, best of {REPEATS}, alternating;")
    print(f"{setting()}\n")
    print("| family | `generate()`, ms a token | native forward, ms a token | times as fast |\n|---|---|---|---|")
    for kind in kinds or sorted(BUILT.values()):
        theirs, ours = measured(kind)
        print(f"| `{kind}` | {theirs:.2f} | {ours:.2f} | {theirs / ours:.1f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
