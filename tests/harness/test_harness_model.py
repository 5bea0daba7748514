"""The model `specexp` gives what the harness's own `hf` model gives, sample by sample, on tasks made here."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; make test-lm-eval runs this")

import torch  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.utils_hf import MultiTokenEOSCriteria  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from helpers.harness_tasks import folder_of_tasks  # noqa: E402
from specexp.errors import ConfigError  # noqa: E402
from specexp.lm_eval import __main__ as command  # noqa: E402
from specexp.lm_eval.generation import HarnessStop  # noqa: E402
from specexp.lm_eval.model import SpecexpLM  # noqa: E402

pytestmark = pytest.mark.slow
GENERATED, SCORED = ("generated", "stopped", "short"), ("chosen", "rolling")
FEW = (*GENERATED, "chosen")
ZOO = Path(__file__).resolve().parents[2] / "specexp/zoo/target"
METHODS = {"baseline": 1, "speculative": 3, "specexec": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # runs a dozen commands each time
        yield folder_of_tasks(tmp_path_factory.mktemp("tasks"), 3)


def run(folder: Path, model: str, arguments: dict[str, Any], names: tuple[str, ...], batch_size: int = 1) -> Any:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(
        model, arguments, list(names), task_manager=manager, batch_size=batch_size, device="cpu", bootstrap_iters=0
    )


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return run(folder, "hf", {"pretrained": str(ZOO), "dtype": "float32"}, GENERATED + SCORED)


def responses(results: Any, name: str) -> list[Any]:
    return [sample["resps"] for sample in results["samples"][name]]


def numbers(value: Any) -> list[float]:
    return [x for each in value for x in numbers(each)] if isinstance(value, list | tuple) else [float(value)]


def scored(context: str, *continuations: str) -> list[Instance]:
    return [Instance("loglikelihood", {}, (context, each), i) for i, each in enumerate(continuations)]


def test_a_context_is_fed_once_for_all_of_its_continuations() -> None:
    model = SpecexpLM(method="baseline", batch_size=2)
    requests = scored("Tom has 12 plums. The answer is", " 1", " 2", " 34", " 35", " 3", " 1")
    results = model.loglikelihood(requests, disable_tqdm=True)
    context = len(model.tok_encode("Tom has 12 plums. The answer is"))
    lengths = [len(model._encode_pair(*each.args)[1]) for each in requests]
    assert lengths == [2, 2, 3, 3, 2, 2]
    # " " and " 3" are fed after the context, whose last token is read anew for each of the two.
    assert model._num_scored == context + 1 + 1 + 2
    assert results[0] == results[5]
    assert len({value for value, _ in results}) == 5
    alone = [SpecexpLM.loglikelihood(model, [each], disable_tqdm=True)[0] for each in requests]
    assert [value for value, _ in alone] == pytest.approx([value for value, _ in results], rel=1e-5)


def test_a_device_that_is_not_there_is_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    model = SpecexpLM(method="baseline", device="cuda:99")
    assert model._asked.target.device == "cpu"
    assert capsys.readouterr().err.startswith("note: there is no device cuda:99 here; the models run on the CPU.")


def test_sampled_repeats_differ_and_settings_that_cannot_be_are_refused() -> None:
    model = SpecexpLM(method="speculative", batch_size=2)
    settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 24, "until": []}
    instance = Instance("generate_until", {}, ("Tom has 12 plums.", settings), 0, ("some", 0, 2))
    first = model.generate_until([instance, instance], disable_tqdm=True)
    assert first[0] != first[1]
    assert model.generate_until([instance, instance], disable_tqdm=True) == first
    for wrong, message in (({"num_beams": 4}, "num_beams is 4"), ({"max_gen_toks": 512}, "max_gen_toks is 512")):
        with pytest.raises(ConfigError, match=message):
            model.generate_until([Instance("generate_until", {}, ("x", {**settings, **wrong}), 0)], disable_tqdm=True)


def test_an_output_ends_where_the_hf_models_criterion_ends_it() -> None:
    tokenizer = SpecexpLM(method="baseline").tokenizer
    draw, ended = random.Random(3), 0
    for strings in (("ives 1", "=6"), ("s. ", "\n"), ("12", "<|eos|>"), ("e", "appl")):
        for _ in range(20):
            ids = [draw.randrange(1, 590) for _ in range(40)]
            criteria = [MultiTokenEOSCriteria(each, tokenizer, 2, 1) for each in strings]
            finder = HarnessStop(strings, tokenizer).begin((5, 6))
            for length in range(1, len(ids) + 1):
                now = torch.tensor([[5, 6, *ids[:length]]])
                expected = any(criterion(now, None) for criterion in criteria)
                assert finder.add(ids[length - 1]) == expected
                if expected:
                    ended += 1
                    break
    assert 20 < ended < 80
    # A string of one token in as many tokens as it has letters.
    texts = {tokenizer.decode([token]) for token in range(3, 590)}
    spelled = sorted(text for text in texts if 2 <= len(text) <= 3 and text.isalpha() and text.isascii())
    assert len(spelled) > 20
    for string in spelled:
        ids = [token for letter in string for token in tokenizer.encode(letter, add_special_tokens=False)]
        criterion, finder = (
            MultiTokenEOSCriteria(string, tokenizer, 2, 1),
            HarnessStop((string,), tokenizer).begin((5, 6)),
        )
        found = [finder.add(token) for token in ids]
        assert found == [bool(criterion(torch.tensor([[5, 6, *ids[:n]]]), None)) for n in range(1, len(ids) + 1)]
        assert found[-1]
    # A long string beside a short one, whose window is shorter.
    ids = [int(token) for token in tokenizer.encode("12 plums and 345", add_special_tokens=False)]
    finder = HarnessStop(("12 plums and 345", "?"), tokenizer).begin((5, 6))
    assert len(ids) > 5
    assert [finder.add(token) for token in ids] == [*[False] * (len(ids) - 1), True]


def test_the_reference_reaches_what_it_is_for(reference: Any) -> None:
    texts = {name: [text for ((text,),) in responses(reference, name)] for name in GENERATED}
    assert any("####" in text for text in texts["generated"]), "an output that ends by itself"
    assert not any(mark in text for text in texts["stopped"] for mark in ("ives 1", "=6", "s. ", "\n"))
    assert any(text.endswith(" stone") for text in texts["stopped"]), "cut inside the token ' stones'"
    assert texts["short"] != texts["generated"], "prompts that lost their beginning"
    assert 0 < reference["results"]["generated"]["exact_match,last"] <= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_lossless_method_gives_the_samples_of_the_hf_model(reference: Any, folder: Path, method: str) -> None:
    names = GENERATED + SCORED if method == "baseline" else FEW
    results = run(folder, "specexp", {"method": method}, names, METHODS[method])
    for name in GENERATED:
        assert responses(results, name) == responses(reference, name), name
    for name in names:
        whole = [results["results"][name], reference["results"][name]]
        values = [{key: x for key, x in each.items() if isinstance(x, float)} for each in whole]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
        if name in SCORED:
            assert numbers(responses(results, name)) == pytest.approx(numbers(responses(reference, name)), rel=1e-5)
    counts = results["config"]["specexp_counts"]
    assert counts["num_tokens"] > 60
    assert (counts["tokens_per_call"] > 1.5) == (method != "baseline")


def test_the_command_says_what_is_wrong_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluated(self: Any, arguments: Any) -> None:
        run(folder, "specexp", {"gama": 3}, ("generated",))

    monkeypatch.setattr("lm_eval._cli.HarnessCLI.execute", evaluated)
    monkeypatch.setattr("sys.argv", ["lm_eval", "--model", "specexp", "--tasks", "generated"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert "error: unknown setting 'gama', did you mean 'gamma'?" in capsys.readouterr().err


def test_local_completions_against_serve_gives_the_samples_of_the_hf_model(reference: Any, folder: Path) -> None:
    from helpers.openai_process import in_thread
    from specexp.api import LoadedPair
    from specexp.config import single
    from specexp.serving.completion_service import CompletionService, ServiceLimits
    from specexp.serving.openai_app import make_app

    asked = single.resolve("arith_quick", "speculative", {"gamma": "4"})
    service = CompletionService(LoadedPair(asked), asked, ServiceLimits(4, 100, 512), "arith")
    with in_thread(make_app(service)) as address:
        arguments = {
            "base_url": f"{address}/v1/completions", "model": "arith", "tokenizer": str(ZOO), "max_length": 512,
            "num_concurrent": 1, "max_retries": 1, "add_bos_token": True,  # as the hf model does
        }  # fmt: skip
        results = run(folder, "local-completions", arguments, ("generated", "chosen"), 2)
    assert responses(results, "generated") == responses(reference, "generated")
    expected = numbers(responses(reference, "chosen"))
    assert numbers(responses(results, "chosen")) == pytest.approx(expected, abs=1e-3)
    assert len(expected) > 10
