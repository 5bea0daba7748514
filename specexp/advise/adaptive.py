"""Predicts the rounds of drafts that adapt (`gamma: auto`) along recorded outputs, by the rule that decoding learns by.

What such a draft learns depends on all rounds before, so that each output is gone through round by round. Where tokens
are sampled, which of them are accepted is drawn, a few times over. Two things lie off the output: the probability under
the draft of a rejected token, whose mean is taken, and those of the tokens that follow it, for which those of the draft
at the same places of the output stand in. They decide how far a draft continues in vain, and little else.

This module knows no model and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from specexp.advise.rounds import LookupTrace, Rounds, Trace, behind, kept, most_drafted, recall
from specexp.decoding.chain import DraftModel
from specexp.engine.chain_length import ChainLength

SAMPLES = 16  # of each output, where tokens are sampled


def adapted_rounds(
    traces: Sequence[Trace],
    draft: DraftModel,
    bonus: bool = True,
    block: bool = False,
    recalled: Sequence[LookupTrace] = (),
    feed_last_token: bool = False,
) -> Rounds:
    """The rounds of a draft with `costs` along these outputs; other arguments as of `chain_rounds`."""
    assert draft.costs is not None, "a draft that adapts knows what calls cost"
    result = Rounds()
    for i, trace in enumerate(traces):
        result.tokens += len(trace.accepted)
        samples = SAMPLES if trace.ratio else 1
        for sample in range(samples):
            random = Random(f"{i} {sample}")
            length = ChainLength(draft.costs, draft.gamma, not trace.ratio)
            place = waiting = 0
            while place < len(trace.accepted):
                if recalled and (turn := recalled[i].at(place, draft.gamma, bonus))[0]:
                    emitted = recall(recalled[i], place, draft.gamma, bonus, result, 1 / samples)
                    length.commit(place, emitted, *turn, [])
                    place, waiting = place + emitted, waiting + emitted
                    continue
                most = most_drafted(trace, place, draft.gamma, bonus)
                shares = kept(trace, place, min(most, len(trace.accepted) - place), block and samples > 1)
                chain = _chain(trace, place, most, draft, length, list(shares), random.random())
                drafted, num_accepted = len(chain[0]), chain[1]
                emitted = num_accepted + (bonus or num_accepted < drafted or not drafted)
                if drafted:
                    length.drafted(chain[0], drafted + feed_last_token)
                    result.chains += 1 / samples
                    result.caught_up += waiting / samples
                    waiting = 0
                waiting += behind(trace, emitted, num_accepted, drafted, feed_last_token)
                length.commit(place, emitted, drafted, num_accepted, length.unread())
                result.by_drafted[drafted] = result.by_drafted.get(drafted, 0.0) + 1 / samples
                result.by_accepted[num_accepted] = result.by_accepted.get(num_accepted, 0.0) + 1 / samples
                place += emitted
    return result


def _chain(
    trace: Trace, place: int, most: int, draft: DraftModel, length: ChainLength, shares: Sequence[float], draw: float
) -> tuple[list[float], int]:
    """Probabilities under the draft of the tokens of a chain from this place, and how many of them are accepted.

    `shares` has the probabilities that the first 1, 2, ... tokens are kept.
    """
    stopping = length.begin(place, most)
    probabilities: list[float] = []
    num_accepted, survival = 0, 1.0
    while stopping is not None and len(probabilities) < most:
        i = len(probabilities)
        where = min(place + i, len(trace.certainty) - 1)
        here = trace.after(i)
        value = here.certainty[where]
        if num_accepted == i and i < len(shares) and draw < shares[i]:
            num_accepted += 1
        elif num_accepted == i and here.rejected:
            value = here.rejected[where]
        probabilities.append(value)
        survival *= stopping.accepted(value)
        if value < draft.min_draft_probability or not stopping.goes_on(i + 1, survival):
            break
    return probabilities, num_accepted
