"""A model with another tokenizer: the same weights under other ids, other names of tokens, or fewer tokens.

So a draft is as good as it was wherever both texts are split alike, and its tokenizer is a real one. It is the embedded
draft, if no other model is named.
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


def save(folder: Path, kind: str, model: str = DRAFT, fewer: int = FEWER) -> Path:
    """Write `model` as `folder`. `kind` is `permuted` (other ids), `fewer` (other ids, without the last `fewer`
    merges) or `sentencepiece` (those tokens by sentencepiece's names, with byte tokens for what is none of them)."""
    place = resolve(model)
    tokenizer, module = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe = state["model"]
    old: dict[str, int] = {**bpe["vocab"], **{each["content"]: each["id"] for each in state["added_tokens"]}}
    if kind != "permuted":
        dropped = {"".join(merge) for merge in bpe["merges"][len(bpe["merges"]) - fewer :]}
        bpe["merges"] = bpe["merges"][: len(bpe["merges"]) - fewer]
        old = {name: i for name, i in old.items() if name not in dropped}
    renamed = {name: name for name in old}
    if kind == "sentencepiece":
        renamed = {name: name.replace("Ġ", "▁").replace("Ċ", "\n") for name in old if _is_plain(name)}
        bpe["merges"] = [
            [part.replace("Ġ", "▁").replace("Ċ", "\n") for part in merge]
            for merge in bpe["merges"]
            if all(_is_plain(part) for part in merge)
        ]
    order = torch.randperm(len(renamed), generator=torch.Generator().manual_seed(1)).tolist()
    given = list(renamed)
    names = [given[i] for i in order]
    spare = tokenizer.unk_token or tokenizer.pad_token
    bytes_first = [f"<0x{byte:02X}>" for byte in range(256)] if kind == "sentencepiece" else []
    new = {name: i for i, name in enumerate([*bytes_first, *(renamed[name] for name in names)])}
    rows = [*(old[spare] for _ in bytes_first), *(old[name] for name in names)]
    if kind == "sentencepiece":
        bpe |= {"byte_fallback": True, "unk_token": spare}
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
    bpe["vocab"] = {name: i for name, i in new.items() if name not in special or name in bpe["vocab"]}
    _renumbered(state.get("post_processor"), new)
    names_of = {name: getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "pad")}
    _save_module(folder, module, rows, {name: new[token] for name, token in names_of.items()})
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), clean_up_tokenization_spaces=False,
        chat_template=tokenizer.chat_template, **{f"{name}_token": token for name, token in names_of.items()},
    ).save_pretrained(folder)  # fmt: skip
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


def _save_module(folder: Path, module: Any, rows: list[int], special: dict[str, int]) -> None:
    with torch.no_grad():
        embedding, head = module.get_input_embeddings().weight[rows].clone(), module.lm_head.weight[rows].clone()
        module.resize_token_embeddings(len(rows))
        module.get_input_embeddings().weight.copy_(embedding)
        module.lm_head.weight.copy_(head)
    for config in (module.config, module.generation_config):
        for name, token in special.items():
            setattr(config, f"{name}_token_id", token)
    module.save_pretrained(folder)
