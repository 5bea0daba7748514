"""What an engine does instead of what it is asked for is named only once nothing else fits what was sampled.

Engines are sampled here from exact distributions that are written out: no server and no model. Seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from specexp.certify.chi_square import Prefix
from specexp.engine_certify import bias_power, explaining, findings, parameter_checks, sample_check
from specexp.engine_certify.explaining import CountedSamples, Inquiry
from specexp.engine_certify.findings import explanations_of
from specexp.engine_certify.next_tokens import NextTokens, Warping
from specexp.engine_certify.sampled_places import (
    LENGTH,
    MIN_P,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    VARIANTS,
    SampledPlace,
    target_of,
    values_of,
)
from specexp.engines.responses import Refused

Samples = Callable[[Warping], Warping]
# Nearly alike digits, of which top-p at 0.5 keeps three of four and at 1 all; and a few other tokens.
DIGITS = [0.236, 0.232, 0.228, 0.224, 0.05, 0.03]
UNEVEN = [0.52, 0.2, 0.12, 0.08, 0.05, 0.03]
SURE = [1 - 5e-4, *[1e-4] * 5]
ENGINE = cast(Any, SimpleNamespace(role="engine", name="engine:spec", offer=SimpleNamespace(token_ids=True)))
DOES: dict[str, Samples] = {
    findings.TEMPERATURE_IGNORED: lambda asked: replace(asked, temperature=1.0),
    findings.TOP_P_IGNORED: lambda asked: replace(asked, top_p=1.0),
    findings.TOP_P_FIRST: lambda asked: replace(asked, top_p_first=True),
    findings.TOP_K_IGNORED: lambda asked: replace(asked, top_k=0),
    findings.MIN_P_IGNORED: lambda asked: replace(asked, min_p=0.0),
    findings.GREEDY_ABOVE: lambda asked: replace(asked, temperature=0.0),
}


def place(*rows: Sequence[float], prompt: int = 0) -> SampledPlace:
    """A place after which each token has its row; the last one goes on."""
    known = [NextTokens(np.log(np.asarray(row))) for row in rows]
    return SampledPlace(prompt, (), lambda prefix: known[min(len(prefix), len(known) - 1)])


@dataclass
class SyntheticEngine:
    """An `EngineSubject` with one engine, which samples what it makes of a request; `drawn` counts its outputs.

    With `only` it does so at the place of that prompt alone, and else what it is asked for.
    """

    places: Sequence[SampledPlace]
    does: Samples = lambda asked: asked
    only: int | None = None
    refuses: Callable[[Warping], bool] = lambda asked: False
    dtype: str = "float32"
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    drawn: list[Warping] = field(default_factory=list)
    by_text = False
    rows_are_known = True
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.engine, self.engines = ENGINE, [ENGINE]
        self.config = SimpleNamespace(dtype=self.dtype, bias=0.4, samples=0)
        experiment = SimpleNamespace(seed=self.seed, temperature=self.temperature, top_k=0, top_p=self.top_p)
        self.prepared = SimpleNamespace(experiment=experiment)

    def ask(self, engine: Any, requests: Sequence[Any], tick: Any) -> list[Any]:
        outputs, known = [], {}
        for request in requests:
            given = request.sampling
            asked = Warping(given.temperature, given.top_k, given.top_p, given.min_p)
            if self.refuses(asked):
                raise Refused("no")
            self.drawn.append(asked)
            rng, tokens = np.random.default_rng([given.seed, request.prompt]), cast(Prefix, ())
            while len(tokens) < LENGTH:
                if (at := (request.prompt, asked, tokens)) not in known:
                    does = asked if self.only not in (None, request.prompt) else self.does(asked)
                    p = self.places[request.prompt].rows(tokens).warped(does)
                    known[at] = np.cumsum(p) / p.sum()
                tokens = (*tokens, int(np.searchsorted(known[at], rng.random(), side="right")))
            outputs.append(SimpleNamespace(tokens=tokens))
        return outputs

    def names(self) -> list[str]:
        return [f"prompt-{i}" for i in range(len(self.places))]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(list(tokens))

    def rows_source(self) -> str:
        return "the weights"


def checked(subject: SyntheticEngine, name: str) -> tuple[parameter_checks.ParameterPlan, Any]:
    engine = cast(Any, subject)
    planned = parameter_checks.plan(engine, subject.places, name)
    return planned, parameter_checks.check(engine, planned, lambda: None)


def found(check: Any) -> list[str]:
    return [each.name for each in findings.findings_of(check)]


ALIKE = (place(DIGITS, SURE), place(DIGITS, DIGITS, SURE, prompt=1))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("does", [findings.TOP_P_FIRST, findings.TOP_P_IGNORED, findings.TEMPERATURE_IGNORED])
def test_what_fits_at_first_is_told_apart_before_it_is_named(
    does: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of nearly alike tokens, all of which have their share without top-p, several explanations make the same."""
    subject = SyntheticEngine(ALIKE, DOES[does], seed=seed)
    planned, check = checked(subject, TOP_P)
    assert planned.target is not None
    first = CountedSamples(
        planned.target, (1000 * planned.target.under(DOES[does](planned.target.warping))).astype(int)
    )
    left = {each.name for each in explaining.fitting([first], explanations_of(planned.target.warping))}
    assert len(left) > 1
    assert does in left
    assert found(check) == [does], check.sentence
    more = len(subject.drawn) - planned.samples
    assert 0 < more <= explaining.MOST
    assert f"and {more:,} to tell what it does instead" in check.sentence
    assert "explanations left" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, does",
    [
        (TEMPERATURE, findings.TEMPERATURE_IGNORED), (TEMPERATURE, findings.GREEDY_ABOVE),
        (TOP_P, findings.TOP_P_FIRST), (TOP_P, findings.TOP_P_IGNORED), (TOP_P, findings.GREEDY_ABOVE),
        (TOP_K, findings.TOP_K_IGNORED), (TOP_K, findings.GREEDY_ABOVE), (MIN_P, findings.MIN_P_IGNORED),
        (MIN_P, findings.GREEDY_ABOVE),
    ],
)  # fmt: skip
def test_what_each_parameter_is_replaced_with_is_named(name: str, does: str) -> None:
    _, check = checked(SyntheticEngine([place(UNEVEN), place(DIGITS, UNEVEN, prompt=1)], DOES[does]), name)
    assert found(check) == [does], check.sentence


