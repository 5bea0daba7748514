"""The real flows where forwards are captured: token ids are those of the CPU in float32, uncaptured.

Each runs on CUDA where there is a device (`make test-gpu`), and everywhere on the stand-in for capture.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import specexp
from helpers.cli_runner import evaluate, records, run
from helpers.gpu_places import CUDA, PLACES, STAND_IN, Place
from specexp.config import single
from specexp.judge.labels import LabelSet
from specexp.serving.completion_service import CompletionService, ServiceLimits
from specexp.serving.openai_app import make_app
from specexp.tasks.task import task

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

GREEDY = ("baseline,draft_only,speculative,speculative_block,lookup,suffix,chained,specexec,topk,typical,entropy,"
          "fuzzy,relaxed,topk_tree,typical_tree,entropy_tree")  # fmt: skip
LONGER = ",speculative_auto,fly"  # these take no short gamma
# Those whose drafts end where it pays draw other tokens where calls cost otherwise.
SAMPLED = "baseline,draft_only,speculative,speculative_block,speculative_argmax,lookup,suffix,chained,specexec"
METHODS = {
    (CUDA, "0"): GREEDY + LONGER, (STAND_IN, "0"): GREEDY, (CUDA, "0.7"): SAMPLED, (STAND_IN, "0.7"): SAMPLED,
}  # fmt: skip
PROMPT = task("arith").examples(1)[0].turns[0]
Ids = dict[tuple[str, str, int], list[int]]


SMALL_SHAPE = ["--gamma", "3", "--tree-budget", "8"]  # on the stand-in: few, short recordings


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    return Place(request.param)


def at_one_temperature(of_stand_in: str) -> pytest.MarkDecorator:
    """Both temperatures on a GPU, one on the stand-in, where a flow takes seconds."""
    cases = [pytest.param(CUDA, t, marks=PLACES[0].marks) for t in ("0", "0.7")]
    return pytest.mark.parametrize("place,temperature", [*cases, (STAND_IN, of_stand_in)], indirect=["place"])


def ids_of(folder: Path) -> Ids:
    return {(each["label"], each["prompt_id"], each["turn"]): each["token_ids"] for each in records(folder)}


def graphs_of(folder: Path) -> set[str]:
    """What the models of a run say of their recordings."""
    return {
        model["graphs"]
        for facts in json.loads((folder / "environments.json").read_text()).values()
        for model in facts["models"].values()
    }


def evaluated(place: Place | None, output: str, *arguments: str, dtype: str = "float32", **target: str) -> Ids:
    """Token ids of an evaluation: at a place, or for None on the CPU in float32 without recordings."""
    where = (place or Place(STAND_IN)).config(Path(), dtype, **target)
    given = [*arguments, *where, "--output", output, "--show", "0"]
    if place is None:
        done = evaluate(*given)
    else:
        with place.captured():
            done = evaluate(*given)
    assert done.exit_code == 0, done.output
    if not target:  # an offloaded target is not recorded
        assert graphs_of(Path(output)) == ({"off"} if place is None else {"captured"})
    return ids_of(Path(output))


def test_the_main_job_mines_and_decodes_as_on_a_cpu(place: Place, workplace: Path) -> None:
    """Labels, lossless methods, and with one judge AutoJudge: judges are trained on states that differ by rounding."""
    given = ["--mine", place.few(150, 24), "--limit", place.few(12, 1), "--max-new-tokens", place.few(160, 128)]
    if place.name == STAND_IN:
        given += ["--methods", "baseline,speculative,autojudge", "--gamma", "4"]
    labels, ids = [], []
    for each, output in ((None, "cpu"), (place, "there")):
        arguments = [*given, *(each or Place(STAND_IN)).config(workplace), "--output", output, "--show", "0"]
        if each is None:
            done = run("main", *arguments)
        else:
            with each.captured():
                done = run("main", *arguments)
        assert done.exit_code == 0, done.output
        mined = LabelSet.read(Path(output, "labels")).labels
        labels.append([(x.prompt_id, x.position, x.target_token, x.draft_token, x.important) for x in mined])
        ids.append({key: value for key, value in ids_of(Path(output, "evaluation")).items() if key[0] != "autojudge"})
    assert labels[0] == labels[1]
    assert len(labels[0]) > 3
    assert ids[0] == ids[1]
    judge = ["--judge", Path("cpu", "judge", "address.txt").read_text().strip(), "--limit", place.few(12, 1),
             "--methods", "autojudge,autojudge_tree", "--max-new-tokens", place.few(160, 24)]  # fmt: skip
    judge += SMALL_SHAPE if place.name == STAND_IN else []
    assert evaluated(place, "judged", *judge) == evaluated(None, "judged-cpu", *judge)


@pytest.mark.parametrize("temperature", ["0", "0.7"])
def test_every_method(place: Place, workplace: Path, temperature: str) -> None:
    given = ["--methods", METHODS[place.name, temperature], "--temperature", temperature,
             "--limit", place.few(6, 1), "--max-new-tokens", place.few(120, 16)]  # fmt: skip
    given += SMALL_SHAPE if place.name == STAND_IN else []
    assert evaluated(place, "there", *given) == evaluated(None, "cpu", *given)
    if place.name == STAND_IN:
        assert place.num_recorded > 8, "nothing was recorded: the CPU is compared with itself"


@at_one_temperature("0")
def test_reduced_precision_explains_every_difference_from_plain_decoding(
    place: Place, workplace: Path, temperature: str
) -> None:
    """In bf16 another order of sums may turn a near tie; nothing else may."""
    given = ["--methods", "baseline,speculative,speculative_block,lookup,specexec", "--temperature", temperature,
             "--limit", place.few(6, 1), "--max-new-tokens", place.few(120, 24)]  # fmt: skip
    given += SMALL_SHAPE if place.name == STAND_IN else []
    ids = evaluated(place, "there", *given, dtype="bfloat16")
    assert all(ids.values())
    summary: dict[str, dict[str, float]] = json.loads(Path("there", "summary.json").read_text())
    assert {"baseline"} < set(summary)
    for label, metrics in summary.items():
        assert metrics.get("quality/unexplained", 0) == 0, label


@at_one_temperature("0.7")
def test_batches(place: Place, workplace: Path, temperature: str) -> None:
    given = ["--methods", "baseline,speculative,specexec", "--temperature", temperature, "--batch", "4",
             "--limit", place.few(8, 4), "--max-new-tokens", place.few(120, 16)]  # fmt: skip
    given += SMALL_SHAPE if place.name == STAND_IN else []
    alone = given[:4] + given[6:]
    assert evaluated(place, "there", *given) == evaluated(None, "cpu", *alone)


def test_trees(place: Place, workplace: Path) -> None:
    given = ["--experiment", "arith_trees", "--limit", place.few(6, 1), "--max-new-tokens", place.few(120, 12)]
    given += ["--gamma", "2", "--tree-budget", "8,20"] if place.name == STAND_IN else []
    assert evaluated(place, "there", *given) == evaluated(None, "cpu", *given)


def test_an_offloaded_target(place: Place, workplace: Path) -> None:
    given = ["--methods", "baseline,speculative,specexec_offload", "--tree-budget", place.few(256, 32),
             "--limit", place.few(4, 1), "--max-new-tokens", place.few(80, 12)]  # fmt: skip
    assert evaluated(place, "there", *given, offload="cpu") == evaluated(None, "cpu", *given)


@pytest.mark.parametrize("method", ["speculative", "specexec"])
def test_a_certificate(place: Place, workplace: Path, method: str) -> None:
    given = ["--method", method, "--limit", place.few(6, 1), "--max-new-tokens", place.few(80, 24)]
    with place.captured():
        done = run("certify", *given, *place.config(workplace), "--output", "out")
    assert done.exit_code == 0, done.output
    checks = json.loads(Path("out", "certificate.json").read_text())["checks"]
    assert checks
    # What logits depend on is said of any model, and judged of invariant ones.
    judged = {each["verdict"] for each in checks if each["name"] != "invariance"}
    assert judged <= {"passed", "does not apply"}, checks


def test_advice_is_taken(place: Place, workplace: Path) -> None:
    """What it recommends decodes as plain decoding does on the CPU."""
    limit, tokens = ["--limit", place.few(6, 1)], ["--max-new-tokens", place.few(100, 16)]
    with place.captured():
        given = [*limit, *tokens, "--gamma", "2", "--tree-budget", "8", "--repeats", "1", "--sweep", "false"]
        done = run("advise", *given, *place.config(workplace), "--output", "advice")
        assert done.exit_code == 0, done.output
        done = evaluate("--config", "advice/recommended.yaml", *limit, *tokens, "--output", "there", "--show", "0")
    assert done.exit_code == 0, done.output
    plain = evaluated(None, "cpu", "--methods", "baseline", *limit, *tokens)
    taken = ids_of(Path("there"))
    assert len(taken) >= len(plain)
    for (_, prompt, turn), ids in taken.items():
        assert ids == plain["baseline", prompt, turn]


@pytest.mark.parametrize("method", ["baseline", "speculative", "specexec"])
def test_one_prompt(place: Place, workplace: Path, method: str) -> None:
    given = [PROMPT, "--method", method, "--temperature", "0.7", "--seed", "5", "--max-new-tokens", "24", "--json"]
    with place.captured():
        there = run("generate", *given, *place.config(workplace))
    here = run("generate", *given, *Place(STAND_IN).config(workplace))
    assert there.exit_code == here.exit_code == 0, there.output + here.output
    assert json.loads(there.stdout)["token_ids"] == json.loads(here.stdout)["token_ids"]


def test_served_requests(place: Place, workplace: Path) -> None:
    flags = {"config": place.config(workplace)[1]}
    asked = single.resolve("arith_quick", "speculative", flags)
    prompts = [example.turns[0] for example in task("arith").examples(3)]
    with place.captured():
        served = CompletionService(specexp.LoadedPair(asked), asked, ServiceLimits(4, 8, 200), "arith")
    plain = specexp.load("arith_quick")
    with TestClient(make_app(served)) as client:
        for prompt in prompts:
            for more in ({}, {"temperature": 0.7, "seed": 3}):
                body: dict[str, Any] = {"prompt": prompt, "max_tokens": 24, **more}
                answer = client.post("/v1/completions", json=body)
                assert answer.status_code == 200, answer.text
                expected = plain.generate(prompt, "speculative", max_new_tokens=24, **more)
                assert answer.json()["choices"][0]["text"] == expected.text


@pytest.mark.parametrize("place", PLACES[:1], indirect=True)
def test_kernels_compile_and_agree_with_pytorch(place: Place, workplace: Path) -> None:
    """A kernel that does not is named by a note of the model, and not used."""
    assert place.name == CUDA
    for dtype in ("float32", "bfloat16"):
        pair = specexp.load("arith_quick", config=place.config(workplace, dtype)[1])
        assert not [note for note in pair.notes if "kernel" in note]
