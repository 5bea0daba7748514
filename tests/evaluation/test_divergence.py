"""A run is called lossless only where its outputs are plain decoding's, or near ties explain those that are not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.cli_runner import comparison_runs, evaluate, flat_runs
from helpers.comparisons import made_up, settings
from specexp.decoding import chain, specexec
from specexp.evaluation import equality
from specexp.evaluation.divergence import Divergence
from specexp.evaluation.report import html_page, table
from specexp.evaluation.report.comparison import Comparison, Entry
from specexp.evaluation.report.divergence_text import mark, marks
from specexp.evaluation.report.formatting import plain
from specexp.evaluation.report.verdict import verdict

TOY = ["--experiment", "toy_quick", "--methods", "baseline,speculative,specexec", "--gamma", "2", "--limit", "4",
       "--max-new-tokens", "12"]  # fmt: skip


def planted(monkeypatch: pytest.MonkeyPatch, every: bool = True) -> None:
    """A chain that sometimes accepts one token too many."""
    right = chain.verify_greedy

    def wrong(logits: Any, drafted: Any, accepted_anyway: Any, num_drafted: Any) -> Any:
        result = right(logits, drafted, accepted_anyway, num_drafted)
        if len(drafted) > 1 and not bool(result.overlap[0]):
            tokens = result.tokens.copy()
            tokens[0] = drafted[0]
            return type(result)(tokens, result.num_accepted, result.judged, result.overlap)
        return result

    monkeypatch.setattr(chain, "verify_greedy", wrong)


def table_of(output: str) -> dict[str, str]:
    """Rows of the terminal's table, by method."""
    lines = [line for line in output.splitlines() if re.match(r"(baseline|speculative|lookup|specexec)", line)]
    return {line.split()[0].partition("_")[0]: line for line in lines}


def test_a_mistake_is_called_not_lossless_everywhere_and_the_exit_code_stays_0(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch)
    result = evaluate(*TOY, "--output", "out")
    assert result.exit_code == 0, result.output
    rows = table_of(result.output)
    counted = re.search(r"not lossless here: equal on (\d) of 4$", rows["speculative"])
    assert counted is not None, result.output
    num = 4 - int(counted[1])
    assert num > 0
    assert rows["specexec"].endswith("equal on 4 of 4")
    (verdict_line,) = [line for line in result.output.splitlines() if line.startswith("verdict: ")]
    assert verdict_line.startswith(f"verdict: Not lossless here: speculative_k2 ({num} of 4 output")
    assert "where no near tie explains it, first prompt 'toy-" in verdict_line
    assert "Use speculative" not in verdict_line
    assert "speculative_k2, which is lossless" not in result.output
    assert "warning: speculative_k2: not lossless here" in result.output
    html = (workplace / "out" / "report.html").read_text()
    assert f'<span class="mark">not lossless here: equal on {4 - num} of 4</span>' in html
    assert "Not lossless here: speculative_k2" in html
    run = flat_runs()["speculative_k2"].data
    assert run.tags["lossless"] == "false"
    assert "not lossless here" in run.tags["warning"]
    assert run.metrics["quality/unexplained"] == num
    assert flat_runs()[rows["specexec"].split()[0]].data.tags["lossless"] == "true"
    assert comparison_runs()[0].data.tags["verdict"].startswith("Not lossless here: ")
    tokens = json.loads((workplace / "out" / "tokens.json").read_text())
    assert [m["label"] for m in tokens["methods"] if m["refuted"]] == ["speculative_k2"]
    assert "not lossless here" in (workplace / "out" / "tokens.html").read_text()
    differences = json.loads((workplace / "out" / "differences.json").read_text())
    assert {each["label"] for each in differences} == {"speculative_k2"}
    assert {each["why"] for each in differences} == {"unexplained"}
    # The page can be made again from what is there, and says the same.
    again = evaluate(*TOY, "--output", "out", "--resume")
    assert again.exit_code == 0, again.output
    assert table_of(again.output) == rows
    assert json.loads((workplace / "out" / "differences.json").read_text()) == differences


