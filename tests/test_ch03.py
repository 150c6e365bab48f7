"""Chapter 3: every attention variant computes the same thing, and none looks into the future."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from llms_from_scratch.ch03 import (
    CausalAttention,
    MultiHeadAttention,
    MultiHeadAttentionWrapper,
    PyTorchMultiHeadAttention,
    SelfAttention_v1,
    SelfAttention_v2,
)

ROOT = Path(__file__).resolve().parent.parent
SIZES = [  # b, num_tokens, d_in, d_out, num_heads
    (1, 1, 4, 4, 1),
    (2, 6, 3, 4, 2),
    (3, 17, 32, 48, 6),
    (2, 64, 64, 64, 8),
]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def split_heads(x, num_heads):
    b, num_tokens, d_out = x.shape
    return x.view(b, num_tokens, num_heads, d_out // num_heads).transpose(1, 2)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize(("b", "num_tokens", "d_in", "d_out", "num_heads"), SIZES)
def test_multi_head_attention_equals_pytorchs_kernel(
    b, num_tokens, d_in, d_out, num_heads, qkv_bias
):
    torch.manual_seed(0)
    mha = MultiHeadAttention(d_in, d_out, num_tokens + 3, 0.0, num_heads, qkv_bias)
    x = torch.randn(b, num_tokens, d_in)
    q, k, v = (split_heads(w(x), num_heads) for w in (mha.W_query, mha.W_key, mha.W_value))
    context = scaled_dot_product_attention(q, k, v, is_causal=True)
    close(mha(x), mha.out_proj(context.transpose(1, 2).reshape(b, num_tokens, d_out)))


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize(("b", "num_tokens", "d_in", "d_out", "num_heads"), SIZES)
def test_fused_variant_equals_multi_head_attention_with_the_same_weights(
    b, num_tokens, d_in, d_out, num_heads, qkv_bias
):
    torch.manual_seed(0)
    mha = MultiHeadAttention(d_in, d_out, num_tokens, 0.0, num_heads, qkv_bias)
    fused = PyTorchMultiHeadAttention(d_in, d_out, num_heads, qkv_bias=qkv_bias)
    parts = (mha.W_query, mha.W_key, mha.W_value)
    with torch.no_grad():
        fused.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        if qkv_bias:
            fused.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        fused.proj.load_state_dict(mha.out_proj.state_dict())
    x = torch.randn(b, num_tokens, d_in)
    close(fused(x), mha(x))


def test_fused_variant_draws_the_same_initial_weights_from_a_seed():
    torch.manual_seed(123)
    mha = MultiHeadAttention(8, 8, 4, 0.0, 2)
    torch.manual_seed(123)
    fused = PyTorchMultiHeadAttention(8, 8, 2)
    joint = torch.cat([mha.W_query.weight, mha.W_key.weight, mha.W_value.weight])
    assert torch.equal(fused.qkv.weight, joint)


@pytest.mark.parametrize(("b", "num_tokens", "d_in", "d_out", "num_heads"), SIZES)
def test_heads_in_one_product_equal_heads_side_by_side(b, num_tokens, d_in, d_out, num_heads):
    torch.manual_seed(0)
    head_dim = d_out // num_heads
    wrapper = MultiHeadAttentionWrapper(d_in, head_dim, num_tokens, 0.0, num_heads)
    mha = MultiHeadAttention(d_in, d_out, num_tokens, 0.0, num_heads)
    with torch.no_grad():
        for name in ("W_query", "W_key", "W_value"):
            rows = [getattr(head, name).weight for head in wrapper.heads]
            getattr(mha, name).weight.copy_(torch.cat(rows))
    x = torch.randn(b, num_tokens, d_in)
    close(mha(x), mha.out_proj(wrapper(x)))


def test_single_heads_equal_pytorchs_kernel_without_and_with_mask():
    torch.manual_seed(0)
    x = torch.randn(2, 9, 5)
    for module, is_causal in (
        (SelfAttention_v2(5, 4), False),
        (CausalAttention(5, 4, context_length=9, dropout=0.0), True),
    ):
        q, k, v = module.W_query(x), module.W_key(x), module.W_value(x)
        wanted = scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        got = module(x) if is_causal else torch.stack([module(row) for row in x])
        close(got, wanted)


def test_version_1_with_the_transposed_weights_of_version_2_gives_the_same():
    v2 = SelfAttention_v2(5, 4)
    v1 = SelfAttention_v1(5, 4)
    for name in ("W_query", "W_key", "W_value"):
        setattr(v1, name, torch.nn.Parameter(getattr(v2, name).weight.T))
    x = torch.randn(9, 5)
    close(v1(x), v2(x))


@pytest.mark.parametrize(
    "module",
    [
        CausalAttention(6, 8, 10, 0.0),
        MultiHeadAttentionWrapper(6, 4, 10, 0.0, num_heads=2),
        MultiHeadAttention(6, 8, 10, 0.0, num_heads=2),
        PyTorchMultiHeadAttention(6, 8, num_heads=2),
    ],
    ids=lambda module: type(module).__name__,
)
def test_later_tokens_and_other_rows_do_not_change_an_output(module):
    x = torch.randn(2, 10, 6)
    changed = x.clone()
    changed[0, 7:] += 1.0
    before, after = module(x), module(changed)
    assert torch.equal(before[0, :7], after[0, :7])
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[0, 7:], after[0, 7:])


def test_attention_weights_of_equal_keys_are_the_mean_over_the_past():
    module = CausalAttention(3, 3, 5, 0.0)
    torch.nn.init.zeros_(module.W_key.weight)
    x = torch.randn(1, 5, 3)
    values = module.W_value(x)
    close(module(x), values.cumsum(dim=1) / torch.arange(1, 6).view(1, 5, 1))


@pytest.mark.parametrize("cls", [CausalAttention, MultiHeadAttention])
def test_dropout_acts_in_training_only(cls):
    args = (4, 4, 6, 0.5) + ((2,) if cls is MultiHeadAttention else ())
    module, x = cls(*args), torch.randn(1, 6, 4)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_fused_dropout_acts_in_training_only():
    module, x = PyTorchMultiHeadAttention(4, 4, 2, dropout=0.5), torch.randn(1, 6, 4)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


@pytest.mark.parametrize(
    "build",
    [
        lambda: MultiHeadAttention(6, 7, 10, 0.0, num_heads=2),
        lambda: PyTorchMultiHeadAttention(6, 7, num_heads=2),
    ],
)
def test_width_that_the_heads_do_not_divide_is_refused(build):
    with pytest.raises(ValueError, match="divisible by num_heads, got d_out=7, num_heads=2"):
        build()


@pytest.mark.parametrize(
    "module",
    [
        CausalAttention(6, 8, 10, 0.0),
        MultiHeadAttention(6, 8, 10, 0.0, num_heads=2),
    ],
)
def test_more_tokens_than_the_context_are_refused(module):
    with pytest.raises(ValueError, match="got 11 tokens, but context_length is 10"):
        module(torch.randn(1, 11, 6))


def test_gradients_of_the_fused_and_the_plain_variant_agree():
    torch.manual_seed(0)
    mha, fused = MultiHeadAttention(8, 8, 5, 0.0, 2), PyTorchMultiHeadAttention(8, 8, 2)
    with torch.no_grad():
        parts = (mha.W_query, mha.W_key, mha.W_value)
        fused.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        fused.proj.load_state_dict(mha.out_proj.state_dict())
    x = torch.randn(2, 5, 8)
    mha(x).square().sum().backward()
    fused(x).square().sum().backward()
    joint = torch.cat([part.weight.grad for part in parts])
    torch.testing.assert_close(fused.qkv.weight.grad, joint, rtol=1e-5, atol=1e-5)


def test_the_script_refuses_sizes_that_no_memory_holds(monkeypatch, capsys):
    script = ROOT / "ch03/01_main-chapter-code/multihead_attention.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--num-tokens", "100000"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    error = capsys.readouterr().err
    assert end.value.code == 2 and "3,840 GB" in error and error.count("\n") == 1
