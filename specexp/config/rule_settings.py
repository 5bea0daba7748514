"""The settings of rules: what chains accept without training, and how answers are read and compared.

`specexp.decoding.untrained_rules` and `TopK` explain the former, of which one end of each dial accepts nothing that the
lossless test rejects; `specexp.answers` has the latter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from specexp.answers.kinds import AUTO, MIN_SIMILARITY, NAMES, check_comparator
from specexp.answers.rules import RULES
from specexp.config.parsers import choices, dials, one_of, pattern, real, several, text
from specexp.config.setting import Setting
from specexp.decoding.untrained_rules import DISTANCES

_TAKERS = ("evaluate", "certify", "generate")
_PRESETS = "the preset's"
_DETAILS = "[Rules without training](methods.md#rules-without-training) has the equations."

RULE_SETTINGS: dict[str, Setting] = {
    "accept_margin": Setting(
        dials(lambda x: 0 <= x <= 1, "in [0, 1] (0 = nothing more)"),
        "Accept tokens of topk only where they are less likely than the best one by less than this.",
        otherwise="no such condition; 0.1 of preset `relaxed`", more=_DETAILS, commands=_TAKERS,
    ),
    "accept_epsilon": Setting(
        dials(lambda x: 0 < x <= 1, "in (0, 1] (1 = nothing more)"),
        "Set epsilon of typical: the probability above which a token is accepted, however sure the target is.",
        otherwise=_PRESETS, more=_DETAILS, commands=_TAKERS,
    ),
    "accept_delta": Setting(
        dials(lambda x: 0 < x <= 1e6, "> 0 and at most 1000000"),
        "Set delta of typical: a token is also accepted with a probability above delta exp(-H), where H is the target's"
        " entropy.", otherwise="the root of `accept_epsilon`; with 1, no such condition", commands=(),
    ),
    "accept_entropy": Setting(
        dials(lambda x: 0 <= x <= 1, "in [0, 1] (1 = nothing more)"),
        "Set the gate of entropy and fly: they accept only where the target's entropy is above this share of the"
        " largest one.", otherwise=_PRESETS, more=_DETAILS, commands=_TAKERS,
    ),
    "accept_window": Setting(
        several("length"), "Set at how many of the next positions the target must agree with the draft again, in fly.",
        otherwise=_PRESETS, commands=(), more="Several values are separate settings.",
    ),
    "accept_distance": Setting(
        dials(lambda x: 0 <= x <= 1e6, ">= 0 and at most 1000000 (0 = nothing more)"),
        "Set the bound of fuzzy: it accepts where the distributions of target and draft are closer than this.",
        otherwise=_PRESETS, more=_DETAILS, commands=_TAKERS,
    ),
    "distance": Setting(
        choices("distance", tuple(DISTANCES)), "Choose the distance of fuzzy: js, kl or tv.", "js", commands=(),
        more="Several are separate settings.",
    ),
}  # fmt: skip


def comparator(value: Any) -> str:
    """The name of a kind of answer, or a function as module:function."""
    result = text(value) if isinstance(value, str) else ""
    check_comparator(result)
    return result


_OF_ANSWERS = ("evaluate", "collect_labels")
ANSWER_SETTINGS: dict[str, Setting] = {
    "answer_rule": Setting(
        one_of("answer rule", RULES), f"Choose how answers of task prompts are read: {', '.join(RULES)}.", "auto",
        more="[Answer rules](#answer-rules) says what each reads.", commands=_OF_ANSWERS,
    ),
    "answer_pattern": Setting(
        pattern, "Give a regular expression whose last match, or its group, is the answer of task prompts.",
        otherwise="none", more="Given alone, it sets `answer_rule` to `pattern`.", commands=_OF_ANSWERS,
    ),
    "comparator": Setting(
        comparator, f"Choose when two answers of task prompts are equal: {', '.join(NAMES)}, or module:function.",
        AUTO, more="[Comparators](tasks.md#comparators) says what each reads and compares.", commands=_OF_ANSWERS,
    ),
    "min_similarity": Setting(
        real(lambda x: -math.inf < x < math.inf, "that is finite"),
        "Set the similarity from which answers are equal, where the comparator is a function that returns a number.",
        f"{MIN_SIMILARITY:g}", commands=(),
    ),
}  # fmt: skip


def answer_faults(values: dict[str, Any], task: str) -> Iterator[str]:
    """Yield what is wrong with how answers are read and compared; a pattern given alone implies the rule `pattern`."""
    given = [key for key in ANSWER_SETTINGS if key in values]
    if given and task != "prompts":
        yield (
            f"{' and '.join(given)}: task '{task}' has a fixed way to read answers; leave it out, or choose task"
            " prompts."
        )
    if "answer_pattern" in values and values.setdefault("answer_rule", "pattern") != "pattern":
        yield f"answer_pattern is given, but answer_rule is {values['answer_rule']}; leave one of them out."
    if values.get("answer_rule") == "pattern" and "answer_pattern" not in values:
        yield "answer_rule is pattern; give a regular expression as answer_pattern."
    yield from _comparator_faults(values)


def _comparator_faults(values: Mapping[str, Any]) -> Iterator[str]:
    named = values.get("comparator", AUTO)
    if values.get("answer_rule") == "last_number" and named not in (AUTO, "number"):
        yield f"answer_rule is last_number, but comparator is {named}; set it to number, or choose another answer_rule."
    if "min_similarity" in values and ":" not in named:
        yield (
            f"min_similarity is {values['min_similarity']:g}, but comparator is {named}, which has no similarity; leave"
            " it out, or name a function as module:function."
        )
