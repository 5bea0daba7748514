"""Whether a request's limits are obeyed, at temperature 0: stop strings, max_tokens, logit_bias.

Each is set by what the engine said without it: a stop string from the middle of its output, fewer tokens than it has, a
bias against its first token and one for another token.
"""

from __future__ import annotations

from collections.abc import Callable

from specexp.certify.checks import FAILED, INCONCLUSIVE, PASSED, SKIPPED, Check, count
from specexp.engine_certify import findings
from specexp.engine_certify.engine_subject import EngineRequest, EngineSubject, ExaminedEngine, Tick
from specexp.engine_certify.findings import Finding, made, worst
from specexp.engine_certify.greedy_checks import GreedyOutputs
from specexp.engine_certify.served_output import ServedOutput
from specexp.engines.body import Sampling
from specexp.engines.responses import Refused

STOP, MOST, BIAS = "stop strings", "max_tokens", "logit_bias"
PROMPTS = 4
STOP_LENGTH = 3  # characters
LIMITS = (1, 7)
BANNED, FORCED = -100.0, 100.0
Parts = tuple[str, str, str]  # verdict, sentence, name of what was found
One = Callable[[EngineSubject, ExaminedEngine, list[ServedOutput], Tick], Parts]


def limits(most: int) -> list[int]:
    """Return the values of max_tokens that are tried where whole outputs have at most `most` tokens."""
    return [each for each in LIMITS if each <= most]


def num_requests(subject: EngineSubject) -> int:
    """How many requests the checks of this module make at most."""
    few = min(PROMPTS, len(subject.names()))
    return len(subject.engines) * few * (1 + len(limits(subject.prepared.experiment.max_new_tokens)) + 2)


def check_stop(subject: EngineSubject, outputs: GreedyOutputs, tick: Tick) -> Check:
    return _each(subject, outputs, STOP, _stopped, tick)


def check_limit(subject: EngineSubject, outputs: GreedyOutputs, tick: Tick) -> Check:
    return _each(subject, outputs, MOST, _limited, tick)


def check_bias(subject: EngineSubject, outputs: GreedyOutputs, tick: Tick) -> Check:
    return _each(subject, outputs, BIAS, _tilted, tick)


def _each(subject: EngineSubject, outputs: GreedyOutputs, name: str, one: One, tick: Tick) -> Check:
    """The check of each engine, in one sentence each; an engine may refuse the setting."""
    sentences, verdicts, named = [], [], []
    for engine in subject.engines:
        try:
            verdict, words, found = one(subject, engine, list(outputs.of(engine))[:PROMPTS], tick)
        except Refused:
            verdict, words, found = SKIPPED, f"the server refuses {name}.", ""
        sentences.append(f"{engine.name}: {words}")
        verdicts.append(verdict)
        if found:
            named.append(Finding(found, words, engine is not subject.engine))
    return made(name, worst(verdicts), " ".join(sentences), named)


