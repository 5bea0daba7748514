"""The batched steps of training equal a chain of drafts that is written row by row."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from specexp.drafter.eagle3 import Eagle3Head
from specexp.drafter.head_shape import HeadShape
from specexp.drafter.training import reached

SHAPE = HeadShape(
    hidden_size=16, intermediate_size=24, num_heads=4, num_key_value_heads=2, head_dim=6, target_size=16,
    vocab_size=11, draft_vocab_size=7, layers=(0, 1, 2), context=64,
)  # fmt: skip
IDS = (0, 1, 3, 4, 6, 9, 10)


def made(shape: HeadShape = SHAPE) -> Eagle3Head:
    torch.manual_seed(0)
    head = Eagle3Head(shape, IDS, torch.randn(shape.vocab_size, shape.target_size))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head.eval()


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean() + SHAPE.rms_norm_eps).sqrt() * weight


def turned(x: Tensor, position: int) -> Tensor:
    """A head's vector, each pair of which is turned by its angle."""
    half = SHAPE.head_dim // 2
    result = x.clone()
    for i in range(half):
        angle = torch.tensor(position * SHAPE.rope_theta ** (-2 * i / SHAPE.head_dim))
        a, b = x[i], x[i + half]
        result[i], result[i + half] = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
    return result


def row(w: dict[str, Tensor], embedding: Tensor, token: int, g: Tensor, position: int,
        cache: list[tuple[Tensor, Tensor]]) -> Tensor:  # fmt: skip
    """One token through the layer; its keys and values are added to the cache."""
    x = torch.cat([
        norm(embedding[token], w["midlayer.input_layernorm.weight"]), norm(g, w["midlayer.hidden_norm.weight"])
    ])  # fmt: skip
    q, k, v = ((w[f"midlayer.self_attn.{part}_proj.weight"] @ x).view(-1, SHAPE.head_dim) for part in "qkv")
    cache.append((torch.stack([turned(each, position) for each in k]), v))
    heads = []
    for i in range(SHAPE.num_heads):
        of = i // (SHAPE.num_heads // SHAPE.num_key_value_heads)
        query = turned(q[i], position)
        p = torch.stack([query @ keys[of] for keys, _ in cache]).div(SHAPE.head_dim**0.5).softmax(0)
        heads.append(sum(share * values[of] for share, (_, values) in zip(p, cache, strict=True)))
    after = g + w["midlayer.self_attn.o_proj.weight"] @ torch.cat(heads)
    inner = norm(after, w["midlayer.post_attention_layernorm.weight"])
    gate, up = (w[f"midlayer.mlp.{part}_proj.weight"] @ inner for part in ("gate", "up"))
    return after + w["midlayer.mlp.down_proj.weight"] @ (functional.silu(gate) * up)


@pytest.mark.parametrize("own", [False, True], ids=["target's embedding", "own embedding"])
@torch.no_grad()
def test_each_step_of_training_is_what_a_chain_of_drafts_sees(own: bool) -> None:
    head = made(dataclasses.replace(SHAPE, own_embedding=own))
    w = head.state_dict()
    embedding = w["embed_tokens.weight"] if own else head.get_buffer("target_embedding")
    rows, steps = 7, 4
    tokens = torch.randint(0, SHAPE.vocab_size, (2, rows + 1))
    states = torch.randn(2, rows, 3 * SHAPE.target_size)
    batched = head.outputs(tokens[:, 1:], states, steps)
    assert batched.shape == (steps, 2, rows, SHAPE.hidden_size)
    for start in (1, 3):
        some = head.outputs(tokens[:, 1:], states, steps, start)
        for step in range(steps):  # rows that a chain from row `start` on reaches
            torch.testing.assert_close(some[step, :, step:], batched[step, :, start + step :], atol=1e-6, rtol=1e-5)
    checked = 0
    for text in range(2):
        for last in range(rows):  # the last token that the target has seen, and then a chain of drafts
            cache: list[tuple[Tensor, Tensor]] = []
            for t in range(last + 1):
                out = row(w, embedding, int(tokens[text, t + 1]), w["fc.weight"] @ states[text, t], t, cache)
            for step in range(min(steps, rows - last)):
                if step:
                    out = row(w, embedding, int(tokens[text, last + step + 1]), out, last + step, cache)
                torch.testing.assert_close(batched[step, text, last + step], out, atol=1e-5, rtol=1e-5)
                scored = w["lm_head.weight"] @ norm(out, w["norm.weight"])
                torch.testing.assert_close(head.logits(batched)[step, text, last + step], scored, atol=1e-4, rtol=1e-5)
                checked += 1
    assert checked == 2 * (7 + 6 + 5 + 4)


def test_rows_that_no_chain_within_the_output_reaches_do_not_count() -> None:
    """A prompt of 3 tokens and 4 of output: the first chain begins at row 1, which scores the output's first token."""
    counted = reached(torch.tensor([1]), torch.tensor([5]), 6, 3)[:, 0]
    assert [each.nonzero()[:, 0].tolist() for each in counted] == [[1, 2, 3, 4], [2, 3, 4], [3, 4]]


def test_the_state_has_the_names_and_shapes_of_the_published_layout() -> None:
    shapes = {name: tuple(value.shape) for name, value in made().state_dict().items()}
    assert shapes == {
        "fc.weight": (16, 48), "midlayer.input_layernorm.weight": (16,), "midlayer.hidden_norm.weight": (16,),
        "midlayer.self_attn.q_proj.weight": (24, 32), "midlayer.self_attn.k_proj.weight": (12, 32),
        "midlayer.self_attn.v_proj.weight": (12, 32), "midlayer.self_attn.o_proj.weight": (16, 24),
        "midlayer.post_attention_layernorm.weight": (16,), "midlayer.mlp.gate_proj.weight": (24, 16),
        "midlayer.mlp.up_proj.weight": (24, 16), "midlayer.mlp.down_proj.weight": (16, 24), "norm.weight": (16,),
        "lm_head.weight": (7, 16), "d2t": (7,), "t2d": (11,),
    }  # fmt: skip


def test_draft_ids_are_offsets_and_a_mask() -> None:
    head = made()
    assert head.state_dict()["d2t"].tolist() == [0, 0, 1, 1, 2, 4, 4]
    assert head.draft_ids.tolist() == list(IDS) == head.state_dict()["t2d"].nonzero()[:, 0].tolist()


def test_tokens_behind_a_row_do_not_change_it() -> None:
    head = made()
    tokens, states = torch.randint(0, 11, (1, 6)), torch.randn(1, 6, 48)
    other_tokens, other_states = tokens.clone(), states.clone()
    other_tokens[0, 4:], other_states[0, 4:] = (tokens[0, 4:] + 1) % 11, 0.0
    first, second = head.outputs(tokens, states, 3), head.outputs(other_tokens, other_states, 3)
    torch.testing.assert_close(first[:, :, :4], second[:, :, :4])
    assert not torch.allclose(first[:, :, 4:], second[:, :, 4:])
