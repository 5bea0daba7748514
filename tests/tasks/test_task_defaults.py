"""A task that is named without an experiment of its own brings its own length, limit and name."""

from __future__ import annotations

from pathlib import Path

import pytest

from entrypoints import advise, benchmark
from helpers.cli_runner import evaluate
from specexp import config
from specexp.certify import certificate_config
from specexp.config import single
from specexp.tasks.defaults import DEFAULTS

GSM8K = DEFAULTS["gsm8k"]
ROWS = Path(__file__).resolve().parents[1] / "data" / "gsm8k.jsonl"


def lengths(experiment: config.Experiment) -> tuple[str, int, int]:
    return experiment.name, experiment.limit, experiment.max_new_tokens


def test_every_task_has_defaults_of_its_own() -> None:
    assert DEFAULTS.keys() == config.TASK_SOURCES.keys()
    arith = config.resolve("arith_quick")
    assert lengths(arith) == ("arith_quick", DEFAULTS["arith"].limit, DEFAULTS["arith"].max_new_tokens)


def test_another_task_than_the_experiments_takes_its_own_lengths_and_name(tmp_path: Path) -> None:
    expected = ("gsm8k", GSM8K.limit, GSM8K.max_new_tokens)
    assert expected[1:] != (20, 160)
    assert lengths(config.resolve("arith_quick", {"task": "gsm8k"})) == expected
    file = tmp_path / "mine.yaml"
    file.write_text("task: gsm8k\n")
    assert lengths(config.resolve("arith_compare", {"config": str(file)})) == expected
    assert lengths(config.resolve("mtbench_llama_8b_1b", {"task": "arith"})) == ("arith", 20, 160)


def test_what_a_file_or_a_flag_says_stays(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("limit: 7\n")
    got = config.resolve("arith_quick", {"task": "gsm8k", "config": str(file), "max_new_tokens": "9"})
    assert lengths(got) == ("gsm8k", 7, 9)


def test_the_experiments_own_task_leaves_it_as_it_is() -> None:
    plain = config.resolve("arith_compare")
    assert config.resolve("arith_compare", {"task": "arith"}) == plain
    assert lengths(plain) == ("arith_compare", 200, 160)


def test_what_a_preset_says_for_its_own_task_is_no_fault_of_another() -> None:
    """Its eight solved examples would be refused by a task that has none."""
    experiment = config.resolve("gsm8k_8shot_llama_8b_1b", {"task": "mtbench"})
    assert (experiment.shots, experiment.data) == (0, config.TASK_SOURCES["mtbench"])


def test_what_a_command_says_by_itself_goes_before_the_task() -> None:
    mined = config.resolve_mining("arith_quick", {"task": "gsm8k"}).experiment
    assert lengths(mined) == ("gsm8k", config.MINED_PROMPTS, GSM8K.max_new_tokens)
    advised = advise.resolve("arith_quick", {"task": "gsm8k"})[0]
    assert lengths(advised) == ("gsm8k", 8, GSM8K.max_new_tokens)
    quick = config.resolve("arith_quick", {"task": "gsm8k"}, benchmark.QUICK)
    assert lengths(quick) == ("gsm8k", 3, 48)
    full = config.resolve("arith_quick", {"task": "gsm8k"}, benchmark.FULL)
    assert lengths(full) == ("gsm8k", 20, GSM8K.max_new_tokens)
    certified = certificate_config.resolve("arith_quick", "speculative", "", {"task": "gsm8k"})
    assert lengths(certified.experiment) == ("gsm8k", GSM8K.limit, GSM8K.max_new_tokens)


def test_a_single_prompt_keeps_the_lengths_of_its_experiment() -> None:
    assert lengths(single.resolve("arith_quick", "speculative", {})) == ("arith_quick", 20, 160)


@pytest.mark.slow
def test_folder_bar_report_and_run_have_the_tasks_name(workplace: Path) -> None:
    result = evaluate(
        "--task", "gsm8k", "--data", str(ROWS), "--limit", "1", "--max-new-tokens", "4", "--methods", "baseline",
        "--show", "0",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (folder,) = (workplace / "runs").iterdir()
    assert folder.name.startswith("gsm8k-")
    assert "gsm8k: " in result.stderr
    assert "<h1>gsm8k</h1>" in (folder / "report.html").read_text()
    from helpers.cli_runner import comparison_runs

    (run,) = comparison_runs()
    assert (run.info.run_name, run.data.tags["group"]) == ("compare gsm8k", "gsm8k")
