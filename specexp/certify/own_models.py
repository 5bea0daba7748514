"""The checks of a certificate on the user's own models, token for token: plain decoding against one forward over the
whole text, and the method against plain decoding.

Teacher forcing draws plain decoding's tokens again: no cache, no steps, the same draws. A method is compared with plain
decoding where both must draw the same tokens: at temperature 0, with top-k 1, and for trees at any temperature, since
the target's own draws walk a tree. A chain samples with its own draws; `sampled.py` tests what they follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from specexp.certify.checks import (
    BREAKS,
    FAILED,
    PASSED,
    REPORTED,
    SKIPPED,
    Check,
    Subject,
    count,
    in_memory,
)
from specexp.certify.work import Bench, Broken, Lost, Share, failure, without
from specexp.decoding.rng import rng_for
from specexp.engine import Request
from specexp.evaluation.equality import EXACT_DTYPES, Difference, beyond_rounding, difference, reread
from specexp.evaluation.preparation import PreparedMethod
from specexp.evaluation.scheduling import group_size
from specexp.method_specs import spec

PLAIN, EQUAL = "plain decoding", "equality"
Ids = Sequence[int]
Texts = Mapping[str, Ids]  # outputs by prompt id
Compared = tuple[list[int], Difference | None]  # an output, and where it first differs


@dataclass(frozen=True, slots=True)
class PlainUnit:
    """Decodes one prompt plainly; if `reread`, draws the output again from one forward over the whole text."""

    prompt_id: str
    ids: Ids
    reread: bool
    num_runs = 1

    @property
    def title(self) -> str:
        return f"prompt '{self.prompt_id}'"

    @property
    def size(self) -> float:
        return float(len(self.ids))

    @property
    def parts(self) -> Sequence[PlainUnit]:
        return (self,)

    def do(self, bench: Bench) -> Compared:
        subject = bench.subject
        (text,) = _decoded(bench, subject.plain, 1, {self.prompt_id: self.ids})
        if not self.reread:
            return text, None
        with in_memory(subject):
            again = reread(subject.prepared.pair, subject.draws, self.prompt_id, self.ids, text).tokens
        return text, _difference(bench, PLAIN, self.prompt_id, self.ids, text, again)


@dataclass(frozen=True, slots=True)
class MethodUnit:
    """Decodes prompts by the method, together, and compares the outputs with plain decoding's."""

    prompts: Mapping[str, Ids]
    plain: Texts

    @property
    def title(self) -> str:
        names = [f"'{name}'" for name in self.prompts]
        return f"prompt {names[0]}" if len(names) == 1 else f"prompts {names[0]} to {names[-1]}"

    @property
    def num_runs(self) -> int:
        return len(self.prompts)

    @property
    def size(self) -> float:
        return float(sum(map(len, self.prompts.values())))

    @property
    def parts(self) -> Sequence[MethodUnit]:
        return [MethodUnit({name: ids}, {name: self.plain[name]}) for name, ids in self.prompts.items()]

    def do(self, bench: Bench) -> dict[str, Compared] | Broken:
        subject = bench.subject
        try:
            texts = _decoded(bench, subject.setting, subject.prepared.experiment.batch, self.prompts)
        except BREAKS as error:
            return bench.broken(error)
        return {
            name: (text, _difference(bench, EQUAL, name, ids, text, self.plain[name]))
            for (name, ids), text in zip(self.prompts.items(), texts, strict=True)
        }


def _decoded(bench: Bench, setting: PreparedMethod, rows: int, prompts: Mapping[str, Ids]) -> list[list[int]]:
    """Outputs of one setting, `rows` at a time, decoded as `evaluate` decodes them."""
    experiment = bench.subject.prepared.experiment
    requests = (
        Request(
            setting.decoder, ids, experiment.max_new_tokens, rng_for(experiment.temperature, experiment.seed, name),
            name=name,
        )
        for name, ids in prompts.items()
    )  # fmt: skip
    with in_memory(bench.subject):
        by_place = {place: out.token_ids for place, out in bench.engine(rows, rows).generate_all(requests)}
    return [by_place[place] for place in range(len(prompts))]


def _difference(bench: Bench, name: str, prompt_id: str, ids: Ids, text: Ids, other: Ids) -> Difference | None:
    subject = bench.subject
    with in_memory(subject):
        return difference(bench.engine("scores"), subject.arithmetic, name, prompt_id, ids, text, other, subject.draws)


