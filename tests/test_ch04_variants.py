"""Chapter 4 with other parts: each model caches what it says, and layers are those published."""

import runpy
from pathlib import Path

import pytest
import torch
import transformers
from transformers import DynamicCache
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from llms_from_scratch.blocks.experts import (
    SharedExpertMoE,
    load_balance_loss,
    recorded_scores,
)
from llms_from_scratch.blocks.feed_forward import FeedForward, MoEFeedForward
from llms_from_scratch.blocks.masks import attention_mask
from llms_from_scratch.blocks.rope import RotaryEmbedding
from llms_from_scratch.ch04 import GPTModel, generate_text_simple
from llms_from_scratch.gpt_variants import (
    GatedDeltaNet,
    GatedMultiHeadAttention,
    GPTWithDeltaNet,
    GPTWithFFN,
    GPTWithGQA,
    GPTWithMHA,
    GPTWithMLA,
    GPTWithMoE,
    GPTWithSWA,
    GroupedQueryAttention,
    MultiHeadAttention,
    MultiHeadAttentionWithSWA,
    MultiHeadLatentAttention,
)
from llms_from_scratch.kv_cache import KVCache, left_pad
from llms_from_scratch.kv_cache.generate import generate_text_simple as generate_with_cache
from llms_from_scratch.kv_cache.slots import SlotCache
from llms_from_scratch.llama3 import TransformerBlock as LlamaBlock
from llms_from_scratch.qwen3 import TransformerBlock as QwenBlock

CONFIG = {
    "vocab_size": 97,
    "context_length": 48,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 3,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
EXPERTS = {"hidden_dim": 24, "num_experts": 6, "num_experts_per_tok": 2}
WINDOW = {"sliding_window_size": 5}
MODELS = {
    "mha": (GPTWithMHA, {}),
    "mha, biases": (GPTWithMHA, {"qkv_bias": True}),
    "gqa": (GPTWithGQA, {"n_kv_groups": 2}),
    "gqa, biases": (GPTWithGQA, {"n_kv_groups": 1, "qkv_bias": True}),
    "mla": (GPTWithMLA, {"latent_dim": 12, "qkv_bias": True}),
    "mla, default width": (GPTWithMLA, {}),
    "swa, mixed": (GPTWithSWA, WINDOW | {"sliding_window_stride": 2}),
    "swa, all": (GPTWithSWA, WINDOW | {"sliding_window_stride": -1}),
    "swa, none": (GPTWithSWA, WINDOW | {"sliding_window_stride": 0}),
    "ffn": (GPTWithFFN, {"hidden_dim": 24}),
    "moe": (GPTWithMoE, EXPERTS),
    "moe without experts": (GPTWithMoE, EXPERTS | {"num_experts": 0}),
    "deltanet": (GPTWithDeltaNet, {}),
    "deltanet, mixed": (GPTWithDeltaNet, {"full_attention_every": 3, "qkv_bias": True}),
}


def build(name, seed=0):
    cls, changes = MODELS[name]
    torch.manual_seed(seed)
    model = cls(CONFIG | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=MODELS)
def model(request):
    return build(request.param)


def ids(b, n, seed=0):
    return torch.randint(0, 97, (b, n), generator=torch.Generator().manual_seed(seed))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_pieces_steps_and_the_own_cache_equal_the_whole(model):
    whole = ids(2, 40)
    wanted = model(whole)
    for sizes in ([40], [1] * 40, [3, 1, 9, 1, 1, 25], [12] + [1] * 28):
        cache = KVCache.for_model(model)
        close(torch.cat([model(p, cache=cache) for p in whole.split(sizes, dim=1)], 1), wanted)
    close(torch.cat([model(p, use_cache=True) for p in whole.split(7, dim=1)], 1), wanted)
    close(model(whole), wanted)  # a call without it leaves the cache alone
    assert model.current_pos == 40


@torch.no_grad()
def test_no_token_sees_what_comes_after_it(model):
    whole = ids(1, 20)
    changed = whole.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 97
    close(model(whole)[:, :12], model(changed)[:, :12])
    assert not torch.allclose(model(whole)[:, 12:], model(changed)[:, 12:])


@torch.no_grad()
def test_generation_with_and_without_a_cache_and_past_the_context(model):
    prompt = ids(2, 7)
    wanted = generate_text_simple(model, prompt, 60, CONFIG["context_length"])
    assert torch.equal(generate_with_cache(model, prompt, 60), wanted)


@torch.no_grad()
def test_unequal_prompts_share_a_batch(model):
    prompts = [ids(1, n, n)[0].tolist() for n in (1, 9, 16)]
    idx, lengths = left_pad(prompts)
    together = generate_with_cache(model, idx, 12, lengths=lengths)
    for prompt, row in zip(prompts, together, strict=True):
        alone = generate_text_simple(model, torch.tensor([prompt]), 12, 48)[0, len(prompt) :]
        assert torch.equal(row[-12:], alone)


@torch.no_grad()
def test_bfloat16_models_cache_in_bfloat16(model):
    model = model.to(torch.bfloat16)
    cache = KVCache.for_model(model)
    model(ids(1, 9), cache=cache)
    for held in cache.get_all():
        tensors = [t for t in held if t.numel()]
        assert tensors[0].dtype == torch.bfloat16
    assert generate_with_cache(model, ids(1, 5), 4).shape == (1, 9)


def test_gradients_reach_every_parameter(model):
    model.train()
    model(ids(3, 30)).logsumexp(-1).sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not [name for name in unused if ".fc" not in name]  # an expert may have had no token


@torch.no_grad()
@pytest.mark.parametrize("cls", [GPTWithMHA, GPTWithSWA])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_weights_of_chapter_4_load_and_the_same_seed_gives_them(cls, qkv_bias):
    cfg = CONFIG | {"qkv_bias": qkv_bias}
    window = {"sliding_window_size": 48, "sliding_window_stride": -1} if cls is GPTWithSWA else {}
    torch.manual_seed(1)
    book = GPTModel(cfg).eval()
    torch.manual_seed(1)
    ours = cls(cfg | window).eval()
    weights = {k: v for k, v in book.state_dict().items() if not k.endswith(".att.mask")}
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, weights[name])
    ours.load_state_dict(weights)
    close(ours(ids(2, 30)), book(ids(2, 30)))


