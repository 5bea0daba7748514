"""Peak memory of a run, system metrics where nothing is timed, and one clear line where memory runs out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch

from helpers.cli_runner import SMALL, comparison_runs, evaluate, flat_runs, records, runs, without_clocks
from helpers.fake_device import counting, on_fake_device
from specexp.decoding.chain import Chain, DraftModel, Lossless
from specexp.decoding.lossy_rules import TopK
from specexp.decoding.rng import rng_for
from specexp.decoding.rules import Warp
from specexp.decoding.specexec import SpecExec
from specexp.engine import Engine, engine
from specexp.lm import out_of_memory
from specexp.lm.hf import loading
from specexp.lm.hf.hf_model import HFModel
from specexp.profiling import memory

TOY = [
    "--experiment", "toy_quick", "--methods", "baseline,speculative", "--gamma", "3", "--max-new-tokens", "8",
    "--limit", "2",
]  # fmt: skip
ON_CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to (…)"


class Devices:
    """CUDA as its allocator's marks tell: what stands in them is set by hand."""

    def __init__(self, *peaks: int) -> None:
        self.peaks = list(peaks)

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return len(self.peaks)

    def max_memory_allocated(self, index: int) -> int:
        return self.peaks[index]

    def reset_peak_memory_stats(self, index: int) -> None:
        self.peaks[index] = 0


def test_the_comparison_run_has_the_peak_of_the_process(workplace: Path) -> None:
    assert evaluate(*TOY, "--output", "out").exit_code == 0
    (run,) = comparison_runs()
    peak = run.data.metrics["memory/peak_rss_bytes"]
    assert 20e6 < peak <= memory.rss()
    assert json.loads((workplace / "out" / "memory.json").read_text())["all"]["rss"] == peak
    assert not any(key.startswith("memory/") for key in flat_runs()["baseline"].data.metrics), "all share it"


def test_each_device_has_a_peak_and_each_method_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = Devices(100, 0, 0)
    monkeypatch.setattr(memory, "_torch", lambda: SimpleNamespace(cuda=devices))
    peaks = memory.MemoryPeaks()
    for label, first, second in (("baseline", 70, 0), ("chain", 80, 40), ("baseline", 60, 0)):
        with peaks.watching(label):
            devices.peaks[:2] = [first, second]
    peaks.take()
    assert peaks.methods == {"baseline": {"cuda0": 70}, "chain": {"cuda0": 80, "cuda1": 40}}
    assert memory.metrics(peaks.all) == {
        "memory/peak_cuda0_bytes": 100.0, "memory/peak_cuda1_bytes": 40.0, "memory/peak_rss_bytes": memory.rss(),
    }  # fmt: skip
    assert memory.peaks_of(json.loads(json.dumps(peaks.as_dict()))) == peaks


def test_an_interrupted_runs_peaks_count(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(*TOY, "--output", "out").exit_code == 0
    path = workplace / "out" / "memory.json"
    path.write_text(json.dumps({"all": {"rss": 10**15}, "methods": {"speculative_k3": {"cuda1": 7}}}))
    for run in runs():
        mlflow.MlflowClient().delete_run(run.info.run_id)
    assert evaluate(*TOY, "--output", "out", "--resume").exit_code == 0
    assert comparison_runs()[0].data.metrics["memory/peak_rss_bytes"] == 10**15
    assert flat_runs()["speculative_k3"].data.metrics["memory/peak_cuda1_bytes"] == 7


def test_the_machine_is_sampled_where_nothing_is_timed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    assert evaluate(*TOY, "--batch", "2", "--output", "together").exit_code == 0
    (run,) = comparison_runs()
    assert any(key.startswith("system/") for key in run.data.metrics)
    assert evaluate(*TOY, "--output", "alone").exit_code == 0
    timed = next(r for r in comparison_runs() if r.info.run_id != run.info.run_id)
    assert not any(key.startswith("system/") for key in timed.data.metrics), "a sampler would disturb the timings"
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    assert evaluate(*TOY, "--output", "asked").exit_code == 0
    asked = next(r for r in comparison_runs() if r.info.run_id not in (run.info.run_id, timed.info.run_id))
    assert any(key.startswith("system/") for key in asked.data.metrics), "who asks for them has them"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore"),
                                   RuntimeError(ON_CPU), MemoryError()], ids=lambda e: type(e).__name__)  # fmt: skip