@pytest.mark.parametrize("name", VARIANTS)
def test_a_right_engine_costs_the_fewest_samples_that_tell(name: str) -> None:
    """At whatever place and value explanations are told apart best."""
    subject = SyntheticEngine(ALIKE)
    planned, check = checked(subject, name)
    assert (check.verdict, found(check)) == ("passed", [])
    targets = [target_of(cast(Any, subject), each, asked) for each in ALIKE for asked in VARIANTS[name]]
    level = parameter_checks.level_of(cast(Any, subject))
    needed = [
        max(
            bias_power.samples_to_tell(target.fair, target.under(each.sampled(target.warping)), level)
            for each in explanations_of(target.warping) if each.name != findings.DEFAULTS
        )
        for target in targets if target is not None
    ]  # fmt: skip
    assert len(subject.drawn) == planned.samples == max(explaining.FEWEST, min(needed))


def explained(
    subject: SyntheticEngine, asked: Warping, warpings: Sequence[Warping], number: int = 200
) -> tuple[findings.Finding, int]:
    """What an engine whose outputs are sampled like this at the first place is said to do, and what it took to tell."""
    target = target_of(cast(Any, subject), subject.places[0], asked)
    assert target is not None
    counts = explaining.draw(cast(Any, subject), ENGINE, target, "first", number, lambda: None)
    return explaining.explain(
        cast(Any, subject), ENGINE, Inquiry("first", subject.places, warpings), [CountedSamples(target, counts)],
        explanations_of(asked), lambda: None,
    )  # fmt: skip


EVEN = [0.26, 0.25, 0.25, 0.24]
THREE = Warping(0.5, top_p=0.765)  # of four such tokens; at temperature 1 all are kept


@pytest.mark.parametrize("does", [findings.TEMPERATURE_IGNORED, findings.TOP_P_IGNORED, findings.TOP_P_FIRST])
def test_explanations_that_nothing_tells_apart_are_all_told(does: str) -> None:
    """Instead of the likeliest one. No outputs are drawn that would not tell."""
    subject = SyntheticEngine([place(EVEN)], DOES[does])
    finding, more = explained(subject, THREE, [THREE, Warping(0.5), Warping(2.0)])
    assert finding.fitting == (findings.TEMPERATURE_IGNORED, findings.TOP_P_IGNORED, findings.TOP_P_FIRST)
    assert finding.name == "temperature ignored or top-p ignored or top-p before temperature"
    assert finding.sentence.startswith("one of these, which outputs do not tell apart: the temperature is ignored")
    assert " Or top-p is applied before the temperature" in finding.sentence
    assert (more, len(subject.drawn)) == (0, 200)


def test_a_low_temperature_is_not_for_coarse_rounding() -> None:
    """It magnifies what rounding does to logits."""
    assert [each.temperature for each in values_of(TEMPERATURE, "float16")] == [0.5, 0.2, 2.0]
    assert [each.temperature for each in values_of(TEMPERATURE, "bfloat16")] == [0.5, 2.0]
    assert values_of(TOP_P, "bfloat16") == list(VARIANTS[TOP_P])


def test_a_bias_is_no_explanation_that_almost_fits() -> None:
    def biased(asked: Warping) -> Warping:
        return replace(asked, temperature=1.6, top_p=1.0)

    finding, more = explained(SyntheticEngine([place(UNEVEN)], biased), Warping(0.5, top_p=0.7), VARIANTS[TOP_P], 1000)
    assert (finding.name, more) == (findings.BIASED, 0)


