"""What advise recommends, for the arguments of engines that serve."""

from __future__ import annotations

from specexp.advise.advice import Advice
from specexp.advise.candidates import PLAIN, Candidate
from specexp.engine_settings import recommendation
from specexp.engine_settings.recommendation import Recommendation


def recommended_for_engines(advice: Advice) -> Recommendation:
    """The recommended setting; plain decoding where the advice is not to speculate."""
    label = advice.best or PLAIN
    [setting] = [each for each in advice.prepared.settings if each.config.label == label]
    chosen = next((each for each in advice.candidates if each.label == advice.best), None)
    fixed = _fixed_gamma(advice, chosen) if chosen is not None and chosen.adapts else 0
    return recommendation.of(
        advice.prepared.experiment, setting.config, setting.lossless, advice.prepared.pair.vocabulary, fixed
    )


def _fixed_gamma(advice: Advice, adapting: Candidate) -> int:
    """The draft length of the best predicted candidate that differs from an adapting one in its length alone; 0: there
    is none."""
    wanted = adapting.setting.config
    alike = [
        each
        for each in advice.candidates
        if not each.adapts
        and each.setting.config.tree is None
        and all(
            getattr(each.setting.config, name) == getattr(wanted, name)
            for name in ("method", "rule", "draft_temperature", "proposers", "min_draft_probability", "bonus")
        )
    ]
    best = max(alike, key=lambda each: advice.forecast.predicted[each.label].speedup, default=None)
    return 0 if best is None else best.setting.config.gamma