def check_plain(subject: Subject, share: Share, judge: bool = True) -> tuple[Texts, Check, Sequence[Lost]]:
    """Outputs of plain decoding; and the check that one forward over the whole text draws every token again, which
    says nothing unless `judge`."""
    prompts = subject.prompts()
    units = [PlainUnit(name, ids, judge) for name, ids in prompts.items()]
    results = dict(zip(prompts, share(units), strict=True))
    lost = [each for each in results.values() if isinstance(each, Lost)]
    compared = {name: each for name, each in results.items() if not isinstance(each, Lost)}
    check = _judged(PLAIN, subject, compared, "tokens are those that one forward over the whole text gives", "it")
    return {name: text for name, (text, _) in compared.items()}, without(check, lost), lost


def check_equality(subject: Subject, plain: Texts, share: Share, lost: Sequence[Lost] = ()) -> Check:
    """Check that the method decodes the same tokens as plain decoding, on the prompts that were decoded plainly."""
    if spec(subject.method.method).is_plain_decoding:
        return Check(EQUAL, SKIPPED, "the method is plain decoding, which is checked above.")
    if not subject.certain and not spec(subject.method.method).grows_tree:
        return Check(
            EQUAL, SKIPPED, "at this temperature the method makes its own draws: its tokens need not be plain"
            " decoding's, only their distribution, which is checked below.",
        )  # fmt: skip
    prompts, size = subject.prompts(), group_size(subject.prepared.experiment.batch)
    names = list(plain)
    groups = [names[start : start + size] for start in range(0, len(names), size)]
    units = [MethodUnit({x: prompts[x] for x in group}, {x: plain[x] for x in group}) for group in groups]
    results = list(share(units))
    for each in results:
        if isinstance(each, Broken):
            return failure(EQUAL, each, "on these prompts")
    compared = {k: v for each in results if isinstance(each, dict) for k, v in each.items()}
    same = "same tokens as plain decoding" if subject.certain else "same tokens as plain decoding with the same seed"
    gone = [*lost, *(each for each in results if isinstance(each, Lost))]
    return without(_judged(EQUAL, subject, compared, same, "plain decoding"), gone)


def _judged(name: str, subject: Subject, compared: Mapping[str, Compared], same: str, other: str) -> Check:
    """The verdict on first differences: an exact dtype permits only near ties; in others rounding may explain one. With
    invariant numerics a method has no rounding of its own: every difference from plain decoding is a failure."""
    total, tokens = len(compared), sum(len(text) for text, _ in compared.values())
    divergences = [each for _, each in compared.values() if each is not None]
    far = [each for each in divergences if not each.near_tie]
    exact = subject.arithmetic in EXACT_DTYPES
    wrong = far if exact else [each for each in far if beyond_rounding(each)]
    strict = subject.invariant and name == EQUAL
    if strict:
        wrong = far = divergences
    ties = len(divergences) - len(far)
    numbers = {
        "prompts": total, "tokens": tokens, "equal": total - len(divergences), "near_ties": ties, "far": len(far),
        "beyond_rounding": len(wrong), "equal_share": 1 - len(divergences) / max(1, total),
    }  # fmt: skip
    words = f"{total - len(divergences)} of {count(total, 'prompt')}: the {same} ({count(tokens, 'token')})."
    if ties:
        gaps = [each.gap for each in divergences if each.near_tie and each.gap is not None]
        widest = f", at most {max(gaps):.1e} logits apart" if gaps else ""
        words += f" {ties} first differ{'s' if ties == 1 else ''} at a near tie{widest}: rounding, not the method."
    if wrong:
        words += f" {len(wrong)} differ{'s' if len(wrong) == 1 else ''}: {_told(subject, wrong[0], other, strict)}"
    elif far:
        words += (
            f" {len(far)} first differ where {subject.arithmetic} rounds: {_told(subject, far[0], other)} Reported, not"
            " judged: only in float32 is every divergence a near tie or a bug."
        )
    verdict = FAILED if wrong else REPORTED if far else PASSED
    return Check(name, verdict, words, numbers, {"differences": [_as_json(subject, each) for each in divergences]})


def _told(subject: Subject, each: Difference, other: str, strict: bool = False) -> str:
    """The first difference as readable text."""
    gap = "one of them has ended"
    if each.token is not None and each.reference is not None:
        gap = "cut off by top-k or top-p" if each.gap is None else f"{each.gap:.3g} logits apart"
    return (
        f"first prompt '{each.prompt_id}', token {each.position}: {subject.word(each.token)} where {other} has"
        f" {subject.word(each.reference)}, {gap}, which "
        + ("no difference may be: numerics is invariant." if strict else "is not a near tie.")
    )


def _as_json(subject: Subject, each: Difference) -> dict[str, object]:
    return {**asdict(each), "text": subject.word(each.token), "reference_text": subject.word(each.reference)}