def test_near_ties_are_rounding_and_the_row_counts_them(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same outputs where logits may be off by more than any two of them are apart."""
    planted(monkeypatch)
    monkeypatch.setattr(equality, "noise_of", lambda dtype, logits: 100.0)
    result = evaluate(*TOY, "--output", "out", "--show", "0")
    assert result.exit_code == 0, result.output
    counted = re.search(r"equal on (\d) of 4, (\d) at near ties$", table_of(result.output)["speculative"])
    assert counted is not None, result.output
    assert int(counted[1]) + int(counted[2]) == 4
    assert "ot lossless here" not in result.output
    assert flat_runs()["speculative_k2"].data.tags["lossless"] == "true"
    assert flat_runs()["speculative_k2"].data.metrics["quality/near_ties"] == int(counted[2])
    html = re.sub(r"<[^>]+>", "", (workplace / "out" / "report.html").read_text()).replace("\u00a0", " ")
    words = f"of the other {counted[2]} {counted[2]} (100%) first differ"
    assert words in html
    assert "rounding, not the method" in html


def test_a_tree_must_emit_plain_decodings_tokens_when_it_samples_too(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = specexec.walk
    monkeypatch.setattr(specexec, "walk", lambda *given: right(*given[:5], given[5] + 1))  # rng of another position
    result = evaluate(*TOY, "--temperature", "1", "--output", "out", "--show", "0")
    assert result.exit_code == 0, result.output
    rows = table_of(result.output)
    assert "not lossless here: equal on " in rows["specexec"]
    assert rows["speculative"].endswith("lossless"), "whose tokens are of its own draws"
    assert "verdict: Not lossless here: specexec" in result.output


def with_differences(**by_label: Divergence) -> Comparison:
    comparison = made_up(settings("baseline,speculative,lookup,topk"), 20)
    entries = []
    for entry in comparison.entries:
        divergence = by_label.get(entry.label)
        lossless = entry.lossless and not (divergence is not None and divergence.refuted)
        entries.append(
            Entry(entry.number, entry.config, lossless, entry.metrics, entry.records, entry.shares, divergence)
        )
    return Comparison(comparison.experiment, entries, 20)


def differing(*reasons: str) -> Divergence:
    return Divergence(20, [
        {"prompt_id": f"p{i}", "turn": 0, "label": "x", "repeat": 0, "position": 3, "token": 1, "reference": 2,
         "gap": 0.5, "why": why} for i, why in enumerate(reasons)
    ])  # fmt: skip


def test_a_refuted_setting_is_recommended_as_nothing_not_even_as_lossy() -> None:
    one = with_differences(speculative=differing("unexplained", "near tie"), lookup=differing())
    said = [plain(sentence) for sentence in verdict(one)]
    assert said[0].startswith(
        "Not lossless here: speculative (1 of 20 output differs from plain decoding's where no near tie explains it,"
        " first prompt 'p0' at token 3, logits 0.5 apart). `python -m specexp certify --method speculative`"
        " examines it. "
    )
    assert "lookup" in said[0]
    assert not any("speculative" in sentence for sentence in said[1:])
    assert marks(one) == {
        "baseline": "plain decoding", "speculative": "not lossless here: equal on 18 of 20, 1 at near ties",
        "lookup": "equal on 20 of 20", "topk": "lossy",
    }  # fmt: skip
    html = html_page.render(one, html_page.Folder({}, [], [], []), [])
    assert '<span class="mark">not lossless here: equal on 18 of 20, 1 at near ties</span>' in html


def test_all_settings_refuted_leave_plain_decoding() -> None:
    comparison = made_up(settings("baseline,speculative"), 20)
    entries = [comparison.entries[0], with_differences(speculative=differing("unexplained")).entries[1]]
    (said,) = verdict(Comparison(comparison.experiment, entries, 20))
    assert plain(said).startswith("Not lossless here: speculative")
    assert "No other setting here speculates." in plain(said)


def test_what_a_coarse_dtype_rounds_is_told_from_near_ties_and_from_mistakes() -> None:
    def apart(gap: float, near: bool = False, token: int | None = 1) -> equality.Difference:
        return equality.Difference("x", "p", 0, token, 2, None if token is None else gap, near, 0.05)

    assert equality.explanation(apart(0.01, near=True), "bfloat16") == "near tie"
    assert equality.explanation(apart(0.3), "bfloat16") == "rounding"
    assert equality.explanation(apart(0.3), "float32") == "unexplained"
    assert equality.explanation(apart(0.5), "bfloat16") == "unexplained", "eight times what rounding does"
    assert equality.explanation(apart(0, token=None), "bfloat16") == "unexplained"
    comparison = with_differences(speculative=differing("rounding", "near tie", "near tie"))
    assert mark(comparison.entries[1]) == "equal on 17 of 20, 2 at near ties, 1 within rounding"


def test_the_terminals_last_column_is_words() -> None:
    one = with_differences(speculative=differing("near tie"), lookup=differing())
    metrics = {entry.label: entry.metrics for entry in one.entries}
    shown = table.terminal(metrics, True, outputs=marks(one)).splitlines()
    assert shown[0].endswith("output")
    at = shown[0].index("output")
    assert [line[at:] for line in shown[1:]] == list(marks(one).values())
