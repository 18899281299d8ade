"""Attention as networks of torch have it becomes layers of attention, judged by torch."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch, to export programs")
from torch_networks import Function, check_against_torch, ops, random_tensor  # noqa: E402 - torch is there from here on

nn, F = torch.nn, torch.nn.functional
CAUSAL = torch.ones(9, 9, dtype=torch.bool).tril()


class Attention(nn.Module):
    """Queries, keys and values from one linear layer, and any way to attend."""

    def __init__(self, attend: Any, heads: int = 2, width: int = 64) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attend, self.heads = attend, heads

    def forward(self, x: Any, *others: Any) -> Any:
        batch, rows, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, rows, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self.attend(q, k, v, *others).transpose(1, 2).reshape(batch, rows, width))


def by_hand(q: Any, k: Any, v: Any) -> Any:
    return ((q * 0.17) @ k.transpose(-2, -1)).softmax(-1) @ v


def both_scaled(q: Any, k: Any, v: Any) -> Any:
    return torch.softmax((q / 2) @ (k * 0.3).mT / math.sqrt(8), dim=-1) @ v


def filled(q: Any, k: Any, v: Any) -> Any:
    return (q @ k.mT * 0.2).masked_fill(~CAUSAL, -math.inf).softmax(-1) @ v


def batched(q: Any, k: Any, v: Any) -> Any:
    """Batch and heads as one axis, as in torch's own attention where it returns its weights."""
    batch, heads, rows, dim = q.shape
    q, k, v = (x.reshape(batch * heads, rows, dim) for x in (q, k, v))
    return torch.bmm(torch.bmm(q * 0.3, k.transpose(1, 2)).softmax(-1), v).reshape(batch, heads, rows, dim)


WAYS = {
    "plain": F.scaled_dot_product_attention,
    "scaled": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "constant_booleans": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=CAUSAL),
    "constant_summands": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=0.1 * CAUSAL.float()),
    "by_hand": by_hand,
    "both_scaled": both_scaled,
    "filled": filled,
    "batched": batched,
    "one_head_of_keys": lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1]),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_self_attention(way: str, batch: int) -> None:
    graph = check_against_torch(Attention(WAYS[way]), random_tensor(batch, 9, 64))
    assert ops(graph) == ["linear", "attention", "linear"]


@pytest.mark.parametrize("shape", [(9, 9), (3, 1, 1, 9), (3, 1, 9, 9), (1, 2, 9, 9)], ids=str)
@pytest.mark.parametrize("is_boolean", [False, True])
def test_a_mask_that_is_an_input(shape: tuple[int, ...], is_boolean: bool) -> None:
    mask = random_tensor(*shape)
    mask = mask > -0.5 if is_boolean else mask
    network = Attention(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    assert ops(check_against_torch(network, random_tensor(3, 9, 64), mask)).count("attention") == 1


def test_a_query_that_may_look_at_nothing_gets_zeros() -> None:
    mask = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    mask[1, :, 3:5] = False
    network = Attention(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    check_against_torch(network, random_tensor(2, 9, 64), mask)
    constant = Attention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask[1]))
    check_against_torch(constant, random_tensor(2, 9, 64))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_multihead_attention(batch_first: bool, need_weights: bool, is_causal: bool) -> None:
    attention = nn.MultiheadAttention(32, 4, batch_first=batch_first)
    mask = nn.Transformer.generate_square_subsequent_mask(9) if is_causal else None

    def attend(attention: Any, x: Any, memory: Any) -> Any:
        keys = x if is_causal else memory
        return attention(x, keys, keys, need_weights=need_weights, attn_mask=mask, is_causal=is_causal)[0]

    shape, other = ((1, 9, 32), (1, 5, 32)) if batch_first else ((9, 1, 32), (5, 1, 32))
    graph = check_against_torch(Function(attend, attention=attention), random_tensor(*shape), random_tensor(*other))
    assert "attention" in ops(graph)
    assert "opaque" not in ops(graph)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_layers(norm_first: bool, activation: str) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, activation=activation, batch_first=True, norm_first=norm_first)
    network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    graph = check_against_torch(network, random_tensor(1, 9, 32))
    assert ops(graph).count("attention") == 2
    assert "opaque" not in ops(graph)
    check_against_torch(network, random_tensor(2, 9, 32))


def test_an_encoder_with_a_mask_of_padding() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    padding = torch.zeros(1, 9, dtype=torch.bool)
    padding[0, 6:] = True
    network = Function(lambda layer, x, padding: layer(x, src_key_padding_mask=padding), layer=layer)
    assert ops(check_against_torch(network, random_tensor(1, 9, 32), padding)).count("attention") == 1


