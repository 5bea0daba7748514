"""Greedy outputs of a served engine: against plain decoding of the same engine, against the weights, their ends, and
whether what the server counts of its drafts can be true of them.

Against the weights each output is read again by one forward, so that every token that is not the likeliest counts.
Without weights the plain endpoint continues from each token that differs, up to a few in an output: what follows a
replaced token is then compared, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specexp.certify.checks import FAILED, INCONCLUSIVE, PASSED, REPORTED, SKIPPED, Check, count
from specexp.engine_certify import divergences, findings
from specexp.engine_certify.divergences import BUG, NEAR_TIE, UNTOLD, GreedyDivergence
from specexp.engine_certify.engine_subject import EngineRequest, EngineSubject, ExaminedEngine, Tick
from specexp.engine_certify.findings import Finding, made, worst
from specexp.engine_certify.served_output import ServedOutput
from specexp.engines import acceptance
from specexp.engines.body import Sampling
from specexp.storage.journal import Key

AGAINST, WEIGHTS, END, COUNTS = "plain endpoint", "weights", "ends", "draft counts"
MOST_RESUMED = 6  # tokens of an output after which the plain endpoint continues
RARE = 0.05  # share of tokens up to which they count as replaced, not as another way of decoding
Outputs = Sequence[ServedOutput]


@dataclass(frozen=True, slots=True)
class GreedyOutputs:
    """Outputs of each engine on every prompt at temperature 0; those of `against` are plain decoding's."""

    engine: Outputs
    against: Outputs | None

    def of(self, engine: ExaminedEngine) -> Outputs:
        return self.engine if engine.role == "engine" or self.against is None else self.against


def ask(subject: EngineSubject, tick: Tick) -> GreedyOutputs:
    """Ask all engines for all prompts, one request at a time."""
    result = [subject.ask(each, requests(subject), tick, together=1) for each in subject.engines]
    return GreedyOutputs(result[0], result[1] if len(result) > 1 else None)


def requests(subject: EngineSubject, kind: str = "greedy") -> list[EngineRequest]:
    """Requests for all prompts at temperature 0."""
    most = subject.prepared.experiment.max_new_tokens
    return [EngineRequest((kind, prompt), prompt, Sampling(most)) for prompt in range(len(subject.names()))]


def check_against(subject: EngineSubject, outputs: GreedyOutputs, tick: Tick) -> Check:
    """Compare with the plain endpoint, token for token where both give tokens, else by text."""
    if subject.against is None or outputs.against is None:
        return made(AGAINST, SKIPPED, "no plain endpoint was named by against.")
    found: list[GreedyDivergence] = []
    equal, by = 0, "token ids"
    for prompt, (output, plain) in enumerate(zip(outputs.engine, outputs.against, strict=True)):
        one, other = _tokens_of(subject, output), _tokens_of(subject, plain)
        if one is None or other is None:
            by = "text"
            swallowed = plain.ended and not output.ended and output.text.startswith(plain.text)
            different = None if swallowed else divergences.first(subject, prompt, output.text, plain.text)
            each = [different] if different else []
        elif output.split or plain.split:
            by = "text"
            different = divergences.between(subject, prompt, replace(output, tokens=one), replace(plain, tokens=other))
            each = [different] if different and not _goes_on(output, plain) else []
        else:
            each = _resumed(subject, subject.against, prompt, one, other, tick)
        equal += not each
        found += each
    number = sum(len(_tokens_of(subject, each) or ()) or each.num_tokens or 0 for each in outputs.engine)
    words = (
        f"{equal} of {count(len(outputs.engine), 'greedy output')} are those of plain decoding"
        f" ({subject.against.name}), by {by} ({count(number, 'token')}).{divergences.summed(found, subject)}"
    )
    return _judged(AGAINST, subject, words, found, len(outputs.engine), number, equal)


def _resumed(
    subject: EngineSubject, against: ExaminedEngine, prompt: int, output: tuple[int, ...], plain: tuple[int, ...],
    tick: Tick,
) -> list[GreedyDivergence]:  # fmt: skip
    """The divergences of an output; where no weights read it again, plain decoding continues from each of them."""
    found: list[GreedyDivergence] = []
    most = subject.prepared.experiment.max_new_tokens
    while (divergence := divergences.first(subject, prompt, output, plain)) is not None:
        found.append(divergence)
        before = output[: divergence.position + 1]
        going_on = len(before) < len(output) and not set(before) & set(subject.ends)
        if subject.target is not None or not against.by_ids or len(found) == MOST_RESUMED or not going_on:
            break
        key: Key = ("resumed", prompt, *before)
        request = EngineRequest(key, prompt, Sampling(most - len(before)), before)
        (rest,) = subject.ask(against, [request], tick)
        plain = (*before, *(rest.tokens or ()))
    return found


