"""The settings of acceptance rules without training, which `specexp.decoding.untrained_rules` and `TopK` explain.

One end of each dial accepts nothing that the lossless test rejects.
"""

from __future__ import annotations

from specexp.config.parsers import choices, dials, several
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
