"""Computes metrics from records: sums first, then each ratio once. docs/metrics.md has names and definitions.

The identities of the counts are asserted on every record; no speed is compared with a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specexp.config import TreeConfig
from specexp.method_specs import spec
from specexp.metrics.statistics import rate
from specexp.metrics.tally import OF_PROPOSER, Tally, has_ends, total
from specexp.metrics.trees import check_trees
from specexp.profiling.call_costs import Costs
from specexp.storage.records import Record

_COSTS = ("speed/c", "speed/catch_up", "speed/v")


def check_identities(record: Record, tree: TreeConfig | None = None, bonus: bool = True) -> None:
    """Assert the identities of a record's counts, which hold for every method, and the limits of its `tree`."""
    emitted = len(record["token_ids"])
    rounds, accepted = record["num_rounds"], record["num_accepted"]
    full, forced = 0 if bonus else record["num_full"], record.get("num_forced", 0)
    assert emitted == accepted + rounds + forced - record["num_cut"] - full, f"emitted {emitted} tokens, but {record}"
    assert 0 <= accepted <= record["num_drafted"], record
    assert record["num_judged"] <= accepted, record
    _check_before_end(record)
    if record.get("proposers"):
        named = {key: sum(each[key] for each in record["proposers"].values()) for key in OF_PROPOSER}
        assert named["num_rounds"] <= rounds, record
        assert named["num_drafted"] == total(record["drafted_before_end"]), record
        assert named["num_accepted"] == total(record["accepted_before_end"]), record
    if spec(record["method"]).grows_tree:  # a tree tests no token: the target's own draw matches a node or not
        check_trees(record, tree)
    else:
        assert accepted - record["num_cut"] <= record["num_tested"] <= record["num_drafted"], record
    histogram = record["accepted_histogram"]
    if not spec(record["method"]).drafts:
        assert histogram == [], record
        assert accepted == 0, record
    else:
        assert sum(histogram) == rounds == record["num_target_calls"], record
        assert sum(i * n for i, n in enumerate(histogram)) == accepted, record
    if not spec(record["method"]).verifies:
        assert record["num_target_calls"] == 0, record


def _check_before_end(record: Record) -> None:
    """Assert that the counts before the end are at most the total counts, over at most as many rounds."""
    if not has_ends([record]):
        return
    drafted, accepted = record["drafted_before_end"], record["accepted_before_end"]
    assert sum(drafted) == sum(accepted) == (record["num_rounds"] if drafted else 0), record
    assert total(accepted) <= min(total(drafted), record["num_accepted"]), record
    assert total(drafted) <= record["num_drafted"], record
    assert record["num_judged_before_end"] <= min(total(accepted), record["num_judged"]), record
    if drafted:  # what was cut: accepted drafts, and the target's own token unless a full chain has none
        lost, cuts = record["num_accepted"] - total(accepted), 2 if record.get("num_forced") else 1
        assert max(0, record["num_cut"] - cuts) <= lost <= record["num_cut"], record


def summarise(
    records: Sequence[Record],
    baseline: Sequence[Record],
    costs: Costs | None,
    gamma: int,
    steps: int = 0,
    varies: bool = False,
    batch: int = 1,
    claimed: bool = True,
    by_token: bool = True,
) -> dict[str, float]:
    """Return the metrics of one setting's records, with plain decoding's records as `baseline`, as `metrics_of` does.

    The records are of one repeat or of several together: intervals and tests count each prompt once.
    """
    tally = Tally.of(records, baseline)
    return metrics_of(tally, costs, gamma, steps, varies, batch, claimed, by_token)


def metrics_of(
    tally: Tally,
    costs: Costs | None,
    gamma: int,
    steps: int = 0,
    varies: bool = False,
    batch: int = 1,
    claimed: bool = True,
    by_token: bool = True,
) -> dict[str, float]:
    """Return the metrics of one setting (`gamma` 0: no chain is drafted) from the sums over its records.

    `steps` is the number of draft forwards in a round of a chain: gamma, or one more for a judge that reads the draft's
    hidden state of the last drafted token. If a chain's length `varies` by itself, and for trees, the rounds are taken
    as counted. With a `batch`, one prompt has no latency of its own; `batch/` metrics are of all prompts together.
    `claimed` is False if calls timed one by one cost more than back to back: attainable speed-ups are then left out.
    `by_token` is False if chains are verified as blocks, of which the formula of the prediction does not hold.
    """
    assert tally.method is not None, "there are no records"
    summed, emitted, num_records = tally.sum, tally.tokens, tally.num_records
    metrics = {
        "calls/target_per_token": summed("num_target_calls") / emitted,
        "calls/draft_per_token": summed("num_draft_calls") / emitted,
        "count/prompts": num_records,
        "count/tokens": emitted,
    }
    if batch == 1:
        metrics["speed/tokens_per_second"] = emitted / summed("seconds")
        metrics["speed/prefill_seconds"] = summed("prefill_seconds") / num_records
        metrics["speed/time_to_first_token"] = summed("time_to_first_token") / num_records
    else:
        metrics["batch/tokens_per_second"] = emitted / summed("seconds")
        metrics["batch/prompts_per_second"] = num_records / (summed("seconds") + summed("prefill_seconds"))
    if calls := summed("num_target_calls"):
        metrics["tree/effective_parallelism"] = summed("num_target_positions") / calls
    if tally.method.grows_tree:
        metrics |= tally.trees.metrics()
    drafts_chain = gamma > 0
    if tally.method.verifies:
        metrics["accept/mean_length"] = emitted / summed("num_rounds")
    if drafts_chain and summed("num_drafted"):
        metrics["accept/alpha"] = summed("overlap") / max(1, summed("num_tested"))
        metrics |= _drafts(tally, gamma) if tally.has_ends else {}
        metrics |= _by_proposer(tally)
    if tally.compared is not None:
        metrics |= tally.compared.metrics(batch)
    if tally.compared is not None and costs is not None and batch == 1 and tally.method.drafts:
        result = _attainable(tally, costs, gamma, 0 if varies else steps or gamma, metrics, by_token)
        metrics |= result if claimed else {key: value for key, value in result.items() if key in _COSTS}
    return (
        metrics | _alone(tally, batch) | tally.answers.metrics() | tally.endings.metrics() | _by_category(tally, batch)
    )


