"""The check of a certificate whether logits depend on what is fed together: rows, trees, rows of a batch, recordings.

Bit for bit, on the user's own models, after prompts and plain decoding's outputs. With `numerics: invariant` any
difference is a failure; otherwise it is reported: it explains why equal logits can differ at near ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from specexp.certify.checks import FAILED, PASSED, REPORTED, SKIPPED, Check, Subject, count, in_memory
from specexp.certify.own_models import Texts
from specexp.certify.work import Bench, Lost, Share, without
from specexp.decoding.protocol import Role
from specexp.lm.native.invariance import CHAIN, PIECE, ROWS, TREE, TREES, RowComparison, compare, told
from specexp.lm.runtime import SAME
from specexp.method_specs import models_of, spec

NAME = "invariance"
PROMPTS = 3  # whose texts are fed


@dataclass(frozen=True, slots=True)
class InvarianceUnit:
    """Compares the ways of feeding the end of a text to one model."""

    prompt_id: str
    role: Role
    ids: Sequence[int]
    num_runs = 0
    size = 0.0

    @property
    def title(self) -> str:
        return f"prompt '{self.prompt_id}'"

    @property
    def parts(self) -> Sequence[InvarianceUnit]:
        return (self,)

    def do(self, bench: Bench) -> list[RowComparison]:
        subject = bench.subject
        grows = spec(subject.method.method).grows_tree or subject.invariant
        with in_memory(subject):
            model = subject.prepared.pair.models[self.role]
            return list(compare(model, self.ids, ROWS, TREES if grows else ()))


def check_invariance(subject: Subject, texts: Texts, share: Share) -> Check:
    """Check each model of the method that is a decoder by itself on some prompts that were decoded plainly."""
    prepared = subject.prepared
    if prepared.experiment.toy is not None:
        return Check(NAME, SKIPPED, "the toy models are tables of logits, which nothing is fed together with.")
    prompts = subject.prompts()
    roles = [role for role in sorted(models_of(subject.method), reverse=True) if role in prepared.pair.models]
    if prepared.experiment.draft.head or prepared.pair.vocabulary != SAME:
        roles = [role for role in roles if role == "target"]
    chosen = list(texts)[:PROMPTS]
    units = [InvarianceUnit(name, role, [*prompts[name], *texts[name]]) for role in roles for name in chosen]
    results = list(share(units))
    lost = [each for each in results if isinstance(each, Lost)]
    compared = {
        role: [
            comparison
            for unit, each in zip(units, results, strict=True)
            if unit.role == role and not isinstance(each, Lost)
            for comparison in each
        ]
        for role in roles
    }
    return without(_judged(subject, compared, len(chosen)), lost)


def _judged(subject: Subject, compared: dict[Role, list[RowComparison]], num_prompts: int) -> Check:
    made = [each for comparisons in compared.values() for each in comparisons]
    differing = {role: [x for x in each if x.num_differing] for role, each in compared.items()}
    rows = sum(each.num for each in made)
    numbers = {"rows": rows, "differing": sum(each.num_differing for each in made), "prompts": num_prompts}
    details: dict[str, object] = {
        role: [asdict(each) for each in comparisons] for role, comparisons in compared.items()
    }
    who = " and ".join(f"the {role}'s" for role in compared)
    if not numbers["differing"]:
        sizes = {what: [each.size for each in made if each.what == what] for what in (CHAIN, TREE)}
        ways = f"among {min(sizes[CHAIN])} to {max(sizes[CHAIN])} rows, " if sizes[CHAIN] else ""
        ways += f"in trees of {min(sizes[TREE])} to {max(sizes[TREE])} nodes, " if sizes[TREE] else ""
        words = (
            f"{who} logits of a token are the same bits {ways}in {PIECE} with its text and next to other rows of a"
            f" batch ({rows:,} rows, {count(num_prompts, 'prompt')})."
        )
        return Check(NAME, PASSED, words, numbers, details)
    which = "; ".join(f"the {role}'s logits depend on {told(each)}" for role, each in differing.items() if each)
    if subject.invariant:
        return Check(NAME, FAILED, f"numerics is invariant, but {which}.", numbers, details)
    words = f"{which}. Reported, not judged: rounding differs so, and with it tokens at near ties."
    return Check(NAME, REPORTED, words, numbers, details)
