"""The checks of a certificate on the user's own models, token for token: plain decoding against one forward over the
whole text, and the method against plain decoding.

Teacher forcing draws plain decoding's tokens again: no cache, no steps, the same draws. A method is compared with plain
decoding where both must draw the same tokens: at temperature 0, with top-k 1, and for trees at any temperature, since
the target's own draws walk a tree. A chain samples with its own draws; `sampled.py` tests what they follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from specexp.certify.checks import (
    BREAKS,
    FAILED,
    PASSED,
    REPORTED,
    SKIPPED,
    Check,
    Subject,
    Tick,
    broken,
    count,
    in_memory,
)
from specexp.decoding.rng import rng_for
from specexp.engine import Engine, Request
from specexp.evaluation.equality import EXACT_DTYPES, Difference, beyond_rounding, differences, reread
from specexp.evaluation.preparation import PreparedMethod
from specexp.method_specs import spec

PLAIN, EQUAL = "plain decoding", "equality"
Texts = Sequence[Sequence[int]]


def decode(subject: Subject, setting: PreparedMethod, tick: Tick) -> list[list[int]]:
    """Outputs of one setting on every prompt, decoded as `evaluate` decodes them."""
    experiment, pair = subject.prepared.experiment, subject.prepared.pair
    rows = experiment.batch if setting is subject.setting else 1
    engine = Engine(pair.models, pair.eos_ids, max_batch_size=rows)
    prompts = subject.prompts()
    rngs = [rng_for(experiment.temperature, experiment.seed, name) for name in prompts]
    requests = (
        Request(setting.decoder, ids, experiment.max_new_tokens, rng, name=name)
        for (name, ids), rng in zip(prompts.items(), rngs, strict=True)
    )
    result: dict[int, list[int]] = {}
    with in_memory(subject):
        for place, out in engine.generate_all(requests):
            result[place] = out.token_ids
            tick()
    return [result[place] for place in range(len(prompts))]


def check_plain(subject: Subject, texts: Texts) -> Check:
    """Check that one forward over the whole text draws every token of plain decoding again."""
    pair, prompts = subject.prepared.pair, subject.prompts()
    with in_memory(subject):
        again = [
            reread(pair, subject.draws, name, ids, text).tokens
            for (name, ids), text in zip(prompts.items(), texts, strict=True)
        ]
        result = differences(
            pair, subject.arithmetic, prompts, {PLAIN: texts, "forward": again}, "forward", subject.draws
        )
    return _judged(PLAIN, subject, result, texts, "tokens are those that one forward over the whole text gives", "it")


def check_equality(subject: Subject, plain: Texts, tick: Tick) -> Check:
    """Check that the method decodes the same tokens as plain decoding."""
    if spec(subject.method.method).is_plain_decoding:
        return Check(EQUAL, SKIPPED, "the method is plain decoding, which is checked above.")
    if not subject.certain and not spec(subject.method.method).grows_tree:
        return Check(
            EQUAL, SKIPPED, "at this temperature the method makes its own draws: its tokens need not be plain"
            " decoding's, only their distribution, which is checked below.",
        )  # fmt: skip
    try:
        texts = decode(subject, subject.setting, tick)
    except BREAKS as error:
        return broken(EQUAL, error, "on these prompts")
    with in_memory(subject):
        result = differences(
            subject.prepared.pair, subject.arithmetic, subject.prompts(), {EQUAL: texts, PLAIN: plain}, PLAIN,
            subject.draws,
        )  # fmt: skip
    same = "same tokens as plain decoding" if subject.certain else "same tokens as plain decoding with the same seed"
    return _judged(EQUAL, subject, result, texts, same, "plain decoding")


def _judged(
    name: str, subject: Subject, divergences: Sequence[Difference], texts: Texts, same: str, other: str
) -> Check:  # fmt: skip
    """The verdict on first differences: an exact dtype permits only near ties; in others rounding may explain one."""
    total, tokens = len(texts), sum(len(text) for text in texts)
    far = [each for each in divergences if not each.near_tie]
    exact = subject.arithmetic in EXACT_DTYPES
    wrong = far if exact else [each for each in far if beyond_rounding(each)]
    ties = len(divergences) - len(far)
    numbers = {
        "prompts": total, "tokens": tokens, "equal": total - len(divergences), "near_ties": ties, "far": len(far),
        "beyond_rounding": len(wrong), "equal_share": 1 - len(divergences) / total,
    }  # fmt: skip
    words = f"{total - len(divergences)} of {count(total, 'prompt')}: the {same} ({count(tokens, 'token')})."
    if ties:
        gaps = [each.gap for each in divergences if each.near_tie and each.gap is not None]
        widest = f", at most {max(gaps):.1e} logits apart" if gaps else ""
        words += f" {ties} first differ{'s' if ties == 1 else ''} at a near tie{widest}: rounding, not the method."
    if wrong:
        words += f" {len(wrong)} differ{'s' if len(wrong) == 1 else ''}: {_told(subject, wrong[0], other)}"
    elif far:
        words += (
            f" {len(far)} first differ where {subject.arithmetic} rounds: {_told(subject, far[0], other)} Reported, not"
            " judged: only in float32 is every divergence a near tie or a bug."
        )
    verdict = FAILED if wrong else REPORTED if far else PASSED
    return Check(name, verdict, words, numbers, {"differences": [_as_json(subject, each) for each in divergences]})


def _told(subject: Subject, each: Difference, other: str) -> str:
    """The first difference as readable text."""
    gap = "one of them has ended"
    if each.token is not None and each.reference is not None:
        gap = "cut off by top-k or top-p" if each.gap is None else f"{each.gap:.3g} logits apart"
    return (
        f"first prompt '{each.prompt_id}', token {each.position}: {subject.word(each.token)} where {other} has"
        f" {subject.word(each.reference)}, {gap}, which is not a near tie."
    )


def _as_json(subject: Subject, each: Difference) -> dict[str, object]:
    return {**asdict(each), "text": subject.word(each.token), "reference_text": subject.word(each.reference)}
