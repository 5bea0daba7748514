"""What of a large run is looked at record by record: a sample of its prompts, the same whenever it is shown.

Metrics, intervals and tests against plain decoding are of all records, which are added up in passes over the files
(`summaries.py`). Figures by round, lists of answers, tests between two settings and the choice of prompts to show token
by token need records themselves: of more than `LARGE` prompts, they take those of `SAMPLE` prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

from specexp.evaluation.preparation import Prepared
from specexp.metrics.per_prompt import LARGE
from specexp.storage.records import Record

SAMPLE = 2_000


def sample(prepared: Prepared, records: Sequence[Record]) -> Sequence[Record]:
    """Return the records of the sample: all of them for up to `LARGE` prompts, else those of every k-th prompt."""
    total = len(prepared.examples)
    if not is_large(total):
        return records
    chosen = {prepared.examples[i * total // SAMPLE].prompt_id for i in range(SAMPLE)}
    return [record for record in records if record["prompt_id"] in chosen]


def is_large(num_prompts: int) -> bool:
    """True if only a sample of so many prompts is looked at record by record."""
    return num_prompts > LARGE


def words(num_prompts: int) -> str:
    """Say what of the report is of the sample, and what of all prompts."""
    return (
        f"{num_prompts:,} prompts are more than {LARGE:,}: figures of accepted tokens and trees, changed answers, tests"
        f" of one setting against another and the prompts to show are of a sample of {SAMPLE:,}, one in every"
        f" {num_prompts / SAMPLE:.0f}; metrics, their intervals and tests against plain decoding are of all prompts."
    )