def test_the_names_of_weights_are_those_of_the_book():
    def names(module):
        return [name for name, _ in module.named_parameters()]

    assert names(GroupedQueryAttention(8, 8, 0.0, 4, 2)) == [
        "W_key.weight",
        "W_value.weight",
        "W_query.weight",
        "out_proj.weight",
    ]
    assert names(MultiHeadLatentAttention(8, 8, 0.0, 2)) == [
        "W_query.weight",
        "W_DKV.weight",
        "W_UK.weight",
        "W_UV.weight",
        "out_proj.weight",
        "out_proj.bias",
    ]
    assert MultiHeadLatentAttention(8, 256, 0.0, 2).latent_dim == 32
    assert names(MoEFeedForward({"emb_dim": 4, "moe_hidden_dim": 3} | EXPERTS))[0] == "gate.weight"
    gated = names(GatedDeltaNet(8, 8, 0.0, 2))
    assert {"W_gate.weight", "W_beta.weight", "W_alpha.weight", "dt_bias", "A_log"} <= set(gated)


@torch.no_grad()
def test_a_layer_with_a_window_works_alone():
    torch.manual_seed(0)
    att = MultiHeadAttentionWithSWA(8, 8, 0.0, 2, sliding_window_size=4).eval()
    x = torch.randn(1, 20, 8)
    wanted = att(x)
    assert att.cache_k is None
    close(att(x[:, :6], use_cache=True), wanted[:, :6])
    assert att.cache_k.shape == att.cache_v.shape == (1, 4, 2, 4)
    for t in range(6, 20):
        close(att(x[:, t : t + 1], use_cache=True), wanted[:, t : t + 1])
        assert att.cache_k.shape[1] == 4
    far = x.clone()
    far[:, :16] = 0  # out of the last token's sight
    close(att(far)[:, -1], wanted[:, -1])
    att.reset_cache()
    assert att.cache_v is None


