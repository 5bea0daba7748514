"""Every number of a report, computed again in plain Python from records.jsonl, costs.json and shares.json.

Nothing of the package's own arithmetic is used: what is drawn at random is drawn here by the same seeded generator,
and what can be counted out is counted out.
"""

from __future__ import annotations

import json
import math
import random
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from helpers.cli_runner import evaluate, records
from helpers.html_reading import Shown, read
from specexp.storage.files import CHECKSUM

Z = NormalDist().inv_cdf
Record = dict[str, Any]
SAMPLED = ["--experiment", "toy_quick", "--methods", "baseline,draft_only,speculative,specexec", "--gamma", "3",
           "--repeats", "2", "--limit", "5", "--temperature", "0.8"]  # fmt: skip
GREEDY = ["--experiment", "toy_quick", "--methods", "baseline,draft_only,speculative,topk", "--gamma", "4"]


class Again:
    """One output folder's numbers."""

    def __init__(self, output: Path) -> None:
        self.records = records(output)
        self.costs = json.loads((output / "costs.json").read_text())
        self.shares = json.loads((output / "shares.json").read_text())["seconds"]
        self.prompts = sorted({r["prompt_id"] for r in self.records})

    def of(self, run: str) -> list[Record]:
        return [r for r in self.records if r["label"] == run]

    def plain(self) -> list[Record]:
        return self.of("baseline")

    def pairs(self, run: str) -> list[tuple[Record, Record]]:
        by_key = {(r["prompt_id"], r["repeat"]): r for r in self.plain()}
        return [(r, by_key[r["prompt_id"], r["repeat"]]) for r in self.of(run)]

    def sums(self, run: str, prompt: str, *keys: str) -> tuple[int, float]:
        """Tokens and the sum of `keys` of one prompt, its repeats together."""
        prompt_records = [r for r in self.of(run) if r["prompt_id"] == prompt]
        return sum(len(r["token_ids"]) for r in prompt_records), sum(r[k] for r in prompt_records for k in keys)

    def rate(self, run: str, prompts: list[str], *keys: str) -> float:
        sums = [self.sums(run, prompt, *keys) for prompt in prompts]
        return sum(tokens for tokens, _ in sums) / sum(seconds for _, seconds in sums)

    def drawn(self) -> list[list[str]]:
        n = len(self.prompts)
        places = np.random.default_rng(0).integers(n, size=(2000, n))
        return [[self.prompts[i] for i in row] for row in places.tolist()]

    def end(self, values: list[float], metric: str) -> float:
        """The 2.5th or 97.5th percentile, between neighbours in a straight line."""
        ordered, at = sorted(values), (len(values) - 1) * (0.025 if metric.endswith("_low") else 0.975)
        below = math.floor(at)
        return ordered[below] + (at - below) * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below])

    def swap_p(self, run: str, other: str) -> float:
        candidate = [self.sums(run, p, "seconds") for p in self.prompts]
        baseline = [self.sums(other, p, "seconds") for p in self.prompts]

        def far(swaps: tuple[int, ...]) -> float:
            sides = [[0, 0.0], [0, 0.0]]
            for swap, a, b in zip(swaps, candidate, baseline, strict=True):
                for side, (tokens, seconds) in enumerate((b, a) if swap else (a, b)):
                    sides[side][0] += tokens
                    sides[side][1] += seconds
            return abs(math.log(sides[0][0] / sides[0][1] / (sides[1][0] / sides[1][1])))

        every = [far(swaps) for swaps in product((0, 1), repeat=len(self.prompts))]
        return sum(f >= every[0] * (1 - 1e-9) for f in every) / len(every)

    def differences(self, run: str) -> dict[str, list[int]]:
        by_prompt: dict[str, list[int]] = {}
        for record, plain in self.pairs(run):
            by_prompt.setdefault(record["prompt_id"], []).append(int(record["correct"]) - int(plain["correct"]))
        return by_prompt

    def wilson(self, share: float, metric: str) -> float:
        n, z = len(self.prompts), Z(0.975)
        reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        sign = -1 if metric.endswith("_low") else 1
        return min(1.0, max(0.0, (share + z * z / (2 * n) + sign * reach) / (1 + z * z / n)))

    def newcombe(self, run: str) -> tuple[float, float]:
        """Method 10 on the fourfold table of prompts, repeats in their shares."""
        n, cells = len(self.prompts), {(x, y): 0.0 for x in (True, False) for y in (True, False)}
        for record, plain in self.pairs(run):
            cells[bool(record["correct"]), bool(plain["correct"])] += n / len(self.of(run))
        a, b, c, d = (cells[key] for key in ((True, True), (True, False), (False, True), (False, False)))
        p, q = (a + b) / n, (a + c) / n
        below_p, above_p, below_q, above_q = (
            abs(self.wilson(share, end) - share) for share in (p, q) for end in ("_low", "_high")
        )
        rows, top = (a + b) * (c + d) * (a + c) * (b + d), a * d - b * c
        phi = (top if top < 0 else max(0.0, top - n / 2)) / math.sqrt(rows) if rows > 0 else 0.0
        low = math.sqrt(below_p**2 - 2 * phi * below_p * above_q + above_q**2)
        high = math.sqrt(below_q**2 - 2 * phi * below_q * above_p + above_p**2)
        return p - q - low, p - q + high

    def seconds(self, kind: str, size: float) -> float:
        known = {int(n): s for n, s in self.costs[kind].items()}
        known |= {1: self.costs["target"]["1"]} if kind == "tree_target" else {}
        known |= {1: self.costs["draft"]} if kind == "tree_draft" else {}
        return float(np.interp(size, sorted(known), [known[n] for n in sorted(known)]))

    def calls(self, run: str) -> dict[str, float]:
        """c, v and the seconds of a round, in plain steps."""
        method_records = self.of(run)
        rounds, step = sum(r["num_rounds"] for r in method_records), self.costs["target"]["1"]
        if method_records[0]["method"] == "specexec":
            v = self.seconds("tree_target", sum(r["num_target_positions"] for r in method_records) / rounds) / step
            drafts = sum(r["num_draft_calls"] for r in method_records)
            c = self.seconds("tree_draft", sum(r["num_draft_positions"] for r in method_records) / drafts) / step
            return {"c": c, "v": v, "round": drafts / rounds * c + v}
        gamma = int(run.rpartition("_k")[2])
        c, v = self.costs["draft"] / step, self.costs["target"][str(gamma + 1)] / step
        chains = sum(sum(r["drafted_before_end"][1:]) for r in method_records)
        more = sum(r["num_draft_positions"] - r["num_draft_calls"] for r in method_records) / chains
        extra = max(0.0, self.seconds("catch_up", 1 + more) - self.costs["catch_up"]["1"]) / step * chains / rounds
        return {"c": c, "v": v, "round": gamma * c + extra + v, "gamma": gamma}

    def __call__(self, metric: str, run: str) -> float:
        section, _, name = metric.partition("/")
        if section == "costs":
            kind, _, size = name.partition("/")
            return float(self.costs[kind][size] if size else self.costs[kind])
        if section == "share":
            return self.shares[run][name] / sum(self.shares[run].values())  # type: ignore[no-any-return]
        if section == "verdict":
            one, _, other = run.partition("|")
            if name == "same_speed_p":
                return self.swap_p(one, other)
            if name in ("ratio_low", "ratio_high"):
                rates = [self.rate(one, some, "seconds") / self.rate(other, some, "seconds") for some in self.drawn()]
                return self.end(rates, name)
            assert name == "over"
            return self.rate(one, self.prompts, "seconds") / self.rate(other, self.prompts, "seconds")
        method_records = self.of(run)
        total = {key: sum(r[key] for r in method_records) for key in method_records[0] if key.startswith("num_")}
        tokens = sum(len(r["token_ids"]) for r in method_records)
        histogram = [a for r in method_records for a, n in enumerate(r["accepted_histogram"]) for _ in range(n)]

        def speedup(prompts: list[str]) -> float:
            return self.rate(run, prompts, "seconds") / self.rate("baseline", prompts, "seconds")

        accuracy = sum(bool(r["correct"]) for r in method_records) / len(method_records)
        match metric:
            case "speed/tokens_per_second":
                return tokens / sum(r["seconds"] for r in method_records)  # type: ignore[no-any-return]
            case "speed/speedup":
                return speedup(self.prompts)
            case "speed/speedup_low" | "speed/speedup_high":
                return self.end([speedup(some) for some in self.drawn()], metric)
            case "speed/speedup_p":
                return self.swap_p(run, "baseline")
            case "speed/speedup_end_to_end":
                both = ("seconds", "prefill_seconds")
                return self.rate(run, self.prompts, *both) / self.rate("baseline", self.prompts, *both)
            case "accept/mean_length":
                return tokens / total["num_rounds"]  # type: ignore[no-any-return]
            case "accept/mean_length_low" | "accept/mean_length_high":
                return self.end([self.rate(run, some, "num_rounds") for some in self.drawn()], metric)
            case "accept/alpha":
                return sum(r["overlap"] for r in method_records) / total["num_tested"]  # type: ignore[no-any-return]
            case "calls/target_per_token":
                return total["num_target_calls"] / tokens  # type: ignore[no-any-return]
            case "calls/draft_per_token":
                return total["num_draft_calls"] / tokens  # type: ignore[no-any-return]
            case "speed/c" | "speed/v":
                return self.calls(run)[name]
            case "speed/attainable":
                return tokens / total["num_rounds"] / self.calls(run)["round"]  # type: ignore[no-any-return]
            case "speed/realised":
                return speedup(self.prompts) / self("speed/attainable", run)
            case "speed/predicted_speedup":
                alpha, calls = self("accept/alpha", run), self.calls(run)
                return sum(alpha**i for i in range(int(calls["gamma"]) + 1)) / calls["round"]
            case "quality/accuracy":
                return accuracy
            case "quality/accuracy_low" | "quality/accuracy_high":
                return self.wilson(accuracy, metric)
            case "quality/cut_share":
                return sum(r["finish_reason"] in ("length", "context") for r in method_records) / len(method_records)
            case "quality/unparsed_share":
                return sum(r["answer"] is None for r in method_records) / len(method_records)
            case "quality/equal_to_baseline":
                return sum(a["token_ids"] == b["token_ids"] for a, b in self.pairs(run)) / len(method_records)
            case "quality/accuracy_delta":
                return accuracy - sum(bool(r["correct"]) for r in self.plain()) / len(method_records)
            case "quality/accuracy_delta_low" | "quality/accuracy_delta_high":
                return self.newcombe(run)[metric.endswith("_high")]
            case "quality/mcnemar_p":
                sums = [sum(d) for d in self.differences(run).values()]
                signs = list(product((1, -1), repeat=len(sums)))
                flipped = [abs(sum(s * d for s, d in zip(sign, sums, strict=True))) for sign in signs]
                return sum(f >= abs(sum(sums)) for f in flipped) / len(signs)
            case "quality/prompts_for_one_point":
                means = [sum(d) / len(d) for d in self.differences(run).values()]
                d = max(0.01, sum(m * m for m in means) / len(means))
                return math.ceil(((Z(0.975) * math.sqrt(d) + Z(0.8) * math.sqrt(d - 1e-4)) / 0.01) ** 2)
        if metric.startswith("accept/histogram_"):
            return histogram.count(int(metric.rpartition("_")[2])) / len(histogram)
        if metric.startswith("accept/position_"):
            tried, passed = (
                sum(sum(r[f"{name}_before_end"][int(metric.rpartition("_")[2]) :]) for r in method_records)
                for name in ("drafted", "accepted")
            )
            return passed / tried  # type: ignore[no-any-return]
        if metric.startswith("tree/depth_"):
            return sum(a >= int(metric.rpartition("_")[2]) for a in histogram) / len(histogram)
        raise AssertionError(f"the report shows {metric} of {run}, which this test does not know")


