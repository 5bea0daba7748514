"""Every metric that a run may log: its name, definition, unit, and which direction is better.

`filled` puts `table()` into docs/metrics.md; `unknown` returns keys without an entry. In a name, `I` and `N` stand for
a number, `NAME` for any text, and `...` for any ending.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from specexp.metrics.load_metrics import LOAD_METRICS
from specexp.metrics.metric import Metric

_BLOCK = re.compile(r"(<!-- catalogue of metrics[^>]*-->\n\n).*?(\n\n<!-- end of catalogue -->)", re.DOTALL)


METRICS: tuple[Metric, ...] = (
    Metric(("accept/alpha",),
        "mean over tested positions of sum_x min(p, q), those after an EOS left out: a property of the "
        "pair and the task, where the draft model drafts at the target's temperature (of a block, the accepted "
        "positions and the next one count as tested)",
        "probability", "higher",
    ),
    Metric(("accept/draft_rate",),
        "accepted / drafted tokens, both without those after an EOS of the output or after the limit; "
        "what was drafted after a rejection counts in the denominator",
        "share", "higher",
    ),
    Metric(("accept/drafted_length",),
        "drafted tokens, without those after an EOS or the limit, / rounds; below gamma where drafts end early",
        "tokens per round", "",
    ),
    Metric(("accept/mean_length",),
        "tokens emitted per verifying target call (1 for the baseline)",
        "tokens per call", "higher", ends=("_low", "_high"),
    ),
    Metric(("accept/position_I",),
        "share of rounds whose first i drafts were all accepted, of the rounds that had i drafts before "
        "an EOS or the limit",
        "share", "higher",
    ),
    Metric(("accept/judged_rate",),
        "tokens that a judge accepted and the lossless rule would reject / drafted tokens, both without those "
        "after the end",
        "share", "",
    ),
    Metric(("proposer/NAME_rounds",),
        "of proposers that take turns (`chained`): share of all rounds that this one drafted",
        "share", "",
    ),
    Metric(("proposer/NAME_rate",),
        "accepted tokens / tokens that it drafted, both without those after the end",
        "share", "higher",
    ),
    Metric(("proposer/NAME_length",),
        "accepted tokens / rounds that it drafted, without those after the end",
        "tokens per round", "higher",
    ),
    Metric(("tree/effective_parallelism",),
        "positions fed to verifying target calls, each call's root included / those calls (1 for the "
        "baseline, at most gamma + 1 for a chain, nodes + 1 for a tree)",
        "positions per call", "",
    ),
    Metric(("tree/max_active_branches",),
        "most nodes expanded in one draft forward: at most `parallel_branches`",
        "nodes", "",
    ),
    Metric(("tree/branch_prune_rate",),
        "1 - nodes verified / candidates proposed; the sum of `tree/pruned_by_threshold`, "
        "`tree/pruned_by_log_prob` and `tree/pruned_by_budget`, charged in this order",
        "share", "",
    ),
    Metric(("tree/depth_I",), "share of rounds whose accepted path reaches depth i", "share", "higher"),
    Metric(("tree/judged_rate",), "nodes that a judge chose, not the target's draw / accepted nodes", "share", ""),
    Metric(("tree/cache_hit_rate",),
        "h = accepted nodes / (accepted nodes + rounds): a round yields 1 / (1 - h) tokens, before "
        "cutting",
        "share", "higher",
    ),
    Metric(("calls/target_per_token", "calls/draft_per_token"),
        "forwards without prefill / emitted tokens", "calls per token", "lower",
    ),
    Metric(("speed/tokens_per_second",),
        "emitted ids / decode seconds", "tokens/s", "higher", ends=("_low", "_high"),
    ),
    Metric(("speed/prefill_seconds", "speed/time_to_first_token"), "mean per prompt", "s", "lower"),
    Metric(("speed/time_per_token",), "of a served engine, after its first token", "s", "lower"),
    Metric(("speed/speedup",),
        "relative to the baseline's records of this run, paired by prompt (p of a test that swaps them)",
        "ratio", "higher", ends=("_low", "_high", "_p"),
    ),
    Metric(("speed/speedup_end_to_end",),
        "`speed/speedup` with both prefills",
        "ratio", "higher",
    ),
    Metric(("speed/c", "speed/v"),
        "draft step (DFlash: a block) / target step; target call on gamma + 1 positions / on one. Where rounds differ "
        "(`lookup`, `suffix`, `chained`, `min_draft_probability`, gamma auto, trees): on the mean number of "
        "positions, for a tree's draft calls too, interpolated linearly between measured sizes",
        "target steps", "lower",
    ),
    Metric(("speed/catch_up",),
        "what the first draft call of a chain costs more, per round, because it takes in several committed tokens: the "
        "last draft, other proposers', or all of the last round if the draft reads the target's states; at their mean "
        "number, interpolated linearly between measured sizes. None in folders whose costs.json has no such calls",
        "target steps", "lower",
    ),
    Metric(("speed/attainable",),
        "mean_length / (gamma c + catch_up + v), with one more draft step for a judge that reads the draft's hidden "
        "state, and one call in place of gamma for DFlash: what the calls alone would allow. Where rounds differ: "
        "mean_length / (counted draft calls per round x c + catch_up + v); `lookup` and `suffix` have no c",
        "ratio", "higher",
    ),
    Metric(("speed/realised",), "speedup / attainable", "share", "higher"),
    Metric(("speed/predicted_speedup",),
        "(1 - alpha^(gamma+1)) / (1 - alpha) / (gamma c + catch_up + v), where all rounds draft gamma; not of blocks "
        "(`rule: block` at a temperature above 0), of which it would be a lower bound",
        "ratio", "higher",
    ),
    Metric(("batch/prompts_per_second", "batch/tokens_per_second", "batch/speedup"),
        "with `batch` > 1, in place of all `speed/` and `category/speedup_`: prompts / (decode + prefill "
        "seconds); emitted ids / decode seconds; that / the baseline's in the same batch. A prompt's "
        "`seconds` are its share of common steps, not a latency",
        "1/s; ratio", "higher", ends=("_low", "_high"),
    ),
    Metric(("quality/accuracy",),
        "with Wilson's 95 % interval",
        "share", "higher", ends=("_low", "_high"),
    ),
    Metric(("quality/accuracy_delta",),
        "paired difference to the baseline, with Newcombe's 95 % interval of paired shares (1998, method "
        "10), whose width is not 0 even if no answer changes",
        "share", "higher", ends=("_low", "_high"),
    ),
    Metric(("quality/mcnemar_p",),
        "exact McNemar p of that difference",
        "probability", "",
    ),
    Metric(("quality/cut_share", "quality/unparsed_share"),
        "outputs that ended at `max_new_tokens` or at the context's end / outputs; graded outputs without "
        "an answer that could be read / graded outputs, which count as wrong. From 10 % on a warning "
        "names what to raise",
        "share", "lower",
    ),
    Metric(("quality/equal_to_baseline",),
        "share of outputs equal to the baseline's, token for token (of those after the same prompt), with "
        "Wilson's 95 % interval for tasks without an answer that can be checked",
        "share", "higher", ends=("_low", "_high"),
    ),
    Metric(("quality/near_ties", "quality/within_rounding", "quality/unexplained"),
        "of a setting that must emit the baseline's tokens (a lossless one when greedy, a tree at any "
        "temperature), outputs that do not, by what explains the first difference "
        "([below](#outputs-that-differ))",
        "outputs", "lower",
    ),
    Metric(("quality/prompts_for_one_point",),
        "prompts that a difference of one point in accuracy would need, at a level of 5 % and a power of "
        "80 %, with as many changed answers as here",
        "prompts", "lower",
    ),
    Metric(("share/draft", "share/target", "share/judge", "share/sampling", "share/host"),
        "of decode time, in an instrumented run of a few prompts; `host` is the rest",
        "share", "lower",
    ),
    Metric(("certificate/lossless", "certificate/passed", "certificate/findings"),
        "of `certify`: 1 if every check passed; of an engine so, too; what was found wrong with it",
        "0 or 1; findings", "",
    ),
    Metric(("certificate/oracle_gap",),
        "of `certify`: the oracle's largest gap",
        "probability", "lower",
    ),
    Metric(("certificate/prompts", "certificate/equal_share", "certificate/near_ties"),
        "of `certify`: prompts decoded; outputs equal to plain decoding's; first divergences at near ties",
        "share; outputs", "higher",
    ),
    Metric(("certificate/rows_differing",),
        "of `certify`: rows of logits whose bits depend on what is fed with the token",
        "rows", "lower",
    ),
    Metric(("certificate/samples", "certificate/needed_samples", "certificate/chi_square_p", "certificate/sure_bias"),
        "of `certify`: outputs at each place (and as many as a bias needs), their p, the bias they surely find",
        "outputs; probability", "",
    ),
    Metric(("certificate/control_p", "certificate/control_variation"),
        "of `certify`: p of the planted bias, and its total variation",
        "probability", "lower",
    ),
    Metric(("advice/...",),
        "of `advise`: alpha, c, `predicted_speedup`, `measured_speedup` with its interval, `mean_length`, "
        "`attainable`; with `sweep`, `short_measured` and `short_predicted`: how far the recommendation "
        "is from the best of all; of served engines, `tokens_per_second` of the fastest",
        "as named", "",
    ),
    Metric(("memory/peak_rss_bytes", "memory/peak_cudaN_bytes"),
        "peak bytes of the process since its start; peak bytes of tensors on a CUDA device, of the whole "
        "run and of each method",
        "bytes", "lower",
    ),
    Metric(("category/speedup_NAME", "category/mean_length_NAME"),
        "of the questions of one category, where a task has several",
        "ratio; tokens per call", "higher",
    ),
    Metric(("labels/...",),
        "of a label set: prompts, those without answer and unfinished, mismatches per prompt, undecided "
        "swaps and their share, important share of the decided ones, forwards and positions per label, "
        "and their share of the literal procedure's",
        "as named", "",
    ),
    Metric(("judge/...",),
        "of a judge on test prompts: ROC-AUC, PR-AUC, Brier score, recall at its threshold and its 95 % "
        "margin, share of mismatches accepted, the threshold; of one that is compared, `microseconds_per_token`, "
        "`extra_draft_forwards` a round and `p_against_chosen`; of `judge_report`, `ece`; of a rule that "
        "`calibrate_rule` set, also the prompts with an important one accepted (`loss`); while training, loss and "
        "ROC-AUC on the validation split",
        "as named", "",
    ),
    Metric(("count/graded",),
        "prompts with an answer that can be checked",
        "prompts", "",
    ),
    Metric(("count/without_answer",),
        "outputs of graded prompts from which no answer could be read",
        "outputs", "lower",
    ),
    Metric(("count/prompts", "count/tokens"),
        "of a run",
        "prompts; tokens", "",
    ),
    Metric(("speed/best_lossless_speedup",),
        "of the comparison run",
        "ratio", "higher",
    ),
    Metric(("tree/pruned_by_threshold", "tree/pruned_by_log_prob", "tree/pruned_by_budget"),
        "children pruned for this reason / candidates proposed",
        "share", "",
    ),
    Metric(("train/loss", "train/loss_I", "train/seconds_per_step"),
        "of `train_pair` and `train_drafter`: the last step's loss (of the I-th drafted token), and seconds per step",
        "nats; s", "lower",
    ),
    Metric(("speed/end_to_end_NAME", "batch/prompts_per_second_NAME"),
        "of each contender of `benchmark`: tokens / seconds of whole calls; prompts per second in a batch",
        "tokens/s; 1/s", "higher",
    ),
    Metric(("bench/...", "drafter/..."),
        "of `benchmark` ([results.md](results.md#the-benchmark)) and of `train_drafter` ([drafters.md](drafters.md))",
        "as named", "",
    ),
    *LOAD_METRICS,
)  # fmt: skip


def unknown(keys: Iterable[str]) -> list[str]:
    """Return the keys of a run that no metric in the catalogue has, sorted."""
    return sorted(key for key in keys if not any(pattern.fullmatch(key) for pattern in _patterns()))


def table() -> str:
    """Return the catalogue as a Markdown table."""
    rows = ["| name | definition | unit | better |", "|---|---|---|---|"]
    for metric in METRICS:
        names = ", ".join(f"`{name}`" for name in (*metric.names, *metric.ends))
        rows.append(f"| {names} | {metric.definition} | {metric.unit} | {metric.better} |")
    return "\n".join(rows)


def filled(page: str) -> str:
    """Return the text of a page with the catalogue between its markers written anew."""
    return _BLOCK.sub(lambda match: f"{match[1]}{table()}{match[2]}", page)


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(_pattern(name) for metric in METRICS for name in metric.all_names())


def _pattern(name: str) -> re.Pattern[str]:
    text = re.escape(name).replace("NAME", ".+").replace(r"\.\.\.", ".+")
    return re.compile(re.sub("(?<=_)I$|(?<=cuda)N", r"\\d+", text))


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    if len(sys.argv) == 1:
        print(table())