def test_a_gate_needs_no_particular_number_of_tokens_and_lets_each_number_through():
    att = GatedMultiHeadAttention(8, 8, 10, 0.0, 2)
    with torch.no_grad():
        att.W_gate.weight.zero_()  # gates half open
        plain = MultiHeadAttention(8, 8, 0.0, 2)
        plain.load_state_dict({k: v for k, v in att.state_dict().items() if "gate" not in k})
        plain.out_proj.weight.mul_(0.5)
        x = torch.randn(1, 5, 8)
        close(att(x), plain(x))
    with pytest.raises(ValueError, match="context_length is 10"):
        att(torch.randn(1, 11, 8))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gqa", {"n_kv_groups": 3}, "multiple of num_kv_groups"),
        ("gqa", {"n_heads": 5}, "divisible by num_heads"),
        ("mla", {"latent_dim": -2}, "latent_dim must be at least 1, got -2"),
        ("swa, all", {"sliding_window_size": 0}, "must be at least 1"),
        ("moe", {"num_experts_per_tok": 7}, "from 1 to num_experts=6, got 7"),
        ("moe", {"num_experts": -1}, "0 .* or more, got -1"),
        ("deltanet", {"full_attention_every": 0}, "at least 1"),
        ("mha", {"n_kv_group": 2}, "unknown key 'n_kv_group'"),
    ],
)
def test_a_wrong_configuration_is_refused(name, changes, message):
    cls, own = MODELS[name]
    with pytest.raises(ValueError, match=message):
        cls(CONFIG | own | changes)


# --- Published layers ---

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
OURS = {
    "emb_dim": 32,
    "n_heads": 4,
    "n_kv_groups": 2,
    "head_dim": 8,
    "hidden_dim": 24,
    "dtype": torch.float32,
    "rms_norm_eps": 1e-5,
    "qk_norm": True,
}
FEW = {"num_experts_per_tok": 2, "num_local_experts": 6, "num_experts": 6}
PUBLISHED = {  # family, its settings, our block, ours
    "Llama": ({}, LlamaBlock, {}),
    "Llama, multi-query": ({"num_key_value_heads": 1}, LlamaBlock, {"n_kv_groups": 1}),
    "Llama, multi-head": ({"num_key_value_heads": 4}, LlamaBlock, {"n_kv_groups": 4}),
    "Mistral": ({"sliding_window": 5}, LlamaBlock, {}),
    "Mixtral": (FEW | {"sliding_window": None}, LlamaBlock, {"moe_hidden_dim": 24} | FEW),
    "Qwen3Moe": (
        FEW | {"moe_intermediate_size": 24, "norm_topk_prob": True},
        QwenBlock,
        {"moe_hidden_dim": 24} | FEW,
    ),
    "Qwen3Moe, not normalized": (
        FEW | {"moe_intermediate_size": 24, "norm_topk_prob": False},
        QwenBlock,
        {"moe_hidden_dim": 24, "norm_topk_prob": False} | FEW,
    ),
}


def layer_pair(name):
    settings, block, changes = PUBLISHED[name]
    family = name.split(",")[0]
    config = getattr(transformers, f"{family}Config")(**(SMALL | settings))
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}Model")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    ours = block(OURS | changes)
    if family == "Mixtral":
        ours.ff = MoEFeedForward(OURS | changes)
    layer = theirs.layers[0]
    tensors = {}
    for mine, name in (("W_query", "q"), ("W_key", "k"), ("W_value", "v"), ("out_proj", "o")):
        tensors[f"att.{mine}.weight"] = getattr(layer.self_attn, f"{name}_proj").weight
    norm = "scale" if block is QwenBlock else "weight"
    tensors[f"norm1.{norm}"] = layer.input_layernorm.weight
    tensors[f"norm2.{norm}"] = layer.post_attention_layernorm.weight
    if block is QwenBlock:
        tensors["att.q_norm.scale"] = layer.self_attn.q_norm.weight
        tensors["att.k_norm.scale"] = layer.self_attn.k_norm.weight
    tensors |= {f"ff.{key}": value for key, value in feed_forward_weights(layer.mlp).items()}
    ours.load_state_dict(tensors)
    return config, theirs, ours.eval()


def feed_forward_weights(mlp):
    if not hasattr(mlp, "experts"):
        names = {"fc1": "gate_proj", "fc2": "up_proj", "fc3": "down_proj"}
        return {f"{m}.weight": getattr(mlp, theirs).weight for m, theirs in names.items()}
    tensors = {"gate.weight": mlp.gate.weight}
    for i, (gate_up, down) in enumerate(
        zip(mlp.experts.gate_up_proj, mlp.experts.down_proj, strict=True)
    ):
        tensors[f"fc1.{i}.weight"], tensors[f"fc2.{i}.weight"] = gate_up.chunk(2)
        tensors[f"fc3.{i}.weight"] = down
    return tensors


