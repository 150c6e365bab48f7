"""The gated delta rule: two forms, one result; the layer is that of Qwen3-Next, cache and all."""

import pytest
import torch
from transformers import DynamicCache, Qwen3NextConfig
from transformers.models.qwen3_next import modeling_qwen3_next as peer

from llms_from_scratch.blocks.delta_rule import (
    GatedDeltaNet,
    chunked_gated_delta_rule,
    l2norm,
    recurrent_gated_delta_rule,
)
from llms_from_scratch.blocks.gated_attention import GatedGroupedQueryAttention
from llms_from_scratch.blocks.rope import RotaryEmbedding
from llms_from_scratch.gemma3 import RMSNorm
from llms_from_scratch.kv_cache import KVCache
from llms_from_scratch.kv_cache.slots import SlotCache

EPS = 1e-2  # a reading near zero, brought to length 1, would be little but rounding
HEADS = [(2, 2), (2, 4), (1, 6)]  # of keys, of values


def randomized(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def config(key_heads=2, value_heads=4, **changes):
    return Qwen3NextConfig(
        **{
            "hidden_size": 24,
            "linear_num_key_heads": key_heads,
            "linear_num_value_heads": value_heads,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 10,
            "linear_conv_kernel_dim": 4,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": EPS,
            "attn_implementation": "eager",
        }
        | changes
    )


def ours_like(theirs, cfg):
    """Our layer with the parameters of Qwen3-Next's, whose joint rows are sorted by key head."""
    key_heads, value_heads = cfg.linear_num_key_heads, cfg.linear_num_value_heads
    key_dim, value_dim = cfg.linear_key_head_dim, cfg.linear_value_head_dim
    per_key = value_heads // key_heads
    ours = GatedDeltaNet(
        cfg.hidden_size, key_heads, value_heads, key_dim, value_dim, eps=EPS
    ).eval()
    joint = theirs.in_proj_qkvz.weight.unflatten(0, (key_heads, -1))
    parts = joint.split([key_dim, key_dim, per_key * value_dim, per_key * value_dim], dim=1)
    small = theirs.in_proj_ba.weight.unflatten(0, (key_heads, -1)).split([per_key, per_key], dim=1)
    names = ("W_query", "W_key", "W_value", "W_gate", "W_beta", "W_alpha")
    tensors = {
        f"{name}.weight": part.flatten(0, 1)
        for name, part in zip(names, (*parts, *small), strict=True)
    }
    for name in ("norm.weight", "dt_bias", "A_log", "out_proj.weight"):
        tensors[name] = theirs.get_parameter(name)
    tensors["conv1d.weight"] = theirs.conv1d.weight
    ours.load_state_dict(tensors)
    return ours


@pytest.fixture(params=HEADS, ids=str)
def pair(request):
    torch.manual_seed(0)
    cfg = config(*request.param)
    theirs = randomized(peer.Qwen3NextGatedDeltaNet(cfg, 0))
    return theirs, ours_like(theirs, cfg), cfg


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def inputs(n, b=2, heads=3, key_dim=5, value_dim=7, seed=0):
    torch.manual_seed(seed)
    queries, keys = (l2norm(torch.randn(b, heads, n, key_dim)) for _ in "qk")
    values = torch.randn(b, heads, n, value_dim)
    decay, beta = -torch.rand(b, heads, n) * 2, torch.rand(b, heads, n)
    return queries, keys, values, decay, beta


@pytest.mark.parametrize("chunk_size", [1, 4, 64])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 63, 64, 65, 200])
def test_the_recurrent_and_the_chunked_form_are_equal(n, chunk_size):
    state = torch.randn(2, 3, 5, 7)
    for start in (None, state):
        wanted, wanted_state = recurrent_gated_delta_rule(*inputs(n), start)
        got, got_state = chunked_gated_delta_rule(*inputs(n), start, chunk_size)
        close(got, wanted)
        close(got_state, wanted_state)


def test_both_forms_have_the_same_gradients():
    gradients = []
    for form in (recurrent_gated_delta_rule, chunked_gated_delta_rule):
        tensors = [t.double().requires_grad_() for t in inputs(21)]
        outputs, state = form(*tensors)
        (outputs.sin().sum() + state.cos().sum()).backward()
        gradients.append([t.grad for t in tensors])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_very_strong_forgetting_gives_finite_numbers_and_gradients():
    queries, keys, values, decay, beta = inputs(130)
    decay = (decay * 500).requires_grad_()
    outputs, _ = chunked_gated_delta_rule(queries, keys, values, decay, beta)
    outputs.sum().backward()
    assert outputs.isfinite().all() and decay.grad.isfinite().all()


def test_a_full_strength_write_replaces_what_the_key_had():
    key = l2norm(torch.randn(1, 1, 1, 5), eps=0.0)
    other = torch.randn(1, 1, 1, 5)
    other = l2norm(other - (other * key).sum() * key, eps=0.0)  # at a right angle to the key
    keys = torch.cat([key, other, key], dim=2)
    values, zero, one = torch.randn(1, 1, 3, 7), torch.zeros(1, 1, 3), torch.ones(1, 1, 3)
    _, state = recurrent_gated_delta_rule(keys, keys, values, zero, one)
    close(key[0, 0] @ state[0, 0], values[0, 0, 2:])
    close(other[0, 0] @ state[0, 0], values[0, 0, 1:2])


