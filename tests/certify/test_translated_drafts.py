"""Drafts with another tokenizer, exact by exhaustion: a draft over common tokens, and one that writes text."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from helpers.kept_chains import Watching
from helpers.sampling import EOS, EXACT, SAMPLINGS, names
from helpers.seeded_bugs import MATCH_BUGS, TRANSLATION_BUGS, Bug, mutated
from helpers.toy_translation import ToyTranslation, Vocabulary
from specexp.certify.reference_distribution import gap, sequence_distribution

# Of the target and of the draft: all of the target's tokens are common, and the draft has longer ones; and the other
# way round, where one of the target's has no match. Then gamma and the length of outputs.
CASES: dict[str, tuple[Vocabulary, Vocabulary, int, int]] = {
    "draft merges": (("", "a", "b"), ("b", "ab", "", "a"), 2, 4),
    "target merges": (("", "a", "b", "ab"), ("b", "", "a", "c"), 2, 3),
    "nothing but letters": (("", "a", "bb"), ("b", "bba", "", "a"), 1, 4),
    "long chains": (("", "a"), ("aa", "", "a"), 3, 5),
}
KINDS = {"intersection": "token", "intersection as a block": "block", "text": "match"}


def models(case: str, kind: str) -> tuple[Any, Any]:
    """(target, draft), by whatever modules are current."""
    toy = importlib.import_module("specexp.lm.toy")
    translated = importlib.import_module("specexp.lm.translated")
    text_drafts = importlib.import_module("specexp.lm.text_drafts")
    target_texts, draft_texts, _, _ = CASES[case]
    made = text_drafts.TextModel if kind == "text" else translated.IntersectedModel
    inner, translation = toy.ToyModel(len(draft_texts), 5), ToyTranslation(target_texts, draft_texts)
    return toy.ToyModel(len(target_texts), 3), made(inner, translation, len(target_texts))


def distributions(case: str, kind: str, sampling: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    """(the decoder's, the target's own) output distribution, by whatever modules are current."""
    engine = importlib.import_module("specexp.engine")
    rules = importlib.import_module("specexp.decoding.rules")
    chain = importlib.import_module("specexp.decoding.chain")
    oracle = importlib.import_module("specexp.certify.oracle")
    _, _, gamma, length = CASES[case]
    target, draft = models(case, kind)
    stops = [EOS] if options.pop("eos", True) else []
    bonus, cached = options.pop("bonus", True), options.pop("cached", True)
    decoder = chain.Chain(chain.DraftModel(gamma), chain.Lossless(), rules.Warp(**sampling), bonus, KINDS[kind])
    got = oracle.output_distribution(
        lambda: engine.Engine({"target": target, "draft": draft}, stops, cached=cached), decoder, [1], length
    )
    return got, sequence_distribution(target, [1], length, EOS if stops else None, **sampling)


@pytest.mark.parametrize("sampling", [SAMPLINGS[0], SAMPLINGS[2], SAMPLINGS[4]], ids=names)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_the_output_distribution_is_the_targets(case: str, kind: str, sampling: Any) -> None:
    got, expected = distributions(case, kind, sampling)
    assert gap(got, expected) < EXACT


@pytest.mark.at_most(slow=12)
@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=names)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_it_holds_without_a_bonus_a_cache_or_an_eos(case: str, kind: str, sampling: Any) -> None:
    for options in ({}, {"bonus": False}, {"cached": False}, {"eos": False}):
        got, expected = distributions(case, kind, sampling, **options)
        assert gap(got, expected) < EXACT


def differences(case: str, kind: str, temperature: float) -> list[str]:
    """How the chains of some outputs differ from those of whole forwards of the draft, without any cache."""
    engine = importlib.import_module("specexp.engine")
    rules = importlib.import_module("specexp.decoding.rules")
    chain = importlib.import_module("specexp.decoding.chain")
    rng = importlib.import_module("specexp.decoding.rng")
    target, draft = models(case, kind)
    inner, translation, result, num_drafted = draft.inner, draft.translation, [], 0
    common = np.asarray(translation.common)

    def row(own: list[int]) -> Any:
        return np.asarray(inner.session().feed(inner.ids(own), 1)[0])[0]

    for seed in range(6):
        proposer = Watching(chain.DraftModel(3))
        rounds: list[Sequence[int]] = [[1]]
        decoder = chain.Chain(proposer, chain.Lossless(), rules.Warp(temperature), True, KINDS[kind])
        decode = engine.Engine({"target": target, "draft": draft}).generate
        decode(decoder, [1], 14, rng.rng_for(temperature, seed, "0"), rounds.append)
        for i, drafted in enumerate(proposer.seen):
            committed = [token for each in rounds[: i + 1] for token in each]
            tokens, own = [int(token) for token in drafted.tokens], translation.own(committed)
            num_drafted += len(tokens)
            if kind == "text":
                written: list[int] = []
                while len(written) < 12 and not any(map(translation.ends, written)):
                    written.append(int(row([*own, *written]).argmax()))
                if tokens != translation.continued(committed, written)[: len(tokens)]:
                    result.append(f"{committed}: {tokens} is not what the draft writes")
                continue
            for step, token in enumerate(tokens):
                logits = row([*own, *(int(common[each]) for each in tokens[:step])])
                there = np.where(common >= 0, logits[common], -np.inf)
                q = np.exp((there - there.max()) / (temperature or 1.0))
                q /= q.sum()
                if not temperature and token != q.argmax():
                    result.append(f"{committed}, step {step}: {token} is not the likeliest token")
                if temperature and not np.allclose(drafted.q[step], q, atol=1e-9):
                    result.append(f"{committed}, step {step}: q is {drafted.q[step]}, not {q}")
    assert num_drafted > 20
    return result


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_drafts_are_those_of_whole_forwards_of_the_draft(case: str, kind: str, temperature: float) -> None:
    assert not differences(case, kind, temperature)


@pytest.mark.parametrize("bug", TRANSLATION_BUGS, ids=lambda bug: bug.name)
def test_seeded_bugs_of_translation_are_caught(bug: Bug) -> None:
    def fails(case: str, kind: str) -> bool:
        try:
            return bool(differences(case, kind, 0.0) or differences(case, kind, 1.3))
        except Exception:
            return True

    with mutated(bug):
        importlib.import_module(bug.module)
        assert any(fails(case, kind) for case in CASES for kind in ("intersection", "text"))


def _fails(case: str, kind: str, sampling: Any) -> bool:
    try:
        got, expected = distributions(case, kind, sampling)
        return gap(got, expected) > 1e-6
    except Exception:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("bug", MATCH_BUGS, ids=lambda bug: bug.name)
def test_seeded_bugs_are_caught(bug: Bug) -> None:
    with mutated(bug):
        assert any(_fails(case, "text", sampling) for case in CASES for sampling in SAMPLINGS[:3])