@pytest.mark.slow
def test_memory_that_runs_out_is_one_line_and_keeps_the_records(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real, path = engine.score, workplace / "out" / "records.jsonl"

    def full(*arguments: Any) -> Any:
        if path.exists() and len(records(workplace / "out")) == 3:
            raise error
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "score", full)
        result = evaluate(*TOY, "--output", "out")
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    last = result.output.strip().splitlines()[-1]
    words = (str(error) or "out of memory").splitlines()[0]
    assert f"with baseline: {words} Lower max_new_tokens, gamma or tree_budget" in last
    assert "dtype, quantization nf4, offload cpu or disk, or another device." in last
    assert "Loaded: target 'toy:target' (float32) on cpu, draft 'toy:draft' (float32) on cpu." in last
    assert len(records(workplace / "out")) == 3
    assert "Traceback" not in result.output
    assert evaluate(*TOY, "--output", "out", "--resume").exit_code == 0
    assert evaluate(*TOY, "--output", "whole").exit_code == 0
    assert without_clocks(records(workplace / "out")) == without_clocks(records(workplace / "whole"))


def test_memory_that_runs_out_while_loading_is_one_line(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise RuntimeError(ON_CPU)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", full)
    result = evaluate(*SMALL, "--output", "out")
    assert result.exit_code == 2
    (line,) = result.output.strip().splitlines()
    assert "model 'zoo:target' does not fit (float32 on cpu): its weights need about" in line
    assert "DefaultCPUAllocator" in line
    assert not (workplace / "out").exists()


def test_memory_that_runs_out_where_nobody_expects_it_is_one_line(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specexp.evaluation.report import publish

    def full(*arguments: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(publish, "show", full)
    result = evaluate(*TOY, "--output", "out")
    assert result.exit_code == 2
    assert result.output.strip().splitlines()[-1].startswith("error: CUDA out of memory. Lower limit, batch or")


def test_another_runtime_error_is_no_lack_of_memory() -> None:
    assert not out_of_memory.is_exhausted(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory.translate_oom("x", "y"):
        raise RuntimeError("shapes")


DECODERS: dict[str, Callable[[Warp], Any]] = {
    "chain": lambda warp: Chain(DraftModel(4), Lossless(), warp),
    "top-k": lambda warp: Chain(DraftModel(4), TopK(2), warp),
    "specexec": lambda warp: SpecExec(8, 3, warp),
}


@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, top_k=20, top_p=0.9)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_draft_on_the_host_serves_a_target_on_a_device(name: str, warp: Warp, pair: Any) -> None:
    """No operation mixes the two: on a device without values, PyTorch refuses what does."""
    running = Engine({"target": on_fake_device(), "draft": pair("llama")["draft"]})
    with counting() as waits:
        out = running.generate(DECODERS[name](warp), [5, 6, 7], 8, rng_for(warp.temperature, 1, "x"))
    assert len(out.token_ids) == 8
    assert waits.counts["tolist"] >= out.num_rounds


def _moved(model: HFModel, device: str) -> HFModel:
    import copy

    return HFModel(copy.deepcopy(model.module).to(device), model.name)


PLACES = [
    pytest.param(
        target, draft, marks=pytest.mark.skipif(torch.cuda.device_count() < needed, reason=f"needs {needed} GPUs")
    )
    for target, draft, needed in (("cuda:0", "cpu", 1), ("cpu", "cuda:0", 1), ("cuda:0", "cuda:1", 2))
]


@pytest.mark.parametrize("target,draft", PLACES)
@pytest.mark.parametrize("name", DECODERS)
def test_models_on_different_devices_decode_as_on_one(name: str, target: str, draft: str, pair: Any) -> None:
    models, warp = pair("llama"), Warp()
    one, two = (
        Engine({"target": _moved(models["target"], a), "draft": _moved(models["draft"], b)})
        for a, b in ((target, target), (target, draft))
    )
    outputs = [each.generate(DECODERS[name](warp), [5, 6, 7], 24, rng_for(0, 1, "x")) for each in (one, two)]
    assert outputs[0].token_ids == outputs[1].token_ids
    assert {place for place in memory.cuda() if place != memory.RSS} >= {
        x.replace(":", "") for x in (target, draft) if x != "cpu"
    }
