"""tokens.html: the content of tokens.json as one self-contained page that works without scripts.

This module decides how much is shown and in which words; the template decides how it looks. It decodes nothing.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from specexp.evaluation import divergence
from specexp.evaluation.divergence import NOT_LOSSLESS
from specexp.evaluation.large_runs import sample
from specexp.evaluation.preparation import Prepared
from specexp.evaluation.token_view.data import VERSION, Budget, Tracer, trace
from specexp.evaluation.token_view.origins import ORIGINS
from specexp.evaluation.token_view.selection import NOT_SHOWN, ShownPrompts
from specexp.method_specs import spec
from specexp.pair.token_text import PART, SPECIAL, TEXT, marked, plain
from specexp.storage.files import write_whole
from specexp.storage.journal import Journal
from specexp.storage.records import RecordFile
from specexp.storage.run_folder import OutputFolder

TEMPLATES = Path(__file__).resolve().parent / "templates"
JSON, HTML = "tokens.json", "tokens.html"
DECODED = "tokens.jsonl"  # prompt by prompt, until both files are written
SHARE, LEAST = 0.2, 30.0  # share of the decode time, and seconds that are always allowed
CELL_TOKENS, PAGE_TOKENS, PROMPT_SIGNS = 2_000, 40_000, 20_000  # most that a page shows; tokens.json has everything
COLUMNS = 4  # methods side by side; more are placed one below the other
_SHOWN_SIGNS = "\n\t"  # characters that follow their marks


def write(
    prepared: Prepared, output: OutputFolder, records: RecordFile, shown: ShownPrompts,
    clock: Callable[[], float] = time.perf_counter, tracer: Tracer | None = None,
) -> list[Path]:  # fmt: skip
    """Write both files for the prompts to be shown, and return their paths; none if they show these prompts already.

    Prompts decoded for an earlier view are not decoded again. If a number of prompts is requested, as many are shown as
    fit a share of the run's decode time; named prompts are always shown. `tracer` replaces `trace`.
    """
    # Engines do not say where their tokens come from.
    chosen = shown.choose(prepared.examples, sample(prepared, records.records)) if prepared.settings else []
    data, page = output.path / JSON, output.path / HTML
    wanted = [prepared.examples[index].prompt_id for index in chosen]
    before = output.read_json(JSON)
    if not wanted or (page.is_file() and wanted == _prompts_of(before)):
        return []
    if prepared.budget is not None:
        print(NOT_SHOWN, file=sys.stderr)
        return []
    facts = {"version": VERSION, "settings_hash": prepared.experiment.hash}
    with Journal.open(output.path / DECODED, facts) as journal:
        _take_over(before, facts, journal)
        seconds = max(LEAST, SHARE * sum(r["seconds"] + r["prefill_seconds"] for r in records.records))
        budget = Budget(math.inf if shown.number is None else seconds, clock)
        result = (tracer or trace)(prepared, records, chosen, journal, budget)
    if result["left_out"]:
        print(_left_out(result, len(wanted)), file=sys.stderr)
    if not result["prompts"] or (page.is_file() and _prompts_of(result) == _prompts_of(before)):
        (output.path / DECODED).unlink()  # tokens.json has all of its content
        return []
    page.unlink(missing_ok=True)  # a page exists only together with the data it was made from
    result["chosen"] = "by number" if shown.number is not None else "by id"
    differing = divergence.by_label(prepared, output.read_json(divergence.FILE), records.records)
    for method in result["methods"]:
        method["refuted"] = method["label"] in differing and differing[method["label"]].refuted
    write_whole(data, json.dumps(result, separators=(",", ":")) + "\n")
    write_whole(page, render(result))
    (output.path / DECODED).unlink()
    return [page, data]


def _take_over(data: Mapping[str, Any] | None, facts: Mapping[str, Any], journal: Journal) -> None:
    """Add the prompts of a tokens.json with the same settings to the journal."""
    if data is not None and all(data.get(name) == value for name, value in facts.items()):
        for prompt in data["prompts"]:
            journal.unit((prompt["prompt_id"], prompt["turn"]), lambda prompt=prompt: prompt)  # type: ignore[misc]


def _left_out(data: Mapping[str, Any], num_wanted: int) -> str:
    shown = num_wanted - len(data["left_out"])
    return (
        f"note: the token view shows {shown} of {num_wanted} prompts: more would take over {SHARE:.0%} of the time that"
        " decoding took. Continue with --resume to show more, or name prompts by their ids with show."
    )


def files(output: OutputFolder) -> list[Path]:
    """Return those of the two files that exist in the folder."""
    return [path for path in (output.path / HTML, output.path / JSON) if path.is_file()]


def _prompts_of(data: Mapping[str, Any] | None) -> list[str]:
    return list(dict.fromkeys(prompt["prompt_id"] for prompt in data["prompts"])) if data else []


def render(data: Mapping[str, Any]) -> str:
    """Render the page from the result of `trace`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    methods = {method["label"]: method for method in data["methods"]}
    prompts: list[dict[str, Any]] = []
    left_out: list[str] = []
    left = PAGE_TOKENS
    for number, prompt in enumerate(data["prompts"], 1):
        left -= sum(min(CELL_TOKENS, len(cell["tokens"]["id"])) for cell in prompt["cells"])
        if left >= 0 or not prompts:
            prompts.append(_prompt(prompt, f"p{number}", methods, data["history"]))
        else:
            left_out.append(_named(prompt))
    used = {origin for prompt in data["prompts"] for cell in prompt["cells"] for origin in cell["counts"]}
    return environment.get_template("tokens.html.j2").render(
        data=data,
        sampling=_sampling(data),
        origins={origin: words for origin, words in ORIGINS.items() if origin in used},
        legend=_legend(data),
        prompts=prompts,
        left_out=left_out,
        skipped=[plain(name) for name in data["left_out"]],
        stacked=len(methods) > COLUMNS,
    )


