"""A target whose layers two processes share: the tokens of one process, and one line when a process dies."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from helpers.cli_runner import evaluate, flat_runs, records, runs, without_clocks
from helpers.processes import ROOT, wait_for_lines
from specexp import config
from specexp.errors import ConfigError, ModelError
from specexp.lm.hf import loading
from specexp.lm.hf.model_facts import fingerprint_of, fingerprint_of_parts
from specexp.lm.hf.source import ZOO
from specexp.lm.runtime import ModelConfig
from specexp.lm.sharded.group import Group
from specexp.lm.sharded.shards import ShardValues, check_shards, joined_values

# On the forward of transformers, as the shards are: sums of the native one run in another order, too.
METHODS = "baseline,draft_only,speculative,lookup,suffix,topk,typical,specexec"
TARGET = ZOO / "target"


def command(output: str, *more: str, launcher: Sequence[str] = ()) -> list[str]:
    return [
        *(launcher or [sys.executable]),
        "-m",
        "entrypoints",
        "evaluate",
        "--experiment",
        "arith_quick",
        "--output",
        output,
        *more,
    ]


def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=900)


def shared(folder: Path) -> str:
    """A settings file of a target in two processes."""
    (folder / "shared.yaml").write_text(yaml.safe_dump({"target": {"tensor_parallel": 2}}))
    return "shared.yaml"


def outputs(folder: Path) -> dict[tuple[str, str], list[int]]:
    return {(row["label"], row["prompt_id"]): row["token_ids"] for row in records(folder)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "temperature,limit,length",
    [("0", 1, 24), *(pytest.param(t, 2, 40, marks=pytest.mark.nightly) for t in ("0", "0.7"))],
)
def test_every_method_gives_the_tokens_of_one_process(
    workplace: Path, temperature: str, limit: int, length: int
) -> None:
    """Shards add up in another order, so that a near tie might fall otherwise: on these prompts none does."""
    more = ("--methods", METHODS, "--limit", str(limit), "--max-new-tokens", str(length), "--temperature", temperature,
            "--show", "0")  # fmt: skip
    for name, settings in (("two", ("--config", shared(workplace))), ("one", ())):
        ended = run(command(name, *more, *settings))
        assert ended.returncode == 0, ended.stderr
    assert outputs(workplace / "two") == outputs(workplace / "one")
    assert len(outputs(workplace / "two")) == limit * len(METHODS.split(","))
    by_name = Counter(each.info.run_name for each in runs() if each.data.tags["method"] != "comparison")
    assert set(by_name.values()) == {2}  # one of each evaluation, by the first process
    facts = [json.loads((workplace / name / "environments.json").read_text()) for name in ("two", "one")]
    two, one = (next(iter(each.values()))["models"]["target"] for each in facts)
    assert two["fingerprint"] == one["fingerprint"]  # a judge of the whole target is one of the shared one
    assert two["forward"] == "transformers (2 processes hold its layers)"


@pytest.mark.nightly
def test_a_killed_process_ends_the_command_with_one_line_and_a_resume_goes_on(workplace: Path) -> None:
    more = ("--methods", "baseline,speculative", "--limit", "4", "--max-new-tokens", "60", "--show", "0")
    settings = ("--config", shared(workplace))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command("out", *more, *settings), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_lines(workplace / "out" / "records.jsonl", 2, process)
    (follower,) = children(process.pid, "specexp.lm.sharded.follower")
    os.kill(follower, 9)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2, said
    lines = [line for line in re.split(r"[\r\n]", said) if line.startswith("error:")]
    assert lines == [
        "error: process 1 of the 2 that hold the target's layers has ended (signal 9). Start the command again; with"
        " --resume true it goes on."
    ]
    ended = run(command("out", *more, *settings, "--resume"))
    assert ended.returncode == 0, ended.stderr
    whole = run(command("whole", *more, *settings))
    assert whole.returncode == 0, whole.stderr
    assert without_clocks(records(workplace / "out")) == without_clocks(records(workplace / "whole"))


@pytest.mark.nightly
def test_a_killed_first_process_leaves_no_other(workplace: Path) -> None:
    more = ("--methods", "baseline", "--limit", "4", "--show", "0", "--config", shared(workplace))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command("out", *more), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    wait_for_lines(workplace / "out" / "records.jsonl", 1, process)
    (follower,) = children(process.pid, "specexp.lm.sharded.follower")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{follower}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{follower}").exists()


@pytest.mark.slow
def test_torchrun_starts_the_processes_and_one_of_them_writes(workplace: Path) -> None:
    more = ("--methods", "baseline", "--limit", "2", "--max-new-tokens", "20", "--show", "0")
    launcher = ("torchrun", "--nproc-per-node", "2")
    ended = run(command("two", *more, "--config", shared(workplace), launcher=launcher))
    assert ended.returncode == 0, ended.stderr
    assert len(records(workplace / "two")) == 2
    assert list(flat_runs()) == ["baseline"]
    (workplace / "three.yaml").write_text(yaml.safe_dump({"target": {"tensor_parallel": 3}}))
    refused = run(command("three", *more, "--config", "three.yaml", launcher=launcher))
    assert "error: tensor_parallel is 3, but torchrun started 2 processes; make them equal." in refused.stderr
    assert not (workplace / "three" / "records.jsonl").exists()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_of_torchrun_that_would_each_do_the_whole_command_are_refused(
    rank: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `torchrun ... mlflow run ...`, and as `torchrun -m entrypoints.evaluate`."""
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    ended = evaluate("--experiment", "arith_quick", "--config", shared(workplace), "--output", "out")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr == (
        "error: torchrun started 2 processes, each of which would do the whole command: they share a target only as"
        " 'torchrun ... -m specexp COMMAND' (with MLFLOW_RUN_ID for a run that exists). Start it so, or leave torchrun"
        " out, as with mlflow run: with tensor_parallel the command starts the processes itself.\n"
    )
    assert not (workplace / "out").exists()
    assert runs() == []