@torch.no_grad()
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_layer_equals_that_of_transformers_prefill_and_steps(name):
    config, theirs, ours = layer_pair(name)
    window = config.sliding_window if name == "Mistral" else None
    x, rope = torch.randn(2, 30, 32), RotaryEmbedding(8, 500.0)
    theirs.norm = torch.nn.Identity()  # the layer alone
    wanted = theirs(inputs_embeds=x, use_cache=False).last_hidden_state
    positions = torch.arange(30)
    close(ours(x, attention_mask(30, x.device, 0, window), *rope(positions)), wanted)
    for sizes in ([20] + [1] * 10, [1] * 30, [3, 9, 1, 17]):
        cache, their_cache, start = KVCache(1, 30, [window]), DynamicCache(config=config), 0
        for piece in x.split(sizes, dim=1):
            n = piece.shape[1]
            angles = rope(cache.positions(n, x.device))
            got = ours(piece, cache.mask(n, x.device, window), *angles, cache)
            cache.advance(n)
            close(got, wanted[:, start : start + n])
            step = theirs(inputs_embeds=piece, past_key_values=their_cache, use_cache=True)
            close(got, step.last_hidden_state)
            start += n


@torch.no_grad()
def test_experts_with_a_shared_one_equal_those_of_qwen3_next():
    from transformers.models.qwen3_next import modeling_qwen3_next as peer

    torch.manual_seed(0)
    config = transformers.Qwen3NextConfig(
        hidden_size=32,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=20,
        num_experts=6,
        num_experts_per_tok=2,
    )
    theirs = peer.Qwen3NextSparseMoeBlock(config).eval()
    for parameter in theirs.parameters():
        parameter.copy_(0.3 * torch.randn_like(parameter))
    ours = SharedExpertMoE(OURS | FEW | {"moe_hidden_dim": 24, "shared_expert_dim": 20})
    tensors = feed_forward_weights(theirs)
    tensors |= {
        f"shared_expert.{name}": tensor
        for name, tensor in feed_forward_weights(theirs.shared_expert).items()
    }
    tensors["shared_gate.weight"] = theirs.shared_expert_gate.weight
    ours.load_state_dict(tensors)
    x = torch.randn(2, 15, 32)
    close(ours(x), theirs(x))


# --- Experts ---


def test_grouped_experts_equal_a_loop_over_tokens_gradients_too():
    torch.manual_seed(0)
    experts = MoEFeedForward({"emb_dim": 8, "moe_hidden_dim": 5} | FEW).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64, requires_grad=True)
    got = experts(x)
    rows = []
    for token in x.flatten(0, 1):
        weights, chosen = experts.gate(token).topk(2)
        answers = [experts.expert(int(i), token[None])[0] for i in chosen]
        rows.append((weights.softmax(-1)[:, None] * torch.stack(answers)).sum(0))
    wanted = torch.stack(rows).view_as(x)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)  # weights pass through float32
    mine = torch.autograd.grad(got.sin().sum(), x)[0]
    torch.testing.assert_close(
        mine, torch.autograd.grad(wanted.sin().sum(), x)[0], atol=1e-5, rtol=0
    )


def test_no_expert_has_a_capacity_all_tokens_may_choose_one():
    experts = MoEFeedForward({"emb_dim": 8, "moe_hidden_dim": 5} | FEW)
    with torch.no_grad():
        experts.gate.weight.zero_()
        experts.gate.weight[3:5] = 9.0  # every token with a positive sum goes to 3 and 4
    x = torch.rand(4, 50, 8)
    weights, chosen = experts.route(x.flatten(0, 1))
    assert chosen.unique().tolist() == [3, 4]
    close(weights.sum(-1), torch.ones(200))
    assert experts(x).isfinite().all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_balance_loss_is_that_of_transformers(k):
    scores = [torch.randn(50, 6, requires_grad=True) for _ in range(2)]
    theirs = load_balancing_loss_func(tuple(scores), 6, k)
    ours = load_balance_loss(torch.cat(scores), k)
    close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, scores), torch.autograd.grad(theirs, scores), strict=True
    ):
        close(a, b)


