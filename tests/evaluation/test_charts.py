"""The comparison's figures: drawn where there is something to show, numbered without overlap, wide as the UI's pane."""

from __future__ import annotations

import random
import struct
from itertools import combinations
from pathlib import Path

import pytest

from helpers.comparisons import ONE, SIX, made_up, settings, twenty
from specexp.evaluation.report import charts
from specexp.evaluation.report.label_placement import places

ALL = {"frontier", "accepted", "positions", "time", "predicted"}


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file."""
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width, height


@pytest.mark.parametrize(
    "methods,expected", [(ONE, {"frontier", "time"}), (SIX, ALL), ("twenty", ALL)], ids=["one", "six", "twenty"]
)
def test_every_figure_that_has_something_to_show_is_drawn(methods: str, expected: set[str], tmp_path: Path) -> None:
    made = made_up(twenty() if methods == "twenty" else settings(methods), 5)
    drawn = charts.draw(made, tmp_path / "figures")
    assert {chart.name for chart in drawn} == expected
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {f"{name}.png" for name in expected}
    for chart in drawn:
        width, height = size(chart.path)
        assert width == 900
        assert 120 < height < 1400, chart.name


def test_without_plain_decoding_or_answers_the_figures_show_what_there_is(tmp_path: Path) -> None:
    drawn = {chart.name for chart in charts.draw(made_up(settings("speculative,topk"), 3, graded=False), tmp_path)}
    assert drawn == {"accepted", "positions", "time"}
    batched = {chart.name for chart in charts.draw(made_up(settings(SIX), 6, batch=2), tmp_path)}
    assert batched == {"frontier", "accepted", "positions"}


def test_lines_join_what_differs_in_one_dial() -> None:
    entries = made_up(twenty(), 3).entries
    lines = [[entry.label for entry in line] for line in charts._lines(entries)]
    assert ["speculative_k2", "speculative_k4", "speculative_k8", "speculative_k16"] in lines
    assert ["autojudge_k8_t0.01", "autojudge_k8_t0.1", "autojudge_k8_t0.3"] in lines
    assert ["topk_k16_top2", "topk_k16_top4"] in lines
    assert not any("baseline" in line for line in lines)


def test_shares_of_rounds_are_what_the_records_say() -> None:
    (entry,) = made_up(settings("speculative"), 4).entries
    shares, by_depth = charts.accepted_shares(entry), charts.shares_by_depth(entry)
    assert sum(shares) == pytest.approx(1)
    assert len(by_depth) == entry.config.gamma
    padded = [*shares, *[0.0] * (len(by_depth) + 1 - len(shares))]
    assert by_depth == pytest.approx([sum(padded[i:]) for i in range(1, len(by_depth) + 1)])


@pytest.mark.parametrize("count", [1, 6, 20, 40])
@pytest.mark.parametrize("spread", [0.0, 15.0, 200.0])
def test_labels_lie_neither_on_each_other_nor_on_a_point(count: int, spread: float) -> None:
    rng = random.Random(count)
    points = [(300 + rng.uniform(-1, 1) * spread, 250 + rng.uniform(-1, 1) * spread) for _ in range(count)]
    frame = (0.0, 0.0, 600.0, 500.0)
    labels = places(points, 16.0, 14.0, frame)
    for (x, y), (a, b) in combinations(labels, 2):
        assert abs(x - a) >= 16 - 1e-6 or abs(y - b) >= 14 - 1e-6, "two labels overlap"
    for x, y in labels:
        assert 8 <= x <= 592
        assert 7 <= y <= 493
        assert all(abs(x - px) > 8 or abs(y - py) > 7 for px, py in points), "a label lies on a point"
