"""The features that a version names: whoever changes them has to give them a new version."""

from __future__ import annotations

import numpy as np

from specexp.judge import features
from specexp.judge.labels import Label, LabelSet

ALL_SCALARS = ("draft_q", "target_entropy", "target_margin", "target_p")
# What each mode is made of, in its order, by version. A row is added here, none is changed.
PARTS_OF = {
    1: {
        **{
            f"{name}_scalars": (*parts, *scalars)
            for name, parts, scalars in (
                ("both", ("draft_token", "target_token"), ALL_SCALARS),
                ("target", ("target_token",), ALL_SCALARS[1:]),
                ("draft", ("draft_token",), ALL_SCALARS[:1]),
                ("both_previous", ("draft_previous", "target_previous"), ALL_SCALARS),
                ("target_previous", ("target_previous",), ALL_SCALARS[1:]),
                ("draft_previous", ("draft_previous",), ALL_SCALARS[:1]),
            )
        },
        "scalars": ALL_SCALARS,
        "both": ("draft_token", "target_token"),
        "target": ("target_token",),
        "draft": ("draft_token",),
        "both_previous": ("draft_previous", "target_previous"),
        "target_previous": ("target_previous",),
        "draft_previous": ("draft_previous",),
    },
}


def test_a_versions_features_never_change() -> None:
    assert {mode.name: mode.parts for mode in features.MODES.values()} == PARTS_OF[features.VERSION]


def label(prompt: str, split: str, important: bool | None) -> Label:
    return Label(prompt, 0, 1, 2, "a", "b", important, "1", "1", split)


def test_columns_stand_in_the_order_of_the_modes_parts() -> None:
    """Every part has its own width and its own values: a swapped or shifted column shows."""
    rows = [label("a", "train", True), label("b", "test", False), label("c", "train", None), label("d", "train", False)]
    widths = {part: 1 if part in ALL_SCALARS else i + 2 for i, part in enumerate(features.PARTS)}
    stored = {
        part: (100 * i + 10 * np.arange(len(rows))[:, None] + np.arange(width)).astype(np.float32)
        for i, (part, width) in enumerate(widths.items())
    }
    labels = LabelSet(rows, stored, {})
    for mode in features.MODES.values():
        x, important, chosen = labels.select(mode, "train")
        expected = np.concatenate([stored[part][[0, 3]] for part in PARTS_OF[features.VERSION][mode.name]], axis=1)
        assert x.tolist() == expected.tolist()
        assert important.tolist() == [True, False], "undecided mismatches are no labels"
        assert [each.prompt_id for each in chosen] == ["a", "d"]
        hidden = {"draft": widths["draft_token"], "target": widths["target_token"]}
        if "previous" not in mode.name:
            assert mode.size(hidden) == x.shape[1]
        assert mode.needs.feed_last_token == ("draft_token" in mode.parts)
        assert mode.needs.draft_q == ("draft_q" in mode.parts)