@pytest.mark.parametrize("does", [findings.TOP_P_FIRST, findings.TOP_P_IGNORED])
def test_a_bias_that_resembles_an_explanation_where_it_was_seen_is_none(
    does: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an explanation says of outputs elsewhere must hold before it is named; both take as many outputs to see."""
    places = [place(UNEVEN), place(DIGITS, UNEVEN, prompt=1)]
    asked = Warping(0.5, top_p=0.6)
    needed = []
    for only, name in ((None, does), (0, findings.BIASED)):
        subject = SyntheticEngine(places, DOES[does], only)
        finding, more = explained(subject, asked, [*VARIANTS[TOP_P], *VARIANTS[TEMPERATURE]])
        assert finding.name == name
        assert "are drawn to confirm it" in capsys.readouterr().err
        needed.append(more)
    assert needed[0] == needed[1] >= explaining.FEWEST


def test_a_name_is_confirmed_by_outputs_that_find_the_wanted_bias() -> None:
    """Of what it says: more of them the smaller that is, up to MOST."""
    numbers = []
    for bias in (0.4, 0.15, 0.01):
        subject = SyntheticEngine([place(UNEVEN)], DOES[findings.TOP_P_FIRST])
        subject.config.bias = bias
        finding, more = explained(subject, Warping(0.5, top_p=0.6), VARIANTS[TOP_P])
        assert finding.name == findings.TOP_P_FIRST
        numbers.append(more)
    assert numbers[0] < numbers[1] < numbers[2] == explaining.MOST


def test_what_is_drawn_to_tell_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Explanations that none of so many outputs tells apart are not drawn for; what they tell at all is."""
    subject = SyntheticEngine([place(EVEN, SURE), place(UNEVEN, prompt=1)], DOES[findings.TOP_P_FIRST])
    monkeypatch.setattr(explaining, "MOST", 150)
    finding, more = explained(subject, THREE, [*VARIANTS[TOP_P], Warping(0.5)])
    assert 0 < more <= 150
    assert findings.TOP_P_FIRST in finding.names
    assert len(subject.drawn) == 200 + more


def test_more_is_drawn_where_no_cut_of_an_explanation_is_near_a_token() -> None:
    """Rounding may move it across: at temperature 1 three digits have 0.696 of the mass, of which top-p takes 0.7."""
    left = [each for each in explanations_of(THREE) if each.name in (findings.TOP_P_FIRST, findings.GREEDY_ABOVE)]
    for dtype, is_safe in (("float32", True), ("bfloat16", False)):
        subject = cast(Any, SyntheticEngine([place(DIGITS)], dtype=dtype))
        warpings = [Warping(0.5, top_p=0.7)]
        assert target_of(subject, subject.places[0], warpings[0]) is not None
        chosen = explaining.telling(subject, Inquiry("", subject.places, warpings), warpings, left, 1000)
        assert (chosen is not None) == is_safe


def test_a_value_that_the_server_refuses_is_not_what_it_does() -> None:
    """Others are asked for instead."""
    does = DOES[findings.TOP_P_FIRST]
    asked, drawn = Warping(0.5, top_p=0.7), SyntheticEngine(ALIKE, does)
    assert explained(drawn, asked, [*VARIANTS[TOP_P], *VARIANTS[TEMPERATURE]])[0].name == findings.TOP_P_FIRST
    refused = set(drawn.drawn) - {asked}
    assert refused
    first = next(each for each in drawn.drawn if each != asked)
    subject = SyntheticEngine(ALIKE, does, refuses=lambda each: each == first)
    finding, more = explained(subject, asked, [*VARIANTS[TOP_P], *VARIANTS[TEMPERATURE]])
    assert finding.name == findings.TOP_P_FIRST
    assert more
    subject = SyntheticEngine(ALIKE, does, refuses=lambda each: each != asked)
    finding, more = explained(subject, asked, [*VARIANTS[TOP_P], *VARIANTS[TEMPERATURE]])
    assert findings.TOP_P_FIRST in finding.fitting
    assert more == 0


@pytest.mark.parametrize("does", [findings.TOP_P_FIRST, findings.TOP_P_IGNORED])
def test_samples_at_the_experiments_own_setting_are_explained_alike(does: str) -> None:
    subject = cast(Any, SyntheticEngine(ALIKE, DOES[does], temperature=0.5, top_p=0.7))
    planned = sample_check.plan(subject, subject.places)
    check = sample_check.check_samples(subject, planned, lambda: None)
    assert found(check) == [does], check.sentence
    assert "to tell what it does instead" in check.sentence
    assert len(subject.drawn) > planned.samples * len(planned.targets)
    right = cast(Any, SyntheticEngine(ALIKE, temperature=0.5, top_p=0.7))
    check = sample_check.check_samples(right, sample_check.plan(right, right.places), lambda: None)
    assert (check.verdict, len(right.drawn)) == ("passed", planned.samples * len(planned.targets))
