"""Latent attention: absorbed and explicit are one function, and it is that of DeepSeek-V3."""

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as peer

from llms_from_scratch.blocks.experts import DeepSeekMoE
from llms_from_scratch.blocks.latent_attention import LatentAttention
from llms_from_scratch.blocks.norms import RMSNorm
from llms_from_scratch.blocks.rope import RotaryEmbedding
from llms_from_scratch.kv_cache import KVCache
from llms_from_scratch.kv_cache.slots import SlotCache

D_IN, HEADS, LATENT, NOPE, ROPE, VALUE = 24, 4, 12, 6, 4, 10
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
CASES = {
    "plain queries": {"q_lora_rank": None},
    "compressed queries": {"q_lora_rank": 14},
    "pairs as halves": {"q_lora_rank": 14, "rope_interleave": False},
    "biases": {"q_lora_rank": 14, "attention_bias": True},
    "yarn": {"q_lora_rank": None, "rope_parameters": YARN},
}
MOE = {
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 7,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
}


def randomized(module):
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(0.3 * torch.randn_like(tensor))
    return module.eval()


def config(**changes):
    return DeepseekV3Config(
        **{
            "hidden_size": D_IN,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "kv_lora_rank": LATENT,
            "qk_nope_head_dim": NOPE,
            "qk_rope_head_dim": ROPE,
            "v_head_dim": VALUE,
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            "attn_implementation": "eager",
            "num_hidden_layers": 1,
            "first_k_dense_replace": 0,
            "rms_norm_eps": 1e-6,
        }
        | MOE
        | changes
    )


def in_halves(rows):
    """Neighbours that make a pair, to number i of each half, (..., ROPE, d_in) or (..., ROPE)."""
    return torch.cat([rows[0::2], rows[1::2]])


def ours_like(theirs, cfg):
    """Our layer with the parameters of theirs."""
    ours = LatentAttention(
        D_IN,
        HEADS,
        LATENT,
        NOPE,
        VALUE,
        ROPE,
        cfg.q_lora_rank,
        qkv_bias=cfg.attention_bias,
        out_bias=cfg.attention_bias,
        scale=theirs.scaling,
    ).eval()
    order = in_halves if cfg.rope_interleave else (lambda rows: rows)
    queries = theirs.q_b_proj if cfg.q_lora_rank else theirs.q_proj
    by_head = queries.weight.view(HEADS, NOPE + ROPE, -1)
    made = theirs.kv_b_proj.weight.view(HEADS, NOPE + VALUE, LATENT)
    kept = theirs.kv_a_proj_with_mqa
    tensors = {
        "W_query.weight": torch.cat([torch.cat([h[:NOPE], order(h[NOPE:])]) for h in by_head]),
        "W_DKV.weight": kept.weight[:LATENT],
        "W_KR.weight": order(kept.weight[LATENT:]),
        "W_UK.weight": made[:, :NOPE].flatten(0, 1),
        "W_UV.weight": made[:, NOPE:].flatten(0, 1),
        "kv_norm.weight": theirs.kv_a_layernorm.weight,
        "out_proj.weight": theirs.o_proj.weight,
    }
    if cfg.q_lora_rank:
        tensors["W_DQ.weight"] = theirs.q_a_proj.weight
        tensors["q_norm.weight"] = theirs.q_a_layernorm.weight
    if cfg.attention_bias:
        tensors["W_DQ.bias"] = theirs.q_a_proj.bias
        tensors["W_DKV.bias"], tensors["W_KR.bias"] = kept.bias[:LATENT], order(kept.bias[LATENT:])
        tensors["out_proj.bias"] = theirs.o_proj.bias
    ours.load_state_dict(tensors)
    return ours


@pytest.fixture(params=CASES)
def pair(request):
    torch.manual_seed(0)
    cfg = config(**CASES[request.param])
    theirs = randomized(peer.DeepseekV3Attention(cfg, 0))
    scaling = None
    if request.param == "yarn":
        scaling = {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_context_length": 16,
            "attention_factor": 1.0,  # mscale / mscale_all_dim
        }
    return theirs, ours_like(theirs, cfg), cfg, RotaryEmbedding(ROPE, 500.0, scaling)


def their_output(theirs, cfg, x):
    n = x.shape[1]
    angles = peer.DeepseekV3RotaryEmbedding(cfg)(x, torch.arange(n)[None])
    return theirs(x, angles, torch.full((n, n), -torch.inf).triu(1)[None, None])[0]


