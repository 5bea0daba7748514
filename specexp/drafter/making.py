"""Makes a drafter in a folder: outputs, training, evaluation by position, the head's folder, figures.

outputs.jsonl     the target's outputs, as they are made
checkpoint.pt     the progress of the training
curves.json       its curves
acceptance.json   acceptance by position, of the head and of the draft model
head/             the head
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from specexp.drafter import acceptance, figures, head_folder, target_outputs
from specexp.drafter.acceptance import Acceptance
from specexp.drafter.eagle3 import Eagle3Head
from specexp.drafter.preparation import PreparedDrafter, make_head
from specexp.drafter.target_outputs import TargetOutput
from specexp.drafter.target_states import TargetStates
from specexp.drafter.training import train
from specexp.lm import out_of_memory
from specexp.storage.files import read_json, write_json

CURVES, ACCEPTANCE, HEAD = "curves.json", "acceptance.json", "head"
DEPTH = 8  # positions that are evaluated
GAMMA = 4  # of the chain by which heads are compared
MOST_EVALUATED = 512  # outputs of each kind
KINDS = {"greedy": False, "sampled": True}
Log = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True, slots=True)
class DrafterReport:
    """A trained head: its folder, its metrics and figures. `by_draft` is (draft, kind): acceptance."""

    folder: Path
    metrics: Mapping[str, float]
    files: Sequence[Path]
    facts: Mapping[str, Any]
    by_draft: Mapping[tuple[str, str], Acceptance]
    num_steps: int


def make(prepared: PreparedDrafter, folder: Path, log: Log) -> DrafterReport:
    """Make the drafter, or go on where an interrupted run stopped. Raises SpecexpError."""
    outputs = collect(prepared, folder)
    training, held_out = target_outputs.split(outputs)
    ids = target_outputs.draft_ids(training, prepared.config.most_ids, prepared.target.vocab_size)
    head, states = make_head(prepared, ids), TargetStates(prepared.target, prepared.layers)
    recipe = prepared.recipe(len(training))
    curves: dict[str, Mapping[str, float]] = read_json(folder / CURVES, {int: {str: float}}) or {}

    def note(metrics: Mapping[str, float], step: int) -> None:
        curves[str(step)] = dict(metrics)
        write_json(folder / CURVES, curves)
        log(metrics, step)

    models = prepared.config.experiment.models
    with out_of_memory.translate_oom("training the drafter", "train_batch or max_new_tokens", models):
        train(head, training, states, recipe, folder, note)
    facts = {
        **prepared.facts(), "target_name": prepared.config.experiment.target.model,
        "task": prepared.task.name, "outputs": len(training), "recipe": asdict(recipe),
    }  # fmt: skip
    head_folder.write(head, facts, folder / HEAD)
    written = head_folder.read(folder / HEAD, prepared.target.module.get_input_embeddings().weight)
    by_draft = evaluate(prepared, written.to(prepared.target.device), held_out, states)
    write_json(folder / ACCEPTANCE, {f"{draft} {kind}": asdict(each) for (draft, kind), each in by_draft.items()})
    metrics = {**metrics_of(by_draft), "drafter/bytes": float(head_folder.size_of(folder / HEAD))}
    metrics["drafter/parameters"] = float(sum(p.numel() for p in head.parameters()))
    files = [figures.draw_curves(folder / "curves.png", {int(step): each for step, each in curves.items()})]
    for kind in KINDS:
        shown = {draft: each for (draft, of_kind), each in by_draft.items() if of_kind == kind}
        files.append(figures.draw_acceptance(folder / f"acceptance_{kind}.png", shown, kind == "greedy"))
    return DrafterReport(
        folder / HEAD, metrics, [*files, folder / ACCEPTANCE, folder / CURVES], facts, by_draft, recipe.steps
    )


def collect(prepared: PreparedDrafter, folder: Path) -> list[TargetOutput]:
    """The target's outputs, with a progress bar."""
    plan = prepared.plan()
    models, what = prepared.config.experiment.models, f"decoding {plan.batch} prompts at a time"
    with (
        out_of_memory.translate_oom(what, "batch or max_new_tokens", models),
        tqdm(total=len(plan.examples), desc="outputs", unit="prompt", dynamic_ncols=True) as bar,
    ):
        return target_outputs.collect(prepared.pair, plan, folder, prepared.facts(), bar.update)


def evaluate(
    prepared: PreparedDrafter,
    head: Eagle3Head,
    held_out: Sequence[TargetOutput],
    states: TargetStates,
    with_model: bool = True,
) -> dict[tuple[str, str], Acceptance]:
    """Acceptance by position, on held-out greedy and sampled outputs, of the head and of the draft model."""
    result = {}
    for kind, sampled in KINDS.items():
        outputs = [out for out in held_out if out.sampled is sampled][:MOST_EVALUATED]
        if outputs:
            result["head", kind] = acceptance.of_head(head, outputs, states, DEPTH)
            if with_model and prepared.draft is not None:
                result["draft model", kind] = acceptance.of_draft(prepared.draft, outputs, states, DEPTH)
    return result


def metrics_of(by_draft: Mapping[tuple[str, str], Acceptance]) -> dict[str, float]:
    """The metrics of acceptance by position."""
    result = {}
    for (draft, kind), each in by_draft.items():
        start = "drafter/" if draft == "head" else "drafter/model_"
        shares = each.greedy if kind == "greedy" else each.overlap
        result.update({f"{start}{kind}_{i}": share for i, share in enumerate(shares, 1)})
        result[f"{start}{kind}_tokens_per_call"] = each.tokens_per_call(kind == "greedy")[GAMMA]
    return result


def score(by_draft: Mapping[tuple[str, str], Acceptance]) -> float:
    """By which heads are compared: predicted tokens a call of chains of `GAMMA`, the mean of both kinds of output."""
    values = [
        each.tokens_per_call(kind == "greedy")[GAMMA] for (draft, kind), each in by_draft.items() if draft == "head"
    ]
    return sum(values) / len(values)


def better(prepared: PreparedDrafter, report: DrafterReport, champion: Path) -> tuple[bool, str]:
    """Whether the new head beats a champion's on the held-out outputs; and the reason."""
    facts = head_folder.read_facts(champion).get("specexp") or {}
    if facts.get("target") != report.facts["target"]:
        return False, "the champion is for another target; register this one under its own name"
    head = head_folder.read(champion, prepared.target.module.get_input_embeddings().weight)
    _, held_out = target_outputs.split(collect(prepared, report.folder.parent))
    states = TargetStates(prepared.target, head.shape.layers)
    of_champion = score(evaluate(prepared, head.to(prepared.target.device), held_out, states, with_model=False))
    new = score(report.by_draft)
    says = f"predicted tokens a call {new:.3f} against the champion's {of_champion:.3f} on the same held-out outputs"
    return new > of_champion, says
