"""Loads and checks what a drafter's training needs, and chooses the head's sizes for the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specexp.config import DrafterConfig
from specexp.decoding.protocol import Role
from specexp.drafter.eagle3 import Eagle3Head
from specexp.drafter.head_shape import HeadShape
from specexp.drafter.target_outputs import FEWEST, Plan
from specexp.drafter.target_states import TargetStates, num_layers
from specexp.drafter.training import DrafterRecipe
from specexp.engine import output_limit
from specexp.errors import ModelError, PromptError, TaskError
from specexp.lm.hf.hf_model import HFModel
from specexp.pair.loading import Pair, load_pair
from specexp.pair.tokenization import Text
from specexp.sequences.lazy import at
from specexp.tasks.example import Example, Task
from specexp.tasks.task import notes_of


@dataclass(frozen=True, slots=True)
class PreparedDrafter:
    """The loaded and checked inputs of a training."""

    config: DrafterConfig
    task: Task
    examples: Sequence[Example]
    pair: Pair
    layers: tuple[int, ...]
    notes: Sequence[str] = ()

    @property
    def target(self) -> HFModel:
        model = self.pair.models["target"]
        assert isinstance(model, HFModel)
        return model

    @property
    def draft(self) -> HFModel | None:
        """The draft model that the head is compared with, where it has the target's tokens."""
        model = self.pair.models.get("draft")
        return model if isinstance(model, HFModel) else None

    def plan(self) -> Plan:
        """What the target decodes."""
        experiment = self.config.experiment
        return Plan(self.examples, experiment.max_new_tokens, self.config.batch, experiment.seed)

    def facts(self) -> dict[str, Any]:
        """What the outputs depend on: a folder with others is refused."""
        return {
            "target": self.target.fingerprint(),
            "tokenizer": self.pair.text.facts()["vocabulary"],
            "chat_template": self.pair.text.facts()["chat_template"] or "",
            "data": self.task.dataset().digest,
        }

    def params(self) -> dict[str, object]:
        """The settings of the training's run."""
        config, experiment = self.config, self.config.experiment
        return {
            "target_model": experiment.target.model, "task": experiment.task, "prompts": len(self.examples),
            "layers": ",".join(map(str, self.layers)), "depth": config.depth, "passes": config.passes,
            "train_batch": config.train_batch, "hidden_size": config.hidden_size or "the target's",
            "seed": experiment.seed,
        }  # fmt: skip

    def recipe(self, num_outputs: int) -> DrafterRecipe:
        """How the head is trained on so many outputs."""
        config = self.config
        steps = max(1, num_outputs // config.train_batch) * config.passes
        return DrafterRecipe(steps, config.train_batch, config.depth, seed=config.experiment.seed)


def prepare(config: DrafterConfig) -> PreparedDrafter:
    """Load the models and the task, and check that every prompt fits the context. Writes nothing."""
    experiment = config.experiment
    chosen = experiment.read_task("train")
    rows = chosen.examples(config.skip + experiment.limit)[config.skip :]
    examples = at(rows, [index for index, example in enumerate(rows) if len(example.turns) == 1])
    if len(examples) < FEWEST:
        raise TaskError(
            f"task '{experiment.task}' has {len(examples)} prompts of one turn after skip {config.skip}; a drafter"
            f" needs at least {FEWEST}: lower skip, or give more rows."
        )

    def check(text: Text, contexts: Mapping[Role, int]) -> None:
        for example in examples:
            try:
                output_limit(text.encode(example.messages()), 2, contexts["target"])
            except PromptError as error:
                raise PromptError(f"prompt '{example.prompt_id}': {error}") from None

    roles: set[Role] = {"target", "draft"}
    pair = load_pair(experiment, roles, check=check, same_tokens=True)
    target = pair.models["target"]
    assert isinstance(target, HFModel)
    layers = layers_of(config.layers, num_layers(target), target.name)
    TargetStates(target, layers)  # refuses what it cannot read
    return PreparedDrafter(config, chosen, examples, pair, layers, [*pair.notes, *notes_of(chosen)])


def layers_of(given: Sequence[int], total: int, name: str) -> tuple[int, ...]:
    """The layers of the target whose outputs a head reads: early, in the middle, and the last. Raises ModelError."""
    if not given:
        return (min(1, total - 1), total // 2, total - 1)
    if wrong := [layer for layer in given if layer >= total]:
        raise ModelError(f"layers has {wrong[0]}, but model '{name}' has {total} layers, 0 to {total - 1}.")
    return tuple(given)


def make_head(prepared: PreparedDrafter, ids: Sequence[int]) -> Eagle3Head:
    """A new head of the settings' sizes, which scores `ids`; where sizes are equal it begins with the target's head."""
    config, target = prepared.config, prepared.target
    text = target.module.config.get_text_config(decoder=True)
    embedding = target.module.get_input_embeddings().weight
    size = config.hidden_size or int(embedding.shape[1])
    dim = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    heads = max(1, size // dim)
    theta = (getattr(text, "rope_parameters", None) or {}).get("rope_theta") or 10_000.0
    shape = HeadShape(
        size, config.intermediate_size or max(16, size * 8 // 3 // 16 * 16), heads, heads, dim,
        int(text.hidden_size), int(text.vocab_size), len(ids), prepared.layers, int(target.context),
        rope_theta=float(theta), own_embedding=size != embedding.shape[1],
    )  # fmt: skip
    torch.manual_seed(config.experiment.seed)
    head = Eagle3Head(shape, ids, embedding)
    output = target.module.get_output_embeddings()
    if output is not None and output.weight.is_floating_point() and output.weight.shape[1] == size:
        with torch.no_grad():
            head.lm_head.weight.copy_(output.weight[torch.tensor(list(ids), device=output.weight.device)])
    return head.to(target.device)