def _stopped(subject: EngineSubject, engine: ExaminedEngine, whole: list[ServedOutput], tick: Tick) -> Parts:
    most = subject.prepared.experiment.max_new_tokens
    stops = {
        prompt: output.text[len(output.text) // 2 :][:STOP_LENGTH]
        for prompt, output in enumerate(whole)
        if len(output.text) >= 4 * STOP_LENGTH
    }
    if not stops:
        return SKIPPED, "the outputs are too short for a stop string in their middle.", ""
    asked = [
        EngineRequest((STOP, prompt, stop), prompt, Sampling(most, stop=(stop,))) for prompt, stop in stops.items()
    ]
    answers = subject.ask(engine, asked, tick, together=1)
    leaked: list[str] = []
    ignored: list[str] = []
    other: list[str] = []
    for (prompt, stop), answer in zip(stops.items(), answers, strict=True):
        expected = whole[prompt].text[: whole[prompt].text.index(stop)]
        if answer.text.startswith(expected + stop):
            # A text that has no more than the token in which the stop string ends was ended by it.
            longer = len(answer.text) - len(expected) - len(stop)
            (leaked if answer.ended and longer <= STOP_LENGTH else ignored).append(stop)
        elif answer.text != expected:
            other.append(stop)
    total = count(len(stops), "output")
    if leaked:
        return FAILED, f"the stop string leaks into the text of {len(leaked)} of {total}.", findings.STOP_LEAKED
    if ignored:
        return FAILED, f"{len(ignored)} of {total} go on after their stop string.", findings.STOP_IGNORED
    if other:
        return INCONCLUSIVE, f"{len(other)} of {total} have another text before their stop string.", ""
    return PASSED, f"stop strings are obeyed: {total} end before theirs, with the text as it is without one.", ""


def _limited(subject: EngineSubject, engine: ExaminedEngine, whole: list[ServedOutput], tick: Tick) -> Parts:
    asked = [
        EngineRequest((MOST, prompt, most), prompt, Sampling(most))
        for prompt in range(len(whole))
        for most in limits(subject.prepared.experiment.max_new_tokens)
    ]
    over, short, uncounted = [], [], 0
    for request, answer in zip(asked, subject.ask(engine, asked, tick, together=1), strict=True):
        most, number = request.sampling.max_tokens, answer.num_tokens
        uncounted += number is None
        if number is not None and number > most:
            over.append(f"{number} tokens where max_tokens is {most}")
        elif not whole[request.prompt].text.startswith(answer.text.rstrip("\ufffd")):
            short.append(most)
        elif number is not None and number < most and not answer.ended:
            over.append(f"{number} tokens where max_tokens is {most}, and no EOS")
    if over:
        return FAILED, f"max_tokens is not obeyed: {over[0]}.", findings.LIMIT_EXCEEDED
    if uncounted:
        return INCONCLUSIVE, "the server does not count the tokens of its outputs.", ""
    if short:
        return INCONCLUSIVE, f"{count(len(short), 'output')} with a lower max_tokens begin otherwise than without.", ""
    tried = " and ".join(map(str, sorted({each.sampling.max_tokens for each in asked})))
    words = f"max_tokens is obeyed: {count(len(asked), 'output')} with {tried} tokens at most"
    return PASSED, f"{words} are the beginnings of the whole ones.", ""


def _tilted(subject: EngineSubject, engine: ExaminedEngine, whole: list[ServedOutput], tick: Tick) -> Parts:
    """Ban each output's first token, and force the token that another output has in its middle."""
    firsts = {
        prompt: output.tokens[0]
        for prompt, output in enumerate(whole)
        if output.tokens and output.tokens[0] not in subject.ends
    }
    pool = [
        token for output in whole for token in (output.tokens or ())[1:]
        if token not in subject.ends and token not in firsts.values()
    ]  # fmt: skip
    if not firsts or not pool:
        return SKIPPED, "no token ids are known that could be biased.", ""
    asked = []
    for prompt, token in firsts.items():
        for what, biased, value in (("ban", token, BANNED), ("force", pool[len(pool) // 2], FORCED)):
            sampling = Sampling(1, logit_bias={biased: value})
            asked.append(EngineRequest((BIAS, prompt, what, biased), prompt, sampling))
    wrong = 0
    for request, answer in zip(asked, subject.ask(engine, asked, tick, together=1), strict=True):
        ((token, value),) = request.sampling.logit_bias.items()
        wrong += came(subject, answer, token) == (value < 0)
    if wrong:
        words = f"logit_bias is ignored in {wrong} of {count(len(asked), 'request')}."
        return FAILED, words, findings.BIAS_IGNORED
    return PASSED, f"logit_bias is obeyed in {count(len(asked), 'request')} that ban or force a first token.", ""


def came(subject: EngineSubject, answer: ServedOutput, token: int) -> bool:
    """True if an output of one token is this one: by its text where a text is all there is."""
    if answer.split:
        return answer.text.strip() == subject.decode([token]).strip()
    return bool(answer.tokens) and answer.tokens is not None and answer.tokens[0] == token
