"""Predicts what drafts would do in a served engine: its own outputs are taken once, and drafts are run along them.

An engine that speculates losslessly emits what it emits without. So where its outputs accept a draft's tokens tells the
target calls of every draft length, as `rounds.py` has it: exactly at temperature 0, and as expected values where tokens
are sampled. Then b_i = min(1, q_i(x_i) / p_i(x_i)) needs p of the emitted tokens alone, which are the server's
log-probabilities; those are before any warping, so that they are p at temperature 1 without top-k and top-p only. A
draft that is not sampled (`draft_temperature: 0`, prompt lookup, suffix decoding) needs no p at any setting.

What a round costs inside a server cannot be timed from outside. A drafted token's cost, in steps without a draft, is
given, or follows from two engines: `EngineCosts`. Without it, tokens a call are all that is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from specexp.advise.engines.engine_outputs import EngineOutput
from specexp.advise.rounds import Rounds, Trace, chain_rounds, lookup_rounds
from specexp.advise.traces import PIECE, at_tokens, find_along, score_rows
from specexp.config import Experiment, MethodConfig
from specexp.decoding.protocol import Role
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.engines.served_methods import SERVED
from specexp.errors import EngineError
from specexp.lm.runtime import AUTO_VOCABULARY, SAME
from specexp.method_specs import models_of
from specexp.methods import BuildContext, decoder_for
from specexp.pair.loading import Pair, check_same_tokens, load_pair, stops_of_target

WEIGHED = ("speculative", "lookup", "suffix")  # methods whose rounds an engine's outputs tell


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """What one more drafted token costs an engine, in steps that draft nothing; `source` says how it is known."""

    per_drafted: float
    source: str


@dataclass(frozen=True, slots=True)
class PredictedDrafts:
    """What one setting's drafts would do: sums over all outputs. `by_position[i]` are rounds that accept draft i."""

    config: MethodConfig
    tokens: int
    calls: float  # of the target, each of which emits at least one token
    rounds: float  # calls with a draft
    drafted: float
    by_position: tuple[float, ...]

    @property
    def mean_length(self) -> float:
        """Tokens a call."""
        return self.tokens / self.calls

    @property
    def pays_below(self) -> float:
        """The cost of a drafted token below which these drafts are faster than none."""
        return (self.tokens - self.calls) / self.drafted if self.drafted else 0.0

    def speedup(self, costs: EngineCosts) -> float:
        """Tokens a second / those without drafts."""
        return self.tokens / (self.calls + costs.per_drafted * self.drafted)


def own_methods(experiment: Experiment) -> list[MethodConfig]:
    """The methods that are no engines."""
    return [method for method in experiment.methods if not method.method.startswith(SERVED)]


def needs_probabilities(experiment: Experiment) -> bool:
    """True if drafts are sampled, so that the probabilities of emitted tokens decide what is accepted."""
    return experiment.temperature > 0 and any(
        "draft" in models_of(each) and each.draft_temperature != 0 for each in own_methods(experiment)
    )


def faults(experiment: Experiment) -> list[str]:
    """What cannot be predicted of an engine, a line each."""
    methods, result = own_methods(experiment), []
    if others := sorted({each.method for each in methods} - set(WEIGHED)):
        result.append(
            f"methods has {', '.join(others)} next to engines, whose drafts cannot be scored along an engine's outputs;"
            f" name {', '.join(WEIGHED)} or engines."
        )
    known = [each for each in methods if each.method in WEIGHED]
    for name, unfit, why in (
        ("gamma", [each for each in known if each.auto_gamma],
         "is auto, but drafts of engines have one length; give lengths"),
        ("min_draft_probability", [each for each in known if each.min_draft_probability],
         "is given, but how long a draft goes on off an engine's outputs is not known; leave it out"),
        ("suffix_memory", [each for each in known if each.suffix_memory == "run"],
         "is run, but each output is gone through by itself; leave it out"),
    ):  # fmt: skip
        if unfit:
            result.append(f"{name} {why} ({unfit[0].label}).")
    if any("draft" in models_of(each) for each in known) and experiment.toy is None:
        draft = experiment.draft
        if draft.on_target:
            result.append(
                f"draft is {draft.shown}, which needs the target's weights or states, and an engine gives none; name a"
                " draft model, or weigh lookup and suffix alone."
            )
        elif draft.vocabulary not in (SAME, AUTO_VOCABULARY):
            result.append(
                f"vocabulary is {draft.vocabulary}, but a draft is scored on the engine's tokens; name a draft with the"
                " target's tokenizer."
            )
    warp = experiment.warp
    if needs_probabilities(experiment) and (warp.temperature, warp.top_k, warp.top_p) != (1.0, 0, 1.0):
        result.append(
            f"temperature is {warp.temperature:g}, top_k {warp.top_k} and top_p {warp.top_p:g}; an engine's"
            " log-probabilities tell how often sampled drafts are accepted at temperature 1 without top_k and top_p"
            " alone: set these, or draft_temperature to 0."
        )
    return result


