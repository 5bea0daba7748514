"""The embedded draft with another tokenizer: the same weights under other ids, other names of tokens, or fewer tokens.

So the draft is as good as the embedded one wherever both texts are split alike, and its tokenizer is a real one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from specexp.lm.hf.source import resolve

DRAFT = "zoo:draft"
FEWER = 60  # of the merged tokens, the last ones


def save(folder: Path, kind: str) -> Path:
    """Write the draft as `folder`. `kind` is `permuted` (other ids), `fewer` (other ids, without the last merges) or
    `sentencepiece` (its tokens by sentencepiece's names, with byte tokens for what is none of them)."""
    place = resolve(DRAFT)
    tokenizer, module = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    old: dict[str, int] = {**model["vocab"], **{each["content"]: each["id"] for each in state["added_tokens"]}}
    if kind != "permuted":
        dropped = {"".join(merge) for merge in model["merges"][len(model["merges"]) - FEWER :]}
        model["merges"] = model["merges"][: len(model["merges"]) - FEWER]
        old = {name: i for name, i in old.items() if name not in dropped}
    renamed = {name: name for name in old}
    if kind == "sentencepiece":
        renamed = {name: name.replace("Ġ", "▁").replace("Ċ", "\n") for name in old if _is_plain(name)}
        model["merges"] = [
            [part.replace("Ġ", "▁").replace("Ċ", "\n") for part in merge]
            for merge in model["merges"]
            if all(_is_plain(part) for part in merge)
        ]
    order = torch.randperm(len(renamed), generator=torch.Generator().manual_seed(1)).tolist()
    names = [list(renamed)[i] for i in order]
    bytes_first = [f"<0x{byte:02X}>" for byte in range(256)] if kind == "sentencepiece" else []
    new = {name: i for i, name in enumerate([*bytes_first, *(renamed[name] for name in names)])}
    rows = [*(old["<|pad|>"] for _ in bytes_first), *(old[name] for name in names)]
    if kind == "sentencepiece":
        model |= {"byte_fallback": True, "unk_token": "<|pad|>"}
        state["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        state["decoder"] = {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        }  # fmt: skip
    special = {each["content"] for each in state["added_tokens"]}
    state["added_tokens"] = [each | {"id": new[each["content"]]} for each in state["added_tokens"]]
    model["vocab"] = {name: i for name, i in new.items() if name not in special or name in model["vocab"]}
    _renumbered(state.get("post_processor"), new)
    _save(folder, module, rows, new, state)
    return folder


def _is_plain(name: str) -> bool:
    return all(sign.isascii() or sign in "ĠĊ" for sign in name)


def _renumbered(part: Any, new: dict[str, int]) -> None:
    """Ids of special tokens in a template of the post-processor."""
    if isinstance(part, dict):
        for name, each in part.get("special_tokens", {}).items():
            each["ids"] = [new[name]]
        for value in part.values():
            _renumbered(value, new)
    elif isinstance(part, list):
        for value in part:
            _renumbered(value, new)


def _save(folder: Path, module: Any, rows: list[int], new: dict[str, int], state: dict[str, Any]) -> None:
    size = len(rows)
    with torch.no_grad():
        embedding, head = module.get_input_embeddings().weight[rows].clone(), module.lm_head.weight[rows].clone()
        module.resize_token_embeddings(size)
        module.get_input_embeddings().weight.copy_(embedding)
        module.lm_head.weight.copy_(head)
    for config in (module.config, module.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = (
            new[f"<|{name}|>"] for name in ("bos", "eos", "pad")
        )
    module.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)  # fmt: skip