def _sampling(data: Mapping[str, Any]) -> str:
    """Describe how the tokens were chosen, and which distribution the probabilities are of."""
    if data["temperature"] == 0:
        return "Greedy; probabilities are those at temperature 1."
    warps = [f"temperature {data['temperature']:g}"]
    warps += [f"top_k {data['top_k']}"] if data["top_k"] else []
    warps += [f"top_p {data['top_p']:g}"] if data["top_p"] < 1 else []
    drawn = any(method.get("draft_temperature") is not None for method in data["methods"])
    own = ", a draft's at its draft_temperature" if drawn else ""
    return f"Sampled at {', '.join(warps)}, seed {data['seed']}; probabilities are those of this distribution{own}."


def _named(prompt: Mapping[str, Any]) -> str:
    name = plain(prompt["prompt_id"])
    return name if prompt["num_turns"] == 1 else f"{name}, turn {prompt['turn'] + 1}"


def _legend(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return sums over the prompts of the file, one row per method."""
    rows = []
    for place, method in enumerate(data["methods"]):
        cells = [prompt["cells"][place] for prompt in data["prompts"]]
        counts: Counter[str] = Counter()
        for cell in cells:
            counts.update(cell["counts"])
        calls = sum(len(c["tokens"]["id"]) / c["tokens_per_call"] for c in cells if c["tokens_per_call"])
        rows.append(
            {
                "label": method["label"],
                "num_tokens": counts.total(),
                "per_call": f"{counts.total() / calls:.2f}" if calls else "",
                "counts": counts,
                "mark": NOT_LOSSLESS if method.get("refuted") else "" if method["lossless"] else "lossy",
            }
        )
    return rows


def _prompt(
    prompt: Mapping[str, Any], anchor: str, methods: Mapping[str, Mapping[str, Any]], history: str
) -> dict[str, Any]:
    text = prompt["text"][:PROMPT_SIGNS]
    notes = []
    if len(text) < len(prompt["text"]):
        notes.append(f"its first {PROMPT_SIGNS:,} characters")
    if prompt["num_shots"]:
        notes.append(f"after {prompt['num_shots']} solved examples")
    if prompt["num_exchanges"]:
        notes.append(f"after {prompt['num_exchanges']} exchanges of its conversation")
    if prompt["turn"]:
        whose = "plain decoding's answers" if history == "baseline" else "each method's own answers"
        notes.append(f"after {whose} to earlier turns")
    return {
        "anchor": anchor,
        "name": _named(prompt),
        "notes": notes,
        "parts": _parts([text])[0],
        "gold": None if prompt["gold"] is None else plain(prompt["gold"]),
        "cells": [_cell(cell, methods[cell["label"]]) for cell in prompt["cells"]],
    }


def _cell(cell: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    num = len(cell["tokens"]["id"])
    facts = [f"{num} token{'' if num == 1 else 's'}"]
    if cell["tokens_per_call"]:
        facts.append(f"{cell['tokens_per_call']:.2f} per target call")
    if cell["finish_reason"] != "stop":
        facts.append(
            {
                "length": "cut at the limit",
                "stop_string": "ended by a stop string",
                "context": "cut where the context ends",
            }[cell["finish_reason"]]
        )
    return {
        "label": cell["label"],
        "facts": facts,
        "answer": None if cell["answer"] is None else plain(cell["answer"]),
        "correct": cell["correct"],
        "difference": _difference(cell["difference"]),
        "cut": num - CELL_TOKENS,
        "tokens": _tokens(cell["tokens"], method, rounds=cell["num_rounds"] < num),
    }


def _difference(diff: Mapping[str, Any] | None) -> str:
    """Return a sentence; "" if the shown output equals the recorded one."""
    if diff is None:
        return ""
    if diff["position"] is None:
        return f"The same output as recorded, but with other counts ({', '.join(diff['counts'])})."
    here, there = ("its end" if token is None else f"“{plain(token)}”" for token in (diff["traced"], diff["recorded"]))
    return (
        f"Decoded again, this differs from the record at position {diff['position']}: {here} here, {there} there"
        f" ({diff['num_recorded']} tokens recorded). A coarse dtype or a batch may decide near ties differently."
        " The answer is the record's."
    )


@dataclass(frozen=True, slots=True)
class Token:
    """A token for the template; each part is (text, mark)."""

    classes: str
    hint: str
    parts: Sequence[tuple[str, str]]


def _tokens(columns: Mapping[str, Sequence[Any]], method: Mapping[str, Any], rounds: bool) -> list[Token]:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)][:CELL_TOKENS]
    parts = _parts([row["text"] if row["kind"] == TEXT else "" for row in rows])
    result, whole = [], ""
    for row, part in zip(reversed(rows), reversed(parts), strict=True):
        whole = row["text"] if row["kind"] == TEXT else whole  # the later token that completes a part's character
        classes = [row["origin"], *([row["kind"]] if row["kind"] != TEXT else [])]
        if rounds and row["place"] == 1:
            classes.append("first")
        shown = [(plain(row["text"]), "")] if row["kind"] == SPECIAL else part
        result.append(Token(" ".join(classes), _hint(row, whole, method), shown))
    return result[::-1]


def _parts(texts: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Return marked texts, without the characters that their marks stand for."""
    return [
        [(sign if not mark or sign in _SHOWN_SIGNS else "", mark) for sign, mark in parts] for parts in marked(texts)
    ]


def _hint(row: Mapping[str, Any], whole: str, method: Mapping[str, Any]) -> str:
    """Return the known facts of a token, one per line; token texts have their own lines because of their direction."""
    name = f"part of {plain(whole)}" if row["kind"] == PART else plain(row["text"])
    lines = [name, ORIGINS[row["origin"]]]
    lines.append(f"position {row['position']}, round {row['round']}, token {row['place']} of it, id {row['id']}")
    if row["p"] is not None:
        lines.append(f"p = {row['p']:.3g} by the target, {_choice(row['p_rank'])}")
    if row["q"] is not None:
        lines.append(f"q = {row['q']:.3g} by the draft")
    if row["rank"] is not None:
        lines.append(f"the draft's no. {row['rank'] + 1} among its siblings")
    if row["score"] is not None:
        lines.append(_score(row["score"], method))
    if row["rejected"] is not None:
        met = "in the tree instead" if spec(method["method"]).grows_tree else "rejected"
        lines += [f"{met}:", plain(row["rejected"])]
        p = [f"p = {row['rejected_p']:.3g}"] if row["rejected_p"] is not None else []
        q = [f"q = {row['rejected_q']:.3g}"] if row["rejected_q"] is not None else []
        lines.append(", ".join(p + q))
        if row["rejected_score"] is not None:
            lines.append(_score(row["rejected_score"], method))
            if row["rejected_score"] < method["threshold"]:
                lines.append("but the judge never accepts a drafted EOS")
    if row["p_rank"] is not None and row["p_rank"] > 1:
        lines += [f"the target's likeliest, p = {row['first_p']:.3g}:", plain(row["first"])]
    return "\n".join(line for line in lines if line)


def _choice(rank: int) -> str:
    return "its first choice" if rank == 1 else f"its no. {rank}"


def _score(score: float, method: Mapping[str, Any]) -> str:
    return f"judge: p(important) = {score:.3g}, threshold {method['threshold']:.3g}"
