"""What a person sees at the end: the table, and a warning when the clock measured something else."""

from __future__ import annotations

from helpers.comparisons import made_up, settings
from specexp.evaluation.report.run_facts import is_disturbed
from specexp.evaluation.report.table import terminal

METRICS = {
    "baseline": {"speed/tokens_per_second": 200.0, "speed/speedup": 1.0, "quality/equal_to_baseline": 1.0},
    "speculative_k8": {
        "speed/tokens_per_second": 390.0, "speed/speedup": 1.95, "speed/speedup_low": 1.904, "speed/speedup_high": 2.0,
        "accept/mean_length": 5.7, "speed/realised": 0.9,
    },
}  # fmt: skip


def test_the_table_is_aligned_and_leaves_out_what_a_method_does_not_have() -> None:
    lines = terminal(METRICS, greedy=True).splitlines()
    assert [line.split() for line in lines] == [
        ["tok/s", "speed-up", "95", "%", "tokens/call", "=", "baseline"],
        ["baseline", "200", "1.00x", "100%"],
        ["speculative_k8", "390", "1.95x", "1.90-2.00", "5.70"],
    ]
    assert len({line.index("x") for line in lines[1:]}) == 1


def test_sampled_outputs_are_not_compared_token_for_token() -> None:
    assert "= baseline" in terminal(METRICS, greedy=True)
    assert "= baseline" not in terminal(METRICS, greedy=False)


def test_the_widest_table_fits_a_terminal() -> None:
    made = made_up(settings("baseline,autojudge,topk", gamma="16", threshold="0.125,calibrated", accept_k="2,4"), 3)
    table = terminal({entry.label: entry.metrics for entry in made.entries}, greedy=True)
    assert "McNemar p" in table
    assert max(len(line) for line in table.splitlines()) <= 120


def test_a_speed_that_its_calls_do_not_allow_is_noticed() -> None:
    good = {"speed/speedup": 1.9, "accept/mean_length": 5.7, "speed/realised": 0.95}
    assert not is_disturbed(good)
    assert not is_disturbed({"speed/speedup": 5.5}), "draft_only has no calls to compare with"
    assert is_disturbed({**good, "speed/realised": 8.3})
    assert is_disturbed({**good, "accept/mean_length": 1.5})