def check_weights(subject: EngineSubject, outputs: GreedyOutputs) -> Check:
    """Compare each token with the likeliest one of the weights."""
    target = subject.target
    if target is None:
        return made(WEIGHTS, SKIPPED, "no weights are at hand.")
    read = [_tokens_of(subject, each) for each in outputs.engine]
    if any(tokens is None for tokens in read):
        return made(WEIGHTS, INCONCLUSIVE, "the server's texts cannot be turned into tokens.")
    found: list[GreedyDivergence] = []
    equal = 0
    for prompt, tokens in enumerate(read):
        each = divergences.forced(subject, target, prompt, tokens) if tokens else []
        if outputs.engine[prompt].split and any(one.kind == BUG for one in each):
            each = divergences.forced_text(subject, target, prompt, outputs.engine[prompt])
        equal += not each
        found += each
    number = sum(len(tokens or ()) for tokens in read)
    words = (
        f"{equal} of {count(len(read), 'greedy output')} have the likeliest token of the weights in every place"
        f" ({count(number, 'token')}), as transformers' generate does.{divergences.summed(found, subject)}"
    )
    return _judged(WEIGHTS, subject, words, found, len(read), number, equal)


def _judged(
    name: str, subject: EngineSubject, words: str, found: Sequence[GreedyDivergence], total: int, number: int,
    equal: int,
) -> Check:  # fmt: skip
    bugs = [each for each in found if each.kind == BUG]
    untold = [each for each in found if each.kind == UNTOLD]
    verdict = FAILED if bugs else INCONCLUSIVE if untold else PASSED
    numbers = {
        "prompts": total, "tokens": number, "equal": equal, "near_ties": sum(each.kind == NEAR_TIE for each in found),
        "bugs": len(bugs), "untold": len(untold),
    }  # fmt: skip
    counted = len(bugs) if subject.target is not None or name == WEIGHTS else len({each.prompt_id for each in bugs})
    share = max(counted, len(bugs)) / max(number, 1)
    named = []
    if bugs and name == AGAINST and subject.target is not None:
        named = [Finding(findings.NOT_PLAIN, f"greedy output is not that of plain decoding: {bugs[0].told(subject)}.")]
    elif bugs and share <= RARE:
        named = [
            Finding(
                findings.TOKENS_REPLACED,
                f"about one token in {round(1 / share)} is not what greedy decoding gives, and the output goes on from"
                f" it ({count(len(bugs), 'token')} of {number:,}; {bugs[0].told(subject)}).",
            )
        ]
    elif bugs:
        named = [
            Finding(
                findings.NOT_PLAIN,
                f"at temperature 0 the output is not greedy: {len(bugs)} of {count(number, 'token')} are others"
                f" ({bugs[0].told(subject)}).",
            )
        ]
    details = [
        {"prompt_id": each.prompt_id, "position": each.position, "token": each.token, "expected": each.expected,
         "kind": each.kind, "gap": each.gap} for each in found
    ]  # fmt: skip
    return made(name, verdict, words, named, numbers, differences=details)


def _tokens_of(subject: EngineSubject, output: ServedOutput) -> tuple[int, ...] | None:
    """An output's tokens up to its first EOS: what follows one is a matter of `check_ends`."""
    if output.tokens is None:
        return None
    end = next((i + 1 for i, token in enumerate(output.tokens) if token in subject.ends), len(output.tokens))
    return output.tokens[:end]


def check_ends(subject: EngineSubject, outputs: GreedyOutputs) -> Check:
    """Outputs must end with their EOS: none goes on after it, and where plain decoding ends, so do they."""
    sentences, swallowing = [], []
    ended = went_on = 0
    for engine in subject.engines:
        each, plain = outputs.of(engine), outputs.of(subject.engines[-1])
        over = [
            prompt
            for prompt, (output, other) in enumerate(zip(each, plain, strict=True))
            if _inner_end(subject, output.tokens) or _goes_on(output, other)
        ]
        ended = sum(output.ended for output in each)
        went_on += len(over)
        if over:
            swallowing.append(engine)
            name = subject.names()[over[0]]
            sentences.append(f"{engine.name}: {count(len(over), 'output')} go on after an EOS (first prompt '{name}').")
        else:
            sentences.append(
                f"{engine.name}: {ended} of {len(each)} outputs end with an EOS, and none goes on after one."
            )
    found = []
    if swallowing:
        said = f"an EOS is swallowed: {went_on} outputs go on after it."
        found = [
            Finding(findings.EOS_SWALLOWED, said, subject.engines[-1] in swallowing and subject.against is not None)
        ]
    elif not ended:
        return made(END, SKIPPED, "no output ended with an EOS; raise max_new_tokens to see it.")
    elif not subject.ends and subject.against is None:
        return made(END, SKIPPED, "without a tokenizer it is not known which token ends an output.")
    return made(END, FAILED if swallowing else PASSED, " ".join(sentences), found, {"went_on": went_on})


def _inner_end(subject: EngineSubject, tokens: tuple[int, ...] | None) -> bool:
    return tokens is not None and any(token in subject.ends for token in tokens[:-1])


def _goes_on(output: ServedOutput, plain: ServedOutput) -> bool:
    """True if plain decoding ended, and this output is the same and more."""
    one, other = output.compared, plain.compared
    if type(one) is not type(other) or len(one) <= len(other):
        return False
    return plain.ended and not output.ended and one[: len(other)] == other


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
    return made(COUNTS, worst(verdicts), " ".join(sentences), named)
