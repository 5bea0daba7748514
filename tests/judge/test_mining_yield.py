"""What mining says of its labels: what was left out, and which length or how many prompts would do."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from entrypoints import collect_labels, train_judge
from helpers.cli_runner import invoke, runs
from helpers.judges import label_set
from specexp.errors import JudgeError
from specexp.judge import features, mining_yield, splits
from specexp.judge.labels import Label, LabelSet
from specexp.judge.mining import MINED, NO_ANSWER, UNFINISHED
from specexp.judge.mining_yield import Yield
from specexp.judge.splits import SPLITS, filled, kinds_of, num_fillable, split_of
from specexp.judge.training import Splits


def label(prompt: str, important: bool | None, split: str = "") -> Label:
    return Label(prompt, 0, 1, 2, " a", " b", important, "4", None, split or split_of(prompt))


def both(prompt: str, split: str = "train") -> list[Label]:
    return [label(prompt, True, split), label(prompt, False, split)]


def test_a_full_set_keeps_every_prompt_where_its_id_puts_it() -> None:
    labels = [each for n in range(200) for each in both(f"p{n}", split_of(f"p{n}"))]
    assert filled(labels) == labels


def test_no_split_is_left_without_a_kind_while_prompts_can_fill_it() -> None:
    """Over small sets of every make-up: filled exactly where it is possible, by few moves, the same ones each time."""
    rng = random.Random(0)
    kinds: list[list[bool | None]] = [[None], [True], [False], [True, False]]
    checked = 0
    for case in range(800):
        labels = [
            label(f"{case}-{n}", important, split)
            for n in range(rng.randint(3, 9))
            for split in [rng.choice([*SPLITS, "train", "train"])]
            for important in rng.choice(kinds)
        ]
        result = filled(labels)
        assert result == filled(labels) == filled(result)
        assert [replace(each, split="") for each in result] == [replace(each, split="") for each in labels]
        assert len({(each.prompt_id, each.split) for each in result}) == len({each.prompt_id for each in labels})
        whole = not list(splits.lacking(result))
        if num_fillable(kinds_of(labels)) >= len(SPLITS):
            checked += 1
            assert whole, labels
        else:
            assert result == labels, "what cannot be filled stays as it is"
            assert not whole
    assert checked > 60


def test_how_many_splits_can_be_filled_is_what_trying_finds() -> None:
    def by_trial(kinds: list[frozenset[bool]]) -> bool:
        return any(
            all(frozenset().union(*(k for k, at in zip(kinds, places, strict=True) if at == s)) == splits.BOTH
                for s in range(4))
            for places in product(range(4), repeat=len(kinds))
        )  # fmt: skip

    choices = [frozenset((True, False)), frozenset((True,)), frozenset((False,))]
    rng = random.Random(0)
    for _ in range(60):
        kinds = [rng.choice(choices) for _ in range(rng.randint(3, 6))]
        assert (num_fillable(dict(enumerate(kinds))) >= 4) == by_trial(kinds)  # type: ignore[arg-type]


def test_a_set_of_before_is_filled_as_it_is_read_and_its_files_stay(tmp_path: Path) -> None:
    made = label_set(tmp_path / "made", num_prompts=8)
    old = tmp_path / "old"
    old.mkdir()
    LabelSet([replace(each, split="train") for each in made.labels], made.features, made.manifest).write(old)
    filled_set = LabelSet.read(old)
    assert not list(splits.lacking(filled_set.labels))
    assert set(pyarrow.parquet.read_table(old / "labels.parquet").column("split").to_pylist()) == {"train"}
    Splits.of(filled_set, features.mode("target"))


def test_training_says_what_is_missing_and_how_many_prompts_more(tmp_path: Path) -> None:
    made = label_set(tmp_path / "labels", num_prompts=40)
    kept = {f"made-up-{n}" for n in range(3)}
    rows = [i for i, each in enumerate(made.labels) if each.prompt_id in kept]
    # Three prompts with both kinds; 17 of 26 did not end.
    labels = [replace(made.labels[i], important=n % 2 == 0) for n, i in enumerate(rows)]
    manifest = {**made.manifest, "num_prompts": 26, "counts": {"num_unfinished": 17}}
    few = LabelSet(labels, {part: x[rows] for part, x in made.features.items()}, manifest)
    with pytest.raises(JudgeError) as caught:
        Splits.of(few, features.mode("both"))
    said = str(caught.value)
    assert "has 0 mismatches, 0 of them important; a judge needs both kinds in every split" in said
    assert "Of 26 prompts 3 have both kinds, 0 important mismatches alone and 0 unimportant ones alone" in said
    assert "enough for 3 of 4 splits. Mine about 9 more prompts" in said
    assert "or raise max_new_tokens, at which 17 of them did not end." in said
    none = LabelSet([replace(each, important=None) for each in labels], few.features, {**manifest, "counts": {}})
    with pytest.raises(JudgeError, match="enough for 0 of 4 splits. Mine about 26 more prompts.$".replace(".", r"\.")):
        Splits.of(none, features.mode("both"))


def seen(lengths: list[int], limit: int, undecided: int = 0) -> Yield:
    """What mining would have seen of responses of these lengths."""
    result = Yield()
    for number, length in enumerate(lengths):
        ended = length < limit
        swaps = [label(f"p{number}", None if number < undecided else True)] if ended else []
        result.add(swaps, {"num_tokens": min(length, limit)}, MINED if ended else UNFINISHED)
    return result


def test_the_length_that_would_do_is_told_from_those_that_ended() -> None:
    rng = np.random.default_rng(0)
    lengths = [int(x) for x in rng.lognormal(np.log(200), 0.5, 400)]
    true = 200 * np.exp(0.5 * 1.645)  # within which 95 % end
    for limit in (160, 220, 300):
        assert seen(lengths, limit).enough_tokens(limit) == pytest.approx(true, rel=0.2)
    assert seen(lengths, 2000).enough_tokens(2000) == pytest.approx(true, rel=0.2)
    assert seen([500] * 10, 220).enough_tokens(220) == 448, "of none that ended nothing is told but that it is more"
    assert seen([30, 40, 50, 60, 70, 80], 220, undecided=3).enough_tokens(220) >= 330, "swaps did not end"
    wild = seen([1, 1, 1, 1, 2, 9000, 9000, 9000, 9000, 9000], 220)
    assert wild.enough_tokens(220) <= 32 * -(-mining_yield.MOST * 220 // 32)


def test_most_of_the_first_prompts_coming_to_nothing_is_worth_a_warning() -> None:
    fine = seen([50, 60, 70, 80, 90, 100], 220)
    assert fine.early_warning(220) == ""
    bad = seen([150, 160, 300, 300, 300, 300], 220)
    assert bad.early_warning(220).startswith("of the first 6 prompts 4 did not end within max_new_tokens (220)")
    assert "raise max_new_tokens to about 448, and mine again." in bad.early_warning(220)
    mute = Yield()
    for _ in range(10):
        mute.add([], {"num_tokens": 20}, NO_ANSWER)
    assert "10 had no answer that could be read" in mute.early_warning(220)
    assert "max_new_tokens" not in mute.early_warning(220)
    torn = seen([50, 60, 70], 220, undecided=2)
    assert "2 of 3 swaps were left undecided" in torn.early_warning(220)


def test_mining_tells_at_its_end_and_at_the_tenth_prompt_what_it_is_worth(workplace: Path) -> None:
    """At 60 tokens half of the embedded target's responses end, and what is swapped in often goes on beyond them."""
    arguments = ["--limit", "12", "--max-new-tokens", "60", "--output", "labels"]
    result = invoke(collect_labels.command, *arguments)
    assert result.exit_code == 0, result.output
    manifest = json.loads((workplace / "labels/manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["num_unfinished"] >= 6, "the case that is looked at"
    assert "of the first 10 prompts" in result.stderr
    assert "raise max_new_tokens to about" in result.stderr
    out = result.stdout
    assert f"{counts['num_unfinished']} of 12 prompts did not end within max_new_tokens (60) and gave no labels" in out
    assert f"about {manifest['enough_tokens']} would let nearly all end" in out
    assert 64 <= manifest["enough_tokens"] <= 192, "the embedded target ends within 120"
    labels = LabelSet.read(workplace / "labels")
    undecided = sum(each.important is None for each in labels.labels)
    assert counts["num_undecided"] == undecided
    assert f"undecided swaps  {undecided}" in out
    (run,) = runs()
    assert run.data.metrics["labels/unfinished_swaps"] == undecided
    assert run.data.metrics["labels/undecided_share"] == pytest.approx(undecided / len(labels.labels))
    assert ("swaps are undecided" in out) == (undecided >= 0.1 * len(labels.labels))
    (missing,) = [x.partition("train_judge will refuse these labels: ")[2] for x in out.splitlines() if "refuse" in x]
    refused = invoke(train_judge.command, "--labels", "labels", "--output", "judge")
    assert (refused.exit_code, refused.output) == (2, f"error: {missing}\n")
    again = invoke(collect_labels.command, *arguments, "--resume")
    assert [x for x in again.stdout.splitlines() if x.startswith("warning")] == [
        x for x in out.splitlines() if x.startswith("warning")
    ], "a finished set says the same"
