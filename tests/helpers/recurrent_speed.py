"""What going back to an earlier token costs models with a recurrent state: feeding tokens again, or a state per token.

`make recurrent-speed` prints the table of docs/models.md. A round verifies a chain of four drafts. *Replaying* feeds
the last round's accepted tokens and this round's five in one forward, after one copy of the state. *A state per token*
feeds the five one by one, each after a copy: transformers' modules keep no state but the last of a forward.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import transformers

from helpers import tiny_models
from helpers.family_speed import seconds, setting
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.recurrent_state import HFState

KINDS = (
    "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "lfm2", "mamba", "mamba2", "nemotron_h",
    "qwen3_5_text", "qwen3_next", "recurrent_gemma", "zamba", "zamba2",
)  # fmt: skip
PREFIX, ROUND, REPLAYED, REPEATS = 40, 5, 4, 30
# Of families whose other sizes do not have to follow: weights of some megabytes, so that reading them costs time.
WIDE: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 2048}
WIDENED = ("lfm2", "mamba", "qwen3_5_text", "qwen3_next")


def measured(module: Any, kind: str) -> tuple[float, float, float, float]:
    """Milliseconds of a step of one token, a copy, a round by replaying, and a round with a state per token."""
    model = HFModel(module, kind)
    ids = model.ids([(7 * i + i * i) % 90 + 3 for i in range(PREFIX + ROUND + REPLAYED)])
    state = HFState(model, model.continuation)
    state.advance(ids[:PREFIX], 0, 1, False)
    begun = state.copy()

    def step() -> None:
        state.advance(ids[PREFIX : PREFIX + 1], PREFIX, 1, False)

    def replayed() -> None:
        state.copy()
        state.advance(ids[PREFIX:], PREFIX, ROUND, False)

    def by_token() -> None:
        for i in range(ROUND):
            state.copy()
            state.advance(ids[PREFIX + i : PREFIX + i + 1], PREFIX + i, 1, False)

    best = [float("inf")] * 4
    for _ in range(REPEATS):
        for number, call in enumerate((step, state.copy, replayed, by_token)):
            state.restore(begun)
            best[number] = min(best[number], seconds(call) * 1000)
    return best[0], best[1], best[2], best[3]


def main(kinds: Sequence[str]) -> None:
    """Print the table, the setting first."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    print(f"a round of {ROUND} tokens, {REPLAYED} of them fed again, best of {REPEATS}, alternating, float32;")
    print(f"{setting()}\n")
    print("| family | hidden size | a step, ms | a copy, ms | a round by replaying, ms | with a state per token, ms |")
    print("|---|---|---|---|---|---|")
    for kind in kinds or KINDS:
        for sizes in ({}, WIDE) if kind in WIDENED else ({},):
            module = tiny_models.build(kind, **sizes)
            cells = " | ".join(f"{value:.2f}" for value in measured(module, kind))
            print(f"| `{kind}` | {module.config.get_text_config().hidden_size} | {cells} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