def test_a_decoder_layer() -> None:
    layer = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    network = Function(lambda layer, x, memory: layer(x, memory, tgt_mask=mask), layer=layer)
    assert ops(check_against_torch(network, random_tensor(1, 9, 32), random_tensor(1, 5, 32))).count("attention") == 2


def test_windows_with_a_bias_of_heads_and_a_mask_of_windows() -> None:
    """As in Swin: the bias is added to the scores of all windows, the mask to those of all heads."""
    bias, mask = random_tensor(3, 9, 9), random_tensor(4, 9, 9) < 0

    def attend(qkv: Any, x: Any) -> Any:
        q, k, v = qkv(x).reshape(8, 9, 3, 3, 16).permute(2, 0, 3, 1, 4)
        scores = (q * 0.25) @ k.mT + bias
        scores = scores.view(2, 4, 3, 9, 9) + (-100.0 * mask.float())[None, :, None]
        return (scores.view(8, 3, 9, 9).softmax(-1) @ v).transpose(1, 2).reshape(8, 9, 48)

    network = Function(attend, qkv=nn.Linear(32, 144))
    graph = check_against_torch(network, random_tensor(8, 9, 32))
    assert ops(graph).count("attention") == 0  # the mask of four windows is repeated for two images

    def attend_one(qkv: Any, x: Any) -> Any:
        q, k, v = qkv(x).reshape(4, 9, 3, 3, 16).permute(2, 0, 3, 1, 4)
        scores = ((q * 0.25) @ k.mT + bias).view(1, 4, 3, 9, 9) + (-100.0 * mask.float())[None, :, None]
        return (scores.view(4, 3, 9, 9).softmax(-1) @ v).transpose(1, 2).reshape(4, 9, 48)

    network = Function(attend_one, qkv=nn.Linear(32, 144))
    assert ops(check_against_torch(network, random_tensor(4, 9, 32))) == ["linear", "attention"]


def test_values_wider_than_keys_in_one_linear_layer() -> None:
    """As in LeViT: each head has its queries, keys and values side by side, and a bias by relative place."""
    bias = random_tensor(4, 9, 9)

    def attend(qkv: Any, x: Any) -> Any:
        q, k, v = qkv(x).view(2, 9, 4, -1).split([16, 16, 32], dim=3)
        scores = q.permute(0, 2, 1, 3) @ k.permute(0, 2, 3, 1) * 0.25 + bias
        return (scores.softmax(-1) @ v.permute(0, 2, 1, 3)).transpose(1, 2).reshape(2, 9, 128)

    network = Function(attend, qkv=nn.Linear(64, 256))
    assert ops(check_against_torch(network, random_tensor(2, 9, 64))) == ["linear", "attention"]


def test_attention_between_convolutions() -> None:
    def attend(qkv: Any, out: Any, x: Any) -> Any:
        q, k, v = qkv(x).view(2, 4, 48, 30).split([8, 8, 32], dim=2)
        weights = (q.mT @ k * 0.35).softmax(-1)
        return out((v @ weights.mT).reshape(2, 128, 5, 6))

    network = Function(attend, qkv=nn.Conv2d(16, 192, 1), out=nn.Conv2d(128, 16, 1))
    assert ops(check_against_torch(network, random_tensor(2, 16, 5, 6))) == ["conv2d", "attention", "conv2d"]

    def attend_rows(qkv: Any, out: Any, x: Any) -> Any:
        q, k, v = (part.reshape(2, 4, 8, 30).mT for part in qkv(x).chunk(3, dim=1))
        return out(F.scaled_dot_product_attention(q, k, v).mT.reshape(2, 32, 5, 6))

    network = Function(attend_rows, qkv=nn.Conv2d(16, 96, 1), out=nn.Conv2d(32, 16, 1))
    assert ops(check_against_torch(network, random_tensor(2, 16, 5, 6))) == ["conv2d", "attention", "conv2d"]


def test_heads_that_are_rows() -> None:
    """As behind rotary embeddings, which no layer of rows can be."""

    def attend(q: Any, k: Any) -> Any:
        return F.scaled_dot_product_attention(q.sin(), k.cos(), k)

    graph = check_against_torch(Function(attend), random_tensor(2, 3, 9, 16), random_tensor(2, 3, 7, 16))
    assert ops(graph).count("attention") == 1
