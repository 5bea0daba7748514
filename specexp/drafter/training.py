"""Trains a head by the training-time test (2503.01840): soft cross-entropy against the target's distribution.

loss = sum over steps s of decay^s (CE(p, q_s) + hard CE(argmax p, q_s)), p restricted to the ids that the head scores.
A row counts at step s if a chain of s drafted tokens can reach it: one that begins within the output.

`checkpoint.pt` holds the progress; a run that finds one continues with the batches of an uninterrupted run, because
batch `step` is a function of the seed and the step. Matrices of the decoder layer are trained with Muon, the rest with
AdamW, as the embedded pair was.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from specexp.checkpoints import Training, rate
from specexp.drafter.eagle3 import Eagle3Head
from specexp.drafter.target_outputs import TargetOutput
from specexp.drafter.target_states import TargetStates
from specexp.storage.files import make_folder

POOL = 16  # batches whose texts are sorted by length together
Log = Callable[[Mapping[str, float], int], None]


@dataclass(frozen=True, slots=True)
class DrafterRecipe:
    """How a head is trained. `steps` batches of `batch` texts; `depth` drafted tokens are looked ahead in the end."""

    steps: int
    batch: int = 16
    depth: int = 7
    first_depth: int = 2
    ramp: float = 0.5  # share of the steps in which the depth rises: early steps learn more in less time without it
    decay: float = 0.9
    hard: float = 0.5
    muon_lr: float = 4e-3
    adam_lr: float = 3e-3
    warmup: int = 30
    seed: int = 0
    low: bool = True  # bfloat16 where the device has it
    log_every: int = 20
    checkpoint_every: int = 100


def batches(outputs: Sequence[TargetOutput], recipe: DrafterRecipe, start: int) -> Iterator[list[TargetOutput]]:
    """Yield the batches from step `start` on: pass after pass over all texts; those of similar length together."""
    per_pass = max(1, len(outputs) // recipe.batch)
    for number in range(start // per_pass, math.ceil(recipe.steps / per_pass)):
        rng = random.Random(f"{recipe.seed} {number}")
        order = list(range(len(outputs)))
        rng.shuffle(order)
        result = []
        for first in range(0, len(order), POOL * recipe.batch):
            pool = sorted(order[first : first + POOL * recipe.batch], key=lambda i: len(outputs[i].ids))
            result += [pool[i : i + recipe.batch] for i in range(0, len(pool), recipe.batch)]
        result = [rows for rows in result if len(rows) == min(recipe.batch, len(outputs))][:per_pass]
        rng.shuffle(result)
        for step, rows in enumerate(result, number * per_pass):
            if start <= step < recipe.steps:
                yield [outputs[i] for i in rows]


def padded(outputs: Sequence[TargetOutput]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [B, T], and the rows of each text that a chain begins in: from its last prompt token's, up to its end."""
    ids = torch.zeros(len(outputs), max(len(out.ids) for out in outputs), dtype=torch.long)
    for i, out in enumerate(outputs):
        ids[i, : len(out.ids)] = torch.tensor(out.ids)
    first = torch.tensor([max(0, len(out.prompt) - 2) for out in outputs])
    end = torch.tensor([len(out.ids) - 2 for out in outputs])  # row t scores token t + 2
    return ids, first, end


def reached(first: Tensor, end: Tensor, rows: int, steps: int) -> Tensor:
    """[S, B, R]: whether row t counts at step s."""
    row, step = torch.arange(rows), torch.arange(steps)[:, None, None]
    return (row >= first[:, None] + step) & (row < end[:, None])


def depth_at(step: int, recipe: DrafterRecipe) -> int:
    """How many drafted tokens a training step looks ahead."""
    first = min(recipe.first_depth, recipe.depth)
    risen = min(1.0, step / max(1.0, recipe.ramp * recipe.steps))
    return first + round(risen * (recipe.depth - first))


def losses(
    head: Eagle3Head, outputs: Sequence[TargetOutput], target: TargetStates, recipe: DrafterRecipe, depth: int
) -> Tensor:
    """The mean loss of each of `depth` drafted tokens [S]."""
    ids, first, end = padded(outputs)
    device = head.lm_head.weight.device
    states, logits = target(ids, recipe.low)
    start = int(first.min())
    counted = reached(first, end, ids.shape[1] - 1, depth)[..., start:].to(device)
    wanted = logits[:, 1 + start :].to(device)[..., head.draft_ids]
    p = wanted.softmax(-1)
    if recipe.hard:
        p = p + recipe.hard * functional.one_hot(wanted.argmax(-1), p.shape[-1])
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.low):
        made = head.outputs(ids[:, 1:].to(device), states[:, :-1].to(device), depth, start)
        scored = head.logits(made[counted]).float()
    each = -(p.expand(depth, -1, -1, -1)[counted] * scored.log_softmax(-1)).sum(-1)
    step = torch.arange(depth, device=device)[:, None, None].expand_as(counted)[counted]
    total = torch.zeros(depth, device=device).index_add(0, step, each)
    return total / counted.sum((1, 2)).clamp(min=1)


def _optimizers(head: Eagle3Head, recipe: DrafterRecipe) -> list[torch.optim.Optimizer]:
    matrices = [head.fc.weight, *(p for p in head.midlayer.parameters() if p.ndim == 2)]
    taken = {id(p) for p in matrices}
    rest = [p for p in head.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    head: Eagle3Head,
    outputs: Sequence[TargetOutput],
    target: TargetStates,
    recipe: DrafterRecipe,
    work: Path,
    log: Log,
) -> Eagle3Head:
    """Train `head` in place, or continue from the checkpoint in `work`. Calls `log(metrics, step)` now and then."""
    make_folder(work)
    head.train()
    training = Training(recipe, head, _optimizers(head, recipe))
    start = training.restore(work)
    weights = torch.tensor([recipe.decay**s for s in range(recipe.depth)], device=head.lm_head.weight.device)
    bar = tqdm(total=recipe.steps, initial=start, desc="drafter", unit="step", dynamic_ncols=True)
    seconds = time.perf_counter()
    for step, rows in enumerate(batches(outputs, recipe, start), start):
        each = losses(head, rows, target, recipe, depth_at(step, recipe))
        (each @ weights[: len(each)] / weights[: len(each)].sum()).backward()  # type: ignore[no-untyped-call]
        training.advance(rate(step, recipe))
        bar.update()
        if (step + 1) % recipe.log_every == 0 or step + 1 == recipe.steps:
            metrics = {f"train/loss_{s + 1}": value for s, value in enumerate(each.tolist())}
            metrics["train/seconds_per_step"] = (time.perf_counter() - seconds) / recipe.log_every
            bar.set_postfix_str(f"loss {metrics['train/loss_1']:.3f}")
            log(metrics, step + 1)
            seconds = time.perf_counter()
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
            training.save(work, step + 1)
    bar.close()
    return head.eval()
