"""The report's page: whole at any size, self-contained, and safe whatever texts it is given."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

import specexp
from helpers.comparisons import ONE, SIX, made_up, settings, twenty
from helpers.html_reading import Page, read
from specexp.config import MethodConfig
from specexp.evaluation.report import charts, html_page
from specexp.evaluation.report.charts import Chart
from specexp.evaluation.report.comparison import Comparison

EVIL = "<script>alert('ß')</script> & \"x\" " + "w" * 4000
FACTS = {
    "processor": EVIL, "platform": "p", "python": "3", "packages": {"numpy": "2"}, "commit": "", "dirty": False,
    "tokenizer": {"class": EVIL}, "models": {"target": {"model": EVIL, "threads": 1}},
}  # fmt: skip
FILES = {"environments": {"abc": FACTS}, "data": {"name": "prompts", "source": EVIL, "digest": "d", "num_rows": 1}}


def rendered(comparison: Comparison, folder: Path, **files: object) -> Page:
    """The page with its figures' numbers, and bytes in place of the figures."""
    (folder / "x.png").write_bytes(b"no picture")
    drawn = [Chart(name, title, caption, folder / "x.png") for name, (title, caption, _) in charts.CHARTS.items()]
    return embedded(comparison, drawn, **files)


def embedded(comparison: Comparison, drawn: Sequence[Chart], **files: object) -> Page:
    facts = html_page.Folder(files, [("tokens.html", "tokens")], ["command " + EVIL], ["warning " + EVIL])
    return read(html_page.render(comparison, facts, drawn))


@pytest.mark.parametrize("name,num_prompts", [(ONE, 1), (ONE, 3), (SIX, 1), (SIX, 3), (SIX, 500), ("twenty", 40)])
def test_it_is_whole_with_few_and_many(name: str, num_prompts: int, tmp_path: Path) -> None:
    methods = twenty() if name == "twenty" else settings(name)
    page = rendered(made_up(methods, num_prompts), tmp_path)
    for method in methods:
        assert method.label in page.text
    rows = [shown for shown in page.numbers if shown.metric == "speed/tokens_per_second"]
    assert {shown.run for shown in rows} >= {method.label for method in methods}
    assert "nan" not in {shown.text.lower() for shown in page.numbers}
    assert "None" not in page.text
    assert all(shown.agrees() for shown in page.numbers)


@pytest.mark.parametrize(
    "more",
    [{"repeats": 3}, {"batch": 4}, {"graded": False}, {"graded": False, "temperature": 0.7}],
    ids=["repeats", "a batch", "nothing graded", "sampled"],
)
def test_it_is_whole_in_every_kind_of_run(more: dict[str, object], tmp_path: Path) -> None:
    for methods in (SIX, "speculative,topk"):
        page = rendered(made_up(settings(methods), 6, **more), tmp_path)  # type: ignore[arg-type]
        speed = "batch/" if "batch" in more else "speed/"
        sections = {shown.metric.partition("/")[0] + "/" for shown in page.numbers}
        assert speed in sections
        assert ({"batch/", "speed/"} - {speed}).isdisjoint(sections)
        assert ("accuracy" in {shown.metric.partition("/")[2] for shown in page.numbers}) == more.get("graded", True)


def test_texts_of_others_are_shown_and_do_nothing(tmp_path: Path) -> None:
    methods = [MethodConfig("baseline", "b", "baseline"), MethodConfig("topk", "t", EVIL, gamma=2, accept_k=2)]
    comparison = made_up(methods, 30, prompt=EVIL + "{}", name=EVIL, pair=EVIL)
    page = rendered(comparison, tmp_path, **FILES)
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 8
    assert "Answers that changed" in page.text


def test_nothing_is_fetched_from_elsewhere(tmp_path: Path) -> None:
    made = made_up(settings(SIX), 6)
    page = embedded(made, charts.draw(made, tmp_path))
    assert page.addresses == [*(["tokens.html"]), *(a for a in page.addresses if a.startswith("data:image/png"))]
    assert len(page.addresses) == 1 + len(charts.CHARTS)
    assert "link" not in page.tags


def test_the_templates_ship_with_the_package() -> None:
    root = Path(specexp.__file__).parents[1]
    shipped = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["specexp"]
    files = {path for pattern in shipped for path in (root / "specexp").glob(pattern)}
    templates = {path for path in (root / "specexp/evaluation").rglob("templates/*") if path.is_file()}
    assert {path.name for path in templates} == {"report.html", "tokens.html.j2"}
    assert templates <= files


def test_judges_and_costs_are_told(tmp_path: Path) -> None:
    judge = {"weights": "w" * 64, "kind": "mlp", "features": "target", "threshold": 0.25}
    costs = {"context": 90, "draft": 0.001, "target": {"1": 0.01, "17": 0.02, "9": 0.015}, "tree_draft": {},
             "tree_target": {"33": 0.03}}  # fmt: skip
    shares = {"num_prompts": 1, "max_new_tokens": 16, "seconds": {}}
    made = made_up(settings(SIX), 6)
    page = rendered(made, tmp_path, judges={"models:/<b>@x": judge}, costs=costs, shares=shares)
    assert "models:/<b>@x: mlp on target, calibrated threshold 0.25" in page.text
    told = {shown.metric: shown.text for shown in page.numbers if shown.run == "costs.json"}
    assert told == {
        "costs/draft": "1.00 ms", "costs/target/1": "10.00 ms", "costs/target/9": "15.00 ms",
        "costs/target/17": "20.00 ms", "costs/tree_target/33": "30.00 ms",
    }  # fmt: skip
    assert "an instrumented run of 1\nprompt, 16 tokens each" in page.text


def test_it_needs_no_interval_and_warns_of_nothing_on_three_prompts() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in (1, 2, 3):
            for entry in made_up(settings(SIX), n).entries:
                assert all(value == value and abs(value) != float("inf") for value in entry.metrics.values())
                assert ("accept/mean_length_low" in entry.metrics) == (
                    n > 1 and entry.config.method not in ("baseline", "draft_only")
                )