def load(experiment: Experiment) -> Pair:
    """The draft, if a method needs one, and the target's tokenizer. Of the target no weights are read. Raises
    ModelError."""
    roles = set[Role]().union(*(models_of(method) for method in own_methods(experiment))) - {"target"}
    pair = load_pair(experiment, roles, same_tokens=True)
    check_same_tokens(pair, "drafts are scored")
    return replace(pair, eos_ids=stops_of_target(experiment))


def predict(experiment: Experiment, pair: Pair, outputs: Sequence[EngineOutput]) -> list[PredictedDrafts]:
    """Predict every method of the experiment that is no engine, in its order. Raises EngineError."""
    _check_ids(pair, outputs)
    methods = own_methods(experiment)
    by_temperature: dict[float | None, list[Trace]] = {}
    context, result = BuildContext(experiment.warp, eos_ids=pair.eos_ids), []
    for method in methods:
        if "draft" not in models_of(method):
            chain = {"": decoder_for(method, context)}
            lookups = [find_along(out.prompt_ids, out.token_ids, out.limit, chain)[""] for out in outputs]
            result.append(_summed(method, lookup_rounds(lookups, method.gamma, method.bonus)))
            continue
        own = method.draft_temperature
        if own not in by_temperature:
            engine, bar = Engine(pair.models, reuse=True), tqdm(outputs, desc="draft", unit="run", dynamic_ncols=True)
            by_temperature[own] = [_trace(engine, pair, experiment.warp, own, out) for out in bar]
        block = method.rule == "block" and experiment.temperature > 0
        rounds = chain_rounds(by_temperature[own], method.gamma, method.bonus, block=block)
        result.append(_summed(method, rounds))
    return result


def best(predicted: Sequence[PredictedDrafts], costs: EngineCosts) -> PredictedDrafts | None:
    """The fastest; None where none is faster than no draft."""
    fastest = max(predicted, key=lambda each: each.speedup(costs), default=None)
    return fastest if fastest is not None and fastest.speedup(costs) > 1 else None


def measured_costs(plain: str, spec: str, metrics: Mapping[str, Mapping[str, float]]) -> EngineCosts | None:
    """What a drafted token costs by two engines' times per token: a straight line through a round without a draft and
    one with as many as `spec` drafts. None where they do not tell: without `spec`'s own counts, or a cost above 0."""
    times = [metrics[label].get("speed/time_per_token") for label in (plain, spec)]
    length, drafted = (metrics[spec].get(f"accept/{name}") for name in ("mean_length", "drafted_length"))
    if metrics[plain].get("accept/drafted_length") or None in times or not length or not drafted:
        return None
    step, token = (float(each or 0.0) for each in times)
    cost = (token * length / step - 1) / drafted if step else 0.0
    if not math.isfinite(cost) or cost <= 0:
        return None
    return EngineCosts(cost, f"measured on {plain} and {spec}, which drafts {drafted:.1f} tokens a round")


def _check_ids(pair: Pair, outputs: Sequence[EngineOutput]) -> None:
    """Raise EngineError for tokens that the draft does not have, or prompts that it cannot hold."""
    draft = pair.models.get("draft")
    if draft is None:
        return
    for out in outputs:
        highest = max((*out.prompt_ids, *out.token_ids), default=0)
        if highest >= draft.vocab_size:
            raise EngineError(
                f"the engine's output has token id {highest}, but the draft's ids are below {draft.vocab_size}; name a"
                " draft with the tokenizer of the model that is served."
            )


def _trace(engine: Engine, pair: Pair, warp: Warp, draft_temperature: float | None, out: EngineOutput) -> Trace:
    """Where the draft's tokens would be accepted along one output."""
    model = pair.models["draft"]
    draft_limit = model.context - len(out.prompt_ids) + 1
    seen, draft_warp = out.token_ids[: max(0, draft_limit)], warp.of_draft(draft_temperature)
    accepted: list[float] = []
    ratio: list[float] = []
    for start in range(0, len(seen), PIECE):
        piece = seen[start : start + PIECE]
        logits = score_rows(engine, "draft", [*out.prompt_ids, *seen[:start]], piece)
        if draft_warp.greedy:
            first = draft_warp.first(logits).tolist()
            values = [float(token == choice) for token, choice in zip(piece, first, strict=True)]
            more = values  # q / p is 1 or more where the token is the draft's, and 0 elsewhere: a block is as certain
        else:
            q = at_tokens(draft_warp(logits), model.ids(piece))
            p = [math.exp(value) for value in out.logprobs[start : start + len(piece)]]
            more = [one / other if other else 1.0 for one, other in zip(q, p, strict=True)]
            values = [min(1.0, value) for value in more]
        accepted += values
        ratio += more
    left = [0.0] * (len(out.token_ids) - len(seen))  # beyond the draft's context nothing is drafted
    return Trace([*accepted, *left], out.limit, draft_limit, ratio=[*ratio, *left])


def _summed(method: MethodConfig, rounds: Rounds) -> PredictedDrafts:
    by_position = tuple(
        math.fsum(number for accepted, number in rounds.by_accepted.items() if accepted > place)
        for place in range(method.gamma)
    )
    with_draft = math.fsum(number for drafted, number in rounds.by_drafted.items() if drafted)
    return PredictedDrafts(method, rounds.tokens, rounds.rounds, with_draft, rounds.drafted, by_position)
