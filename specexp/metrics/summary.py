"""Computes metrics from records: sums first, then each ratio once. docs/metrics.md has names and definitions.

The identities of the counts are asserted on every record; no speed is compared with a constant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from specexp.config import TreeConfig
from specexp.method_specs import spec
from specexp.metrics import incomplete
from specexp.metrics.paired import accuracy, against, paired, speedup, timed
from specexp.metrics.statistics import rate
from specexp.metrics.trees import check_trees, tree_metrics
from specexp.profiling.call_costs import Costs
from specexp.storage.records import Record, Summed, num_tokens

_OF_PROPOSER = ("num_rounds", "num_drafted", "num_accepted")
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
        named = {key: sum(each[key] for each in record["proposers"].values()) for key in _OF_PROPOSER}
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


def has_ends(records: Sequence[Record]) -> bool:
    """True if the records say which drafts lie after the end of an output; records of earlier versions do not."""
    return all("drafted_before_end" in record for record in records)


def total(histogram: Sequence[int]) -> int:
    """Return the sum of all values that a histogram counts."""
    return sum(value * times for value, times in enumerate(histogram))


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
    """Return the metrics of one setting (`gamma` 0: no chain is drafted), with plain decoding's records as `baseline`.

    The records are of one repeat or of several together: intervals and tests count each prompt once.

    `steps` is the number of draft forwards in a round of a chain: gamma, or one more for a judge that reads the draft's
    hidden state of the last drafted token. If a chain's length `varies` by itself, and for trees, the rounds are taken
    as counted. With a `batch`, one prompt has no latency of its own; `batch/` metrics are of all prompts together.
    `claimed` is False if calls timed one by one cost more than back to back: attainable speed-ups are then left out.
    `by_token` is False if chains are verified as blocks, of which the formula of the prediction does not hold.
    """

    def summed(key: Summed) -> float:
        return float(sum(record[key] for record in records))

    emitted = sum(num_tokens(record) for record in records)
    rounds, drafted = summed("num_rounds"), summed("num_drafted")
    metrics = {
        "calls/target_per_token": summed("num_target_calls") / emitted,
        "calls/draft_per_token": summed("num_draft_calls") / emitted,
        "count/prompts": len(records),
        "count/tokens": emitted,
    }
    if batch == 1:
        metrics["speed/tokens_per_second"] = emitted / summed("seconds")
        metrics["speed/prefill_seconds"] = summed("prefill_seconds") / len(records)
        metrics["speed/time_to_first_token"] = summed("time_to_first_token") / len(records)
    else:
        metrics["batch/tokens_per_second"] = emitted / summed("seconds")
        metrics["batch/prompts_per_second"] = len(records) / (summed("seconds") + summed("prefill_seconds"))
    if calls := summed("num_target_calls"):
        metrics["tree/effective_parallelism"] = summed("num_target_positions") / calls
    if spec(records[0]["method"]).grows_tree:
        metrics |= tree_metrics(records)
    drafts_chain = gamma > 0
    if spec(records[0]["method"]).verifies:
        metrics["accept/mean_length"] = emitted / rounds
    if drafts_chain and drafted:
        metrics["accept/alpha"] = summed("overlap") / max(1, summed("num_tested"))
        metrics |= _drafts(records, gamma) if has_ends(records) else {}
        metrics |= _by_proposer(records)
    if baseline:
        metrics |= against(records, baseline, batch)
    if baseline and costs is not None and batch == 1 and spec(records[0]["method"]).drafts:
        result = _attainable(records, costs, gamma, 0 if varies else steps or gamma, metrics, by_token)
        metrics |= result if claimed else {key: value for key, value in result.items() if key in _COSTS}
    return (
        metrics
        | _alone(records, bool(baseline), batch)
        | accuracy(records)
        | incomplete.metrics(records)
        | _by_category(records, baseline if batch == 1 else ())
    )


def _drafts(records: Sequence[Record], gamma: int) -> dict[str, float]:
    """Return the metrics of drafted tokens, without those after an EOS of the output or after the limit.

    Tokens after a rejection count as drafted and not accepted. position_i is over rounds with i drafts before the end.
    """
    drafted = sum(total(record["drafted_before_end"]) for record in records)
    if not drafted:
        return {}
    result = {
        "accept/draft_rate": sum(total(record["accepted_before_end"]) for record in records) / drafted,
        "accept/drafted_length": drafted / sum(record["num_rounds"] for record in records),
        "accept/judged_rate": sum(record["num_judged_before_end"] for record in records) / drafted,
    }
    for i in range(1, gamma + 1):
        tried = sum(sum(record["drafted_before_end"][i:]) for record in records)
        if tried:
            result[f"accept/position_{i}"] = sum(sum(r["accepted_before_end"][i:]) for r in records) / tried
    return result


def _by_proposer(records: Sequence[Record]) -> dict[str, float]:
    """Return the share of rounds of each proposer that takes turns, and what was accepted of its drafts."""
    rounds, result = sum(record["num_rounds"] for record in records), {}
    for name in dict.fromkeys(name for record in records for name in record.get("proposers", {})):
        own = [record["proposers"][name] for record in records if name in record.get("proposers", {})]
        counts = {key: sum(each[key] for each in own) for key in _OF_PROPOSER}
        result[f"proposer/{name}_rounds"] = counts["num_rounds"] / rounds
        if counts["num_drafted"]:
            result[f"proposer/{name}_rate"] = counts["num_accepted"] / counts["num_drafted"]
        result[f"proposer/{name}_length"] = counts["num_accepted"] / counts["num_rounds"]
    return result


def _alone(records: Sequence[Record], compared: bool, batch: int) -> dict[str, float]:
    """Return intervals that need no other method: of the mean length, and of the speed if nothing is `compared`."""
    result = {}
    if spec(records[0]["method"]).drafts:
        result["accept/mean_length"] = timed(records, "num_rounds")
    if batch == 1 and not compared:
        result["speed/tokens_per_second"] = timed(records, "seconds")
    ends: dict[str, float] = {}
    for name, each in result.items():
        if len(each.tokens) > 1:  # one prompt cannot be resampled
            interval = rate(each)
            ends |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return ends


def _attainable(
    records: Sequence[Record], costs: Costs, gamma: int, steps: int, metrics: Mapping[str, float], by_token: bool
) -> dict[str, float]:
    """Return the cost of a round's calls in target steps, and the speed-up that the calls alone would allow.

    Rounds that differ are priced at their mean number of draft calls and of positions, and the first draft call of each
    at its mean number of tokens. That is exact if the seconds of a call are linear between the measured sizes.
    """
    result: dict[str, float] = {}
    rounds = sum(record["num_rounds"] for record in records)
    draft_calls = sum(record["num_draft_calls"] for record in records)
    positions = sum(record["num_target_positions"] for record in records) / rounds
    if spec(records[0]["method"]).grows_tree:
        result["speed/v"] = costs.v_tree(positions)
        result["speed/c"] = costs.c_tree(sum(record["num_draft_positions"] for record in records) / draft_calls)
        call = draft_calls / rounds * result["speed/c"] + result["speed/v"]
    elif not steps:
        result["speed/v"] = costs.v(positions)
        if draft_calls:
            result |= {"speed/c": costs.c, **_catch_up(records, costs)}
        draft = draft_calls / rounds * result.get("speed/c", 0.0)
        call = draft + result.get("speed/catch_up", 0.0) + result["speed/v"]
    else:
        result |= {"speed/v": costs.v(gamma + 1), "speed/c": costs.c, **_catch_up(records, costs)}
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


def _catch_up(records: Sequence[Record], costs: Costs) -> dict[str, float]:
    """Return what the first draft calls cost a round, because they also take in tokens that were committed before the
    newest one: the draft's own last token, tokens of other proposers, and all of them if it reads the target's states.

    The other draft calls of a chain are on one position each.
    """
    rounds = sum(record["num_rounds"] for record in records)
    calls = sum(record["num_draft_calls"] for record in records)
    chains = min(calls, sum(_num_chains(record) for record in records))
    if not costs.catch_up or not chains:
        return {}
    taken_in = 1 + (sum(record["num_draft_positions"] for record in records) - calls) / chains
    return {"speed/catch_up": costs.more_to_take_in(taken_in) * chains / rounds}


def _num_chains(record: Record) -> int:
    """Return the number of rounds in which the draft model drafted."""
    if record.get("proposers"):
        return record["proposers"].get("draft", {}).get("num_rounds", 0)
    return sum(record["drafted_before_end"][1:]) if has_ends([record]) else record["num_rounds"]


def _by_category(records: Sequence[Record], baseline: Sequence[Record]) -> dict[str, float]:
    """Return speed-up and tokens per call of each category, if a task has several."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        # MLflow allows only letters, digits and a few other characters in a metric's name.
        groups.setdefault(re.sub(r"[^A-Za-z0-9_.\- ]", "_", record["category"] or "none"), []).append(record)
    if len(groups) < 2:
        return {}
    metrics = {}
    for name, group in groups.items():
        rounds = sum(r["num_rounds"] for r in group)
        if spec(group[0]["method"]).verifies:
            metrics[f"category/mean_length_{name}"] = sum(len(r["token_ids"]) for r in group) / rounds
        if baseline:
            metrics[f"category/speedup_{name}"] = speedup(paired(group, baseline), "seconds")
    return metrics