def _drafts(tally: Tally, gamma: int) -> dict[str, float]:
    """Return the metrics of drafted tokens, without those after an EOS of the output or after the limit.

    Tokens after a rejection count as drafted and not accepted. position_i is over rounds with i drafts before the end.
    """
    drafted = total(tally.drafted.counts)
    if not drafted:
        return {}
    result = {
        "accept/draft_rate": total(tally.accepted.counts) / drafted,
        "accept/drafted_length": drafted / tally.count("num_rounds"),
        "accept/judged_rate": tally.judged_before_end / drafted,
    }
    for i in range(1, gamma + 1):
        tried = sum(tally.drafted.counts[i:])
        if tried:
            result[f"accept/position_{i}"] = sum(tally.accepted.counts[i:]) / tried
    return result


def _by_proposer(tally: Tally) -> dict[str, float]:
    """Return the share of rounds of each proposer that takes turns, and what was accepted of its drafts."""
    result: dict[str, float] = {}
    for name, counts in tally.proposers.items():
        result[f"proposer/{name}_rounds"] = counts["num_rounds"] / tally.count("num_rounds")
        if counts["num_drafted"]:
            result[f"proposer/{name}_rate"] = counts["num_accepted"] / counts["num_drafted"]
        result[f"proposer/{name}_length"] = counts["num_accepted"] / counts["num_rounds"]
    return result


def _alone(tally: Tally, batch: int) -> dict[str, float]:
    """Return intervals that need no other method: of the mean length, and of the speed if nothing is compared."""
    assert tally.method is not None
    result = {}
    if tally.method.drafts:
        result["accept/mean_length"] = tally.in_rounds()
    if batch == 1 and tally.compared is None:
        result["speed/tokens_per_second"] = tally.timed()
    ends: dict[str, float] = {}
    for name, each in result.items():
        if len(each.tokens) > 1:  # one prompt cannot be resampled
            interval = rate(each)
            ends |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return ends


def _attainable(
    tally: Tally, costs: Costs, gamma: int, steps: int, metrics: Mapping[str, float], by_token: bool
) -> dict[str, float]:
    """Return the cost of a round's calls in target steps, and the speed-up that the calls alone would allow.

    Rounds that differ are priced at their mean number of draft calls and of positions, and the first draft call of each
    at its mean number of tokens. That is exact if the seconds of a call are linear between the measured sizes.
    """
    assert tally.method is not None
    result: dict[str, float] = {}
    rounds, draft_calls = tally.count("num_rounds"), tally.count("num_draft_calls")
    positions = tally.count("num_target_positions") / rounds
    if tally.method.grows_tree:
        result["speed/v"] = costs.v_tree(positions)
        result["speed/c"] = costs.c_tree(tally.count("num_draft_positions") / draft_calls)
        call = draft_calls / rounds * result["speed/c"] + result["speed/v"]
    elif not steps:
        result["speed/v"] = costs.v(positions)
        if draft_calls:
            result |= {"speed/c": costs.c, **_catch_up(tally, costs)}
        draft = draft_calls / rounds * result.get("speed/c", 0.0)
        call = draft + result.get("speed/catch_up", 0.0) + result["speed/v"]
    else:
        result |= {"speed/v": costs.v(gamma + 1), "speed/c": costs.c, **_catch_up(tally, costs)}
        draft = costs.draft_calls(gamma, steps > gamma) * costs.c
        call = draft + result.get("speed/catch_up", 0.0) + result["speed/v"]
        # The formula assumes that all rounds are alike, and that the first token that fails its test ends a chain. Of a
        # block it would be a lower bound; what was measured of it is in speed/attainable.
        if by_token:
            alpha = metrics.get("accept/alpha", 0.0)
            expected = gamma + 1 if alpha >= 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)
            result["speed/predicted_speedup"] = expected / call
    result["speed/attainable"] = metrics["accept/mean_length"] / call
    result["speed/realised"] = metrics["speed/speedup"] / result["speed/attainable"]
    return result


def _catch_up(tally: Tally, costs: Costs) -> dict[str, float]:
    """Return what the first draft calls cost a round, because they also take in tokens that were committed before the
    newest one: the draft's own last token, tokens of other proposers, and all of them if it reads the target's states.

    The other draft calls of a chain are on one position each.
    """
    rounds, calls = tally.count("num_rounds"), tally.count("num_draft_calls")
    chains = min(calls, tally.num_chains)
    if not costs.catch_up or not chains:
        return {}
    taken_in = 1 + (tally.count("num_draft_positions") - calls) / chains
    return {"speed/catch_up": costs.more_to_take_in(taken_in) * chains / rounds}


def _by_category(tally: Tally, batch: int) -> dict[str, float]:
    """Return speed-up and tokens per call of each category, if a task has several."""
    assert tally.method is not None
    if len(tally.categories) < 2:
        return {}
    metrics = {}
    for name, category in tally.categories.items():
        if tally.method.verifies:
            metrics[f"category/mean_length_{name}"] = category.tokens / category.rounds
        if tally.compared is not None and batch == 1:
            metrics[f"category/speedup_{name}"] = category.speed.decoding
    return metrics