def test_training_with_the_balance_loss_evens_out_a_skewed_router():
    torch.manual_seed(0)
    model = build("moe").train()
    with torch.no_grad():
        for block in model.trf_blocks:
            block.ff.gate.weight[0] += 1.0
            block.norm2.shift += 0.5
    idx = ids(8, 20)

    def loss():
        with recorded_scores(model) as scores:
            model(idx)
        assert len(scores) == CONFIG["n_layers"] and scores[0].shape == (160, 6)
        return sum(load_balance_loss(layer, 2) for layer in scores) / len(scores)

    first = loss().item()
    optimizer = torch.optim.Adam([block.ff.gate.weight for block in model.trf_blocks], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert first > 2.5 > 2.1 > loss().item()
    with recorded_scores(model) as scores:
        pass
    model(idx)
    assert not scores  # what was recorded ends with the block


def test_a_gated_layer_is_a_mixture_of_one_expert():
    torch.manual_seed(0)
    one = MoEFeedForward(
        {"emb_dim": 8, "moe_hidden_dim": 5, "num_experts": 1, "num_experts_per_tok": 1}
    )
    plain = FeedForward({"emb_dim": 8, "hidden_dim": 5})
    plain.load_state_dict({f"fc{i}.weight": getattr(one, f"fc{i}")[0].weight for i in (1, 2, 3)})
    x = torch.randn(2, 5, 8)
    close(one(x), plain(x))


# --- With the rest of the house ---


@torch.no_grad()
def test_texts_that_began_at_different_times_take_steps_together(model):
    slots = SlotCache.for_model(model, 3)
    texts = [ids(1, n, n) for n in (9, 2, 17)]
    for text in texts:
        alone = KVCache.for_model(model, 48)
        model(text, cache=alone)
        slots.join(alone)
    for token in ids(1, 5)[0]:
        step = token.expand(3, 1)
        logits = model(step, cache=slots)
        texts = [torch.cat([text, step[:1]], dim=1) for text in texts]
        for row, text in zip(logits, texts, strict=True):
            close(row, model(text)[0, -1:])


SCRIPTS = {  # what readers import from them
    "04_gqa/gpt_with_kv_mha.py": ["MultiHeadAttention"],
    "04_gqa/gpt_with_kv_gqa.py": ["GroupedQueryAttention"],
    "05_mla/gpt_with_kv_mha.py": ["MultiHeadAttention"],
    "05_mla/gpt_with_kv_mla.py": ["MultiHeadLatentAttention"],
    "06_swa/gpt_with_kv_mha.py": ["MultiHeadAttention"],
    "06_swa/gpt_with_kv_swa.py": ["MultiHeadAttentionWithSWA"],
    "07_moe/gpt_with_kv_ffn.py": ["FeedForward", "FFN_TIME_MS", "FFN_MEM_BYTES"],
    "07_moe/gpt_with_kv_moe.py": ["MoEFeedForward", "MOE_FF_TIME_MS", "MOE_FF_MEM_BYTES"],
    "08_deltanet/gpt_with_kv_deltanet.py": ["GatedDeltaNet", "GatedMultiHeadAttention"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_have_the_names_that_readers_import_and_print_a_text(script, monkeypatch, capsys):
    path = Path(__file__).resolve().parent.parent / "ch04" / script
    names = runpy.run_path(str(path))
    for name in (*SCRIPTS[script], "GPTModel", "TransformerBlock", "generate_text_simple_cached"):
        assert name in names
    options = "--emb_dim 16 --n_heads 2 --n_layers 2 --max_new_tokens 3 --device cpu".split()
    if "07_moe" in script:
        options += ["--hidden_dim", "8"]
    if "moe.py" in script:
        options += ["--num_experts", "3"]
    monkeypatch.setattr("sys.argv", [script, *options])
    names["main"]()
    printed = capsys.readouterr().out
    assert "Text: Hello, I am" in printed and "tokens/sec" in printed and "Cache:" in printed
    for name in SCRIPTS[script]:
        if name.endswith("_TIME_MS"):
            assert len(names[name]) == 2 * 3  # layers, times calls of the model


def test_recall_asks_for_what_was_written_last():
    path = Path(__file__).resolve().parent.parent / "ch04/08_deltanet/recall_experiment.py"
    names = runpy.run_path(str(path))
    token_ids, answers, kinds = names["make_batch"](20, torch.Generator().manual_seed(0))
    writes, values, keys = names["WRITES"], names["NUM_VALUES"], names["NUM_KEYS"]
    for row, wanted, once in zip(token_ids, answers, kinds["written once"], strict=True):
        memory, counts = {}, {}
        for token in row[:writes].tolist():
            memory[token // values] = token % values
            counts[token // values] = counts.get(token // values, 0) + 1
        asked = [token - keys * values for token in row[writes:].tolist()]
        assert [memory[key] for key in asked] == wanted.tolist()
        assert [counts[key] == 1 for key in asked] == once.tolist()