def in_pieces(layer, rope, x, sizes, cache):
    parts = []
    for piece in x.split(sizes, dim=1):
        n = piece.shape[1]
        angles = rope(cache.positions(n, x.device))
        parts.append(layer(piece, cache.mask(n, x.device), *angles, cache))
        cache.advance(n)
    return torch.cat(parts, dim=1)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("absorb", [True, False, None])
def test_outputs_equal_those_of_deepseek_whole_in_pieces_and_step_by_step(pair, absorb):
    theirs, ours, cfg, rope = pair
    ours.absorb = absorb
    for n in (1, 2, 30):
        x = torch.randn(2, n, D_IN)
        close(ours(x, None, *rope(torch.arange(n))), their_output(theirs, cfg, x))
    wanted = their_output(theirs, cfg, x)
    for sizes in ([30], [20] + [1] * 10, [1] * 30, [3, 9, 1, 17]):
        close(in_pieces(ours, rope, x, sizes, KVCache(1, capacity=40)), wanted)


@torch.no_grad()
@pytest.mark.parametrize("absorb", [True, False])
def test_rows_padded_on_the_left_get_what_they_get_alone(pair, absorb):
    theirs, ours, cfg, rope = pair
    ours.absorb = absorb
    x, padding = torch.randn(3, 30, D_IN), torch.tensor([0, 11, 29])
    cache = KVCache(1, capacity=30)
    cache.reset(padding)
    rows = in_pieces(ours, rope, x, [20] + [1] * 10, cache)
    for row, alone, start in zip(rows, x, padding.tolist(), strict=True):
        close(row[start:], their_output(theirs, cfg, alone[None, start:])[0])


@torch.no_grad()
def test_the_cache_keeps_one_latent_vector_and_one_rotated_key_per_token():
    layer, rope = LatentAttention(D_IN, HEADS, LATENT, NOPE, VALUE, ROPE), RotaryEmbedding(ROPE)
    cache = KVCache(1, capacity=50)
    in_pieces(layer, rope, torch.randn(2, 30, D_IN), [29, 1], cache)
    kept, nothing = cache.get(0)
    assert kept.shape == (2, 1, 30, LATENT + ROPE) and nothing.shape == (2, 1, 30, 0)
    assert cache.nbytes == 2 * 50 * (LATENT + ROPE) * 4


@torch.no_grad()
def test_absorbed_steps_make_no_keys_and_values(monkeypatch):
    """W_UK and W_UV are never applied to what is in the cache."""
    layer, rope = LatentAttention(D_IN, HEADS, LATENT, NOPE, VALUE, ROPE), RotaryEmbedding(ROPE)
    cache = KVCache(1, capacity=50)
    in_pieces(layer, rope, torch.randn(1, 20, D_IN), [20], cache)
    monkeypatch.setattr(layer, "explicit", None)
    in_pieces(layer, rope, torch.randn(1, 5, D_IN), [1] * 5, cache)


def test_both_forms_have_the_same_gradients():
    torch.manual_seed(0)
    layer = LatentAttention(D_IN, HEADS, LATENT, NOPE, VALUE, ROPE, 14, dtype=torch.float64)
    x, angles = torch.randn(2, 9, D_IN).double(), RotaryEmbedding(ROPE)(torch.arange(9))
    gradients = []
    for layer.absorb in (True, False):
        layer.zero_grad()
        layer(x, None, *angles).sin().sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_texts_join_and_leave_a_cache_with_slots():
    torch.manual_seed(0)
    layer, rope = LatentAttention(D_IN, HEADS, LATENT, NOPE, VALUE, ROPE), RotaryEmbedding(ROPE)
    slots, texts = SlotCache(1, 4), [torch.randn(1, n, D_IN) for n in (9, 2, 17)]
    slots.capacity = 1000
    for text in texts:
        alone = KVCache(1, capacity=100)
        in_pieces(layer, rope, text, [text.shape[1]], alone)
        slots.join(alone)
    slots.leave(0)
    slots._make_room(slots.rows, slots.length, 1)  # as a model does before each step
    step = torch.randn(2, 1, D_IN)
    got = in_pieces(layer, rope, step, [1], slots)
    for row, text, new in zip(got, (texts[2], texts[1]), step, strict=True):
        whole = torch.cat([text, new[None]], dim=1)
        close(row, layer(whole, None, *rope(torch.arange(whole.shape[1])))[0, -1:])


