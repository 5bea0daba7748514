"""EAGLE-3 heads for tests: written in the published layout, and drafted from without a cache, one row after another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from specexp.lm.hf.hf_model import HFModel

LAYERS = [0, 1, 3]


class ReferenceHead:
    """A head as its equations say (2503.01840), in plain torch; `weights` have the names of the published layout."""

    def __init__(self, target: HFModel, layers: Sequence[int] = LAYERS, drafted: Sequence[int] = (), seed: int = 0,
                 **values: Any) -> None:  # fmt: skip
        """Random weights; `drafted` are the target's ids that it scores, in ascending order (default: all)."""
        text = target.module.config.get_text_config(decoder=True)
        size, vocabulary = int(text.hidden_size), int(text.vocab_size)
        self.layers, self.target = list(layers), target
        ids = list(drafted) or list(range(vocabulary))
        self.config = {
            "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": size,
            "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "num_hidden_layers": 1,
            "max_position_embeddings": 160, "vocab_size": vocabulary, "draft_vocab_size": len(ids),
            "tie_word_embeddings": False, **values,
        }  # fmt: skip
        if "eagle_config" not in values:
            self.config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": self.layers}
        rng = torch.Generator().manual_seed(seed)

        def matrix(out: int, into: int) -> Tensor:
            return torch.randn(out, into, generator=rng) / into**0.5

        def norm() -> Tensor:
            return 1 + 0.2 * torch.randn(size, generator=rng)

        self.weights = {
            "fc.weight": matrix(size, 3 * size),
            "midlayer.input_layernorm.weight": norm(), "midlayer.hidden_norm.weight": norm(),
            "midlayer.self_attn.q_proj.weight": matrix(32, 2 * size),
            "midlayer.self_attn.k_proj.weight": matrix(16, 2 * size),
            "midlayer.self_attn.v_proj.weight": matrix(16, 2 * size),
            "midlayer.self_attn.o_proj.weight": matrix(size, 32),
            "midlayer.post_attention_layernorm.weight": norm(),
            "midlayer.mlp.gate_proj.weight": matrix(48, size), "midlayer.mlp.up_proj.weight": matrix(48, size),
            "midlayer.mlp.down_proj.weight": matrix(size, 48), "norm.weight": norm(),
            "lm_head.weight": 3 * matrix(len(ids), size),
            "d2t": torch.tensor(ids) - torch.arange(len(ids)),
            "t2d": torch.isin(torch.arange(vocabulary), torch.tensor(ids)),
        }  # fmt: skip
        self.rotary = LlamaRotaryEmbedding(LlamaConfig.from_dict(self.config))

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(
            {name: value.detach().contiguous() for name, value in self.weights.items()}, folder / "model.safetensors"
        )
        return folder

    def states(self, ids: Sequence[int]) -> Tensor:
        """What `fc` reads of tokens[N]: [N, 3 D], by transformers' own forward."""
        seen: dict[int, Tensor] = {}
        decoder = self.target.module.get_decoder()
        stack = decoder.layers if hasattr(decoder, "layers") else decoder.h
        hooks = [
            stack[layer].register_forward_hook(
                lambda _m, _i, out, layer=layer: seen.update({layer: (out if isinstance(out, Tensor) else out[0])[0]})
            )
            for layer in self.layers
        ]
        with torch.no_grad():
            self.target.module(input_ids=torch.tensor([list(ids)]), use_cache=False)
        for hook in hooks:
            hook.remove()
        return torch.cat([seen[layer] for layer in self.layers], dim=1)

    def outputs(self, tokens: Tensor, features: Tensor) -> Tensor:
        """The layer's outputs [N, D] for tokens[N] with features[N, D]: one whole causal forward."""
        w, c = self.weights, self.config
        heads, kv_heads, size = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]

        def norm(x: Tensor, name: str) -> Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c["rms_norm_eps"]) * w[name]

        embedding = w.get("embed_tokens.weight", self.target.module.get_input_embeddings().weight)
        normed = norm(features, "midlayer.hidden_norm.weight")
        both = torch.cat([norm(embedding[tokens], "midlayer.input_layernorm.weight"), normed], dim=1)
        q, k, v = (
            (both @ w[f"midlayer.self_attn.{part}_proj.weight"].T).view(1, len(tokens), -1, size).transpose(1, 2)
            for part in "qkv"
        )
        cos, sin = self.rotary(both, torch.arange(len(tokens))[None])
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        k, v = (each.repeat_interleave(heads // kv_heads, dim=1) for each in (k, v))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)[0]
        residual = normed if c.get("norm_before_residual") else features
        x = residual + attended @ w["midlayer.self_attn.o_proj.weight"].T
        inner = norm(x, "midlayer.post_attention_layernorm.weight")
        gate, up = (inner @ w[f"midlayer.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        return x + (functional.silu(gate) * up) @ w["midlayer.mlp.down_proj.weight"].T

    def logits(self, outputs: Tensor) -> Tensor:
        """[N, V] of the layer's outputs: minus infinity for ids that are not scored."""
        w = self.weights
        scored = self.scores(outputs)
        result = scored.new_full((len(outputs), self.config["vocab_size"]), float("-inf"))
        return result.index_copy(1, torch.arange(len(w["d2t"])) + w["d2t"], scored)

    def scores(self, outputs: Tensor) -> Tensor:
        """[N, W] of the ids that are scored."""
        normed = outputs * torch.rsqrt(outputs.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return (normed * self.weights["norm.weight"]) @ self.weights["lm_head.weight"].T

    def chain(self, ids: Sequence[int], drafted: Sequence[int]) -> Tensor:
        """What the head scores after the committed `ids` and after each token drafted behind them: [1 + N, V]."""
        if len(ids) < 2:
            rows = self.logits(torch.zeros(1, self.config["hidden_size"]))
            features = torch.zeros(0, self.config["hidden_size"])
        else:
            features = self.states(ids[:-1]) @ self.weights["fc.weight"].T
            rows = self.logits(self.outputs(torch.tensor(ids[1:]), features)[-1:])
        for i in range(len(drafted)):
            tokens = [*ids[1:], *drafted[: i + 1]]
            before = self.outputs(torch.tensor(tokens[:-1]), features)[-1:] if len(tokens) > 1 else torch.zeros(
                1, self.config["hidden_size"]
            )  # fmt: skip
            features = torch.cat([features, before])
            rows = torch.cat([rows, self.logits(self.outputs(torch.tensor(tokens), features)[-1:])])
        return rows

    def fit(self, texts: Sequence[Sequence[int]], steps: int = 150) -> ReferenceHead:
        """Train it to predict the texts, so that its drafts are accepted: one step ahead, from the target's states."""
        names = [name for name, value in self.weights.items() if value.is_floating_point()]
        for name in names:
            self.weights[name] = self.weights[name].clone().requires_grad_()
        optimizer = torch.optim.Adam([self.weights[name] for name in names], 1e-2)
        known = [(torch.tensor(text), self.states(text).detach()) for text in texts]
        place = torch.full((self.config["vocab_size"],), -1)
        place[torch.arange(len(self.weights["d2t"])) + self.weights["d2t"]] = torch.arange(len(self.weights["d2t"]))
        for _ in range(steps):
            loss = torch.zeros(())
            for tokens, states in known:
                features = states[:-2] @ self.weights["fc.weight"].T
                scores, wanted = self.scores(self.outputs(tokens[1:-1], features)), place[tokens[2:]]
                loss = loss + functional.cross_entropy(scores[wanted >= 0], wanted[wanted >= 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for name in names:
            self.weights[name] = self.weights[name].detach()
        return self