def children(parent: int, word: str) -> list[int]:
    """The processes that this one has started, with this word in their command."""
    result = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                of = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if of == parent and word in (folder / "cmdline").read_text():
                    result.append(int(folder.name))
            except OSError:  # it has ended
                continue
    return result


def test_the_first_values_of_shards_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    whole = {"wide": torch.randn(8, 100), "narrow": torch.randn(6, 4), "bias": torch.randn(10), "norm": torch.randn(9)}
    parts = {
        "wide": ([ShardValues(half[:1], 1) for half in whole["wide"].chunk(2, 1)]),
        "narrow": [ShardValues(half.flatten()[:64], 0) for half in whole["narrow"].chunk(2)],
        "bias": [ShardValues(half, 0) for half in whole["bias"].chunk(2)],
        "norm": [ShardValues(whole["norm"], None)] * 2,
    }
    shards = [{name: each[rank] for name, each in parts.items()} for rank in range(2)]
    joined = [(name, tensor.shape, [joined_values(shards, name)]) for name, tensor in whole.items()]
    assert fingerprint_of_parts("Model", joined) == fingerprint_of("Model", whole.items())
    swapped = [(name, tensor.shape, [joined_values(shards[::-1], name)]) for name, tensor in whole.items()]
    assert fingerprint_of_parts("Model", swapped) != fingerprint_of("Model", whole.items())


@pytest.mark.parametrize(
    "settings,words",
    [
        (
            {"target": {"tensor_parallel": 2, "quantization": "nf4"}},
            "target: tensor_parallel is 2, but quantization is nf4; set it to none, or leave tensor_parallel out.",
        ),
        (
            {"target": {"tensor_parallel": 2, "device": "auto"}},
            "target: tensor_parallel is 2, but device is auto; give cpu, or cuda, of which each process takes a GPU of"
            " its own.",
        ),
        ({"target": {"tensor_parallel": 0}}, "it must be a whole number from 1 to at most 64."),
        ({"draft": {"tensor_parallel": 2}}, "draft: tensor_parallel is a target's setting; give it as target's."),
        (
            {"target": {"tensor_parallel": 2}, "draft": {"layers": "0-3"}},
            "draft: it is made of the target's layers or states, which tensor_parallel shares among processes; leave"
            " tensor_parallel out, or name a draft model.",
        ),
    ],
)
def test_settings_that_contradict_it_are_refused(workplace: Path, settings: dict[str, object], words: str) -> None:
    (workplace / "given.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError) as raised:
        config.resolve("arith_quick", {"config": "given.yaml"})
    assert any(words in fault for fault in raised.value.faults), raised.value.faults


def test_one_process_is_the_setting_that_older_folders_have(workplace: Path) -> None:
    (workplace / "given.yaml").write_text("target: {tensor_parallel: 1}\n")
    (workplace / "plain.yaml").write_text("target: {device: cpu}\n")
    plain = config.resolve("arith_quick", {"config": "plain.yaml"})
    assert config.resolve("arith_quick", {"config": "given.yaml"}).hash == plain.hash
    assert config.resolve("arith_quick", {"config": shared(workplace)}).hash != plain.hash


def test_heads_that_the_processes_cannot_share_are_refused_before_weights_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights"))
    with pytest.raises(
        ModelError, match="has num_attention_heads 6, which 4 processes cannot share evenly; give 2 or 3"
    ):
        check_shards(ModelConfig(str(TARGET), tensor_parallel=4))
    check_shards(ModelConfig(str(TARGET), tensor_parallel=3))


def test_a_family_without_a_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loading.read_config(ModelConfig(str(TARGET)))
    monkeypatch.setattr(type(plain), "base_model_tp_plan", None)
    with pytest.raises(ModelError, match=r"\(llama\) has no plan in transformers by which its layers are shared"):
        check_shards(ModelConfig(str(TARGET), tensor_parallel=2))


def test_what_a_dead_process_said_last_is_in_the_message(tmp_path: Path) -> None:
    with (tmp_path / "said").open("w+b") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", "import sys; print('a warning', file=sys.stderr); sys.exit('no memory.')"],
            stderr=said,
        )
        process.wait()
        words = Group(0, 2, None, [process], [said]).death()
    assert words == "process 1 of the 2 that hold the target's layers has ended (exit code 1): no memory."
