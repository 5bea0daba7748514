"""Where a certificate looks: places are judged by what the method would propose there, whoever has a turn."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from specexp import config
from specexp.certify import places
from specexp.certify.checks import Subject
from specexp.decoding.protocol import Draft, Recall, Steps
from specexp.decoding.rng import Rng, rng_for
from specexp.engine import Decoder, Engine
from specexp.evaluation import preparation

TEMPERATURE = 0.8


class FirstDraft:
    """A decoder that notes the first drafted token, and whether the draft model drew it."""

    def __init__(self, decoder: Decoder) -> None:
        self.models, self._decoder = decoder.models, decoder
        self.token: int | None = None
        self.drawn = False

    def steps(self, rng: Rng, remaining_tokens: int) -> Steps:
        steps, answer = self._decoder.steps(rng, remaining_tokens), None
        while True:
            try:
                ask = steps.send(answer)
            except StopIteration:
                return
            answer = yield ask
            if self.token is None and isinstance(ask, Draft | Recall) and answer.tokens.shape[0]:
                self.token, self.drawn = int(answer.tokens[0]), isinstance(ask, Draft)


def subject_of(**method: Any) -> Subject:
    flags = {"gamma": 4, "temperature": TEMPERATURE, "toy": "vocab_size=5", "limit": 2, **method}
    prepared = preparation.prepare(config.resolve("toy_quick", {**flags, "methods": f"baseline,{method['methods']}"}))
    return Subject(prepared, prepared.settings[0], prepared.settings[-1])


@pytest.mark.parametrize(
    "method,drafts",
    [
        ({"methods": "lookup"}, False),
        ({"methods": "suffix"}, False),
        ({"methods": "speculative", "draft_temperature": 0.3}, True),
        ({"methods": "chained", "proposers": "lookup,suffix", "min_match": 2}, False),
        ({"methods": "chained", "proposers": "suffix,lookup", "suffix_min_probability": 0.6, "min_match": 2}, False),
        ({"methods": "chained", "proposers": "draft"}, True),
        ({"methods": "chained", "min_match": 3, "draft_temperature": 0}, True),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_place_is_worth_what_the_method_proposes_there(method: dict[str, Any], drafts: bool) -> None:
    subject, numbers = subject_of(**method), random.Random(3)
    models = subject.prepared.pair.models
    assert ("draft" in models) == drafts
    ids, text = [[numbers.randrange(5) for _ in range(length)] for length in (6, 40)]

    def rows(role: Any) -> Any:
        model = models[role]
        return model.session().feed(model.ids([*ids, *text[:-1]]), len(text))[0]

    p = subject.warp(rows("target"))
    q = subject.warp.of_draft(subject.method.draft_temperature)(rows("draft")) if drafts else p
    got = places._unlike(subject, ids, text, np.asarray(p))
    seen = set()
    for at in range(len(text)):
        noted = FirstDraft(subject.setting.decoder)
        Engine(models).generate(noted, [*ids, *text[:at]], 2, rng_for(TEMPERATURE, at, "p"))
        expected = 0.0 if noted.token is None else 1 - p[at, noted.token]
        if noted.drawn:
            expected = abs(p[at] - q[at]).sum() / 2
        seen.add("draft" if noted.drawn else noted.token is not None)
        assert got[at] == pytest.approx(expected, abs=1e-6), at
    assert len(seen) == 1 + (method["methods"] == "chained" and method.get("proposers") != "draft") or not drafts
    assert len(places._worth(subject, "p", ids, text)) == len(text)