def checked(output: Path) -> set[str]:
    """The metrics that the report in this folder shows, all of them right."""
    page = read((output / "report.html").read_text(encoding="utf-8"))
    again = Again(output)
    wrong: list[tuple[Shown, float]] = []
    for shown in page.numbers:
        expected = again(shown.metric, shown.run)
        if not shown.agrees() or shown.value != pytest.approx(expected, rel=1e-6, abs=1e-9):
            wrong.append((shown, expected))
    assert not wrong
    assert not page.loose, "numbers that say nothing about themselves"
    return {shown.metric for shown in page.numbers}


@pytest.mark.slow
def test_every_number_of_a_report_comes_from_its_folder(workplace: Path) -> None:
    result = evaluate(*SAMPLED, "--output", "out")
    assert result.exit_code == 0, result.output
    assert checked(workplace / "out") >= {
        "speed/speedup", "speed/speedup_low", "speed/speedup_p", "speed/attainable", "speed/predicted_speedup",
        "accept/mean_length_high", "accept/histogram_0", "accept/position_3", "tree/depth_3", "share/draft",
        "costs/draft", "costs/catch_up/2", "costs/tree_target/13",
    }  # fmt: skip


@pytest.mark.slow
def test_so_do_those_about_answers_and_the_page_is_rendered_again_from_what_the_folder_holds(workplace: Path) -> None:
    assert evaluate(*GREEDY, "--limit", "8", "--output", "out").exit_code == 0
    path, rng = workplace / "out" / "records.jsonl", random.Random(0)
    graded = [
        {**r, "gold": "7", "correct": rng.random() < {"topk": 0.6, "draft_only": 0.2}.get(r["method"], 0.9)}
        for r in records(workplace / "out")
    ]
    # Without the checksums of what they were, as lines of before had none.
    bare = [{key: value for key, value in record.items() if key != CHECKSUM} for record in graded]
    path.write_text("".join(json.dumps(record) + "\n" for record in bare))
    assert evaluate(*GREEDY, "--limit", "8", "--output", "out", "--resume").exit_code == 0
    assert checked(workplace / "out") >= {
        "quality/accuracy", "quality/accuracy_low", "quality/accuracy_delta", "quality/accuracy_delta_high",
        "quality/mcnemar_p", "quality/equal_to_baseline",
    }  # fmt: skip
