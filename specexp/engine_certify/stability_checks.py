"""Whether the same request has the same answer: asked again, while others are answered, and with the same seed."""

from __future__ import annotations

from collections.abc import Sequence

from specexp.certify.checks import FAILED, INCONCLUSIVE, PASSED, REPORTED, SKIPPED, Check, count
from specexp.engine_certify import divergences, findings
from specexp.engine_certify.divergences import BUG, UNTOLD, GreedyDivergence
from specexp.engine_certify.engine_subject import EngineRequest, EngineSubject, ExaminedEngine, Tick
from specexp.engine_certify.findings import Finding, made, worst
from specexp.engine_certify.greedy_checks import GreedyOutputs
from specexp.engines.body import Sampling
from specexp.engines.responses import Refused
from specexp.errors import EngineError, first_line

REPEAT, LOAD, SEED = "repeat", "load", "seed"
PROMPTS = 4  # asked again
TIMES = 3
UNDER_LOAD = 16  # requests in flight
SEEDS = 4
SEEDED_TOKENS = 24


def num_requests(subject: EngineSubject) -> int:
    """How many requests the checks of this module make."""
    few = min(PROMPTS, len(subject.names()))
    sampled = few * (SEEDS + 1) if subject.prepared.experiment.temperature else 0
    return len(subject.engines) * (few * TIMES + _load_size(subject) + sampled)


def _load_size(subject: EngineSubject) -> int:
    number = len(subject.names())
    return number * max(2, -(-2 * UNDER_LOAD // number))


def check_repeat(subject: EngineSubject, outputs: GreedyOutputs, tick: Tick) -> Check:
    """Ask for the same greedy outputs again, one at a time."""
    few = range(min(PROMPTS, len(subject.names())))
    asked = [_greedy(subject, REPEAT, prompt, time) for prompt in few for time in range(TIMES)]
    return _compared(
        subject, outputs, REPEAT, asked, 1, tick, f"asked {TIMES} times more", findings.NOT_DETERMINISTIC,
        "the same greedy request has different answers",
    )  # fmt: skip


def check_load(subject: EngineSubject, outputs: GreedyOutputs, tick: Tick) -> Check:
    """Ask for the same greedy outputs many at a time."""
    number = len(subject.names())
    asked = [_greedy(subject, LOAD, i % number, i // number) for i in range(_load_size(subject))]
    return _compared(
        subject, outputs, LOAD, asked, UNDER_LOAD, tick, f"with {UNDER_LOAD} requests in flight",
        findings.CHANGED_BY_LOAD, "under load a greedy request has another answer",
    )  # fmt: skip


def _greedy(subject: EngineSubject, kind: str, prompt: int, time: int) -> EngineRequest:
    return EngineRequest((kind, prompt, time), prompt, Sampling(subject.prepared.experiment.max_new_tokens))


def _compared(
    subject: EngineSubject, outputs: GreedyOutputs, name: str, asked: Sequence[EngineRequest], together: int,
    tick: Tick, how: str, finding: str, said: str,
) -> Check:  # fmt: skip
    """Compare each answer with the first one to the same request."""
    sentences, verdicts, named, numbers = [], [], [], {}
    for engine in subject.engines:
        try:
            again, before = subject.ask(engine, asked, tick, together), outputs.of(engine)
        except EngineError as error:
            if together == 1 or not subject.is_answered(engine, asked[0]):
                raise
            subject.together = 1  # what is checked next is checked without load
            words = f"an answer {how} fails, where the request alone is answered: {first_line(error)}"
            verdicts.append(FAILED)
            sentences.append(f"{engine.name}: {words}")
            named.append(Finding(findings.FAILS_UNDER_LOAD, words, engine is not subject.engine))
            continue
        found: list[GreedyDivergence] = []
        for request, output in zip(asked, again, strict=True):
            each = divergences.between(subject, request.prompt, output, before[request.prompt])
            found += [each] if each else []
        equal = len(asked) - len(found)
        bugs = [each for each in found if each.kind == BUG]
        untold = any(each.kind == UNTOLD for each in found)
        verdicts.append(FAILED if bugs else INCONCLUSIVE if untold else REPORTED if found else PASSED)
        sentences.append(
            f"{engine.name}: {equal} of {count(len(asked), 'answer')} {how} are the first ones."
            f"{divergences.summed(found, subject)}"
        )
        numbers[f"equal_{engine.role}"] = equal
        if bugs:
            named.append(Finding(finding, f"{said}: {bugs[0].told(subject)}.", engine is not subject.engine))
    return made(name, worst(verdicts), " ".join(sentences), named, numbers)


def check_seed(subject: EngineSubject, tick: Tick) -> Check:
    """Sampled outputs must be the same with the same seed, and others with another one."""
    if not subject.prepared.experiment.temperature:
        return made(SEED, SKIPPED, "temperature is 0: nothing is sampled.")
    sentences, verdicts, named = [], [], []
    for engine in subject.engines:
        try:
            verdict, words, finding = _seeded(subject, engine, tick)
        except Refused as error:
            verdict, words, finding = SKIPPED, f"the server refuses it ({first_line(error)}).", None
        verdicts.append(verdict)
        sentences.append(f"{engine.name}: {words}")
        if finding:
            named.append(Finding(finding, words, engine is not subject.engine))
    return made(SEED, worst(verdicts), " ".join(sentences), named)


def _seeded(subject: EngineSubject, engine: ExaminedEngine, tick: Tick) -> tuple[str, str, str]:
    experiment = subject.prepared.experiment
    few = range(min(PROMPTS, len(subject.names())))
    most = min(SEEDED_TOKENS, experiment.max_new_tokens)

    def request(prompt: int, seed: int, time: int) -> EngineRequest:
        sampling = Sampling(most, max(1.0, experiment.temperature), seed=experiment.seed + seed)
        return EngineRequest((SEED, prompt, seed, time), prompt, sampling)

    outputs = {}
    asked = [request(prompt, seed, 0) for prompt in few for seed in range(SEEDS)]
    asked += [request(prompt, 0, 1) for prompt in few]
    for each, output in zip(asked, subject.ask(engine, asked, tick, together=1), strict=True):
        outputs[each.key[1:]] = output.compared
    same = sum(outputs[prompt, 0, 0] == outputs[prompt, 0, 1] for prompt in few)
    various = sum(len({outputs[prompt, seed, 0] for seed in range(SEEDS)}) > 1 for prompt in few)
    total = len(few)
    if not various and same == total:
        words = (
            f"{SEEDS} seeds give the same tokens after each of {count(total, 'prompt')}: the model is sure of them, or"
            " nothing is sampled, which the check of samples tells."
        )
        return INCONCLUSIVE, words, ""
    if not same:
        words = f"the seed is ignored: the same seed gives other tokens after each of {count(total, 'prompt')}."
        return FAILED, words, findings.SEED_IGNORED
    words = (
        f"the same seed gives the same tokens after {same} of {count(total, 'prompt')}, and other seeds other tokens"
        f" after {various}."
    )
    return PASSED if same == total else INCONCLUSIVE, words, ""