@pytest.mark.parametrize(
    "sizes", [(HEADS, 0, NOPE), (0, LATENT, NOPE), (HEADS, LATENT, NOPE, 4, 3)]
)
def test_impossible_shapes_are_refused(sizes):
    with pytest.raises(ValueError, match="got"):
        LatentAttention(D_IN, *sizes)


def experts_like(theirs, cfg):
    ours = DeepSeekMoE(
        {
            "emb_dim": D_IN,
            "num_experts": 8,
            "num_experts_per_tok": cfg.num_experts_per_tok,
            "moe_hidden_dim": 7,
            "shared_expert_dim": 14,
            "num_groups": cfg.n_group,
            "groups_per_tok": cfg.topk_group,
            "routed_scale": cfg.routed_scaling_factor,
            "norm_topk_prob": cfg.norm_topk_prob,
        }
    ).eval()
    tensors = {
        "gate.weight": theirs.gate.weight,
        "expert_bias": theirs.gate.e_score_correction_bias,
    }
    for i in range(8):
        gate, up = theirs.experts.gate_up_proj[i].chunk(2)
        tensors[f"fc1.{i}.weight"], tensors[f"fc2.{i}.weight"] = gate, up
        tensors[f"fc3.{i}.weight"] = theirs.experts.down_proj[i]
    for ours_name, name in (("fc1", "gate_proj"), ("fc2", "up_proj"), ("fc3", "down_proj")):
        tensors[f"shared_expert.{ours_name}.weight"] = theirs.shared_experts.get_parameter(
            f"{name}.weight"
        )
    ours.load_state_dict(tensors)
    return ours


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{}, {"n_group": 1, "topk_group": 1}, {"norm_topk_prob": False}, {"num_experts_per_tok": 1}],
    ids=str,
)
def test_the_experts_are_those_of_deepseek(changes):
    torch.manual_seed(2)
    cfg = config(**changes)
    theirs = randomized(peer.DeepseekV3MoE(cfg))
    x = torch.randn(3, 17, D_IN)
    close(experts_like(theirs, cfg)(x), theirs(x))


@torch.no_grad()
def test_a_whole_layer_of_deepseek_prefill_and_steps():
    torch.manual_seed(3)
    cfg = config(q_lora_rank=14)
    theirs = randomized(peer.DeepseekV3DecoderLayer(cfg, 0))
    att, ff = ours_like(theirs.self_attn, cfg), experts_like(theirs.mlp, cfg)
    norm1, norm2 = RMSNorm(D_IN, 1e-6), RMSNorm(D_IN, 1e-6)
    norm1.load_state_dict(theirs.input_layernorm.state_dict())
    norm2.load_state_dict(theirs.post_attention_layernorm.state_dict())
    x, rope, cache = torch.randn(2, 20, D_IN), RotaryEmbedding(ROPE, 500.0), KVCache(1, 20)
    angles = peer.DeepseekV3RotaryEmbedding(cfg)(x, torch.arange(20)[None])
    hidden = torch.full((20, 20), -torch.inf).triu(1)[None, None]
    wanted = theirs(x, position_embeddings=angles, attention_mask=hidden)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    attended = in_pieces(lambda piece, *rest: att(norm1(piece), *rest), rope, x, [15, 1, 4], cache)
    ours = x + attended
    close(ours + ff(norm2(ours)), wanted)


def test_the_bias_moves_towards_experts_that_get_little():
    torch.manual_seed(0)
    cfg = {"emb_dim": 8, "num_experts": 4, "num_experts_per_tok": 1, "moe_hidden_dim": 4}
    experts = DeepSeekMoE(cfg | {"shared_expert_dim": 4})
    tokens = torch.randn(400, 8) + 1  # a router prefers some of them

    def fewest():
        return int(experts.route(tokens)[1].flatten().bincount(minlength=4).min())

    before = fewest()
    for _ in range(300):
        experts.update_bias(tokens, rate=0.005)
    assert fewest() > max(before, 80)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_groups": 3},
        {"num_groups": 2, "groups_per_tok": 3},
        {"num_groups": 8, "groups_per_tok": 1},
    ],
    ids=str,
)
def test_groups_that_cannot_be_are_refused(changes):
    cfg = {"emb_dim": 8, "num_experts": 8, "num_experts_per_tok": 2, "moe_hidden_dim": 4}
    with pytest.raises(ValueError, match="num_groups|groups_per_tok"):
        DeepSeekMoE(cfg | {"shared_expert_dim": 4} | changes)
