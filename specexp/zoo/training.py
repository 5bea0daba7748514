"""Trains a small pair: a tokenizer, and two Llama models for task `arith` or `arith_code`.

It trains the pairs that `specexp/zoo/` ships, and nothing larger: one process, one CPU or GPU, no mixed-in data.
Training uses the `train` split only, and its loss covers the solution, not the question. Hidden matrices are trained
with Muon, the embedding and the norms with AdamW, both on one warm-up and cosine schedule.

`<work>/checkpoint.pt` holds the progress and is replaced atomically every `checkpoint_every` steps. A run that finds
one continues from it with the same batches as an uninterrupted run, because batch `step` is a function of (seed, step).
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specexp.checkpoints import Training, rate
from specexp.decoding.baseline import Baseline
from specexp.decoding.rng import CertainRng
from specexp.decoding.rules import Warp
from specexp.engine import Engine
from specexp.lm.hf.hf_model import HFModel
from specexp.storage.files import is_unwritable, make_folder, unwritable
from specexp.zoo.training_tasks import TASKS, Trainable, TrainingTask

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
PIECES = r"\d| ?\p{L}+| ?[^\s\d\p{L}]+|\s+"
CONTEXT = 512
IGNORE = -100


@dataclass(frozen=True, slots=True)
class Recipe:
    """Size and training of one model. `steps` batches of `batch` problems of `task`."""

    layers: int
    hidden: int
    heads: int
    steps: int
    batch: int = 32
    muon_lr: float = 2e-3
    adam_lr: float = 3e-3
    warmup: int = 50
    seed: int = 0
    checkpoint_every: int = 50
    task: str = "arith"


RECIPES = {
    "arith": {
        "target": Recipe(layers=8, hidden=192, heads=6, steps=3000),
        "draft": Recipe(layers=2, hidden=80, heads=4, steps=1500),
    },
    "arith_code": {
        "target": Recipe(layers=8, hidden=128, heads=4, steps=1200, task="arith_code"),
        "draft": Recipe(layers=2, hidden=64, heads=4, steps=600, task="arith_code"),
    },
}


def build_tokenizer(problems: int = 20_000, vocab_size: int = 1024, task: str = "arith") -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every digit is a separate token and no token crosses a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS, PAD], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    stream = TASKS[task].problems("train", seed=1)
    tokenizer.train_from_iterator((render(next(stream), TASKS[task]) for _ in range(problems)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def render(problem: Trainable, task: TrainingTask) -> str:
    return task.prompt(problem) + problem.solution


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build a randomly initialised Llama of the recipe's size; its weights depend on the recipe's seed alone."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, start: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield batches (ids[B, T], labels[B, T]) from step `start` on. Problems of similar length share a batch."""
    group, task = 16, TASKS[recipe.task]
    for first in range(start // group * group, recipe.steps, group):
        stream = task.problems("train", recipe.seed, first * recipe.batch)
        rows = [_encode(next(stream), task, tokenizer) for _ in range(group * recipe.batch)]
        rows.sort(key=lambda row: len(row[0]))
        order = list(range(group))
        random.Random(first).shuffle(order)
        for step, which in enumerate(order, first):
            if start <= step < recipe.steps:
                yield _pad(rows[which * recipe.batch : (which + 1) * recipe.batch], tokenizer.pad_token_id)


def _encode(problem: Trainable, task: TrainingTask, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    prompt = tokenizer(task.prompt(problem))["input_ids"]
    solution = tokenizer(problem.solution, add_special_tokens=False)["input_ids"]
    return [*prompt, *solution, tokenizer.eos_token_id], len(prompt)


def _pad(rows: list[tuple[list[int], int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), IGNORE)
    for i, (tokens, prompt) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        labels[i, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
    return ids, labels


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    hidden = [p for p in model.model.layers.parameters() if p.ndim == 2]
    taken = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(hidden, lr=recipe.muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, work: Path, log: Callable[[dict[str, float], int], None]
) -> LlamaForCausalLM:
    """Train one model, or continue from the checkpoint in `work`. Calls `log(metrics, step)` every 20 steps."""
    make_folder(work)
    model = build_model(recipe, tokenizer).train()
    training = Training(recipe, model, _optimizers(model, recipe))
    start = training.restore(work)
    bar = tqdm(total=recipe.steps, initial=start, desc=work.name, unit="step", dynamic_ncols=True)
    seconds = time.perf_counter()
    for step, (ids, labels) in enumerate(batches(recipe, tokenizer, start), start):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=labels).loss
        loss.backward()
        training.advance(rate(step, recipe))
        bar.update()
        if (step + 1) % 20 == 0:
            metrics = {"train/loss": loss.item(), "train/seconds_per_step": (time.perf_counter() - seconds) / 20}
            bar.set_postfix_str(f"loss {metrics['train/loss']:.3f}")
            log(metrics, step + 1)
            seconds = time.perf_counter()
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
            training.save(work, step + 1)
    bar.close()
    return model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder, bfloat16 weights and tokenizer, whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for path in partial.iterdir():
            path.chmod(0o644)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except Exception as error:  # the library that writes weights has its own error types
        if not is_unwritable(error):
            raise
        raise unwritable(folder, error) from error


def solve_rate(
    model: HFModel, tokenizer: PreTrainedTokenizerFast, task: TrainingTask, count: int = 200, max_new_tokens: int = 160
) -> float:
    """Return the share of the first `count` test problems that plain greedy decoding solves."""
    engine = Engine({"target": model}, model.eos_ids)
    solved = 0
    for problem in tqdm(task.distinct("test", count), desc=f"solve {model.name}", unit="problem", dynamic_ncols=True):
        ids = tokenizer(task.prompt(problem))["input_ids"]
        out = engine.generate(Baseline(Warp()), ids, max_new_tokens, CertainRng())
        text = tokenizer.decode(out.token_ids, skip_special_tokens=True)
        solved += task.solves(problem, text, out.finish_reason == "stop")
    return solved / count
