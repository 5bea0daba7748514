"""The exactness certificate of a method, on a pair and at a sampling setting: is its output the target's own?

Five checks, in this order: the exhaustive oracle on the method's decoder at toy size; on the user's own models, plain
decoding against one forward over the whole text; the method against plain decoding, token for token; whether logits
depend on what is fed together, bit for bit; and for sampling a chi-square test together with a planted bias. The
verdict is lossless if no check fails or remains open. This module does not know MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from specexp.certify import invariance, own_models, places, sampled, toy_oracle
from specexp.certify.certificate_config import CertificateConfig
from specexp.certify.checks import FAILED, INCONCLUSIVE, PASSED, REPORTED, Check, Subject
from specexp.certify.work import LOST, OneProcess, Work
from specexp.decoding.draft_length import RelativeCosts
from specexp.errors import WorkerError
from specexp.evaluation import measured_costs, preparation
from specexp.evaluation.preparation import Prepared
from specexp.judge.judge import Judge
from specexp.pair.loading import Pair, load_pair
from specexp.profiling import time_estimate
from specexp.storage.run_folder import OutputFolder

ORACLE = "oracle"
NAMES = (ORACLE, own_models.PLAIN, own_models.EQUAL, invariance.NAME, sampled.NAME)
LOSSLESS, NOT_LOSSLESS = "lossless", "not lossless"


@dataclass(frozen=True, slots=True)
class Certificate:
    """The result of all checks. `lossy` says why a method is lossy by design; it is empty for a lossless one."""

    checks: tuple[Check, ...]
    lossy: str

    @property
    def verdict(self) -> str:
        """lossless, not lossless or inconclusive."""
        result = {check.verdict for check in self.checks}
        if FAILED in result:
            return NOT_LOSSLESS
        return INCONCLUSIVE if INCONCLUSIVE in result or self.lossy else LOSSLESS

    @property
    def reason(self) -> str:
        """The verdict in a sentence."""
        failed = [check.name for check in self.checks if check.verdict == FAILED]
        open_ = [check.name for check in self.checks if check.verdict == INCONCLUSIVE]
        design = f" The method is lossy by design: {self.lossy}." if self.lossy else ""
        if failed:
            return f"{_listed(failed)} failed.{design}"
        if open_:
            return f"{_listed(open_)} could not decide.{design}"
        if self.lossy:
            return f"no check found a difference.{design}"
        # What logits depend on is no divergence.
        reported = [each.name for each in self.checks if each.verdict == REPORTED and each.name != invariance.NAME]
        note = f"; {_listed(reported)} found divergences within rounding" if reported else ""
        return f"every check that applies passed{note}."

    def metrics(self) -> dict[str, float]:
        """`certificate/*`; docs/metrics.md has the definitions."""
        by_name = {check.name: check.numbers for check in self.checks}
        equality, plain = by_name[own_models.EQUAL], by_name[own_models.PLAIN]
        result: dict[str, float | int | None] = {
            "lossless": int(self.verdict == LOSSLESS),
            "oracle_gap": by_name[ORACLE].get("gap"),
            "prompts": plain.get("prompts"),
            "equal_share": equality.get("equal_share"),
            "rows_differing": by_name[invariance.NAME].get("differing"),
            "near_ties": plain.get("near_ties", 0) + equality.get("near_ties", 0),
            "samples": by_name[sampled.NAME].get("samples"),
            "chi_square_p": by_name[sampled.NAME].get("p"),
            "control_p": by_name[sampled.NAME].get("control_p"),
            "control_variation": by_name[sampled.NAME].get("control_variation"),
        }
        return {f"certificate/{name}": float(value) for name, value in result.items() if value is not None}


def prepare(
    config: CertificateConfig, judges: Mapping[str, Judge] | None = None, load: Callable[..., Pair] = load_pair
) -> Subject:
    """Load everything and check that it fits together; `load` as in `preparation.prepare`. Raises SpecexpError."""
    return _subject(preparation.prepare(config.experiment, judges, load=load))


def with_draft_costs(
    subject: Subject, output: OutputFolder, measure: Callable[[int], RelativeCosts] | None = None
) -> Subject:
    """Tell a method of `gamma: auto` what calls cost, which decides where its drafts end; `measure` as in
    `measured_costs.with_draft_costs`."""
    return _subject(measured_costs.with_draft_costs(subject.prepared, output, measure))


def adapted(subject: Subject, costs: RelativeCosts) -> Subject:
    """The same with these costs of calls."""
    return _subject(measured_costs.adapted(subject.prepared, costs))


def _subject(prepared: Prepared) -> Subject:
    return Subject(prepared, prepared.settings[0], prepared.settings[-1])


def examine(
    subject: Subject,
    samples: int,
    done: Mapping[str, Check] | None = None,
    note: Callable[[Check], None] | None = None,
    work: Work | None = None,
) -> Certificate:
    """Run every check that is not `done`; pass each to `note` as soon as its result is known, unless workers died at a
    part of it. `work` computes with the models; this process is the default. Raises ModelError, WorkerError."""
    work = work or OneProcess(subject)
    checks = dict(done or {})
    prompts = len(subject.prepared.prompts)
    compared = subject.certain or subject.method.tree is not None
    total = toy_oracle.num_runs(subject.method, subject.warp) + prompts * (1 + compared)
    total += sampled.num_ticks(subject, samples)
    if any(name not in checks for name in NAMES):
        _announce(subject, work, prompts * (1 + compared), sampled.num_ticks(subject, samples))
    with tqdm(total=total, desc=f"certify {subject.method.label}", unit="run", dynamic_ncols=True) as bar:
        share = work.share(bar.update)

        def made(name: str, make: Callable[[], Check]) -> None:
            if name not in checks:
                bar.set_postfix_str(name)
                checks[name] = make()
                if note is not None and LOST not in checks[name].details:
                    note(checks[name])

        made(ORACLE, lambda: check_oracle(subject, bar.update))
        if any(name not in checks for name in NAMES):
            texts, plain, lost = own_models.check_plain(subject, share, own_models.PLAIN not in checks)
            if not texts:
                raise WorkerError(f"every prompt has failed: {lost[0].sentence}.")
            made(own_models.PLAIN, lambda: plain)
            made(own_models.EQUAL, lambda: own_models.check_equality(subject, texts, share, lost))
            made(invariance.NAME, lambda: invariance.check_invariance(subject, texts, share))
            made(sampled.NAME, lambda: sampled.check_samples(subject, texts, samples, share, lost))
        bar.set_postfix_str("")
    return Certificate(tuple(checks[name] for name in NAMES), subject.lossy)


def _announce(subject: Subject, work: Work, outputs: int, num_samples: int) -> None:
    """Announce how long the checks on the user's own models take at most."""
    most, pace = subject.prepared.experiment.max_new_tokens, work.pace()
    what = f"{outputs} outputs of up to {most} tokens"
    lower = "limit or max_new_tokens"
    if num_samples:
        what += f" and {num_samples} samples of {places.LENGTH} tokens"
        lower = "limit, max_new_tokens or samples"
    taken = outputs * pace.seconds(most) + num_samples * places.LENGTH * pace.token
    time_estimate.announce(taken, f"{what}, each as slow as plain decoding one at a time", lower)


