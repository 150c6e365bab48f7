"""Chapter 4: our GPT is GPT-2. Its parts equal PyTorch's, the whole equals transformers'."""

import pytest
import torch
import transformers

from llms_from_scratch.ch04 import (
    BASE_CONFIG,
    GELU,
    GPT_CONFIG_124M,
    GPTModel,
    GPTModelFast,
    LayerNorm,
    TransformerBlock,
    generate_text_simple,
    model_configs,
)

TINY = {
    "vocab_size": 97,
    "context_length": 16,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}


def hugging_face_twin(cfg):
    """A random GPT-2 of transformers with every weight away from its usual start."""
    torch.manual_seed(7)
    twin = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=cfg["vocab_size"],
            n_positions=cfg["context_length"],
            n_embd=cfg["emb_dim"],
            n_layer=cfg["n_layers"],
            n_head=cfg["n_heads"],
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return twin


def copy_from_hugging_face(model, twin):
    """Copy by hand, name by name, independent of the package's own loader."""
    source, target = dict(twin.transformer.named_parameters()), model.state_dict()
    target["tok_emb.weight"] = target["out_head.weight"] = source["wte.weight"]
    target["pos_emb.weight"] = source["wpe.weight"]
    for kind in ("weight", "bias"):
        ours = {"weight": "scale", "bias": "shift"}[kind]
        target[f"final_norm.{ours}"] = source[f"ln_f.{kind}"]
        for i in range(len(model.trf_blocks)):
            to, fro = f"trf_blocks.{i}", f"h.{i}"
            q, k, v = source[f"{fro}.attn.c_attn.{kind}"].t().chunk(3)
            target[f"{to}.att.W_query.{kind}"] = q
            target[f"{to}.att.W_key.{kind}"] = k
            target[f"{to}.att.W_value.{kind}"] = v
            target[f"{to}.att.out_proj.{kind}"] = source[f"{fro}.attn.c_proj.{kind}"].t()
            target[f"{to}.ff.layers.0.{kind}"] = source[f"{fro}.mlp.c_fc.{kind}"].t()
            target[f"{to}.ff.layers.2.{kind}"] = source[f"{fro}.mlp.c_proj.{kind}"].t()
            target[f"{to}.norm1.{ours}"] = source[f"{fro}.ln_1.{kind}"]
            target[f"{to}.norm2.{ours}"] = source[f"{fro}.ln_2.{kind}"]
    model.load_state_dict(target)


def test_logits_equal_those_of_transformers_with_the_same_weights():
    twin, model = hugging_face_twin(TINY), GPTModel(TINY).eval()
    copy_from_hugging_face(model, twin)
    ids = torch.randint(0, 97, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), twin(ids).logits, rtol=0, atol=1e-5)


def test_greedy_text_equals_that_of_transformers_also_past_the_context():
    twin, model = hugging_face_twin(TINY), GPTModel(TINY).eval()
    copy_from_hugging_face(model, twin)
    ids = torch.randint(0, 97, (2, 5))
    wanted = ids
    with torch.no_grad():
        for _ in range(30):  # transformers' own generate() refuses to go past the context
            logits = twin(wanted[:, -16:]).logits[:, -1]
            wanted = torch.cat([wanted, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generate_text_simple(model, ids, 30, context_size=16), wanted)


@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1000.0])
def test_layer_norm_equals_pytorchs(shift, spread):
    ours, theirs = LayerNorm(40), torch.nn.LayerNorm(40)
    with torch.no_grad():
        theirs.weight.copy_(torch.randn(40))
        theirs.bias.copy_(torch.randn(40))
        ours.scale.copy_(theirs.weight)
        ours.shift.copy_(theirs.bias)
    x = (torch.randn(3, 7, 40) * spread + shift).double()
    torch.testing.assert_close(ours.double()(x), theirs.double()(x), rtol=0, atol=1e-10)


