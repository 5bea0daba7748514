"""Whether what a server counts of its drafts can be true of the tokens that it emitted."""

from __future__ import annotations

from specexp.certify.checks import FAILED, PASSED, REPORTED, SKIPPED, Check
from specexp.engine_certify import findings
from specexp.engine_certify.engine_subject import EngineSubject
from specexp.engine_certify.findings import Finding, made, worst
from specexp.engine_certify.greedy_checks import GreedyOutputs
from specexp.engines import acceptance

NAME = "draft counts"


def check_counts(subject: EngineSubject, outputs: GreedyOutputs, counters: tuple[str, str] | None) -> Check:
    """Check the counts of the greedy outputs, of each and of all; `counters` are /metrics before and after."""
    sentences, verdicts, named = [], [], []
    for engine in subject.engines:
        each = [output for output in outputs.of(engine) if output.drafts is not None and output.num_tokens]
        both = [(output.drafts, output.num_tokens) for output in each if output.drafts is not None]
        all_of_them = acceptance.total([drafts for drafts, _ in both])
        source = "" if all_of_them is None else all_of_them.source
        faults = [fault for drafts, number in both for fault in drafts.faults(number or 0)]
        tokens = sum(number or 0 for _, number in both)
        told = all_of_them is not None and all_of_them.can_be_refuted
        if not told and engine is subject.engine and counters is not None:
            # llama.cpp's answers count drafts, and its /metrics rounds, too, without which little can be refuted.
            by_counters = acceptance.of_counters(*counters)
            if by_counters is not None:
                all_of_them, source = by_counters, by_counters.source
                tokens = sum(output.num_tokens or 0 for output in outputs.of(engine))
                each = list(outputs.of(engine))
        if all_of_them is None:
            verdicts.append(SKIPPED)
            sentences.append(f"{engine.name}: the server does not say what it drafted.")
            continue
        faults = all_of_them.faults(tokens, len(each)) + faults
        rate = all_of_them.metrics().get("accept/draft_rate")
        said = f"{all_of_them.num_accepted} of {all_of_them.num_drafted} drafted tokens accepted"
        said += f" ({rate:.0%})" if rate is not None else ""
        where = f"{engine.name}, by {source or all_of_them.source}: {said}"
        if faults:
            verdicts.append(FAILED)
            sentences.append(f"{where}, which cannot be true: {faults[0]}")
            named.append(
                Finding(
                    findings.COUNTS_FALSE, f"the counts of accepted tokens cannot be true: {faults[0]}",
                    engine is not subject.engine,
                )
            )  # fmt: skip
        elif not all_of_them.can_be_refuted:
            verdicts.append(REPORTED)
            sentences.append(f"{where}; it counts no rounds, without which fewer accepted tokens could be meant.")
        else:
            verdicts.append(PASSED)
            sentences.append(f"{where}, which fits {tokens:,} tokens.")
    return made(NAME, worst(verdicts), " ".join(sentences), named)