def check_oracle(subject: Subject, tick: Callable[[], Any]) -> Check:
    """Check that the decoder's exact output distribution on toy models is the target's own."""
    vocabulary = subject.prepared.pair.vocabulary
    result = toy_oracle.examine(subject.method, subject.warp, subject.judge, tick, vocabulary)
    sizes = " and at ".join(result.sizes)
    details = {"sizes": list(result.sizes), "worst": result.worst, "broken": result.broken}
    if result.broken:
        words = f"the decoder failed on toy models ({result.worst}): {result.broken}"
        return Check(ORACLE, FAILED, words, {}, details)
    numbers = {"gap": result.gap, "outputs": result.num_outputs, "bound": toy_oracle.EXACT}
    if result.gap < toy_oracle.EXACT:
        words = (
            "over all outcomes of the draws, on toy models: the decoder's output distribution is the target's (largest"
            f" gap {result.gap:.2g} over {result.num_outputs} outputs, below {toy_oracle.EXACT:g}; at {sizes})."
        )
        return Check(ORACLE, PASSED, words, numbers, details)
    words = (
        "the decoder's output distribution on toy models is not the target's: an output's probability is off by"
        f" {result.gap:.2g} (at {result.worst})."
    )
    return Check(ORACLE, FAILED, words, numbers, details)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