def test_gelu_equals_pytorchs_tanh_approximation():
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    wanted = torch.nn.functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(GELU()(x), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_fast_model_is_the_same_function_of_the_same_seed(qkv_bias):
    models = []
    for cls in (GPTModel, GPTModelFast):
        torch.manual_seed(123)
        models.append(cls(TINY | {"qkv_bias": qkv_bias}).eval())
    if (
        qkv_bias
    ):  # separate layers draw weight, bias, weight, ...; the joint layer all weights first
        return_weights(models[0], models[1])
    ids = torch.randint(0, 97, (2, 16))
    torch.testing.assert_close(models[0](ids), models[1](ids), rtol=0, atol=1e-5)


def return_weights(plain, fast):
    with torch.no_grad():
        for a, b in zip(plain.trf_blocks, fast.trf_blocks, strict=True):
            parts = (a.att.W_query, a.att.W_key, a.att.W_value)
            b.att.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
            b.att.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
            b.att.proj.load_state_dict(a.att.out_proj.state_dict())
            b.ff.load_state_dict(a.ff.state_dict())
        fast.tok_emb.load_state_dict(plain.tok_emb.state_dict())
        fast.pos_emb.load_state_dict(plain.pos_emb.state_dict())
        fast.out_head.load_state_dict(plain.out_head.state_dict())


def test_state_dict_names_are_those_of_the_book():
    names = list(GPTModel(TINY).state_dict())
    block = [
        "att.mask",
        "att.W_query.weight",
        "att.W_query.bias",
        "att.W_key.weight",
        "att.W_key.bias",
        "att.W_value.weight",
        "att.W_value.bias",
        "att.out_proj.weight",
        "att.out_proj.bias",
        "ff.layers.0.weight",
        "ff.layers.0.bias",
        "ff.layers.2.weight",
        "ff.layers.2.bias",
        "norm1.scale",
        "norm1.shift",
        "norm2.scale",
        "norm2.shift",
    ]
    blocks = [f"trf_blocks.{i}.{name}" for i in range(2) for name in block]
    wanted = ["tok_emb.weight", "pos_emb.weight", *blocks]
    assert names == [*wanted, "final_norm.scale", "final_norm.shift", "out_head.weight"]


def test_fast_model_stores_no_mask_and_a_joint_projection():
    names = GPTModelFast(TINY).state_dict()
    assert not any("mask" in name for name in names)
    assert names["trf_blocks.0.att.qkv.weight"].shape == (72, 24)


def test_124m_model_has_173_entries_and_the_books_sizes():
    with torch.device("meta"):
        model = GPTModel(GPT_CONFIG_124M)
    assert len(model.state_dict()) == 173
    assert sum(p.numel() for p in model.parameters()) == 163_009_536


@pytest.mark.parametrize(
    ("name", "total", "tied"),
    [
        ("gpt2-small (124M)", 163_037_184, 124_439_808),
        ("gpt2-medium (355M)", 406_286_336, 354_823_168),
        ("gpt2-large (774M)", 838_359_040, 774_030_080),
        ("gpt2-xl (1558M)", 1_638_022_400, 1_557_611_200),
    ],
)
def test_parameter_counts_with_query_key_value_biases_are_those_of_gpt2(name, total, tied):
    with torch.device("meta"):
        model = GPTModel(BASE_CONFIG | model_configs[name])
    count = sum(p.numel() for p in model.parameters())
    assert (count, count - model.out_head.weight.numel()) == (total, tied)


def test_tied_parameter_counts_equal_transformers_count():
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    assert theirs.num_parameters() == 124_439_808


def test_blocks_do_not_change_shapes_and_pass_gradients_to_every_parameter():
    model = GPTModel(TINY)
    model(torch.randint(0, 97, (2, 16))).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    x = torch.randn(2, 4, 24)
    assert TransformerBlock(TINY)(x).shape == x.shape


@pytest.mark.parametrize("cls", [GPTModel, GPTModelFast])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 3}, "unknown key 'n_head' in the GPT configuration; did you mean 'n_heads'?"),
        ({"colour": 1}, "unknown key 'colour' .* known keys: vocab_size, context_length"),
        ({"emb_dim": 25}, "must be divisible by num_heads, got d_out=25, num_heads=3"),
    ],
)
def test_wrong_configurations_are_refused(cls, change, message):
    with pytest.raises(ValueError, match=message):
        cls(TINY | change)


def test_missing_configuration_keys_are_named():
    with pytest.raises(ValueError, match="missing in the GPT configuration: n_layers, drop_rate"):
        GPTModel({k: v for k, v in TINY.items() if k not in ("n_layers", "drop_rate")})


@pytest.mark.parametrize("cls", [GPTModel, GPTModelFast])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 17, dtype=torch.long), "got 17 tokens, .* context_length is 16: pass the"),
        (torch.tensor([[0, 97]]), "token id 97 is outside of the model's vocabulary, 0 to 96"),
        (torch.tensor([[0, -1]]), "token id -1 is outside"),
    ],
)
def test_wrong_inputs_are_refused(cls, ids, message):
    with pytest.raises(ValueError, match=message):
        cls(TINY)(ids)


def test_generation_depends_on_the_last_context_size_tokens_only():
    model = GPTModel(TINY).eval()
    long = torch.randint(0, 97, (1, 40))
    whole = generate_text_simple(model, long, 5, context_size=16)
    cropped = generate_text_simple(model, long[:, -16:], 5, context_size=16)
    assert torch.equal(whole[:, -5:], cropped[:, -5:])
    assert torch.equal(whole[:, :40], long)
