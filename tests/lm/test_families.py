"""evaluate, end to end, on tiny random folders of three families: real tasks, every dtype and quantization, on CPU."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.cli_runner import evaluate, records
from helpers.model_folders import build, disturbed
from specexp import config
from specexp.evaluation.preparation import prepare
from specexp.lm.hf.hf_model import HFModel
from specexp.lm.hf.loading import load_model
from specexp.lm.hf.source import ZOO
from specexp.lm.runtime import ModelConfig
from specexp.pair.loading import load_pair

DATA = Path(__file__).resolve().parents[1] / "data"
TASKS = ("gsm8k", "mtbench", "spec_bench")
NUM_TURNS = {"gsm8k": 5, "mtbench": 10, "spec_bench": 6}
SIZES = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 2048}
VOCABULARIES = {"llama": (592, 592), "qwen2": (640, 608), "mistral": (592, 592)}  # Qwen2's are padded, differently
HOW: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "float32": ({}, {}),
    "bfloat16": ({"dtype": "bfloat16"}, {"dtype": "bfloat16"}),
    "int8": ({"quantization": "int8"}, {"quantization": "int8"}),
    "nf4": ({"quantization": "nf4"}, {"quantization": "nf4"}),
    "target nf4": ({"quantization": "nf4"}, {}),
    "draft nf4": ({}, {"quantization": "nf4"}),
}
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}[reply] "
    "{% endif %}"
)
LENGTH = 20
FAST = {("llama", "float32", "gsm8k"), ("qwen2", "nf4", "mtbench"), ("mistral", "int8", "spec_bench")}
CASES = [
    pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow)
    for case in itertools.product(VOCABULARIES, HOW, TASKS)
    if " " not in case[1] or case[0] == "llama"  # mixed pairs once
]


@pytest.fixture(scope="session")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """`pair_folders("qwen2")`: a target and a draft that often agrees, with the embedded pair's tokenizer and a
    template."""

    @cache
    def make(family: str) -> dict[str, Path]:
        folders = {}
        size, draft_size = VOCABULARIES[family]
        target = build(family, vocab_size=size, **SIZES)
        draft = disturbed(target, 0.05)
        draft.resize_token_embeddings(draft_size)
        for role, module in (("target", target), ("draft", draft)):
            folders[role] = tmp_path_factory.mktemp(f"{family}-{role}")
            module.save_pretrained(folders[role])
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(ZOO / role / name, folders[role])
            (folders[role] / "chat_template.jinja").write_text(TEMPLATE)
        return folders

    return make


def generated(model: HFModel, prompt: list[int]) -> list[int]:
    padding = list(range(model.vocab_size, int(model.module.config.vocab_size)))
    with torch.inference_mode():
        ids = model.module.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
            max_new_tokens=LENGTH, pad_token_id=0, suppress_tokens=padding or None,
        )  # fmt: skip
    return [int(i) for i in ids[0, len(prompt) :]]


def near_tie(model: HFModel, prompt: list[int], one: list[int], other: list[int]) -> bool:
    """Whether two outputs part, if they do, where the arithmetic cannot tell their tokens apart.

    The same weights in float32 say by how much the logits of that row are off; two ways of computing it may differ by
    a few times as much.
    """
    same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
    if same == len(one) == len(other):
        return True
    ids = model.ids([*prompt, *one[:same]])
    logits, _ = model.session().feed(ids, rows=1)
    exact, _ = HFModel(copy.deepcopy(model.module).float(), "exact", model.num_valid_ids).session().feed(ids, rows=1)
    gap = abs(float(exact[0, one[same]] - exact[0, other[same]]))
    return gap <= 4 * float((logits - exact).abs().max())


@pytest.mark.at_most(slow=4)
@pytest.mark.slow
@pytest.mark.parametrize("family,how,task", CASES)
def test_a_family_decodes_a_real_task(
    workplace: Path, pair_folders: Callable[[str], dict[str, Path]], family: str, how: str, task: str
) -> None:
    target, draft = HOW[how]
    folders = pair_folders(family)
    settings: dict[str, Any] = {
        "task": task,
        "data": str(DATA / f"{task}.jsonl"),
        "target": {"model": str(folders["target"]), "chat_template": "own", **target},
        "draft": {"model": str(folders["draft"]), **draft},
        "methods": ["baseline", "draft_only", "speculative"],
        "gamma": 4,
        "max_new_tokens": LENGTH,
    }
    Path("mine.yaml").write_text(yaml.safe_dump(settings))
    result = evaluate("--config", "mine.yaml", "--output", "out")
    assert result.exit_code == 0, result.output
    by_key = {(r["prompt_id"], r["turn"], r["label"]): r for r in records(workplace / "out")}
    assert len(by_key) == 3 * NUM_TURNS[task]
    assert any(r["num_accepted"] for r in by_key.values()), "no draft was ever accepted: the test says little"

    experiment = config.resolve("arith_quick", {"config": "mine.yaml"})
    prepared = prepare(replace(experiment, methods=experiment.methods[:1]))
    model: Any = load_pair(experiment, {"target"}).models["target"]
    exact = target.get("dtype") != "bfloat16"
    for example in prepared.examples:
        replies: list[str] = []
        for turn in range(len(example.turns)):
            prompt = prepared.pair.text.encode(example.messages(replies))
            plain = by_key[example.prompt_id, turn, "baseline"]["token_ids"]
            chain = by_key[example.prompt_id, turn, "speculative_k4"]["token_ids"]
            for other in (chain, generated(model, prompt)):
                if exact:
                    assert other == plain
                else:
                    assert near_tie(model, prompt, plain, other), "outputs part where no tie is near"
            replies.append(by_key[example.prompt_id, turn, "baseline"]["text"])


def test_a_divergence_that_is_no_near_tie_is_told_from_one(folder: Callable[..., Path]) -> None:
    """bfloat16 could not mix up the best token with the median one, at any place."""
    model = load_model(ModelConfig(str(folder("qwen2")), dtype="bfloat16"))
    prompt = [5, 9, 11, 40]
    plain = generated(model, prompt)
    for place in range(len(plain)):
        logits, _ = model.session().feed(model.ids([*prompt, *plain[:place]]), rows=1)
        median = int(torch.argsort(logits[0])[logits.shape[1] // 2])
        assert not near_tie(model, prompt, plain, [*plain[:place], median, *plain[place + 1 :]])
    assert near_tie(model, prompt, plain, list(plain))