@torch.no_grad()
def test_outputs_equal_those_of_qwen3_next(pair):
    theirs, ours, _ = pair
    for n in (1, 2, 3, 4, 5, 63, 64, 65, 150):  # around the convolution, and the chunk
        x = torch.randn(2, n, 24)
        close(ours(x), theirs(x))


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[40] + [1] * 20, [1] * 60, [2, 1, 3, 50, 1, 3], [70, 65, 1, 1]])
def test_pieces_and_steps_equal_the_whole_and_qwen3_next_with_its_cache(pair, sizes):
    theirs, ours, cfg = pair
    x = torch.randn(2, sum(sizes), 24)
    cache, their_cache, wanted = KVCache(1, capacity=500), DynamicCache(config=cfg), theirs(x)
    pieces = []
    for piece in x.split(sizes, dim=1):
        pieces.append(ours(piece, cache=cache))
        close(pieces[-1], theirs(piece, cache=their_cache))
        cache.advance(piece.shape[1])
    close(torch.cat(pieces, dim=1), wanted)


@torch.no_grad()
def test_padding_on_the_left_changes_no_row(pair):
    theirs, ours, _ = pair
    x, padding = torch.randn(3, 30, 24), torch.tensor([0, 11, 29])
    shown = (torch.arange(30) >= padding[:, None]).float()
    for sizes in ([30], [20] + [1] * 10, [10, 10, 10]):
        cache = KVCache(1, capacity=30)
        cache.reset(padding)
        parts = []
        for piece in x.split(sizes, dim=1):
            parts.append(ours(piece, cache=cache))
            cache.advance(piece.shape[1])
        for row, alone, start in zip(torch.cat(parts, dim=1), x, padding.tolist(), strict=True):
            close(row[start:], theirs(alone[None, start:])[0])
        for row, masked, start in zip(
            torch.cat(parts, dim=1), theirs(x, attention_mask=shown), padding.tolist(), strict=True
        ):
            close(row[start:], masked[start:])


@torch.no_grad()
def test_the_state_does_not_grow_and_rows_can_be_kept(pair):
    _, ours, _ = pair
    cache = KVCache(1, capacity=1000)
    x = torch.randn(3, 40, 24)
    ours(x, cache=cache)
    cache.advance(40)
    few = cache.nbytes
    ours(torch.randn(3, 300, 24), cache=cache)
    cache.advance(300)
    assert cache.nbytes == few
    cache.reset()
    ours(x, cache=cache)
    cache.advance(40)
    cache.keep_rows(torch.tensor([2, 0]))
    step = torch.randn(2, 1, 24)
    got = ours(step, cache=cache)
    wanted = ours(torch.cat([x[[2, 0]], step], dim=1))
    close(got, wanted[:, -1:])


@torch.no_grad()
def test_texts_join_and_leave_a_cache_with_slots(pair):
    _, ours, _ = pair
    slots, texts = SlotCache(1, 4), [torch.randn(1, n, 24) for n in (9, 2, 17)]
    slots.capacity = 1000
    for text in texts:
        alone = KVCache(1, capacity=100)
        ours(text, cache=alone)
        alone.advance(text.shape[1])
        slots.join(alone)
    slots.leave(0)  # the last text takes its number
    step = torch.randn(2, 1, 24)
    got = ours(step, cache=slots)
    for row, text, new in zip(got, (texts[2], texts[1]), step, strict=True):
        close(row, ours(torch.cat([text, new[None]], dim=1))[0, -1:])
    assert slots.nbytes > 0


def test_a_cache_with_gradients_is_refused():
    layer = GatedDeltaNet(8, 1, 1, 4, 4)
    with pytest.raises(ValueError, match="keeps no gradients"):
        layer(torch.randn(1, 3, 8), cache=KVCache(1, capacity=9))


@pytest.mark.parametrize(("heads", "conv_size"), [((2, 3), 4), ((0, 2), 4), ((2, 2), 0)])
def test_impossible_shapes_are_refused(heads, conv_size):
    with pytest.raises(ValueError, match="got"):
        GatedDeltaNet(8, *heads, 4, 4, conv_size)


@torch.no_grad()
@pytest.mark.parametrize("rotary_part", [0.5, 1.0])
def test_the_gated_attention_is_that_of_qwen3_next(rotary_part):
    torch.manual_seed(1)
    cfg = config(
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 500.0,
            "partial_rotary_factor": rotary_part,
        },
        partial_rotary_factor=rotary_part,
    )
    theirs = randomized(peer.Qwen3NextAttention(cfg, 1))
    ours = GatedGroupedQueryAttention(24, 4, 2, 8).eval()
    ours.q_norm, ours.k_norm = RMSNorm(8, EPS), RMSNorm(8, EPS)
    joint = theirs.q_proj.weight.view(4, 2, 8, 24)  # of each head: the query, then its gate
    ours.load_state_dict(
        {
            "W_query.weight": joint[:, 0].flatten(0, 1),
            "W_gate.weight": joint[:, 1].flatten(0, 1),
            "W_key.weight": theirs.k_proj.weight,
            "W_value.weight": theirs.v_proj.weight,
            "out_proj.weight": theirs.o_proj.weight,
            "q_norm.scale": theirs.q_norm.weight,
            "k_norm.scale": theirs.k_norm.weight,
        }
    )
    x, positions = torch.randn(2, 12, 24), torch.arange(12)
    angles = peer.Qwen3NextRotaryEmbedding(cfg)(x, positions[None])
    hidden = torch.full((12, 12), -torch.inf).triu(1)[None, None]
    wanted, _ = theirs(x, angles, hidden)
    rope, cache = RotaryEmbedding(int(8 * rotary_part), 500.0), KVCache(1, capacity=12)
    close(ours(x, None, *rope(positions)), wanted)
    parts = []
    for piece, where in zip(x.split([7, 1, 4], 1), positions.split([7, 1, 4]), strict=True):
        mask = cache.mask(piece.shape[1], x.device)
        parts.append(ours(piece, mask, *rope(where), cache))
        cache.advance(piece.shape[1])
    close(torch.cat(parts, 1), wanted)
